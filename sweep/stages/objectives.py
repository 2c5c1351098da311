"""What is wanted of a point of the search: which of the cells that keep the accuracy is chosen, and where to look next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.merging.rule import MergeRule
from sweep.experiment.config import LABEL_FREE_OBJECTIVES, ObjectiveName, SearchSettings

Cell = dict[str, Any]
"""The point, its split and its scores (CELL_COLUMNS); where parameters of the merge rule are searched, the rule's text under `merge`."""
Point = tuple[float, float]
"""(alpha, lambda2)"""

LABEL_FREE_ERROR = "infidelity_at_best_scale"
"""How far a map is from what the model itself does with patches left out, whatever the map's scale: it takes the model, and no label."""


class Evaluate(Protocol):
    """A point -> its cell on some split."""

    def __call__(self, alpha: float, lambda2: float, merge: MergeRule | None = None) -> Cell:
        """merge: with its parameters at this point; None: the search's own rule."""


def keeps_accuracy(cell: Cell, search: SearchSettings) -> bool:
    """Whether the lower confidence limit of its normalised accuracy meets the constraint."""
    lower = cell["normalized_accuracy_lower"]
    return lower is not None and lower >= search.min_normalized_accuracy


@dataclass(frozen=True)
class Objective(ABC):
    """An objective over the cells of one pair."""

    name: ObjectiveName
    title: str

    @property
    def needs_labels(self) -> bool:
        """Whether it reads attribution labels of the target."""
        return self.name not in LABEL_FREE_OBJECTIVES

    @property
    def error(self) -> str:
        """The score of the explanations that a study minimises beside accuracy: one that reads no labels where the objective reads none."""
        return "e_rmse" if self.needs_labels else LABEL_FREE_ERROR

    @abstractmethod
    def best(self, feasible: Sequence[Cell], cells: Sequence[Cell], search: SearchSettings) -> Cell:
        """The best of the feasible cells, one at least. cells: all."""

    def next_point(self, cells: Sequence[Cell], search: SearchSettings) -> Point | None:
        """Where it would look next; None leaves that to the sampler. cells: all of one merge rule."""
        return None

    def choose(self, cells: Sequence[Cell], search: SearchSettings) -> Cell:
        """The chosen cell: where none keeps the accuracy, the most accurate one."""
        feasible = [cell for cell in cells if keeps_accuracy(cell, search)]
        if feasible:
            return self.best(feasible, cells, search)
        return max(cells, key=lambda cell: (cell["accuracy"], -or_infinite(cell[self.error])))


@dataclass(frozen=True)
class AccuracyBound(Objective):
    """The largest lambda2 below which every point keeps the accuracy: explanation grows with lambda2 and accuracy falls, so that the bound
    alone, which needs no explanation label, says how far to go. Between alphas, and between merge rules with other parameters, the smallest
    infidelity at the best scale decides.
    """

    def best(self, feasible: Sequence[Cell], cells: Sequence[Cell], search: SearchSettings) -> Cell:
        curves = [[cell for cell in cells if cell.get("merge") == merge] for merge in dict.fromkeys(cell.get("merge") for cell in cells)]
        at_ends = (self._furthest(curve, alpha, search) for alpha in search.alphas for curve in curves)
        furthest = [found for found in at_ends if found is not None]
        return min(furthest or list(feasible), key=lambda cell: (or_infinite(cell[LABEL_FREE_ERROR]), -cell["lambda2"]))

    def next_point(self, cells: Sequence[Cell], search: SearchSettings) -> Point | None:
        """Half-way between the furthest point within the bound and the nearest beyond it, of the alpha where they lie furthest apart."""
        gaps = []
        for alpha in search.alphas:
            within = self._furthest(cells, alpha, search)
            low = within["lambda2"] if within else search.lambdas[0]
            beyond = [c["lambda2"] for c in _of_alpha(cells, alpha) if c["lambda2"] > low and not keeps_accuracy(c, search)]
            if beyond:
                gaps.append((min(beyond) - low, alpha, 0.5 * (low + min(beyond))))
            elif low < search.lambdas[-1]:
                gaps.append((search.lambdas[-1] - low, alpha, search.lambdas[-1]))
        if not gaps:
            return None
        _, alpha, lambda2 = max(gaps)
        return alpha, lambda2

    def _furthest(self, cells: Sequence[Cell], alpha: float, search: SearchSettings) -> Cell | None:
        found = None
        for cell in sorted(_of_alpha(cells, alpha), key=lambda cell: cell["lambda2"]):
            if not keeps_accuracy(cell, search):
                break
            found = cell
        return found


@dataclass(frozen=True)
class BestScore(Objective):
    """The best value of one column: the smallest of `sign` times it."""

    column: str
    sign: float

    def best(self, feasible: Sequence[Cell], cells: Sequence[Cell], search: SearchSettings) -> Cell:
        return min(feasible, key=lambda cell: (or_infinite(cell[self.column], self.sign), cell["lambda2"]))


def _of_alpha(cells: Iterable[Cell], alpha: float) -> list[Cell]:
    return [cell for cell in cells if cell["alpha"] == alpha]


def or_infinite(value: float | None, sign: float = 1.0) -> float:
    """sign * value, to be minimised; infinity for a score that is not there."""
    return float("inf") if value is None or value != value else sign * value


OBJECTIVES: dict[ObjectiveName, Objective] = {
    objective.name: objective
    for objective in (
        AccuracyBound("accuracy_bound", "largest lambda2 within the accuracy bound"),
        BestScore("e_rmse", "smallest E-RMSE", "e_rmse", 1.0),
        BestScore("iou_at_10", "largest IoU@10", "iou_at_10", -1.0),
        BestScore("correlation", "largest correlation", "correlation", -1.0),
        BestScore("infidelity", "smallest infidelity at the best scale", LABEL_FREE_ERROR, 1.0),
        BestScore("few_labels", "smallest E-RMSE on a few labels", "few_labels_e_rmse", 1.0),
    )
}
