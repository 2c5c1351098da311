"""The choice of lambda2 for a user's fine-tuned model from what its owner has: pictures, labelled or not, and no labels of maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.games.attribution_labels import perturbations
from core.games.coalition_values import CoalitionEvaluator
from core.map_scale import fit_scale, rescaled
from core.metrics import infidelity
from core.model import Preprocessing, SelfExplainingClassifier
from core.statistics.proportions import kept_accuracy
from core.transfer import TransferredModel

Rule = Literal["given", "accuracy_bound", "vector", "infidelity"]

RULE_MEANINGS: dict[Rule, str] = {
    "given": "as it was given",
    "accuracy_bound": "the largest of the grid up to which the accuracy on labelled validation pictures is kept",
    "vector": "as the vector's file says: the largest at which the targets of its sweep keep the accuracy on average",
    "infidelity": "the least infidelity on unlabelled pictures among those that keep the predictions, no label being there",
}

NUM_PERTURBATIONS = 64


@dataclass(frozen=True, eq=False)
class ValidationPictures:
    """Labelled pictures: uint8 [N, 3, S, S] and int64 [N]."""

    pixels: Tensor
    class_ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Unlabelled pictures with the fine-tuned model's game on them, for the class that it predicts.

    inputs: normalised [N, 3, S, S]; class_ids: int64 [N]; removed: bool [I, M]; value_full: [N]; perturbation_values: [N, I].
    """

    inputs: Tensor
    class_ids: NDArray[np.int64]
    removed: NDArray[np.bool_]
    value_full: NDArray[np.float32]
    perturbation_values: NDArray[np.float32]

    @staticmethod
    @torch.no_grad()
    def play(classifier: SelfExplainingClassifier, pixels: Tensor, preprocessing: Preprocessing) -> Calibration:
        """The game of a classifier on pictures, uint8 [N, 3, S, S]: the grand coalition and NUM_PERTURBATIONS others a picture."""
        device, game = classifier.head.device, classifier.attribution_head.game
        inputs = preprocessing.normalise(pixels.to(device))
        class_ids = _logits(classifier, pixels, preprocessing).argmax(axis=1)
        rows, columns = classifier.visual.grid_size
        removed = perturbations(rows * columns, NUM_PERTURBATIONS)
        evaluator = CoalitionEvaluator(classifier, value=game.value, label_scale=game.label_scale, fill=game.fill)
        coalitions = torch.from_numpy(np.concatenate([np.ones_like(removed[:1]), ~removed]))
        values = evaluator.values(inputs, torch.from_numpy(class_ids).to(device), coalitions).cpu().numpy()
        return Calibration(inputs, class_ids, removed, values[:, 0], values[:, 1:])

    @torch.inference_mode()
    def measure(self, classifier: SelfExplainingClassifier, batch_size: int = 64) -> tuple[float, float, float]:
        """Of a classifier: its maps' best scale, their infidelity at it, and the share of predictions that are the fine-tuned model's."""
        maps, predicted = [], []
        ids = torch.from_numpy(self.class_ids).to(self.inputs.device)
        for some, own in zip(self.inputs.split(batch_size), ids.split(batch_size), strict=True):
            explained = classifier(some, own)
            maps.append(explained.attributions.float().cpu())
            predicted.append(explained.logits.argmax(dim=1).cpu())
        attributions, head = torch.cat(maps).numpy(), classifier.attribution_head
        scale = fit_scale(head, attributions, self.removed, self.value_full, self.perturbation_values)
        calibrated = rescaled(head, attributions, scale)
        found = infidelity(calibrated, self.removed, self.value_full, self.perturbation_values)
        return scale, found, float((torch.cat(predicted).numpy() == self.class_ids).mean())

    @property
    def zero_infidelity(self) -> float:
        """That of a map of zeros: what a map that knows nothing scores."""
        return infidelity(np.zeros((len(self.class_ids), self.removed.shape[1])), self.removed, self.value_full, self.perturbation_values)


