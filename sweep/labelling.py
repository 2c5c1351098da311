"""Attribution labels on Ray Data: shards of all domains through one pool of actors. The only use of Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
import torch

from sweep.cluster import Workers
from sweep.plan import LABEL_SPLITS, LabelSplit, Plan
from sweep.stages import compute_label_shard, count_pictures
from sweep.store import Store

# Coalitions evaluated at once: on a CPU few, so that a layer's activations stay in its cache.
BATCH_SIZES = {"cpu": 64, "cuda": 2048}


@dataclass(frozen=True)
class Shard:
    """A range of pictures of one split of one domain: the unit that is labelled, stored and resumed."""

    domain: str
    split: LabelSplit
    start: int
    stop: int

    def num_evaluations(self, plan: Plan) -> int:
        return (self.stop - self.start) * plan.label_settings(self.split).budget


def all_shards(plan: Plan, store: Store) -> list[Shard]:
    """Every label shard of a sweep whose pictures are there, domain by domain."""
    return [
        Shard(domain, split, start, stop)
        for domain in plan.domains
        for counts in [count_pictures(plan, store, domain)]
        for split in LABEL_SPLITS
        for start, stop in plan.shard_ranges(counts["test" if split == "ceiling" else split], split)
    ]


def is_complete(plan: Plan, store: Store, shard: Shard) -> bool:
    return store.exists(plan.label_shard(shard.domain, shard.split, shard.start, shard.stop).key)


class ShardLabeller:
    """The actor: labels one shard a call and publishes it. Keeps the last domain's classifier."""

    def __init__(self, plan: Plan, store: Store, threads: int, batch_size: int) -> None:
        torch.set_num_threads(threads)
        self._plan, self._store, self._batch_size = plan, store, batch_size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(str(row["domain"]), row["split"], int(row["start"]), int(row["stop"]))
        compute_label_shard(
            self._plan, self._store, shard.domain, shard.split, shard.start, shard.stop, self._batch_size
        )
        return {"evaluations": shard.num_evaluations(self._plan), "pictures": shard.stop - shard.start}


def label(
    plan: Plan,
    store: Store,
    shards: Sequence[Shard],
    workers: Workers,
    on_shard: Callable[[int, int], None],
) -> None:
    """Label the shards that are missing, in one execution. on_shard(pictures, evaluations) is called as each is published.

    An actor that dies is replaced and its shard labelled again; a shard that stands is not.
    """
    if not shards:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_task_retry_on_errors = False
    batch_size = BATCH_SIZES[plan.config.device]
    rows = [{"domain": s.domain, "split": s.split, "start": s.start, "stop": s.stop} for s in shards]
    labelled = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ShardLabeller,  # type: ignore[arg-type]
        fn_constructor_args=(plan, store, workers.threads, batch_size),
        compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(rows)), max_tasks_in_flight_per_actor=2),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus or None,
    )
    for row in labelled.iter_rows():
        on_shard(int(np.asarray(row["pictures"])), int(np.asarray(row["evaluations"])))
