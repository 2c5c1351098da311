"""Scores of predictions and of attributions, and the one table of them all.

Attributions and labels are float [N, M], of each picture's true class. A score is added by adding a row to `_MEASURED`: the columns of
the results, the metrics of the record, the report and the terminal follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Scores = Mapping[str, float | None]
"""Score's name -> value. None: not defined for this model."""


def are_correct(logits: Array, class_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N]: whether a picture's largest logit is the true class's. logits [N, C]."""
    return logits.argmax(axis=1) == class_ids


def accuracy(logits: Array, class_ids: NDArray[np.int64]) -> float:
    """Share of pictures whose largest logit is the true class's. logits [N, C]."""
    return float(are_correct(logits, class_ids).mean())


def squared_distances(attributions: Array, labels: Array) -> Array:
    """[N]: squared L2 distance of a picture's attributions from its labels."""
    return np.square(attributions.astype(np.float64) - labels).sum(axis=1)


def e_rmse(attributions: Array, labels: Array) -> float:
    """Explanation RMSE: root of the mean over pictures of the squared L2 distance, the root of eq. 5."""
    return float(np.sqrt(squared_distances(attributions, labels).mean()))


def best_scale(attributions: Array, labels: Array) -> float:
    """The one factor c that minimises e_rmse(c attributions, labels); 0 for zero attributions."""
    a = attributions.astype(np.float64)
    power = np.square(a).sum()
    return float((a * labels).sum() / power) if power > 0 else 0.0


def correlations(attributions: Array, labels: Array) -> Array:
    """[N]: Pearson's r between a picture's predicted and label attributions; 0 for a constant map."""
    a = attributions - attributions.mean(axis=1, keepdims=True, dtype=np.float64)
    b = labels - labels.mean(axis=1, keepdims=True, dtype=np.float64)
    norms = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.where(norms > 1e-12, (a * b).sum(axis=1) / np.maximum(norms, 1e-12), 0.0)


def correlation(attributions: Array, labels: Array) -> float:
    """Mean over pictures of Pearson's r between predicted and label attributions; a constant map counts as 0."""
    return float(correlations(attributions, labels).mean())


def top_patches(attributions: Array, k: int) -> NDArray[np.bool_]:
    """The k patches with the largest attributions, ties broken by index. [N, M] bool"""
    order = np.argsort(-attributions, axis=1, kind="stable")[:, :k]
    top = np.zeros(attributions.shape, dtype=bool)
    np.put_along_axis(top, order, True, axis=1)
    return top


def ious_at(k: int, attributions: Array, labels: Array) -> Array:
    """[N]: overlap of a picture's two sets of top-K patches divided by their union."""
    a, b = top_patches(attributions, k), top_patches(labels, k)
    return (a & b).sum(axis=1) / (a | b).sum(axis=1)


def iou_at(k: int, attributions: Array, labels: Array) -> float:
    """IoU@K: overlap of the two sets of top-K patches divided by their union, mean over pictures."""
    return float(ious_at(k, attributions, labels).mean())


def chance_iou_at(k: int, num_patches: int) -> float:
    """Expected IoU@K of a random map: E[h / (2 K - h)], h hypergeometric."""
    from scipy.stats import hypergeom

    overlaps = np.arange(0, k + 1)
    return float((hypergeom(num_patches, k, k).pmf(overlaps) * overlaps / (2 * k - overlaps)).sum())


def infidelities(
    attributions: Array, removed: NDArray[np.bool_], value_full: Array, perturbation_values: Array, *, at_best_scale: bool = False
) -> Array:
    """[N]: infidelity (Yeh et al. 2019) in patch space: E over perturbations I of (sum of phi over I - (v(all) - v(all without I)))^2.

    removed: [I, M], the perturbations; value_full: [N]; perturbation_values: [N, I], v(all without I). Exact Shapley values of an
    additive game score 0. at_best_scale: with the attributions times the factor that is best for all pictures together. Lower is better.
    """
    predicted = attributions.astype(np.float64) @ removed.T.astype(np.float64)
    change = value_full.astype(np.float64)[:, None] - perturbation_values
    if at_best_scale:
        power = np.square(predicted).sum()
        predicted = predicted * ((predicted * change).sum() / power if power > 0 else 0.0)
    return np.square(predicted - change).mean(axis=1)


def infidelity(
    attributions: Array, removed: NDArray[np.bool_], value_full: Array, perturbation_values: Array, *, at_best_scale: bool = False
) -> float:
    """Mean over pictures of `infidelities`."""
    return float(infidelities(attributions, removed, value_full, perturbation_values, at_best_scale=at_best_scale).mean())


