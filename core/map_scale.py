"""Calibration of a transferred model's maps without explanation labels: one factor, fitted on a few pictures' own game values.

A vector from a source whose attributions are of another size gives maps of the right shape and the wrong size. The game on a picture says
what is right without any Shapley value: hiding a set of patches changes v by about the sum of their attributions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.attribution_head import AttributionHead

Floats = NDArray[np.floating]

SMALLEST_SCALE = 1e-3
"""A factor of 0 or below would lose or turn round the order of the patches, which a calibration of size must not."""


def fit_scale(
    head: AttributionHead, attributions: Floats, removed: NDArray[np.bool_], value_full: Floats, perturbation_values: Floats
) -> float:
    """The factor of the cosines, relative to the head's, that minimises infidelity.

    attributions: the head's, [N, M]; removed: [I, M], the perturbations; value_full: [N]; perturbation_values: [N, I], v(all without I).
    Least squares over all pictures and perturbations; at least SMALLEST_SCALE, and 1 for maps that are constant.
    """
    shape, fixed = _parts(head, attributions.astype(np.float64))
    sets = removed.T.astype(np.float64)
    predicted = shape @ sets
    wanted = value_full.astype(np.float64)[:, None] - perturbation_values - fixed @ sets
    power = np.square(predicted).sum()
    has_shape = power > 1e-12 * predicted.size
    return max(SMALLEST_SCALE, float((predicted * wanted).sum() / power)) if has_shape else 1.0


def rescaled(head: AttributionHead, attributions: Floats, factor: float) -> Floats:
    """The attributions [N, M] of the same head whose cosines are multiplied by `factor`."""
    shape, fixed = _parts(head, attributions)
    return (factor * shape + fixed).astype(attributions.dtype)


def _parts(head: AttributionHead, attributions: Floats) -> tuple[Floats, Floats]:
    """What the factor multiplies, and what it does not: with the efficiency head the mean of a map is that of v(all) - v(empty)."""
    if head.kind == "cosine":
        return attributions, np.zeros_like(attributions)
    mean = attributions.mean(axis=1, keepdims=True)
    return attributions - mean, np.broadcast_to(mean, attributions.shape)
