"""The range of colours of a matrix of pairs, for the figures and for the page alike."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.metrics import SCORE_NAMED
from sweep.report.result import SweepResult
from sweep.report.tables import headline


@dataclass(frozen=True)
class ColourScale:
    """From `low` to `high`. middle: the value without a colour, where there is one on either side of which colours differ."""

    low: float
    middle: float | None
    high: float
    lower_is_better: bool


def colour_scale(result: SweepResult, column: str, values: NDArray[np.float64]) -> ColourScale:
    """Of one column of the chosen pairs, values [S, T], NaN where there is none.

    A normalised score differs from 1, a signed one from 0; an overlap begins at chance. The least reach keeps a loss of a few per cent
    from looking like a disaster.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if column == "lambda2":
        return ColourScale(min(low, 0.0), None, max(high, 0.1), False)
    score = SCORE_NAMED.get(column)
    lower_is_better = score is not None and score.lower_is_better
    if score and score.numerator is not None:
        return _around(1.0, low, high, 0.25, lower_is_better)
    if score and score.bounds[0] >= 0:
        chance = headline(result).loc["chance", column]
        start = chance if math.isfinite(chance) else 0.0
        return ColourScale(start, None, max(high, start + 0.05), lower_is_better)
    return _around(0.0, low, high, 0.2, lower_is_better)


def _around(middle: float, low: float, high: float, least_reach: float, lower_is_better: bool) -> ColourScale:
    reach = max(abs(low - middle), abs(high - middle), least_reach)
    return ColourScale(middle - reach, middle, middle + reach, lower_is_better)
