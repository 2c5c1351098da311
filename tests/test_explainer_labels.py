"""An explainer's maps as a sweep's train labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from in_process import compute, graph_of
from test_explainer_rows import SMALL

from core.explainers.explainer import EXPLAINERS
from core.games.attribution_labels import perturbations
from sweep.experiment.config import ConfigError, SplitLabels
from sweep.stages.explainer_labels import NUM_SETS
from sweep.stages.graph import SweepGraph, alone
from sweep.store.artifacts import Store

MOST = 15


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[SweepGraph, Store]:
    store = Store(str(tmp_path_factory.mktemp("store") / "store"))
    graph = graph_of(store, *SMALL, "--label-source", "grad_cam", "--max-train-labels", str(MOST))
    computed = compute(store, graph.labels("clean_digits", "train"), graph.pictures("clean_digits"))
    assert "label" not in {work.kind for work in computed}
    return graph, store


def hidden_values(classifier, inputs, class_ids) -> tuple[np.ndarray, np.ndarray]:
    """v(all) [N] and v(all without each set) [N, I], by plain forward passes of pictures whose patches are painted over."""
    removed = torch.from_numpy(perturbations(49, NUM_SETS))
    pixels = removed.reshape(-1, 1, 7, 7).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def values(pictures):
        with torch.no_grad():
            return 3.5 / classifier.logit_scale * classifier.logits(pictures)[torch.arange(len(pictures)), class_ids]

    return values(inputs).numpy(), np.stack([values(inputs * ~mask).numpy() for mask in pixels], axis=1)


def test_labels_are_the_prediction_only_models_maps_at_one_factor_that_suits_its_game(labelled):
    graph, store = labelled
    labels, classifier = graph.labels("clean_digits", "train"), graph.classifier("clean_digits", 1.0).load(store)
    split = graph.pictures("clean_digits").load(store, "train")
    assert len(split) > MOST
    inputs = graph.base.preprocessing.normalise(split.pixels.range(0, MOST))
    class_ids = torch.from_numpy(split.class_ids[:MOST])
    maps = EXPLAINERS["grad_cam"].maps(classifier, inputs, class_ids).double().numpy()
    full, hidden = hidden_values(classifier, inputs, class_ids)
    changes = (full[:, None] - hidden).ravel()
    (factor,), *_ = np.linalg.lstsq((maps @ perturbations(49, NUM_SETS).T).reshape(-1, 1), changes, rcond=None)
    assert factor > 1e-3  # else it is the smallest one allowed
    np.testing.assert_allclose(labels.attributions(store), factor * maps, atol=1e-4 * np.abs(factor * maps).max())
    np.testing.assert_array_equal(labels.attributions_by_range(store).read(4, 9), labels.attributions(store)[4:9])
    np.testing.assert_array_equal(labels.rows(store), np.arange(MOST))
    np.testing.assert_allclose(labels.mean_map(store), labels.attributions(store).mean(axis=0), atol=1e-6)
    found = labels.load(store)
    assert np.isnan(found.standard_error).all() and not found.budget.any()
    run = labels.child_run(store)
    assert run.params["labels"] == "grad_cam" and not any(name.startswith("label.") for name in run.params)
    assert run.metrics["label_standard_error"] is None and run.metrics["map_scale"] == pytest.approx(factor, rel=1e-3)


def test_models_are_trained_on_them_and_scored_against_shapley_values(labelled):
    graph, store = labelled
    plain = graph_of(store, *SMALL, "--max-train-labels", str(MOST))
    for role in ("validation", "test", "ceiling"):
        assert graph.labels("clean_digits", role).key == plain.labels("clean_digits", role).key
    assert graph.prediction_only(alone("clean_digits")).key == plain.prediction_only(alone("clean_digits")).key
    mine, theirs = graph.self_explaining(alone("clean_digits"), 0.5), plain.self_explaining(alone("clean_digits"), 0.5)
    assert mine.key != theirs.key
    training = mine.training_data(store)
    np.testing.assert_array_equal(training.attribution_labels.numpy(), graph.labels("clean_digits", "train").attributions(store))


def test_each_source_of_labels_has_keys_of_its_own(labelled):
    _, store = labelled
    keys = {graph_of(store, *SMALL, "--label-source", name).labels("clean_digits", "train").key for name in ("shapley", *EXPLAINERS)}
    assert len(keys) == 1 + len(EXPLAINERS)
    settings = graph_of(store, *SMALL).config.labels
    with pytest.raises(ConfigError, match="one of shapley, grad_cam"):
        SplitLabels(settings.train, settings.validation, settings.test, train_source="saliency")
