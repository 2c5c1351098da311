"""The MLflow record, against real MLflow on SQLite; drivers that die are real processes that are really killed."""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.utils import validation

from sweep.record import tracking
from sweep.record.tracking import SweepRun, Tracker, TrackingError
from sweep.store.credentials import without_credentials
from sweep.store.processes import is_alive_here, this_process

SWEEP_KEY = "0123456789abcdef"
EXPERIMENT = "all_pairs/miniature"
Start = Callable[..., SweepRun]


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests to copy: creating one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "unused").check()
    return path


@pytest.fixture
def tracker(new_database: Path, tmp_path: Path) -> Tracker:
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", EXPERIMENT)


@pytest.fixture
def start(tracker: Tracker) -> Iterator[Start]:
    """Start sweeps whose watchdogs end with the test."""
    started = []

    def start_sweep(sweep_key: str = SWEEP_KEY, **params: Any) -> SweepRun:
        started.append(tracker.start_sweep(sweep_key, f"all_pairs miniature {sweep_key[:8]}", params, {"suite": "miniature"}))
        return started[-1]

    yield start_sweep
    for sweep_run in started:
        sweep_run.finish("KILLED")


def log_pair(sweep_run: SweepRun, artifact_key: str = "a" * 40, **changes: Any) -> None:
    values: dict[str, Any] = {
        "stage": "pair",
        "name": "pair cars to scenes",
        "params": {"source_domain": "cars", "target_domain": "scenes", "alpha": 0.5, "lambda1": 1.0, "lambda2": 0.8},
        "metrics": {"accuracy": 0.75, "e_rmse": 0.5},
        "tags": {"constraint_met": "True"},
        "started_s": 1_700_000_000.25,
        "seconds": 12.5,
    }
    sweep_run.log_stage(artifact_key=artifact_key, **{**values, **changes})


def children(tracker: Tracker) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], "tags.stage != 'sweep'"))


def parents(tracker: Tracker) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], "tags.stage = 'sweep'"))


def status(tracker: Tracker, sweep_run: SweepRun) -> str:
    return tracker.client.get_run(sweep_run.run_id).info.status


# ---------------------------------------------------------------- what is logged


def test_a_stage_becomes_a_finished_child_with_its_own_times(tracker: Tracker, start: Start, tmp_path: Path) -> None:
    vector = tmp_path / "explainability_vector.safetensors"
    vector.write_bytes(b"weights")
    sweep_run = start()

    log_pair(sweep_run, artifacts=[(vector, "vectors")], curves={"loss": [(0, 2.0), (10, 1.0)]})

    (child,) = children(tracker)
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "pair cars to scenes"
    assert (child.info.start_time, child.info.end_time) == (1_700_000_000_250, 1_700_000_012_750)
    expected = {"source_domain": "cars", "target_domain": "scenes", "alpha": "0.5", "lambda1": "1.0", "lambda2": "0.8"}
    assert child.data.params == expected
    assert child.data.metrics == {"accuracy": 0.75, "e_rmse": 0.5, "loss": 1.0}
    assert [(p.step, p.value) for p in tracker.client.get_metric_history(child.info.run_id, "loss")] == [(0, 2.0), (10, 1.0)]
    tags = {"stage": "pair", "artifact_key": "a" * 40, "mlflow.parentRunId": sweep_run.run_id, "constraint_met": "True"}
    assert tags.items() <= child.data.tags.items()
    (file,) = tracker.client.list_artifacts(child.info.run_id, "vectors")
    assert (file.path, file.file_size) == ("vectors/explainability_vector.safetensors", 7)


