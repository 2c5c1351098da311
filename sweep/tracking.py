"""The record of a sweep in MLflow: one parent run a sweep, one child run a model, label set and pair.

The only module that imports MLflow, and only when a `Tracker` is made: the import costs seconds. Everything goes through
`MlflowClient` with explicit ids; MLflow's global state (active run, tracking URI) is read at most, never set.

Who may write. The parent run names its driver (host, process id, start time) in the tag `driver`.
- A run that is FINISHED is final: nobody reopens or marks it.
- A run whose driver lives on this host belongs to that driver. A second driver of the same sweep records nothing while the first
  lives; it looks again when it has something to log, and takes over if the first has died by then.
- Any other run (KILLED, FAILED, RUNNING with a driver that is dead or on another host, which cannot be asked) is taken over.
- KILLED and FAILED are set only by the driver that the tag names; a driver that was taken over leaves the run alone.
A driver that dies without a word (kill -9) is marked by a watchdog process that holds the other end of a pipe. If the whole machine
goes down, the run stays RUNNING until the same command takes it over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from pandas import DataFrame

Stage = Literal["finetune", "label", "pair", "trial"]
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's own limits (mlflow.utils.validation); a longer value is an error there.
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
# Seconds and retries for an MLflow server, unless the user's environment says otherwise: MLflow's own 120 s and 7 retries hang
# for many minutes on a server that is gone.
SERVER_TIMEOUT_S = 30
SERVER_RETRIES = 3
CHECK_TIMEOUT_S = 10
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


class TrackingError(ValueError):
    """The MLflow store cannot be reached or written; the message names the fix and holds no credential."""


class Tracker:
    """An experiment in an MLflow store.

    tracking_uri: None for MLFLOW_TRACKING_URI or, without it, the store that a bare `mlflow ui` in the working directory opens.
    """

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        mlflow = _quiet_mlflow()
        self._is_ui_default = tracking_uri is None and not mlflow.is_tracking_uri_set()
        self.uri = _absolute(tracking_uri or mlflow.get_tracking_uri())
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
        """Reach the store, creating database and experiment where they are missing. Raises TrackingError, in seconds, with the fix."""
        if self._client is not None:
            return
        with self.reporting("be opened"), _impatient():
            _check_reachable(self.uri)
            _create_database(self.uri)
            client = _quiet_mlflow().MlflowClient(self.uri)
            self._experiment_id = self._get_or_create_experiment(client)
        self._client = client

    def _get_or_create_experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        try:
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                return client.create_experiment(self.experiment, _artifact_location(self.uri, self.experiment))
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
            reason = " ".join(_scrubbed(str(error), self.uri).split())[:400]
            raise TrackingError(
                f"The MLflow store {without_credentials(self.uri)} could not {action}: {type(error).__name__}: {reason}. "
                f"{_fix(self.uri)}"
            ) from None

    def start_sweep(
        self, sweep_key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None
    ) -> SweepRun:
        """The sweep's parent run, found by its tag `sweep_key` or created. See the module's text for who may write."""
        return SweepRun(self, sweep_key, name, params, tags or {})

    def review_command(self) -> str:
        """The line to type to look at the runs; for a server, its address. The UI binds to loopback, MLflow's default."""
        if self.uri.startswith(("http://", "https://")):
            return without_credentials(self.uri)
        command = [_mlflow_command(), "ui"]
        if not self._is_ui_default or "MLFLOW_BACKEND_STORE_URI" in os.environ:
            shown = without_credentials(self.uri)
            if shown != self.uri and not self.uri.startswith("sqlite:"):
                shown = shown.replace("://", "://USER:PASSWORD@", 1)
            command += ["--backend-store-uri", shown]
        return shlex.join(command)


