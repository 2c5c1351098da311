"""Explainability vectors of a few singular directions: small files to ship.

The leading tenth of a task vector's singular directions keeps nearly all it does (Gargiulo et al., 2025).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.spectra import as_matrix, is_matrix, spectra
from core.task_vectors import BASE_FINGERPRINT, RANK, TaskVector, TaskVectorError, read_vector_file

_SHAPES = "shapes"
_LEFT, _RIGHT = ".us", ".v"


@dataclass(frozen=True, eq=False)
class Factors:
    """The matrix left right^T, reshaped. left: U S [m, k]; right: V [n, k]; shape: of the weight that it stands for."""

    left: Tensor
    right: Tensor
    shape: torch.Size

    def weight(self) -> Tensor:
        return (self.left @ self.right.T).view(self.shape)


@dataclass(frozen=True, eq=False)
class LowRankVector:
    """A task vector whose matrices are products of at most `rank` directions.

    factors: of the matrices; whole: all other weights, biases and the like, and matrices whose factors would take more room than they do.
    """

    factors: Mapping[str, Factors]
    whole: Mapping[str, Tensor]
    rank: int
    base_fingerprint: str

    @staticmethod
    def of(vector: TaskVector, rank: int) -> LowRankVector:
        """The closest one: each matrix's truncated singular value decomposition (Eckart and Young, 1936).

        Raises ValueError for a rank below 1.
        """
        if rank < 1:
            raise ValueError(f"the rank must be at least 1, not {rank}")
        factors, whole = {}, {}
        for name, weight in vector.weights.items():
            if is_matrix(weight) and _is_smaller(as_matrix(weight), rank):
                leading = spectra(vector)[name].leading(rank)
                factors[name] = Factors(leading.u * leading.s, leading.vh.T, weight.shape)
            else:
                whole[name] = weight
        return LowRankVector(factors, whole, rank, vector.base_fingerprint)

    def vector(self) -> TaskVector:
        """The task vector that it stands for."""
        weights = dict(self.whole) | {name: factors.weight() for name, factors in self.factors.items()}
        return TaskVector(weights, self.base_fingerprint)

    def relative_error(self, vector: TaskVector) -> float:
        """L2 norm of what is missing of a vector, relative to the vector's; 0 for a vector that is 0."""
        norm = vector.norm()
        return (self.vector() - vector).norm() / norm if norm > 0 else 0.0

    @property
    def num_numbers(self) -> int:
        """Numbers that a file of it holds."""
        tensors = [*self.whole.values(), *(side for factors in self.factors.values() for side in (factors.left, factors.right))]
        return sum(tensor.numel() for tensor in tensors)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write it as safetensors: NAME.us and NAME.v of each matrix, the other weights by their names.

        The metadata has the rank, the base's fingerprint and the matrices' shapes beside what is given.
        """
        tensors = dict(self.whole)
        for name, factors in self.factors.items():
            tensors |= {f"{name}{_LEFT}": factors.left, f"{name}{_RIGHT}": factors.right}
        shapes = json.dumps({name: list(factors.shape) for name, factors in self.factors.items()})
        described = {**(metadata or {}), BASE_FINGERPRINT: self.base_fingerprint, RANK: str(self.rank), _SHAPES: shapes}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, described)

    @staticmethod
    def load(path: Path, base_fingerprint: str | None = None) -> LowRankVector:
        """Read what `save` wrote. base_fingerprint: of the base that it is meant for.

        Raises TaskVectorError where the file holds no factors, or those of another base.
        """
        tensors, metadata = read_vector_file(path, base_fingerprint)
        if RANK not in metadata:
            raise TaskVectorError(f"{path} holds a whole task vector and no factors: read it with core.low_rank.load_vector")
        try:
            factors = {
                name: Factors(tensors.pop(f"{name}{_LEFT}"), tensors.pop(f"{name}{_RIGHT}"), torch.Size(shape))
                for name, shape in json.loads(metadata[_SHAPES]).items()
            }
        except KeyError as error:
            raise TaskVectorError(f"{path} lacks the factor {error}: make the file again") from error
        return LowRankVector(factors, tensors, int(metadata[RANK]), metadata[BASE_FINGERPRINT])


def load_vector(path: Path, base_fingerprint: str | None = None) -> TaskVector:
    """The task vector of a file, whether it holds the vector or its factors. Raises TaskVectorError as `TaskVector.load` does."""
    with_factors = RANK in read_vector_file(path, base_fingerprint)[1]
    return LowRankVector.load(path).vector() if with_factors else TaskVector.load(path)


def _is_smaller(matrix: Tensor, rank: int) -> bool:
    return rank * sum(matrix.shape) < math.prod(matrix.shape)
