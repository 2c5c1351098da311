"""The side head of a target: trained on the target's own labels beside its prediction-only model, and scored on test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from core.finetune import Recipe
from core.metrics import SCORES, Array, Scores, attribution_scores, per_picture_scores
from core.model import Preprocessing
from core.side_head import SideHead, fit_side_head
from core.training_data import TrainingData
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier, Rows
from sweep.stages.per_picture import PER_PICTURE, load_per_picture, save_per_picture
from sweep.stages.pictures import Pictures
from sweep.stages.references import ModelScores
from sweep.stages.scoring import SplitEvaluator
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

WEIGHTS = "side_head.safetensors"


@dataclass(frozen=True, eq=False)
class FittedSideHead(Stage):
    """Weights of a side head of `classifier`, trained on the labels of a domain's train split; a picture without one is left out.

    The game whose efficiency is met is that of the classifier's attribution head.
    """

    kind = "side_head"
    version = 1
    uses_device = True

    domain: str
    preprocessing: Preprocessing
    pictures: Pictures
    classifier: Classifier
    labels: LabelSet
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.domain} side head"

    @property
    def params(self) -> dict[str, Any]:
        return {**self.classifier.params, "recipe": asdict(self.recipe), "device": self.classifier.device}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pictures, *self.classifier.inputs, self.labels)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        split, rows = self.pictures.load(store, "train"), self.labels.rows(store)
        data = TrainingData(
            Rows(split.pixels, torch.from_numpy(rows)),
            torch.from_numpy(split.class_ids[rows]),
            self.preprocessing,
            torch.from_numpy(self.labels.attributions(store)),
        )
        side_head, losses = fit_side_head(self.classifier.load(store), data, self.recipe)
        save_file({name: tensor.contiguous().cpu() for name, tensor in side_head.state_dict().items()}, directory / WEIGHTS)
        return {"num_pictures": len(data), "first_loss": losses[0], "final_loss": losses[-1]}

    def load(self, store: Store) -> SideHead:
        """The head on the classifier's device, without gradients."""
        weights = load_file(self.artifact(store).path(WEIGHTS))
        side_head = SideHead(weights["layers.0.weight"].shape[1] // 4)
        side_head.load_state_dict(weights)
        return side_head.to(self.classifier.device).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class SideHeadScores(Stage):
    """Scores on test of a side head's maps. The accuracy is that of the model it stands beside."""

    reference: ClassVar[str] = "side_head"
    kind = "side_head_scores"
    version = 2
    uses_device = True

    side_head: FittedSideHead
    model: ModelScores

    @property
    def name(self) -> str:
        return self.side_head.name

    @property
    def params(self) -> dict[str, Any]:
        return {**self.side_head.classifier.params, "device": self.model.device, "scores": [score.name for score in SCORES]}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.side_head, *self.side_head.classifier.inputs, self.model.pictures, self.model.test, self.model)

    def compute(self, store: Store, directory: Path) -> None:
        model, side_head = self.model, self.side_head.load(store)
        classifier = self.side_head.classifier.load(store)
        evaluator = SplitEvaluator(store, model.pictures, model.test, model.preprocessing, model.device)
        maps = np.concatenate([side_head.maps(classifier, *batch).float().cpu().numpy() for batch in evaluator.labelled()])
        scored = evaluator.scored(maps, model.per_picture(store)["accuracy"] > 0)
        (directory / "scores.json").write_text(json.dumps(dict(attribution_scores(scored))))
        save_per_picture(directory, {self.reference: per_picture_scores(scored)})

    def load(self, store: Store) -> Scores:
        """On test."""
        return dict(self.artifact(store).read_json("scores.json"))

    def per_picture(self, store: Store) -> dict[str, Array]:
        """Of every test picture."""
        return load_per_picture(self.artifact(store).path(PER_PICTURE))[self.reference]
