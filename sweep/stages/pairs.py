"""The search over alpha and lambda2 of one (source, target) pair, on models that are merged point by point (eq. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.map_scale import rescaled
from core.merging.rule import Evidence, Merger
from core.metrics import SCORES, Scores, e_rmse, with_normalized
from core.model import Preprocessing, SelfExplainingClassifier
from core.statistics.proportions import paired_proportion_bound
from core.task_vectors import TaskVector, cosine_matrix
from sweep.experiment.config import Device, SearchSettings
from sweep.report.result import CELL_COLUMNS, OBJECTIVE_COLUMNS, SIMILARITY_COLUMNS
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.objectives import OBJECTIVES, Cell, keeps_accuracy
from sweep.stages.pictures import Pictures
from sweep.stages.references import ModelScores
from sweep.stages.scoring import SplitEvaluator
from sweep.stages.sensitivity import Sensitivity
from sweep.stages.stage import ChildRun, Stage
from sweep.stages.study import Evaluate, run_study
from sweep.stages.vectors import Vector
from sweep.store.artifacts import Store


@dataclass(frozen=True)
class Transfer:
    """What a pair is merged from and scored on.

    source_vectors: tau_star of the source, by alpha; target_vectors: the target's own, whose similarity is reported; source_task and
    target_task: both tau_ft. zero_shot: the base with the target's head. prediction_only: what normalised scores are divided by.
    sensitivities: what the merge rule needs of the target's prediction-only model, and of the source's self-explaining one of each alpha.
    """

    source: str
    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    zero_shot: Classifier
    source_task: Vector
    target_task: Vector
    source_vectors: tuple[Vector, ...]
    target_vectors: tuple[Vector, ...]
    validation: LabelSet
    test: LabelSet
    prediction_only: ModelScores
    device: Device
    source_models: tuple[ModelScores, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"

    def inputs(self, vectors: Sequence[Vector]) -> tuple[Stage, ...]:
        tasks = (self.pictures, *self.zero_shot.inputs, self.source_task, self.target_task)
        sensitivities = dict.fromkeys(s for vector in vectors for s in self.sensitivities_at(vector.model.alpha))
        return (*tasks, *vectors, self.validation, self.test, self.prediction_only, *sensitivities)

    def sensitivities_at(self, alpha: float) -> tuple[Sensitivity, ...]:
        """What the merge rule needs for the source's vector of an alpha."""
        return tuple(s for s in self.sensitivities if s.model.alpha in (1.0, alpha))

    def evaluator(self, store: Store, search: SearchSettings) -> Points:
        return Points(self, store, search)


class Points:
    """Merged models of a pair: one network on the device, whose weights are set for each point."""

    def __init__(self, transfer: Transfer, store: Store, search: SearchSettings) -> None:
        self._transfer, self._store, self._search = transfer, store, search
        self._classifier: SelfExplainingClassifier = transfer.zero_shot.load(store)
        base = transfer.zero_shot.base.load().visual.state_dict()
        self._base = {name: weight.to(transfer.device) for name, weight in base.items()}
        self._task: TaskVector = transfer.target_task.load(store).to(transfer.device)
        self._mergers: dict[float, Merger] = {}
        self._splits: dict[str, _Split] = {}
        self._scales: dict[tuple[float, float], float] = {}

    def classifier(self, alpha: float, lambda2: float) -> SelfExplainingClassifier:
        """The transferred model of a point, before calibration. The same object every time."""
        if alpha not in self._mergers:
            self._mergers[alpha] = self._merger(alpha)
        weights = self._mergers[alpha].weights(self._search.lambda1, lambda2)
        self._classifier.visual.load_state_dict(weights)
        return self._classifier

    def scale(self, alpha: float, lambda2: float) -> float:
        """The factor that calibrates a point's maps, found on the validation pictures; 1 where none is wanted."""
        if self._search.calibration == "none":
            return 1.0
        if (alpha, lambda2) not in self._scales:
            evaluator = self._split("validation").evaluator
            _, attributions = evaluator.outputs(self.classifier(alpha, lambda2))
            self._scales[alpha, lambda2] = evaluator.map_scale(self._classifier.attribution_head, attributions)
        return self._scales[alpha, lambda2]

    def _merger(self, alpha: float) -> Merger:
        transfer, store = self._transfer, self._store
        (vector,) = (v for v in transfer.source_vectors if v.model.alpha == alpha)
        evidence = Evidence(**{s.need: s.load(store) for s in transfer.sensitivities_at(alpha)})
        return self._search.merge.prepare(self._base, self._task, vector.load(store), transfer.device, evidence)

    def on(self, split: str) -> Evaluate:
        """A function (alpha, lambda2) -> the cell of that point on a split."""
        found = self._split(split)

        def evaluate(alpha: float, lambda2: float) -> Cell:
            head = self._classifier.attribution_head
            logits, attributions = found.evaluator.outputs(self.classifier(alpha, lambda2))
            if split == "validation" and self._search.calibration == "scale":
                self._scales[alpha, lambda2] = found.evaluator.map_scale(head, attributions)
            scale = self.scale(alpha, lambda2)
            attributions = rescaled(head, attributions, scale)
            is_correct = found.evaluator.is_correct(logits)
            scores = found.evaluator.map_scores(attributions, is_correct)
            few = min(self._search.num_few_labels, len(attributions))
            return {
                "source_domain": self._transfer.source,
                "target_domain": self._transfer.target,
                "alpha": float(alpha),
                "lambda1": float(self._search.lambda1),
                "lambda2": float(lambda2),
                "split": split,
                "is_chosen": False,
                "attribution_scale": scale * head.scale,
                "normalized_accuracy_lower": found.accuracy_bound(is_correct, self._search.accuracy_confidence),
                "few_labels_e_rmse": e_rmse(attributions[:few], found.evaluator.labels.attributions[:few]),
                **with_normalized(scores, found.prediction_only),
            }

        return evaluate

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            transfer = self._transfer
            labels = {"validation": transfer.validation, "test": transfer.test}[split]
            evaluator = SplitEvaluator(self._store, transfer.pictures, labels, transfer.preprocessing, transfer.device)
            self._classifier.visual.load_state_dict(self._task.apply_to(self._base))
            logits, _ = evaluator.outputs(self._classifier)
            self._splits[split] = _Split(evaluator, transfer.prediction_only.load(self._store, split), evaluator.is_correct(logits))
        return self._splits[split]


