"""Task arithmetic: equations 1 to 3 and 6 to 8 of the paper, over the image tower's trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""The image tower's weights by name."""


class TaskVectorError(ValueError):
    """Weights that do not belong together."""


@dataclass(frozen=True, eq=False)
class TaskVector:
    """A difference of weights with the same names and shapes, tied to the base model it was made from by the base's fingerprint."""

    weights: dict[str, Tensor]
    base_fingerprint: str

    @staticmethod
    def between(fine_tuned: Weights, start: Weights, base_fingerprint: str) -> TaskVector:
        """fine_tuned - start: a task vector tau for start = base; the explainability vector tau_star for self-explaining minus
        prediction-only weights of one domain. Raises TaskVectorError when names or shapes differ."""
        _check_same(fine_tuned, start)
        return TaskVector({k: fine_tuned[k] - start[k] for k in start}, base_fingerprint)

    def __add__(self, other: TaskVector) -> TaskVector:
        self._check(other)
        return TaskVector({k: v + other.weights[k] for k, v in self.weights.items()}, self.base_fingerprint)

    def __sub__(self, other: TaskVector) -> TaskVector:
        self._check(other)
        return TaskVector({k: v - other.weights[k] for k, v in self.weights.items()}, self.base_fingerprint)

    def __mul__(self, scaling_coefficient: float) -> TaskVector:
        return TaskVector({k: v * scaling_coefficient for k, v in self.weights.items()}, self.base_fingerprint)

    __rmul__ = __mul__

    def norm(self) -> float:
        """L2 norm over all weights."""
        return self._flat().norm().item()

    def cosine_similarity(self, other: TaskVector) -> float:
        """Cosine of the angle between two task vectors, in [-1, 1]; nan where one of them is zero."""
        self._check(other)
        a, b = self._flat(), other._flat()
        return (a @ b / (a.norm() * b.norm())).item() if a.norm() > 0 and b.norm() > 0 else float("nan")

    def apply_to(self, weights: Weights, scaling_coefficient: float = 1.0) -> dict[str, Tensor]:
        """weights + scaling_coefficient * self."""
        _check_same(weights, self.weights)
        return {k: v + scaling_coefficient * self.weights[k] for k, v in weights.items()}

    def _flat(self) -> Tensor:
        return torch.cat([v.double().flatten() for _, v in sorted(self.weights.items())])

    def _check(self, other: TaskVector) -> None:
        if self.base_fingerprint != other.base_fingerprint:
            raise TaskVectorError("the task vectors come from different base models: fine-tune both from one")
        _check_same(self.weights, other.weights)


def transfer(
    base: Weights,
    target_task: TaskVector,
    explainability: TaskVector,
    lambda1: float = 1.0,
    lambda2: float = 1.0,
) -> dict[str, Tensor]:
    """Equation 8: base + lambda1 tau_ft(target) + lambda2 tau_star(source).

    lambda2 = 0 with lambda1 = 1 gives the prediction-only target model. Raises TaskVectorError for vectors of different bases.
    """
    target_task._check(explainability)
    return explainability.apply_to(target_task.apply_to(base, lambda1), lambda2)


def _check_same(a: Weights, b: Weights) -> None:
    if a.keys() != b.keys():
        names = sorted(a.keys() ^ b.keys())
        raise TaskVectorError(f"the weights belong to different architectures: {len(names)} names differ, e.g. {names[0]}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise TaskVectorError(f"{name} has shape {list(a[name].shape)} in one model and {list(b[name].shape)} in the other")