class SweepRun:
    """The parent run of one sweep, and the way to log its children.

    already_finished: the sweep is recorded in full; logging is then a no-op, as it is while another living driver records it.
    """

    def __init__(
        self, tracker: Tracker, sweep_key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> None:
        self._tracker = tracker
        self._sweep_key = sweep_key
        self._name = name
        self._params = _as_text(params, MAX_PARAM_LENGTH)
        self._tags = {**_as_text(tags, MAX_TAG_LENGTH), "sweep_key": sweep_key, "stage": "sweep"}
        self._driver = _this_process()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._children: dict[str, Run] | None = None
        self.run_id = ""
        self.already_finished = False
        self.is_driver = False
        self._join()

    # ------------------------------------------------------------ logging

    def is_logged(self, artifact_key: str) -> bool:
        """Whether an artifact needs no child run from us: a finished one is in the experiment, under whatever sweep."""
        if not self._may_log():
            return True
        child = self._known_children().get(artifact_key)
        return child is not None and child.info.status == "FINISHED"

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
        if self.is_logged(artifact_key):
            return
        client, start_ms = self._tracker.client, round(started_s * 1000)
        end_ms = start_ms + round(seconds * 1000)
        with self._tracker.reporting(f"record {name}"):
            if (incomplete := self._known_children().get(artifact_key)) is not None:
                client.delete_run(incomplete.info.run_id)
            identity = {"stage": stage, "artifact_key": artifact_key, "mlflow.parentRunId": self.run_id}
            child = client.create_run(
                self._tracker.experiment_id, start_ms, {**_as_text(tags, MAX_TAG_LENGTH), **identity}, name
            )
            for path, directory in artifacts:
                client.log_artifact(child.info.run_id, str(path), directory)
            points = [(metric, value, 0) for metric, value in metrics.items()]
            points += [(metric, value, step) for metric, curve in (curves or {}).items() for step, value in curve]
            client.log_batch(
                child.info.run_id, _metrics(points, end_ms), _mlflow_params(_as_text(params, MAX_PARAM_LENGTH))
            )
            client.set_terminated(child.info.run_id, "FINISHED", end_ms)
        child.info._status = "FINISHED"
        self._known_children()[artifact_key] = child

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        if self._may_log():
            points = _metrics([(metric, value, 0) for metric, value in metrics.items()], _now_ms())
            with self._tracker.reporting("record the sweep's metrics"):
                self._tracker.client.log_batch(self.run_id, points)

    def log_table(self, name: str, table: DataFrame) -> None:
        """Log a table as the artifact NAME.parquet."""
        if self._may_log():
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / f"{name}.parquet"
                table.to_parquet(path, index=False)
                self.log_artifact(path)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        if self._may_log():
            with self._tracker.reporting(f"keep {path.name}"):
                self._tracker.client.log_artifact(self.run_id, str(path), artifact_path)

    def log_artifacts(self, directory: Path, artifact_path: str | None = None) -> None:
        """Log everything below a directory."""
        if self._may_log():
            with self._tracker.reporting(f"keep {directory.name}"):
                self._tracker.client.log_artifacts(self.run_id, str(directory), artifact_path)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run; nothing of it stays RUNNING. A no-op for a driver whom the run does not belong to.

        FAILED and KILLED raise nothing, so as not to hide what went wrong: if the store cannot be reached now, the watchdog goes on
        trying after this process has ended.
        """
        if not self.is_driver:
            return
        try:
            with self._tracker.reporting("end the run"):
                _end_run(self._tracker.client, self.run_id, self._driver, status)
        except TrackingError as error:
            if status == "FINISHED":
                raise
            logging.getLogger(__name__).warning("%s", error)
            return
        self.is_driver = False
        self._dismiss_watchdog()

    # ------------------------------------------------------------ whose run it is

    def _may_log(self) -> bool:
        """Whether this driver records the sweep; decided for good at the first thing to log, so that a record is whole or none."""
        if not self.is_driver and not self.already_finished and self._children is None:
            self._join()
            self._children = None if self.is_driver else {}
        return self.is_driver

    def _join(self) -> None:
        """Find or create the parent run and become its driver, unless it is finished or a living driver has it."""
        client = self._tracker.client
        with self._tracker.reporting("start the run"):
            run, created_id = self._find(), None
            if run is None:
                tags = {**self._tags, "driver": self._driver}
                created_id = client.create_run(self._tracker.experiment_id, _now_ms(), tags, self._name).info.run_id
                run = self._find()
                assert run is not None
            for superfluous in {created_id, self.run_id} - {None, "", run.info.run_id}:
                # Two drivers started at the same moment: both keep the same one of the two runs.
                client.delete_run(superfluous)
            self.run_id = run.info.run_id
            owner = run.data.tags.get("driver", "")
            self.already_finished = run.info.status == "FINISHED"
            if self.already_finished or (
                run.info.status == "RUNNING" and owner != self._driver and _is_alive_here(owner)
            ):
                return
            if created_id != self.run_id:
                client.set_tag(self.run_id, "driver", self._driver)
                client.update_run(self.run_id, "RUNNING")
                _close_children(client, self._tracker.experiment_id, self.run_id, "KILLED")
            # Params are write-once in MLflow: those that stand keep their value.
            missing = {k: v for k, v in self._params.items() if k not in run.data.params}
            client.log_batch(self.run_id, params=_mlflow_params(missing))
        self.is_driver = True
        self._start_watchdog()

    def _find(self) -> Run | None:
        """The sweep's parent run: the finished one of several, else the oldest."""
        runs = self._tracker.client.search_runs(
            [self._tracker.experiment_id], f"tags.sweep_key = '{self._sweep_key}' and tags.stage = 'sweep'"
        )
        order = [(r.info.status != "FINISHED", r.info.start_time, r.info.run_id, r) for r in runs]
        return min(order, key=lambda entry: entry[:3])[3] if order else None

    def _known_children(self) -> dict[str, Run]:
        """Every child run of the experiment by artifact key, finished ones before others; one search a sweep."""
        if self._children is None:
            with self._tracker.reporting("list its runs"):
                found = _search_all(self._tracker.client, self._tracker.experiment_id, "tags.stage != 'sweep'")
            found.sort(key=lambda run: run.info.status == "FINISHED")
            self._children = {run.data.tags["artifact_key"]: run for run in found if "artifact_key" in run.data.tags}
        return self._children

    # ------------------------------------------------------------ watchdog

    def _start_watchdog(self) -> None:
        """Start the process that marks the run KILLED if this one dies without `finish`.

        It learns of the death by the end of its standard input. Popen's end of the pipe is not inheritable, so only forks without
        exec could keep it open; against those the watchdog also looks whether its parent is still this process. Its own
        session keeps it from the terminal's Ctrl-C and from signals to our process group. The URI goes through the pipe: a command line is
        visible to every user of the machine.
        """
        if self._watchdog is not None:
            return
        import_path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-P", "-c", "from sweep.tracking import watch; watch()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": import_path},
        )
        order = {"uri": self._tracker.uri, "run_id": self.run_id, "driver": self._driver, "driver_pid": os.getpid()}
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(json.dumps(order).encode() + b"\n")
        self._watchdog.stdin.flush()

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is None:
            return
        assert self._watchdog.stdin is not None
        try:
            self._watchdog.stdin.write(b"done\n")
            self._watchdog.stdin.close()
            self._watchdog.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._watchdog.kill()
            self._watchdog.wait()
        self._watchdog = None


