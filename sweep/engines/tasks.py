"""Plain Ray tasks: whatever needs neither an actor pool, a training nor a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from sweep.engines import interruption
from sweep.engines.cluster import Workers
from sweep.engines.job import MAX_LOSSES, OnDone, Outcome, Work, WorkLostError, attempt
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store

POLL_S = 0.5


def run_tasks(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Run each piece of work as a task: on a worker's device where it asks for one, on a CPU elsewhere.

    A task whose node dies is run again elsewhere, MAX_LOSSES times. The first error is raised as it was in the task; what others published
    stays.
    """
    if not works:
        return
    title = max({w.kind for w in works}, key=lambda kind: sum(w.size for w in works if w.kind == kind))
    progress = Progress(title.replace("_", " "), len(works), "tasks")
    works = sorted(works, key=lambda w: -w.size)
    for work, outcome in _outcomes(works, store, workers):
        if outcome.error is not None:
            raise outcome.error
        on_done(work)
        progress.advance()


def _outcomes(works: Sequence[Work], store: Store, workers: Workers) -> Iterator[tuple[Work, Outcome]]:
    on_device = ray.remote(_run).options(num_cpus=workers.num_cpus, num_gpus=workers.num_gpus or None, max_retries=MAX_LOSSES)
    on_cpu = ray.remote(_run).options(num_cpus=1, max_retries=MAX_LOSSES)
    waiting = list(reversed(works))
    running: dict[Any, Work] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers.num_tasks:
                work = waiting.pop()
                running[(on_device if work.uses_device else on_cpu).remote(work, store, workers.threads)] = work
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
            interruption.check()
            for reference in done:
                work = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise WorkLostError.of(f"{work.kind} {work.name}", error) from error
                yield work, outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=False)


def _run(work: Work, store: Store, threads: int) -> Outcome:
    import torch

    torch.set_num_threads(threads)
    return attempt(work, store)


def call_on_worker(function: Callable[..., Any], arguments: tuple[Any, ...], workers: Workers, spread: bool = False) -> Any:
    """function(*arguments) in one task on a CPU; with spread, on another node than the driver's where there is one."""
    strategy = "SPREAD" if spread else "DEFAULT"
    task = ray.remote(function).options(num_cpus=1, max_retries=2, scheduling_strategy=strategy)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
