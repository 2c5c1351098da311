"""The record of a sweep in MLflow: one parent run a sweep, below which its children stand.

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

import json
import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from sweep.record.children import Children
from sweep.record.entities import MAX_PARAM_LENGTH, MAX_TAG_LENGTH, as_text, metrics_of, now_ms, params_of, search
from sweep.record.note import NOTE_TAG, fitting
from sweep.record.table_page import table_page
from sweep.record.tracker import TRAINING_SIDE, Tracker, TrackingError, quiet_mlflow
from sweep.record.watchdog import Watchdog
from sweep.stages.plan import Plan
from sweep.stages.stage import ChildRun
from sweep.store.artifacts import Store
from sweep.store.processes import is_alive_here, this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from pandas import DataFrame

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
PLAN = "plan.json"
MOST_COMPARED = 80
"""Runs that a link of a note names: each takes 40 of its 8000 characters."""


class SweepRun:
    """The parent run of one sweep, found by its tag `sweep_key` or created, and the way to log its children.

    note: what stands at the top of its page until `describe` replaces it, Markdown.
    already_finished: the sweep is recorded in full; logging is then a no-op, as it is while another living driver records it.
    Raises TrackingError, as everything does that logs.
    """

    def __init__(
        self,
        tracker: Tracker,
        sweep_key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._children = Children(tracker)
        self._sweep_key = sweep_key
        self._name = name
        self._params = as_text(params, MAX_PARAM_LENGTH)
        self._note = fitting(note)
        self._driver = this_process()
        identity = {"sweep_key": sweep_key, "stage": "sweep", "driver": self._driver}
        shown = {NOTE_TAG: self._note} if note else {}
        self._tags = {**as_text(tags or {}, MAX_TAG_LENGTH), **shown, **identity}
        self._watchdog: Watchdog | None = None
        self._created_id = ""
        self._is_settled = False
        self._settling = threading.Lock()
        self.run_id = ""
        self.is_driver = False
        self.already_finished = False
        self._join()

    def is_logged(self, artifact_key: str) -> bool:
        """Whether the artifact has a finished child in this experiment."""
        return self._children.is_logged(artifact_key)

    def log_child(self, child: ChildRun, store: Store) -> None:
        """Log an artifact of the store as a finished child run, once an experiment.

        Metrics that are None, NaN or infinite are left out.
        """
        if self.may_log():
            self._children.log(child, self.run_id, store)

    def describe(self, note: str) -> None:
        """Set what stands at the top of the run's page, Markdown."""
        if self.may_log():
            with self._tracker.reporting("describe the sweep"):
                self._client.set_tag(self.run_id, NOTE_TAG, fitting(note))

    def log_plan(self, plan: Plan) -> None:
        """Say what the sweep will have computed, as PLAN, for `status` and `gc`. Where that fails, a warning: the sweep needs it not."""
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / PLAN
                path.write_text(plan.as_json(), encoding="utf-8")
                self.log_artifact(path)
        except TrackingError as error:
            logging.getLogger(__name__).warning("%s", error)

    def link(self, name: str) -> str:
        """Markdown that leads to an artifact of the run, from within MLflow's UI."""
        return f"[{name}](#/experiments/{self._tracker.experiment_id}/runs/{self.run_id}/artifacts/{quote(name)}{TRAINING_SIDE})"

    def comparison(self, artifact_keys: Sequence[str]) -> str | None:
        """Markdown that leads to the children of these artifacts side by side: parallel coordinates, scatter, a column each.

        None for fewer than two, and for so many that a note does not hold the address.
        """
        run_ids = self._children.run_ids(artifact_keys)
        if not 2 <= len(run_ids) <= MOST_COMPARED:
            return None
        runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [self._tracker.experiment_id]))
        # The UI takes the address apart by hand: `runs` must come first.
        address = f"#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING_SIDE[1:]}"
        return f"[all {len(run_ids)} pairs side by side]({address})"

    @property
    def page(self) -> str:
        """The address of the run's page once `Tracker.review_command` runs; of a server, its own."""
        return f"{self._tracker.ui_address}/runs/{self.run_id}{TRAINING_SIDE}"

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        if self.may_log():
            points = [(metric, value, 0) for metric, value in metrics.items()]
            with self._tracker.reporting("record the sweep's metrics"):
                self._client.log_batch(self.run_id, metrics_of(points, now_ms()))

    def log_table(self, name: str, table: DataFrame, html: str | None = None) -> None:
        """Log a table as the artifacts NAME.parquet and NAME.html, the page that the UI shows; a plain one unless it is given.

        MLflow's own `log_table` makes JSON, which the UI shows too, but appends to what is there: a second try would double the rows.
        """
        if self.may_log():
            with tempfile.TemporaryDirectory() as directory:
                parquet, page = Path(directory) / f"{name}.parquet", Path(directory) / f"{name}.html"
                table.to_parquet(parquet, index=False)
                page.write_text(table_page(name, table) if html is None else html, encoding="utf-8")
                self.log_artifact(parquet)
                self.log_artifact(page)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Log a file, into a directory of the run's if one is given."""
        if self.may_log():
            with self._tracker.reporting(f"keep {path.name}"):
                self._client.log_artifact(self.run_id, str(path), artifact_path)

    def log_artifacts(self, directory: Path, artifact_path: str | None = None) -> None:
        """Log everything below a directory."""
        if self.may_log():
            with self._tracker.reporting(f"keep {directory.name}"):
                self._client.log_artifacts(self.run_id, str(directory), artifact_path)

    def finish(self, status: EndStatus = "FINISHED") -> None:
        """End the run; nothing of it stays RUNNING. A no-op for a driver to which the run does not belong.

        FAILED and KILLED raise nothing, so as not to hide what went wrong: if the store cannot be reached now, the watchdog
        goes on trying after this process has ended.
        """
        if not self.is_driver:
            return
        self._is_settled = True
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

    def may_log(self) -> bool:
        """Whether this driver records the sweep: settled once it does, asked again while another does. Safe to ask from any thread."""
        if not self._is_settled:
            with self._settling:
                if not self._is_settled:
                    self._join()
                    self._is_settled = self.is_driver or self.already_finished
        return self.is_driver

    def _join(self) -> None:
        """Find or create the parent run and become its driver, unless it is finished or a living driver has it."""
        with self._tracker.reporting("start the run"):
            run = self._find()
            if run is None:
                self._start_watchdog()
                self._created_id = self._client.create_run(self._tracker.experiment_id, now_ms(), self._tags, self._name).info.run_id
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
            if self._note:
                self._client.set_tag(self.run_id, NOTE_TAG, self._note)
            _end_children(self._client, run, "KILLED")
        # Params are write-once in MLflow: those that stand keep their value.
        missing = {key: value for key, value in self._params.items() if key not in run.data.params}
        self._client.log_batch(self.run_id, params=params_of(missing))

    def _start_watchdog(self) -> None:
        """Started before the run is this driver's, so that no moment is uncovered; hence it finds the run by its tags."""
        if self._watchdog is None:
            place = {"uri": self._tracker.uri, "experiment_id": self._tracker.experiment_id}
            order = {**place, "sweep_key": self._sweep_key, "driver": self._driver}
            self._watchdog = Watchdog("sweep.record.sweep_run:mark_killed", order)

    def _resign(self) -> None:
        self.is_driver = False
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    def _find(self) -> Run | None:
        """The sweep's parent run: the finished one of several, else the oldest."""
        chosen = f"tags.sweep_key = '{self._sweep_key}' and tags.stage = 'sweep'"
        runs = search(self._client, self._tracker.experiment_id, chosen)
        return min(runs, key=lambda r: (r.info.status != "FINISHED", r.info.start_time, r.info.run_id), default=None)


