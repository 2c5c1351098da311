"""Table 1 of the paper, made of a sweep's result."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_result import DOMAINS, synthetic_result

from sweep.report.page import render_html
from sweep.report.result import OBJECTIVE_COLUMNS
from sweep.report.seeds import over_seeds, seeds_summary
from sweep.report.table1 import PAPER_SCORES, REFERENCE_ROWS, ROWS, TABLE1_COLUMNS, table1
from sweep.report.tables import best_of_targets, chosen_pairs, objective_table, reference_scores
from sweep.report.terminal import WIDTH, terminal_summary


@pytest.fixture(scope="module")
def result():
    return synthetic_result(sources=["concepts", "others"], command="universal", has_source_models=True)


@pytest.fixture(scope="module")
def table(result) -> pd.DataFrame:
    return table1(result)


@pytest.fixture(scope="module")
def page(result) -> str:
    return render_html(result, [])


@pytest.fixture(scope="module")
def text(result) -> str:
    return terminal_summary(result)


def test_table_has_a_row_for_each_source_model_and_score(table):
    assert tuple(table.columns) == TABLE1_COLUMNS
    assert set(table["source_domain"]) == {"concepts", "others"}
    assert not table.duplicated(["source_domain", "model", "score"]).any()
    assert set(table.loc[~table["is_reference"], "model"]) == {row.model for row in ROWS}
    assert set(PAPER_SCORES) <= set(table["score"])


def test_means_and_deviations_are_over_the_targets(result, table):
    pairs = chosen_pairs(result)
    values = pairs.loc[pairs["source_domain"] == "others", "iou_at_10"].to_numpy()
    table = table.set_index(["source_domain", "model", "score"])
    cell = table.loc[("others", "transferred", "iou_at_10")]
    assert cell["mean"] == pytest.approx(values.mean())
    assert cell["sd"] == pytest.approx(np.std(values, ddof=1))
    assert cell["num_targets"] == 8


def test_marks_follow_a_paired_t_test_against_the_best(result, table):
    """Against SciPy: prediction-only is the most accurate by construction; zero-shot differs from it, as it has two thirds of it."""
    table = table.set_index(["source_domain", "model", "score"])
    assert table.loc[("concepts", "prediction_only", "accuracy"), "is_best"]
    assert not table.loc[("concepts", "zero_shot", "accuracy"), "does_not_differ_from_best"]
    references = result.references.set_index(["reference", "domain"])["accuracy"]
    pairs = chosen_pairs(result)
    own = pairs[pairs["source_domain"] == "concepts"].set_index("target_domain")["accuracy"]
    p = stats.ttest_rel(references["prediction_only"].reindex(own.index), own).pvalue
    assert table.loc[("concepts", "transferred", "accuracy"), "does_not_differ_from_best"] == (p >= 0.05)


def test_references_stand_below_the_models_and_are_in_no_test(result, table, text):
    """Those that the sweep has; the supervised model is the one at the pair's alpha."""
    references = table[table["is_reference"]]
    known = set(result.references["reference"]) & set(REFERENCE_ROWS)
    assert set(references["model"]) == known == {"chance", "zero_predictor", "mean_map", "supervised", "label_ceiling"}
    assert not references[["is_best", "does_not_differ_from_best"]].any(axis=None)
    for _, of_source in table.groupby("source_domain"):
        assert of_source["is_reference"].is_monotonic_increasing
    pairs = chosen_pairs(result).query("source_domain == 'others'")
    supervised = result.references[result.references["reference"] == "supervised"].set_index(["domain", "alpha"])["iou_at_10"]
    own = [supervised[target, alpha] for target, alpha in zip(pairs["target_domain"], pairs["alpha"], strict=True)]
    cell = references.set_index(["source_domain", "model", "score"]).loc[("others", "supervised", "iou_at_10")]
    assert (cell["mean"], cell["sd"]) == (pytest.approx(np.mean(own)), pytest.approx(np.std(own, ddof=1)))
    # The best of all is a reference, and the best model is still marked.
    models = table[~table["is_reference"]].set_index(["source_domain", "model", "score"])
    assert cell["mean"] > models.loc[("others", "transferred", "iou_at_10"), "mean"]
    assert models.xs("iou_at_10", level="score")["is_best"].groupby("source_domain").sum().eq(1).all()
    assert "  label ceiling" in text


def test_table_is_empty_where_the_sources_models_were_not_scored():
    assert table1(synthetic_result(DOMAINS[:3], num_examples=0)).empty


def test_a_source_of_several_vectors_has_no_models_of_its_own_and_the_other_rows():
    both = "concepts,others"
    together = synthetic_result(DOMAINS[:4], sources=["concepts", "others", both], command="universal", has_source_models=True)
    own = together.source_models[together.source_models["source_domain"] != both]
    together = replace(together, source_models=own)
    table = table1(together)
    rows = table[(table["source_domain"] == both) & ~table["is_reference"]]
    assert set(rows["model"]) == {"zero_shot", "prediction_only", "transferred"} and rows["mean"].notna().any()
    assert rows.groupby("score")["is_best"].sum().max() == 1
    assert f"Table 1 from {both}" in terminal_summary(together) and f"the vector of {both}" in render_html(together, [])


def test_a_factor_of_the_transferred_models_maps_is_told(result, page, text):
    without = replace(result, cells=result.cells.assign(attribution_scale=1.0))
    told = "the factor that it ships with"
    assert told in text and told in page
    assert told not in terminal_summary(without) and told not in render_html(without, [])


