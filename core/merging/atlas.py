"""aTLAS: as much of each tensor, or of each of its rows, as the target's own pictures ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.merging.coefficients import Grouping
from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError, Need
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Atlas(MergeRule):
    """Each tensor of tau_star times a coefficient of its own, learned for the target (aTLAS; Zhang et al., 2024).

    The authors learn coefficients of many vectors on few class labels. Here it is one vector, and what is asked of it is an explanation
    (`core.games.learned_coefficients` has the loss). They begin at 1, which is addition, not at the authors' 0: those that the pictures say
    little of then stay there. lambda2 = 1 is the model that was fitted, at lambda1 = 1; with others all coefficients go along. Nothing of
    it is searched: every value would be another fit.

    explanation_weight: of the explanation's part of the loss, in [0, 1]; the classes' part has the rest. num_steps, learning_rate: the
    fit's. num_pictures: that are learned on, where there are as many.
    """

    name: ClassVar[str] = "atlas"
    needs: ClassVar[tuple[Need, ...]] = ("coefficients",)
    grouping: ClassVar[Grouping] = "tensor"

    explanation_weight: float = 0.5
    num_steps: int = 60
    learning_rate: float = 0.03
    num_pictures: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.explanation_weight <= 1.0:
            raise MergeRuleError(f"explanation_weight of {self.name} must lie in [0, 1], not {self.explanation_weight}")
        for name in ("num_steps", "num_pictures"):
            if getattr(self, name) < 1:
                raise MergeRuleError(f"{name} of {self.name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise MergeRuleError(f"learning_rate of {self.name} must be a positive number, not {self.learning_rate}")

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        assert evidence.coefficients is not None
        weights = {name: evidence.coefficients[name] * star for name, star in explainability.weights.items()}
        return TaskVector(weights, explainability.base_fingerprint)


@dataclass(frozen=True)
class AtlasRows(Atlas):
    """Each row of tau_star's matrices times a coefficient of its own; other tensors as in `atlas`.

    A row is what leads to one neuron (of `proj`, which is stored the other way round, what leaves one; of the positional embedding, a
    place). The authors go below the tensor too, with random parts of it (aTLAS x K). These are many times as many coefficients (65 in
    the miniature), so that it learns on more pictures, and longer.
    """

    name: ClassVar[str] = "atlas_rows"
    grouping: ClassVar[Grouping] = "row"

    num_steps: int = 120
    num_pictures: int = 256
