"""Scores of explainers that need no training of their own, on a target's prediction-only model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.attribution_head import COSINE
from core.explainers.explainer import EXPLAINERS, Explainer
from core.metrics import SCORES, Array, Scored, Scores, attribution_scores, per_picture_scores
from core.model import SelfExplainingClassifier
from sweep.stages.per_picture import PER_PICTURE, load_per_picture, save_per_picture
from sweep.stages.references import ModelScores
from sweep.stages.scoring import SplitEvaluator
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store


@dataclass(frozen=True, eq=False)
class ExplainerScores(Stage):
    """Scores on test of every explainer's maps of the labelled pictures. model: the classifier that is explained, with its scores.

    The maps have no unit. They are scored at the one factor a target that suits the validation pictures' own game values best, which
    takes no label (`core.map_scale`), so that their E-RMSE can be compared. An explainer leaves the classifier as it is: the accuracy is
    the classifier's.
    """

    kind = "explainer_scores"
    version = 2
    uses_device = True

    model: ModelScores

    @property
    def name(self) -> str:
        return f"{self.model.target} explainers"

    @property
    def params(self) -> dict[str, Any]:
        return {**self.model.params, "explainers": list(EXPLAINERS), "scores": [score.name for score in SCORES]}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.model.inputs, self.model)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        model, classifier = self.model, self.model.classifier.load(store)
        validation, test = (
            SplitEvaluator(store, model.pictures, labels, model.preprocessing, model.device) for labels in (model.validation, model.test)
        )
        is_correct = model.per_picture(store)["accuracy"] > 0
        scored: dict[str, Scored] = {}
        scales: dict[str, float] = {}
        for name, explainer in EXPLAINERS.items():
            scales[name] = validation.map_scale(COSINE, _maps(explainer, classifier, validation))
            scored[name] = test.scored(scales[name] * _maps(explainer, classifier, test), is_correct)
        (directory / "scores.json").write_text(json.dumps({name: dict(attribution_scores(found)) for name, found in scored.items()}))
        save_per_picture(directory, {name: per_picture_scores(found) for name, found in scored.items()})
        return {"scales": scales}

    def load(self, store: Store) -> dict[str, Scores]:
        """Scores on test by the explainer's name."""
        return dict(self.artifact(store).read_json("scores.json"))

    def per_picture(self, store: Store) -> dict[str, dict[str, Array]]:
        """Of every test picture, by the explainer's name."""
        return load_per_picture(self.artifact(store).path(PER_PICTURE))


def _maps(explainer: Explainer, classifier: SelfExplainingClassifier, evaluator: SplitEvaluator) -> np.ndarray:
    """Of the labelled pictures' true classes. [L, M]"""
    return np.concatenate([explainer.maps(classifier, *batch).float().cpu().numpy() for batch in evaluator.labelled()])
