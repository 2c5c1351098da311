"""Whether a model is better than another over the target domains: the same targets, so pairs of scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from core.statistics.intervals import Mean, mean_interval
from core.statistics.points import SMALLEST_RELATIVE_SPREAD, complete_points

Side = Literal["two-sided", "less", "greater"]

SIGNIFICANCE = 0.05
"""Of Table 1's bold values."""


@dataclass(frozen=True)
class PairedTest:
    """How a and b differ over the same targets.

    difference: mean of a - b with its (two-sided) t interval. p_value: of the paired t-test. wilcoxon_p_value: of the signed-rank test,
    which assumes no normal distribution; over n targets it is never below 2**-n, twice that for two sides. side: the alternative.
    """

    difference: Mean
    p_value: float
    wilcoxon_p_value: float
    side: Side

    @property
    def n(self) -> int:
        return self.difference.n


def paired_test(a: ArrayLike, b: ArrayLike, side: Side = "two-sided", *, confidence: float = 0.95) -> PairedTest:
    """Whether a - b is not 0; side "less": whether a is below b, "greater": above.

    a, b: [n], a value a target; a target with NaN in either is left out. With fewer than two targets the p-values are NaN. Equal values
    everywhere speak for no difference: p is 1. Raises ValueError when the lengths differ.
    """
    from scipy import stats

    a, b = complete_points(a, b)
    differences = a - b
    if len(differences):
        rounding = SMALLEST_RELATIVE_SPREAD * max(np.abs(a).max(), np.abs(b).max())
        differences[np.abs(differences) <= rounding] = 0.0
    found = mean_interval(differences, confidence=confidence)
    if found.n < 2:
        return PairedTest(found, math.nan, math.nan, side)
    if not differences.any():
        return PairedTest(found, 1.0, 1.0, side)
    if np.ptp(differences) <= rounding:
        p_value = 0.0 if side == "two-sided" or (side == "less") == (found.estimate < 0) else 1.0
    else:
        p_value = float(stats.ttest_rel(a, b, alternative=side).pvalue)
    # Without its zeros SciPy takes the exact distribution up to 50 differences; with ties, up to 13.
    wilcoxon = stats.wilcoxon(differences[differences != 0], alternative=side)
    return PairedTest(found, p_value, float(wilcoxon.pvalue), side)


def not_worse_than_best(values_by_model: Mapping[str, ArrayLike], lower_is_better: bool) -> set[str]:
    """The models in bold in Table 1 (section 5.2): the best mean, and those that a t-test at 0.05 does not tell from it.

    values_by_model: for each model [n], a value for each of the same targets. A model without a value for some target has a mean over
    other targets and is left out. The paper does not say which t-test; this is the two-sided one of pairs, as every model is scored on
    the same targets. Not to be told apart is not to be equal: few targets tell little apart.
    """
    complete = {
        model: found for model, values in values_by_model.items() if not np.isnan(found := np.asarray(values, dtype=np.float64)).any()
    }
    if not complete:
        return set()
    best = (min if lower_is_better else max)(complete, key=lambda model: complete[model].mean())
    # A p-value that is NaN, of a single target, tells nothing: only the best is then bold.
    return {model for model, values in complete.items() if model == best or paired_test(values, complete[best]).p_value >= SIGNIFICANCE}
