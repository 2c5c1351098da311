"""The search over alpha, lambda2 and, where asked, parameters of the merge rule of one (source, target) pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core.metrics import SCORES
from core.task_vectors import cosine_matrix
from sweep.experiment.config import SearchSettings
from sweep.report.result import CELL_COLUMNS, MERGE_COLUMN, OBJECTIVE_COLUMNS, PAPER_POINT_COLUMNS, SIMILARITY_COLUMNS
from sweep.stages.objectives import OBJECTIVES, Cell, keeps_accuracy
from sweep.stages.per_picture import PER_PICTURE, PictureScores, load_per_picture, save_per_picture
from sweep.stages.points import Points, Transfer, point_of
from sweep.stages.stage import ChildRun, Stage
from sweep.stages.study import PAPER_ALPHA, PAPER_LAMBDA2, run_study
from sweep.store.artifacts import Store

PAPER_NORMALIZED_ACCURACY = 0.98
"""What the paper's universal vector keeps of the accuracy: 0.876 of 0.890 (its Table 1)."""

CHOSEN = "chosen"
"""Name of the chosen point among a pair's scores by picture."""
_POINT_SETTINGS = ("lambda1", "lambdas", "select", "merge", "calibration", "accuracy_confidence", "num_few_labels", "scores")
"""What the cells of a grid depend on; the rest of the search says which of them is chosen."""


def _searched(search: SearchSettings) -> dict[str, Any]:
    settings = asdict(search)
    searched, ranges = settings.pop("searched"), search.merge.search_space()
    values = {k: {"search": ranges[k], "first": v} if k in searched else v for k, v in settings["merge"].items()}
    settings["merge"] = {"name": search.merge.name, **values}
    return {**settings, "scores": [score.name for score in SCORES]}


@dataclass(frozen=True, eq=False)
class Cells(Stage):
    """The grid's scores of one pair and alpha, over all lambda2: a sweep with one more alpha evaluates only that one."""

    kind = "cells"
    version = 3

    transfer: Transfer
    search: SearchSettings
    alpha: float

    @property
    def name(self) -> str:
        return f"{self.transfer.name} alpha={self.alpha:g}"

    @property
    def params(self) -> dict[str, Any]:
        searched = _searched(self.search)
        return {"alpha": self.alpha, **self.transfer.zero_shot.params, **{k: searched[k] for k in _POINT_SETTINGS}}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.transfer.inputs([v for v in self.transfer.source_vectors if v.alpha == self.alpha])

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        evaluate = self.transfer.evaluator(store, self.search).on(self.search.select)
        cells = [evaluate(self.alpha, lambda2) for lambda2 in self.search.lambdas]
        pd.DataFrame(cells).to_parquet(directory / "cells.parquet", index=False)
        return {"num_cells": len(cells)}


