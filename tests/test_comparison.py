"""Paired tests over targets, Table 1's bold values and the bound of a kept accuracy."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from core.statistics import not_worse_than_best, paired_proportion_bound, paired_test


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    """Of two models on eight targets; targets differ more than the models do."""
    rng = np.random.default_rng(0)
    target = rng.normal(0.5, 0.2, size=8)
    return target + rng.normal(0.03, 0.02, size=8), target


@pytest.mark.parametrize("side", ["two-sided", "less", "greater"])
def test_paired_tests_are_the_t_test_of_differences_and_all_ways_to_sign_ranks(scores, side):
    a, b = scores
    found = paired_test(a, b, side)
    d = a - b
    t = d.mean() / (d.std(ddof=1) / math.sqrt(8))
    upper = stats.t.sf(t, 7)
    by_t = {"greater": upper, "less": 1 - upper, "two-sided": 2 * min(upper, 1 - upper)}
    assert found.p_value == pytest.approx(by_t[side], rel=1e-9)
    ranks = stats.rankdata(np.abs(d))
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product([0, 1], repeat=8)])
    observed = ranks[d > 0].sum()
    above, below = (sums >= observed).mean(), (sums <= observed).mean()
    by_rank = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    assert found.wilcoxon_p_value == pytest.approx(by_rank[side], rel=1e-9)
    assert (found.n, found.difference.estimate) == (8, pytest.approx(d.mean()))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))


def test_a_target_without_both_scores_is_left_out(scores):
    a, b = scores
    assert paired_test([*a, math.nan, 1.0], [*b, 1.0, math.nan]) == paired_test(a, b)
    few = paired_test([1.0], [0.0])
    assert few.n == 1 and few.difference.estimate == 1.0 and math.isnan(few.p_value) and math.isnan(few.wilcoxon_p_value)
    assert paired_test([], []).n == 0


def test_equal_scores_speak_for_no_difference_also_up_to_rounding(scores):
    a, _ = scores
    for b in (a, a * (1 + 1e-15)):
        found = paired_test(a, b, "greater")
        assert (found.p_value, found.wilcoxon_p_value) == (1.0, 1.0)


def test_the_same_difference_everywhere_is_certain_on_its_side(scores):
    a, _ = scores
    assert [paired_test(a + 0.1, a, side).p_value for side in ("two-sided", "greater", "less")] == [0.0, 0.0, 1.0]
    assert paired_test(a + 0.1, a, "greater").wilcoxon_p_value == pytest.approx(2**-8)


def test_bold_are_the_best_and_those_that_pairs_do_not_tell_from_it(scores):
    better, worse = scores
    noisy = better + np.random.default_rng(1).normal(0, 0.1, size=8) - 0.02
    models = {"better": better, "worse": worse, "noisy": noisy, "lacks one": np.append(better[:7] + 1, math.nan), "none": [math.nan] * 8}
    assert noisy.mean() < better.mean() and stats.ttest_rel(noisy, better).pvalue > 0.05 > stats.ttest_rel(worse, better).pvalue
    # Unpaired, the spread of the targets would hide the difference.
    assert stats.ttest_ind(worse, better).pvalue > 0.05
    assert not_worse_than_best(models, lower_is_better=False) == {"better", "noisy"}
    negated = {model: -np.asarray(values) for model, values in models.items()}
    assert not_worse_than_best(negated, lower_is_better=True) == {"better", "noisy"}
    assert not_worse_than_best({"better": better, "same": better.copy()}, lower_is_better=True) == {"better", "same"}


def test_one_target_tells_only_which_is_best_and_none_nothing():
    assert not_worse_than_best({"a": [0.2], "b": [0.3]}, lower_is_better=False) == {"b"}
    assert not_worse_than_best({"a": [math.nan]}, lower_is_better=False) == set()


def answers(num_both: int, num_model: int, num_reference: int, num_neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Who is right on each picture."""
    numbers = (num_both, num_model, num_reference, num_neither)
    return np.repeat([True, True, False, False], numbers), np.repeat([True, False, True, False], numbers)


