"""Where a score that grows with the budget first reaches a level: Figure 6's number of perturbations."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.statistics.intervals import Interval


def crossing(x: ArrayLike, y: ArrayLike, level: float) -> float | None:
    """The smallest x at which the curve through the points is at or above the level; None where it never is.

    x: [X], positive and rising; y: [X]. Between two points the curve is straight in log x. A curve that starts at or above the level is
    given x[0], though it may have reached the level before. Of a score that falls, pass -y and -level.
    """
    (found,) = _crossings(np.asarray(x, dtype=np.float64), np.asarray([y], dtype=np.float64), np.array([level], dtype=np.float64))
    return float(found) if math.isfinite(found) else None


def crossing_interval(
    x: ArrayLike,
    values: ArrayLike,
    level: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """`crossing` of the pictures' mean curve with the percentile interval of a bootstrap over pictures; None where it never crosses.

    x: [X]. values: [P, X], each picture's score at each x. level: one number, or [P], each picture's score of the model that sets the
    level: its error then counts, and pictures that are hard for both count less. targets: [P], each picture's target domain: curve and
    level are then means over the domains of the means over their pictures, and pictures are drawn within each domain, so that the interval
    is about these domains. high is infinite where too many resamples never reach the level, low is x[0] where too many start above it.
    """
    x, values = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    level = np.broadcast_to(np.asarray(level, dtype=np.float64), len(values))
    domains = np.zeros(len(values)) if targets is None else np.asarray(targets)
    members = [np.flatnonzero(domains == domain) for domain in np.unique(domains)]
    share = np.zeros(len(values))
    for some in members:
        share[some] = 1 / (len(some) * len(members))
    estimate = crossing(x, share @ values, float(share @ level))
    if estimate is None:
        return None
    rng = np.random.default_rng(seed)
    curves, levels = np.zeros((num_resamples, len(x))), np.zeros(num_resamples)
    for some in members:
        drawn = rng.multinomial(len(some), np.full(len(some), 1 / len(some)), size=num_resamples) * share[some]
        curves += drawn @ values[some]
        levels += drawn @ level[some]
    found = _crossings(x, curves, levels)
    # An observed crossing, not one between two: between a number and infinity lies nothing.
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return Interval(estimate, float(low), float(high), len(values), confidence)


def _crossings(x: NDArray[np.float64], curves: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """x: [X], curves: [B, X], levels: [B] -> [B], infinite where the level is never reached."""
    assert (x > 0).all() and (np.diff(x) > 0).all(), "x must be positive and rise"
    excess = curves - levels[:, None]
    is_reached = excess >= 0
    first = is_reached.argmax(axis=1)
    rows, before = np.arange(len(curves)), np.maximum(first - 1, 0)
    below, above = excess[rows, before], excess[rows, first]
    # From the point before, which is below the level, to the first one that is not.
    part = np.where(first > 0, -below / np.where(first > 0, above - below, 1.0), 0.0)
    log_x = np.log(x)
    found = np.exp(log_x[before] + part * (log_x[first] - log_x[before]))
    return np.where(is_reached.any(axis=1), np.where(first > 0, found, x[0]), np.inf)
