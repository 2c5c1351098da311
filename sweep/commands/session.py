"""A store with the engines at hand: Ray is started or joined at the first thing to compute, and left at the end."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from sweep.commands.options import Places
from sweep.engines import cluster, scheduler
from sweep.engines.job import OnDone, Work
from sweep.experiment.config import ConfigError, Device
from sweep.store.artifacts import Store


class Session:
    """Use it in a `with`. price_per_hour: of one worker, to show what labels cost.

    Raises ConfigError where the cluster does not answer, or its nodes do not see a local store.
    """

    def __init__(self, store: Store, places: Places, device: Device, price_per_hour: float | None = None) -> None:
        self.store = store
        self._price_per_hour = price_per_hour
        self._places, self._device = places, device
        self._stack = ExitStack()
        self._workers: cluster.Workers | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def workers(self) -> cluster.Workers:
        if self._workers is None:
            places = self._places
            found = self._stack.enter_context(
                cluster.connected(
                    places.address, self._device, places.num_workers, places.gpus_per_worker, places.threads_per_worker
                )
            )
            self._workers = replace(found, price_per_hour=self._price_per_hour)
            if not cluster.is_local(places.address):
                self._check_shared()
        return self._workers

    def _check_shared(self) -> None:
        """Every node must see what the driver writes."""
        probe = self.store.write_probe()
        try:
            blind = cluster.nodes_where_not(self.store.sees_probe, probe)
        finally:
            self.store.remove_probe(probe)
        if blind:
            raise ConfigError(
                f"the store {self.store} lies where only this machine sees it: the cluster's node {blind[0]} would write to a disk of its "
                "own, which vanishes with it. Give --store a directory that all nodes share, or a bucket such as s3://BUCKET/sweep"
            )

    def compute(self, targets: list[Work], on_done: OnDone) -> None:
        """Compute what is missing of the targets' artifacts. Nothing is started where all are there."""
        if works := scheduler.missing(targets, self.store):
            scheduler.run(works, self.store, self.workers, on_done)
