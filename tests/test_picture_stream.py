"""A sweep's pictures as a stream of shards: the same pictures, classes and labels as at random, on nodes that hold two windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from in_process import compute, graph_of
from safetensors.torch import load_file
from test_imported_labels import data, labelled, sweep_of  # noqa: F401  # fixtures
from test_stages import DIGITS, SMALL

from core.attribution_head import COSINE
from core.merging.atlas import Atlas
from core.sensitivity import class_fisher
from core.task_vectors import TaskVector
from core.training_data import TrainingData
from sweep.experiment.sources import Source
from sweep.stages import picture_stream, pictures
from sweep.stages.coefficients import LearnedCoefficients
from sweep.stages.graph import alone
from sweep.stages.models import Classifier, FineTuned
from sweep.stages.sensitivity import NUM_PICTURES, SENSITIVITY, Sensitivity
from sweep.store.artifacts import Store

UNION = Source("digits", ("clean_digits", "street_digits"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES_PER_SHARD", 4)


def streamed(model):
    return replace(model, window=2)


def described(batch):
    """Of each picture its pixels, class and label."""
    labels = [None] * len(batch.class_ids) if batch.attribution_labels is None else batch.attribution_labels.numpy()
    rows = zip(batch.pixels.numpy(), batch.class_ids.tolist(), labels, strict=True)
    return [(pixels.tobytes(), class_id, None if label is None else label.tobytes()) for pixels, class_id, label in rows]


def epoch_of(source):
    return sorted(row for batch in source.batches(1, len(source), seed=0) for row in described(batch))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_union_streams_what_it_would_take_at_random(tmp_path, alpha):
    """Two domains, 11 train pictures each in shards of 4, 4 and 3, labels of the first 6 in shards of 5: boundaries that do not agree."""
    store = Store("memory://streamed", str(tmp_path / "cache"))
    graph = graph_of(store, *DIGITS, *SMALL, "--validation-share", "0.45", "--max-train-labels", "6")
    graph = replace(graph, config=replace(graph.config, labels=replace(graph.config.labels, shard_size=5)))
    model = graph.self_explaining(UNION, alpha)
    compute(store, *model.inputs)
    node = Store("memory://streamed", str(tmp_path / "another node"))
    stream = streamed(model)._batch_source(node)
    assert [len(shard) for shard in stream.shards] == ([4, 4, 3] if alpha == 1.0 else [4, 2]) * 2
    found = epoch_of(stream)
    at_random = model.training_data(store)
    assert isinstance(at_random, TrainingData) and found == epoch_of(at_random)
    # What a window needs is on the node while it is trained on, and no longer.
    cache = tmp_path / "another node"
    assert not [path for path in cache.rglob("*") if path.suffix in (".npy", ".json", ".parquet")]
    batches = stream.batches(1, len(stream), seed=0)
    next(batches)
    assert 2 <= len(list(cache.rglob("pixels.npy"))) <= 4
    batches.close()
    assert not list(cache.rglob("pixels.npy"))


def test_of_streamed_pictures_a_few_are_taken_from_the_shards_that_hold_them_without_labels(tmp_path):
    store = Store("memory://few", str(tmp_path / "cache"))
    model = graph_of(store, *DIGITS, *SMALL, "--validation-share", "0.45", "--max-train-labels", "6").self_explaining(UNION, 0.5)
    compute(store, *model.inputs)
    index = [torch.tensor([11, 4, 5]), torch.tensor([4])]  # shards of 4 and 2 labelled pictures, of either domain
    expected = list(model.training_data(store).without_labels().take(index))
    fetched = []
    node = Store("memory://few", str(tmp_path / "another node"))
    download = node._files.download
    node._files.download = lambda name, path: fetched.append(Path(name).name) or download(name, path)
    taken = list(streamed(model).picture_source(node).take(index))
    assert [described(batch) for batch in taken] == [described(batch) for batch in expected]
    assert fetched.count("pixels.npy") == 2 and not any(name.endswith(".parquet") for name in fetched)
    source = model.picture_source(node)
    assert not source.is_labelled and len(source) == 12 and not any(name.endswith(".parquet") for name in fetched)


def test_what_is_measured_on_streamed_pictures_draws_the_same_and_takes_no_more(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    model = streamed(graph_of(store, *DIGITS, *SMALL).prediction_only(alone("clean_digits")))
    compute(store, model)
    classifier = Classifier(model.base, model.heads, model, "cpu").load(store)
    expected = class_fisher(classifier, model.training_data(store), NUM_PICTURES, model.recipe.seed)

    def refuse(*arguments, **options):
        raise AssertionError("all shards were asked for")

    monkeypatch.setattr(FineTuned, "training_data", refuse)
    Sensitivity("class_fisher", model).compute(store, tmp_path)
    found = load_file(tmp_path / SENSITIVITY)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    vector = SimpleNamespace(load=lambda store: TaskVector({k: 0.01 * v for k, v in model.load(store).items()}, model.base.fingerprint))
    learned = LearnedCoefficients(Atlas(num_steps=1, num_pictures=5), model, vector, COSINE)
    assert learned.compute(store, tmp_path)["num_pictures"] == 5


def test_labels_of_others_are_streamed_with_their_pictures(tmp_path, data, labelled):  # noqa: F811
    """Label files in the order of the data set, pictures in the order of the split, 4 of 40 held out."""
    store = Store(str(tmp_path / "store"))
    model = sweep_of(store, data, labelled).self_explaining(alone("signs"), 0.5)
    compute(store, *model.inputs)
    assert epoch_of(streamed(model)._batch_source(store)) == epoch_of(model.training_data(store))
    whole, ranges = model.labels[0].attributions(store), model.labels[0].attributions_by_range(store)
    assert np.array_equal(ranges.read(5, 30), whole[5:30])


def test_only_what_is_larger_than_memory_is_streamed_and_its_key_says_so(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    arguments = (*DIGITS, *SMALL, "--batch-size", "4")
    usual = graph_of(store, *arguments).prediction_only(alone("clean_digits"))
    assert usual.window is None and "window" not in usual.params
    monkeypatch.setattr(picture_stream, "STREAMED_ABOVE_BYTES", 11 * 3 * 56 * 56 - 1)
    large = graph_of(store, *arguments).prediction_only(alone("clean_digits"))
    assert large.window == picture_stream.WINDOW_SHARDS and large.params == {**usual.params, "window": large.window}
    compute(store, usual, replace(large, window=1))
    histories = [model.history(store) for model in (usual, replace(large, window=1))]
    assert len(histories[0]) == len(histories[1]) == 2 and histories[0] != histories[1]