def test_the_parent_holds_the_sweeps_params_metrics_tables_and_files(tracker: Tracker, start: Start, tmp_path: Path) -> None:
    cells = pd.DataFrame({"source_domain": ["cars", "scenes"], "e_rmse": [0.5, math.nan], "is_chosen": [True, False]})
    (tmp_path / "result" / "figures").mkdir(parents=True)
    (tmp_path / "result" / "figures" / "figure2.png").write_bytes(b"png")
    sweep_run = start(alphas=[0.0, 0.5], base="miniature")

    sweep_run.log_metrics({"mean_correlation": 0.25, "num_cells": 2})
    sweep_run.log_table("cells", cells)
    sweep_run.log_artifacts(tmp_path / "result")
    sweep_run.finish()

    (parent,) = parents(tracker)
    assert parent.info.run_name == "all_pairs miniature 01234567"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"alphas": "[0.0, 0.5]", "base": "miniature"}
    assert parent.data.metrics == {"mean_correlation": 0.25, "num_cells": 2.0}
    assert {"sweep_key": SWEEP_KEY, "stage": "sweep", "suite": "miniature"}.items() <= parent.data.tags.items()
    fetched = tracker.client.download_artifacts(parent.info.run_id, "cells.parquet", str(tmp_path))
    pd.testing.assert_frame_equal(pd.read_parquet(fetched), cells)
    assert [file.path for file in tracker.client.list_artifacts(parent.info.run_id, "figures")] == ["figures/figure2.png"]


def test_metrics_without_a_value_are_left_out(tracker: Tracker, start: Start) -> None:
    log_pair(start(), metrics={"accuracy": 0.5, "e_rmse": math.nan, "iou_at_1": None, "infidelity": math.inf})
    assert children(tracker)[0].data.metrics == {"accuracy": 0.5}


def test_more_params_and_metrics_than_one_request_takes_are_all_logged(tracker: Tracker, start: Start) -> None:
    params = {f"recipe.{i}": i for i in range(150)}
    log_pair(start(), params=params, curves={"loss": [(step, 1.0) for step in range(2500)]})
    (child,) = children(tracker)
    assert len(child.data.params) == 150
    assert len(tracker.client.get_metric_history(child.info.run_id, "loss")) == 2500


def test_overlong_params_are_shortened_and_stay_distinct(tracker: Tracker, start: Start) -> None:
    long = "x" * 10_000
    log_pair(start(), params={"first": long + "1", "second": long + "2"}, tags={"note": long})
    (child,) = children(tracker)
    first, second = child.data.params["first"], child.data.params["second"]
    assert first != second
    assert len(first) <= validation.MAX_PARAM_VAL_LENGTH
    assert "10001 characters" in first
    assert (tracking.MAX_PARAM_LENGTH, tracking.MAX_TAG_LENGTH) == (validation.MAX_PARAM_VAL_LENGTH, validation.MAX_TAG_VAL_LENGTH)


# ---------------------------------------------------------------- once


def test_an_artifact_is_logged_once_over_all_sweeps_of_an_experiment(tracker: Tracker, start: Start) -> None:
    first = start()
    log_pair(first)
    log_pair(first)
    first.finish()
    second = start("another sweep")
    assert second.is_logged("a" * 40)
    log_pair(second)
    assert [child.data.tags["mlflow.parentRunId"] for child in children(tracker)] == [first.run_id]


def test_a_child_that_was_cut_off_is_replaced(tracker: Tracker, start: Start) -> None:
    sweep_run = start()
    tags = {"stage": "pair", "artifact_key": "a" * 40, "mlflow.parentRunId": sweep_run.run_id}
    cut_off = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    sweep_run.finish("KILLED")
    assert tracker.client.get_run(cut_off).info.status == "KILLED"

    again = start()
    assert not again.is_logged("a" * 40)
    log_pair(again)
    assert [child.info.status for child in children(tracker)] == ["FINISHED"]


def test_a_stopped_sweep_continues_in_the_same_run(tracker: Tracker, start: Start) -> None:
    first = start(device="cpu")
    first.finish("KILLED")
    assert status(tracker, first) == "KILLED"

    second = start(device="cuda", search="grid")
    assert second.run_id == first.run_id
    assert not second.already_finished
    assert status(tracker, second) == "RUNNING"
    assert parents(tracker)[0].data.params == {"device": "cpu", "search": "grid"}
    second.finish()
    assert status(tracker, second) == "FINISHED"