def test_the_kept_share_of_a_model_that_gains_nothing_has_clopper_and_pearsons_limit():
    for num_lost in (1, 5):
        found = paired_proportion_bound(*answers(80 - num_lost, 0, num_lost, 20))
        exact = stats.binomtest(80 - num_lost, 80, alternative="greater").proportion_ci(0.95).low
        assert found.low == pytest.approx(exact, rel=1e-9) and found.estimate == (80 - num_lost) / 80 and found.n == 100


def test_agreement_on_every_picture_still_leaves_doubt():
    assert paired_proportion_bound(*answers(59, 0, 0, 0)).low == pytest.approx(0.05 ** (1 / 59))
    assert paired_proportion_bound(*answers(59, 0, 0, 0)).low > 0.95 > paired_proportion_bound(*answers(58, 0, 0, 6)).low
    assert paired_proportion_bound(*answers(80, 0, 0, 20), confidence=0.5).low == pytest.approx(0.5 ** (1 / 80))


def test_nothing_right_bounds_nothing():
    assert paired_proportion_bound(*answers(0, 0, 9, 4)).low == 0.0
    no_reference = paired_proportion_bound(*answers(0, 9, 0, 4))
    assert no_reference.low == 0.0 and math.isnan(no_reference.estimate)
    with pytest.raises(ValueError, match="same pictures"):
        paired_proportion_bound([True], [True, False])


def test_the_bound_is_the_delta_methods_where_pictures_are_many():
    both, model, reference, neither = 8000, 600, 1000, 400
    right, of_reference = both + model, both + reference
    by_delta = right / of_reference * math.exp(-stats.norm.ppf(0.95) * math.sqrt((model + reference) / (right * of_reference)))
    found = paired_proportion_bound(*answers(both, model, reference, neither))
    # The exact limits stand half an answer or so further out: a few per cent of the 66 answers that are 1.645 standard errors.
    assert found.estimate - found.low == pytest.approx(found.estimate - by_delta, rel=0.05)


@functools.cache
def limit(*numbers: int) -> float:
    return paired_proportion_bound(*answers(*numbers)).low


# Reference's accuracy, the ratio, and the share of pictures that only the model has right.
POPULATIONS = [(p, r, g) for p in (0.6, 0.9) for r in (0.9, 0.95, 1.0) for g in (0.0, 0.03, 0.08) if p * (1 - r) + g > 0 and p + g < 1]


def shares(accuracy: float, ratio: float, gained: float) -> list[float]:
    lost = accuracy * (1 - ratio) + gained
    return [accuracy - lost, gained, lost, 1 - accuracy - gained]


def test_the_bound_of_25_pictures_holds_as_often_as_it_says():
    """Exactly: over all 3276 ways in which 25 pictures can fall into four cells."""
    cells = np.array([(a, b, c, 25 - a - b - c) for a in range(26) for b in range(26 - a) for c in range(26 - a - b)])
    limits = np.array([limit(*some) for some in cells])
    for population in POPULATIONS:
        probability = stats.multinomial(25, shares(*population)).pmf(cells)
        assert probability[limits <= population[1] + 1e-12].sum() >= 0.95, population


@pytest.mark.parametrize("num_pictures", [60, 200])
def test_the_bound_of_more_pictures_holds_as_often_as_it_says_and_little_oftener(num_pictures):
    rng = np.random.default_rng(num_pictures)
    holds = []
    for population in POPULATIONS:
        cells, counts = np.unique(rng.multinomial(num_pictures, shares(*population), size=2000), axis=0, return_counts=True)
        limits = np.array([limit(*some) for some in cells])
        holds.append(counts[limits <= population[1] + 1e-12].sum() / 2000)
    # Standard error of a share of 2000 at 0.95: 0.005; three of them.
    assert min(holds) > 0.935
    assert np.mean(holds) < 0.99
