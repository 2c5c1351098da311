"""Estimates with their intervals: of a mean over few seeds or targets, and of any function of scores of many pictures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.statistics.points import SMALLEST_RELATIVE_SPREAD

RESAMPLED_AT_ONCE = 2**21
"""Values that a bootstrap draws at a time: 16 MB an array, however many pictures there are."""
MOST_CORRECTED = 2000
"""Pictures up to which an interval is corrected: the jackknife behind the correction looks at their number squared."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    low, high: NaN where nothing can be said, infinite on a side that is open. n: how many independent things (pictures, seeds, targets,
    domains) it stands on. confidence: of the whole interval, 0.95 for a 95 % interval.
    """

    estimate: float
    low: float
    high: float
    n: int
    confidence: float


@dataclass(frozen=True)
class Mean(Interval):
    """A mean and its t interval. sd: standard deviation of the n values (divisor n - 1)."""

    sd: float


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Mean:
    """The mean of values with Student's t interval: for a few seeds or targets, whose values are taken as normal.

    values: [n]; NaN are left out. Of one value only the mean is known, of none nothing.
    """
    from scipy import stats

    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return Mean(mean, math.nan, math.nan, n, confidence, sd=math.nan)
    sd = float(known.std(ddof=1))
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Mean(mean, mean - half_width, mean + half_width, n, confidence, sd=sd)


def mean_over_pictures(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The statistic that a bootstrap is of, if nothing else is said: [..., N] -> [...]."""
    return values.mean(axis=-1)


def bootstrap_interval(
    per_picture: ArrayLike,
    statistic: Callable[..., NDArray[np.floating]] = mean_over_pictures,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of the pictures' values with its bootstrap interval: N pictures are drawn from the N with replacement.

    BCa (Efron, 1987) up to MOST_CORRECTED pictures; beyond, the percentile interval, from which it then differs by a per cent or two of
    its width. Few pictures are few: of skewed values (gamma, shape 2) 95 % intervals held in 91 % at 25 pictures and 94 % at 120.

    per_picture: [N], or [K, N] for a statistic of K values a picture, which stay together: two models are compared on the same pictures.
    statistic: K arrays [..., N] -> [...], smooth in their means: a mean, the root of one, a quotient of two. A statistic that no resample
    changes has an interval without width: where all pictures agree the bootstrap cannot see what others would do. With fewer than two
    pictures low and high are NaN.
    """
    from scipy import stats

    values = np.atleast_2d(np.asarray(per_picture, dtype=np.float64))
    n = values.shape[1]
    estimate = float(statistic(*values)) if n else math.nan
    if n < 2:
        return Interval(estimate, math.nan, math.nan, n, confidence)
    options: dict[str, Any] = {
        "paired": True,
        "vectorized": True,
        "axis": -1,
        "confidence_level": confidence,
        "batch": max(1, RESAMPLED_AT_ONCE // n),
    }

    def of_last_axis(*arrays: NDArray[np.float64], axis: int) -> NDArray[np.floating]:
        return _to_40_bits(statistic(*arrays))

    rng = np.random.default_rng(seed)
    drawn = stats.bootstrap(tuple(values), of_last_axis, n_resamples=num_resamples, method="percentile", rng=rng, **options)
    if np.ptp(drawn.bootstrap_distribution) <= SMALLEST_RELATIVE_SPREAD * abs(estimate):
        return Interval(estimate, estimate, estimate, n, confidence)
    if n <= MOST_CORRECTED:
        drawn = stats.bootstrap(tuple(values), of_last_axis, n_resamples=0, bootstrap_result=drawn, method="BCa", **options)
    low, high = drawn.confidence_interval
    return Interval(estimate, float(low), float(high), n, confidence)


def _to_40_bits(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """The same numbers whatever the order of their sums: few pictures are drawn as they are, in another order, in many resamples, and BCa
    asks which resamples lie below the estimate.
    """
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0**40) / 2.0**40, exponent)
