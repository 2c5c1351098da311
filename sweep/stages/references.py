"""Every row that a transferred model of a target is read against, scored once a target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.games.attribution_labels import AttributionLabels, perturbations
from core.metrics import SCORES, Scored, Scores, attribution_scores, chance_scores
from core.model import Preprocessing
from sweep.experiment.config import Device
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.pictures import Pictures
from sweep.stages.scoring import SplitEvaluator
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store


@dataclass(frozen=True, eq=False)
class Reference(Stage):
    """Scores on test (and, for the models, on validation) of everything that a transferred model of the target is compared with.

    supervised: the target's own self-explaining models, by alpha. train: the labels whose mean map is a row. second_draw: labels of the
    first test pictures with other coalitions: how well they predict the first draw is the label ceiling.
    """

    kind = "reference"
    version = 2
    uses_device = True
    unit = "targets"

    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    zero_shot: Classifier
    prediction_only: Classifier
    supervised: tuple[Classifier, ...]
    train: LabelSet
    validation: LabelSet
    test: LabelSet
    second_draw: LabelSet
    device: Device

    @property
    def name(self) -> str:
        return self.target

    @property
    def params(self) -> dict[str, Any]:
        return {"base": self.zero_shot.base.fingerprint, "device": self.device, "scores": [score.name for score in SCORES]}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        models = [stage for classifier in (self.prediction_only, *self.supervised) for stage in classifier.inputs]
        return (self.pictures, *dict.fromkeys(models), self.train, self.validation, self.test, self.second_draw)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []

        def add(reference: str, split: str, scores: Scores, alpha: float | None = None) -> None:
            rows.append({"domain": self.target, "reference": reference, "split": split, "alpha": alpha, **scores})

        labels = {"validation": self.validation, "test": self.test}
        evaluators = {s: SplitEvaluator(store, self.pictures, found, self.preprocessing, self.device) for s, found in labels.items()}
        models: list[tuple[str, Classifier, float | None]] = [("prediction_only", self.prediction_only, None)]
        models += [("zero_shot", self.zero_shot, None), *(("supervised", c, c.alpha) for c in self.supervised)]
        for reference, classifier, alpha in models:
            loaded = classifier.load(store)
            for split, evaluator in evaluators.items():
                add(reference, split, evaluator.scores(loaded), alpha)
        mean_map = self.train.mean_map(store).astype(np.float32)
        for split, evaluator in evaluators.items():
            add("zero_predictor", split, evaluator.map_scores(np.zeros_like(mean_map)))
            add("mean_map", split, evaluator.map_scores(mean_map))
        add("chance", "test", chance_scores(len(mean_map), len(self.zero_shot.heads[0].class_names)))
        add("label_ceiling", "test", _ceiling(evaluators["test"].labels, self.second_draw.load(store)))
        rows.sort(key=lambda row: row["split"] != "validation")
        (directory / "references.json").write_text(json.dumps(rows))
        return {"num_test_labels": len(evaluators["test"].labels)}

    def rows(self, store: Store) -> list[dict[str, Any]]:
        """domain, reference, split, alpha and scores of every row."""
        return list(self.artifact(store).read_json("references.json"))

    def prediction_only_scores(self, store: Store, split: str) -> Mapping[str, float]:
        """What normalised scores are divided by."""
        return next(row for row in self.rows(store) if row["reference"] == "prediction_only" and row["split"] == split)

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
