"""The label stage of a sweep: which shards there are, and the job that labels them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from core.games.attribution_labels import Precision
from sweep.engines.shards import ShardReport
from sweep.experiment.config import Device
from sweep.stages.computations import compute_label_shard, count_pictures
from sweep.stages.plan import LABEL_SPLITS, LabelSplit, Plan
from sweep.store.artifacts import Store

# Coalitions evaluated at once: on a CPU few, so that a layer's activations stay in its cache. Fixed, so that a sweep's numbers are too.
BATCH_SIZES: dict[tuple[Device, Precision], int] = {
    ("cpu", "float32"): 64,
    ("cpu", "bfloat16"): 128,
    ("cuda", "float32"): 2048,
    ("cuda", "bfloat16"): 2048,
}


@dataclass(frozen=True)
class SweepShard:
    """A range of pictures of one split of one domain: the unit that is labelled, stored and resumed."""

    domain: str
    split: LabelSplit
    start: int
    stop: int


@dataclass(frozen=True)
class SweepLabels:
    """The job: each shard is an artifact."""

    plan: Plan
    store: Store

    def missing(self) -> list[SweepShard]:
        """The shards of all domains that are not in the store, domain by domain."""
        plan, store = self.plan, self.store
        shards = [
            SweepShard(domain, split, start, stop)
            for domain in plan.domains
            for counts in [count_pictures(plan, store, domain)]
            for split in LABEL_SPLITS
            for start, stop in plan.shard_ranges(counts["test" if split == "ceiling" else split], split)
        ]
        return [s for s in shards if not store.exists(plan.label_shard(s.domain, s.split, s.start, s.stop).key)]

    def label(self, shard: SweepShard) -> ShardReport:
        began = time.monotonic()
        batch_size = BATCH_SIZES[self.plan.config.device, self.plan.label_settings(shard.split).precision]
        artifact = compute_label_shard(self.plan, self.store, shard.domain, shard.split, shard.start, shard.stop, batch_size)
        meta = artifact.manifest["meta"]
        return ShardReport(
            shard.stop - shard.start,
            meta["evaluations"],
            seconds=time.monotonic() - began,
            evaluation_seconds=meta["evaluation_seconds"],
        )