def test_terminal_shows_the_table_and_keeps_its_width(text):
    assert "Table 1 from others" in text and "Table 1 from concepts" in text
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_best_source_of_a_target_is_its_best_pair_that_keeps_the_accuracy(result):
    best = best_of_targets(result)
    assert list(best["target_domain"]) == list(result.targets)
    pairs = chosen_pairs(result)
    for row in best.itertuples():
        rivals = pairs[(pairs["target_domain"] == row.target_domain) & (pairs["normalized_accuracy"] >= 0.9)]
        assert rivals.empty or row.iou_at_10 == rivals["iou_at_10"].max()


def test_seeds_are_taken_together_with_their_interval():
    """Against SciPy's t interval of the three means."""
    results = [synthetic_result(sources=["others"], command="universal", seed=seed) for seed in range(3)]
    table = over_seeds(results)
    means = [chosen_pairs(result)["correlation"].mean() for result in results]
    found = table[(table["model"] == "transferred") & (table["measure"] == "correlation")]
    assert found["value"].tolist() == pytest.approx(means)
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert f"{np.mean(means):.3f} ({high - np.mean(means):.3f})" in seeds_summary(table, 8)
    assert low < np.mean(means)
    margins = []  # of a target's mean over the seeds, against the mean map's
    for result in results:
        bar = reference_scores(result).query("reference == 'mean_map'").set_index("domain")["e_rmse"]
        pairs = chosen_pairs(result).set_index("target_domain")
        margins.append(bar.reindex(pairs.index) - pairs["e_rmse"])
    each, by_means = [int((m > 0).sum()) for m in margins], int((sum(margins) > 0).sum())
    assert f"from others: than the mean map on {each[0]}, {each[1]}, {each[2]}; by means {by_means}" in seeds_summary(table, 8)


def test_seeds_tell_the_other_targets_point_below_the_chosen_one_and_every_objectives_regret():
    result = synthetic_result(sources=["others"], command="universal")
    chosen = chosen_pairs(result)
    columns = list(OBJECTIVE_COLUMNS)
    halved = chosen.assign(objective="other_targets", needs_labels=False, correlation=chosen["correlation"] / 2)[columns]
    best = chosen.assign(objective="oracle_correlation", needs_labels=True)[columns]
    both = replace(result, objectives=pd.concat([halved, best], ignore_index=True))
    table = over_seeds([both, both])
    of_objective = table[(table["model"] == "other_targets") & (table["measure"] == "correlation")]
    assert of_objective["value"].tolist() == pytest.approx([chosen["correlation"].mean() / 2] * 2)
    lines = seeds_summary(table, 8).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("from others    "))
    assert lines[at + 1].startswith("  other targets' lambda2")
    bar = reference_scores(result).query("reference == 'mean_map'").set_index("domain")["correlation"]
    above = int((halved["correlation"] > halved["target_domain"].map(bar)).sum())
    assert f"from others at other targets' lambda2: than the mean map's correlation on {above}, {above}; by means {above}" in lines
    regret = chosen["correlation"].mean() / 2
    (told,) = [line for line in lines if line.startswith("from others") and "other_targets" in line]
    assert told.endswith(f"{regret:.3f} (0.000)") and f" {chosen['correlation'].mean() / 2:.3f} (0.000) " in told
    (told,) = [line for line in lines if "oracle_correlation" in line]
    assert told.endswith(" 0.000 (0.000)") and max(map(len, lines)) <= 100


def test_report_shows_the_table_with_the_papers_numbers_beside(table, page):
    assert "Table 1: models with the vector of concepts" in page and "Table 1: models with the vector of others" in page
    table = table.set_index(["source_domain", "model", "score"])
    mean = table.loc[("others", "transferred", "accuracy"), "mean"]
    assert f"{mean:.3f}" in page and "0.876 ± 0.12" in page
    assert "Table 1" not in render_html(synthetic_result(DOMAINS[:3], alphas=[0.5], lambdas=[0.8], num_examples=1), [])


def test_many_sources_are_told_together_how_their_points_could_be_chosen():
    many = synthetic_result(DOMAINS[:4], num_examples=0)
    chosen = chosen_pairs(many).assign(needs_labels=True)
    names = ("correlation", "oracle_correlation")
    objectives = pd.concat([chosen.assign(objective=name)[list(OBJECTIVE_COLUMNS)] for name in names], ignore_index=True)
    lines = terminal_summary(replace(many, objectives=objectives)).splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.startswith("from ") and "regret" in line]
    assert lines[head].startswith("from single domains ") and f"{chosen['correlation'].mean():.3f}" in lines[head + 1]


def test_report_says_what_each_objective_would_have_chosen(result, page, text):
    """Regret is against the oracle of the same source."""
    rows = [
        {"source_domain": "others", "target_domain": target, "objective": objective, "needs_labels": reads, "correlation": value}
        for target in result.targets
        for objective, reads, value in (("accuracy_bound", False, 0.25), ("oracle_correlation", True, 0.4))
    ]
    filled = {"alpha": 0.5, "lambda2": 1.0, "attribution_scale": 1.0}
    objectives = pd.DataFrame(rows).reindex(columns=list(OBJECTIVE_COLUMNS)).fillna(filled)
    compared = replace(result, objectives=objectives)
    assert objective_table(compared)["regret"].tolist() == pytest.approx([0.15, 0.0])
    assert "How the point is chosen" in render_html(compared, [])
    assert "How the point is chosen" not in page
    (row,) = [line.split() for line in terminal_summary(compared).splitlines() if line.startswith("accuracy bound  ")]
    assert row[2] == "1.000" and row[-5:] == ["0.150", "0", "0", "0", "8"]  # of the scores only the correlation is there
    assert "How lambda2 could be chosen" not in text
