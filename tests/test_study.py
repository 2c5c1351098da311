"""What a pair's Optuna study is told, and what it can be read for afterwards."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweep.experiment.config import LABEL_FREE_OBJECTIVES, SearchSettings
from sweep.stages.objectives import OBJECTIVES, Cell
from sweep.stages.study import run_study

READS_LABELS = ("e_rmse", "e_rmse_at_best_scale", "correlation", "iou_at_1", "iou_at_10", "few_labels_e_rmse")


def studied(journal: Path, objective: str, labels: float = 1.0, **settings) -> list[tuple[float, float]]:
    """The points that a study of one pair tries; labels: where the explanation labels would have lambda2."""

    def evaluate(alpha, lambda2, merge=None) -> Cell:
        accuracy = 1.0 - 0.04 * lambda2**2
        free = {"infidelity_at_best_scale": (lambda2 - 0.7) ** 2 + alpha, "accuracy": accuracy, "normalized_accuracy_lower": accuracy}
        return {"alpha": alpha, "lambda2": lambda2, **free, **{name: abs(lambda2 - labels) for name in READS_LABELS}}

    search = SearchSettings(alphas=(0.2, 0.5), lambdas=(0.0, 2.0), num_trials=24, objective=objective, **settings)
    return [(cell["alpha"], cell["lambda2"]) for cell in run_study("a->b", "key", search, evaluate, journal)]


def opened(journal: Path) -> optuna.Study:
    return optuna.load_study(study_name="a->b", storage=JournalStorage(JournalFileBackend(str(journal))))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_label_has_a_part_in_the_points_of_objectives_that_read_labels_and_of_no_other(tmp_path, objective):
    here, elsewhere = (studied(tmp_path / str(at), objective, labels=at) for at in (0.3, 1.6))
    assert (here == elsewhere) == (objective in LABEL_FREE_OBJECTIVES)


def test_the_label_free_error_is_what_the_sampler_goes_by(tmp_path):
    """It falls up to 0.7: more is tried around there than by the objective's own search for the bound, which lies at 1.1."""
    points = studied(tmp_path / "journal", "accuracy_bound")
    sampled = [lambda2 for number, (_, lambda2) in enumerate(points) if number >= 8 and number % 2 == 0]
    assert sum(abs(lambda2 - 0.7) < 0.35 for lambda2 in sampled) > len(sampled) / 2


@pytest.mark.parametrize(("objective", "error"), [("accuracy_bound", "infidelity_at_best_scale"), ("e_rmse", "e_rmse")])
def test_a_study_names_its_two_values_and_keeps_the_error_of_the_explanations(tmp_path, objective, error):
    studied(tmp_path / "journal", objective, labels=0.3)
    study = opened(tmp_path / "journal")
    assert study.metric_names == [error, "accuracy"] and study.best_trials
    for trial in study.trials:
        assert trial.user_attrs.get("e_rmse", trial.values[0]) == pytest.approx(abs(trial.params["lambda2"] - 0.3))


def test_a_point_without_the_error_is_the_worst_and_stops_nothing(tmp_path):
    def evaluate(alpha, lambda2, merge=None) -> Cell:
        missing = None if lambda2 < 0.5 else math.nan
        return {
            "alpha": alpha, "lambda2": lambda2, "e_rmse": 1.0, "accuracy": 1.0, "normalized_accuracy_lower": 1.0,
            "infidelity_at_best_scale": missing if lambda2 < 1.0 else 2.0,
        }  # fmt: skip

    search = SearchSettings(alphas=(0.5,), lambdas=(0.0, 2.0), num_trials=12, objective="infidelity")
    cells = run_study("a->b", "key", search, evaluate, tmp_path / "journal")
    assert len(cells) == 12 and len(opened(tmp_path / "journal").trials) == 12
    assert OBJECTIVES["infidelity"].choose(cells, search)["infidelity_at_best_scale"] == 2.0