def test_a_finished_sweep_is_final(tracker: Tracker, start: Start) -> None:
    start().finish()
    again = start()
    assert again.already_finished
    log_pair(again)
    again.log_metrics({"mean_correlation": 1.0})
    again.finish("FAILED")
    (parent,) = parents(tracker)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {}
    assert children(tracker) == []


# ---------------------------------------------------------------- two drivers


@pytest.fixture
def other_driver() -> str:
    """The name of a process that lives on this host and is not this one."""
    process = psutil.Process(os.getppid())
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def test_a_process_is_alive_only_as_itself() -> None:
    host, pid, started = this_process().rsplit(":", 2)
    assert is_alive_here(this_process())
    assert not is_alive_here(f"{host}:{pid}:{float(started) - 60}")
    assert not is_alive_here(f"another-host:{pid}:{started}")
    assert not is_alive_here("")


def test_a_second_driver_leaves_a_living_drivers_run_alone(tracker: Tracker, start: Start, other_driver: str) -> None:
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    theirs = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    second = start()
    assert second.run_id == theirs
    assert second.is_logged("a" * 40)
    log_pair(second)
    second.finish("FAILED")
    assert children(tracker) == []
    assert tracker.client.get_run(theirs).info.status == "RUNNING"
    assert tracker.client.get_run(theirs).data.tags["driver"] == other_driver


def test_a_second_driver_takes_over_when_the_first_has_died_meanwhile(tracker: Tracker, start: Start, other_driver: str) -> None:
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    theirs = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    second = start()
    tracker.client.set_tag(theirs, "driver", f"{socket.gethostname()}:{2**22 + 1}:1.00")
    log_pair(second)
    second.finish()
    assert len(children(tracker)) == 1
    assert tracker.client.get_run(theirs).info.status == "FINISHED"


def test_a_driver_that_was_taken_over_does_not_mark_the_run(tracker: Tracker, start: Start, other_driver: str) -> None:
    first = start()
    tracker.client.set_tag(first.run_id, "driver", other_driver)
    first.finish("FAILED")
    assert status(tracker, first) == "RUNNING"


def test_drivers_that_start_at_the_same_moment_keep_one_run(tracker: Tracker, start: Start, other_driver: str) -> None:
    second = start()
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    older = tracker.client.create_run(tracker.experiment_id, start_time=1000, tags=tags).info.run_id
    log_pair(second)
    second.finish()
    assert [parent.info.run_id for parent in parents(tracker)] == [older]
    assert children(tracker) == []


# ---------------------------------------------------------------- ways of ending

