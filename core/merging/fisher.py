"""Fisher merging: each weight by how much it matters to what the source explains and to what the target predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError, Need
from core.task_vectors import TaskVector, Weights

RELATIVE_FLOOR = 1e-6
"""Of the target's information, relative to its mean: where neither model has any, the target's weight stands."""


@dataclass(frozen=True)
class Fisher(MergeRule):
    """tau_star_j times F_S,j / (s F_S,j + (1 - s) F_T,j), s = `source_share` (Fisher merging; Matena and Raffel, 2022).

    F_T: diagonal Fisher information of the classes that the prediction-only target model predicts. F_S: the same of the attributions of
    the source's self-explaining model, which are what tau_star is to bring. Each is divided by its L2 norm, as in the authors' code. This
    is the Fisher-weighted mean, with weights 1 - s and s, of the target model and of the target model + (lambda2 / s) tau_star: with 1 / s,
    equal information is addition. No weight gets more than 1 / s of its tau_star.

    source_share: in (0, 1). All kinds of weights are treated alike.
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[tuple[Need, ...]] = ("class_fisher", "attribution_fisher")

    source_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.source_share < 1.0:
            raise MergeRuleError(f"source_share of {self.name} must lie between 0 and 1, not {self.source_share}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"source_share": (0.05, 0.95)}

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        assert evidence.class_fisher is not None and evidence.attribution_fisher is not None
        target, source = _of_unit_length(evidence.class_fisher), _of_unit_length(evidence.attribution_fisher)
        share, floor = self.source_share, RELATIVE_FLOOR * torch.cat([value.flatten() for value in target.values()]).mean()
        weights = {
            name: star * source[name] / (share * source[name] + (1.0 - share) * target[name].clamp(min=floor))
            for name, star in explainability.weights.items()
        }
        return TaskVector(weights, explainability.base_fingerprint)


def _of_unit_length(fisher: Weights) -> dict[str, Tensor]:
    """Over all weights. Raises MergeRuleError for information that is 0 everywhere."""
    norm = torch.stack([value.norm() for value in fisher.values()]).norm()
    if not norm > 0.0:
        raise MergeRuleError("a Fisher information is 0 for every weight: the model answers nothing on its pictures, train it longer")
    return {name: value / norm for name, value in fisher.items()}
