"""Points that every statistic takes alike: what is left out of them, and when they do not vary."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

# A spread below this share of the largest value is rounding, not variance: r would be the correlation of two noises.
SMALLEST_RELATIVE_SPREAD = 1e-12


def known_in_both(x: ArrayLike, y: ArrayLike) -> tuple[Vector, Vector, NDArray[np.bool_]]:
    """x and y as vectors, and where neither is NaN. Raises ValueError when the lengths differ."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must be vectors of one length, not of shapes {x.shape} and {y.shape}")
    return x, y, ~(np.isnan(x) | np.isnan(y))


def complete_points(x: ArrayLike, y: ArrayLike) -> tuple[Vector, Vector]:
    """The points that have both coordinates. Raises ValueError when the lengths differ."""
    x, y, is_known = known_in_both(x, y)
    return x[is_known], y[is_known]


def is_constant(values: Vector) -> bool:
    """Up to rounding. values: [n], n at least 1."""
    return bool(np.ptp(values) <= SMALLEST_RELATIVE_SPREAD * np.abs(values).max())
