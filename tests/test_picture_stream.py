"""A sweep's pictures as a stream of shards: the same pictures, classes and labels as at random, on nodes that hold two windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from in_process import compute, graph_of
from test_imported_labels import data, labelled, sweep_of  # noqa: F401  # fixtures
from test_stages import DIGITS, SMALL

from core.training_data import TrainingData
from sweep.experiment.sources import Source
from sweep.stages import picture_stream, pictures
from sweep.stages.graph import alone
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
