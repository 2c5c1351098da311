"""A sweep that records over HTTP: what the UI's server shows of it, and what happens when the server dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow_runs import EXPERIMENT, SWEEP_KEY, WEIGHTS, Vector, children, free_port, names, parents, published
from patience import wait_for

from sweep.record.recorder import Recorder
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker, TrackingError
from sweep.store.artifacts import Store

Serve = Callable[[], "subprocess.Popen[bytes]"]


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=2).status == 200)
    except OSError:
        return False


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serve(port: int, tmp_path: Path, tracker: Tracker) -> Iterator[Serve]:
    """Starts `mlflow ui` in a directory with a database, as a reviewer does."""
    servers = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
        # Without its job workers, which this test has no use for, the server starts in half the time.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **quiet)
        servers.append(server)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        return server

    yield start
    for server in servers:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def shown(port: int, run_id: str, path: str) -> bytes:
    """What the server shows of a run's artifact."""
    return bytes(urllib.request.urlopen(f"http://127.0.0.1:{port}/get-artifact?path={path}&run_uuid={run_id}").read())


def test_a_bare_mlflow_ui_shows_what_was_recorded_by_default(
    serve: Serve, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("<h1>the report</h1>")
    sweep_run = SweepRun(Tracker(None, EXPERIMENT), SWEEP_KEY, "all_pairs miniature", {})
    with Recorder(sweep_run, store) as recorder:
        recorder.on_finished(published(store, Vector("cars"))[0])
        recorder.finish(files={"report.html": tmp_path / "report.html"}, tables={}, metrics={}, note="")
    serve()
    over_http = Tracker(f"http://127.0.0.1:{port}", EXPERIMENT)
    (parent,), (child,) = parents(over_http), children(over_http)
    assert parent.info.run_id == sweep_run.run_id
    assert shown(port, parent.info.run_id, "report.html") == b"<h1>the report</h1>"
    assert shown(port, child.info.run_id, "vectors/explainability_vector.safetensors") == WEIGHTS


def test_a_server_that_dies_in_the_middle_costs_no_result_and_the_next_run_completes_the_record(
    serve: Serve, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    store = Store(str(tmp_path / "store"))
    stages = published(store, Vector("cars"), Vector("scenes"), Vector("textures"))
    (tmp_path / "report.html").write_text("<h1>the report</h1>")
    whole = {
        "files": {"report.html": tmp_path / "report.html"},
        "tables": {"cells": pd.DataFrame({"e_rmse": [0.5]})},
        "metrics": {"mean_correlation": 0.25},
        "note": "# The best pairs",
    }
    address = f"http://127.0.0.1:{port}"
    server = serve()
    tracker = Tracker(address, "all_pairs/paper")
    first = SweepRun(tracker, SWEEP_KEY, "all_pairs paper", {"alpha": 0.5})
    with Recorder(first, store) as recorder:
        recorder.on_finished(stages[0])
        recorder.flush()
        end(server)
        for stage in stages:
            recorder.on_finished(stage)
        started = time.monotonic()
        with pytest.raises(TrackingError, match="Start the server.*the same command logs what is missing"):
            recorder.finish(**whole)
        assert time.monotonic() - started < 60
    first.finish("FAILED")
    first._resign()

    serve()
    assert names(tracker) == ["cars alpha=0.5"]
    second = SweepRun(Tracker(address, "all_pairs/paper"), SWEEP_KEY, "all_pairs paper", {"alpha": 0.5})
    with Recorder(second, store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        recorder.finish(**whole)
    assert second.run_id == first.run_id
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5", "textures alpha=0.5"]
    assert tracker.client.get_run(second.run_id).info.status == "FINISHED"
    assert shown(port, second.run_id, "report.html") == b"<h1>the report</h1>"
    assert shown(port, children(tracker)[0].info.run_id, "vectors/explainability_vector.safetensors") == WEIGHTS
