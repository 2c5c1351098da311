"""The miniature suite as shipped, at one alpha: explanation is really learnt, and transfer shows the paper's findings."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_end_to_end import client, runs, sweep

from core.statistics import pearson
from sweep.store.artifacts import Store


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("miniature")
    sweep(directory, "--alphas", "0.2", "--num-trials", "6")
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
    assert len(supervised) == 8
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


def test_transferred_models_keep_accuracy_and_lower_the_error(tables):
    chosen = tables["cells"][(tables["cells"]["split"] == "test") & tables["cells"]["is_chosen"]]
    assert len(chosen) == 56
    assert chosen["normalized_accuracy"].mean() > 0.93
    assert chosen["normalized_e_rmse"].mean() < 0.95


def test_the_similarity_of_prediction_only_vectors_predicts_that_of_explainability_vectors(tables):
    """Figure 3 (b) of the paper: r = 0.90 there."""
    similarities = tables["similarities"]
    found = pearson(similarities["similarity_prediction_only"], similarities["similarity_explainability"])
    assert found.r > 0.6 and found.p_value < 0.001


def test_the_study_of_a_pair_can_be_opened_with_optuna(directory):
    store = Store(str(directory / "sweep_store"))
    keys = store.keys("pair")
    assert len(keys) == 56
    for key in keys[:3]:
        storage = JournalStorage(JournalFileBackend(str(store.open(key).path("study.journal"))))
        (name,) = optuna.get_all_study_names(storage)
        assert name.startswith("all_pairs/miniature/") and "->" in name
        study = optuna.load_study(study_name=name, storage=storage)
        assert len(study.trials) == 6 and len(study.directions) == 2
