"""Fine-tuning on Ray Train: many models to one fit, each worker taking the next that nobody trains. The only use of Ray Train."""

from __future__ import annotations

import random
import time
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from sweep.engines.cluster import Workers
from sweep.stages.computations import compute_model
from sweep.stages.plan import Plan
from sweep.store.artifacts import Store

POLL_S = 1.0


class _Trainer(TorchTrainer):
    """Without Ray Train's own handler of Ctrl-C, which ends the process with exit code 0 and stays in place after the fit."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def train_models(plan: Plan, store: Store, models: list[tuple[str, float]], workers: Workers, fit_name: str) -> None:
    """Train the (domain, alpha) models that are missing, task-parallel over the workers of one fit.

    The store's claims are the queue: a worker takes a model that no live process holds, so that two sweeps on one store share the work.
    A worker that dies is replaced; its model goes on from its last checkpoint.
    """
    if not models:
        return
    # Ray Train resumes silently where a run name is used again; resuming is the store's matter here.
    scratch = f"ray_train-{fit_name}-{time.time_ns():x}"
    scaling = ScalingConfig(
        num_workers=min(workers.number, len(models)),
        use_gpu=workers.num_gpus > 0,
        resources_per_worker=workers.resources(),
    )
    trainer = _Trainer(
        train_loop_per_worker=_train_loop,
        train_loop_config={"plan": plan, "store": store, "models": models, "threads": workers.threads},
        scaling_config=scaling,
        run_config=RunConfig(name=fit_name, storage_path=store.scratch(scratch), failure_config=FailureConfig(max_failures=2)),
    )
    try:
        trainer.fit()
    finally:
        store.remove_scratch(scratch)


def _train_loop(config: dict[str, Any]) -> None:
    plan, store, models = config["plan"], config["store"], list(config["models"])
    torch.set_num_threads(config["threads"])
    rank = ray.train.get_context().get_world_rank()
    pending = models
    while pending:
        held: list[tuple[str, float]] = []
        for domain, alpha in pending:
            artifact = compute_model(plan, store, domain, alpha, wait=False)
            if artifact is None:
                held.append((domain, alpha))
        pending = held
        if pending:
            time.sleep(POLL_S * (1.0 + random.random()))
    ray.train.report({"rank": rank})
