"""Surrogates of games: what they predict, what they leave, and labels made of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.games.attribution_labels import Labeller, LabelSettings
from core.games.coalition_values import CoalitionEvaluator
from core.games.patch_features import MAX_WIDTH, patch_features
from core.shapley.kernel_shap import kernel_size_distribution, sample_coalitions
from core.shapley.residual_posterior import ResidualPrior, Residuals, ResidualSolver, draw_coalitions, fit_residual_prior, weights
from core.shapley.size_adjustment import num_size_terms, zero_sum_basis
from core.shapley.surrogate_fit import LEAST_PICTURES, EvaluatedPictures, SurrogateFit, fit_surrogate
from core.shapley.surrogate_net import Surrogate, SurrogateNet

M = 8
NUM_COEFFICIENTS = M - 1 + 2 * num_size_terms(M)
ENDS = np.stack([np.zeros(M, bool), np.ones(M, bool)])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def shapley(values_of, number: int) -> np.ndarray:
    """Exact Shapley values of games given by their values on any coalitions. [N, M]"""
    everything = sample_coalitions(M, 2**M - 2)
    ends = values_of(ENDS)
    assert ends.shape == (number, 2)
    return everything.solver.attributions(values_of(everything.coalitions), ends[:, 0], ends[:, 1])


# ---------------------------------------------------------------- what a prediction leaves


def test_coalitions_are_drawn_between_the_kernel_and_the_uniform_sizes_and_weighed_back():
    drawn = draw_coalitions(12, 40_000, seed=1).coalitions
    sizes = drawn.sum(1)
    assert sizes.min() == 1 and sizes.max() == 11
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.01)
    weight = weights(drawn)
    share = np.array([weight[sizes == size].sum() for size in range(1, 12)]) / weight.sum()
    np.testing.assert_allclose(share, kernel_size_distribution(12), atol=0.01)
    assert weight.mean() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="at least 2"):
        draw_coalitions(12, 1)


def test_the_posterior_tends_to_the_shapley_values_however_bad_the_prior():
    generator = np.random.default_rng(0)
    pairs, triples = generator.normal(size=(M, M)), generator.normal(size=(M, M, M))

    def game(z: np.ndarray) -> np.ndarray:
        z = z.astype(float)
        return (np.einsum("pi,ij,pj->p", z, pairs, z) + np.einsum("pi,pj,pk,ijk->p", z, z, z, triples))[None]

    truth = shapley(game, 1)
    empty, full = game(ENDS).T
    prior = ResidualPrior(M, np.eye(NUM_COEFFICIENTS), 30.0)
    error = []
    for budget in (50, 2000, 200_000):
        coalitions = draw_coalitions(M, budget, seed=3).coalitions
        rest = game(coalitions) - empty[:, None] - (full - empty)[:, None] * coalitions.mean(1)
        found = ResidualSolver(coalitions, prior).attributions(rest, np.zeros(1), np.zeros(1))
        assert found.sum() == pytest.approx(0.0, abs=1e-9)
        error.append(rms(found + (full - empty)[:, None] / M - truth) / rms(truth))
    assert error[0] > 3 * error[1] > 9 * error[2] and error[2] < 0.02


def test_the_prior_is_found_again_and_its_error_bars_hold_with_fewer_equations_than_unknowns():
    generator = np.random.default_rng(5)
    root = generator.normal(size=(M - 1, 3)) * 0.5
    covariance = root @ root.T + 0.02 * np.eye(M - 1)
    basis = zero_sum_basis(M)

    def residuals(number: int, budget: int, seed: int) -> tuple[Residuals, np.ndarray]:
        coalitions = draw_coalitions(M, budget, seed).coalitions
        rho = generator.multivariate_normal(np.zeros(M - 1), covariance, number) @ basis.T
        noise = 0.3 * generator.normal(size=(number, budget)) / np.sqrt(weights(coalitions))
        return Residuals(coalitions, rho @ (coalitions - 0.5).T + noise), rho

    assert NUM_COEFFICIENTS > 6
    prior = fit_residual_prior([residuals(200, 6, seed)[0] for seed in range(10)])
    found = prior.covariance[: M - 1, : M - 1]
    assert np.linalg.norm(found - covariance) < 0.25 * np.linalg.norm(covariance)
    games, rho = residuals(500, 20, 99)
    solver = ResidualSolver(games.coalitions, prior)
    zeros = np.zeros(500)
    error = solver.attributions(games.values, zeros, zeros) - rho
    assert 0.8 < rms(error / solver.standard_error(games.values, zeros, zeros)) < 1.25
    assert rms(error) < 0.6 * rms(rho)
    more = fit_residual_prior([residuals(200, 20, seed)[0] for seed in range(10)])
    assert more.noise == pytest.approx(0.09, rel=0.15)
    few = fit_residual_prior([residuals(10, 6, seed)[0] for seed in range(2)])  # 12 equations for each of 13 variances: no collapse
    assert 0.2 < rms(error / ResidualSolver(games.coalitions, few).standard_error(games.values, zeros, zeros)) < 2.0
    with pytest.raises(ValueError, match="8 players"):
        ResidualSolver(draw_coalitions(5, 10).coalitions, prior)
    with pytest.raises(ValueError, match="no residual games"):
        fit_residual_prior([])


# ---------------------------------------------------------------- the network


def random_net(num_features: int = 5) -> SurrogateNet:
    torch.manual_seed(3)
    net = SurrogateNet(num_features, M)
    with torch.no_grad():
        for parameter in (net.linear.weight, net.out.weight, net.sizes.weight):
            parameter.normal_()
        net.value_scale.fill_(2.0)
    return net.eval()


def test_predicted_games_end_where_they_must_and_have_the_shapley_values_they_say():
    surrogate = Surrogate(random_net(), ResidualPrior(M, np.eye(NUM_COEFFICIENTS), 1.0))
    empty, full = np.array([0.5, -1.0, 2.0]), np.array([3.0, 1.0, 2.5])
    predicted = surrogate.predict(torch.randn(3, M, 5, generator=torch.Generator().manual_seed(1)), empty, full)
    np.testing.assert_allclose(predicted.values(ENDS), np.stack([empty, full], axis=1), atol=1e-5)
    np.testing.assert_allclose(predicted.attributions, shapley(predicted.values, 3), atol=1e-4)
    plain = empty[:, None] + draw_coalitions(M, 30).coalitions @ predicted.attributions.T.mean(1)
    assert rms(predicted.values(draw_coalitions(M, 30).coalitions) - plain) > 0.1  # no additive game
    again = Surrogate.from_bytes(surrogate.to_bytes())
    features = torch.randn(2, M, 5)
    for one, other in zip(*(s.net(features, torch.ones(2)).interactions(torch.ones(2, 4, M) / 2) for s in (surrogate, again)), strict=True):
        torch.testing.assert_close(one, other)
    np.testing.assert_array_equal(again.prior.covariance, surrogate.prior.covariance)


class Population:
    """Games that pictures' features determine but for a part: what players are worth depends on the others' features too."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(11)

    def draw(self, number: int):
        g = self._generator
        features = g.normal(size=(number, M, 5))
        attention = np.exp(features[:, :, 0] - 0.5)
        worth = features[:, :, 1] + 0.5 * features[:, ::-1, 2] + 0.2 * g.normal(size=(number, M))

        def values(z: np.ndarray) -> np.ndarray:
            seen = z[None] * attention[:, None] + 0.1
            return np.tanh(2.0 * (seen * worth[:, None]).sum(2) / seen.sum(2))

        return torch.from_numpy(features).float(), values

    def evaluated(self, number: int, budget: int) -> EvaluatedPictures:
        features, values = self.draw(number)
        coalitions = np.stack([draw_coalitions(M, budget, k).coalitions for k in range(4)])
        members = np.arange(number) % 4
        everything = values(coalitions.reshape(-1, M)).reshape(number, 4, budget)
        ends = values(ENDS)
        return EvaluatedPictures(features, members, coalitions, everything[np.arange(number), members], ends[:, 0], ends[:, 1])


