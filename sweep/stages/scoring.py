"""Scores of a model or a map on one split of a domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from core.attribution_head import AttributionHead
from core.games.attribution_labels import AttributionLabels, perturbations
from core.map_scale import fit_scale
from core.metrics import Scored, Scores, are_correct, attribution_scores
from core.metrics import accuracy as accuracy_of
from core.model import Preprocessing, SelfExplainingClassifier
from sweep.experiment.config import Device
from sweep.stages.labels import LabelSet
from sweep.stages.pictures import Pictures
from sweep.store.artifacts import Store

BATCH_SIZE = 256
EXPLAINED_AT_ONCE = 64
"""Pictures of a batch that an explainer gets, which may hold every block's attention weights and their gradients."""
TOLERATED_SHIFT = 0.1
"""Share of a score's own error by which faster arithmetic may change it."""
RESIDENT_BYTES = 2**31
"""Pixels of a split that are kept on the device between models; a larger split is read batch by batch."""


class SplitEvaluator:
    """One split of a domain with its labels, ready to score any model on. Accuracy over all pictures, the rest over the labelled."""

    def __init__(self, store: Store, pictures: Pictures, labels: LabelSet, preprocessing: Preprocessing, device: Device) -> None:
        self._pictures = pictures.load(store, labels.split)
        self._preprocessing, self._device = preprocessing, device
        self.labels: AttributionLabels = labels.load(store)
        self._removed = perturbations(self.labels.attributions.shape[1], labels.settings.num_perturbations)
        num_bytes = len(self._pictures) * 3 * preprocessing.image_size**2
        self._resident: dict[int, Tensor] | None = {} if num_bytes <= RESIDENT_BYTES else None
        self._takes_tf32: bool | None = None if torch.device(device).type == "cuda" else False
        self._num_scored = 0

    def _pixels(self, start: int, stop: int) -> Tensor:
        """uint8 on the device."""
        if self._resident is None:
            return self._pictures.pixels.range(start, stop).to(self._device)
        if start not in self._resident:
            self._resident[start] = self._pictures.pixels.range(start, stop).to(self._device)
        return self._resident[start]

    def outputs(self, classifier: SelfExplainingClassifier) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all pictures [N, C] and attributions of the true classes of the labelled ones [L, M].

        On a GPU in TF32 from the third model on, if that hardly changes the second's: most evaluators score one alone.
        """
        self._num_scored += 1
        if self._takes_tf32 is None and self._num_scored > 1:
            exact = self._outputs(classifier)
            with tf32():
                fast = self._outputs(classifier)
            self._takes_tf32 = hardly_differ(exact, fast, self._pictures.class_ids, self.labels.standard_error)
            return exact
        with tf32() if self._takes_tf32 else nullcontext():
            return self._outputs(classifier)

    @torch.inference_mode()
    def _outputs(self, classifier: SelfExplainingClassifier) -> tuple[np.ndarray, np.ndarray]:
        logits: list[Tensor] = []
        attributions: list[Tensor] = []
        for start in range(0, len(self._pictures), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(self._pictures))
            inputs = self._preprocessing.normalise(self._pixels(start, stop))
            class_ids = torch.from_numpy(self._pictures.class_ids[start:stop]).to(self._device)
            num_labelled = max(0, min(stop, len(self.labels)) - start)
            if num_labelled:
                explained = classifier(inputs[:num_labelled], class_ids[:num_labelled])
                logits.append(explained.logits)
                attributions.append(explained.attributions)
            if num_labelled < stop - start:
                logits.append(classifier.logits(inputs[num_labelled:]))
        return torch.cat(logits).float().cpu().numpy(), torch.cat(attributions).float().cpu().numpy()

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs [B, 3, S, S] and class ids [B] of the labelled pictures, batch by batch, on the device."""
        for start in range(0, len(self.labels), EXPLAINED_AT_ONCE):
            stop = min(start + EXPLAINED_AT_ONCE, len(self.labels))
            pixels = self._pictures.pixels.range(start, stop).to(self._device)
            yield self._preprocessing.normalise(pixels), torch.from_numpy(self._pictures.class_ids[start:stop]).to(self._device)

    def scored_model(self, classifier: SelfExplainingClassifier) -> Scored:
        """What a model is scored from."""
        logits, attributions = self.outputs(classifier)
        return self.scored(attributions, self.is_correct(logits))

    def is_correct(self, logits: np.ndarray) -> np.ndarray:
        """Which pictures are classified rightly. [N, C] -> bool [N]"""
        return are_correct(logits, self._pictures.class_ids)

    def map_scale(self, head: AttributionHead, attributions: np.ndarray) -> float:
        """The factor of a head's maps [L, M] that suits the pictures' own game values best; reads no label."""
        return fit_scale(head, attributions, self._removed, self.labels.value_full, self.labels.perturbation_values)

    def scored(self, attributions: np.ndarray, is_correct: np.ndarray | None = None) -> Scored:
        """What attributions [L, M] (or one map [M] for all pictures) are scored from."""
        return scored_maps(self.labels, self._removed, attributions, is_correct)


def map_scores(
    labels: AttributionLabels, removed: np.ndarray, attributions: np.ndarray, is_correct: np.ndarray | None = None
) -> Scores:
    """Scores of attributions [L, M] (or of one map [M] for all pictures) against labels of L pictures."""
    return attribution_scores(scored_maps(labels, removed, attributions, is_correct))


def scored_maps(
    labels: AttributionLabels, removed: np.ndarray, attributions: np.ndarray, is_correct: np.ndarray | None = None
) -> Scored:
    """What these scores are computed from."""
    attributions = np.broadcast_to(attributions, labels.attributions.shape)
    return Scored(attributions, labels.attributions, removed, labels.value_full, labels.perturbation_values, is_correct)


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products of float32 on a GPU with 10 bits of mantissa: several times as fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def hardly_differ(
    exact: tuple[np.ndarray, np.ndarray], fast: tuple[np.ndarray, np.ndarray], class_ids: np.ndarray, standard_error: np.ndarray
) -> bool:
    """Whether outputs in faster arithmetic change scores by less than a tenth of the scores' own error.

    exact, fast: logits [N, C] and attributions [L, M]. The error of an accuracy is its sampling error over N pictures; that of everything
    measured against labels is at least the labels' own, standard_error [L, M].
    """
    accuracies = [accuracy_of(logits, class_ids) for logits, _ in (exact, fast)]
    sampling_error = np.sqrt(max(accuracies[0] * (1.0 - accuracies[0]), 1.0 / len(class_ids)) / len(class_ids))
    shift = np.sqrt(np.square(exact[1].astype(np.float64) - fast[1]).mean())
    label_error = np.sqrt(np.square(standard_error.astype(np.float64)).mean())
    return bool(abs(accuracies[0] - accuracies[1]) <= TOLERATED_SHIFT * sampling_error and shift <= TOLERATED_SHIFT * label_error)
