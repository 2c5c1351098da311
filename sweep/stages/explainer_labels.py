"""Train labels that an explainer gives of a domain's prediction-only model, in place of Shapley values."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.attribution_head import COSINE
from core.explainers.explainer import EXPLAINERS
from core.games.attribution_labels import AttributionLabels, perturbations
from core.games.coalition_values import CoalitionEvaluator
from core.map_scale import fit_scale
from core.model import Preprocessing, SelfExplainingClassifier
from sweep.stages.label_files import AttributionRanges, read_labels, write_labels
from sweep.stages.labels import LABELS, MEAN_MAP, LabelMeans, LabelSet, batch_size_of
from sweep.stages.models import Classifier
from sweep.stages.pictures import Pictures, PictureSplit
from sweep.stages.scoring import EXPLAINED_AT_ONCE
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store

NUM_SCALED, NUM_SETS = 64, 64
"""Pictures whose game values the factor of a label set is fitted on, and the sets of patches that are hidden of each."""


@dataclass(frozen=True, eq=False)
class ExplainerLabels(LabelSet):
    """A label set of an explainer's maps. number: of planned pictures that are labelled, the first ones.

    The maps have no unit, and a model is to give attributions in that of the game: they are multiplied by the one factor that suits the
    game values of some of the pictures best, which takes no Shapley value (`core.map_scale`). Their errors are not known.
    """

    kind = "explainer_labels"
    version = 1
    uses_device = True
    is_index = False

    pictures: Pictures
    preprocessing: Preprocessing
    classifier: Classifier
    explainer: str
    number: int

    @property
    def params(self) -> dict[str, Any]:
        game = {name: getattr(self.settings, name) for name in ("value", "label_scale", "fill", "precision")}
        what = {"explainer": self.explainer, "number": self.number, "device": self.classifier.device}
        return {**super().params, **self.classifier.params, **game, **what}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pictures, *self.classifier.inputs)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """Files: labels.parquet, mean_map.npy."""
        started, began = time.time(), time.monotonic()
        split, classifier = self.pictures.load(store, self.split), self.classifier.load(store)
        number = int((split.positions < self.number).sum())
        explainer, chunks = EXPLAINERS[self.explainer], range(0, number, EXPLAINED_AT_ONCE)
        rows = [np.arange(start, min(start + EXPLAINED_AT_ONCE, number)) for start in chunks]
        maps = np.concatenate([explainer.maps(classifier, *self._batch(split, some)).float().cpu().numpy() for some in rows])
        factor, evaluations = self._factor(classifier, split, maps)
        unknown = np.full(number, np.nan, np.float32)
        none, errors = np.empty((number, 0), np.float32), np.full_like(maps, np.nan)
        labels = AttributionLabels((factor * maps).astype(np.float32), errors, unknown, unknown, none, np.zeros(number, np.int32))
        provenance = {"explainer": self.explainer, "scale": factor, "model_fingerprint": self.classifier.fingerprint, "key": self.key}
        write_labels(directory / LABELS, split.ids[:number], split.class_ids[:number], labels, provenance)
        means = LabelMeans()
        means.add(labels)
        means.save_map(directory / MEAN_MAP)
        seconds = round(time.monotonic() - began, 3)
        return {**means.as_meta(), "evaluations": evaluations, "seconds": seconds, "started": started, "scale": factor}

    def _factor(self, classifier: SelfExplainingClassifier, split: PictureSplit, maps: NDArray[np.float32]) -> tuple[float, int]:
        """The factor of the maps, and the evaluations that it took. Pictures from all over the split: it may be sorted by class."""
        some = np.unique(np.linspace(0, len(maps) - 1, NUM_SCALED).round().astype(np.int64))
        removed = perturbations(maps.shape[1], NUM_SETS)
        evaluator = CoalitionEvaluator(
            classifier,
            value=self.settings.value,
            label_scale=self.settings.label_scale,
            fill=self.settings.fill,
            dtype=getattr(torch, self.settings.precision),
            batch_size=batch_size_of(self.classifier.device, self.settings),
        )
        coalitions = np.concatenate([~removed, np.ones((1, maps.shape[1]), dtype=bool)])
        values = evaluator.values(*self._batch(split, some), torch.from_numpy(coalitions)).cpu().numpy()
        return fit_scale(COSINE, maps[some], removed, values[:, -1], values[:, :-1]), evaluator.num_evaluations

    def _batch(self, split: PictureSplit, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised inputs and class ids on the device."""
        device = self.classifier.device
        pixels = split.pixels.gather(torch.from_numpy(rows)).to(device)
        return self.preprocessing.normalise(pixels), torch.from_numpy(split.class_ids[rows]).to(device)

    def load(self, store: Store) -> AttributionLabels:
        return read_labels(self.artifact(store).path(LABELS))[1]

    def attributions_by_range(self, store: Store) -> AttributionRanges:
        artifact = self.artifact(store)
        return AttributionRanges(((artifact, LABELS),), np.array([0, artifact.manifest["meta"]["num_pictures"]]))

    def _files(self, store: Store) -> list[Path]:
        return [self.artifact(store).path(LABELS)]

    def child_run(self, store: Store) -> ChildRun:
        """No settings of an estimator: there is none."""
        found = super().child_run(store)
        own = {name: value for name, value in found.params.items() if not name.startswith("label.")}
        scale = self.artifact(store).manifest["meta"]["scale"]
        return replace(found, params={**own, "labels": self.explainer}, metrics={**found.metrics, "map_scale": scale})


def explained(
    label_set: LabelSet, pictures: Pictures, preprocessing: Preprocessing, classifier: Classifier, explainer: str, number: int
) -> ExplainerLabels:
    """In place of a label set of Shapley values."""
    own = {f.name: getattr(label_set, f.name) for f in fields(LabelSet)}
    return ExplainerLabels(
        **own,
        pictures=pictures,
        preprocessing=preprocessing,
        classifier=classifier,
        explainer=explainer,
        number=number,
    )
