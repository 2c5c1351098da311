"""Fine-tuning on Ray Train: fits whose workers each take the next model that nobody trains. The only use of Ray Train.

On a cluster a fit has one worker: one fit over all of them would start when all are there, restart all when one is lost, and hold all until
the last is done. So work goes on with whatever there is, a lost node costs what its model has not checkpointed, and a worker that
finds nothing to do gives its GPU back. On one machine, where nodes are not lost, one fit of all workers starts quicker.

A model that several workers train together is one fit of that many: it begins when they are free, and all begin again where one is lost.
Checkpoints and the model go to the store, not through Ray Train, so that no worker has anything to report to it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import BackendConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.engines import interruption
from sweep.engines.cluster import Workers
from sweep.engines.job import OnDone, Outcome, Work, WorkLostError, attempt, attempt_together, through_outages
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store
from sweep.store.files import UnreachableError

_log = logging.getLogger(__name__)

POLL_S = 1.0
WAIT_S = 5.0
"""How long a worker looks again for a model to take before it ends: another may just be giving one back."""
MAX_QUICK_LOSSES = 10
"""Fits for each worker in a row that may be lost soon after they began, before a model is finished: what kills them then is no accident."""
QUICK_S = 300.0
"""A fit that lived for longer has left a checkpoint: its loss has cost minutes and is nobody's fault."""