def watch() -> None:
    """The watchdog's life: wait for "done" or for the driver's death; then mark the run KILLED. Silent; MLflow only when needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received, order = b"", None
    while order is None or os.getppid() == order["driver_pid"]:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        chunk = os.read(0, 65536)
        received += chunk
        first_line, newline, rest = received.partition(b"\n")
        if newline:
            order = json.loads(first_line)
        if rest.startswith(b"done"):
            return
        if not chunk:
            break
    if order is None:
        return
    mlflow = _quiet_mlflow()
    for attempt in range(10):
        try:
            _end_run(mlflow.MlflowClient(order["uri"]), order["run_id"], order["driver"], "KILLED")
            return
        except Exception:  # whatever the store says, it may be back in a while; nobody is left to tell
            time.sleep(min(2.0**attempt, 60.0))


def _end_run(client: MlflowClient, run_id: str, driver: str, status: EndStatus) -> None:
    """End a parent run and whatever of its children is RUNNING, by the rules of who may."""
    run = client.get_run(run_id)
    has_been_taken_over = run.data.tags.get("driver") != driver
    if run.info.status == "FINISHED" or (status != "FINISHED" and (has_been_taken_over or run.info.status != "RUNNING")):
        return
    if status != "FINISHED":
        _close_children(client, run.info.experiment_id, run_id, status)
    client.set_terminated(run_id, status)


def _close_children(client: MlflowClient, experiment_id: str, parent_id: str, status: EndStatus) -> None:
    chosen = f"tags.`mlflow.parentRunId` = '{parent_id}' and attributes.status = 'RUNNING'"
    for run in _search_all(client, experiment_id, chosen):
        client.set_terminated(run.info.run_id, status)


def _search_all(client: MlflowClient, experiment_id: str, chosen: str) -> list[Run]:
    found: list[Run] = []
    token: str | None = None
    while token is None or token:
        page = client.search_runs([experiment_id], chosen, max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return found


# ---------------------------------------------------------------- processes


def _this_process() -> str:
    import psutil

    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def _is_alive_here(driver: str) -> bool:
    """Whether a driver, as its tag names it, is a living process of this host; the start time tells a reused process id apart."""
    import psutil

    host, _, rest = driver.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(rest))
        is_same = abs(process.create_time() - float(driver.rpartition(":")[2])) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


# ---------------------------------------------------------------- stores


def _quiet_mlflow() -> Any:
    """MLflow, imported without telemetry and without its progress messages on a new database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SERVER_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(SERVER_RETRIES))
    import mlflow

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def _impatient() -> Iterator[None]:
    """Short waits for an MLflow server, for the check before work; later calls may wait out a restart of the server."""
    names = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    before = {name: os.environ[name] for name in names}
    os.environ.update(zip(names, (str(CHECK_TIMEOUT_S), "1"), strict=True))
    try:
        yield
    finally:
        os.environ.update(before)


