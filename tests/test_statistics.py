"""Correlation and line against oracles that share no code with them."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student_t

from core.statistics import correlation_interval, least_squares_line, pearson


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=56)
    return x, -0.4 * x + rng.normal(size=56)


def test_r_and_p_agree_with_the_textbook_formulae(points):
    x, y = points
    n = len(x)
    r = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std())
    p_value = 2 * student_t.sf(abs(r) * math.sqrt((n - 2) / (1 - r**2)), n - 2)

    found = pearson(x, y)

    # SciPy's p comes from the exact beta distribution of r, the same distribution written otherwise: rounding only.
    assert found.r == pytest.approx(r, rel=1e-12)
    assert found.p_value == pytest.approx(p_value, rel=1e-8)
    assert found.num_points == n


def test_the_interval_of_r_is_fishers(points):
    found = correlation_interval(*points, confidence=0.9)
    z, half_width = math.atanh(pearson(*points).r), norm.ppf(0.95) / math.sqrt(56 - 3)
    assert (found.low, found.high) == pytest.approx((math.tanh(z - half_width), math.tanh(z + half_width)), rel=1e-9)
    assert (found.estimate, found.n) == (pearson(*points).r, 56)
    for too_few in ([1.0, 2.0, 4.0], [3.0] * 5):
        assert math.isnan(correlation_interval(too_few, range(len(too_few))).low)


def test_line_agrees_with_polyfit(points):
    line = least_squares_line(*points)
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(*points, 1)), rel=1e-9)


def test_p_value_is_uniform_when_nothing_is_correlated():
    rng = np.random.default_rng(0)
    p_values = [pearson(rng.normal(size=12), rng.normal(size=12)).p_value for _ in range(2000)]
    # Standard error of a share of 2000 at 0.1 is 0.0067: three of them.
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.02)


def test_points_with_a_gap_are_left_out(points):
    x, y = points
    x_with_gaps, y_with_gaps = np.append(x, [math.nan, 5.0]), np.append(y, [9.0, math.nan])
    assert pearson(x_with_gaps, y_with_gaps) == pearson(x, y)
    assert least_squares_line(x_with_gaps, y_with_gaps) == least_squares_line(x, y)


@pytest.mark.parametrize("x", [[], [1.0], [1.0, 2.0], [1.0, math.nan, 2.0]])
def test_fewer_than_three_points_have_no_correlation_and_no_line(x):
    found, line = pearson(x, x), least_squares_line(x, x)
    assert math.isnan(found.r) and math.isnan(found.p_value) and math.isnan(line.slope) and math.isnan(line.intercept)
    assert found.num_points == np.isfinite(x).sum()


def test_a_constant_up_to_rounding_correlates_with_nothing():
    constant = np.full(5, 0.1) + np.array([0, 1, 0, 1, 0]) * 1e-17
    rising = np.arange(5.0)
    assert math.isnan(pearson(constant, rising).r) and math.isnan(pearson(rising, constant).r)
    assert math.isnan(least_squares_line(constant, rising).slope)


def test_a_constant_y_is_a_flat_line():
    line = least_squares_line(np.arange(5.0), np.full(5, 0.3))
    assert (line.slope, line.intercept) == pytest.approx((0.0, 0.3))


def test_a_small_spread_on_a_large_value_still_counts():
    x = 1000 + 1e-6 * np.arange(5.0)
    assert pearson(x, x).r == pytest.approx(1.0)


def test_vectors_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        pearson([1.0, 2.0, 3.0], [1.0, 2.0])
