"""The Optuna study of a pair: the explanations' error down, accuracy up, with the accuracy bound as a constraint. The only use of Optuna.

It searches alpha, lambda2 and, where asked, parameters of the merge rule. The error is E-RMSE; under an objective that reads no explanation
label the sampler reads none either, and the error is the infidelity at the best scale.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from core.merging.rule import MergeRule
from sweep.experiment.config import SearchSettings
from sweep.stages.objectives import OBJECTIVES, Cell, Evaluate, or_infinite
from sweep.stages.points import point_of

PAPER_ALPHA, PAPER_LAMBDA2 = 0.5, 0.8
"""Where the paper's Figures 2 and 3 compare its pairs."""


def run_study(name: str, key: str, search: SearchSettings, evaluate: Evaluate, journal: Path) -> list[Cell]:
    """The cells of a study's trials, kept in an Optuna journal storage.

    The first trials are the prediction-only target model (lambda2 = 0, always feasible) and, for each alpha, the paper's lambda2. They are
    merged by the search's own rule; from then on its searched parameters are the sampler's, as `merge.NAME`, each within its range. A trial
    whose values are not E-RMSE and accuracy has its E-RMSE among the user attributes, which no sampler reads.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = OBJECTIVES[search.objective]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            directions=["minimize", "maximize"],
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=min(8, search.num_trials)),
        )
        study.set_metric_names([objective.error, "accuracy"])
        study.set_user_attr("sweep_key", key)
        low, high = search.lambdas
        own = _parameters(search.merge, search)
        study.enqueue_trial({"alpha": search.alphas[0], "lambda2": min(max(0.0, low), high), **own})
        for alpha in search.alphas:
            study.enqueue_trial({"alpha": alpha, "lambda2": min(max(PAPER_LAMBDA2, low), high), **own})
        cells: list[Cell] = []
        num_given = 1 + len(search.alphas)
        for number in range(search.num_trials):
            # From then on every other trial is where the objective would look, the rest is the sampler's.
            if number >= num_given and number % 2:
                # A curve over lambda2 is one of one merge rule: the one that would be chosen now.
                _, _, rule = point_of(objective.choose(cells, search))
                alike = [cell for cell in cells if point_of(cell)[2] == rule]
                wanted = objective.next_point(alike, search)
                if wanted is not None:
                    study.enqueue_trial({"alpha": wanted[0], "lambda2": wanted[1], **_parameters(rule or search.merge, search)})
            trial = study.ask()
            alpha = trial.suggest_categorical("alpha", list(search.alphas))
            lambda2 = trial.suggest_float("lambda2", low, high)
            ranges = search.merge.search_space()
            values = {name: trial.suggest_float(f"merge.{name}", *ranges[name]) for name in search.searched}
            cell = evaluate(alpha, lambda2, search.merge.with_parameters(values))
            trial.set_constraint("normalized_accuracy", search.min_normalized_accuracy - (cell["normalized_accuracy_lower"] or 0.0))
            if objective.error != "e_rmse":
                trial.set_user_attr("e_rmse", cell["e_rmse"])
            study.tell(trial, [or_infinite(cell[objective.error]), cell["accuracy"]])
            cells.append(cell)
    return cells


def _parameters(rule: MergeRule, search: SearchSettings) -> dict[str, float]:
    """A rule's values of the searched parameters by their names in a study, brought into their ranges."""
    ranges = search.merge.search_space()
    return {f"merge.{name}": min(max(getattr(rule, name), ranges[name][0]), ranges[name][1]) for name in search.searched}
