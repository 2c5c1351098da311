"""Scores against hand-made cases, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from core.games.attribution_labels import perturbations
from core.metrics import (
    SCORE_NAMED,
    SCORES,
    PictureMean,
    Scored,
    accuracy,
    are_correct,
    attribution_scores,
    best_scale,
    chance_iou_at,
    chance_scores,
    correlation,
    e_rmse,
    infidelity,
    iou_at,
    mean_scores,
    per_picture_scores,
    top_patches,
    with_normalized,
)

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


def test_accuracy_is_the_share_of_largest_logits_at_the_true_class():
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, np.array([1, 0, 0])) == pytest.approx(2 / 3)
    assert are_correct(logits, np.array([1, 0, 0])).tolist() == [True, True, False]


def _scored(attributions: np.ndarray, labels: np.ndarray, accuracy: float | None = None) -> Scored:
    """Attributions beside labels that are the exact values of an additive game; of ten pictures a share is correct."""
    removed = perturbations(49, 16)
    is_correct = None if accuracy is None else np.arange(10) < round(10 * accuracy)
    return Scored(attributions, labels, removed, labels.sum(1), labels.sum(1)[:, None] - labels @ removed.T, is_correct)


def test_the_table_computes_each_score_by_its_name():
    scores = attribution_scores(_scored(3 * B, B, accuracy=0.5))
    known = {"accuracy": 0.5, "e_rmse": e_rmse(3 * B, B), "e_rmse_at_best_scale": 0, "correlation": 1, "iou_at_1": 1, "iou_at_10": 1}
    known["infidelity"] = 4 * infidelity(0 * B, _scored(B, B).removed, B.sum(1), _scored(B, B).perturbation_values)
    # Rounding of a few thousand float64 products, the last score being a sum of squares that cancel.
    assert scores == pytest.approx(known | {"infidelity_at_best_scale": 0}, abs=1e-9)
    assert list(scores) == [score.name for score in SCORES if score.function]


def test_a_zero_map_has_no_score_that_needs_an_order_of_patches():
    scores = attribution_scores(_scored(0 * B, B))
    assert {name for name, value in scores.items() if value is not None} == {"e_rmse", "e_rmse_at_best_scale", "infidelity"}
    assert scores["e_rmse"] == scores["e_rmse_at_best_scale"] == pytest.approx(np.sqrt((B**2).sum(1).mean()))


def test_the_score_of_a_split_is_that_of_its_pictures():
    scored = _scored(A + B, B, accuracy=0.7)
    values, scores = per_picture_scores(scored), attribution_scores(scored)
    assert list(values) == list(scores)
    for name, of_pictures in values.items():
        function = SCORE_NAMED[name].function
        assert isinstance(function, PictureMean)
        # A mean of means of equally many is the mean: rounding only.
        assert function.of_pictures(of_pictures) == pytest.approx(scores[name], rel=1e-12)
        assert function.of_pictures(np.stack([of_pictures, 0 * of_pictures])) == pytest.approx([scores[name], 0])


def test_the_value_of_a_picture_is_the_score_of_a_split_of_it_alone():
    scored = _scored(A + B, B)
    values = per_picture_scores(scored)
    known = {
        "e_rmse": lambda i: e_rmse(scored.attributions[i], B[i]) ** 2,
        "e_rmse_at_best_scale": lambda i: e_rmse(best_scale(scored.attributions, B) * scored.attributions[i], B[i]) ** 2,
        "correlation": lambda i: correlation(scored.attributions[i], B[i]),
        "iou_at_1": lambda i: iou_at(1, scored.attributions[i], B[i]),
        "iou_at_10": lambda i: iou_at(10, scored.attributions[i], B[i]),
        "infidelity": lambda i: infidelity(scored.attributions[i], scored.removed, B[i].sum(1), scored.perturbation_values[i]),
    }
    for name, score in known.items():
        assert values[name] == pytest.approx([score([picture]) for picture in range(len(B))], rel=1e-12), name


def test_pictures_have_no_values_of_scores_that_are_not_defined():
    assert set(per_picture_scores(_scored(0 * B, B))) == {"e_rmse", "e_rmse_at_best_scale", "infidelity"}
    assert len(per_picture_scores(_scored(B, B, accuracy=0.5))["accuracy"]) == 10


def test_chance_scores_are_those_of_random_maps_and_random_classes():
    scores = chance_scores(49, 8)
    assert {name for name, value in scores.items() if value is not None} == {"accuracy", "correlation", "iou_at_1", "iou_at_10"}
    random = [GENERATOR.normal(size=(20000, 49)) for _ in range(2)]
    # Standard errors: 1 / sqrt(20000 * 48) = 0.001 of r, 0.14 / sqrt(20000) = 0.001 of an IoU; five of them.
    assert scores["correlation"] == pytest.approx(correlation(*random), abs=0.005)
    assert scores["iou_at_10"] == pytest.approx(iou_at(10, *random), abs=0.005)
    assert scores["accuracy"] == 1 / 8


def test_normalised_scores_are_quotients_and_stand_behind_their_own():
    own = attribution_scores(_scored(B, A, accuracy=0.8))
    row = with_normalized(attribution_scores(_scored(A, B, accuracy=0.6)), own)
    assert list(row) == [score.name for score in SCORES]
    assert row["normalized_accuracy"] == pytest.approx(0.75)
    assert row["normalized_e_rmse"] == row["e_rmse"] / own["e_rmse"]
    assert list(row)[:4] == ["accuracy", "normalized_accuracy", "e_rmse", "normalized_e_rmse"]
    undefined = with_normalized(own | {"e_rmse": None}, own | {"accuracy": 0.0})
    assert undefined["normalized_accuracy"] is None and undefined["normalized_e_rmse"] is None


def test_means_leave_out_models_for_which_a_score_is_undefined():
    assert mean_scores([{"a": 1.0, "b": None}, {"a": None, "b": None}, {"a": 4.0, "b": None}]) == {"a": 2.5, "b": None}


def test_every_score_lies_within_its_bounds_and_is_worse_for_noise_than_for_the_label():
    perfect, noisy = (attribution_scores(_scored(maps, B, accuracy=a)) for maps, a in ((B, 1.0), (A, 0.2)))
    for score in SCORES:
        if score.function is not None:
            assert all(score.bounds[0] <= scores[score.name] <= score.bounds[1] for scores in (perfect, noisy))
            assert (perfect[score.name] < noisy[score.name]) == score.lower_is_better, score.name
