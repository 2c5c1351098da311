"""The Ray cluster a sweep runs on: one started on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from sweep.experiment.config import ConfigError, Device
from sweep.store.credentials import without_credentials
from sweep.store.files import BUCKET_PROTOCOLS

SPARE_CPUS = 2
"""Logical CPUs beyond the workers': Ray Data and Ray Train hold one each for orchestration, and deadlock where none is left."""

TASKS_A_WORKER = 8
"""Tasks on CPUs that are begun for each GPU worker: its node has CPUs beside the GPU."""


@dataclass(frozen=True)
class Workers:
    """How many workers a stage may keep busy, and what each asks of Ray. num_tasks: plain tasks at once.

    is_one_machine: Ray was started here for this run alone. price_per_hour: of one worker, where somebody named it.
    """

    number: int
    num_gpus: float
    threads: int
    num_tasks: int
    is_one_machine: bool
    price_per_hour: float | None = None

    @property
    def num_cpus(self) -> float:
        return 1.0

    def resources(self) -> dict[str, float]:
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


def check_storage(url: str) -> None:
    """Raise ConfigError for a bucket in which Ray Train and Ray Tune cannot keep their own files: Arrow writes these."""
    protocol, _, place = url.partition("://")
    if protocol not in BUCKET_PROTOCOLS - {"s3", "gs", "gcs"} or (protocol in ("abfs", "abfss") and "@" in place):
        return
    azure = "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH"
    others = f"give a directory that all nodes share, s3://..., gs://... or {azure}"
    fix = {"s3a": "write s3://", "oss": others}.get(protocol, f"write {azure}")
    raise ConfigError(f"--store {without_credentials(url)}: Ray, which trains and searches, cannot write to such an address: {fix}")


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
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep, not one stage of it
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables: the sweep has its own progress
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own files keep what the terminal need not show
    cores = os.cpu_count() or 1
    local = is_local(address)
    workers = num_workers or (cores if local and device == "cpu" else None)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if local:
        # Processes that have imported what stages need are kept between waves: to start another costs seconds.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(3_600_000))
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
    try:
        if local:
            limits = _thread_limits(threads_per_worker or max(1, cores // (workers or 1))) if device == "cpu" else {}
            with _without_native_messages(), _environment(limits):
                patiently(
                    lambda: ray.init(
                        "local",  # or RAY_ADDRESS, or what `ray start` left on this machine, would be connected to
                        num_cpus=max(cores, workers or 1) + SPARE_CPUS,
                        include_dashboard=False,
                        _temp_dir=os.environ.get("RAY_TMPDIR"),
                        **quiet,
                    )
                )
        else:
            with _without_native_messages():
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster answers at {address!r} ({error}): check --address, or leave it out to start Ray here") from error
    try:
        found = _workers(device, workers, gpus_per_worker, local)
        yield replace(found, threads=threads_per_worker) if threads_per_worker else found
    finally:
        ray.shutdown()


def patiently(start: Callable[[], object], attempts: int = 3) -> None:
    """Start Ray here. It gives its own processes 30 seconds, less than a busy machine may need: then it is started again.

    Raises ConfigError where it did not start in time again and again, and what else goes wrong as it is.
    """
    for attempt in range(1, attempts + 1):
        try:
            start()
            return
        except Exception as error:  # Ray raises no type of its own
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == attempts:
                said = f"Ray's own processes did not start within 30 seconds, {attempts} times: this machine is too busy"
                raise ConfigError(f"{said}. End other work on it and give the same command again") from error


@contextmanager
def _without_native_messages() -> Iterator[None]:
    """Ray's C++ side says on the terminal how it was told to be silent. What goes wrong comes as an exception all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that Ray's processes inherit, if they start now. In a `runtime_env` they would forbid the workers that Ray starts ahead."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _workers(device: Device, asked: int | None, gpus_per_worker: float, local: bool) -> Workers:
    resources = ray.cluster_resources()
    if device == "cuda":
        autoscaling = not local  # workers may not have been started yet
        gpus = int(resources.get("GPU", 0) / gpus_per_worker)
        if gpus == 0 and not (autoscaling and asked):
            raise ConfigError("this sweep asks for GPUs and the cluster has none now: give --workers N to scale up to, or --device cpu")
        number = asked or gpus
        return Workers(number, gpus_per_worker, 1, TASKS_A_WORKER * number, local)
    cores = os.cpu_count() or 1
    number = asked or max(1, int(resources.get("CPU", 1)) - SPARE_CPUS)
    return Workers(number, 0.0, max(1, cores // number) if local else 1, number, local)


def is_local(address: str | None) -> bool:
    """Whether Ray is started on this machine for this run alone."""
    return address in (None, "local")


def nodes_where_not(condition: Callable[..., bool], *arguments: Any) -> list[str]:
    """Addresses of the cluster's nodes on which a condition does not hold; where no node has room yet, of the first that comes."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    where: list[Any] = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes] or ["DEFAULT"]
    task = ray.remote(_with_address)
    tasks = [task.options(num_cpus=0.01, max_retries=2, scheduling_strategy=each) for each in where]
    found = ray.get([each.remote(condition, arguments) for each in tasks])
    return [address for address, holds in found if not holds]


def _with_address(condition: Callable[..., bool], arguments: tuple[Any, ...]) -> tuple[str, bool]:
    return ray.util.get_node_ip_address(), condition(*arguments)
