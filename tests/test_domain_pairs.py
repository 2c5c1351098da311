"""Correlation over pairs of domains: brute force over relabellings, and how often tests and intervals err."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import pearsonr

from core.statistics import domain_correlation_interval, domain_permutation_test, pearson


def all_pairs(num_domains: int) -> tuple[list[str], list[str]]:
    names = [f"d{i}" for i in range(num_domains)]
    return tuple(map(list, zip(*itertools.permutations(names, 2), strict=True)))


def rectangle(num_sources: int, num_targets: int) -> tuple[list[str], list[str]]:
    both = itertools.product([f"s{i}" for i in range(num_sources)], [f"t{i}" for i in range(num_targets)])
    return tuple(map(list, zip(*both, strict=True)))


def of_domains(rng: np.random.Generator, sources: list[str], targets: list[str], weight: float = 1.0) -> np.ndarray:
    """Values that pairs share with their domains, and something of their own."""
    names = sorted({*sources, *targets})
    as_source, as_target = (dict(zip(names, rng.normal(size=len(names)), strict=True)) for _ in range(2))
    return np.array([as_source[s] + as_target[t] for s, t in zip(sources, targets, strict=True)]) * weight + rng.normal(size=len(sources))


def r_within(x, y, groups) -> float:
    """The partial correlation given the groups: of the residuals from a regression on one indicator a group."""
    indicators = (np.asarray(groups)[:, None] == np.unique(groups)).astype(float)
    residuals = [v - indicators @ np.linalg.lstsq(indicators, np.asarray(v), rcond=None)[0] for v in (x, y)]
    return float(pearsonr(*residuals).statistic)


def brute_force_p(x, y, sources, targets, relabellings, within_targets=False) -> float:
    """relabellings: dicts of names. A pair whose relabelled pair has no value is left out."""
    groups = np.asarray(targets) if within_targets else np.zeros(len(targets))
    table = {pair: value for pair, value in zip(zip(sources, targets, strict=True), x, strict=True)}
    observed = abs(r_within(x, y, groups))
    num_as_far = 0
    for names in relabellings:
        moved = np.array([table.get((names[s], names[t]), math.nan) for s, t in zip(sources, targets, strict=True)])
        known = ~np.isnan(moved)
        num_as_far += abs(r_within(moved[known], y[known], groups[known])) >= observed - 1e-10
    return num_as_far / len(relabellings)


def permuted(names: list[str]) -> list[dict[str, str]]:
    return [dict(zip(names, other, strict=True)) for other in itertools.permutations(names)]


def test_all_ordered_pairs_are_tested_by_all_relabellings_of_their_domains():
    sources, targets = all_pairs(5)
    rng = np.random.default_rng(0)
    x = of_domains(rng, sources, targets)
    y = 0.5 * x + of_domains(rng, sources, targets)
    found = domain_permutation_test(x, y, sources, targets)
    assert found.p_value == brute_force_p(x, y, sources, targets, permuted(sorted(set(sources))))
    assert (found.num_permutations, found.is_exact, found.num_pairs) == (120, True, 20)
    assert found.r == pearson(x, y).r


def test_within_targets_the_level_of_a_target_does_not_count():
    sources, targets = all_pairs(5)
    rng = np.random.default_rng(0)
    x = of_domains(rng, sources, targets)
    level = dict(zip(sorted(set(targets)), rng.normal(scale=100.0, size=5), strict=True))
    y = x + np.array([level[t] for t in targets])
    assert abs(domain_permutation_test(x, y, sources, targets).r) < 0.5
    found = domain_permutation_test(x, y, sources, targets, within_targets=True)
    assert found.r == pytest.approx(1.0) and found.p_value == 1 / 120
    y = y + of_domains(rng, sources, targets)
    found = domain_permutation_test(x, y, sources, targets, within_targets=True)
    assert found.r == pytest.approx(r_within(x, y, targets))
    assert found.p_value == brute_force_p(x, y, sources, targets, permuted(sorted(set(sources))), within_targets=True)
    interval = domain_correlation_interval(x, y, sources, targets, within_targets=True)
    assert interval.estimate == found.r and interval.low < found.r < interval.high
    raised = domain_correlation_interval(x, y + np.array([10 * level[t] for t in targets]), sources, targets, within_targets=True)
    assert (raised.low, raised.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_sources_and_targets_that_differ_are_relabelled_on_their_own():
    sources, targets = rectangle(3, 4)
    rng = np.random.default_rng(1)
    x, y = of_domains(rng, sources, targets), of_domains(rng, sources, targets)
    relabellings = [a | b for a in permuted(["s0", "s1", "s2"]) for b in permuted(["t0", "t1", "t2", "t3"])]
    found = domain_permutation_test(x, y, sources, targets)
    assert found.p_value == brute_force_p(x, y, sources, targets, relabellings)
    assert (found.num_permutations, found.is_exact) == (6 * 24, True)


def test_a_domain_changes_places_only_with_those_of_its_role():
    """Sources s0 to s3, of which s0 and s1 are targets too, as t0 and t1 are."""
    names = {"source": ["s2", "s3"], "target": ["t0", "t1"], "both": ["s0", "s1"]}
    pairs = [(s, t) for s in names["both"] + names["source"] for t in names["both"] + names["target"] if s != t]
    sources, targets = map(list, zip(*pairs, strict=True))
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=len(pairs)), rng.normal(size=len(pairs))
    relabellings = [a | b | c for a, b, c in itertools.product(*(permuted(role) for role in names.values()))]
    found = domain_permutation_test(x, y, sources, targets)
    assert found.p_value == brute_force_p(x, y, sources, targets, relabellings) and found.num_permutations == 8


def test_a_missing_pair_is_left_out_also_where_another_falls_on_it():
    sources, targets = all_pairs(5)
    rng = np.random.default_rng(3)
    x, y = of_domains(rng, sources, targets), of_domains(rng, sources, targets)
    gap = x.copy()
    gap[[4, 11]] = math.nan
    found = domain_permutation_test(gap, y, sources, targets)
    kept = [i for i in range(20) if i not in (4, 11)]
    without = [[values[i] for i in kept] for values in (sources, targets)]
    assert found.p_value == brute_force_p(x[kept], y[kept], *without, permuted(sorted(set(sources))))
    assert found == domain_permutation_test(x[kept], y[kept], *without) and found.num_pairs == 18


def test_random_relabellings_come_near_the_exact_p_and_never_reach_0(monkeypatch):
    sources, targets = all_pairs(6)
    rng = np.random.default_rng(4)
    x = of_domains(rng, sources, targets)
    y = -0.4 * x + of_domains(rng, sources, targets)
    exact = domain_permutation_test(x, y, sources, targets)
    monkeypatch.setattr("core.statistics.domain_pairs.MOST_EXACT_PERMUTATIONS", 719)
    drawn = domain_permutation_test(x, y, sources, targets)
    assert exact.is_exact and not drawn.is_exact and drawn.num_permutations == 10_000
    # Three standard errors of a share of 10 000.
    assert drawn.p_value == pytest.approx(exact.p_value, abs=3 * math.sqrt(exact.p_value * (1 - exact.p_value) / 10_000))
    assert drawn == domain_permutation_test(x, y, sources, targets, seed=0)
    assert domain_permutation_test(x, x, sources, targets, num_permutations=99).p_value == pytest.approx(0.01)


def test_the_test_errs_as_often_as_it_says_where_pearsons_errs_more_often():
    sources, targets = all_pairs(6)
    rng = np.random.default_rng(5)
    values = [(of_domains(rng, sources, targets, 2.0), of_domains(rng, sources, targets, 2.0)) for _ in range(250)]
    of_domain_labels = np.mean([domain_permutation_test(x, y, sources, targets).p_value <= 0.05 for x, y in values])
    of_pairs = np.mean([pearson(x, y).p_value <= 0.05 for x, y in values])
    # Standard error of a share of 250 at 0.05 is 0.014: three of them.
    assert of_domain_labels == pytest.approx(0.05, abs=0.042)
    assert of_pairs > 0.12


def test_eight_domains_are_gone_through_exactly():
    sources, targets = all_pairs(8)
    rng = np.random.default_rng(6)
    x = of_domains(rng, sources, targets)
    found = domain_permutation_test(x, x + 0.1 * rng.normal(size=56), sources, targets)
    assert found.is_exact and found.num_permutations == 40_320 and found.p_value == 1 / 40_320


def test_an_interval_over_domains_is_that_of_pairs_drawn_one_by_one():
    sources, targets = all_pairs(7)
    rng = np.random.default_rng(7)
    x = of_domains(rng, sources, targets)
    y = x + of_domains(rng, sources, targets)
    found = domain_correlation_interval(x, y, sources, targets)
    names = sorted(set(sources))
    table = {pair: values for pair, values in zip(zip(sources, targets, strict=True), zip(x, y, strict=True), strict=True)}
    resampled = []
    for _ in range(1000):
        drawn = rng.choice(names, size=7)
        points = [table[pair] for pair in itertools.product(drawn, drawn) if pair[0] != pair[1]]
        if len(set(points)) >= 3:
            resampled.append(pearsonr(*zip(*points, strict=True)).statistic)
    low, high = np.quantile(resampled, [0.025, 0.975])
    # Ends of 2000 and of 1000 draws: on Fisher's scale they are known to about 0.03.
    assert np.arctanh([found.low, found.high]) == pytest.approx(np.arctanh([low, high]), abs=0.12)
    assert (found.estimate, found.n) == (pearson(x, y).r, 7)


def test_an_interval_over_domains_holds_where_fishers_is_too_narrow():
    """y is x plus what is particular to the target; the population's r is that of 800 domains."""

    def draw(num_domains: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        places = rng.normal(0.5, 1.0, size=(num_domains, 6))
        places /= np.linalg.norm(places, axis=1, keepdims=True)
        source, target = np.nonzero(~np.eye(num_domains, dtype=bool))
        x = (places @ places.T)[source, target]
        return x, 0.2 * rng.normal(size=num_domains)[target] - 0.3 * x + 0.05 * rng.normal(size=len(x)), source, target

    rng = np.random.default_rng(8)
    true_r = pearsonr(*draw(800, rng)[:2]).statistic
    by_domains, by_fisher = [], []
    for _ in range(150):
        x, y, source, target = draw(8, rng)
        found = domain_correlation_interval(x, y, [str(s) for s in source], [str(t) for t in target], num_resamples=500)
        by_domains.append(found.low <= true_r <= found.high)
        low, high = pearsonr(x, y).confidence_interval()
        by_fisher.append(low <= true_r <= high)
    # Standard error of a share of 150 at 0.95: 0.018. Over 400 samples: 0.98 against 0.79.
    assert np.mean(by_domains) > 0.9 and np.mean(by_fisher) < 0.88


def test_a_constant_or_too_few_pairs_have_neither_p_nor_interval():
    sources, targets = all_pairs(3)
    found = domain_permutation_test(np.ones(6), np.arange(6.0), sources, targets)
    assert math.isnan(found.r) and math.isnan(found.p_value)
    interval = domain_correlation_interval([1.0, 2.0], [2.0, 1.0], ["a", "b"], ["b", "a"])
    assert math.isnan(interval.estimate) and math.isnan(interval.low) and interval.n == 2
