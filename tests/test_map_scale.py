"""The label-free factor of a transferred model's maps."""

import numpy as np
import pytest

from core.attribution_head import AttributionHead
from core.map_scale import SMALLEST_SCALE, fit_scale, rescaled
from core.metrics import infidelity

HEADS = [AttributionHead("cosine"), AttributionHead("efficiency")]


@pytest.fixture
def additive_game():
    """An additive game: its Shapley values are its weights, and every change of v is the sum of what was removed."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.2, (6, 49))
    removed = rng.random((64, 49)) < 0.4
    value_full = weights.sum(1)
    return weights, removed, value_full, value_full[:, None] - weights @ removed.T


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_maps_of_the_wrong_size_get_their_size_back(head, additive_game):
    weights, removed, value_full, values = additive_game
    wrong = rescaled(head, weights, 4.0)
    factor = fit_scale(head, wrong, removed, value_full, values)
    assert factor == pytest.approx(0.25, rel=1e-9)
    assert np.allclose(rescaled(head, wrong, factor), weights)


def test_fitted_factor_minimises_infidelity(additive_game):
    """Against a search by hand."""
    weights, removed, value_full, values = additive_game
    noisy = weights + np.random.default_rng(1).normal(0, 0.1, weights.shape)
    factor = fit_scale(HEADS[0], noisy, removed, value_full, values)
    found = [infidelity(f * noisy, removed, value_full, values) for f in np.linspace(0, 2, 401)]
    assert np.linspace(0, 2, 401)[int(np.argmin(found))] == pytest.approx(factor, abs=0.006)


def test_efficiency_is_kept(additive_game):
    weights, *_ = additive_game
    assert np.allclose(rescaled(HEADS[1], weights, 0.3).sum(1), weights.sum(1))


def test_factor_never_turns_the_order_round(additive_game):
    weights, removed, value_full, values = additive_game
    assert fit_scale(HEADS[0], -weights, removed, value_full, values) == SMALLEST_SCALE


def test_constant_maps_are_left_as_they_are(additive_game):
    weights, removed, value_full, values = additive_game
    constant = np.broadcast_to(weights.mean(1, keepdims=True), weights.shape)
    assert fit_scale(HEADS[1], constant, removed, value_full, values) == 1.0