DRIVER = """
import os, signal, sys, time
from sweep.record.tracking import Tracker
signal.signal(signal.SIGINT, signal.SIG_IGN)
tracker = Tracker(sys.argv[1], sys.argv[2])
run = tracker.start_sweep(sys.argv[3], "all_pairs miniature", {})
tracker.client.create_run(tracker.experiment_id, tags={"stage": "pair", "mlflow.parentRunId": run.run_id})
detached, detach = os.pipe()
forked = os.fork() if sys.argv[4] == "forking" else None
if forked == 0:
    os.setsid()
    os.write(detach, b".")  # before this the group's signals reach it
    time.sleep(300)
    os._exit(0)
if forked:
    os.read(detached, 1)
print(forked or 0, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["plain", "forking"])
def test_nothing_stays_running_after_kill_9(tracker: Tracker, kind: str) -> None:
    """Under "forking" a child without exec outlives the driver and keeps the pipe to the watchdog open."""
    tracker.check()
    command = [sys.executable, "-c", DRIVER, tracker.uri, EXPERIMENT, SWEEP_KEY, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        assert driver.stdout is not None
        forked = int(driver.stdout.readline())
        try:
            # The whole process group, as a terminal's Ctrl-C or a batch system does it.
            os.killpg(driver.pid, signal.SIGINT)
            assert {run.info.status for run in parents(tracker) + children(tracker)} == {"RUNNING"}
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            wait_for(lambda: {run.info.status for run in parents(tracker) + children(tracker)} == {"KILLED"}, timeout_s=60)
        finally:
            if forked:
                os.kill(forked, signal.SIGKILL)


def test_a_sweep_killed_while_it_starts_does_not_stay_running(tracker: Tracker) -> None:
    tracker.check()
    code = "from sweep.record.tracking import SweepRun\nSweepRun._take_over = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    driver = DRIVER.replace("tracker = ", code + "tracker = ", 1)
    ended = subprocess.run([sys.executable, "-c", driver, tracker.uri, EXPERIMENT, SWEEP_KEY, "plain"])
    assert ended.returncode == -signal.SIGKILL
    wait_for(lambda: [run.info.status for run in parents(tracker)] == ["KILLED"], timeout_s=60)


def test_the_watchdog_ends_with_the_run(start: Start) -> None:
    before = set(psutil.Process().children())
    sweep_run = start()
    (watchdog,) = set(psutil.Process().children()) - before
    assert watchdog.memory_info().rss < 50_000_000  # no MLflow in it: that takes 150 MB
    sweep_run.finish()
    assert not watchdog.is_running()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


# ---------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:5000/path", "https://host:5000/path"),
        ("https://secret@host/path", "https://host/path"),
        ("postgresql+psycopg://user:s%40cret@host/db?password=secret", "postgresql+psycopg://host/db"),
        ("s3://AKIA:se/cr+et@bucket/key", "s3://bucket/key"),
        ("s3://AKIA:se@cr/et@bucket/key", "s3://bucket/key"),
        ("s3://bucket/key?X-Amz-Signature=secret#secret", "s3://bucket/key"),
        ("hf://datasets/tanganke/dtd@main/data", "hf://datasets/tanganke/dtd@main/data"),
        ("http://[::1]:5000/path", "http://[::1]:5000/path"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("data/cars", "data/cars"),
    ],
)
def test_credentials_are_taken_out_of_urls(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_no_credential_reaches_a_param_or_tag(tracker: Tracker, start: Start) -> None:
    url = "s3://AKIA:secret@bucket/cars?token=secret"
    sweep_run = start(domains=[url, "data/scenes"], note=f"reads {url} first", places={"store": f"simplecache::{url}"})
    log_pair(sweep_run, params={"source": url}, tags={"store": url})
    (parent,), (child,) = parents(tracker), children(tracker)
    assert "secret" not in f"{parent.data} {child.data}"
    assert parent.data.params["domains"] == "[s3://bucket/cars, data/scenes]"
    assert child.data.tags["store"] == "s3://bucket/cars"


# ---------------------------------------------------------------- stores


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("http://user:secret@127.0.0.1:{port}", "Start the server"),
        ("postgresql://user:secret@127.0.0.1:{port}/mlflow", "Start the database"),
        ("sqlite:///{directory}/not_a_database.txt", "writable directory"),
        ("sqlite:///{directory}", "writable directory"),
        ("sqlite:///{directory}/not_a_database.txt/mlflow.db", "writable directory"),
        ("{directory}/mlruns", "sqlite:///FILE.db"),
        ("nonsense://user:secret@place", "sqlite:///FILE.db"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_in_seconds(uri: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / "not_a_database.txt").write_text("just text, and long enough that it has a header " * 100)
    started = time.monotonic()
    with pytest.raises(TrackingError, match=fix) as refusal:
        Tracker(uri.format(directory=tmp_path, port=free_port()), EXPERIMENT).check()
    assert time.monotonic() - started < 15
    assert "secret" not in str(refusal.value)


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(tracker: Tracker) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore --experiment-id {tracker.experiment_id}"):
        Tracker(tracker.uri, EXPERIMENT).check()


def test_a_store_that_breaks_during_a_sweep_is_reported(tracker: Tracker, start: Start, tmp_path: Path) -> None:
    sweep_run = start()
    (tmp_path / "mlflow.db").write_text("gone")
    with pytest.raises(TrackingError, match="file is not a database"):
        sweep_run.log_metrics({"num_cells": 1})
    sweep_run.finish("FAILED")
    sweep_run._resign()


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, sweep.record.tracking; sys.exit('mlflow' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_drivers_create_one_quiet_database(tmp_path: Path) -> None:
    directory = tmp_path / "with space"
    directory.mkdir()
    code = (
        f"from sweep.record.tracking import Tracker; t = Tracker(None, {EXPERIMENT!r}); t.check(); "
        "print(t.experiment_id, t.review_command())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": directory, "env": environment}
    drivers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    outputs = [driver.communicate(timeout=120) for driver in drivers]
    command = f"{shown_mlflow()} ui"
    assert outputs == [(f"1 {command}\n", "")] * 2
    assert [path.name for path in directory.iterdir()] == ["mlflow.db"]
    assert [path.name for path in tmp_path.iterdir()] == ["with space"]


def shown_mlflow() -> str:
    beside = Path(sys.executable).parent / "mlflow"
    return "mlflow" if shutil.which("mlflow") == str(beside) else str(beside)


def test_the_review_command_opens_the_store_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_database: Path) -> None:
    monkeypatch.chdir(tmp_path)
    ui = f"{shown_mlflow()} ui"
    assert Tracker(None, EXPERIMENT).review_command() == ui
    assert Tracker(None, EXPERIMENT).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert Tracker("sqlite:///a b.db", EXPERIMENT).review_command() == f"{ui} --backend-store-uri 'sqlite:///{tmp_path}/a b.db'"
    assert Tracker("https://me:secret@host:5000", EXPERIMENT).review_command() == "https://host:5000"
    database = "postgresql://me:secret@host/mlflow"
    assert Tracker(database, EXPERIMENT).review_command() == f"{ui} --backend-store-uri postgresql://USER:PASSWORD@host/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new_database}")
    assert Tracker(None, EXPERIMENT).review_command() == f"{ui} --backend-store-uri sqlite:///{new_database}"


def test_a_bare_mlflow_ui_shows_runs_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_database: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    tracker = Tracker(None, EXPERIMENT)
    sweep_run = tracker.start_sweep(SWEEP_KEY, "all_pairs miniature", {})
    (tmp_path / "report.html").write_text("<h1>the report</h1>")
    sweep_run.log_artifact(tmp_path / "report.html")
    sweep_run.finish()

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    # Without its job workers, which this test has no use for, the server starts in half the time.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(command, env=environment, **quiet) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(f"{address}/health"), timeout_s=120)
            over_http = MlflowClient(address)
            experiment = over_http.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None
            (run,) = over_http.search_runs([experiment.experiment_id])
            assert run.info.run_id == sweep_run.run_id
            shown = urllib.request.urlopen(f"{address}/get-artifact?path=report.html&run_uuid={run.info.run_id}").read()
            assert shown == b"<h1>the report</h1>"
            log_a_sweep_to_a_server(address, tmp_path)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def log_a_sweep_to_a_server(address: str, directory: Path) -> None:
    tracker = Tracker(address, "all_pairs/paper")
    sweep_run = tracker.start_sweep("over http", "all_pairs paper", {"alpha": 0.5})
    log_pair(sweep_run, artifacts=[(directory / "report.html", "files")])
    sweep_run.finish()
    (child,) = children(tracker)
    assert child.info.status == "FINISHED"
    assert [file.path for file in tracker.client.list_artifacts(child.info.run_id, "files")] == ["files/report.html"]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False
