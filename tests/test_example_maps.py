"""Which points of a pair its pictures' maps are kept of."""

import numpy as np
import pandas as pd

from sweep.stages.examples import NUM_LAMBDAS, shown_points


def cells(points: list[tuple[float, float]], chosen: tuple[float, float]) -> tuple[pd.DataFrame, dict]:
    """A pair's cells of these (alpha, lambda2) on validation, and the chosen one's on test as well."""
    rows = [{"alpha": a, "lambda2": v, "split": "validation", "is_chosen": (a, v) == chosen} for a, v in points]
    (own,) = (row for row in rows if row["is_chosen"])
    return pd.DataFrame([*rows, {**own, "split": "test"}]), own


def shown(points: list[tuple[float, float]], chosen: tuple[float, float]) -> list[tuple[float, float]]:
    return [(cell["alpha"], cell["lambda2"]) for cell in shown_points(*cells(points, chosen))]


def test_of_a_grid_they_are_spread_evenly_and_hold_both_ends_and_the_chosen_one():
    grid = [round(v, 1) for v in np.linspace(0, 2, 21).tolist()]
    found = shown([(a, v) for a in (0.2, 0.5) for v in grid], (0.5, 0.7))
    assert found == [(0.5, v) for v in (0.0, 0.4, 0.7, 0.8, 1.2, 1.6, 2.0)] and len(found) == NUM_LAMBDAS + 1


def test_of_a_study_they_are_its_own_trials_and_lambda2_0_of_any_alpha():
    """A study tries lambda2 = 0 at its first alpha alone, where it is the same model at every alpha."""
    assert shown([(0.2, 0.0), (0.2, 0.8), (0.5, 0.8), (0.5, 1.3)], (0.5, 0.8)) == [(0.2, 0.0), (0.5, 0.8), (0.5, 1.3)]
    assert shown([(0.5, 0.8), (0.2, 0.0), (0.5, 0.0)], (0.5, 0.8)) == [(0.5, 0.0), (0.5, 0.8)]
    assert shown([(0.5, 0.3)], (0.5, 0.3)) == [(0.5, 0.3)]
