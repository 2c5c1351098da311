"""Every row that a transferred model of a target is read against, scored once a target."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core.games.attribution_labels import AttributionLabels, perturbations
from core.metrics import SCORES, Array, Scored, Scores, attribution_scores, chance_scores, per_picture_scores
from core.model import Preprocessing
from sweep.experiment.config import Device
from sweep.report.result import REFERENCE_INTERVAL_COLUMNS
from sweep.stages.intervals import score_intervals
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.per_picture import PER_PICTURE, PictureScores, load_per_picture, save_per_picture
from sweep.stages.pictures import Pictures
from sweep.stages.scoring import SplitEvaluator, scored_maps
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store

if TYPE_CHECKING:
    from sweep.stages.explainer_scores import ExplainerScores
    from sweep.stages.side_head import SideHeadScores


@dataclass(frozen=True, eq=False)
class ModelScores(Stage):
    """Scores of one of a target's models on validation and test. reference: what its row is called."""

    kind = "scores"
    version = 2
    uses_device = True

    target: str
    reference: str
    preprocessing: Preprocessing
    pictures: Pictures
    classifier: Classifier
    validation: LabelSet
    test: LabelSet
    device: Device

    @property
    def name(self) -> str:
        return f"{self.target} {self.reference}{'' if self.alpha is None else f' alpha={self.alpha:g}'}"

    @property
    def alpha(self) -> float | None:
        return self.classifier.alpha if self.reference == "supervised" else None

    @property
    def params(self) -> dict[str, Any]:
        return {**self.classifier.params, "device": self.device, "scores": [score.name for score in SCORES]}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pictures, *self.classifier.inputs, self.validation, self.test)

    def compute(self, store: Store, directory: Path) -> None:
        classifier = self.classifier.load(store)
        labels = {"validation": self.validation, "test": self.test}
        scored = {
            split: SplitEvaluator(store, self.pictures, found, self.preprocessing, self.device).scored_model(classifier)
            for split, found in labels.items()
        }
        (directory / "scores.json").write_text(json.dumps({split: dict(attribution_scores(found)) for split, found in scored.items()}))
        save_per_picture(directory, {self.reference: per_picture_scores(scored["test"])})

    def load(self, store: Store, split: str) -> Scores:
        return self.artifact(store).read_json("scores.json")[split]

    def per_picture(self, store: Store) -> dict[str, Array]:
        """Of every test picture."""
        return load_per_picture(self.artifact(store).path(PER_PICTURE))[self.reference]


