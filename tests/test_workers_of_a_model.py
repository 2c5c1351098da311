"""A model of several workers on Ray Train: one fit, one artifact, the loss curve of one worker; beside models of one worker each."""

from __future__ import annotations

import os
from dataclasses import replace

import psutil
import pytest
from in_process import compute, graph_of
from test_stages import DIGITS, SMALL

from sweep.commands.options import Places
from sweep.commands.session import Session
from sweep.engines import scheduler
from sweep.engines.cluster import Workers
from sweep.engines.tasks import call_on_worker
from sweep.experiment.config import ConfigError
from sweep.experiment.sources import Source
from sweep.stages.graph import alone
from sweep.store.artifacts import Store

UNION = Source("digits", ("clean_digits", "street_digits"))
ARGUMENTS = [*DIGITS, *SMALL, "--validation-share", "0.45", "--batch-size", "8", "--num-source-steps", "20"]


def test_two_workers_train_one_model_on_ray(tmp_path, monkeypatch):
    """Both workers read the stream of shards; the first one publishes. What waits for it is trained by one."""
    store = Store(str(tmp_path / "store"))
    graph = graph_of(store, *ARGUMENTS)
    one = replace(graph.self_explaining(UNION, 0.5), window=1)
    two = replace(one, recipe=replace(one.recipe, workers_per_model=2))
    other = graph.self_explaining(alone(UNION.parts[0]), 0.5)
    compute(store, *one.inputs)
    done = []
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the workers' limit is not this process's
    with Session(store, Places(num_workers=2, threads_per_worker=1), "cpu") as session:
        assert call_on_worker(os.getenv, ("OMP_NUM_THREADS",), session.workers) == "1" and os.environ["OMP_NUM_THREADS"] == "7"
        session.compute([other, two], done.append)
        assert {work.key for work in done} == {work.key for work in (other, two)}
        assert [work.num_workers for work in done].count(2) == 1
        failing = replace(two, recipe=replace(two.recipe, learning_rate=1e30))
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            session.compute([failing], done.append)
    assert not [p for p in psutil.Process().children(recursive=True) if "TrainWorker" in " ".join(p.cmdline())]
    compute(store, one)
    losses = [[point["loss"] for point in model.history(store)] for model in (one, two)]
    assert one.key != two.key and len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # float32 sums in another order differ by 1e-7, and training spreads it
    assert two.artifact(store).manifest["meta"]["num_pictures"] == 22
    assert store.checkpoint(two.key).load() is None


def test_more_workers_than_there_are_is_refused_at_once(tmp_path):
    store = Store(str(tmp_path / "store"))
    model = graph_of(store, *ARGUMENTS).prediction_only(UNION)
    large = replace(model, recipe=replace(model.recipe, workers_per_model=4))
    assert large.key != model.key and "workers_per_model" not in model.params["recipe"]
    with pytest.raises(ConfigError, match="give --workers 4"):
        scheduler.run([large], store, Workers(2, 0.0, 1, 2, is_one_machine=True), lambda work: None)
    assert store.keys("finetune") == []
