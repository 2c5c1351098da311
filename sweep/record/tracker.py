"""An experiment in an MLflow store: reached, created where missing, its errors in words that name the fix.

MLflow is imported only when a `Tracker` is made: the import costs seconds. Everything goes through `MlflowClient` with explicit ids;
MLflow's global state (active run, tracking URI) is read at most, never set.
"""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sweep.record import database
from sweep.store.credentials import scrubbed, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

# For an MLflow server, unless the user's environment says otherwise: MLflow's own 120 s and 7 retries hang for many minutes on a
# server that is gone.
SERVER_TIMEOUT_S = 30
SERVER_RETRIES = 3

# MLflow's UI has a side for GenAI and one for model training. The experiment's kind is there to choose by, but the UI of 3.17 goes by
# the address alone and by what the browser was told last; at first it opens everything as GenAI, a run under "Evaluation runs".
TRAINING_SIDE = "?workflowType=machine_learning"
KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
# What the UI writes there itself when it has looked at an experiment without a kind.
GUESSED_KINDS = ("", "no_inferred_type", "genai_development_inferred", "custom_model_development_inferred")

LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens unless told otherwise


class TrackingError(ValueError):
    """The MLflow store cannot be reached or written; the message names the fix and holds no credential."""


class Tracker:
    """An experiment in an MLflow store.

    tracking_uri: None for MLFLOW_TRACKING_URI or, without it, the store that a bare `mlflow ui` in the working directory opens.
    """

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        mlflow = quiet_mlflow()
        self._is_ui_default = tracking_uri is None and not mlflow.is_tracking_uri_set()
        self.uri = database.absolute_uri(tracking_uri or mlflow.get_tracking_uri())
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
            make_client = quiet_mlflow().MlflowClient
            database.check_reachable(self.uri)
            database.create_sqlite_database(self.uri, lambda uri: make_client(uri).search_experiments())
            client = make_client(self.uri)
            experiment = self._get_or_create_experiment(client)
            if experiment.tags.get(KIND_TAG, "") in GUESSED_KINDS:
                client.set_experiment_tag(experiment.experiment_id, KIND_TAG, KIND)
        self._experiment_id = experiment.experiment_id
        self._client = client

    def reader(self) -> MlflowClient:
        """A client of a store that is there, for reading: creates and writes nothing. Raises TrackingError with the fix, in seconds."""
        path = database.sqlite_path(self.uri)
        if path is not None and not path.is_file():
            raise TrackingError(f"there is no MLflow database {path}: run this where sweeps are run, or give their --tracking-uri")
        with self.reporting("be read"), _impatient():
            database.check_readable(self.uri)
            client = quiet_mlflow().MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    def _get_or_create_experiment(self, client: MlflowClient) -> Experiment:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = database.artifact_location(self.uri, self.experiment)
            try:
                return client.get_experiment(client.create_experiment(self.experiment, location, {KIND_TAG: KIND}))
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
        return experiment

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
                f"{database.how_to_fix(self.uri)}"
            ) from None

    @property
    def ui_address(self) -> str:
        """Where the UI is once `review_command` runs, and its path to this experiment."""
        is_server = self.uri.startswith(("http://", "https://"))
        return f"{without_credentials(self.uri).rstrip('/') if is_server else LOCAL_UI}/#/experiments/{self.experiment_id}"

    def review_command(self) -> str:
        """The line to type to look at the runs; for a server, its address. The UI binds to loopback, MLflow's default."""
        if self.uri.startswith(("http://", "https://")):
            return without_credentials(self.uri)
        command = [database.mlflow_command(), "ui"]
        if not self._is_ui_default or "MLFLOW_BACKEND_STORE_URI" in os.environ:
            shown = self.uri
            if database.sqlite_path(self.uri) is None and without_credentials(self.uri) != self.uri:
                shown = without_credentials(self.uri).replace("://", "://USER:PASSWORD@", 1)
            command += ["--backend-store-uri", shown]
        return shlex.join(command)


def quiet_mlflow() -> Any:
    """MLflow, imported without telemetry and without its progress messages on a new database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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
    hasty: Mapping[str, str] = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(database.TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }
    before = {name: os.environ[name] for name in hasty}
    os.environ.update(hasty)
    try:
        yield
    finally:
        os.environ.update(before)