@pytest.fixture(scope="module")
def population():
    return Population()


@pytest.fixture(scope="module")
def pictures(population):
    return population.evaluated(1500, 10)


@pytest.fixture(scope="module")
def fitted(pictures):
    torch.set_num_threads(1)
    return fit_surrogate(pictures, epochs=25)


def test_labels_of_new_pictures_beat_kernel_shap_of_more_evaluations_and_their_error_bars_hold(population, fitted):
    features, values = population.draw(200)
    truth = shapley(values, 200)
    empty, full = values(ENDS).T
    coalitions = draw_coalitions(M, 10, seed=77).coalitions
    predicted = fitted.predict(features, empty, full)
    solver = ResidualSolver(coalitions, fitted.prior)
    estimate, deviation = predicted.corrected(coalitions, solver, values(coalitions))
    np.testing.assert_allclose(estimate.sum(1), full - empty, atol=1e-4)
    assert rms(estimate - truth) < 0.7 * rms(predicted.attributions - truth) < 0.5 * rms(truth)
    matrix = sample_coalitions(M, 16, seed=7)
    kernel_shap = matrix.solver.attributions(values(matrix.coalitions), empty, full)
    assert rms(estimate - truth) < 0.8 * rms(kernel_shap - truth)
    assert 0.75 < rms((estimate - truth) / deviation) < 1.25


