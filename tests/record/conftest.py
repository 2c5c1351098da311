"""MLflow on SQLite for the tests of the record, and a store of artifacts."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow_runs import EXPERIMENT, SWEEP_KEY, Start

from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.store.artifacts import Store


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tracker(new_database: Path, tmp_path: Path) -> Tracker:
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", EXPERIMENT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def start(tracker: Tracker) -> Iterator[Start]:
    """Start sweeps whose watchdogs end with the test."""
    started = []

    def start_sweep(sweep_key: str = SWEEP_KEY, note: str = "", **params: Any) -> SweepRun:
        started.append(SweepRun(tracker, sweep_key, f"all_pairs miniature {sweep_key[:8]}", params, {"suite": "miniature"}, note))
        return started[-1]

    yield start_sweep
    for sweep_run in started:
        sweep_run.finish("KILLED")
        sweep_run._resign()


@pytest.fixture
def other_driver() -> str:
    """The name of a process that lives on this host and is not this one."""
    process = psutil.Process(os.getppid())
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"
