"""The rows of explainers and of the side head beside the models, in a small sweep computed in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from in_process import compute, graph_of

from core.explainers.explainer import EXPLAINERS
from core.games.attribution_labels import perturbations
from core.metrics import correlation, e_rmse, iou_at
from sweep.report.references import EXPECTED, REFERENCES
from sweep.stages.graph import SweepGraph
from sweep.stages.stage import closure
from sweep.store.artifacts import Store

SMALL = [
    *("--suite", "miniature", "--domains", "clean_digits", "street_digits", "--alphas", "0.5", "--precision", "float32"),
    *("--num-steps", "12", "--max-train-pictures", "40", "--max-test-pictures", "12", "--budget", "104", "--test-budget", "104"),
    *("--max-test-labels", "5", "--max-validation-labels", "5"),
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[SweepGraph, Store]:
    store = Store(str(tmp_path_factory.mktemp("store") / "store"))
    graph = graph_of(store, *SMALL)
    compute(store, graph.reference("clean_digits"))
    return graph, store


def rows_of(swept) -> dict[str, dict]:
    graph, store = swept
    return {row["reference"]: row for row in graph.reference("clean_digits").rows(store) if row["split"] == "test"}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explainers_row_is_of_its_maps_of_the_labelled_test_pictures_at_one_factor(name, swept):
    graph, store = swept
    model = graph.prediction_only_scores("clean_digits")
    classifier, found = model.classifier.load(store), {}
    for split, stage in (("validation", model.validation), ("test", model.test)):
        pictures, labels = model.pictures.load(store, split), stage.load(store)
        number = len(labels)
        assert 0 < number < len(pictures)
        inputs = model.preprocessing.normalise(pictures.pixels.range(0, number))
        maps = EXPLAINERS[name].maps(classifier, inputs, torch.from_numpy(pictures.class_ids[:number])).double().numpy()
        found[split] = maps, labels
    # The factor is a least-squares fit of sums over hidden sets to the changes of v, here by NumPy's own solver.
    maps, labels = found["validation"]
    removed = perturbations(maps.shape[1], labels.perturbation_values.shape[1])
    changes = labels.value_full.astype(np.float64)[:, None] - labels.perturbation_values
    (factor,), *_ = np.linalg.lstsq((maps @ removed.T).reshape(-1, 1), changes.ravel(), rcond=None)
    factor = max(factor, 1e-3)
    maps, labels = found["test"]
    row = rows_of(swept)[name]
    assert row["alpha"] is None
    assert row["e_rmse"] == pytest.approx(e_rmse(factor * maps, labels.attributions), rel=1e-4)
    assert row["correlation"] == pytest.approx(correlation(maps, labels.attributions), abs=1e-5)
    assert row["iou_at_10"] == pytest.approx(iou_at(10, maps, labels.attributions), abs=1e-9)
    scales = graph.explainer_scores("clean_digits").artifact(store).manifest["meta"]["scales"]
    assert scales[name] == pytest.approx(factor, rel=1e-4)


def test_an_explainer_leaves_the_accuracy_as_it_is(swept):
    rows = rows_of(swept)
    assert {rows[name]["accuracy"] for name in (*EXPLAINERS, "side_head")} == {rows["prediction_only"]["accuracy"]}


def test_the_side_heads_row_is_of_a_head_trained_on_the_targets_train_labels_alone(swept):
    graph, store = swept
    scores = graph.side_head_scores("clean_digits")
    fitted, model = scores.side_head, scores.model
    assert fitted.labels.key == graph.labels("clean_digits", "train").key
    assert not {stage.key for stage in closure([fitted])} & {model.test.key, model.validation.key}
    pictures, labels = model.pictures.load(store, "test"), model.test.load(store)
    inputs, own = model.preprocessing.normalise(pictures.pixels.range(0, 5)), torch.from_numpy(pictures.class_ids[:5])
    maps = fitted.load(store).maps(fitted.classifier.load(store), inputs, own).double().numpy()
    row = rows_of(swept)["side_head"]
    assert row["e_rmse"] == pytest.approx(e_rmse(maps, labels.attributions), rel=1e-4)
    # What the patches change is known without error to the labels, too.
    np.testing.assert_allclose(maps.sum(axis=1), labels.value_full - labels.value_empty, atol=1e-3)
    meta = fitted.artifact(store).manifest["meta"]
    assert meta["num_pictures"] == len(fitted.labels.load(store)) and meta["final_loss"] < meta["first_loss"]


def test_the_rows_are_known_to_the_report_and_no_sweep_must_have_them(swept):
    assert set(EXPLAINERS) <= set(REFERENCES) and not set(EXPLAINERS) & set(EXPECTED)
    graph, store = swept
    saved = json.loads(graph.explainer_scores("clean_digits").artifact(store).path("scores.json").read_text())
    assert set(saved) == set(EXPLAINERS)
