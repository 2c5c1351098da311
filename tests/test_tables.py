"""The report's numbers, recomputed by hand from the frames."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.references import EXPECTED
from sweep.report.result import SweepResult
from sweep.report.tables import (
    alpha_bands,
    best_pairs,
    chosen_pairs,
    coefficient_curves,
    domain_table,
    headline,
    matrix,
    missing_pairs,
    num_better,
    pair_references,
    reference_scores,
)


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(num_examples=0)


def _row(frame: pd.DataFrame, **values: object) -> pd.Series:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_every_pair_carries_the_similarity_at_its_own_alpha(result):
    pairs = chosen_pairs(result)
    assert len(pairs) == 56
    assert pairs["alpha"].nunique() > 1
    for _, pair in pairs.iterrows():
        key = {name: pair[name] for name in ("source_domain", "target_domain", "alpha")}
        expected = _row(result.similarities, **key)["similarity_explainability"]
        assert pair["similarity_explainability"] == expected


def test_missing_normalised_references_follow_from_the_prediction_only_row(result):
    references = reference_scores(result)
    zero = _row(references, domain="cars", reference="zero_predictor")
    prediction_only = _row(references, domain="cars", reference="prediction_only")
    assert zero["normalized_e_rmse"] == pytest.approx(zero["e_rmse"] / prediction_only["e_rmse"])
    assert prediction_only["normalized_e_rmse"] == prediction_only["normalized_accuracy"] == 1.0
    assert math.isnan(zero["normalized_accuracy"])


def test_a_pair_is_compared_with_the_model_supervised_at_its_own_alpha(result):
    pairs, references = chosen_pairs(result), pair_references(result)
    assert len(references) == len(pairs) * len(EXPECTED)
    for _, pair in pairs.iterrows():
        key = {"source_domain": pair["source_domain"], "target_domain": pair["target_domain"]}
        used = _row(references, **key, reference="supervised")
        same_alpha = _row(result.references, domain=pair["target_domain"], reference="supervised", alpha=pair["alpha"])
        assert used["correlation"] == same_alpha["correlation"]


def test_no_other_alpha_stands_in_for_a_supervised_model_that_is_missing(result):
    references = result.references[~np.isclose(result.references["alpha"], 0.3)]
    without = pair_references(replace(result, references=references))
    alphas = chosen_pairs(result)["alpha"].repeat(len(EXPECTED)).to_numpy()
    supervised = without["reference"] == "supervised"
    assert without.loc[supervised & np.isclose(alphas, 0.3), "correlation"].isna().all()
    assert without.loc[supervised & ~np.isclose(alphas, 0.3), "correlation"].notna().all()


def test_headline_means_are_over_the_chosen_test_rows_and_their_targets(result):
    chosen = result.cells[(result.cells["split"] == "test") & result.cells["is_chosen"]]
    zero = result.references[result.references["reference"] == "zero_predictor"].set_index("domain")["e_rmse"]
    means = headline(result)
    assert list(means.index) == ["transferred", *EXPECTED]
    assert means.loc["transferred", "iou_at_10"] == pytest.approx(chosen["iou_at_10"].mean())
    assert means.loc["zero_predictor", "e_rmse"] == pytest.approx(np.mean([zero[t] for t in chosen["target_domain"]]))


def test_pairs_that_beat_a_reference_are_counted_in_the_direction_of_the_score(result):
    chosen = result.cells[(result.cells["split"] == "test") & result.cells["is_chosen"]]
    own = result.references[result.references["reference"] == "prediction_only"].set_index("domain")
    lower = sum(row.e_rmse < own.loc[row.target_domain, "e_rmse"] for row in chosen.itertuples())
    higher = sum(row.iou_at_10 > own.loc[row.target_domain, "iou_at_10"] for row in chosen.itertuples())
    assert num_better(result, "prediction_only", "e_rmse").num_better == lower
    assert num_better(result, "prediction_only", "iou_at_10").num_better == higher
    assert str(num_better(result, "zero_predictor", "e_rmse")) == "0 of 56"


def test_undefined_scores_are_not_counted_as_defeats(result):
    cells = result.cells.copy()
    cells.loc[cells["target_domain"] == "cars", "e_rmse"] = math.nan
    assert num_better(replace(result, cells=cells), "zero_predictor", "e_rmse").num_compared == 49


def test_a_pair_that_lost_its_accuracy_is_not_among_the_best(result):
    cells = result.cells.copy()
    is_pair = (cells["source_domain"] == "cars") & (cells["target_domain"] == "scenes")
    cells.loc[is_pair, ["iou_at_10", "normalized_accuracy"]] = [1.0, 0.2]
    best = best_pairs(replace(result, cells=cells), num_pairs=5)
    assert (best["normalized_accuracy"] >= 0.9).all()
    assert best["iou_at_10"].is_monotonic_decreasing


def test_matrix_has_sources_as_rows_and_targets_as_columns(result):
    square = matrix(result, chosen_pairs(result), "iou_at_10")
    pair = _row(chosen_pairs(result), source_domain="cars", target_domain="scenes")
    assert square.loc["cars", "scenes"] == pair["iou_at_10"]
    assert square.loc["scenes", "cars"] != pair["iou_at_10"]
    assert np.isnan(np.diag(square)).all()


def test_a_curve_is_the_mean_over_sources_at_each_pairs_chosen_alpha(result):
    curves = coefficient_curves(result, "iou_at_10", result.sources)
    pairs = chosen_pairs(result).set_index(["source_domain", "target_domain"])["alpha"]
    cells = result.cells[(result.cells["split"] == "validation") & (result.cells["target_domain"] == "cars")]
    cells = cells[cells["lambda2"] == 0.8]
    at = [row.iou_at_10 for row in cells.itertuples() if row.alpha == pairs[row.source_domain, "cars"]]
    assert len(at) == 7
    assert curves.loc[0.8, "cars"] == pytest.approx(np.mean(at))
    of_one = cells[(cells["source_domain"] == "scenes") & (cells["alpha"] == pairs["scenes", "cars"])]["iou_at_10"].item()
    assert coefficient_curves(result, "iou_at_10", ["scenes"]).loc[0.8, "cars"] == pytest.approx(of_one)


def test_a_band_is_the_t_interval_of_the_curves_of_all_alphas():
    result = synthetic_result(sources=["others"], num_examples=0)
    band = alpha_bands(result, "iou_at_10", result.sources)["scenes"]
    cells = result.cells[(result.cells["split"] == "validation") & (result.cells["target_domain"] == "scenes")]
    at = cells[np.isclose(cells["lambda2"], 0.8)].set_index("alpha")["iou_at_10"]
    low, high = stats.t.interval(0.95, len(at) - 1, at.mean(), at.std(ddof=1) / np.sqrt(len(at)))
    assert len(at) == 3 and (band.loc[0.8, "low"], band.loc[0.8, "high"]) == pytest.approx((low, high))


def test_two_alphas_make_no_band():
    bands = alpha_bands(synthetic_result(alphas=[0.2, 0.5], num_examples=0), "iou_at_10", DOMAINS)
    assert set(bands) == set(DOMAINS) and all(band.empty for band in bands.values())


def test_pairs_searched_at_different_lambda2_are_joined_by_straight_lines():
    result = synthetic_result(["a", "b", "c"], alphas=[0.5], lambdas=[0.0, 0.5, 1.0], num_examples=0)
    cells = result.cells.copy()
    cells["iou_at_10"] = cells["lambda2"] * 0.4  # straight in lambda2 for every pair
    of_one_pair = (cells["source_domain"] == "b") & (cells["target_domain"] == "a") & (cells["split"] == "validation")
    cells = cells[~(of_one_pair & (cells["lambda2"] == 0.5))]
    curves = coefficient_curves(replace(result, cells=cells), "iou_at_10", result.sources)
    assert curves["a"].to_dict() == pytest.approx({0.0: 0.0, 0.5: 0.2, 1.0: 0.4})


def test_a_curve_ends_where_the_first_of_its_sources_ends():
    result = synthetic_result(["a", "b", "c", "d"], alphas=[0.5], lambdas=[0.0, 0.5, 1.0], num_examples=0)
    cells = result.cells
    is_cut = (cells["target_domain"] == "a") & (cells["source_domain"] == "b") & (cells["lambda2"] == 1.0)
    cut = replace(result, cells=cells[~is_cut | (cells["split"] == "test")])
    curves = coefficient_curves(cut, "iou_at_10", result.sources)
    assert math.isnan(curves.loc[1.0, "a"]) and not math.isnan(curves.loc[1.0, "b"])
    assert not math.isnan(coefficient_curves(cut, "iou_at_10", ["c"]).loc[1.0, "a"])


def test_a_curve_begins_at_lambda2_0_that_was_evaluated_at_another_alpha():
    """There the vector has no weight, so the model is the same at each alpha."""
    result = synthetic_result(["a", "b"], num_examples=0)
    chosen = chosen_pairs(result).set_index(["source_domain", "target_domain"]).loc[("a", "b"), "alpha"]
    cells = result.cells[(result.cells["lambda2"] > 0) | (result.cells["split"] == "test") | (result.cells["alpha"] != chosen)]
    zero = cells[(cells["source_domain"] == "a") & (cells["lambda2"] == 0) & (cells["split"] == "validation")]["iou_at_10"]
    curves = coefficient_curves(replace(result, cells=cells), "iou_at_10", ["a"])
    assert len(zero) == 2 and curves.loc[0.0, "b"] == pytest.approx(zero.mean())


def test_domain_table_puts_transferred_rows_beside_every_reference(result):
    table = domain_table(result)
    cars = table[table["domain"] == "cars"]
    assert list(cars["model"].unique()) == ["transferred_mean", "transferred_best", *EXPECTED]
    to_cars = chosen_pairs(result).query("target_domain == 'cars'")
    assert _row(cars, model="transferred_best")["iou_at_10"] == to_cars["iou_at_10"].max()
    assert _row(cars, model="transferred_mean")["e_rmse"] == pytest.approx(to_cars["e_rmse"].mean())


def test_unfinished_pairs_are_named(result):
    cells = result.cells
    is_pair = (cells["source_domain"] == "cars") & (cells["target_domain"] == "scenes") & (cells["split"] == "test")
    assert missing_pairs(result) == []
    assert missing_pairs(replace(result, cells=cells[~is_pair])) == [("cars", "scenes")]


def test_pairs_that_were_not_planned_are_not_missed():
    result = synthetic_result(["a", "b", "c"], alphas=[0.5], lambdas=[0.5], sources=["a", "others"], num_examples=0)
    assert len(result.pairs) == 5 and missing_pairs(result) == []
    names = ("cells", "similarities", "intervals", "paper_points")
    of_others = {name: (frame := getattr(result, name))[frame["source_domain"] == "others"] for name in names}
    result = replace(result, **of_others)
    assert missing_pairs(result) == [("a", "b"), ("a", "c")]
    planned = replace(result, pairs=[("others", "a"), ("others", "b"), ("others", "c")], artifacts={})
    assert missing_pairs(planned) == []
    assert list(domain_table(planned)["domain"].unique()) == ["a", "b", "c"]
