"""Several sources' explainability vectors into one, which a merge rule then puts into a target.

Each combination says what it does to matrices (all weights of two or more dimensions, see `core.spectra`) and to the other weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.merging.parameters import ParameterError, Parametrised, parse
from core.spectra import as_matrix, is_matrix, spectrum
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Combination(Parametrised):
    """A way to make one vector of several. Subclasses are frozen dataclasses; the name and the fields are in the key of what they make."""

    def combine(self, vectors: Sequence[TaskVector]) -> TaskVector:
        """One vector of one or more of the same base. Raises ValueError for none, TaskVectorError where they are not of one base."""
        if not vectors:
            raise ValueError("there are no vectors to combine: give at least one")
        for vector in vectors[1:]:
            vectors[0].check_same_base(vector)
        weights = {name: self.combined([vector.weights[name] for vector in vectors]) for name in vectors[0].weights}
        return TaskVector(weights, vectors[0].base_fingerprint)

    @abstractmethod
    def combined(self, weights: list[Tensor]) -> Tensor:
        """One weight of the T vectors, all of one shape -> that of the combination."""


@dataclass(frozen=True)
class Mean(Combination):
    """The mean of the vectors, every weight alike: equation 1 of the paper with lambda = 1 / T."""

    name: ClassVar[str] = "mean"

    def combined(self, weights: list[Tensor]) -> Tensor:
        return torch.stack(weights).mean(0)


@dataclass(frozen=True)
class IsoC(Combination):
    """Matrices: the sum's singular directions with equal singular values, the mean of the sum's (Iso-C; Marczak et al., 2025). Others:
    mean.

    The authors' own scale on top of it (about 1.5) is lambda2's part here.
    """

    name: ClassVar[str] = "iso_c"

    def combined(self, weights: list[Tensor]) -> Tensor:
        if not is_matrix(weights[0]):
            return torch.stack(weights).mean(0)
        matrix = as_matrix(torch.stack(weights).sum(0))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return (s.mean() * (u @ vh)).view_as(weights[0])


@dataclass(frozen=True)
class TsvM(Combination):
    """Matrices: the leading 1/T of each vector's singular directions, made orthogonal to each other's (TSV-Merge; Gargiulo et al., 2025).
    Others: mean.

    The left directions of all vectors stand side by side, and so do the right ones; each is replaced by the nearest matrix with orthonormal
    columns (Procrustes); the singular values stay. Of a vector only directions up to its numerical rank count: the others are arbitrary.
    """

    name: ClassVar[str] = "tsv_m"

    def combined(self, weights: list[Tensor]) -> Tensor:
        if not is_matrix(weights[0]):
            return torch.stack(weights).mean(0)
        matrices = [as_matrix(weight) for weight in weights]
        rank = max(1, min(matrices[0].shape) // len(weights))
        leading = [spectrum(matrix).leading(rank) for matrix in matrices]
        left, right = torch.cat([part.u for part in leading], dim=1), torch.cat([part.vh.T for part in leading], dim=1)
        values = torch.cat([part.s for part in leading])
        return ((_nearest_orthonormal(left) * values) @ _nearest_orthonormal(right).T).view_as(weights[0])


def _nearest_orthonormal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@dataclass(frozen=True)
class Consensus(Combination):
    """The mean, without the weights that fewer than `min_sources` vectors use (Consensus Merging; Wang et al., 2024). Every weight alike.

    A vector tau_t uses a weight where |tau_t| > threshold |sum of all - tau_t| (its TALL mask). The authors search the threshold in 0.2 to
    0.6; a smaller one keeps more. They scale the masked sum; the mean leaves lambda2 in the range that one vector has.
    """

    name: ClassVar[str] = "consensus"

    threshold: float = 0.4
    min_sources: int = 2

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ParameterError(f"threshold of {self.name} must be at least 0, not {self.threshold}")
        if self.min_sources < 1:
            raise ParameterError(f"min_sources of {self.name} must be at least 1, not {self.min_sources}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"threshold": (0.2, 0.6)}

    def combined(self, weights: list[Tensor]) -> Tensor:
        stacked = torch.stack(weights)
        uses = stacked.abs() > self.threshold * (stacked.sum(0) - stacked).abs()
        return torch.where(uses.sum(0) >= self.min_sources, stacked.mean(0), 0.0)


COMBINATIONS: dict[str, Combination] = {made.name: made for made in (Consensus(), IsoC(), Mean(), TsvM())}
"""Every combination that can be asked for, with its default parameters."""


def parse_combination(text: str) -> Combination:
    """A combination by `NAME` or `NAME:key=value,key=value`. Raises ParameterError, with what there is."""
    return parse(text, COMBINATIONS, "combination")
