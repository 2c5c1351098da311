"""Pearson's correlation and the least-squares line, as Figure 3 reports them."""

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike

from core.statistics.intervals import Interval
from core.statistics.points import complete_points, is_constant


@dataclass(frozen=True)
class Correlation:
    """Pearson's r, its two-sided p-value, and the points that it stands on."""

    r: float
    p_value: float
    num_points: int


@dataclass(frozen=True)
class Line:
    """y = slope * x + intercept."""

    slope: float
    intercept: float


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's r of x and y with its two-sided p-value.

    x, y: [n]; a point with NaN in either is left out. The p-value assumes that the points are independent.
    With fewer than three points, or where x or y is constant up to rounding, r and p are NaN: two points always
    lie on a line, and a constant correlates with nothing. Raises ValueError when the lengths differ.
    """
    from scipy.stats import pearsonr

    x, y = complete_points(x, y)
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return Correlation(r=math.nan, p_value=math.nan, num_points=len(x))
    r, p_value = pearsonr(x, y)
    return Correlation(r=float(r), p_value=float(p_value), num_points=len(x))


def correlation_interval(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Pearson's r with the interval of Fisher's z (1921), for independent points.

    x, y: [n]; a point with NaN in either is left out. Points that are pairs of domains are not independent and want
    `domain_correlation_interval`. With fewer than four points, or where `pearson` has no r, low and high are NaN.
    """
    from scipy.stats import pearsonr

    x, y = complete_points(x, y)
    found = pearson(x, y)
    if len(x) < 4 or math.isnan(found.r):
        return Interval(found.r, math.nan, math.nan, len(x), confidence)
    low, high = pearsonr(x, y).confidence_interval(confidence)
    return Interval(found.r, float(low), float(high), len(x), confidence)


def least_squares_line(x: ArrayLike, y: ArrayLike) -> Line:
    """The line that minimises the summed squared residuals in y.

    x, y: [n]; a point with NaN in either is left out. With fewer than three points, or where x is constant up to
    rounding, slope and intercept are NaN. A constant y is a line like any other: its slope is 0.
    Raises ValueError when the lengths differ.
    """
    x, y = complete_points(x, y)
    if len(x) < 3 or is_constant(x):
        return Line(slope=math.nan, intercept=math.nan)
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return Line(slope=slope, intercept=float(y.mean() - slope * x.mean()))
