"""TIES: trim, elect a sign, and add what agrees with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError
from core.task_vectors import TaskVector, Weights


@dataclass(frozen=True)
class Ties(MergeRule):
    """The large weights of tau_star that the target does not outvote (TIES; Yadav et al., 2023).

    Trim: of tau_ft (target) and of tau_star, each, the `share` of all weights with the largest magnitude is kept, the rest is 0. Elect: the
    sign of a weight is that of the sum of both trimmed vectors, before lambda1 and lambda2, as the paper scales after merging. Disjoint
    merge: the trimmed tau_star is added where it has the elected sign, and nothing elsewhere. tau_ft itself stays whole, so that
    lambda2 = 0 is the target model; the sum and not the mean is taken of the two, for the same reason.

    share: 1 trims nothing. All kinds of weights are treated alike, and ranked together, as in the paper.
    """

    name: ClassVar[str] = "ties"

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise MergeRuleError(f"share of {self.name} must lie in (0, 1], not {self.share}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"share": (0.05, 1.0)}

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        target, star = trimmed(target_task.weights, self.share), trimmed(explainability.weights, self.share)
        weights = {name: torch.where((target[name] + v) * v > 0.0, v, 0.0) for name, v in star.items()}
        return TaskVector(weights, explainability.base_fingerprint)


def trimmed(weights: Weights, share: float) -> dict[str, Tensor]:
    """The share of all weights with the largest magnitude (one at least, and all that equal the smallest of them), and 0 for the rest."""
    sizes = torch.cat([value.abs().flatten() for value in weights.values()])
    num_dropped = len(sizes) - max(1, round(share * len(sizes)))
    smallest = sizes.kthvalue(num_dropped + 1).values
    return {name: torch.where(value.abs() >= smallest, value, 0.0) for name, value in weights.items()}
