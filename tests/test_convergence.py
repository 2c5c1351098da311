"""Figure 6: each budget's estimate is one that Kernel SHAP by itself gives with so many evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from in_process import compute, graph_of
from stage_outputs import DIGITS, GRID

from core.games.attribution_labels import Labeller
from sweep.experiment.config import ConvergenceSettings
from sweep.stages.convergence import designs, plain
from sweep.store.artifacts import Store

BUDGETS = (104, 200, 500, 600)


def test_budgets_that_enumerate_are_prefixes_of_one_draw_and_smaller_ones_of_another():
    assert designs(BUDGETS, 49) == ((104, 200), (500, 600))
    assert designs((104, 200, 448), 49) == ((104, 200, 448),)
    assert designs((490, 1000), 49) == ((490, 1000),)


@pytest.mark.parametrize("budget", BUDGETS)
def test_extreme_coalitions_are_enumerated_where_a_draw_of_that_budget_does(budget, tmp_path):
    """A patch alone, or all but one: 98 of them. Of 104 evaluations a plain draw has some, a prefix of 600 has them all."""
    graph = graph_of(Store(str(tmp_path)), *DIGITS, *GRID)
    settings = graph.label_settings("test")
    classifier = graph.base.load().classifier(graph.base.load().head(["a", "b"], ["{}"]))
    (most,) = (part[-1] for part in designs(BUDGETS, 49) if budget in part)

    def num_extreme(largest: int) -> int:
        sizes = Labeller(classifier, plain(settings, largest), "convergence").pool.design(0, budget).coalitions.sum(axis=1)
        return int(np.isin(sizes, (1, 48)).sum())

    plain_draw = num_extreme(budget)
    assert num_extreme(most) == plain_draw
    assert (plain_draw == 98) == (budget >= 490)


def test_the_curve_is_measured_at_every_budget(tmp_path):
    store = Store(str(tmp_path))
    graph = graph_of(store, *DIGITS, *GRID)
    config = replace(graph.config, convergence=ConvergenceSettings((104, 500), num_pictures=2))
    stage = replace(graph, config=config).convergence("clean_digits")
    compute(store, stage)
    found = stage.load(store)
    assert found["budget"].tolist() == [104, 104, 500, 500] and found["iou_at_10"].between(0.0, 1.0).all()
    assert stage.artifact(store).manifest["meta"]["evaluations"] >= 2 * (104 + 500)
    assert "designs" in stage.params