@dataclass(frozen=True)
class Point:
    """What was measured at a lambda2. None: there were no pictures to measure it on.

    normalized_accuracy: divided by the fine-tuned model's; its lower limit is one-sided. agreement: share of equal predictions with it.
    """

    lambda2: float
    accuracy: float | None = None
    normalized_accuracy: float | None = None
    normalized_accuracy_lower: float | None = None
    agreement: float | None = None
    infidelity: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Choice:
    """The point that was chosen, by which rule, and all points that were looked at, the fine-tuned model's (lambda2 = 0) first.

    Where no lambda2 above 0 keeps what the rule wants kept, 0 is chosen.
    """

    point: Point
    rule: Rule
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Bound:
    """What a transferred model must keep. least: of the normalised accuracy (or of equal predictions); confidence: one-sided."""

    least: float = 0.95
    confidence: float = 0.95


class Lambda2Search:
    """Measures points on what there is of validation pictures and calibration, and chooses one."""

    def __init__(
        self,
        model: TransferredModel,
        preprocessing: Preprocessing,
        validation: ValidationPictures | None,
        calibration: Calibration | None,
        bound: Bound,
    ) -> None:
        self._model, self._preprocessing, self._bound = model, preprocessing, bound
        self._validation, self._calibration = validation, calibration
        self._reference: NDArray[np.bool_] | None = None

    def given(self, lambda2: float) -> Choice:
        """A lambda2 that was decided elsewhere, measured where there are pictures."""
        if self._validation is None and self._calibration is None:
            return Choice(Point(lambda2), "given", (Point(0.0), Point(lambda2)))
        points = self._points([lambda2], until_lost=False)
        return Choice(points[-1], "given", tuple(points))

    def choose(self, lambdas: Sequence[float]) -> Choice:
        """The lambda2 of a grid: by the accuracy bound with labelled pictures, else by infidelity. Raises AssertionError with neither."""
        assert self._validation is not None or self._calibration is not None
        if self._validation is not None:
            points = self._points(lambdas, until_lost=True)
            return Choice([p for p in points if self._is_within(p)][-1], "accuracy_bound", tuple(points))
        points = self._points(lambdas, until_lost=False)
        within = [p for p in points if p.agreement is not None and p.agreement >= self._bound.least]
        return Choice(min(within, key=lambda p: p.infidelity or 0.0), "infidelity", tuple(points))

    def _points(self, lambdas: Iterable[float], until_lost: bool) -> list[Point]:
        """The fine-tuned model's, then the grid's in ascending order; until_lost: up to the first that does not keep the accuracy."""
        points = [self._measured(0.0)]
        for lambda2 in sorted(set(lambdas) - {0.0}):
            points.append(self._measured(lambda2))
            if until_lost and not self._is_within(points[-1]):
                break
        return points

    def _is_within(self, point: Point) -> bool:
        return point.lambda2 == 0.0 or (point.normalized_accuracy_lower or 0.0) >= self._bound.least

    def _measured(self, lambda2: float) -> Point:
        classifier = self._model.set(lambda2)
        found: dict[str, float] = {}
        if self._validation is not None:
            logits = _logits(classifier, self._validation.pixels, self._preprocessing)
            is_correct = logits.argmax(axis=1) == self._validation.class_ids
            if self._reference is None:
                self._reference = is_correct
            found["accuracy"] = float(is_correct.mean())
            if self._reference.any():
                found["normalized_accuracy"] = float(is_correct.mean() / self._reference.mean())
                found["normalized_accuracy_lower"] = kept_accuracy(is_correct, self._reference, self._bound.confidence) or 0.0
        if self._calibration is not None:
            classifier.fix_empty()
            found["scale"], found["infidelity"], found["agreement"] = self._calibration.measure(classifier)
        return Point(lambda2, **found)


@torch.inference_mode()
def _logits(
    classifier: SelfExplainingClassifier, pixels: Tensor, preprocessing: Preprocessing, batch_size: int = 64
) -> NDArray[np.float32]:
    """Of pictures uint8 [N, 3, S, S] -> [N, C]."""
    device = classifier.head.device
    parts = [classifier.logits(preprocessing.normalise(some.to(device))) for some in pixels.split(batch_size)]
    return torch.cat(parts).float().cpu().numpy()