def test_a_fit_is_deterministic_and_leaves_the_global_generator_alone(pictures):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    fits = []
    for _ in range(2):
        fit = SurrogateFit(pictures, epochs=2, seed=4)
        losses = [fit.epoch(), fit.epoch()]
        fits.append((losses, fit.net.read.weight.detach().clone()))
    assert fits[0][0] == fits[1][0] and losses[1] < losses[0]
    torch.testing.assert_close(fits[0][1], fits[1][1], atol=0, rtol=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_few_pictures_are_refused_with_a_number(population):
    with pytest.raises(ValueError, match=f"at least {LEAST_PICTURES} pictures, not 100"):
        SurrogateFit(population.evaluated(100, 10))


# ---------------------------------------------------------------- with a classifier


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_features_hold_the_classifiers_own_cosines_of_every_patch(signs, sign_classifier, precision):
    evaluator = CoalitionEvaluator(sign_classifier, dtype=precision)
    found = patch_features(evaluator, signs.inputs[:5], signs.class_ids[:5])
    width, embed_dim = 96, 64
    assert found.shape == (5, 49, 4 * (width + 3) + 2 * embed_dim) and found.dtype == torch.float32
    with torch.no_grad():
        _, patches = sign_classifier.features(signs.inputs[:5])
    cosine = torch.einsum("nmk,kn->nm", patches, sign_classifier.head[:, signs.class_ids[:5]])
    torch.testing.assert_close(found[..., 3 * (width + 3) + width], cosine, atol=1e-5 if precision == torch.float32 else 0.03, rtol=0.0)


def test_features_of_a_wide_tower_are_narrowed(vit_classifier):
    assert vit_classifier.visual.conv1.out_channels > MAX_WIDTH
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = patch_features(CoalitionEvaluator(vit_classifier), inputs, torch.tensor([0, 1]))
    assert found.shape == (2, 49, 4 * (MAX_WIDTH + 3) + 2 * MAX_WIDTH) and found.isfinite().all()
    assert not torch.equal(found[0], found[1])


def test_a_labeller_corrects_the_surrogate_and_takes_known_values_for_evaluations(signs, sign_classifier):
    settings = LabelSettings(budget=20, estimator="surrogate", pool_size=2)
    torch.manual_seed(0)
    net = SurrogateNet(4 * 99 + 128, 49)
    surrogate = Surrogate(net.eval(), ResidualPrior(49, np.eye(54) * 1e-3, 1e-2))
    plain = Labeller(sign_classifier, settings, "train", learned=surrogate)
    labels = plain.label(signs.inputs, signs.class_ids, signs.ids)
    assert plain.evaluator.num_evaluations == 24 * 22
    np.testing.assert_allclose(labels.attributions.sum(1), labels.value_full - labels.value_empty, atol=1e-4)
    assert (labels.standard_error > 0).all() and (labels.budget == 20).all()
    known = {}
    for picture_id, x, y in zip(signs.ids[:10], signs.inputs, signs.class_ids, strict=False):
        known[picture_id] = plain.values(plain.pool.member_of(picture_id), x[None], y[None])[0]
    knowing = Labeller(sign_classifier, settings, "train", learned=surrogate, known=known)
    again = knowing.label(signs.inputs, signs.class_ids, signs.ids)
    assert knowing.evaluator.num_evaluations == 14 * 22
    np.testing.assert_allclose(again.attributions, labels.attributions, atol=1e-4)
    with pytest.raises(ValueError, match="fit one first"):
        Labeller(sign_classifier, settings, "train").label(signs.inputs, signs.class_ids, signs.ids)
