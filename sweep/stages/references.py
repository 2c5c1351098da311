"""Every row that a transferred model of a target is read against, scored once a target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.games.attribution_labels import AttributionLabels, perturbations
from core.metrics import SCORES, Scored, Scores, attribution_scores, chance_scores
from core.model import Preprocessing
from sweep.experiment.config import Device
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.pictures import Pictures
from sweep.stages.scoring import SplitEvaluator, map_scores
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store

if TYPE_CHECKING:
    from sweep.stages.explainer_scores import ExplainerScores
    from sweep.stages.side_head import SideHeadScores


@dataclass(frozen=True, eq=False)
class ModelScores(Stage):
    """Scores of one of a target's models on validation and test. reference: what its row is called."""

    kind = "scores"
    version = 1
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
        scores = {
            split: dict(SplitEvaluator(store, self.pictures, found, self.preprocessing, self.device).scores(classifier))
            for split, found in labels.items()
        }
        (directory / "scores.json").write_text(json.dumps(scores))

    def load(self, store: Store, split: str) -> Scores:
        return self.artifact(store).read_json("scores.json")[split]


@dataclass(frozen=True, eq=False)
class Reference(Stage):
    """Scores on test (and, for the models, on validation) of everything that a transferred model of the target is compared with.

    models: prediction-only, zero-shot, and the target's own self-explaining ones. explainers: what explains the prediction-only model
    from outside; side_head: what is trained beside it. train: the labels whose mean map is a row. second_draw: labels of the first test
    pictures with other coalitions: how well they predict the first draw is the label ceiling.
    """

    kind = "reference"
    version = 3
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
        rows: list[dict[str, Any]] = []

        def add(reference: str, split: str, scores: Scores, alpha: float | None = None) -> None:
            rows.append({"domain": self.target, "reference": reference, "split": split, "alpha": alpha, **scores})

        mean_map = self.train.mean_map(store).astype(np.float32)
        for split, label_set in (("validation", self.validation), ("test", self.test)):
            for model in self.models:
                add(model.reference, split, model.load(store, split), model.alpha)
            labels = label_set.load(store)
            removed = perturbations(len(mean_map), label_set.settings.num_perturbations)
            add("zero_predictor", split, map_scores(labels, removed, np.zeros_like(mean_map)))
            add("mean_map", split, map_scores(labels, removed, mean_map))
        for name, scores in self.explainers.load(store).items():
            add(name, "test", scores)
        add("side_head", "test", self.side_head.load(store))
        add("chance", "test", chance_scores(len(mean_map), self.num_classes))
        test = self.test.load(store)
        add("label_ceiling", "test", _ceiling(test, self.second_draw.load(store)))
        (directory / "references.json").write_text(json.dumps(rows))
        return {"num_test_labels": len(test)}

    def rows(self, store: Store) -> list[dict[str, Any]]:
        """domain, reference, split, alpha and scores of every row."""
        return list(self.artifact(store).read_json("references.json"))

    def child_run(self, store: Store) -> ChildRun:
        manifest = self.artifact(store).manifest
        metrics: dict[str, float | None] = {}
        for row in self.rows(store):
            if row["split"] == "test":
                prefix = row["reference"] + ("" if row["alpha"] is None else f"_alpha_{row['alpha']:g}")
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


def _ceiling(first: AttributionLabels, second: AttributionLabels) -> Scores:
    """How well the second draw of labels predicts the first."""
    same = first.take(slice(0, len(second)))
    num_patches = same.attributions.shape[1]
    removed = perturbations(num_patches, same.perturbation_values.shape[1])
    return attribution_scores(Scored(second.attributions, same.attributions, removed, same.value_full, same.perturbation_values))
