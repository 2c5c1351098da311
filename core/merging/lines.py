"""LiNeS: the deeper a weight stands, the more of the vector it gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from core.merging.depths import depths
from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Lines(MergeRule):
    """tau_star of block l of L times first + (last - first) l / (L - 1), linear in depth (LiNeS; Wang et al., 2024).

    first, last: scales of the first and the last block. The paper's alpha is `first`, its beta `last` - `first`; its single-task form has
    last = 1 and searches `first` in [0, 1]; 1 and 1 is addition. Every kind of weight takes its block's scale; which block the weights
    outside of blocks belong to: `core.merging.depths` (the authors' code gives all of them the first one's, the projection too).
    """

    name: ClassVar[str] = "lines"

    first: float = 0.5
    last: float = 1.0

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0.0):
                raise MergeRuleError(f"{name} of {self.name} must be a scale of at least 0, not {value}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"first": (0.0, 1.0)}  # the scale of all is lambda2's

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        depth = depths(explainability.weights)
        steps = max(depth.values())
        scale = [self.first + (self.last - self.first) * (block / steps if steps else 1.0) for block in range(steps + 1)]
        return TaskVector({k: scale[depth[k]] * v for k, v in explainability.weights.items()}, explainability.base_fingerprint)
