"""The estimator `shap` against the library itself, run on the live game."""

from __future__ import annotations

import numpy as np
import pytest
import shap
import torch
from test_kernel_shap import brute_force, interacting_game

from core.games.attribution_labels import Labeller, LabelSettings
from core.shapley.estimators import make_design
from core.shapley.shap_library import SHAP


def ends_of(game, num_players):
    return game(np.stack([np.zeros(num_players, bool), np.ones(num_players, bool)]))


@pytest.mark.parametrize("l1_reg", ["none", "num_features(10)", "num_features(3)", "aic", "bic"])
@pytest.mark.parametrize(("num_players", "budget"), [(49, 400), (20, 99), (6, 40)])
def test_it_is_the_library_on_the_live_game(num_players, budget, l1_reg):
    game = interacting_game(num_players, seed=2)
    design = make_design("shap", num_players, budget, 7, l1_reg=l1_reg)
    ends = ends_of(game, num_players)
    ours = design.solver.attributions(game(design.coalitions)[None], ends[:1], ends[1:])[0]
    np.random.seed(design.sample.seed)
    live = shap.KernelExplainer(lambda rows: game(np.asarray(rows) > 0.5), np.zeros((1, num_players)), silent=True)
    theirs = live.shap_values(np.ones((1, num_players)), nsamples=budget, l1_reg=False if l1_reg == "none" else l1_reg, silent=True)
    np.testing.assert_allclose(ours, np.ravel(theirs), atol=1e-9)  # the same float64 values through the same code


@pytest.mark.parametrize("num_players", [2, 3, 5, 8])
def test_with_every_coalition_it_gives_the_shapley_values(num_players):
    game = interacting_game(num_players, seed=1)
    design = make_design("shap", num_players, 2**num_players)
    assert design.budget == 2**num_players - 2
    ends = ends_of(game, num_players)
    found = design.solver.attributions(game(design.coalitions)[None], ends[:1], ends[1:])[0]
    np.testing.assert_allclose(found, brute_force(game, num_players), atol=1e-8)


def test_the_budget_is_what_is_evaluated():
    for budget in (96, 97, 300, 512):
        assert len(SHAP.draw(49, budget, 1).coalitions) == budget


def test_games_are_solved_one_by_one_and_numpys_generator_is_put_back_though_the_library_fails():
    design = make_design("shap", 10, 60)
    values = np.random.default_rng(0).normal(size=(3, 60))
    ends = np.zeros(3), np.arange(3.0)
    together = design.solver.attributions(values, *ends)
    apart = [design.solver.attributions(values[n : n + 1], ends[0][n : n + 1], ends[1][n : n + 1])[0] for n in range(3)]
    np.testing.assert_array_equal(together, apart)
    before = np.random.get_state()[1].copy()
    with pytest.raises(ValueError):
        design.solver.attributions(values[:, :50], *ends)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_pictures_are_labelled_as_the_library_would(signs, sign_classifier):
    labeller = Labeller(sign_classifier, LabelSettings(budget=300, estimator="shap", pool_size=2), "train")
    labels = labeller.label(signs.inputs[:3], signs.class_ids[:3], signs.ids[:3])
    assert np.isnan(labels.standard_error).all() and (labels.budget == 300).all()
    np.testing.assert_allclose(labels.attributions.sum(1), labels.value_full - labels.value_empty, atol=1e-4)
    for n in range(3):

        def game(rows, n=n):
            coalitions = torch.from_numpy(np.asarray(rows) > 0.5)
            return labeller.evaluator.values(signs.inputs[n : n + 1], signs.class_ids[n : n + 1], coalitions)[0].double().numpy()

        np.random.seed(labeller.pool.sample(labeller.pool.member_of(signs.ids[n])).seed)
        explainer = shap.KernelExplainer(game, np.zeros((1, 49)), silent=True)
        theirs = np.ravel(explainer.shap_values(np.ones((1, 49)), nsamples=300, l1_reg=False, silent=True))
        # Values in float32 of other batches differ by 1e-6, which the regression at 300 evaluations enlarges about twice.
        np.testing.assert_allclose(labels.attributions[n], theirs, atol=2e-5)
