"""What a point of the search is chosen by."""

import math

import pytest

from sweep.experiment.config import SearchSettings
from sweep.stages.objectives import OBJECTIVES


def cell(alpha, lambda2, lower, **scores):
    defaults = {"accuracy": lower, "e_rmse": 1.0, "iou_at_10": 0.2, "correlation": 0.1, "infidelity_at_best_scale": 1.0}
    return {"alpha": alpha, "lambda2": lambda2, "normalized_accuracy_lower": lower, "few_labels_e_rmse": 1.0, **defaults, **scores}


SEARCH = SearchSettings(alphas=(0.2, 0.5), lambdas=(0.0, 2.0), objective="accuracy_bound")
BOUND = OBJECTIVES["accuracy_bound"]


def test_bound_takes_the_furthest_point_that_keeps_the_accuracy():
    cells = [cell(0.5, x, y) for x, y in ((0.0, 1.0), (0.4, 0.99), (0.8, 0.96), (1.2, 0.9))]
    assert BOUND.choose(cells, SEARCH)["lambda2"] == 0.8


def test_bound_does_not_jump_over_a_point_that_lost_the_accuracy():
    """A point beyond that happens to keep it on few pictures is luck."""
    cells = [cell(0.5, x, y) for x, y in ((0.0, 1.0), (0.4, 0.97), (0.8, 0.9), (1.2, 0.96))]
    assert BOUND.choose(cells, SEARCH)["lambda2"] == 0.4


def test_bound_reads_no_explanation_label():
    """Cells that differ only in what labels say are chosen alike."""
    cells = [cell(0.5, x, y, infidelity_at_best_scale=1.0) for x, y in ((0.0, 1.0), (0.8, 0.96))]
    flattering = [{**c, "e_rmse": 2.0 * n, "correlation": -n, "iou_at_10": 0.0} for n, c in enumerate(cells)]
    assert not BOUND.needs_labels
    assert BOUND.choose(cells, SEARCH)["lambda2"] == BOUND.choose(flattering, SEARCH)["lambda2"] == 0.8


def test_between_alphas_the_smaller_infidelity_decides():
    cells = [
        cell(0.2, 0.0, 1.0, infidelity_at_best_scale=0.5),
        cell(0.2, 0.6, 0.96, infidelity_at_best_scale=0.3),
        cell(0.5, 1.1, 0.96, infidelity_at_best_scale=0.4),
    ]
    assert BOUND.choose(cells, SEARCH)["alpha"] == 0.2


def test_bisection_closes_in_on_the_bound():
    """Accuracy falls with lambda2 and passes the bound at 0.73 and 1.31: what is found lies just below."""
    edges = {0.2: 0.73, 0.5: 1.31}
    at = lambda alpha, lambda2: cell(alpha, lambda2, 1.0 if lambda2 <= edges[alpha] else 0.5)  # noqa: E731
    cells = [at(0.2, 0.0), at(0.5, 0.0)]
    for _ in range(16):
        cells.append(at(*BOUND.next_point(cells, SEARCH)))
    for alpha, edge in edges.items():
        found = max(c["lambda2"] for c in cells if c["alpha"] == alpha and c["normalized_accuracy_lower"] == 1.0)
        assert edge - 0.02 < found <= edge


def test_most_accurate_point_where_none_keeps_the_accuracy():
    cells = [cell(0.5, 0.4, 0.5, e_rmse=0.1), cell(0.5, 0.8, 0.7, e_rmse=0.9)]
    assert all(objective.choose(cells, SEARCH)["lambda2"] == 0.8 for objective in OBJECTIVES.values())


@pytest.mark.parametrize(
    ("name", "column", "best"),
    [
        ("e_rmse", "e_rmse", 0.3),
        ("iou_at_10", "iou_at_10", 0.6),
        ("correlation", "correlation", 0.6),
        ("infidelity", "infidelity_at_best_scale", 0.3),
        ("few_labels", "few_labels_e_rmse", 0.3),
    ],
)
def test_each_objective_takes_its_columns_best(name, column, best):
    cells = [cell(0.5, 0.4, 1.0, **{column: 0.3}), cell(0.5, 0.8, 1.0, **{column: 0.6}), cell(0.5, 0.9, 1.0, **{column: None})]
    cells.append(cell(0.5, 1.0, 1.0, **{column: math.nan}))
    assert OBJECTIVES[name].choose(cells, SEARCH)[column] == best