@dataclass(frozen=True, eq=False)
class Reference(Stage):
    """Scores on test (and, for the models, on validation) of everything that a transferred model of the target is compared with.

    models: prediction-only, zero-shot, and the target's own self-explaining ones. explainers: what explains the prediction-only model
    from outside; side_head: what is trained beside it. train: the labels whose mean map is a row. second_draw: labels of the first test
    pictures with other coalitions: how well they predict the first draw is the label ceiling.
    """

    kind = "reference"
    version = 4
    unit = "targets"

    target: str
    num_classes: int
    models: tuple[ModelScores, ...]
    explainers: ExplainerScores
    side_head: SideHeadScores
    train: LabelSet
    validation: LabelSet
    test: LabelSet
    second_draw: LabelSet

    @property
    def name(self) -> str:
        return self.target

    @property
    def params(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "scores": [score.name for score in SCORES]}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.models, self.explainers, self.side_head, self.train, self.validation, self.test, self.second_draw)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """Files: references.json, and intervals.parquet of those rows on test that some pictures' scores are known of."""
        rows: list[dict[str, Any]] = []
        on_test: list[tuple[str, float | None, PictureScores]] = []

        def add(reference: str, split: str, scores: Scores, alpha: float | None = None, of_pictures: PictureScores | None = None) -> None:
            rows.append({"domain": self.target, "reference": reference, "split": split, "alpha": alpha, **scores})
            if of_pictures is not None:
                on_test.append((reference, alpha, of_pictures))

        mean_map = self.train.mean_map(store).astype(np.float32)
        for split, label_set in (("validation", self.validation), ("test", self.test)):
            is_test = split == "test"
            for model in self.models:
                add(model.reference, split, model.load(store, split), model.alpha, model.per_picture(store) if is_test else None)
            labels = label_set.load(store)
            removed = perturbations(len(mean_map), label_set.settings.num_perturbations)
            for name, found in (("zero_predictor", np.zeros_like(mean_map)), ("mean_map", mean_map)):
                scored = scored_maps(labels, removed, found)
                add(name, split, attribution_scores(scored), None, per_picture_scores(scored) if is_test else None)
        of_explainers = self.explainers.per_picture(store)
        for name, scores in self.explainers.load(store).items():
            add(name, "test", scores, None, of_explainers[name])
        add(self.side_head.reference, "test", self.side_head.load(store), None, self.side_head.per_picture(store))
        add("chance", "test", chance_scores(len(mean_map), self.num_classes))
        test = self.test.load(store)
        ceiling = _ceiling(test, self.second_draw.load(store))
        add("label_ceiling", "test", attribution_scores(ceiling), None, per_picture_scores(ceiling))
        (directory / "references.json").write_text(json.dumps(rows))
        self._intervals(on_test).to_parquet(directory / "intervals.parquet", index=False)
        return {"num_test_labels": len(test)}

    def _intervals(self, on_test: Sequence[tuple[str, float | None, PictureScores]]) -> pd.DataFrame:
        (prediction_only,) = (values for reference, _, values in on_test if reference == "prediction_only")
        rows = [
            (self.target, reference, alpha, score, interval.estimate, interval.low, interval.high, interval.n)
            for reference, alpha, values in on_test
            for score, interval in score_intervals(values, prediction_only).items()
        ]
        return pd.DataFrame(rows, columns=list(REFERENCE_INTERVAL_COLUMNS)).astype({"alpha": "float64"})

    def intervals(self, store: Store) -> pd.DataFrame:
        """REFERENCE_INTERVAL_COLUMNS, over the test pictures that each row's score was measured on."""
        return pd.read_parquet(self.artifact(store).path("intervals.parquet"))

    def rows(self, store: Store) -> list[dict[str, Any]]:
        """domain, reference, split, alpha and scores of every row."""
        return list(self.artifact(store).read_json("references.json"))

    def child_run(self, store: Store) -> ChildRun:
        manifest = self.artifact(store).manifest
        metrics: dict[str, float | None] = {}
        for i in self.intervals(store).itertuples():
            metrics |= {f"{_prefix(i.reference, i.alpha)}.{i.score}_{end}": getattr(i, end) for end in ("low", "high")}
        for row in self.rows(store):
            if row["split"] == "test":
                prefix = _prefix(row["reference"], row["alpha"])
                scores = {k: v for k, v in row.items() if k not in ("domain", "reference", "split", "alpha")}
                metrics |= {f"{prefix}.{name}": value for name, value in scores.items()}
        return ChildRun(
            stage="reference",
            key=self.key,
            name=f"{self.target} references",
            params={"target_domain": self.target},
            metrics=metrics,
            tags={},
            started_s=manifest["started"],
            seconds=manifest["seconds"],
        )


def _prefix(reference: str, alpha: float | None) -> str:
    """Of a reference's metrics in the record."""
    return reference if alpha is None or math.isnan(alpha) else f"{reference}_alpha_{alpha:g}"


def _ceiling(first: AttributionLabels, second: AttributionLabels) -> Scored:
    """What is scored for how well the second draw of labels predicts the first."""
    same = first.take(slice(0, len(second)))
    removed = perturbations(same.attributions.shape[1], same.perturbation_values.shape[1])
    return scored_maps(same, removed, second.attributions)
