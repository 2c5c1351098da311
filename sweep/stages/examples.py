"""Pictures of a target with every model's attributions, for the report: of the shown pictures alone, not of a whole split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.map_scale import rescaled
from core.model import Preprocessing, SelfExplainingClassifier
from sweep.experiment.config import Device
from sweep.report.example import EXAMPLE_ATTRIBUTIONS, Example, LambdaMaps
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.pairs import PairSearch
from sweep.stages.pictures import Pictures, load_shards
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

NUM_EXAMPLES = 2
NUM_LAMBDAS = 6
"""Points of a pair of which maps are kept: evenly spread over lambda2, and the chosen one besides."""


@dataclass(frozen=True, eq=False)
class Examples(Stage):
    """The first labelled test pictures of a target (the first, not picked) with every model's attributions.

    `transferred` is the target's pair with the smallest E-RMSE on the split that points are chosen on; `supervised` and the source's own
    models are those of that pair and its alpha. source_models: of each pair, by name, as Table 1 has them; of a combined source none. Of
    every pair that transfers to the target the maps of some evaluated points are kept: those at its chosen alpha, and lambda2 = 0, where
    alpha says nothing.
    """

    kind = "examples"
    version = 3
    uses_device = True

    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    pairs: tuple[PairSearch, ...]
    source_models: tuple[tuple[tuple[str, Classifier], ...], ...]
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
        return {"num_examples": NUM_EXAMPLES, "num_lambdas": NUM_LAMBDAS, "device": self.device}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        of_sources = [classifier for models in self.source_models for _, classifier in models]
        models = [stage for classifier in (self.prediction_only, *self.supervised, *of_sources) for stage in classifier.inputs]
        return (self.pictures, *self.pairs, *dict.fromkeys(models), self.test)

    @property
    def also_reads(self) -> tuple[Stage, ...]:
        """What the pairs' points are merged from."""
        return tuple(dict.fromkeys(stage for pair in self.pairs for stage in pair.inputs))

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        labels = self.test.shards[0].load(store)
        split = load_shards(store, self.pictures.of_range("test", 0, 1))
        number = min(NUM_EXAMPLES, len(labels))
        pixels, class_ids = split.pixels.range(0, number), torch.from_numpy(split.class_ids[:number])
        pictures = _OnDevice(self.preprocessing.normalise(pixels.to(self.device)), class_ids.to(self.device))

        chosen = [pair.chosen(store, pair.search.select) for pair in self.pairs]
        best = min(range(len(chosen)), key=lambda i: chosen[i]["e_rmse"])
        (supervised,) = (c for c in self.supervised if c.alpha == chosen[best]["alpha"])
        alpha_of = {"source_prediction_only": 1.0, "source_self_explaining": chosen[best]["alpha"]}
        of_source = {name: classifier for name, classifier in self.source_models[best] if classifier.alpha == alpha_of[name]}
        models = {"prediction_only": self.prediction_only, **of_source, "supervised": supervised, "zero_shot": self.zero_shot}
        outputs = {name: pictures.explained(classifier.load(store))[1] for name, classifier in models.items()}
        pairs: list[dict[str, Any]] = []
        for i, pair in enumerate(self.pairs):
            shown = shown_points(pair.cells(store), chosen[i])
            maps, probabilities = self._over_lambda(pair, shown, pictures, store)  # [L, N, M], [L, N, C]
            outputs[f"over_lambda/{i}"] = maps
            if i == best:
                outputs["transferred"] = maps[[cell["lambda2"] for cell in shown].index(chosen[i]["lambda2"])]
            pairs.append(
                {
                    "source_domain": pair.transfer.source,
                    "lambdas": [cell["lambda2"] for cell in shown],
                    "class_ids": probabilities.argmax(axis=2).tolist(),
                    "probabilities": probabilities.max(axis=2).round(4).tolist(),
                }
            )
        arrays = {"pixels": np.ascontiguousarray(pixels.numpy().transpose(0, 2, 3, 1)), "label": labels.attributions[:number], **outputs}
        np.savez(directory / "examples.npz", **arrays)  # type: ignore[arg-type]  # names are ours, no clash with its options
        description = {"source_domain": pairs[best]["source_domain"], "class_ids": class_ids.tolist(), "pairs": pairs}
        (directory / "examples.json").write_text(json.dumps(description))
        return {"num_examples": number}

    def _over_lambda(
        self, pair: PairSearch, cells: Sequence[Mapping[str, Any]], pictures: _OnDevice, store: Store
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attributions, calibrated as the cells are, and class probabilities of the transferred models at these cells."""
        points = pair.transfer.evaluator(store, pair.search)
        maps, probabilities = [], []
        for cell in cells:
            classifier = points.at(cell)
            found, attributions = pictures.explained(classifier)
            head = classifier.attribution_head
            maps.append(rescaled(head, attributions, cell["attribution_scale"] / head.scale))
            probabilities.append(found)
        return np.stack(maps), np.stack(probabilities)

    def load(self, store: Store) -> list[Example]:
        artifact = self.artifact(store)
        description = artifact.read_json("examples.json")
        class_names = self.pictures.domain.class_names
        with np.load(artifact.path("examples.npz"), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return [
            Example(
                domain=self.target,
                source_domain=description["source_domain"],
                class_name=class_names[class_id],
                pixels=arrays["pixels"][i],
                attributions={name: arrays[name][i].astype(np.float32) for name in EXAMPLE_ATTRIBUTIONS if name in arrays},
                over_lambda={
                    pair["source_domain"]: LambdaMaps(
                        lambdas=pair["lambdas"],
                        attributions=arrays[f"over_lambda/{number}"][:, i].astype(np.float32),
                        class_names=tuple(class_names[ids[i]] for ids in pair["class_ids"]),
                        probabilities=tuple(found[i] for found in pair["probabilities"]),
                    )
                    for number, pair in enumerate(description["pairs"])
                },
            )
            for i, class_id in enumerate(description["class_ids"])
        ]


@dataclass(frozen=True)
class _OnDevice:
    """The shown pictures on the device. inputs: normalised [N, 3, S, S]; class_ids: [N]."""

    inputs: Tensor
    class_ids: Tensor

    @torch.inference_mode()
    def explained(self, model: SelfExplainingClassifier) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities [N, C] and attributions [N, M] of the true classes."""
        found = model(self.inputs, self.class_ids)
        return found.logits.float().softmax(dim=1).cpu().numpy(), found.attributions.float().cpu().numpy()


def shown_points(cells: pd.DataFrame, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """At most NUM_LAMBDAS + 1 of a pair's cells, ascending in lambda2, one a lambda2, the chosen one among them."""
    of_split = cells[(cells["split"] == chosen["split"]) & ((cells["alpha"] == chosen["alpha"]) | (cells["lambda2"] == 0.0))]
    # Of several cells with one lambda2 the chosen one stands last, then one at the chosen alpha.
    order = lambda row: (row["alpha"] == chosen["alpha"], row["is_chosen"])  # noqa: E731
    by_lambda = {row["lambda2"]: row for row in sorted(of_split.to_dict("records"), key=order)}
    known = np.array(sorted(by_lambda))
    wanted = np.linspace(known[0], known[-1], NUM_LAMBDAS)
    kept = {float(known[np.abs(known - value).argmin()]) for value in wanted} | {float(chosen["lambda2"])}
    return [by_lambda[value] for value in sorted(kept)]