@dataclass(frozen=True, eq=False)
class Scored:
    """What the scores of a model on a split are computed from.

    attributions, labels: [N, M]; removed: [I, M], value_full: [N], perturbation_values: [N, I], as for `infidelities`. is_correct: of all
    pictures of the split, the N labelled ones first; None for what does not classify.
    """

    attributions: Array
    labels: Array
    removed: NDArray[np.bool_]
    value_full: Array
    perturbation_values: Array
    is_correct: NDArray[np.bool_] | None = None

    @property
    def at_best_scale(self) -> Array:
        """The attributions times the factor that is best for all pictures together."""
        return best_scale(self.attributions, self.labels) * self.attributions


def _itself(mean: Array) -> Array:
    return mean


@dataclass(frozen=True)
class PictureMean:
    """A score that is a function of a mean over pictures, so that it has an error bar: a bootstrap draws pictures.

    per_picture: the pictures' values, None where the score is not defined. of_mean: their mean -> the score, elementwise.
    """

    per_picture: Callable[[Scored], Array | None]
    of_mean: Callable[[Array], Array] = _itself

    def __call__(self, scored: Scored) -> float | None:
        values = self.per_picture(scored)
        return None if values is None else float(self.of_pictures(values))

    def of_pictures(self, values: Array) -> Array:
        """The score of the pictures along the last axis: [..., N] -> [...]."""
        return self.of_mean(values.mean(axis=-1))


@dataclass(frozen=True)
class Score:
    """One score: how it is computed, and all that is said of it anywhere.

    name: its column and its metric in the record. title, meaning: for people; a meaning begins in lower case and ends in a full stop.
    function: a `PictureMean` wherever it is one; None for a normalised score, which is `numerator` divided by the prediction-only target
    model's. bounds: of its values.
    is_also_normalized: its normalised form is a score too. is_defined_for_zero_map: a zero map orders no patches and correlates with
    nothing. chance: (number of patches, number of classes) -> the score of a random answer, where there is one. terminal_title: heads its
    column on the terminal; None: not shown there. reading: how to read its matrix of pairs, that of the normalised form where there is
    one; None: no matrix.
    """

    name: str
    title: str
    meaning: str
    function: Callable[[Scored], float | None] | None
    bounds: tuple[float, float] = (0.0, math.inf)
    lower_is_better: bool = False
    is_also_normalized: bool = False
    is_defined_for_zero_map: bool = False
    chance: Callable[[int, int], float] | None = None
    terminal_title: str | None = None
    reading: str | None = None
    numerator: str | None = None

    def forms(self) -> tuple[Score, ...]:
        """The score, and after it its normalised form if it has one."""
        if not self.is_also_normalized:
            return (self,)
        normalized = replace(
            self,
            name=f"normalized_{self.name}",
            title=f"normalised {self.title}",
            meaning=f"{self.title} divided by the prediction-only target model's.",
            function=None,
            bounds=(0.0, math.inf),
            chance=None,
            terminal_title=self.terminal_title and "(norm.)",
            numerator=self.name,
        )
        return (replace(self, reading=None), normalized)


