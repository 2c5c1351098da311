"""The record of a sweep in MLflow: one parent run a sweep, one child run a model, label set and pair.

The only module that imports MLflow, and only when a `Tracker` is made: the import costs seconds. Everything goes through
`MlflowClient` with explicit ids; MLflow's global state (active run, tracking URI) is read at most, never set.

Who may write. The parent run names its driver (host, process id, start time) in the tag `driver`.
- A run that is FINISHED is final: nobody reopens or marks it.
- A run whose driver lives on this host belongs to that driver. A second driver of the same sweep records nothing while the first
  lives; it looks again when it has something to log, and takes over if the first has died by then.
- Any other run (KILLED, FAILED, or RUNNING with a driver that is dead or on another host, which cannot be asked) is taken over.
- KILLED and FAILED are set only by the driver that the tag names; a driver that was taken over leaves the run alone.
A driver that dies without a word (kill -9) is marked by its watchdog process. If the whole machine goes down, the run stays RUNNING
until the same command takes it over.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweep.record import database as tracking_store
from sweep.record.watchdog import Watchdog
from sweep.store.credentials import scrubbed, text_without_credentials, without_credentials
from sweep.store.processes import is_alive_here, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run
    from pandas import DataFrame

__all__ = ["SweepRun", "Tracker", "TrackingError", "without_credentials"]

Stage = Literal["finetune", "label", "pair", "trial"]
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's own limits (mlflow.utils.validation); a longer value is an error there.
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
# For an MLflow server, unless the user's environment says otherwise: MLflow's own 120 s and 7 retries hang for many minutes on a
# server that is gone.
SERVER_TIMEOUT_S = 30
SERVER_RETRIES = 3


class TrackingError(ValueError):
    """The MLflow store cannot be reached or written; the message names the fix and holds no credential."""


class Tracker:
    """An experiment in an MLflow store.

    tracking_uri: None for MLFLOW_TRACKING_URI or, without it, the store that a bare `mlflow ui` in the working directory opens.
    """

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        mlflow = _quiet_mlflow()
        self._is_ui_default = tracking_uri is None and not mlflow.is_tracking_uri_set()
        self.uri = tracking_store.absolute_uri(tracking_uri or mlflow.get_tracking_uri())
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def client(self) -> MlflowClient:
        self.check()
        assert self._client is not None
        return self._client

    @property
    def experiment_id(self) -> str:
        self.check()
        return self._experiment_id

    def check(self) -> None:
        """Reach the store, creating database and experiment where missing. Raises TrackingError with the fix, in seconds."""
        if self._client is not None:
            return
        with self.reporting("be opened"), _impatient():
            make_client = _quiet_mlflow().MlflowClient
            tracking_store.check_reachable(self.uri)
            tracking_store.create_sqlite_database(self.uri, lambda uri: make_client(uri).search_experiments())
            client = make_client(self.uri)
            self._experiment_id = self._get_or_create_experiment(client)
        self._client = client

    def _get_or_create_experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = tracking_store.artifact_location(self.uri, self.experiment)
            try:
                return client.create_experiment(self.experiment, location)
            except MlflowException:
                # Another driver may have created it between the two calls.
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"The MLflow experiment {self.experiment!r} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            )
        return experiment.experiment_id

    @contextmanager
    def reporting(self, action: str) -> Iterator[None]:
        """Turn what MLflow raises inside into a TrackingError without credentials: its own messages hold the whole URI."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            reason = " ".join(scrubbed(str(error).partition("[SQL:")[0], self.uri).split())[:400]
            raise TrackingError(
                f"The MLflow store {without_credentials(self.uri)} could not {action}: {type(error).__name__}: {reason}. "
                f"{tracking_store.how_to_fix(self.uri)}"
            ) from None

    def start_sweep(self, sweep_key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> SweepRun:
        """The sweep's parent run, found by its tag `sweep_key` or created. The module's text says who may write to it."""
        return SweepRun(self, sweep_key, name, params, tags or {})

    def review_command(self) -> str:
        """The line to type to look at the runs; for a server, its address. The UI binds to loopback, MLflow's default."""
        if self.uri.startswith(("http://", "https://")):
            return without_credentials(self.uri)
        command = [tracking_store.mlflow_command(), "ui"]
        if not self._is_ui_default or "MLFLOW_BACKEND_STORE_URI" in os.environ:
            shown = self.uri
            if tracking_store.sqlite_path(self.uri) is None and without_credentials(self.uri) != self.uri:
                shown = without_credentials(self.uri).replace("://", "://USER:PASSWORD@", 1)
            command += ["--backend-store-uri", shown]
        return shlex.join(command)


class SweepRun:
    """The parent run of one sweep, and the way to log its children.

    already_finished: the sweep is recorded in full; logging is then a no-op, as it is while another living driver records it.
    """

    def __init__(self, tracker: Tracker, sweep_key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._sweep_key = sweep_key
        self._name = name
        self._params = _as_text(params, MAX_PARAM_LENGTH)
        self._driver = this_process()
        identity = {"sweep_key": sweep_key, "stage": "sweep", "driver": self._driver}
        self._tags = {**_as_text(tags, MAX_TAG_LENGTH), **identity}
        self._watchdog: Watchdog | None = None
        self._created_id = ""
        self._has_decided = False
        self.run_id = ""
        self.is_driver = False
        self.already_finished = False
        self._join()

    # ------------------------------------------------------------ logging

    def is_logged(self, artifact_key: str) -> bool:
        """Whether an artifact needs no child run from this driver: a finished one is in the experiment, under whatever sweep."""
        return not self._may_log() or any(child.info.status == "FINISHED" for child in self._children(artifact_key))

    def log_stage(
        self,
        stage: Stage,
        artifact_key: str,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        tags: Mapping[str, Any],
        started_s: float,
        seconds: float,
        artifacts: Sequence[tuple[Path, str | None]] = (),
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        """Log an artifact as a finished child run, once an experiment.

        started_s: seconds since the epoch; artifacts: (file, directory within the run); curves: metric -> (step, value) pairs.
        Metrics that are None, NaN or infinite are left out.
        """
        if not self._may_log():
            return
        children = self._children(artifact_key)
        if any(child.info.status == "FINISHED" for child in children):
            return
        start_ms = round(started_s * 1000)
        end_ms = start_ms + round(seconds * 1000)
        identity = {"stage": stage, "artifact_key": artifact_key, "mlflow.parentRunId": self.run_id}
        points = [(metric, value, 0) for metric, value in metrics.items()]
        points += [(metric, value, step) for metric, curve in (curves or {}).items() for step, value in curve]
        with self._tracker.reporting(f"record {name}"):
            for incomplete in children:
                if incomplete.info.status != "RUNNING":
                    self._client.delete_run(incomplete.info.run_id)
            child_tags = {**_as_text(tags, MAX_TAG_LENGTH), **identity}
            child = self._client.create_run(self._tracker.experiment_id, start_ms, child_tags, name).info.run_id
            for path, directory in artifacts:
                self._client.log_artifact(child, str(path), directory)
            self._client.log_batch(child, _metrics(points, end_ms), _params(_as_text(params, MAX_PARAM_LENGTH)))
            self._client.set_terminated(child, "FINISHED", end_ms)

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        if self._may_log():
            points = [(metric, value, 0) for metric, value in metrics.items()]
            with self._tracker.reporting("record the sweep's metrics"):
                self._client.log_batch(self.run_id, _metrics(points, _now_ms()))

    def log_table(self, name: str, table: DataFrame) -> None:
        """Log a table as the artifact NAME.parquet."""
        if self._may_log():
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / f"{name}.parquet"
                table.to_parquet(path, index=False)
                self.log_artifact(path)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Log a file, into a directory of the run's if one is given."""
        if self._may_log():
            with self._tracker.reporting(f"keep {path.name}"):
                self._client.log_artifact(self.run_id, str(path), artifact_path)

    def log_artifacts(self, directory: Path, artifact_path: str | None = None) -> None:
        """Log everything below a directory."""
        if self._may_log():
            with self._tracker.reporting(f"keep {directory.name}"):
                self._client.log_artifacts(self.run_id, str(directory), artifact_path)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run; nothing of it stays RUNNING. A no-op for a driver to which the run does not belong.

        FAILED and KILLED raise nothing, so as not to hide what went wrong: if the store cannot be reached now, the watchdog
        goes on trying after this process has ended.
        """
        if not self.is_driver:
            return
        self._has_decided = True
        try:
            with self._tracker.reporting("end the run"):
                _end_run(self._client, self.run_id, self._driver, status)
        except TrackingError as error:
            if status == "FINISHED":
                raise
            logging.getLogger(__name__).warning("%s", error)
            return
        self._resign()

    # ------------------------------------------------------------ whose run it is

    def _may_log(self) -> bool:
        """Whether this driver records the sweep; settled at the first thing to log, so that one driver records all of it."""
        if not self._has_decided:
            self._join()
            self._has_decided = True
        return self.is_driver

    def _join(self) -> None:
        """Find or create the parent run and become its driver, unless it is finished or a living driver has it."""
        with self._tracker.reporting("start the run"):
            run = self._find()
            if run is None:
                self._start_watchdog()
                self._created_id = self._client.create_run(self._tracker.experiment_id, _now_ms(), self._tags, self._name).info.run_id
                run = self._find()
                assert run is not None
            self.run_id = run.info.run_id
            if self._created_id not in ("", self.run_id):
                # Two drivers created a run at the same moment: both keep the same one of the two.
                self._client.delete_run(self._created_id)
                self._created_id = ""
                self._resign()
            owner = run.data.tags.get("driver", "")
            self.already_finished = run.info.status == "FINISHED"
            is_others = run.info.status == "RUNNING" and owner != self._driver and is_alive_here(owner)
            if self.already_finished or is_others:
                self._resign()
                return
            if not self.is_driver:
                self._take_over(run)
        self.is_driver = True

    def _take_over(self, run: Run) -> None:
        self._start_watchdog()
        if self.run_id != self._created_id:
            self._client.set_tag(self.run_id, "driver", self._driver)
            self._client.update_run(self.run_id, "RUNNING")
            _end_children(self._client, run, "KILLED")
        # Params are write-once in MLflow: those that stand keep their value.
        missing = {key: value for key, value in self._params.items() if key not in run.data.params}
        self._client.log_batch(self.run_id, params=_params(missing))

    def _start_watchdog(self) -> None:
        """Started before the run is this driver's, so that no moment is uncovered; hence it finds the run by its tags."""
        if self._watchdog is None:
            place = {"uri": self._tracker.uri, "experiment_id": self._tracker.experiment_id}
            order = {**place, "sweep_key": self._sweep_key, "driver": self._driver}
            self._watchdog = Watchdog("sweep.record.tracking:mark_killed", order)

    def _resign(self) -> None:
        self.is_driver = False
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    def _find(self) -> Run | None:
        """The sweep's parent run: the finished one of several, else the oldest."""
        chosen = f"tags.sweep_key = '{self._sweep_key}' and tags.stage = 'sweep'"
        runs = _search(self._client, self._tracker.experiment_id, chosen)
        return min(runs, key=lambda r: (r.info.status != "FINISHED", r.info.start_time, r.info.run_id), default=None)

    def _children(self, artifact_key: str) -> list[Run]:
        """An artifact's child runs in the whole experiment; asked afresh each time, since other sweeps may be logging too."""
        with self._tracker.reporting("list its runs"):
            return _search(self._client, self._tracker.experiment_id, f"tags.artifact_key = '{artifact_key}'")


def mark_killed(order: Mapping[str, str]) -> None:
    """What the watchdog does for a driver that died: order holds uri, experiment_id, sweep_key, driver."""
    client = _quiet_mlflow().MlflowClient(order["uri"])
    chosen = f"tags.sweep_key = '{order['sweep_key']}' and tags.driver = '{order['driver']}'"
    for run in _search(client, order["experiment_id"], chosen):
        _end_run(client, run.info.run_id, order["driver"], "KILLED")


def _end_run(client: MlflowClient, run_id: str, driver: str, status: EndStatus) -> None:
    """End a parent run and whatever of its children is RUNNING, by the rules of who may."""
    run = client.get_run(run_id)
    is_its_driver = run.data.tags.get("driver") == driver and run.info.status == "RUNNING"
    if run.info.status == "FINISHED" or (status != "FINISHED" and not is_its_driver):
        return
    if status != "FINISHED":
        _end_children(client, run, status)
    client.set_terminated(run_id, status)


def _end_children(client: MlflowClient, parent: Run, status: EndStatus) -> None:
    chosen = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'RUNNING'"
    for run in _search(client, parent.info.experiment_id, chosen):
        client.set_terminated(run.info.run_id, status)


def _search(client: MlflowClient, experiment_id: str, chosen: str) -> list[Run]:
    """All runs that a filter chooses, page by page."""
    page = client.search_runs([experiment_id], chosen, max_results=1000)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment_id], chosen, max_results=1000, page_token=page.token)
        runs += page
    return runs


def _quiet_mlflow() -> Any:
    """MLflow, imported without telemetry and without its progress messages on a new database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SERVER_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(SERVER_RETRIES))
    import mlflow

    # What the first reports as an error is raised too, and comes to the user as a TrackingError.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


@contextmanager
def _impatient() -> Iterator[None]:
    """Short waits for an MLflow server, for the check before work; later calls may wait out a restart of the server."""
    hasty = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(tracking_store.TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }
    before = {name: os.environ[name] for name in hasty}
    os.environ.update(hasty)
    try:
        yield
    finally:
        os.environ.update(before)


def _as_text(values: Mapping[str, Any], max_length: int) -> dict[str, str]:
    """Params or tags as MLflow takes them: text without credentials, cut with a note of what is missing."""
    return {key: _shortened(text_without_credentials(value), max_length) for key, value in values.items()}


def _shortened(text: str, max_length: int) -> str:
    """Text of at most max_length characters; two long texts that differ stay different."""
    if len(text) <= max_length:
        return text
    note = f"... ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: max_length - len(note)] + note


def _metrics(points: Sequence[tuple[str, float | None, int]], timestamp_ms: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), timestamp_ms, int(step)) for name, value, step in points if value is not None and math.isfinite(value)
    ]


def _params(values: Mapping[str, str]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in values.items()]


def _now_ms() -> int:
    return round(time.time() * 1000)