def _sqlite_path(uri: str) -> Path | None:
    location = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(location) if uri.startswith("sqlite:///") and location not in ("", ":memory:") else None


def _absolute(uri: str) -> str:
    """A tracking URI that means the same in every working directory.

    Only % and ? of a SQLite path are quoted: MLflow makes the parent directory of the quoted path, so that a space in it would
    leave a stray directory.
    """
    path = _sqlite_path(uri)
    if path is None:
        return uri
    _, mark, options = uri.partition("?")
    every_other = "".join(c for c in os.path.abspath(path) if c not in "%?")
    return f"sqlite:///{quote(os.path.abspath(path), safe=every_other)}{mark}{options}"


def _check_reachable(uri: str) -> None:
    """Fail in seconds where MLflow would retry for an hour: a database that cannot be opened, written or connected to."""
    path = _sqlite_path(uri)
    if path is not None and path.exists():
        connection = sqlite3.connect(path, timeout=CHECK_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    parts = urlsplit(uri)
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is not None and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout=CHECK_TIMEOUT_S).close()


def _create_database(uri: str) -> None:
    """Create a SQLite store whole or not at all: MLflow's migrations take seconds, and a database they were killed in is lost."""
    path = _sqlite_path(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fresh = os.path.join(scratch, "mlflow.db")
            _quiet_mlflow().MlflowClient(f"sqlite:///{fresh}").search_experiments()
            # A copy, because MLflow keeps its connections to the first file.
            shutil.copyfile(fresh, name)
        # What a umask of the user's gives, not mkstemp's private mode: others may read the runs.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        if not path.exists():
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Where an experiment keeps its files: MLflow's choice, but beside a SQLite database that is not in the working directory."""
    path = _sqlite_path(uri)
    if path is None or path.parent == Path.cwd():
        return None
    return (path.parent / "mlruns" / experiment).as_uri()


def _fix(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        return "Start the server, or give the right address in --tracking-uri"
    if path := _sqlite_path(uri):
        return f"Make {path.parent} a writable directory with room, or give another sqlite:///FILE in --tracking-uri"
    if urlsplit(uri).scheme in DATABASE_PORTS or "+" in urlsplit(uri).scheme:
        return "Start the database and install its driver, or give the right address in --tracking-uri"
    return "Give --tracking-uri as sqlite:///FILE.db or http://HOST:PORT"


def _mlflow_command() -> str:
    """How to call the `mlflow` of this environment: its name where it is the one on the PATH, else its path."""
    beside = Path(sys.executable).parent / "mlflow"
    if not beside.exists() or shutil.which("mlflow") == str(beside):
        return "mlflow"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


# ---------------------------------------------------------------- what is logged


def without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment, any of which may hold a secret. Other text passes unchanged.

    A secret with an unquoted `/` in it, as AWS makes them, hides its `@` from a parser: where a user and password may stand,
    everything up to the last `@` goes.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in head and ":" not in head.rpartition("@")[0]:
        rest = rest.partition("@")[2]
    elif ":" in head and "@" in rest:
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def _scrubbed(text: str, uri: str) -> str:
    """Text of an error without the credentials of the store, whole or in part."""
    text = text.replace(uri, without_credentials(uri))
    try:
        secret = urlsplit(uri).password or ""
    except ValueError:
        secret = ""
    for form in {secret, unquote(secret)} - {""}:
        text = text.replace(form, "***")
    return _URL.sub(lambda match: without_credentials(match[0]), text)


def _as_text(values: Mapping[str, Any], max_length: int) -> dict[str, str]:
    """Params or tags as MLflow takes them: text, without credentials, cut with a note of what is missing."""
    return {key: _shortened(_text(value), max_length) for key, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    return _URL.sub(lambda match: without_credentials(match[0]), str(value))


def _shortened(text: str, max_length: int) -> str:
    """Text of at most max_length characters; two long texts that differ stay different."""
    if len(text) <= max_length:
        return text
    note = f"... ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: max_length - len(note)] + note


def _metrics(points: Sequence[tuple[str, float | None, int]], timestamp_ms: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), timestamp_ms, int(step))
        for name, value, step in points
        if value is not None and math.isfinite(value)
    ]


def _mlflow_params(params: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in params.items()]


def _now_ms() -> int:
    return round(time.time() * 1000)
