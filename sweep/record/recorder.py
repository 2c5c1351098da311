"""Records stages as they finish, on a thread of its own: the sweep never waits for MLflow before its end.

A store that cannot be reached costs no result: what could not be logged is tried again, at last when the sweep ends, and then by
the next run of the same command, since children are found by their artifact's key.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from sweep.record.note import with_links
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import TrackingError
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

if TYPE_CHECKING:
    from pandas import DataFrame

RETRY_S = 60.0
STALLED_S = 900.0
PATIENCE_S = 5.0
HINT = "What is computed stays in the store: the same command logs what is missing and computes nothing again"


class Recorder:
    """Logs the children of a sweep's run while it runs, and at its end the rest.

    on_progress: called with (number done, number of all) by a thread that waits in `flush` or `finish`; may raise.
    """

    def __init__(self, sweep_run: SweepRun, store: Store, on_progress: Callable[[int, int], None] | None = None) -> None:
        self._sweep_run, self._store, self._on_progress = sweep_run, store, on_progress
        self._changed = threading.Condition()
        self._waiting: deque[Stage] = deque()
        self._seen: set[str] = set()
        self._num_done = 0
        self._retry_at = 0.0
        self._failure: TrackingError | None = None  # why the first of those that wait could not be logged
        self._is_others = False  # another living driver records this sweep
        self._error: Exception | None = None  # of a stage that cannot be logged at all
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def on_finished(self, stage: Stage) -> None:
        """Have a stage logged whose artifact is in the store. Returns at once, raises nothing; a stage is taken once."""
        with self._changed:
            if self._is_closed or stage.key in self._seen:
                return
            self._seen.add(stage.key)
            self._waiting.append(stage)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is logged; what failed before is tried once more.

        Returns early where another living driver records this sweep. Raises TrackingError where the MLflow store fails, with the fix; then
        whatever a stage raised whose child could not be made.
        """
        with self._changed:
            self._failure, self._is_others, self._retry_at = None, False, 0.0
            self._changed.notify_all()
        num_before, since = self._num_done, time.monotonic()
        while not self._is_flushed():
            if self._on_progress is not None:
                self._on_progress(self._num_done, len(self._seen))
            if self._num_done != num_before:
                num_before, since = self._num_done, time.monotonic()
            if time.monotonic() - since > STALLED_S:
                raise TrackingError(f"The MLflow store has not taken a run for {STALLED_S:.0f} s: see whether it answers. {HINT}")
        if self._failure is not None:
            raise TrackingError(f"{self._failure}. {HINT}") from self._failure
        if self._on_progress is not None and not self._is_others:
            self._on_progress(self._num_done, len(self._seen))
        if self._error is not None:
            raise self._error

    def _is_flushed(self) -> bool:
        """Waits a moment for it."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting or self._failure is not None or self._is_others, timeout=0.2)

    def finish(
        self,
        *,
        files: Mapping[str, Path],
        tables: Mapping[str, DataFrame],
        metrics: Mapping[str, float | None],
        note: str,
        pages: Mapping[str, str] | None = None,
        compared: Sequence[str] = (),
    ) -> None:
        """Wait for the children, log what is the whole sweep's, and end its run as FINISHED.

        files: name in the run, such as `report.html` or `figures/trade_off.png`, -> local file of the same last name. tables: name ->
        logged as NAME.parquet with the page NAME.html, from `pages` where it holds one. note: Markdown for the top of the run's page, of
        which the first paragraph says what was run; links to the files, and to the children of the artifacts in `compared` side by
        side, are put behind it. After a failure it can be called again, also
        by the next run of the same command. A no-op where the sweep is recorded, or being recorded by another living driver. Raises as
        `flush` does.
        """
        sweep_run = self._sweep_run
        if not sweep_run.may_log():
            return
        self.flush()
        for name, table in tables.items():
            sweep_run.log_table(name, table, (pages or {}).get(name))
        for name, path in files.items():
            assert path.name == PurePosixPath(name).name, "MLflow takes a file by its own name"
            directory = PurePosixPath(name).parent
            sweep_run.log_artifact(path, None if directory == PurePosixPath(".") else directory.as_posix())
        sweep_run.log_metrics(metrics)
        shown = [*dict.fromkeys(name.partition("/")[0] for name in files), *(f"{name}.html" for name in tables)]
        side_by_side = sweep_run.comparison(compared)
        links = [*map(sweep_run.link, shown), *([side_by_side] if side_by_side else [])]
        sweep_run.describe(with_links(note, links))
        sweep_run.finish("FINISHED")

    def close(self) -> None:
        """End the thread after a moment's patience; what still waits is logged by the next run of the same command."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._waiting or time.monotonic() < self._retry_at, timeout=PATIENCE_S)
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        while (stage := self._next()) is not None:
            try:
                is_done = self._log(stage)
            except TrackingError as error:
                self._postpone(error)
            except Exception as error:  # whatever a stage raises: the others are logged, and `flush` raises it
                self._error = self._error or error
                self._take_off()
            else:
                if is_done:
                    self._take_off()
                else:
                    self._postpone(None)

    def _next(self) -> Stage | None:
        """The stage to log now, as soon as there is one; it stays in the queue until it is logged. None at the end."""
        with self._changed:
            while not self._is_closed:
                wait_s = self._retry_at - time.monotonic()
                if self._waiting and wait_s <= 0:
                    return self._waiting[0]
                self._changed.wait(wait_s if self._waiting else None)
        return None

    def _log(self, stage: Stage) -> bool:
        """Whether the stage needs no more logging."""
        if not self._sweep_run.may_log():
            return self._sweep_run.already_finished
        if not self._sweep_run.is_logged(stage.key):
            child = stage.child_run(self._store)
            if child is not None:
                self._sweep_run.log_child(child, self._store)
        return True

    def _take_off(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._num_done += 1
            self._changed.notify_all()

    def _postpone(self, failure: TrackingError | None) -> None:
        with self._changed:
            self._retry_at = time.monotonic() + RETRY_S
            self._failure, self._is_others = failure, failure is None
            self._changed.notify_all()
