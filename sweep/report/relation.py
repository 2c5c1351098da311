"""What a sweep says of how well a vector serves a target by how alike source and target are: Figure 3 (c) as a rule, with its doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.statistics import Interval, Line, domain_correlation_interval, domain_permutation_test, least_squares_line
from sweep.report.result import SweepResult
from sweep.report.tables import chosen_pairs

PAPER_R = -0.36
"""Of the similarity of prediction-only vectors and E-RMSE, over the paper's 56 pairs."""


@dataclass(frozen=True)
class Relation:
    """A score of transferred models over the similarity of source's and target's prediction-only vectors, of a sweep's chosen points.

    r: Pearson's with an interval over domains; p_value: by permutation of domains. r_within, p_within: the same within targets, which is
    what counts where sources are ranked for one. spread: standard deviation of pairs about the line.
    """

    score: str
    sweep: str
    line: Line
    r: Interval
    p_value: float
    r_within: Interval
    p_within: float
    spread: float
    num_pairs: int

    @property
    def is_told_from_none(self) -> bool:
        """Whether the interval of r within targets leaves 0 out; of r where no target has several sources."""
        r = self.r if math.isnan(self.r_within.estimate) else self.r_within
        return not r.low <= 0.0 <= r.high and not math.isnan(r.low)

    def expected(self, similarity: float) -> float:
        """The score of the line; NaN where there is none."""
        return self.line.slope * similarity + self.line.intercept


def similarity_relation(result: SweepResult, score: str) -> Relation:
    """Fitted to a sweep's finished pairs that have a similarity: unions that hold the target have none that would say anything."""
    pairs = chosen_pairs(result)
    pairs = pairs[pairs["similarity_prediction_only"].notna() & pairs[score].notna()]
    x, y = pairs["similarity_prediction_only"].to_numpy(), pairs[score].to_numpy()
    sources, targets = list(pairs["source_domain"]), list(pairs["target_domain"])
    line = least_squares_line(x, y)
    residuals = y - (line.slope * x + line.intercept)
    spread = float(np.sqrt((residuals**2).sum() / (len(x) - 2))) if len(x) > 2 else math.nan
    test, within = (domain_permutation_test(x, y, sources, targets, within_targets=w) if len(x) else None for w in (False, True))
    return Relation(
        score,
        result.sweep_key,
        line,
        domain_correlation_interval(x, y, sources, targets),
        math.nan if test is None else test.p_value,
        domain_correlation_interval(x, y, sources, targets, within_targets=True),
        math.nan if within is None else within.p_value,
        spread,
        len(pairs),
    )
