"""The Ray cluster a sweep runs on: one started on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from sweep.experiment.config import ConfigError, Device

SPARE_CPUS = 2
"""Logical CPUs beyond the workers': Ray Data and Ray Train hold one each for orchestration, and deadlock where none is left."""


@dataclass(frozen=True)
class Workers:
    """How many workers a stage may keep busy, and what each asks of Ray."""

    number: int
    num_gpus: float
    threads: int

    @property
    def num_cpus(self) -> float:
        return 1.0

    def resources(self) -> dict[str, float]:
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


@contextmanager
def connected(
    address: str | None,
    device: Device,
    num_workers: int | None,
    gpus_per_worker: float = 1.0,
    threads_per_worker: int | None = None,
) -> Iterator[Workers]:
    """Connect to a cluster, or start Ray on this machine and stop it at the end.

    threads_per_worker: None shares this machine's cores out, and gives a cluster's workers one each.
    Raises ConfigError when the address does not answer or the cluster has no GPU for a sweep on `cuda`.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a worker without GPUs keeps its environment
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon Ray Train sees that a fit is done
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep, not one stage of it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables: the sweep has its own progress
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own files keep what the terminal need not show
    cores = os.cpu_count() or 1
    local = address in (None, "local")
    workers = num_workers or (cores if local and device == "cpu" else None)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if local:
            ray.init(
                num_cpus=max(cores, workers or 1) + SPARE_CPUS,
                include_dashboard=False,
                _temp_dir=os.environ.get("RAY_TMPDIR"),
                runtime_env={"env_vars": _thread_limits(threads_per_worker or max(1, cores // (workers or 1)))}
                if device == "cpu"
                else None,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {address!r} ({error}): check --address, or leave it out to start Ray here") from error
    try:
        found = _workers(device, workers, gpus_per_worker, local)
        yield replace(found, threads=threads_per_worker) if threads_per_worker else found
    finally:
        ray.shutdown()


def _thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _workers(device: Device, asked: int | None, gpus_per_worker: float, local: bool) -> Workers:
    resources = ray.cluster_resources()
    if device == "cuda":
        autoscaling = not local  # workers may not have been started yet
        gpus = int(resources.get("GPU", 0) / gpus_per_worker)
        if gpus == 0 and not (autoscaling and asked):
            raise ConfigError("this sweep asks for GPUs and the cluster has none now: give --workers N to scale up to, or --device cpu")
        return Workers(asked or gpus, gpus_per_worker, 1)
    cores = os.cpu_count() or 1
    number = asked or max(1, int(resources.get("CPU", 1)) - SPARE_CPUS)
    return Workers(number, 0.0, max(1, cores // number) if local else 1)


def run_tasks(function: Callable[..., Any], arguments: list[tuple[Any, ...]], num_at_once: int) -> Iterator[Any]:
    """Run function(*arguments) as Ray tasks, at most `num_at_once` at a time; yields results as they come.

    The first error is raised as it was in the task; the others' results are not lost, since tasks publish to the store.
    """
    task = ray.remote(function).options(num_cpus=1, max_retries=2)
    waiting = list(arguments)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < num_at_once:
            running.append(task.remote(*waiting.pop(0)))
        done, running = ray.wait(running, num_returns=1)
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def stream_from_worker(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], workers: Workers) -> Iterator[Any]:
    """What the generator function(*arguments) yields, in one task with a worker's resources, as it comes."""
    task = ray.remote(function).options(num_cpus=workers.num_cpus, num_gpus=workers.num_gpus or None, num_returns="streaming")
    try:
        for reference in task.remote(*arguments):
            yield ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def run_on_worker(function: Callable[..., Any], arguments: tuple[Any, ...], workers: Workers) -> Any:
    """function(*arguments) in one task with a worker's resources."""
    task = ray.remote(function).options(num_cpus=workers.num_cpus, num_gpus=workers.num_gpus or None, max_retries=2)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
