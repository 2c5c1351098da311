"""The way of the universal vector's source, on real ImageNet pictures with a ViT-B/32: streamed in shards, two workers a model."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from in_process import compute, graph_of
from patience import PATIENCE_S
from test_real_pictures import DATA, needs_data

from sweep.engines.job import attempt_together
from sweep.experiment.sources import Source
from sweep.stages import picture_stream, pictures
from sweep.store.artifacts import Store

NUM_CLASSES = 8
IMAGENET = Source("imagenet", ("imagenet",))


def sample(directory: Path) -> Path:
    """The first classes of the sample, a picture each, as a data set with both splits; prompts of 1000 classes take a minute."""
    table = pq.read_table(DATA / "imagenet" / "sample.parquet")
    described = json.loads(table.schema.metadata[b"huggingface"])
    label = described["info"]["features"]["label"]
    label["names"] = label["names"][:NUM_CLASSES]
    rows = table.filter(pc.field("label") < NUM_CLASSES).replace_schema_metadata({"huggingface": json.dumps(described)})
    assert len(rows) == NUM_CLASSES
    directory.mkdir()
    for split in ("train", "test"):
        pq.write_table(rows, directory / f"{split}.parquet")
    return directory


def _work(rank: int, directory: Path, url: str, work) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE_S)
    )
    outcome = attempt_together(work, Store(url))
    dist.destroy_process_group()
    if outcome.error is not None:
        raise outcome.error


def together(directory: Path, store: Store, work) -> None:
    """Publish a stage with two workers, as Ray Train's worker group does (`tests/test_workers_of_a_model.py` has that).

    One is this process: another would import and build everything again.
    """
    other = multiprocessing.get_context("spawn").Process(target=_work, args=(1, directory, store.url, work))
    other.start()
    _work(0, directory, store.url, work)
    other.join(PATIENCE_S)
    assert other.exitcode == 0


@needs_data
def test_from_pictures_to_the_explainability_vector(tmp_path, monkeypatch):
    """Shards of one picture, a window of two shards; the vector is what the two workers' model differs by from the prediction-only one."""
    monkeypatch.setattr(pictures, "PICTURES_PER_SHARD", 1)
    monkeypatch.setattr(picture_stream, "STREAMED_ABOVE_BYTES", 0)
    monkeypatch.setattr(picture_stream, "WINDOW_SHARDS", 2)
    store = Store(str(tmp_path / "store"))
    graph = graph_of(
        store,
        *("--domains", f"imagenet={sample(tmp_path / 'imagenet')}", f"mnist={DATA / 'mnist'}"),
        *("--sources", "imagenet", "--targets", "mnist"),
        *("--base", "ViT-B-32:random", "--num-steps", "2", "--batch-size", "2", "--alphas", "0.5"),
        *("--validation-share", "0.125", "--max-train-labels", "2", "--max-test-pictures", "2", "--budget", "96"),
        *("--estimator", "kernel_shap", "--templates", "a photo of a {}."),
    )
    prediction_only, alone = graph.prediction_only(IMAGENET), graph.self_explaining(IMAGENET, 0.5)
    two = replace(alone, recipe=replace(alone.recipe, workers_per_model=2))
    assert two.window == prediction_only.window == 2 and len(two.pictures[0].of_range("train", 0, 7)) == 7
    compute(store, *two.inputs)
    together(tmp_path, store, two)
    vector = replace(graph.explainability_vector(IMAGENET, 0.5), model=two)
    compute(store, vector)
    found, weights, origin = vector.load(store), two.load(store), prediction_only.load(store)
    assert two.artifact(store).manifest["meta"]["num_pictures"] == 2  # those that are labelled
    assert found.norm() > 0 and all(torch.equal(w, weights[k] - origin[k]) for k, w in found.weights.items())
    history = two.history(store)
    assert [point["step"] for point in history] == [1, 2] and all(point["explanation_loss"] > 0 for point in history)
