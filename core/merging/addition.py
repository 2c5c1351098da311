"""The paper's own merge rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Addition(MergeRule):
    """Equation 8 (Yoshikawa et al., 2025): base + lambda1 tau_ft(target) + lambda2 tau_star(source)."""

    name: ClassVar[str] = "addition"

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        return explainability
