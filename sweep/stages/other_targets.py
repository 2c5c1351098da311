"""The point that a source's other targets choose for a target, as for an owner whom a vector was given to.

No picture of the target has a part in the choice (merging and calibration may still look at some). From `others` one thing reaches it all
the same: the other targets' vectors were learned on unions that hold this target, with its training labels. From a source that is no target
nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweep.report.result import OBJECTIVE_COLUMNS
from sweep.stages.pairs import PairSearch
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

OBJECTIVE = "other_targets"
STEP = 0.01
"""Of lambda2."""


@dataclass(frozen=True, eq=False)
class OtherTargetsPoint(Stage):
    """The largest lambda2 at which the other targets keep the accuracy on average, of the alpha whose maps are then best, scored on test.

    File: objective.parquet, a row of OBJECTIVE_COLUMNS.
    """

    kind = "other_targets_point"
    version = 1
    uses_device = True

    pair: PairSearch
    others: tuple[PairSearch, ...]

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def params(self) -> dict[str, Any]:
        # Only with several alphas does it matter that the point at lambda2 = 0 is of all of them.
        at_zero = {"at_zero": "every_alpha"} if len(self.pair.search.alphas) > 1 else {}
        return {"step": STEP, "least": self.pair.search.min_normalized_accuracy, **at_zero}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.pair.inputs, *self.others)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        search = self.pair.search
        cells = [other.cells(store) for other in self.others]
        searched = [found[found["split"] == search.select] for found in cells]
        alpha, lambda2 = common_point(searched, search.min_normalized_accuracy)
        points = self.pair.transfer.evaluator(store, search)
        row = {**points.on("test")(alpha, lambda2), "objective": OBJECTIVE, "needs_labels": False}
        pd.DataFrame([row])[list(OBJECTIVE_COLUMNS)].to_parquet(directory / "objective.parquet", index=False)
        return {"alpha": alpha, "lambda2": lambda2}

    def objectives(self, store: Store) -> pd.DataFrame:
        return pd.read_parquet(self.artifact(store).path("objective.parquet"))


def other_targets_points(pairs: Sequence[PairSearch]) -> tuple[OtherTargetsPoint, ...]:
    """Of every pair whose source has other targets."""
    found = []
    for pair in pairs:
        source, target = pair.transfer.source, pair.transfer.target
        others = tuple(p for p in pairs if p.transfer.source == source and p.transfer.target != target)
        found += [OtherTargetsPoint(pair, others)] if others else []
    return tuple(found)


def common_point(cells: Sequence[pd.DataFrame], least: float) -> tuple[float, float]:
    """(alpha, lambda2) for several targets together: cells of each, with alpha, lambda2, normalized_accuracy, infidelity_at_best_scale.

    Of every alpha the largest lambda2 up to which the mean of the normalised accuracies is at least `least`, each target's being straight
    between its points; it goes no further than every target was looked at. A target's point at lambda2 = 0 is of every alpha, which says
    nothing there. Between alphas the smallest mean infidelity decides.
    """
    found = []
    for alpha in sorted(set.intersection(*(set(of_target["alpha"]) for of_target in cells))):
        curves = [_curve(of_target, alpha) for of_target in cells]
        lambdas = np.arange(0.0, min(curve["lambda2"].max() for curve in curves) + STEP / 2, STEP)

        def mean(column: str, curves: Sequence[pd.DataFrame] = curves, lambdas: np.ndarray = lambdas) -> np.ndarray:
            return np.mean([np.interp(lambdas, curve["lambda2"], curve[column].astype(float)) for curve in curves], axis=0)

        is_kept = np.minimum.accumulate(mean("normalized_accuracy") >= least)
        last = max(int(is_kept.sum()) - 1, 0)
        infidelity = mean("infidelity_at_best_scale")[last]
        found.append((infidelity if np.isfinite(infidelity) else np.inf, float(alpha), round(float(lambdas[last]), 10)))
    _, alpha, lambda2 = min(found)
    return alpha, lambda2


def _curve(cells: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """A target's cells at an alpha by ascending lambda2; without one at lambda2 = 0, that of another alpha."""
    own = cells[cells["alpha"] == alpha]
    if not (own["lambda2"] == 0.0).any():
        own = pd.concat([cells[cells["lambda2"] == 0.0].head(1), own])
    return own.sort_values("lambda2")