def mark_killed(order: Mapping[str, str]) -> None:
    """What the watchdog does for a driver that died: order holds uri, experiment_id, sweep_key, driver."""
    client = quiet_mlflow().MlflowClient(order["uri"])
    chosen = f"tags.sweep_key = '{order['sweep_key']}' and tags.driver = '{order['driver']}'"
    for run in search(client, order["experiment_id"], chosen):
        _end_run(client, run.info.run_id, order["driver"], "KILLED")


def _end_run(client: MlflowClient, run_id: str, driver: str, status: EndStatus) -> None:
    """End a parent run and whatever of its children is RUNNING, by the rules of who may."""
    run = client.get_run(run_id)
    is_its_driver = run.data.tags.get("driver") == driver and run.info.status == "RUNNING"
    if run.info.status == "FINISHED" or (status != "FINISHED" and not is_its_driver):
        return
    if is_its_driver:  # beside a FINISHED sweep: what an attempt to log left, of which another succeeded
        _end_children(client, run, "KILLED" if status == "FINISHED" else status)
    client.set_terminated(run_id, status)


def _end_children(client: MlflowClient, parent: Run, status: EndStatus) -> None:
    chosen = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'RUNNING'"
    for run in search(client, parent.info.experiment_id, chosen):
        client.set_terminated(run.info.run_id, status)
