"""Fine-tuning on Ray Train: several independent fits of one worker, each taking the next model that nobody trains. The only use of
Ray Train.

One fit over all workers would start when all are there, restart all when one is lost, and hold all until the last is done. Fits of one
worker go on with whatever there is: a lost node costs what its model has not checkpointed, and a worker that finds nothing to do ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from sweep.engines import interruption
from sweep.engines.cluster import Workers
from sweep.engines.job import OnDone, Work, attempt
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store

POLL_S = 1.0
WAIT_S = 5.0
"""How long a worker looks again for a model to take before it ends: another may just be giving one back."""


def run_trainings(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Train the models that are missing, the longest first, task-parallel over the workers.

    The store's leases are the queue: a worker takes a model that no live process holds, so that two sweeps on one store share the work.
    A fit whose worker dies starts again elsewhere; its model goes on from its last checkpoint. An error of a training is raised as it was.
    """
    if not works:
        return
    progress = Progress("finetune", len(works), "models")
    missing = {work.key: work for work in sorted(works, key=lambda w: -w.size)}

    def count() -> None:
        for key in store.existing(missing):
            on_done(missing.pop(key))
            progress.advance()

    while missing:
        fits = [_Fit(n, list(missing.values()), store, workers) for n in range(min(workers.number, len(missing)))]
        while any(fit.is_running for fit in fits):
            time.sleep(POLL_S)
            interruption.check()
            count()
            for fit in fits:
                fit.raise_error()
        for fit in fits:
            fit.raise_error()
        count()
        while missing and all(store.is_claimed(key) for key in missing):  # another sweep's workers have them
            time.sleep(POLL_S)
            interruption.check()
            count()


class _Trainer(TorchTrainer):
    """Without Ray Train's own handler of Ctrl-C, which ends the process with exit code 0 and stays in place after the fit."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _Fit:
    """One fit of one worker, waited for in a thread."""

    def __init__(self, number: int, works: list[Work], store: Store, workers: Workers) -> None:
        self._error: BaseException | None = None
        # Ray Train resumes silently where a run name is used again; resuming is the store's matter here.
        name = f"{works[0].key[:12]}-{time.time_ns():x}-{number}"
        self._scratch = f"ray_train-{name}"
        self._store = store
        self._trainer = _Trainer(
            train_loop_per_worker=_train_loop,
            train_loop_config={"works": works, "store": store, "threads": workers.threads},
            scaling_config=ScalingConfig(num_workers=1, use_gpu=workers.num_gpus > 0, resources_per_worker=workers.resources()),
            run_config=RunConfig(
                name=name, storage_path=store.scratch(self._scratch), failure_config=FailureConfig(max_failures=-1)
            ),
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            metrics = self._trainer.fit().metrics or {}
            self._error = metrics.get("error")
        except Exception as error:
            self._error = error
        finally:
            self._store.remove_scratch(self._scratch)

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _train_loop(config: dict[str, Any]) -> None:
    """Train one model after the other until nothing is left that nobody holds. An error is reported: raised, it would be tried again."""
    store, pending = config["store"], list(config["works"])
    torch.set_num_threads(config["threads"])
    found_nothing_s = 0.0
    while pending and found_nothing_s < WAIT_S:
        held = []
        for work in pending:
            outcome = attempt(work, store, wait=False)
            if outcome.error is not None:
                ray.train.report({"error": outcome.error})
                return
            if outcome.meta is None:
                held.append(work)
        found_nothing_s = found_nothing_s + POLL_S if len(held) == len(pending) else 0.0
        pending = held
        if pending:
            time.sleep(POLL_S)
    ray.train.report({"error": None})
