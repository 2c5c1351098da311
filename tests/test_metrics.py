"""Scores against hand-made cases, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from core.games.attribution_labels import perturbations
from core.metrics import accuracy, attribution_scores, best_scale, chance_iou_at, correlation, e_rmse, infidelity, iou_at, top_patches

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.normal(size=(30, 49)), GENERATOR.normal(size=(30, 49))


def test_e_rmse_is_the_root_of_the_mean_squared_l2_distance():
    labels = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert e_rmse(np.zeros((2, 2)), labels) == pytest.approx(np.sqrt(12.5))
    assert e_rmse(labels, labels) == 0


def test_best_scale_minimises_e_rmse():
    scales = np.linspace(-2, 2, 4001)
    brute = scales[np.argmin([e_rmse(s * A, B) for s in scales])]
    assert best_scale(A, B) == pytest.approx(brute, abs=1e-3)
    assert best_scale(np.zeros_like(A), B) == 0
    assert e_rmse(best_scale(A, 3 * A) * A, 3 * A) == pytest.approx(0, abs=1e-9)


def test_correlation_is_pearsons_r_a_picture_and_blind_to_scale_and_shift():
    assert correlation(A, B) == pytest.approx(np.mean([pearsonr(a, b).statistic for a, b in zip(A, B, strict=True)]))
    assert correlation(5 * A - 2, A) == pytest.approx(1)
    assert correlation(np.ones_like(A), A) == 0


def test_iou_on_small_sets_and_ties_broken_by_index():
    first = np.array([[0.9, 0.8, 0.1, 0.0]])
    second = np.array([[0.9, 0.1, 0.8, 0.0]])
    assert iou_at(2, first, second) == pytest.approx(1 / 3)
    assert iou_at(1, first, second) == 1
    assert top_patches(np.zeros((1, 4)), 2).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("k", "known"), [(1, 0.020), (10, 0.118)])
def test_chance_iou_is_the_known_value_and_that_of_random_maps(k, known):
    assert chance_iou_at(k, 49) == pytest.approx(known, abs=5e-4)
    simulated = iou_at(k, GENERATOR.normal(size=(20000, 49)), GENERATOR.normal(size=(20000, 49)))
    assert chance_iou_at(k, 49) == pytest.approx(simulated, abs=0.005)


def test_exact_shapley_values_of_an_additive_game_have_infidelity_0():
    removed = perturbations(49, 64)
    phi = A[:5]
    value_full = phi.sum(1) + 0.3
    without = value_full[:, None] - phi @ removed.T
    assert infidelity(phi, removed, value_full, without) == pytest.approx(0, abs=1e-12)
    assert infidelity(B[:5], removed, value_full, without) > 1
    assert infidelity(7 * phi, removed, value_full, without) > 1
    assert infidelity(7 * phi, removed, value_full, without, at_best_scale=True) == pytest.approx(0, abs=1e-12)


def test_perturbations_are_fixed_and_cover_small_and_large_ones():
    removed = perturbations(49, 64)
    assert (removed == perturbations(49, 64)).all()
    share = removed.mean(1)
    assert share.min() < 0.25 and share.max() > 0.75
    assert perturbations(49, 0).shape == (0, 49)


def test_accuracy_and_all_scores_together():
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, np.array([1, 0, 0])) == pytest.approx(2 / 3)
    removed = perturbations(49, 16)
    scores = attribution_scores(B, B, removed, B.sum(1), B.sum(1)[:, None] - B @ removed.T, accuracy=0.5)
    assert (scores.e_rmse, scores.iou_at_1, scores.iou_at_10, scores.accuracy) == (0, 1, 1, 0.5)
    assert scores.correlation == pytest.approx(1)
