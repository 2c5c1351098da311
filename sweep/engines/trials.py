"""The search over alpha and lambda2 of every pair: an Optuna study each, on actors that Ray Tune keeps alive.

A Tune trial is a pair: starting a process costs seconds, evaluating a point a fraction of one, so a pair's study runs inside one trial
and the actors are reused from pair to pair. The only use of Ray Tune and of Optuna.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig

from sweep.engines.cluster import Workers
from sweep.experiment.config import SearchSettings
from sweep.report.result import CELL_COLUMNS
from sweep.stages.computations import run
from sweep.stages.evaluation import SplitEvaluator, Transfer, normalized, prediction_only_scores
from sweep.stages.plan import Plan
from sweep.store.artifacts import Artifact, Store

PAPER_LAMBDA2 = 0.8
Cell = dict[str, Any]


def compute_pair(plan: Plan, store: Store, source: str, target: str) -> Artifact:
    """Search one pair: evaluate points on the selection split, choose one, score that one on test.

    Files: cells.parquet, and study.journal (an Optuna journal storage with the study `all_pairs/SUITE/SOURCE->TARGET`) for Optuna.
    """
    search = plan.config.search

    def compute(directory: Path) -> dict[str, Any]:
        transfer = Transfer(plan, store, source, target)
        evaluate = _evaluator(plan, store, source, target, search.select, transfer)
        if search.method == "grid":
            cells = [cell for alpha in search.alphas for cell in _grid(plan, store, source, target, alpha, evaluate)]
        else:
            cells = _study(plan, source, target, evaluate, directory / "study.journal")
        cells = [{**cell, "trial": i} for i, cell in enumerate(cells)]
        chosen = choose(cells, search)
        chosen["is_chosen"] = True
        if search.select == "validation":
            on_test = _evaluator(plan, store, source, target, "test", transfer)
            cells.append({**on_test(chosen["alpha"], chosen["lambda2"]), "trial": chosen["trial"], "is_chosen": True})
        frame = pd.DataFrame(cells)[list(CELL_COLUMNS)]
        frame.to_parquet(directory / "cells.parquet", index=False)
        meets = chosen["normalized_accuracy"] is not None and chosen["normalized_accuracy"] >= search.min_normalized_accuracy
        return {"num_cells": len(cells), "constraint_met": bool(meets)}

    artifact = run(store, plan.pair(source, target), compute)
    assert artifact is not None
    return artifact


def _evaluator(
    plan: Plan, store: Store, source: str, target: str, split: Any, transfer: Transfer
) -> Callable[[float, float], Cell]:
    """A function (alpha, lambda2) -> the cell of that point on a split."""
    on_split = SplitEvaluator(plan, store, target, split)
    prediction_only = prediction_only_scores(plan, store, target, split)
    lambda1 = plan.config.search.lambda1

    def evaluate(alpha: float, lambda2: float) -> Cell:
        scores = on_split.scores(transfer.classifier(alpha, lambda1, lambda2))
        return {
            "source_domain": source,
            "target_domain": target,
            "alpha": float(alpha),
            "lambda1": float(lambda1),
            "lambda2": float(lambda2),
            "split": split,
            "is_chosen": False,
            **normalized(scores, prediction_only),
        }

    return evaluate


def _grid(
    plan: Plan, store: Store, source: str, target: str, alpha: float, evaluate: Callable[[float, float], Cell]
) -> list[Cell]:
    """The cells of one alpha, an artifact of its own: a sweep with one more alpha evaluates only that one."""

    def compute(directory: Path) -> dict[str, Any]:
        cells = [evaluate(alpha, lambda2) for lambda2 in plan.config.search.lambdas]
        pd.DataFrame(cells).to_parquet(directory / "cells.parquet", index=False)
        return {"num_cells": len(cells)}

    artifact = run(store, plan.cells(source, target, alpha), compute)
    assert artifact is not None
    return list(pd.read_parquet(artifact.path("cells.parquet")).to_dict("records"))


def _study(
    plan: Plan, source: str, target: str, evaluate: Callable[[float, float], Cell], journal: Path
) -> list[Cell]:
    """An Optuna study of a pair: E-RMSE down, accuracy up, with normalised accuracy as a constraint.

    The first trials are the prediction-only target model (lambda2 = 0, always feasible) and, for each alpha, the paper's lambda2.
    """
    search = plan.config.search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=f"all_pairs/{plan.config.suite}/{source}->{target}",
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=["minimize", "maximize"],
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=min(8, search.num_trials)),
        )
        study.set_user_attr("sweep_key", plan.pair(source, target).key)
        low, high = search.lambdas
        study.enqueue_trial({"alpha": search.alphas[0], "lambda2": min(max(0.0, low), high)})
        for alpha in search.alphas:
            study.enqueue_trial({"alpha": alpha, "lambda2": min(max(PAPER_LAMBDA2, low), high)})
        cells: list[Cell] = []
        for _ in range(search.num_trials):
            trial = study.ask()
            alpha = trial.suggest_categorical("alpha", list(search.alphas))
            cell = evaluate(alpha, trial.suggest_float("lambda2", low, high))
            trial.set_constraint("normalized_accuracy", search.min_normalized_accuracy - (cell["normalized_accuracy"] or 0.0))
            study.tell(trial, [cell["e_rmse"], cell["accuracy"]])
            cells.append(cell)
    return cells


def choose(cells: list[Cell], search: SearchSettings) -> Cell:
    """The cell with the smallest E-RMSE among those that meet the accuracy constraint; if none does, the most accurate one."""
    feasible = [c for c in cells if (c["normalized_accuracy"] or 0.0) >= search.min_normalized_accuracy]
    if feasible:
        return min(feasible, key=lambda c: (c["e_rmse"], c["lambda2"]))
    return max(cells, key=lambda c: (c["accuracy"], -c["e_rmse"]))


class PairTrial(tune.Trainable):
    """A pair as a Tune trial, on an actor that goes on to the next pair."""

    def setup(self, config: dict[str, Any], plan: Plan | None = None, store: Store | None = None, threads: int = 1) -> None:
        assert plan is not None and store is not None
        torch.set_num_threads(threads)
        self._plan, self._store, self._pair = plan, store, config["pair"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._pair = new_config["pair"]
        return True

    def step(self) -> dict[str, Any]:
        source, target = self._pair
        artifact = compute_pair(self._plan, self._store, source, target)
        return {"num_cells": artifact.manifest["meta"]["num_cells"], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # a pair's result is in the store; Tune has nothing to keep

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass


class _Progress(Callback):
    def __init__(self, on_pair: Callable[[], None]) -> None:
        self._on_pair = on_pair

    def __reduce__(self) -> tuple[Any, ...]:  # Tune saves its callbacks; the terminal is not to be saved
        return _Progress, (_ignore,)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_pair()


def _ignore() -> None:
    pass


def search_pairs(
    plan: Plan, store: Store, pairs: list[tuple[str, str]], workers: Workers, run_name: str, on_pair: Callable[[], None]
) -> None:
    """Search the pairs that are missing. Raises RuntimeError naming the first pair that failed."""
    if not pairs:
        return
    number = min(workers.number, len(pairs))
    scratch = f"ray_tune-{run_name}-{time.time_ns():x}"
    trainable = tune.with_resources(
        tune.with_parameters(PairTrial, plan=plan, store=store, threads=workers.threads), workers.resources()
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"pair": tune.grid_search([list(pair) for pair in pairs])},
        tune_config=TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=number,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=store.scratch(scratch),
            callbacks=[_Progress(on_pair)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        results = tuner.fit()
    finally:
        store.remove_scratch(scratch)
    for result in (results[i] for i in range(len(results))):
        if result.error is not None:
            raise RuntimeError(f"the search of {result.config['pair'] if result.config else 'a pair'} failed: {result.error}")
