"""The Optuna study of a pair: E-RMSE down, accuracy up, with normalised accuracy as a constraint. The only use of Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweep.experiment.config import SearchSettings

Cell = dict[str, Any]
Evaluate = Callable[[float, float], Cell]
"""(alpha, lambda2) -> the cell of that point on the selection split."""

PAPER_LAMBDA2 = 0.8


def run_study(name: str, key: str, search: SearchSettings, evaluate: Evaluate, journal: Path) -> list[Cell]:
    """The cells of a study's trials, kept in an Optuna journal storage.

    The first trials are the prediction-only target model (lambda2 = 0, always feasible) and, for each alpha, the paper's lambda2.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=["minimize", "maximize"],
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=min(8, search.num_trials)),
        )
        study.set_user_attr("sweep_key", key)
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