_MEASURED = (
    Score(
        "accuracy",
        "accuracy",
        "share of test pictures classified rightly.",
        PictureMean(lambda scored: None if scored.is_correct is None else scored.is_correct.astype(np.float64)),
        bounds=(0.0, 1.0),
        is_also_normalized=True,
        is_defined_for_zero_map=True,
        chance=lambda num_patches, num_classes: 1.0 / num_classes,
        terminal_title="accuracy",
        reading="1 keeps the accuracy of the prediction-only target; red lost some.",
    ),
    Score(
        "e_rmse",
        "E-RMSE",
        "root of the mean over pictures of the squared L2 distance between predicted and label attributions of the true class (smaller is "
        "better). Shrinking every attribution towards 0 lowers it.",
        PictureMean(lambda scored: squared_distances(scored.attributions, scored.labels), np.sqrt),
        lower_is_better=True,
        is_also_normalized=True,
        is_defined_for_zero_map=True,
        terminal_title="E-RMSE",
        reading="Below 1 (blue) is better than the prediction-only target; shrinkage alone can do that.",
    ),
    Score(
        "e_rmse_at_best_scale",
        "E-RMSE at best scale",
        "E-RMSE after all predictions are multiplied by the one number that suits them best: what is left when scale is no merit. Never "
        "above the zero predictor's.",
        # To first order the factor's own error does not count: it is where the score has its minimum.
        PictureMean(lambda scored: squared_distances(scored.at_best_scale, scored.labels), np.sqrt),
        lower_is_better=True,
        is_defined_for_zero_map=True,
    ),
    Score(
        "correlation",
        "correlation",
        "Pearson correlation of predicted and label attributions in a picture, mean over pictures.",
        PictureMean(lambda scored: correlations(scored.attributions, scored.labels)),
        bounds=(-1.0, 1.0),
        chance=lambda num_patches, num_classes: 0.0,
        terminal_title="corr.",
        reading="Correlation of predicted and label attributions, mean over pictures; no scale can flatter it.",
    ),
    Score(
        "iou_at_1",
        "IoU@1",
        "share of pictures whose strongest patch is the label's strongest patch.",
        PictureMean(lambda scored: ious_at(1, scored.attributions, scored.labels)),
        bounds=(0.0, 1.0),
        chance=lambda num_patches, num_classes: chance_iou_at(1, num_patches),
    ),
    Score(
        "iou_at_10",
        "IoU@10",
        "overlap of the ten strongest patches with the label's ten, divided by their union. Chance is not 0.",
        PictureMean(lambda scored: ious_at(10, scored.attributions, scored.labels)),
        bounds=(0.0, 1.0),
        chance=lambda num_patches, num_classes: chance_iou_at(10, num_patches),
        terminal_title="IoU@10",
        reading="Overlap of the ten strongest patches with the label's. White is chance or below.",
    ),
    Score(
        "infidelity",
        "infidelity",
        "mean squared gap between the attributions of a set of patches and the change of the logit when the set is hidden (smaller is "
        "better). Needs no labels.",
        PictureMean(lambda scored: infidelities(scored.attributions, scored.removed, scored.value_full, scored.perturbation_values)),
        lower_is_better=True,
        is_defined_for_zero_map=True,
    ),
    Score(
        "infidelity_at_best_scale",
        "infidelity at best scale",
        "infidelity after the attributions are multiplied by the best single number.",
        PictureMean(
            lambda scored: infidelities(
                scored.attributions, scored.removed, scored.value_full, scored.perturbation_values, at_best_scale=True
            )
        ),
        lower_is_better=True,
    ),
)

SCORES: tuple[Score, ...] = tuple(form for score in _MEASURED for form in score.forms())
"""Every score in the order of the results' columns, a normalised one after its own."""
SCORE_NAMED: Mapping[str, Score] = {score.name: score for score in SCORES}


def attribution_scores(scored: Scored) -> Scores:
    """Every measured score of a model; `with_normalized` adds the others. Scores that need an order of patches are None for zero maps."""
    is_zero_map = not scored.attributions.any()
    return {
        score.name: None if is_zero_map and not score.is_defined_for_zero_map else score.function(scored)
        for score in SCORES
        if score.function is not None
    }


def per_picture_scores(scored: Scored) -> Mapping[str, Array]:
    """Name of a score -> its value for each picture; `of_pictures` of the score's function makes the split's score of them.

    Only scores that are a `PictureMean` and are defined for these attributions. Values of accuracy are of all pictures of the split, the
    others of the labelled ones; those of the scores at the best scale are at the whole split's.
    """
    is_zero_map = not scored.attributions.any()
    found: dict[str, Array] = {}
    for score in SCORES:
        if isinstance(score.function, PictureMean) and (score.is_defined_for_zero_map or not is_zero_map):
            values = score.function.per_picture(scored)
            if values is not None:
                found[score.name] = values
    return found


def chance_scores(num_patches: int, num_classes: int) -> Scores:
    """The measured scores of random answers; None where there is no such thing."""
    return {s.name: s.chance(num_patches, num_classes) if s.chance else None for s in SCORES if s.function is not None}


def mean_scores(all_scores: Sequence[Scores]) -> Scores:
    """The mean of each score over the models for which it is defined. all_scores: one or more, of the same names."""
    known = {name: [v for scores in all_scores if (v := scores[name]) is not None] for name in all_scores[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def with_normalized(scores: Scores, prediction_only: Scores) -> Scores:
    """All of SCORES: measured ones, and after each its quotient by the prediction-only model's. None where that is None or 0."""
    row: dict[str, float | None] = {}
    for score in SCORES:
        value = scores[score.numerator or score.name]
        if score.numerator is not None:
            divisor = prediction_only[score.numerator]
            value = None if value is None or not divisor else value / divisor
        row[score.name] = value
    return row