@dataclass(frozen=True, eq=False)
class PairSearch(Stage):
    """Search one pair: evaluate points on the selection split, choose one, score that one on test.

    Files: cells.parquet, similarities.parquet, paper_point.parquet, intervals.parquet and per_picture.npz (of the chosen point on test),
    and study.journal (an Optuna journal storage) for Optuna. Where parameters of the merge rule are searched, the cells have MERGE_COLUMN
    besides.
    """

    kind = "pair"
    version = 9
    engine = "trials"
    uses_device = True
    unit = "pairs"

    transfer: Transfer
    search: SearchSettings
    study_prefix: str

    @property
    def name(self) -> str:
        return self.transfer.name

    @property
    def params(self) -> dict[str, Any]:
        return {"search": _searched(self.search), **self.transfer.zero_shot.params}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.transfer.inputs((*self.transfer.source_vectors, *self.transfer.target_vectors))

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        transfer, search = self.transfer, self.search
        points = transfer.evaluator(store, search)
        if search.method == "grid":
            grids = [Cells(transfer, search, alpha).publish(store) for alpha in search.alphas]
            cells = [cell for a in grids if a for cell in pd.read_parquet(a.path("cells.parquet")).to_dict("records")]
        else:
            name = f"{self.study_prefix}/{transfer.source}->{transfer.target}"
            cells = run_study(name, self.key, search, points.on(search.select), directory / "study.journal")
        cells = [{**cell, "trial": i} for i, cell in enumerate(cells)]
        chosen = OBJECTIVES[search.objective].choose(cells, search)
        if search.compares_objectives:
            self._compared(cells, points).to_parquet(directory / "objectives.parquet", index=False)
        chosen["is_chosen"] = True
        on_test = points.scored_on("test")(*point_of(chosen))
        if search.select == "validation":
            cells.append({**on_test.cell, "trial": chosen["trial"], "is_chosen": True})
        columns = [*CELL_COLUMNS, *([MERGE_COLUMN] if search.searched else [])]
        pd.DataFrame(cells)[columns].to_parquet(directory / "cells.parquet", index=False)
        self._similarities(store).to_parquet(directory / "similarities.parquet", index=False)
        self._at_paper_point(points).to_parquet(directory / "paper_point.parquet", index=False)
        on_test.intervals().to_parquet(directory / "intervals.parquet", index=False)
        save_per_picture(directory, {CHOSEN: on_test.per_picture()})
        return {"num_cells": len(cells), "constraint_met": keeps_accuracy(chosen, search)}

    def _compared(self, cells: Sequence[Cell], points: Points) -> pd.DataFrame:
        """What each objective would have chosen, scored on test, and the best that there was there: OBJECTIVE_COLUMNS."""
        on_test, known = points.on("test"), {(cell["alpha"], cell["lambda2"]): cell for cell in cells}
        tested = list(known.values()) if self.search.select == "test" else [on_test(*point) for point in known]
        rows = []
        for objective in OBJECTIVES.values():
            chosen = objective.choose(cells, self.search)
            (found,) = (cell for cell in tested if (cell["alpha"], cell["lambda2"]) == (chosen["alpha"], chosen["lambda2"]))
            rows.append({**found, "objective": objective.name, "needs_labels": objective.needs_labels})
        accuracy = lambda cell: cell["normalized_accuracy"] or 0.0  # noqa: E731
        bound = self.search.min_normalized_accuracy
        oracles = {
            "oracle_correlation": (OBJECTIVES["correlation"], bound),
            "oracle_iou_at_10": (OBJECTIVES["iou_at_10"], bound),
            "oracle_e_rmse": (OBJECTIVES["e_rmse"], bound),
            "oracle_98_percent": (OBJECTIVES["e_rmse"], PAPER_NORMALIZED_ACCURACY),
        }
        for name, (objective, least) in oracles.items():
            kept = [cell for cell in tested if accuracy(cell) >= least] or [max(tested, key=accuracy)]
            rows.append({**objective.best(kept, tested, self.search), "objective": name, "needs_labels": True})
        return pd.DataFrame(rows)[list(OBJECTIVE_COLUMNS)]

    def _at_paper_point(self, points: Points) -> pd.DataFrame:
        """PAPER_POINT_COLUMNS; nothing is chosen by it. No factor: at its best one, an error is hardly more than the target's own level."""
        alpha = min(self.search.alphas, key=lambda alpha: abs(alpha - PAPER_ALPHA))
        cell = points.scored_on("test", is_calibrated=False)(alpha, PAPER_LAMBDA2, None).cell
        return pd.DataFrame([cell])[list(PAPER_POINT_COLUMNS)]

    def _similarities(self, store: Store) -> pd.DataFrame:
        """Cosines of the task vectors of source and target, per alpha."""
        transfer = self.transfer
        between = lambda a, b: float(cosine_matrix([a.load(store), b.load(store)])[0, 1])  # noqa: E731
        prediction_only = between(transfer.source_task, transfer.target_task)
        rows = [
            (transfer.source, transfer.target, mine.alpha, prediction_only, between(mine, theirs))
            for mine, theirs in zip(transfer.source_vectors, transfer.target_vectors, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(SIMILARITY_COLUMNS))

    def cells(self, store: Store) -> pd.DataFrame:
        return pd.read_parquet(self.artifact(store).path("cells.parquet"))

    def similarities(self, store: Store) -> pd.DataFrame:
        return pd.read_parquet(self.artifact(store).path("similarities.parquet"))

    def paper_point(self, store: Store) -> pd.DataFrame:
        """PAPER_POINT_COLUMNS: one row."""
        return pd.read_parquet(self.artifact(store).path("paper_point.parquet"))

    def intervals(self, store: Store) -> pd.DataFrame:
        """INTERVAL_COLUMNS, of the chosen point on test."""
        return pd.read_parquet(self.artifact(store).path("intervals.parquet"))

    def per_picture(self, store: Store) -> PictureScores:
        """Of the chosen point on test, in the order of the labels: accuracy of all pictures, the rest of those that have labels."""
        return load_per_picture(self.artifact(store).path(PER_PICTURE))[CHOSEN]

    def objectives(self, store: Store) -> pd.DataFrame:
        """OBJECTIVE_COLUMNS; no rows where objectives were not compared."""
        if not self.search.compares_objectives:
            return pd.DataFrame(columns=list(OBJECTIVE_COLUMNS))
        return pd.read_parquet(self.artifact(store).path("objectives.parquet"))

    def chosen(self, store: Store, split: str) -> dict[str, Any]:
        """The chosen point's cell on a split."""
        cells = self.cells(store)
        return dict(cells[cells["is_chosen"] & (cells["split"] == split)].iloc[0])

    def child_run(self, store: Store) -> ChildRun:
        manifest = self.artifact(store).manifest
        row = self.chosen(store, "test")
        similarities = self.similarities(store)
        at_alpha = similarities[similarities["alpha"] == row["alpha"]].iloc[0]
        points = ("source_domain", "target_domain", "alpha", "lambda1", "lambda2", *([MERGE_COLUMN] if self.search.searched else []))
        scores = [c for c in CELL_COLUMNS if c not in (*points, "split", "trial", "is_chosen")]
        similar = ("similarity_prediction_only", "similarity_explainability")
        ends = {f"{i.score}_{end}": getattr(i, end) for i in self.intervals(store).itertuples() for end in ("low", "high")}
        return ChildRun(
            stage="pair",
            key=self.key,
            name=self.name,
            params={name: row[name] for name in points},
            metrics={**{name: row[name] for name in scores}, **{name: at_alpha[name] for name in similar}, **ends},
            tags={"constraint_met": str(manifest["meta"]["constraint_met"]), "select": self.search.select},
            started_s=manifest["started"],
            seconds=manifest["seconds"],
        )
