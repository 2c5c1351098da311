"""Five domains of the miniature suite, one alpha, two targets: explanation is really learnt and really transferred.

Without Ray: that sweeps come to the same numbers on the engines is in test_end_to_end.py, one with Optuna in test_cluster_of_nodes.py.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest
from in_process import engines_here
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_end_to_end import client, runs

from core.statistics import pearson
from sweep import run as command_line
from sweep.store.artifacts import Store

DOMAINS = ("land_cover", "traffic_signs", "aerial_objects", "scenes", "street_digits")
TARGETS = DOMAINS[:2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("miniature")
    sources, steps = ["--sources", *DOMAINS, "others"], ["--num-steps", "120", "--num-source-steps", "160"]
    chosen = ["--suite", "miniature", "--domains", *DOMAINS, "--targets", *TARGETS]
    chosen += ["--max-train-pictures", "425", "--validation-share", repr(200 / 425)]  # half the suite's training pictures: half the labels
    chosen += ["--test-budget", "224"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        engines_here(patch, draws_all=True)
        assert command_line.main(["all_pairs", *chosen, "--alphas", "0.2", "--num-trials", "8", *sources, *steps]) == 0
    return directory


@pytest.fixture(scope="module")
def tables(directory) -> dict[str, pd.DataFrame]:
    (parent,) = runs(directory, "sweep")
    names = ("cells", "references", "similarities")
    return {n: pd.read_parquet(client(directory).download_artifacts(parent.info.run_id, f"{n}.parquet")) for n in names}


def reference(tables: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    rows = tables["references"]
    return rows[rows["reference"] == name].set_index("domain")


@pytest.mark.parametrize("other", ["zero_predictor", "mean_map", "other_mean_map", "prediction_only"])
def test_supervised_models_have_a_smaller_error_than_maps_that_explain_nothing(tables, other):
    supervised = reference(tables, "supervised")
    assert len(supervised) == len(TARGETS)
    assert (supervised["e_rmse"] < reference(tables, other)["e_rmse"]).all(), supervised["e_rmse"] - reference(tables, other)["e_rmse"]


@pytest.mark.parametrize("other", ["chance", "mean_map", "other_mean_map", "prediction_only"])
def test_supervised_models_find_the_patches_better_than_maps_and_chance(tables, other):
    assert (reference(tables, "supervised")["iou_at_10"] > reference(tables, other)["iou_at_10"]).all()


def test_it_is_no_shrinkage_the_maps_correlate_picture_by_picture(tables):
    supervised = reference(tables, "supervised")
    assert supervised["correlation"].min() > 0.2 and supervised["correlation"].mean() > 0.45


def test_labels_agree_between_draws_far_better_than_chance(tables):
    ceiling = reference(tables, "label_ceiling")
    assert ceiling["iou_at_10"].min() > 0.25 and ceiling["correlation"].min() > 0.4


def test_explanation_costs_supervised_models_little_accuracy(tables):
    assert reference(tables, "supervised")["normalized_accuracy"].mean() > 0.93


def chosen(tables: dict[str, pd.DataFrame], source: str | None = None) -> pd.DataFrame:
    """Chosen points on test, of one source or of all single domains."""
    cells = tables["cells"]
    found = cells[(cells["split"] == "test") & cells["is_chosen"]]
    found = found[found["source_domain"] == source] if source else found[found["source_domain"] != "others"]
    return found.set_index("target_domain")


def test_transferred_models_keep_accuracy_and_lower_the_error(tables):
    found = chosen(tables)
    assert len(found) == 5 * 2 - 2
    assert found["normalized_accuracy"].mean() > 0.93
    assert found["normalized_e_rmse"].mean() < 0.5


def test_a_diverse_source_transfers_explanation_that_needs_the_picture(tables):
    """The mean map is all that a model can know of the labels without looking at the picture, and the zero predictor all that shrinking
    gives: what is transferred is above the one in correlation and overlap, below the other in error.
    """
    found, mean_map, zero = chosen(tables, "others"), reference(tables, "mean_map"), reference(tables, "zero_predictor")
    assert len(found) == len(TARGETS)
    assert found["correlation"].mean() > mean_map["correlation"].mean() + 0.1
    assert found["iou_at_10"].mean() > mean_map["iou_at_10"].mean()
    assert found["e_rmse"].mean() < zero["e_rmse"].mean()
    assert found["normalized_accuracy"].mean() > 0.93


def test_a_diverse_source_is_better_than_a_single_one(tables):
    assert chosen(tables, "others")["correlation"].mean() > chosen(tables)["correlation"].mean() + 0.1


def test_the_similarity_of_prediction_only_vectors_predicts_that_of_explainability_vectors(tables):
    """Figure 3 (b) of the paper: r = 0.90 there."""
    similarities = tables["similarities"][tables["similarities"]["source_domain"] != "others"]
    found = pearson(similarities["similarity_prediction_only"], similarities["similarity_explainability"])
    assert found.r > 0.6 and found.p_value < 0.001


def test_the_study_of_a_pair_can_be_opened_with_optuna(directory):
    store = Store(str(directory / "sweep_store"))
    keys = store.keys("pair")
    assert len(keys) == 10
    for key in keys[:3]:
        storage = JournalStorage(JournalFileBackend(str(store.open(key).path("study.journal"))))
        (name,) = optuna.get_all_study_names(storage)
        assert name.startswith("all_pairs/miniature/") and "->" in name
        study = optuna.load_study(study_name=name, storage=storage)
        assert len(study.trials) == 8 and len(study.directions) == 2
