"""What an MLflow store knows of sweeps, for commands that only read: nothing is created or written here."""

from __future__ import annotations

import difflib
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.record.entities import search
from sweep.record.sweep_run import PLAN
from sweep.record.tracker import Tracker, TrackingError
from sweep.stages.plan import Plan
from sweep.store.credentials import without_credentials
from sweep.store.processes import is_alive_here, is_of_this_host

if TYPE_CHECKING:
    from mlflow.entities import Run
    from pandas import DataFrame

_SHORT = 8
_NAMED = 6


@dataclass(frozen=True)
class RecordedSweep:
    """A parent run. key: the sweep's, that of its result; driver: as in `processes`; started, ended: s since the epoch."""

    run_id: str
    key: str
    name: str
    experiment: str
    status: str
    driver: str
    started: float
    ended: float | None
    params: Mapping[str, str]

    @property
    def is_running(self) -> bool:
        return self.status == "RUNNING"

    @property
    def is_driver_alive(self) -> bool | None:
        """None where it runs, or ran, on another host, which cannot be asked."""
        return is_alive_here(self.driver) if is_of_this_host(self.driver) else None

    def __str__(self) -> str:
        return f"{self.name} (run {self.run_id[:_SHORT]}, {self.status})"


class History:
    """The sweeps of an MLflow store that is there. Runs and experiments that were deleted in it are not seen.

    tracking_uri: as `Tracker` takes it. Raises TrackingError, as all its methods do, with the fix.
    """

    def __init__(self, tracking_uri: str | None) -> None:
        self._tracker = Tracker(tracking_uri, "")
        self._client = self._tracker.reader()

    def __str__(self) -> str:
        """Its URI without credentials."""
        return without_credentials(self._tracker.uri)

    def sweeps(self) -> list[RecordedSweep]:
        """Of all experiments, the newest first."""
        found = [_recorded(run, experiment) for run, experiment in self._runs("tags.stage = 'sweep'")]
        return sorted(found, key=lambda sweep: -sweep.started)

    def find(self, text: str) -> RecordedSweep:
        """The one sweep whose run id or key begins so; of several runs of one key the newest. Close ones are named otherwise."""
        sweeps = self.sweeps()
        if not sweeps:
            raise TrackingError(f"{self} holds no sweep: give --tracking-uri as the sweep had it")
        found = [sweep for sweep in sweeps if text and (sweep.run_id.startswith(text) or sweep.key.startswith(text))]
        if len({sweep.key for sweep in found}) == 1:
            return found[0]
        if found:
            raise TrackingError(f"{text} begins several: {_named(found)}. Give more of the one you mean")
        names = {name[: max(4, len(text))]: sweep for sweep in sweeps for name in (sweep.run_id, sweep.key)}
        close = [names[name] for name in difflib.get_close_matches(text, names, n=_NAMED, cutoff=0.5)] or sweeps
        raise TrackingError(f"{self} holds no sweep whose run or key begins with {text}. It holds {_named(close)}")

    def artifact_key(self, run_id: str) -> str | None:
        """The key of the artifact that a run records, a sweep's or a child's; None where there is no such run."""
        for run, _ in self._runs(f"attributes.run_id = '{run_id}'"):
            return run.data.tags.get("artifact_key") or run.data.tags.get("sweep_key")
        return None

    def children(self) -> dict[str, set[str]]:
        """Keys of the artifacts that runs record, by the run that they are children of."""
        found: dict[str, set[str]] = defaultdict(set)
        for run, _ in self._runs("tags.stage != 'sweep'"):
            if "artifact_key" in run.data.tags:
                found[run.data.tags.get("mlflow.parentRunId", "")].add(run.data.tags["artifact_key"])
        return dict(found)

    def plan(self, sweep: RecordedSweep) -> Plan | None:
        """What the sweep was to compute; None where it was recorded before sweeps said so."""
        content = self._file(sweep, PLAN)
        if content is None:
            return None
        try:
            return Plan.from_json(content.decode())
        except ValueError as error:
            raise TrackingError(f"{PLAN} of {sweep} is damaged ({error}): give the sweep's command again") from None

    def read_json(self, sweep: RecordedSweep, name: str) -> Any:
        """A JSON file of a sweep's run; None where it has none."""
        content = self._file(sweep, name)
        return None if content is None else json.loads(content)

    def table(self, sweep: RecordedSweep, name: str) -> DataFrame | None:
        """A table of a finished sweep; None where it has none."""
        import pandas as pd

        content = self._file(sweep, f"{name}.parquet")
        return None if content is None else pd.read_parquet(io.BytesIO(content))

    def _file(self, sweep: RecordedSweep, name: str) -> bytes | None:
        with self._tracker.reporting(f"read {name}"), tempfile.TemporaryDirectory() as directory:
            if name not in {file.path for file in self._client.list_artifacts(sweep.run_id)}:
                return None
            return Path(self._client.download_artifacts(sweep.run_id, name, directory)).read_bytes()

    def _runs(self, chosen: str) -> list[tuple[Run, str]]:
        """With the names of their experiments."""
        with self._tracker.reporting("list its runs"):
            experiments = self._client.search_experiments()
            return [(run, e.name) for e in experiments for run in search(self._client, e.experiment_id, chosen)]


def _recorded(run: Run, experiment: str) -> RecordedSweep:
    info, tags = run.info, run.data.tags
    ended = None if info.end_time is None or info.status == "RUNNING" else info.end_time / 1000
    key, driver, name = tags.get("sweep_key", ""), tags.get("driver", ""), info.run_name or info.run_id
    return RecordedSweep(info.run_id, key, name, experiment, info.status, driver, info.start_time / 1000, ended, dict(run.data.params))


def _named(sweeps: list[RecordedSweep]) -> str:
    names = [f"{sweep.run_id[:_SHORT]} ({sweep.name})" for sweep in sweeps[:_NAMED]]
    return ", ".join([*names, *([f"{len(sweeps) - _NAMED} more"] if len(sweeps) > _NAMED else [])])
