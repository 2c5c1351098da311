"""The report's claims: means over targets with their intervals, and tests against the reference rows, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.evidence import against, groups, over_targets, ranked, told
from sweep.report.findings import findings


def chosen(result, *sources):
    cells = result.cells
    return cells[(cells["split"] == "test") & cells["is_chosen"] & cells["source_domain"].isin(sources)]


def test_few_sources_are_told_one_by_one_and_many_domains_together():
    assert [g.sources for g in groups(synthetic_result(sources=["concepts", "others"]))] == [("concepts",), ("others",)]
    found = groups(synthetic_result(sources=[*DOMAINS, "concepts"]))
    assert [g.sources for g in found] == [DOMAINS, ("concepts",)] and found[0].name == "single domains"


def test_a_mean_is_over_targets_with_their_t_interval():
    result = synthetic_result()
    (group,) = groups(result)
    by_target = chosen(result, *DOMAINS).groupby("target_domain")["correlation"].mean()
    mean = over_targets(result, group, "correlation")
    low, high = stats.t.interval(0.95, 7, by_target.mean(), by_target.std(ddof=1) / np.sqrt(8))
    assert (mean.estimate, mean.low, mean.high, mean.n) == pytest.approx((by_target.mean(), low, high, 8))


def test_a_reference_is_compared_pair_by_pair_and_tested_target_by_target():
    result = synthetic_result(sources=["concepts", "others"])
    group = groups(result)[1]
    own = chosen(result, "others").set_index("target_domain")["iou_at_10"]
    rows = result.references[result.references["reference"] == "mean_map"].set_index("domain")["iou_at_10"].reindex(own.index)
    found = against(result, group, "mean_map", "iou_at_10")
    assert (found.num_better, found.num_pairs) == (int((own > rows).sum()), 8)
    assert found.mean == pytest.approx(rows.mean())
    assert found.test.p_value == pytest.approx(stats.ttest_rel(own, rows).pvalue)
    assert found.test.difference.estimate == pytest.approx((own - rows).mean())


def test_a_smaller_error_is_the_better_one():
    result = synthetic_result()
    (group,) = groups(result)
    pairs = chosen(result, *DOMAINS)
    zero = result.references[result.references["reference"] == "zero_predictor"].set_index("domain")["e_rmse"]
    expected = int((pairs["e_rmse"].to_numpy() < zero.reindex(pairs["target_domain"]).to_numpy()).sum())
    assert against(result, group, "zero_predictor", "e_rmse").num_better == expected


def test_every_group_is_told_with_its_numbers_of_pairs_and_targets_and_its_intervals():
    result = synthetic_result(sources=[*DOMAINS, "concepts"])
    single, concepts = groups(result)
    assert told(result, single).startswith("From single domains (56 pairs, 8 targets; 95 % intervals")
    assert told(result, concepts).startswith("From concepts (8 targets; 95 % intervals")
    mean = over_targets(result, concepts, "correlation")
    assert f"{mean.estimate:.3f} [{mean.low:.3f}, {mean.high:.3f}]" in told(result, concepts)
    assert [group for group, _ in ranked(result)] == [concepts, single]  # neither holds in whole, and concepts overlaps more
    assert findings(result)[:2] == [told(result, concepts), told(result, single)]
