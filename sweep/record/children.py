"""The child runs of an experiment: one for each artifact that people look at, found by the artifact's key.

A child is logged once an experiment, whichever sweep comes first. Two drivers of different sweeps may still log the same one at the same
moment: each looks again once its own is finished, and both keep the one that was begun first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sweep.record.entities import MAX_PARAM_LENGTH, MAX_TAG_LENGTH, as_text, metrics_of, now_ms, params_of, search
from sweep.record.tracker import Tracker
from sweep.stages.stage import ChildRun
from sweep.store.artifacts import Artifact, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

LOGGED_TAG = "logged_ms"


class Children:
    """The finished children of an experiment, asked for once and kept, and the way to add one."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._finished: dict[str, str] | None = None  # run by artifact
        self._begun: dict[str, str] = {}

    def is_logged(self, key: str) -> bool:
        """Whether the artifact has a finished child, of this sweep or of another in the experiment."""
        return key in self._known()

    def run_ids(self, keys: Sequence[str]) -> list[str]:
        """The finished children of these artifacts, of whichever sweep."""
        known = self._known()
        return [known[key] for key in keys if key in known]

    def _known(self) -> dict[str, str]:
        if self._finished is None:
            with self._tracker.reporting("list its runs"):
                runs = search(self._client, self._tracker.experiment_id, "attributes.status = 'FINISHED' and tags.stage != 'sweep'")
            self._finished = {run.data.tags["artifact_key"]: run.info.run_id for run in runs if "artifact_key" in run.data.tags}
        return self._finished

    def log(self, child: ChildRun, parent_id: str, store: Store) -> None:
        """Log an artifact as a finished run below a parent, unless it is logged. Raises TrackingError and StoreError."""
        if self.is_logged(child.key):
            return
        large_files = [(store.open(child.key), name, directory) for name, directory in child.large_files]
        start_ms = round(child.started_s * 1000)
        end_ms = start_ms + round(child.seconds * 1000)
        identity = {"stage": child.stage, "artifact_key": child.key, "mlflow.parentRunId": parent_id, LOGGED_TAG: str(now_ms())}
        points = [(metric, value, 0) for metric, value in child.metrics.items()]
        points += [(metric, value, step) for metric, curve in child.curves.items() for step, value in curve]
        with self._tracker.reporting(f"record {child.name}"):
            if cut_off := self._begun.pop(child.key, None):
                self._client.delete_run(cut_off)
            child_tags = {**as_text(child.tags, MAX_TAG_LENGTH), **identity}
            run_id = self._client.create_run(self._tracker.experiment_id, start_ms, child_tags, child.name).info.run_id
            self._begun[child.key] = run_id
            for path, directory in child.files:
                self._client.log_artifact(run_id, str(path), directory)
            for artifact, name, directory in large_files:
                if store.is_local:
                    self._client.log_artifact(run_id, str(artifact.path(name)), directory)
                else:
                    self._log_link(run_id, artifact, name, directory)
            self._client.log_batch(run_id, metrics_of(points, end_ms), params_of(as_text(child.params, MAX_PARAM_LENGTH)))
            self._client.set_terminated(run_id, "FINISHED", end_ms)
            self._keep_one(child.key)
            del self._begun[child.key]

    def _log_link(self, run_id: str, artifact: Artifact, name: str, directory: str | None) -> None:
        """Log where a file of a bucket is, in its place and as tags: gigabytes need not go through the tracking server."""
        facts = {"size": artifact.manifest["files"][name]["size"], "sha256": artifact.manifest["files"][name]["sha256"]}
        link: dict[str, Any] = {"key": artifact.key, "url": artifact.location(name), **facts}
        stem = PurePosixPath(name).stem
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{stem}.json"
            path.write_text(json.dumps(link, indent=1) + "\n")
            self._client.log_artifact(run_id, str(path), directory)
        for fact in ("url", "size", "sha256"):
            self._client.set_tag(run_id, f"{stem}.{fact}", str(link[fact]))

    def _keep_one(self, key: str) -> None:
        """Of an artifact's runs the finished one that was begun first stays, and those that others are logging."""
        runs = search(self._client, self._tracker.experiment_id, f"tags.artifact_key = '{key}'")
        finished = [run for run in runs if run.info.status == "FINISHED"]
        kept = min(finished, key=_begun_first).info.run_id
        for run in runs:
            if run.info.run_id != kept and run.info.status != "RUNNING":
                self._client.delete_run(run.info.run_id)
        if len(finished) > 1:  # another driver is at work in this experiment: what it has logged meanwhile is asked for again
            self._finished = None
        elif self._finished is not None:
            self._finished[key] = kept


def _begun_first(run: Run) -> tuple[int, str]:
    return int(run.data.tags.get(LOGGED_TAG, 0)), run.info.run_id
