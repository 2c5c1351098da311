"""DARE: drop at random and rescale."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Dare(MergeRule):
    """A random part of tau_star: each weight is 0 with probability `drop_rate`, and divided by 1 - `drop_rate` otherwise (DARE; Yu et al.,
    2024). The expectation is addition.

    drop_rate: in [0, 1). seed: of the draw, which depends on it and on a tensor's name and shape alone: the same on every device. All
    kinds of weights are treated alike.
    """

    name: ClassVar[str] = "dare"

    drop_rate: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_rate < 1.0:
            raise MergeRuleError(f"drop_rate of {self.name} must lie in [0, 1), not {self.drop_rate}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"drop_rate": (0.0, 0.95)}

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        weights = {name: v * self._is_kept(name, v).to(v.device) / (1.0 - self.drop_rate) for name, v in explainability.weights.items()}
        return TaskVector(weights, explainability.base_fingerprint)

    def _is_kept(self, name: str, weight: Tensor) -> Tensor:
        """Drawn on the CPU: devices have generators of their own."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7])
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) >= self.drop_rate
