"""GradFix's mask: only what the target's loss does not object to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, Need
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class GradientSign(MergeRule):
    """The weights of tau_star along which the target's classification loss falls: those with the sign of minus its gradient, and 0 for the
    rest (GradFix; Rinaldi et al., 2026).

    The authors mask by the gradient at a model that knows nothing of the task; here it is taken at the prediction-only target model, whose
    loss is nearly flat: what is dropped is what raises it to first order. All kinds of weights are treated alike.
    """

    name: ClassVar[str] = "gradient_sign"
    needs: ClassVar[tuple[Need, ...]] = ("class_gradient",)

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        gradient = evidence.class_gradient
        assert gradient is not None
        weights = {name: torch.where(star * gradient[name] < 0.0, star, 0.0) for name, star in explainability.weights.items()}
        return TaskVector(weights, explainability.base_fingerprint)
