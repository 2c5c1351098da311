"""What was lost of a store, or was damaged and removed as the message says, is computed again, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import stage_outputs
from in_process import compute, graph_of

from sweep.engines.scheduler import missing
from sweep.stages.graph import alone
from sweep.stages.stage import Stage, closure
from sweep.store.artifacts import Store, StoreError


def small_graph(store: Store):
    return graph_of(store, *stage_outputs.DIGITS, *stage_outputs.GRID)


def lose(store: Store, stage: Stage) -> None:
    shutil.rmtree(Path(store.url) / "artifacts" / stage.key[:2] / stage.key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store with everything that a training of a domain needs, labels among it."""
    directory = tmp_path_factory.mktemp("whole")
    store = Store(str(directory))
    graph = small_graph(store)
    compute(store, graph.pictures("clean_digits"), graph.head("clean_digits"), graph.labels("clean_digits", "train"))
    return directory


@pytest.mark.parametrize("what", ["pictures", "labels"])
def test_a_shard_that_was_lost_is_made_again_for_a_training_that_needs_it(whole, tmp_path, what):
    """Of the index that tells of it, of pictures or of labels, nothing was lost."""
    shutil.copytree(whole, tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    graph = small_graph(store)
    index = graph.pictures("clean_digits") if what == "pictures" else graph.labels("clean_digits", "train")
    lost = next(shard for shard in index.shards if getattr(shard, "split", "train") == "train")
    before = index.artifact(store).manifest
    lose(store, lost)
    model = graph.self_explaining(alone("clean_digits"), 0.5)
    with pytest.raises(StoreError, match="run the sweep again"):
        model.compute(store, tmp_path)
    works = compute(store, model)
    assert lost in works and model.artifact(store)
    assert index.artifact(store).manifest == before, "an index is as it was"
    assert missing([model], store) == []
    assert missing([index], store) == []


def test_a_stage_reads_only_artifacts_that_it_names(watched_pipeline):
    """Its inputs', and those of an index among them. What it reads besides would not be there again where it was lost."""
    reads, made = watched_pipeline.reads, watched_pipeline.made
    stages = {stage.key: stage for stage in closure(watched_pipeline.stages)}
    besides = {}
    for key in reads.keys() & stages.keys():
        stage = stages[key]
        named = {*stage.inputs, *stage.also_reads}
        named |= {other for index in named if index.is_index for other in index.inputs}
        read = reads[key] - {key} - {other.key for other in named} - made.get(key, set())
        if read:
            besides[f"{stage.kind} {stage.name}"] = [f"{stages[other].kind} {stages[other].name}" for other in read]
    assert besides == {}
    assert len(reads) > 30
