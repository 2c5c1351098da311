"""Pictures of a target with every model's attributions, for the report: of the shown pictures alone, not of a whole split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.model import Preprocessing, SelfExplainingClassifier
from sweep.experiment.config import Device
from sweep.report.result import Example
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.pairs import PairSearch
from sweep.stages.pictures import Pictures, load_shards
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

NUM_EXAMPLES = 2


@dataclass(frozen=True, eq=False)
class Examples(Stage):
    """The first labelled test pictures of a target (the first, not picked) with every model's attributions.

    `transferred` is the target's pair with the smallest E-RMSE on the split that points are chosen on; `supervised` is at that pair's
    alpha.
    """

    kind = "examples"
    version = 1
    uses_device = True

    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    pairs: tuple[PairSearch, ...]
    zero_shot: Classifier
    prediction_only: Classifier
    supervised: tuple[Classifier, ...]
    test: LabelSet
    device: Device

    @property
    def name(self) -> str:
        return self.target

    @property
    def params(self) -> dict[str, Any]:
        return {"num_examples": NUM_EXAMPLES, "device": self.device}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        models = [stage for classifier in (self.prediction_only, *self.supervised) for stage in classifier.inputs]
        return (self.pictures, *self.pairs, *dict.fromkeys(models), self.test)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        chosen = [(pair.chosen(store, pair.search.select), pair) for pair in self.pairs]
        best, pair = min(chosen, key=lambda found: found[0]["e_rmse"])
        (supervised,) = (c for c in self.supervised if c.alpha == best["alpha"])
        labels = self.test.shards[0].load(store)
        split = load_shards(store, self.pictures.of_range("test", 0, 1))
        number = min(NUM_EXAMPLES, len(labels))
        pixels, class_ids = split.pixels.range(0, number), torch.from_numpy(split.class_ids[:number])
        transferred = pair.transfer.evaluator(store, pair.search).classifier(best["alpha"], best["lambda2"])
        models: dict[str, SelfExplainingClassifier] = {
            "transferred": transferred,
            **{
                name: classifier.load(store)
                for name, classifier in (
                    ("prediction_only", self.prediction_only),
                    ("supervised", supervised),
                    ("zero_shot", self.zero_shot),
                )
            },
        }
        inputs, own = self.preprocessing.normalise(pixels.to(self.device)), class_ids.to(self.device)
        with torch.inference_mode():
            outputs = {name: model(inputs, own).attributions.float().cpu().numpy() for name, model in models.items()}
        arrays = {"pixels": np.ascontiguousarray(pixels.numpy().transpose(0, 2, 3, 1)), "label": labels.attributions[:number], **outputs}
        np.savez(directory / "examples.npz", **arrays)
        class_names = self.pictures.domain.class_names
        description = {"source_domain": pair.transfer.source, "class_names": [class_names[i] for i in class_ids.tolist()]}
        (directory / "examples.json").write_text(json.dumps(description))
        return {"num_examples": number}

    def load(self, store: Store) -> list[Example]:
        artifact = self.artifact(store)
        description = artifact.read_json("examples.json")
        with np.load(artifact.path("examples.npz"), allow_pickle=False) as arrays:
            maps = {name: arrays[name] for name in arrays.files if name != "pixels"}
            return [
                Example(
                    domain=self.target,
                    source_domain=description["source_domain"],
                    class_name=class_name,
                    pixels=arrays["pixels"][i],
                    attributions={name: values[i].astype(np.float32) for name, values in maps.items()},
                )
                for i, class_name in enumerate(description["class_names"])
            ]
