"""A model's own maps beside Kernel SHAP of the same model: how long each takes, and how far they agree."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.games.attribution_labels import Labeller, LabelSettings
from core.metrics import chance_iou_at, correlation, iou_at
from sweep.explain.model import ExplainingModel

TOP = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """Of N pictures, decoded and resized before. own_s, kernel_shap_s: seconds a picture.

    correlation and iou_at_10: means over pictures; relative_error: Kernel SHAP's own, from its standard errors. attributions,
    standard_error: Kernel SHAP's, [N, g, g].
    """

    num_pictures: int
    budget: int
    own_s: float
    kernel_shap_s: float
    correlation: float
    iou_at_10: float
    chance_iou_at_10: float
    relative_error: float
    attributions: NDArray[np.float32] = field(repr=False)
    standard_error: NDArray[np.float32] = field(repr=False)

    @property
    def ratio(self) -> float:
        """How many times as long Kernel SHAP takes."""
        return self.kernel_shap_s / self.own_s

    def __str__(self) -> str:
        return (
            f"Beside Kernel SHAP ({self.budget} evaluations, {self.num_pictures} pictures, decoding not counted):\n"
            f"  own maps     {1000 * self.own_s:10.2f} ms a picture\n"
            f"  Kernel SHAP  {1000 * self.kernel_shap_s:10.2f} ms a picture, {self.ratio:.0f} times as long\n"
            f"  agreement    correlation {self.correlation:.2f}, IoU@10 {self.iou_at_10:.2f} (chance {self.chance_iou_at_10:.2f}); "
            f"Kernel SHAP's own relative error here {self.relative_error:.2f}"
        )


def label_settings(model: ExplainingModel, budget: int) -> LabelSettings:
    """Kernel SHAP of the game that a model explains. Raises ValueError, with the fix, for a budget that its patches cannot do with."""
    game = model.classifier.attribution_head.game
    settings = LabelSettings(budget=budget, value=game.value, label_scale=game.label_scale, fill=game.fill)
    settings.check(model.grid[0] * model.grid[1])
    return settings


def compare(model: ExplainingModel, pixels: Tensor, class_ids: NDArray[np.int64], budget: int, batch_size: int) -> Comparison:
    """Explain pictures in both ways. pixels: uint8 [N, 3, S, S]; class_ids [N]. Raises what `label_settings` raises."""
    labeller = Labeller(model.classifier, label_settings(model, budget), "explain")
    inputs = model.preprocessing.normalise(pixels.to(model.device))
    ids = torch.from_numpy(class_ids).to(model.device)
    model.maps(pixels[:batch_size])  # the first pass of all warms up
    began = time.perf_counter()
    own = np.concatenate(
        [model.maps(some, class_ids[n * batch_size :][: len(some), None]).attributions for n, some in enumerate(pixels.split(batch_size))]
    )
    own_s = time.perf_counter() - began
    began = time.perf_counter()
    labels = labeller.label(inputs, ids, [str(n) for n in range(len(pixels))])
    kernel_shap_s = time.perf_counter() - began
    maps, num_patches = own.reshape(len(own), -1), labels.attributions.shape[1]
    top = min(TOP, num_patches)
    return Comparison(
        len(pixels),
        budget,
        own_s / len(pixels),
        kernel_shap_s / len(pixels),
        correlation(maps, labels.attributions),
        iou_at(top, maps, labels.attributions),
        chance_iou_at(top, num_patches),
        float(np.sqrt(np.square(labels.standard_error).sum() / max(np.square(labels.attributions).sum(), 1e-12))),
        labels.attributions.reshape(-1, *model.grid),
        labels.standard_error.reshape(-1, *model.grid),
    )