@dataclass(frozen=True)
class _Split:
    """A split, and how the prediction-only model does on it: its scores, and the pictures [N] that it classifies rightly."""

    evaluator: SplitEvaluator
    prediction_only: Scores
    is_correct: np.ndarray

    def accuracy_bound(self, is_correct: np.ndarray, confidence: float) -> float | None:
        """The lower confidence limit of a model's normalised accuracy, whose pictures [N] are classified rightly."""
        if not self.is_correct.any():
            return None
        bound = paired_proportion_bound(is_correct, self.is_correct, confidence)
        return bound.estimate if confidence == 0.5 else bound.low


_POINT_SETTINGS = ("lambda1", "lambdas", "select", "merge", "calibration", "accuracy_confidence", "num_few_labels", "scores")
"""What the cells of a grid depend on; the rest of the search says which of them is chosen."""


def _searched(search: SearchSettings) -> dict[str, Any]:
    settings = asdict(search)
    settings["merge"] = {"name": search.merge.name, **settings["merge"]}
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
        return self.transfer.inputs([v for v in self.transfer.source_vectors if v.model.alpha == self.alpha])

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        evaluate = self.transfer.evaluator(store, self.search).on(self.search.select)
        cells = [evaluate(self.alpha, lambda2) for lambda2 in self.search.lambdas]
        pd.DataFrame(cells).to_parquet(directory / "cells.parquet", index=False)
        return {"num_cells": len(cells)}


@dataclass(frozen=True, eq=False)
class PairSearch(Stage):
    """Search one pair: evaluate points on the selection split, choose one, score that one on test.

    Files: cells.parquet, similarities.parquet, and study.journal (an Optuna journal storage) for Optuna.
    """

    kind = "pair"
    version = 3
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
        if search.select == "validation":
            on_test = points.on("test")(chosen["alpha"], chosen["lambda2"])
            cells.append({**on_test, "trial": chosen["trial"], "is_chosen": True})
        pd.DataFrame(cells)[list(CELL_COLUMNS)].to_parquet(directory / "cells.parquet", index=False)
        self._similarities(store).to_parquet(directory / "similarities.parquet", index=False)
        return {"num_cells": len(cells), "constraint_met": keeps_accuracy(chosen, search)}

    def _compared(self, cells: Sequence[Cell], points: Points) -> pd.DataFrame:
        """What each objective would have chosen, scored on test, and the best that there was there: OBJECTIVE_COLUMNS."""
        on_test, known = points.on("test"), {(cell["alpha"], cell["lambda2"]): cell for cell in cells}
        tested = [on_test(*point) for point in known]
        rows = []
        for objective in OBJECTIVES.values():
            chosen = objective.choose(cells, self.search)
            (found,) = (cell for cell in tested if (cell["alpha"], cell["lambda2"]) == (chosen["alpha"], chosen["lambda2"]))
            rows.append({**found, "objective": objective.name, "needs_labels": objective.needs_labels})
        kept = [cell for cell in tested if (cell["normalized_accuracy"] or 0.0) >= self.search.min_normalized_accuracy]
        for name in ("correlation", "iou_at_10", "e_rmse"):
            oracle = OBJECTIVES[name].best(kept or tested, tested, self.search)
            rows.append({**oracle, "objective": f"oracle_{name}", "needs_labels": True})
        return pd.DataFrame(rows)[list(OBJECTIVE_COLUMNS)]

    def _similarities(self, store: Store) -> pd.DataFrame:
        """Cosines of the task vectors of source and target, per alpha."""
        transfer = self.transfer
        between = lambda a, b: float(cosine_matrix([a.load(store), b.load(store)])[0, 1])  # noqa: E731
        prediction_only = between(transfer.source_task, transfer.target_task)
        rows = [
            (transfer.source, transfer.target, mine.model.alpha, prediction_only, between(mine, theirs))
            for mine, theirs in zip(transfer.source_vectors, transfer.target_vectors, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(SIMILARITY_COLUMNS))

    def cells(self, store: Store) -> pd.DataFrame:
        return pd.read_parquet(self.artifact(store).path("cells.parquet"))

    def similarities(self, store: Store) -> pd.DataFrame:
        return pd.read_parquet(self.artifact(store).path("similarities.parquet"))

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
        points = ("source_domain", "target_domain", "alpha", "lambda1", "lambda2")
        scores = [c for c in CELL_COLUMNS if c not in (*points, "split", "trial", "is_chosen")]
        similar = ("similarity_prediction_only", "similarity_explainability")
        return ChildRun(
            stage="pair",
            key=self.key,
            name=self.name,
            params={name: row[name] for name in points},
            metrics={**{name: row[name] for name in scores}, **{name: at_alpha[name] for name in similar}},
            tags={"constraint_met": str(manifest["meta"]["constraint_met"]), "select": self.search.select},
            started_s=manifest["started"],
            seconds=manifest["seconds"],
        )
