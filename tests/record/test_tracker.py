"""Stores that can be used and stores that cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_runs import EXPERIMENT, Start, free_port
from patience import PATIENCE_S

from sweep.record.tracker import KIND, KIND_TAG, Tracker, TrackingError


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


def test_an_experiment_is_of_the_kind_that_the_ui_opens_as_model_training(tracker: Tracker) -> None:
    assert tracker.client.get_experiment(tracker.experiment_id).tags[KIND_TAG] == "custom_model_development"


@pytest.mark.parametrize(("found", "then"), [(None, KIND), ("genai_development_inferred", KIND), ("regression", "regression")])
def test_an_older_experiment_gets_its_kind_unless_somebody_chose_one(tracker: Tracker, found: str | None, then: str) -> None:
    client = MlflowClient(tracker.uri)
    older = client.create_experiment("older", tags={KIND_TAG: found} if found else {})
    Tracker(tracker.uri, "older").check()
    assert client.get_experiment(older).tags[KIND_TAG] == then


def test_the_page_of_a_run_is_on_the_side_of_model_training(tracker: Tracker, start: Start) -> None:
    sweep_run = start()
    path = f"/#/experiments/{tracker.experiment_id}/runs/{sweep_run.run_id}?workflowType=machine_learning"
    assert sweep_run.page == f"http://127.0.0.1:5000{path}"


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


def test_importing_the_record_does_not_import_mlflow() -> None:
    code = "import sys, sweep.record.recorder, sweep.record.sweep_run; sys.exit('mlflow' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_drivers_create_one_quiet_database(tmp_path: Path) -> None:
    directory = tmp_path / "with space"
    directory.mkdir()
    code = (
        f"from sweep.record.tracker import Tracker; t = Tracker(None, {EXPERIMENT!r}); t.check(); "
        "print(t.experiment_id, t.review_command())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": directory, "env": environment}
    drivers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    outputs = [driver.communicate(timeout=PATIENCE_S) for driver in drivers]
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
