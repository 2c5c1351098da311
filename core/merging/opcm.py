"""OPCM's projection: what the target uses most is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule, MergeRuleError
from core.spectra import as_matrix, spectra
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class Opcm(MergeRule):
    """tau_star without its part in the target's leading singular directions (OPCM; Tang et al., 2025).

    For each matrix: U S V^T = svd(tau_ft of the target), U and V square; P = U^T tau_star V; P[:r, :r] = 0 and P[i, i] = 0 for all i;
    U P V^T is added. r: as many directions as fit into `share` of the sum of the singular values. Of the target's directions only those up
    to its numerical rank count: beyond it they are arbitrary.

    share: 0 removes the diagonal alone. Matrices are all weights of two or more dimensions, see `core.spectra`; the others (biases,
    normalisations, class embedding) are added as they are.
    """

    name: ClassVar[str] = "opcm"

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise MergeRuleError(f"share of {self.name} must lie in [0, 1], not {self.share}")

    def search_space(self) -> Mapping[str, tuple[float, float]]:
        return {"share": (0.0, 1.0)}

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        weights = dict(explainability.weights)
        for name, target in spectra(target_task).items():
            star = as_matrix(weights[name])
            filled = target.s.cumsum(0)
            num_leading = int((filled <= self.share * filled[-1:]).sum())
            removed = target.u.T @ star @ target.vh.T  # P; what stays of it is not taken out
            diagonal = removed.diagonal().clone()
            removed[num_leading:] = 0.0
            removed[:, num_leading:] = 0.0
            removed.diagonal().copy_(diagonal)
            weights[name] = (star - target.u @ removed @ target.vh).view_as(weights[name])
        return TaskVector(weights, explainability.base_fingerprint)
