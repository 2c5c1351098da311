"""`python -m sweep.run gc`: what is referred to stays, what a running sweep may use stays, what is doubtful is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from in_process import SMALL_SWEEP, compute, engines_here, graph_of
from mlflow import MlflowClient
from patience import PATIENCE_S
from small_artifact import KEY, put

from sweep import run
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.stages.plan import Plan
from sweep.stages.stage import closure
from sweep.store.artifacts import Store
from sweep.store.leases import Leases
from sweep.store.processes import LEFT_BEHIND_S

OTHER, THIRD = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def copy(two_sweeps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two sweeps, to be changed."""
    shutil.copytree(two_sweeps / "sweep_store", tmp_path / "sweep_store")
    shutil.copyfile(two_sweeps / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tracker(new_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """An MLflow store without runs."""
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "all_pairs/miniature")


@pytest.fixture
def begun(tracker: Tracker) -> Iterator[SweepRun]:
    """A sweep that runs, of the small artifact."""
    sweep_run = SweepRun(tracker, KEY, "all_pairs miniature small", {})
    yield sweep_run
    sweep_run.finish("KILLED")
    sweep_run._resign()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def client(directory: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{directory}/mlflow.db")


def forget_second_sweep(directory: Path) -> str:
    """Delete its runs in MLflow; gives the key of the sweep that is left."""
    mlflow = client(directory)
    experiment = mlflow.get_experiment_by_name("all_pairs/miniature").experiment_id
    runs = mlflow.search_runs([experiment])
    parents = sorted((r for r in runs if r.data.tags["stage"] == "sweep"), key=lambda r: r.info.start_time)
    for found in runs:
        if parents[1].info.run_id in (found.info.run_id, found.data.tags.get("mlflow.parentRunId")):
            mlflow.delete_run(found.info.run_id)
    return parents[0].data.tags["sweep_key"]


def test_what_sweeps_refer_to_is_not_listed_and_nothing_is_changed(copy, capsys):
    before = contents(copy)
    assert run.main(["gc"]) == 0
    told = capsys.readouterr().out
    assert "Nothing to collect" in told and told.count("(run ") == 2
    assert run.main(["gc", "--delete"]) == 0
    assert "Removed" not in capsys.readouterr().out
    assert contents(copy) == before


def test_only_what_a_forgotten_sweep_had_alone_goes_and_the_other_is_whole(copy, capsys, monkeypatch):
    kept = forget_second_sweep(copy)
    store = Store("sweep_store")
    before, at_first = contents(copy), store.manifests()
    assert run.main(["gc"]) == 0
    told = capsys.readouterr().out
    assert "Nothing was removed: --delete removes it." in told and "5 artifacts, " in told and "pair" in told
    assert contents(copy) == before
    assert run.main(["gc", "--delete"]) == 0
    assert "Removed: " in capsys.readouterr().out
    gone = [at_first[key]["stage"] for key in at_first.keys() - set(store.keys())]
    # What follows from the number of trials; models, labels and references are shared.
    assert sorted(gone) == ["examples", "examples", "pair", "pair", "result"]
    left = store.keys()
    for key in left:
        store.verify(key)
    assert kept in left and not list((copy / "sweep_store" / "in_progress").iterdir())
    here = engines_here(monkeypatch)
    assert run.main(["all_pairs", *SMALL_SWEEP, "--num-trials", "5"]) == 0
    assert here.works == []


def test_what_a_running_sweep_plans_or_may_have_made_stays(tracker, capsys, monkeypatch):
    store = Store("sweep_store")
    put(store, KEY), put(store, OTHER)
    time.sleep(0.05)
    sweep_run = SweepRun(tracker, "c" * 40, "a running sweep", {})
    sweep_run.log_plan(Plan(str(store), {"stage": 1}, {"stage": {KEY: "small"}}))
    put(store, THIRD)
    try:
        assert run.main(["gc", "--delete"]) == 0
        told = capsys.readouterr().out
        assert set(store.keys()) == {KEY, THIRD} and "as it runs" in told and "1 more are left out, too young or in use" in told
    finally:
        sweep_run.finish("FAILED")
    # It has failed: what it plans is still kept, for it may be continued, and nothing else.
    assert run.main(["gc", "--delete"]) == 0
    assert store.keys() == [KEY]


def test_a_running_sweep_that_has_not_said_what_it_uses_stops_the_removal(begun, capsys):
    store = Store("sweep_store")
    put(store, KEY)
    old = dict(store.open(KEY).manifest)
    shutil.copytree(f"sweep_store/artifacts/{KEY[:2]}/{KEY}", f"sweep_store/artifacts/{OTHER[:2]}/{OTHER}")
    manifest = Path(f"sweep_store/artifacts/{OTHER[:2]}/{OTHER}/manifest.json")
    manifest.write_text(manifest.read_text().replace(KEY, OTHER).replace(str(old["created"]), "1000.0"))
    assert run.main(["gc", "--delete"]) == 2
    assert "has not said what it will use" in capsys.readouterr().err and set(store.keys()) == {KEY, OTHER}


def test_somebody_at_work_of_whom_mlflow_knows_nothing_stops_the_removal(copy, capsys):
    forget_second_sweep(copy)
    with Leases(Store("sweep_store")._files.fs, str(copy / "sweep_store" / "leases")).claim(THIRD) as is_mine:
        assert is_mine
        assert run.main(["gc", "--delete"]) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on" in error and "nothing is removed" in error and "--tracking-uri" in error


def test_what_a_killed_process_left_goes(copy, capsys):
    """A training that dies by SIGKILL with its lease and a directory half filled; its checkpoint goes once it is a day old."""
    program = f"""
import time
from pathlib import Path
from small_artifact import put
from sweep.store.artifacts import Store
store = Store("sweep_store")
def compute(directory):
    (directory / "half.txt").write_text("half")
    store.checkpoint("{THIRD}").save({{"step": 1}})
    print("begun", flush=True)
    time.sleep({PATIENCE_S})
store.get_or_compute("{THIRD}", stage="finetune", params={{}}, inputs=[], compute=compute)
"""
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    assert process.stdout.readline() == b"begun\n"
    assert run.main(["gc"]) == 0  # while it lives nothing of it is listed
    assert "by the dead" not in capsys.readouterr().out
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    process.stdout.close()
    assert not psutil.pid_exists(process.pid)
    assert run.main(["gc"]) == 0
    told = capsys.readouterr().out
    assert "left by the dead, 1 lease: " in told and "left by the dead, 1 unfinished path: " in told and "checkpoint" not in told
    assert (copy / "sweep_store" / "leases" / THIRD).exists()
    checkpoint = copy / "sweep_store" / "checkpoints" / f"{THIRD}.pt"
    old = time.time() - LEFT_BEHIND_S - 60
    os.utime(checkpoint, (old, old))
    assert run.main(["gc", "--delete"]) == 0
    assert "left by the dead, 1 checkpoint: " in capsys.readouterr().out
    assert not checkpoint.exists() and not list((copy / "sweep_store" / "leases").iterdir())
    assert not list((copy / "sweep_store" / "in_progress").iterdir())


def test_the_checkpoint_of_a_training_that_a_stopped_sweep_plans_stays(tracker, capsys):
    store = Store("sweep_store")
    put(store, KEY)
    sweep_run = SweepRun(tracker, "c" * 40, "a stopped sweep", {})
    sweep_run.log_plan(Plan(str(store), {}, {"finetune": {KEY: "done", THIRD: "half"}}))
    sweep_run.finish("KILLED")
    old = time.time() - LEFT_BEHIND_S - 60
    for name in (THIRD, OTHER):
        store.checkpoint(name).save({"step": 1})
        os.utime(f"sweep_store/checkpoints/{name}.pt", (old, old))
    assert run.main(["gc", "--delete"]) == 0
    assert set(store.checkpoints()) == {THIRD}


def test_without_the_database_of_its_sweeps_nothing_is_collected(copy, new_database, capsys):
    before = contents(copy / "sweep_store")
    assert run.main(["gc", "--delete", "--tracking-uri", f"sqlite:///{copy}/elsewhere.db"]) == 2
    assert "there is no MLflow database" in capsys.readouterr().err and not (copy / "elsewhere.db").exists()
    shutil.copyfile(new_database, copy / "other.db")
    assert run.main(["gc", "--delete", "--tracking-uri", f"sqlite:///{copy}/other.db"]) == 2
    assert "give the --tracking-uri that its sweeps were recorded with" in capsys.readouterr().err
    assert contents(copy / "sweep_store") == before


def test_of_a_bucket_what_is_not_referred_to_goes_and_the_chain_stays(bucket, tracker, tmp_path, capsys):
    store = Store(bucket, str(tmp_path / "cache"))
    graph = graph_of(store, *SMALL_SWEEP)
    vector = graph.task_vector(graph.config.pairs[0].source)
    compute(store, vector)
    put(store, OTHER)
    sweep_run = SweepRun(tracker, "c" * 40, "a stopped sweep", {})
    sweep_run.log_plan(Plan(str(store), {}, {"vector": {vector.key: vector.name}}))
    sweep_run.finish("KILLED")
    assert run.main(["gc", "--store", bucket]) == 0
    told = capsys.readouterr().out
    assert "1 artifact, 15 bytes" in told and "Nothing was removed" in told and store.exists(OTHER)
    assert run.main(["gc", "--store", bucket, "--delete"]) == 0
    store = Store(bucket, str(tmp_path / "another cache"))
    left = store.keys()
    assert set(left) == {stage.key for stage in closure([vector])} | set(store.keys("base"))
    for key in left:
        store.verify(key)
    assert store._files.listing(f"artifacts/{OTHER[:2]}/{OTHER}") == {}
