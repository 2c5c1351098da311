"""`python -m sweep.run status`: asked while stages are computed, after a driver's death, and when nothing runs. It writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_process import SMALL_SWEEP, compute, graph_of
from test_gc import contents

from sweep import run
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.report.remaining import remaining, seconds_left
from sweep.stages.plan import Plan
from sweep.store.artifacts import Store
from sweep.store.processes import this_process


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def tracker(new_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "all_pairs/miniature")


def begin(tracker: Tracker, store: Store, stages) -> SweepRun:
    sweep_run = SweepRun(tracker, stages[-1].key, f"all_pairs miniature {stages[-1].key[:8]}", {})
    sweep_run.log_plan(Plan.of(str(store), stages))
    return sweep_run


def test_with_nothing_running_it_says_what_finished_last_and_touches_nothing(two_sweeps, monkeypatch, capsys):
    monkeypatch.chdir(two_sweeps)
    before = contents(two_sweeps)
    assert run.main(["status"]) == 0
    told = capsys.readouterr().out
    assert told.count("FINISHED") == 2 and "No sweep runs. all_pairs miniature" in told and "finished last" in told
    assert "Nobody is at work in" in told
    assert contents(two_sweeps) == before


@pytest.mark.parametrize("place", ["directory", "bucket"])
def test_of_a_running_sweep_it_tells_what_is_done_left_and_worked_on(place, request, tracker, tmp_path, monkeypatch, capsys):
    url = request.getfixturevalue("bucket") if place == "bucket" else str(tmp_path / "elsewhere")
    store = Store(url, str(tmp_path / "cache"))
    graph = graph_of(store, *SMALL_SWEEP)
    vector = graph.task_vector(graph.config.pairs[0].source)
    stages = [stage for stage in graph.stages if stage.key in {s.key for s in (*vector.model.inputs, *vector.model.pictures[0].shards)}]
    stages += [vector.model, vector]
    sweep_run = begin(tracker, store, stages)
    try:
        compute(store, *vector.model.inputs)
        told = []
        train = type(vector.model).compute

        def train_and_ask(stage, store, directory):
            with store.checkpoint(stage.key) as checkpoint:
                checkpoint.save({"step": 1})
            before = contents(tmp_path)
            assert run.main(["status"]) == 0  # the running sweep's plan names the store
            told.append(capsys.readouterr().out)
            assert contents(tmp_path) == before
            checkpoint.remove()
            return train(stage, store, directory)

        monkeypatch.setattr(type(vector.model), "compute", train_and_ask)
        vector.model.publish(store)
    finally:
        sweep_run.finish("KILLED")
        sweep_run._resign()
    (during,) = told
    rows = {line.split()[0]: line.split()[1:4] for line in during.splitlines() if line[:2] == "  " and line.split()[1].isdecimal()}
    assert rows["picture_shard"] == ["3", "3", "0"] and rows["finetune"] == ["0", "1", "1"] and rows["vector"] == ["0", "1", "1"]
    assert rows["all"] == [str(len(stages) - 2), str(len(stages)), "2"]
    at_work = next(line for line in during.splitlines() if f"finetune {vector.model.key[:12]}" in line)
    pid = this_process().split(":")[1]
    assert f"process {pid} on" in at_work and "which lives" in at_work and "since " in at_work and "checkpoint of" in at_work
    assert "of which none is finished" in during and "finetune, vector" in during
    assert run.main(["status", "--store", url]) == 0
    after = capsys.readouterr().out
    assert "KILLED" in after and "No sweep runs." in after and "Nobody is at work" in after


def test_a_dead_drivers_sweep_is_told_as_dead(tracker, tmp_path, capsys):
    store = Store("sweep_store")
    graph = graph_of(store, *SMALL_SWEEP)
    sweep_run = begin(tracker, store, [graph.head("clean_digits")])
    host, pid, started = sweep_run._driver.rsplit(":", 2)
    try:
        tracker.client.set_tag(sweep_run.run_id, "driver", f"{host}:{pid}:{float(started) - 3600:.2f}")
        assert run.main(["status"]) == 0
    finally:
        tracker.client.set_tag(sweep_run.run_id, "driver", sweep_run._driver)
        sweep_run.finish("KILLED")
        sweep_run._resign()
    told = capsys.readouterr().out
    assert "which is dead" in told and "Its process is dead: give its command again" in told and "No estimate" in told


def test_a_sweep_of_another_store_and_one_without_a_plan_are_told_as_such(tracker, tmp_path, capsys):
    sweep_run = SweepRun(tracker, "a" * 40, "one without a plan", {})
    try:
        assert run.main(["status"]) == 0
        assert "It did not say what it will compute" in capsys.readouterr().out
        sweep_run.log_plan(Plan("s3://elsewhere/sweep", {}, {}))
        assert run.main(["status", "--store", str(tmp_path)]) == 0
        assert "It works in s3://elsewhere/sweep" in capsys.readouterr().out
    finally:
        sweep_run.finish("KILLED")
        sweep_run._resign()


def test_without_a_database_it_is_refused_and_none_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["status"]) == 2
    assert "run this where sweeps are run, or give their --tracking-uri" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_estimate_is_what_is_left_at_the_rate_so_far():
    """Four of ten stages of 10 s done in 20 s by two workers at once, and of another kind none: six are 60 s of work, 30 s of time."""
    stages = {"a": {str(n): "" for n in range(10)}, "b": {"x": "", "y": ""}}
    manifests = {str(n): {"seconds": 10.0, "started": 100.0 + 10 * (n // 2)} for n in range(4)}
    left = remaining(stages, manifests)
    assert [(kind.num_done, kind.num_left, kind.mean_s) for kind in left] == [(4, 6, 10.0), (0, 2, None)]
    assert seconds_left(left, manifests, since=100.0, now=120.0) == pytest.approx(30.0)
    assert seconds_left(left, manifests, since=200.0, now=220.0) is None
