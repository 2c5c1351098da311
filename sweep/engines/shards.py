"""Shards on Ray Data: through one pool of actors. The only use of Ray Data."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from sweep.engines.cluster import Workers
from sweep.engines.job import MAX_LOSSES, OnDone, Work, WorkLostError, attempt
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store


class LabelMeter:
    """Progress of a labelling: pictures, evaluations a second, time left, and cost where a price is given.

    price_per_hour: of all workers together.
    """

    def __init__(self, num_pictures: int, price_per_hour: float | None = None) -> None:
        self._progress = Progress("labels", num_pictures, "pictures")
        self._price_per_hour = price_per_hour
        self._began = time.monotonic()
        self._num_evaluations = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def add(self, meta: Mapping[str, Any]) -> None:
        """Count a shard by its manifest's meta."""
        self._num_evaluations += meta["evaluations"]
        number = meta["num_pictures"] + meta["num_skipped"]
        seconds = self.seconds
        done = self._progress.done + number
        extra = f"{done / seconds:,.1f} pictures/s, {self._num_evaluations / seconds:,.0f} evaluations/s"
        if self._price_per_hour is not None:
            extra += f", cost so far {seconds / 3600 * self._price_per_hour:,.2f}"
            left = self._progress.left_s(time.monotonic())
            if left is not None:
                extra += f" of about {(seconds + left) / 3600 * self._price_per_hour:,.2f}"
        self._progress.advance(number, extra)


class ShardActor:
    """Publishes one shard a call; what it loads for one stays for the next."""

    def __init__(self, works: Sequence[Work], store: Store, threads: int) -> None:
        torch.set_num_threads(threads)
        self._works, self._store = works, store

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"shard": row["shard"], "outcome": attempt(self._works[int(row["shard"])], self._store)}


def run_shards(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Publish the shards in one execution.

    An actor that dies is replaced and its shard done again, MAX_LOSSES times. An error in a shard is raised as it was there; what is
    published stays.
    """
    if not works:
        return
    price = None if workers.price_per_hour is None else workers.price_per_hour * workers.number
    meter = LabelMeter(round(sum(w.size for w in works)), price)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_task_retry_on_errors = False
    with warnings.catch_warnings():
        # Only so can the retries of one shard be bounded, until Ray 2.64 takes it away (pyproject.toml).
        warnings.simplefilter("ignore", RayDeprecationWarning)
        published = ray.data.from_items([{"shard": i} for i in range(len(works))], override_num_blocks=len(works)).map(
            ShardActor,  # type: ignore[arg-type]
            fn_constructor_args=(tuple(works), store, workers.threads),
            compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(works)), max_tasks_in_flight_per_actor=2),
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus or None,
            max_task_retries=MAX_LOSSES,  # of one shard; an actor may be replaced any number of times
        )
    for row in _rows(published):
        outcome = row["outcome"]
        if outcome.error is not None:
            raise outcome.error
        on_done(works[int(row["shard"])])
        meter.add(outcome.meta)


def _rows(published: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from published.iter_rows()
    except ray.exceptions.RayError as error:
        raise WorkLostError.of("a shard", error) from error
