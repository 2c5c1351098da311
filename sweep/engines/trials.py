"""Searches as trials of Ray Tune, on actors that it keeps alive. The only use of Ray Tune.

A trial is a pair's whole search: starting a process costs seconds, evaluating a point a fraction of one, so that a study runs inside
one trial and the actors are reused from pair to pair.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig

from sweep.engines.cluster import Workers
from sweep.engines.job import MAX_LOSSES, OnDone, Work, attempt
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store


def run_trials(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Run the searches that are missing. The first error is raised as it was in its trial; what others published stays."""
    if not works:
        return
    progress = Progress("search", len(works), works[0].unit)
    name = f"search-{works[0].key[:12]}-{time.time_ns():x}"
    scratch = f"ray_tune-{name}"

    told: set[int] = set()

    def on_trial(index: int) -> None:
        if index not in told:
            told.add(index)
            on_done(works[index])
            progress.advance()

    trainable = tune.with_resources(
        tune.with_parameters(StageTrial, works=list(works), store=store, threads=workers.threads), workers.resources()
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"index": tune.grid_search(list(range(len(works))))},
        tune_config=TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=min(workers.number, len(works)),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=store.scratch(scratch),
            callbacks=[_Progress(on_trial)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_LOSSES),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        results = tuner.fit()
    finally:
        store.remove_scratch(scratch)
    for result in (results[i] for i in range(len(results))):
        error = (result.metrics or {}).get("error") or result.error
        if error is not None:
            raise error
        assert result.config is not None
        on_trial(int(result.config["index"]))  # with an address ray://... Tune runs elsewhere, and callbacks tell nothing here


class StageTrial(tune.Trainable):
    """A stage as a Tune trial, on an actor that goes on to the next."""

    def setup(self, config: dict[str, Any], works: list[Work] | None = None, store: Store | None = None, threads: int = 1) -> None:
        assert works is not None and store is not None
        torch.set_num_threads(threads)
        self._works, self._store, self._index = works, store, config["index"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._index = new_config["index"]
        return True

    def step(self) -> dict[str, Any]:
        outcome = attempt(self._works[self._index], self._store)
        return {"error": outcome.error, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # a search's result is in the store; Tune has nothing to keep

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass


class _Progress(Callback):
    def __init__(self, on_trial: Callable[[int], None]) -> None:
        self._on_trial = on_trial

    def __reduce__(self) -> tuple[Any, ...]:  # Tune saves its callbacks; the terminal is not to be saved
        return _Progress, (_ignore,)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not (trial.last_result or {}).get("error"):
            self._on_trial(int(trial.config["index"]))


def _ignore(index: int) -> None:
    pass
