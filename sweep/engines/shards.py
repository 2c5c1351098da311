"""Attribution labels on Ray Data: shards through one pool of actors. The only use of Ray Data.

What the shards are is a job's matter: the splits of a sweep's domains (`sweep_labels`) or a data set's pictures (`dataset_labels`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import ray.data
import torch

from sweep.engines.cluster import Workers
from sweep.engines.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardReport:
    """What labelling a shard took. evaluation_seconds: of `seconds`, those spent in the model."""

    num_pictures: int
    num_evaluations: int
    num_skipped: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0


class LabelJob(Protocol):
    """Labels shards; sent to every actor, where it may keep a model between shards."""

    def label(self, shard: Any) -> ShardReport:
        """Label a shard and publish its file, whole or not at all."""
        ...


class LabelMeter:
    """Progress of a labelling: pictures, evaluations a second, time left, and cost where a price is given.

    price_per_hour: of all workers together. The rate counts from the first shard on, so that start-up is not extrapolated.
    """

    def __init__(self, num_pictures: int, price_per_hour: float | None = None) -> None:
        self._progress = Progress("labels", num_pictures, "pictures")
        self._price_per_hour = price_per_hour
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last = 0.0
        self.num_evaluations = 0
        self.num_skipped = 0
        self.worker_seconds = 0.0
        self.evaluation_seconds = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def steady_rate(self) -> float | None:
        """Pictures a second from the first finished shard to the last: start-up left out. None with fewer than two shards."""
        if self._first is None or self._last <= self._first[0]:
            return None
        return (self._progress.done - self._first[1]) / (self._last - self._first[0])

    def add(self, report: ShardReport) -> None:
        self.num_evaluations += report.num_evaluations
        self.num_skipped += report.num_skipped
        self.worker_seconds += report.seconds
        self.evaluation_seconds += report.evaluation_seconds
        number = report.num_pictures + report.num_skipped
        seconds = self.seconds
        done = self._progress.done + number
        extra = f"{done / seconds:,.1f} pictures/s, {self.num_evaluations / seconds:,.0f} evaluations/s"
        if self._price_per_hour is not None:
            extra += f", cost so far {seconds / 3600 * self._price_per_hour:,.2f}"
            left = self._progress.left_s(time.monotonic())
            if left is not None:
                extra += f" of about {(seconds + left) / 3600 * self._price_per_hour:,.2f}"
        self._progress.advance(number, extra)
        self._last = time.monotonic()
        self._first = self._first or (self._last, self._progress.done)


class ShardLabeller:
    """The actor: labels one shard a call."""

    def __init__(self, job: LabelJob, shards: Sequence[Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._job, self._shards = job, shards

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report, or the error: raised here, it would reach the driver as Ray Data's own, without its cause."""
        try:
            return {**asdict(self._job.label(self._shards[int(row["shard"])])), "error": None}
        except Exception as error:
            _log.exception("labelling shard %s failed", self._shards[int(row["shard"])])
            return {**asdict(ShardReport(0, 0)), "error": error}


def label_shards(job: LabelJob, shards: Sequence[Any], workers: Workers, on_shard: Callable[[ShardReport], None]) -> None:
    """Label the shards in one execution. on_shard is called as each is published.

    An actor that dies is replaced and its shard labelled again. An error in a shard is raised as it was there; what is published stays.
    """
    if not shards:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_task_retry_on_errors = False
    labelled = ray.data.from_items([{"shard": i} for i in range(len(shards))], override_num_blocks=len(shards)).map(
        ShardLabeller,  # type: ignore[arg-type]
        fn_constructor_args=(job, tuple(shards), workers.threads),
        compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(shards)), max_tasks_in_flight_per_actor=2),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus or None,
    )
    for row in labelled.iter_rows():
        error = row.pop("error")
        if isinstance(error, BaseException):
            raise error
        on_shard(ShardReport(**{name: np.asarray(value).item() for name, value in row.items()}))
