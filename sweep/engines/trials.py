"""Searches as trials of Ray Tune, on actors that it keeps alive. The only use of Ray Tune.

A trial is a pair's whole search: starting a process costs seconds, evaluating a point a fraction of one, so that a study runs inside
one trial and the actors are reused from pair to pair.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig

from sweep.engines.cluster import Workers
from sweep.engines.job import MAX_LOSSES, OnDone, Work, attempt, through_outages
from sweep.engines.progress import Progress
from sweep.store.artifacts import Store
from sweep.store.credentials import scrubbed
from sweep.store.files import UnreachableError, is_disk_full


def run_trials(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Run the searches that are missing. The first error is raised as it was in its trial; what others published stays.

    Where the bucket that Tune keeps its files in cannot be reached Tune is started again: searches that are done are found done.
    """
    if not works:
        return
    progress = Progress("search", len(works), works[0].unit)
    told: set[int] = set()

    def on_trial(index: int) -> None:
        if index not in told:
            told.add(index)
            on_done(works[index])
            progress.advance()

    results = through_outages(lambda: _tuned(works, store, workers, on_trial))
    for result in (results[i] for i in range(len(results))):
        error = (result.metrics or {}).get("error") or result.error
        if error is not None:
            raise error
        assert result.config is not None
        on_trial(int(result.config["index"]))  # with an address ray://... Tune runs elsewhere, and callbacks tell nothing here


def _tuned(works: Sequence[Work], store: Store, workers: Workers, on_trial: Callable[[int], None]) -> tune.ResultGrid:
    """Raises UnreachableError where Tune cannot reach the store, which is a bucket then."""
    name = f"search-{works[0].key[:12]}-{time.time_ns():x}"
    scratch = f"ray_tune-{name}"
    trainable = tune.with_resources(
        tune.with_parameters(StageTrial, works=list(works), store=store, threads=workers.threads), workers.resources()
    )
    tune_config = TuneConfig(
        reuse_actors=True,
        max_concurrent_trials=min(workers.number, len(works)),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    run_config = RunConfig(
        name=name,
        storage_path=store.scratch(scratch),
        callbacks=[_Progress(on_trial)],
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=MAX_LOSSES),
    )
    space = {"index": tune.grid_search(list(range(len(works))))}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:  # both look at the storage
        return tune.Tuner(trainable, param_space=space, tune_config=tune_config, run_config=run_config).fit()
    except OSError as error:
        if store.is_local or is_disk_full(error):
            raise
        reason = scrubbed(str(error), store.url)
        raise UnreachableError(f"Ray Tune cannot reach {store} ({reason}): check network, permissions and credentials") from error
    finally:
        with contextlib.suppress(UnreachableError):
            store.remove_scratch(scratch)


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
