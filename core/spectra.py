"""Singular values and directions of the matrices of a task vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from core.task_vectors import TaskVector


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A matrix [m, n] of numerical rank k as u diag(s) vh: u [m, k], s [k], largest first and positive, vh [k, n]."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def leading(self, rank: int) -> Spectrum:
        """The first `rank` directions, or all there are."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.vh[:rank])

    def matrix(self) -> Tensor:
        return (self.u * self.s) @ self.vh


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight has singular values. Biases, normalisations and the class embedding have none."""
    return weight.ndim >= 2


def as_matrix(weight: Tensor) -> Tensor:
    """A weight of two or more dimensions as [first dimension, all others]: the patch embedding [D, 3, P, P] is [D, 3 P P].

    The attention's in_proj_weight [3 D, D] is one matrix, as open_clip keeps it.
    """
    return weight.flatten(1)


def spectrum(matrix: Tensor) -> Spectrum:
    """Singular value decomposition up to the numerical rank; what is below the arithmetic's precision has arbitrary directions."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > s[:1] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    return Spectrum(u, s, vh).leading(rank)


_known: WeakKeyDictionary[TaskVector, dict[str, Spectrum]] = WeakKeyDictionary()


def spectra(vector: TaskVector) -> Mapping[str, Spectrum]:
    """Spectra of a vector's matrices, by name. Kept as long as the vector: decomposing a ViT-B/32's takes seconds."""
    if vector not in _known:
        _known[vector] = {name: spectrum(as_matrix(weight)) for name, weight in vector.weights.items() if is_matrix(weight)}
    return _known[vector]
