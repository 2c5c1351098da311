"""Attribution labels: Shapley value estimates of a prediction-only classifier, for batches of pictures, each with its error bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.games.coalition_values import CoalitionEvaluator, Fill, Value
from core.games.patch_features import patch_features
from core.model import SelfExplainingClassifier
from core.shapley.coalition_pool import CoalitionPool
from core.shapley.estimator import Coalitions, Design, Learned, Values
from core.shapley.estimators import find_estimator
from core.shapley.kernel_shap import KERNEL_SHAP
from core.shapley.learning import Learning, PictureGames

Precision = Literal["float32", "bfloat16"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LabelSettings:
    """What a label set depends on besides the classifier and the pictures.

    budget: evaluations a picture, besides those of the empty and the grand coalition. pool_size: coalition designs in the pool.
    estimator: a name in `core.shapley.estimators`. fill, value, label_scale: see `CoalitionEvaluator`. l1_reg: see
    `core.shapley.feature_selection`. precision: arithmetic of the image tower. seed: of the pool. num_perturbations: additional
    evaluations a picture that infidelity is measured on (0 where no model is scored on the pictures). target_error: a picture gets no
    further evaluations once its estimated relative error (root mean square standard error over root mean square attribution) is at most
    this; None: all get the budget. Raises ValueError, with the fix, for what does not go together.
    """

    budget: int = 512
    pool_size: int = 16
    value: Value = "logit"
    label_scale: float = 3.5
    precision: Precision = "float32"
    seed: int = 0
    num_perturbations: int = 0
    estimator: str = "kernel_shap"
    fill: Fill = "mean"
    l1_reg: str = "none"
    target_error: float | None = None

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise ValueError(f"a pool holds at least one coalition matrix, not {self.pool_size}")
        if not self.label_scale > 0:
            raise ValueError(f"label_scale must be positive, not {self.label_scale}")
        if self.target_error is not None and not 0.0 < self.target_error < float("inf"):
            raise ValueError(f"the relative error to stop at must be positive, not {self.target_error}")
        estimator = find_estimator(self.estimator)
        estimator.check_l1_reg(self.l1_reg)
        if self.target_error is not None and not estimator.has_error_bars(self.l1_reg):
            what = "labels with l1_reg" if estimator.has_error_bars() else f"{self.estimator} labels"
            raise ValueError(f"stopping early needs error bars, and {what} have none: leave one of them out")
        if self.target_error is not None and not estimator.can_stop_early:
            raise ValueError(f"{self.estimator} error bars are the same for all pictures of a design: stop early with another estimator")

    def pool(self, num_patches: int, role: str) -> CoalitionPool:
        """Of the pictures in a role: those of "train" and "test" are labelled on independent coalitions."""
        estimator = find_estimator(self.estimator)
        return CoalitionPool(estimator, num_patches, self.budget, self.pool_size, role, self.seed, self.l1_reg)

    def learning(self, num_patches: int, role: str, reference_budget: int) -> Learning | None:
        """How the estimator learns before it labels the pictures in a role; None where it learns nothing."""
        learning = find_estimator(self.estimator).learning
        return None if learning is None else learning(self.pool(num_patches, role), reference_budget)

    def check(self, num_patches: int) -> None:
        """Raises ValueError, with the fix, where pictures of so many patches cannot be labelled; before anything is learned."""
        find_estimator(self.estimator).check(num_patches, self.budget, self.l1_reg)

    def rounds(self, num_patches: int) -> list[int]:
        """Evaluations after which a picture may stop: doubled up to the budget."""
        rounds = [self.budget]
        if self.target_error is None:
            return rounds
        smallest = find_estimator(self.estimator).first_round(num_patches, self.budget)
        while rounds[0] // 4 * 2 >= smallest:
            rounds.insert(0, rounds[0] // 4 * 2)
        return rounds


@dataclass(frozen=True)
class AttributionLabels:
    """Labels of N pictures with M patches.

    attributions, standard_error: [N, M]; value_empty, value_full: [N]; perturbation_values: [N, I], v(all without I) of the fixed
    perturbations that infidelity is measured on (`perturbations`); budget: [N] int32, evaluations each picture got.
    """

    attributions: Floats
    standard_error: Floats
    value_empty: Floats
    value_full: Floats
    perturbation_values: Floats
    budget: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.attributions)

    def take(self, index: NDArray[np.int64] | slice) -> AttributionLabels:
        return AttributionLabels(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def none(num_patches: int) -> AttributionLabels:
        """Labels of no picture."""
        maps, numbers = np.empty((0, num_patches), np.float32), np.empty(0, np.float32)
        return AttributionLabels(maps, maps, numbers, numbers, np.empty((0, 0), np.float32), np.empty(0, np.int32))

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


def precision_shift(
    classifier: SelfExplainingClassifier, settings: LabelSettings, inputs: Tensor, class_ids: Tensor
) -> float:
    """How far `settings.precision` moves labels against float32: root mean square shift over root mean square standard error.

    Measured with Kernel SHAP at a small budget; shift and standard error fall alike with the budget.
    inputs: normalised [N, 3, S, S], class_ids [N].
    """
    num_patches = classifier.visual.grid_size[0] * classifier.visual.grid_size[1]
    plain = replace(
        settings, budget=max(128, 6 * (num_patches // 2)), estimator=KERNEL_SHAP.name, l1_reg="none", target_error=None, num_perturbations=0
    )
    ids = [str(n) for n in range(len(inputs))]
    exact, low = (
        Labeller(classifier, replace(plain, precision=precision), "precision").label(inputs, class_ids, ids)
        for precision in ("float32", settings.precision)
    )
    shift, error = np.square(exact.attributions - low.attributions).mean(), np.square(exact.standard_error).mean()
    return float(np.sqrt(shift / max(error, 1e-20)))


class Labeller:
    """Labels pictures with one classifier. `role` names the coalition pool: train and test pictures take different ones.

    learned: what the estimator has learned from the data set (`core.shapley.learning`), if it learns; without, pictures can be evaluated
    but not labelled. known: by picture id, values that need no evaluation (`values`).
    Raises ValueError for a budget that cannot be solved, before any evaluation.
    """

    def __init__(
        self,
        classifier: SelfExplainingClassifier,
        settings: LabelSettings,
        role: str,
        *,
        batch_size: int = 64,
        learned: Learned | None = None,
        known: Mapping[str, Floats] | None = None,
    ) -> None:
        self.num_patches = classifier.visual.grid_size[0] * classifier.visual.grid_size[1]
        settings.check(self.num_patches)
        self._settings, self._known = settings, known or {}
        self._learned = learned
        self.pool = settings.pool(self.num_patches, role)
        self._rounds = settings.rounds(self.num_patches)
        self._removed = perturbations(self.num_patches, settings.num_perturbations)
        self.evaluator = CoalitionEvaluator(
            classifier,
            value=settings.value,
            label_scale=settings.label_scale,
            fill=settings.fill,
            dtype=getattr(torch, settings.precision),
            batch_size=batch_size,
        )

    def find_batch_size(self, inputs: Tensor, class_ids: Tensor) -> int:
        """Set the batch size by trial on a few pictures (`CoalitionEvaluator.find_batch_size`); returns it."""
        return self.evaluator.find_batch_size(inputs, class_ids, torch.from_numpy(self.pool.coalitions(0)))

    def games(self, inputs: Tensor, class_ids: Tensor, picture_ids: Sequence[str]) -> PictureGames:
        """The games of normalised inputs [N, 3, S, S] for their classes [N], as what an estimator learns from is evaluated."""
        return _Games(self, inputs, class_ids, picture_ids)

    def features(self, inputs: Tensor, class_ids: Tensor) -> Tensor:
        """What an estimator that learns may know of each patch: `patch_features`. [N, M, D]"""
        return patch_features(self.evaluator, inputs, class_ids)

    def label(self, inputs: Tensor, class_ids: Tensor, picture_ids: Sequence[str]) -> AttributionLabels:
        """Labels of normalised inputs [N, 3, S, S] for their classes [N]; each picture's id picks its coalitions.

        Raises ValueError without pictures, or before the estimator has learned what it must.
        """
        parts, order = [], []
        for member, index in self.by_member(picture_ids):
            order.append(index)
            parts.append(self._label_with(member, inputs[index], class_ids[index], [picture_ids[i] for i in index.tolist()]))
        if not parts:
            raise ValueError("no pictures to label")
        return AttributionLabels.concatenate(parts).take(np.argsort(np.concatenate(order)))

    def by_member(self, picture_ids: Sequence[str]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Members of the pool and the positions of the pictures that take them."""
        members = np.array([self.pool.member_of(picture_id) for picture_id in picture_ids])
        for member in np.unique(members).tolist():
            yield member, np.flatnonzero(members == member)

    def values(self, member: int, inputs: Tensor, class_ids: Tensor) -> Floats:
        """What is evaluated first of pictures that take this member of the pool. [N, P + 2 + I]

        The values of its coalitions, of the empty and the grand one, and of the perturbations.
        """
        ends = np.stack([np.zeros(self.num_patches, dtype=bool), np.ones(self.num_patches, dtype=bool)])
        coalitions = self.pool.sample(member, self._rounds[0]).coalitions
        return self._values(inputs, class_ids, np.concatenate([coalitions, ends, ~self._removed])).astype(np.float32)

    def _design(self, member: int, number: int) -> Design:
        """Of the number-th round."""
        return self.pool.design(member, self._rounds[number], self._learned)

    def _label_with(self, member: int, inputs: Tensor, class_ids: Tensor, picture_ids: Sequence[str]) -> AttributionLabels:
        """Labels of pictures that take the same member of the pool."""
        first = self._design(member, 0)
        is_known = np.array([picture_id in self._known for picture_id in picture_ids])
        values = np.empty((len(inputs), first.budget + 2 + len(self._removed)))
        if not is_known.all():
            values[~is_known] = self.values(member, inputs[~is_known], class_ids[~is_known])
        for n in np.flatnonzero(is_known).tolist():
            values[n] = self._known[picture_ids[n]]
        game, (empty, full), perturbed = values[:, : first.budget], values[:, first.budget :][:, :2].T, values[:, first.budget + 2 :]
        labels = _solved(first, game, empty, full, perturbed, lambda: self.features(inputs, class_ids))
        unfinished = np.arange(len(inputs))
        for number in range(1, len(self._rounds)):
            precise = _relative_error(labels.take(unfinished)) <= (self._settings.target_error or 0.0)
            game, unfinished = game[~precise], unfinished[~precise]
            if not len(unfinished):
                break
            design = self._design(member, number)
            some, own = inputs[unfinished], class_ids[unfinished]
            game = np.concatenate([game, self._values(some, own, design.coalitions[game.shape[1] :])], axis=1)
            ends = empty[unfinished], full[unfinished]
            solved = _solved(design, game, *ends, perturbed[unfinished], partial(self.features, some, own))
            for f in fields(labels):
                getattr(labels, f.name)[unfinished] = getattr(solved, f.name)
        return labels

    def _values(self, inputs: Tensor, class_ids: Tensor, coalitions: Coalitions) -> Values:
        return self.evaluator.values(inputs, class_ids, torch.from_numpy(coalitions)).cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class _Games:
    """`PictureGames` of a labeller's pictures."""

    labeller: Labeller
    inputs: Tensor
    class_ids: Tensor
    ids: Sequence[str]

    def values(self, coalitions: Coalitions) -> Floats:
        return self.labeller.evaluator.values(self.inputs, self.class_ids, torch.from_numpy(coalitions)).cpu().numpy()

    def label_values(self) -> Floats:
        parts, order = [], []
        for member, index in self.labeller.by_member(self.ids):
            order.append(index)
            parts.append(self.labeller.values(member, self.inputs[index], self.class_ids[index]))
        return np.concatenate(parts)[np.argsort(np.concatenate(order))]


def _solved(
    design: Design, values: Values, empty: Values, full: Values, perturbed: Values, features: Callable[[], Tensor]
) -> AttributionLabels:
    attributions, standard_error = design.solver.solve(values, empty, full, features)
    return AttributionLabels(
        attributions.astype(np.float32),
        standard_error.astype(np.float32),
        empty.astype(np.float32),
        full.astype(np.float32),
        perturbed.astype(np.float32),
        np.full(len(attributions), design.budget, dtype=np.int32),
    )


def _relative_error(labels: AttributionLabels) -> Floats:
    """Root mean square standard error over root mean square attribution, a picture. [N]"""
    return np.sqrt(np.square(labels.standard_error).mean(1) / np.maximum(np.square(labels.attributions).mean(1), 1e-12))
