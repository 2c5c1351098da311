"""Attribution labels: Kernel SHAP values of a prediction-only classifier, for batches of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.coalition_values import CoalitionEvaluator, Value
from core.kernel_shap import CoalitionPool
from core.model import SelfExplainingClassifier

Precision = Literal["float32", "bfloat16"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LabelSettings:
    """What a label set depends on besides the classifier and the pictures.

    budget: evaluations a picture, besides those of the empty and the grand coalition. pool_size: coalition matrices in the pool.
    value, label_scale: see `CoalitionEvaluator`. precision: arithmetic of the image tower. seed: of the pool. num_perturbations:
    additional evaluations a picture that infidelity is measured on (0 where no model is scored on the pictures).
    """

    budget: int = 512
    pool_size: int = 16
    value: Value = "logit"
    label_scale: float = 3.5
    precision: Precision = "float32"
    seed: int = 0
    num_perturbations: int = 0

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise ValueError(f"a pool holds at least one coalition matrix, not {self.pool_size}")
        if not self.label_scale > 0:
            raise ValueError(f"label_scale must be positive, not {self.label_scale}")

    def pool(self, num_patches: int, role: str) -> CoalitionPool:
        return CoalitionPool(num_patches, self.budget, self.pool_size, role, self.seed)


@dataclass(frozen=True)
class AttributionLabels:
    """Labels of N pictures with M patches.

    attributions, standard_error: [N, M]; value_empty, value_full: [N]; perturbation_values: [N, I], v(all without I) of the fixed
    perturbations that infidelity is measured on (`perturbations`).
    """

    attributions: Floats
    standard_error: Floats
    value_empty: Floats
    value_full: Floats
    perturbation_values: Floats

    def __len__(self) -> int:
        return len(self.attributions)

    def take(self, index: NDArray[np.int64] | slice) -> AttributionLabels:
        return AttributionLabels(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[AttributionLabels]) -> AttributionLabels:
        return AttributionLabels(
            **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(AttributionLabels)}
        )


def perturbations(num_patches: int, num_perturbations: int) -> NDArray[np.bool_]:
    """The fixed perturbations infidelity is taken over, True where a patch is removed. [I, M]

    Each removes every patch independently, with a probability drawn for the perturbation uniformly from [0.1, 0.9].
    """
    generator = np.random.default_rng(num_patches)
    return generator.random((num_perturbations, num_patches)) < generator.uniform(0.1, 0.9, (num_perturbations, 1))


def fast_precision(device: str) -> Precision:
    """bfloat16 where the device has arithmetic for it, else float32. The error it adds is far below the labels' own (see the tests)."""
    if device == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"


class Labeller:
    """Labels pictures with one classifier. `role` names the coalition pool: train and test pictures take different ones."""

    def __init__(
        self, classifier: SelfExplainingClassifier, settings: LabelSettings, role: str, *, batch_size: int = 64
    ) -> None:
        self._num_patches = classifier.visual.grid_size[0] * classifier.visual.grid_size[1]
        self._pool = settings.pool(self._num_patches, role)
        self._removed = perturbations(self._num_patches, settings.num_perturbations)
        self._pool.matrix(0).solver  # noqa: B018  a budget that cannot be solved is an error before any evaluation
        self._evaluator = CoalitionEvaluator(
            classifier,
            value=settings.value,
            label_scale=settings.label_scale,
            dtype=getattr(torch, settings.precision),
            batch_size=batch_size,
        )

    @property
    def num_evaluations(self) -> int:
        """Coalitions evaluated so far."""
        return self._evaluator.num_evaluations

    def label(self, inputs: Tensor, class_ids: Tensor, picture_ids: Sequence[str]) -> AttributionLabels:
        """Labels of normalised inputs [N, 3, S, S] for their classes [N]; each picture's id picks its coalitions."""
        members = np.array([self._pool.member_of(picture_id) for picture_id in picture_ids])
        ends = np.stack([np.zeros(self._num_patches, dtype=bool), np.ones(self._num_patches, dtype=bool)])
        out: AttributionLabels | None = None
        for member in np.unique(members):
            matrix = self._pool.matrix(int(member))
            index = np.flatnonzero(members == member)
            games = np.concatenate([matrix.coalitions, ends, ~self._removed])
            values = self._evaluator.values(inputs[index], class_ids[index], torch.from_numpy(games)).cpu().numpy()
            sampled, rest = values[:, : matrix.budget], values[:, matrix.budget :]
            game = (sampled.astype(np.float64), rest[:, 0].astype(np.float64), rest[:, 1].astype(np.float64))
            part = AttributionLabels(
                matrix.solver.attributions(*game).astype(np.float32),
                matrix.solver.standard_error(*game).astype(np.float32),
                rest[:, 0],
                rest[:, 1],
                rest[:, 2:],
            )
            if out is None:
                out = AttributionLabels(
                    **{f.name: np.empty((len(members), *getattr(part, f.name).shape[1:]), np.float32) for f in fields(part)}
                )
            for f in fields(part):
                getattr(out, f.name)[index] = getattr(part, f.name)
        if out is None:
            raise ValueError("no pictures to label")
        return out