def run_trainings(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Train the models that are missing, the longest first, task-parallel over the workers.

    The store's leases are the queue: a worker takes a model that no live process holds, so that two sweeps on one store share the work.
    A fit whose worker dies is begun again elsewhere; its model goes on from its last checkpoint. A training's error is raised as it was.
    """
    if works:
        _Trainings(works, store, workers, on_done).run()


class _Trainings:
    def __init__(self, works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
        self._store, self._workers, self._on_done = store, workers, on_done
        self._missing = {work.key: work for work in sorted(works, key=lambda w: -w.size)}
        self._progress = Progress("finetune", len(works), "models")
        self._fits: list[_Fit] = []
        self._num_quick_losses = 0
        self._is_controller_lost = False
        """On this machine, since `_give_back`."""

    def run(self) -> None:
        while self._missing or self._is_controller_lost:
            self._take_off_finished()
            self._collect_fits()
            self._give_back()
            if not self._is_controller_lost:
                self._start_fits()
            time.sleep(POLL_S)
            interruption.check()

    def _take_off_finished(self) -> None:
        for key in through_outages(lambda: self._store.existing(self._missing)):
            self._on_done(self._missing.pop(key))
            self._progress.advance()
            self._num_quick_losses = 0

    def _collect_fits(self) -> None:
        """Take off the fits that have ended. Raises the error of a training, or of the engine where fits are lost again and again."""
        for fit in [fit for fit in self._fits if not fit.is_running]:
            self._fits.remove(fit)
            outcome = fit.outcome
            if isinstance(outcome, Lost):
                # Where a worker was lost, the controller lived and gave back what it had reserved.
                self._is_controller_lost |= self._workers.is_one_machine and not isinstance(outcome.reason, WorkerGroupError)
                self._num_quick_losses += fit.seconds < QUICK_S
                _log.info("a fit was lost and is begun again: %s", outcome.reason)
                most = MAX_QUICK_LOSSES * (1 if self._workers.is_one_machine else self._workers.number)
                if self._num_quick_losses > most:
                    raise WorkLostError.of("trainings", outcome.reason, most) from outcome.reason
            elif outcome.error is not None:
                raise outcome.error

    def _give_back(self) -> None:
        """What fits reserved whose controller died before it could give it back: on a cluster Ray keeps a process a fit for that.

        On this machine it is done when no fit runs: then nothing in this Ray, which is this run's alone, has anything reserved.
        """
        if not self._is_controller_lost or self._fits:
            return
        for key, reserved in placement_group_table().items():
            if reserved["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
        self._is_controller_lost = False

    def _start_fits(self) -> None:
        """As many workers as there is work for that nobody has begun; first for models of several, which are the long ones."""
        num_idle = self._workers.number - sum(fit.num_workers for fit in self._fits)
        for work in self._missing.values():
            if 1 < work.num_workers <= num_idle and not self._is_begun(work):
                self._fits.append(_Fit(work.num_workers, [work], self._store, self._workers))
                num_idle -= work.num_workers
        alone = [work for work in self._missing.values() if work.num_workers == 1]
        num_idle = min(num_idle, len(alone) - sum(fit.num_workers for fit in self._fits if not fit.is_together))
        if num_idle <= 0:
            return
        num_workers = min(num_idle, sum(not self._is_claimed(work) for work in alone))
        size = num_workers if self._workers.is_one_machine else 1
        for _ in range(num_workers // max(1, size)):
            self._fits.append(_Fit(size, alone, self._store, self._workers))

    def _is_begun(self, work: Work) -> bool:
        return any(fit.is_together and work in fit.works for fit in self._fits) or self._is_claimed(work)

    def _is_claimed(self, work: Work) -> bool:
        return through_outages(lambda: self._store.is_claimed(work.key))


class _Trainer(DataParallelTrainer):
    """Without what costs a process each and serves nothing here, and without a handler of Ctrl-C that ends with code 0.

    What TorchTrainer adds, a process group and torch in the controller, is for workers of one model (`_process_group`). Any other worker
    sees no GPU but its own.
    """

    unused: frozenset[str] = frozenset({"DatasetsCallback"})
    """Names of callbacks. A manager of data sets: pictures come from the store."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in self.unused]


def _process_group() -> BackendConfig:
    """What lets Ray Train join the workers of a fit by torch."""
    from ray.train.torch import TorchConfig

    return TorchConfig()


class _Fit:
    """One fit, in a task beside the driver: in a thread of the driver it would stand in the way of Ctrl-C."""

    def __init__(self, num_workers: int, works: list[Work], store: Store, workers: Workers) -> None:
        self.num_workers, self.works = num_workers, works
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = ray.remote(_fit).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        self._reference = task.remote(num_workers, works, store, workers)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was begun, waiting for its workers among it."""
        return time.monotonic() - self._began

    @property
    def is_together(self) -> bool:
        """Whether its workers train one model."""
        return self.works[0].num_workers > 1

    @property
    def is_running(self) -> bool:
        return not ray.wait([self._reference], timeout=0)[0]

    @property
    def outcome(self) -> Lost | Outcome:
        """Of a fit that has ended."""
        try:
            return ray.get(self._reference)
        except ray.exceptions.RayError as error:
            return Lost(error)


@dataclass(frozen=True)
class Lost:
    """A fit whose processes died."""

    reason: Exception


def _fit(num_workers: int, works: list[Work], store: Store, workers: Workers) -> Lost | Outcome:
    # Here, not in the driver: the processes of a cluster that was there before inherit nothing from it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # losses are the sweep's own matter, and it costs a process
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon Ray Train sees that a fit is done
    # Ray Train resumes silently where a run name is used again; resuming is the store's matter here.
    name = f"{works[0].key[:12]}-{time.time_ns():x}"
    scratch = f"ray_train-{name}"

    def train_loop() -> None:  # what it trains is not in its configuration, which Ray Train's controller would import torch to read
        _train_loop(works, store, workers.threads)

    trainer = _Trainer(
        train_loop_per_worker=train_loop,
        backend_config=_process_group() if works[0].num_workers > 1 else None,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=workers.num_gpus > 0, resources_per_worker=workers.resources()),
        run_config=RunConfig(name=name, storage_path=store.scratch(scratch), failure_config=FailureConfig(max_failures=0)),
    )
    if workers.is_one_machine:
        trainer.unused |= {"PlacementGroupCleanerCallback"}  # a process for what `_give_back` does
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raised = error_of_training(error.worker_failures)
        is_lost = raised is None or (works[0].num_workers > 1 and isinstance(raised, UnreachableError))
        return Lost(error) if is_lost else Outcome(None, raised)
    except (ControllerError, ray.exceptions.RayError) as error:
        # Of Ray's own work around the workers, as where one dies while their group is set up; or Ray's controller of the fit died, which
        # it does, too, where the bucket that it keeps its files in cannot be reached.
        return Lost(error)
    except Exception as error:
        return Outcome(None, error)
    finally:
        store.remove_scratch(scratch)
    return Outcome(None)


def error_of_training(failures: Mapping[int, Exception]) -> BaseException | None:
    """What a fit's workers raised themselves, by their ranks' failures; None where a process was lost.

    Ray gives an error of the training as it was (some versions in a wrapper), and errors of its own where a process died. Of several
    workers those that live fail too when one dies, with a RuntimeError of torch's process group.
    """
    causes = [getattr(failure, "_base_exc", failure) for failure in failures.values()]
    if any(type(cause).__module__.split(".")[0] == "ray" for cause in causes):
        return None
    return next((cause for cause in causes if len(causes) == 1 or not isinstance(cause, RuntimeError)), None)


def _train_loop(works: Sequence[Work], store: Store, num_threads: int) -> None:
    """Train one model after the other until nothing is left that nobody holds; or the one that all workers train together."""
    import torch

    torch.set_num_threads(num_threads)
    pending = list(works)
    if pending[0].num_workers > 1:
        outcome = attempt_together(pending[0], store)
        if outcome.error is not None:
            raise outcome.error
        return
    found_nothing_s = 0.0
    while pending and found_nothing_s < WAIT_S:
        held = []
        for work in pending:
            outcome = attempt(work, store, wait=False)
            if outcome.error is not None:
                raise outcome.error
            if outcome.meta is None:
                held.append(work)
        found_nothing_s = found_nothing_s + POLL_S if len(held) == len(pending) else 0.0
        pending = held
        if pending:
            time.sleep(POLL_S)
