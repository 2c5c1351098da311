"""Scores of predictions and of attributions. Attributions and labels are float [N, M], of each picture's true class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def accuracy(logits: Array, class_ids: NDArray[np.int64]) -> float:
    """Share of pictures whose largest logit is the true class's. logits [N, C]."""
    return float((logits.argmax(axis=1) == class_ids).mean())


def e_rmse(attributions: Array, labels: Array) -> float:
    """Explanation RMSE: root of the mean over pictures of the squared L2 distance, the root of eq. 5."""
    return float(np.sqrt(np.square(attributions.astype(np.float64) - labels).sum(axis=1).mean()))


def best_scale(attributions: Array, labels: Array) -> float:
    """The one factor c that minimises e_rmse(c attributions, labels); 0 for zero attributions."""
    a = attributions.astype(np.float64)
    power = np.square(a).sum()
    return float((a * labels).sum() / power) if power > 0 else 0.0


def correlation(attributions: Array, labels: Array) -> float:
    """Mean over pictures of Pearson's r between predicted and label attributions; a constant map counts as 0."""
    a = attributions - attributions.mean(axis=1, keepdims=True, dtype=np.float64)
    b = labels - labels.mean(axis=1, keepdims=True, dtype=np.float64)
    norms = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return float(np.where(norms > 1e-12, (a * b).sum(axis=1) / np.maximum(norms, 1e-12), 0.0).mean())


def top_patches(attributions: Array, k: int) -> NDArray[np.bool_]:
    """The k patches with the largest attributions, ties broken by index. [N, M] bool"""
    order = np.argsort(-attributions, axis=1, kind="stable")[:, :k]
    top = np.zeros(attributions.shape, dtype=bool)
    np.put_along_axis(top, order, True, axis=1)
    return top


def iou_at(k: int, attributions: Array, labels: Array) -> float:
    """IoU@K: overlap of the two sets of top-K patches divided by their union, mean over pictures."""
    a, b = top_patches(attributions, k), top_patches(labels, k)
    return float(((a & b).sum(axis=1) / (a | b).sum(axis=1)).mean())


def chance_iou_at(k: int, num_patches: int) -> float:
    """Expected IoU@K of a random map: E[h / (2 K - h)], h hypergeometric."""
    from scipy.stats import hypergeom

    overlaps = np.arange(0, k + 1)
    return float((hypergeom(num_patches, k, k).pmf(overlaps) * overlaps / (2 * k - overlaps)).sum())


def infidelity(
    attributions: Array, removed: NDArray[np.bool_], value_full: Array, perturbation_values: Array, *, at_best_scale: bool = False
) -> float:
    """Infidelity (Yeh et al. 2019) in patch space: E over perturbations I of (sum of phi over I - (v(all) - v(all without I)))^2.

    removed: [I, M], the perturbations; value_full: [N]; perturbation_values: [N, I], v(all without I). Exact Shapley values of an
    additive game score 0. at_best_scale: with the attributions times the best single factor. Lower is better.
    """
    predicted = attributions.astype(np.float64) @ removed.T.astype(np.float64)
    change = value_full.astype(np.float64)[:, None] - perturbation_values
    if at_best_scale:
        power = np.square(predicted).sum()
        predicted = predicted * ((predicted * change).sum() / power if power > 0 else 0.0)
    return float(np.square(predicted - change).mean())


@dataclass(frozen=True)
class Scores:
    """Every score of one model on one split. None: not defined for this row."""

    accuracy: float | None = None
    e_rmse: float | None = None
    e_rmse_at_best_scale: float | None = None
    correlation: float | None = None
    iou_at_1: float | None = None
    iou_at_10: float | None = None
    infidelity: float | None = None
    infidelity_at_best_scale: float | None = None


def attribution_scores(
    attributions: Array,
    labels: Array,
    removed: NDArray[np.bool_],
    value_full: Array,
    perturbation_values: Array,
    accuracy: float | None = None,
) -> Scores:
    """All scores of predicted attributions against labels."""
    return Scores(
        accuracy=accuracy,
        e_rmse=e_rmse(attributions, labels),
        e_rmse_at_best_scale=e_rmse(best_scale(attributions, labels) * attributions, labels),
        correlation=correlation(attributions, labels),
        iou_at_1=iou_at(1, attributions, labels),
        iou_at_10=iou_at(10, attributions, labels),
        infidelity=infidelity(attributions, removed, value_full, perturbation_values),
        infidelity_at_best_scale=infidelity(attributions, removed, value_full, perturbation_values, at_best_scale=True),
    )
