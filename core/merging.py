"""Merge rules: how an explainability vector is put into a target model. Equation 8 of the paper is the rule `addition`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.task_vectors import TaskVector, Weights, check_same_weights


class Merger(ABC):
    """A merge rule applied to one target and one explainability vector, ready to give the weights of any point."""

    @abstractmethod
    def weights(self, lambda1: float, lambda2: float) -> dict[str, Tensor]:
        """The merged image tower, new tensors on the device. Cheap: a point of the search is one call."""


class MergeRule(ABC):
    """A way to merge. Subclasses are frozen dataclasses; the name and the fields are in the key of whatever is merged with it."""

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, base: Weights, target_task: TaskVector, explainability: TaskVector, device: torch.device | str = "cpu") -> Merger:
        """Do once what all points share.

        base: the base's image tower. target_task: tau_ft of the target domain. explainability: tau_star of the source domain. What lies on
        the device already is not copied. Raises TaskVectorError where they are not of one base.
        """


@dataclass(frozen=True)
class Addition(MergeRule):
    """Equation 8 (Yoshikawa et al., 2025): base + lambda1 tau_ft(target) + lambda2 tau_star(source).

    lambda1 = 1 with lambda2 = 0 is the prediction-only target model.
    """

    name: ClassVar[str] = "addition"

    def prepare(self, base: Weights, target_task: TaskVector, explainability: TaskVector, device: torch.device | str = "cpu") -> Merger:
        target_task.check_same_base(explainability)
        check_same_weights(base, target_task.weights)
        return _Sum(base, target_task.weights, explainability.weights, torch.device(device))


class _Sum(Merger):
    def __init__(self, base: Weights, target_task: Weights, explainability: Weights, device: torch.device) -> None:
        self._names = list(base)
        self._base = [base[name].to(device) for name in self._names]
        self._target_task = [target_task[name].to(device) for name in self._names]
        self._explainability = [explainability[name].to(device) for name in self._names]
        self._target: tuple[float, list[Tensor]] | None = None  # base + lambda1 tau_ft of the last lambda1

    def weights(self, lambda1: float, lambda2: float) -> dict[str, Tensor]:
        if self._target is None or self._target[0] != lambda1:
            self._target = (lambda1, _plus(self._base, lambda1, self._target_task))
        return dict(zip(self._names, _plus(self._target[1], lambda2, self._explainability), strict=True))


def _plus(weights: list[Tensor], scaling_coefficient: float, vector: list[Tensor]) -> list[Tensor]:
    """weights + scaling_coefficient vector: rounded after the product as well, so that it is equation 8 written out, to the last digit."""
    merged = list(torch._foreach_mul(vector, scaling_coefficient))
    torch._foreach_add_(merged, weights)
    return merged


MERGE_RULES: dict[str, MergeRule] = {rule.name: rule for rule in (Addition(),)}
"""Every rule that can be asked for, with its default parameters."""
