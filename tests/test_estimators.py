"""Every estimator against brute force, its own error bars and, for l1_reg, the shap library."""

from __future__ import annotations

import numpy as np
import pytest
from test_kernel_shap import brute_force, interacting_game, solve

from core.shapley.calibration import CalibratedSolver, Games, calibrate, fit_prior, is_held_out
from core.shapley.estimators import make_design
from core.shapley.feature_selection import SelectingSolver, parse_l1_reg
from core.shapley.kernel_shap import sample_coalitions

M = 16


@pytest.mark.parametrize("estimator", ["kernel_shap", "leverage", "permutation", "size_adjusted"])
def test_estimates_are_efficient_centred_on_the_truth_and_their_error_bars_true(estimator):
    game = interacting_game(M, seed=4)
    truth = solve(game, sample_coalitions(M, 2**M - 2))[0]
    errors, z = [], []
    for seed in range(120):
        phi, standard_error, total = solve(game, make_design(estimator, M, 180, seed=seed))
        assert abs(phi.sum() - total) < 1e-9
        errors.append(phi - truth)
        z.append(errors[-1] / standard_error)
    deviation = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(np.mean(errors, axis=0)) < 4.5 * deviation).all()  # no bias that 120 draws could show
    # The spread is known to about 5 %; six permutations give error bars of few degrees of freedom, whose errors have heavier tails.
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.25


@pytest.mark.parametrize("estimator", ["kernel_shap", "leverage", "permutation", "size_adjusted"])
def test_a_prefix_is_the_design_that_the_drawing_would_have_given(estimator):
    whole = make_design(estimator, 49, 480, seed=3).sample
    part = whole.prefix(240)
    np.testing.assert_array_equal(part.coalitions, whole.coalitions[: len(part.coalitions)])
    smaller = make_design(estimator, 49, 240, seed=3).sample
    np.testing.assert_array_equal(part.coalitions, smaller.coalitions)
    game = interacting_game(49, seed=1)
    np.testing.assert_allclose(solve(game, part)[0], solve(game, smaller)[0], atol=1e-9)
    with pytest.raises(ValueError, match="prefix"):
        whole.prefix(600)


def test_a_prefix_keeps_the_enumerated_sizes_and_their_weight():
    whole = sample_coalitions(49, 800, seed=0)
    part = whole.prefix(300)
    assert (~part.is_sampled).sum() == 98
    np.testing.assert_allclose(part.weights[:98], whole.weights[:98])
    assert abs(part.weights.sum() - 1) < 1e-12
    with pytest.raises(ValueError, match="enumerated"):
        whole.prefix(96)


@pytest.mark.parametrize("num_players", [2, 3, 4, 5, 8, 10])
def test_size_adjusted_is_exact_at_full_budget(num_players):
    game = interacting_game(num_players, seed=num_players)
    phi, standard_error, _ = solve(game, make_design("size_adjusted", num_players, 2**num_players - 2))
    np.testing.assert_allclose(phi, brute_force(game, num_players), atol=1e-9)
    assert (standard_error == 0).all()


def test_size_adjusted_is_untouched_by_any_function_of_the_size_and_beats_kernel_shap():
    game = interacting_game(M, seed=2)
    bent = lambda z: game(z) + 40.0 * (z.sum(1) / M) ** 3  # noqa: E731
    truth = solve(bent, sample_coalitions(M, 2**M - 2))[0]
    rms = lambda estimator, g: np.sqrt(  # noqa: E731
        np.mean([np.square(solve(g, make_design(estimator, M, 100, seed=s))[0] - truth) for s in range(20)])
    )
    assert rms("size_adjusted", bent) < 0.5 * rms("kernel_shap", bent)
    plain, adjusted = (solve(g, make_design("size_adjusted", M, 100, seed=1))[0] for g in (game, bent))
    np.testing.assert_allclose(adjusted, plain + 40.0 / M, atol=1e-8)
    with pytest.raises(ValueError, match="at least 36"):
        make_design("size_adjusted", M, 34)


def test_leverage_draws_all_sizes_alike_and_kernel_the_extreme_ones():
    share = lambda estimator: np.mean(  # noqa: E731
        [(make_design(estimator, 49, 200, seed=s).coalitions.sum(1) % 46 <= 3).mean() for s in range(10)]
    )
    assert share("leverage") < 0.25 < 0.4 < share("kernel_shap")


def test_permutations_use_whole_pairs_and_say_what_they_need():
    assert make_design("permutation", 49, 500).budget == 480
    with pytest.raises(ValueError, match="at least 192"):
        make_design("permutation", 49, 191)
    with pytest.raises(ValueError, match="at least 96"):
        make_design("kernel_shap", 49, 50)
    with pytest.raises(ValueError, match="l1_reg"):
        make_design("permutation", 49, 500, l1_reg="aic")


# ---------------------------------------------------------------- calibration


class Population:
    """Games that are alike: attributions about one mean, interactions of up to seven players of one size."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._mean = generator.normal(size=M)
        self._root = 0.15 * generator.normal(size=(M, 4))
        self._generator = np.random.default_rng(seed + 1)

    def draw(self, number: int):
        g = self._generator
        linear = self._mean + g.normal(size=(number, 4)) @ self._root.T + 0.05 * g.normal(size=(number, M))
        strength = 0.1 * g.normal(size=(number, 40))
        players = g.integers(0, M, size=(number, 40, 7))

        def values(z: np.ndarray) -> np.ndarray:
            signs = 2.0 * z - 1.0
            sevens = np.stack([np.prod(signs[:, p], axis=2) @ t for p, t in zip(players, strength, strict=True)])
            return linear @ z.T + sevens

        # A product of an odd number of signs is -1 of nobody and 1 of all, and alike in its players: each is worth an equal share of 2.
        # Of seven players drawn with repeats those count that were drawn an odd number of times.
        is_in = (players[..., None] == np.arange(M)).sum(2) % 2
        truth = linear + np.einsum("nt,ntm->nm", 2.0 * strength / is_in.sum(2), is_in)
        return values, truth

    def games(self, values, matrix) -> Games:
        ends = values(np.stack([np.zeros(M, bool), np.ones(M, bool)]))
        return Games(matrix, values(matrix.coalitions), ends[:, 0], ends[:, 1])


def exact(games: Games) -> np.ndarray:
    return games.matrix.solver.attributions(*games.arguments())


@pytest.fixture(scope="module")
def population():
    return Population()


@pytest.fixture(scope="module")
def calibration_games(population):
    values = [population.draw(20)[0] for _ in range(12)]
    references = [population.games(v, sample_coalitions(M, 800, (1, k))) for k, v in enumerate(values)]
    designs = [population.games(v, sample_coalitions(M, 60, (2, k))) if is_held_out(k) else None for k, v in enumerate(values)]
    return references, designs


@pytest.fixture(scope="module")
def held_out(population):
    return population.draw(60)


def test_calibrated_estimates_have_a_smaller_error_efficiency_and_true_error_bars(population, calibration_games, held_out):
    prior, report = calibrate(*calibration_games)
    values, truth = held_out
    matrix = sample_coalitions(M, 60, seed=9)
    games = population.games(values, matrix)
    solver = CalibratedSolver(matrix, prior)
    estimate = solver.attributions(games.values, games.value_empty, games.value_full)
    rms = lambda error: np.sqrt(np.mean(np.square(error)))  # noqa: E731
    assert rms(estimate - truth) < 0.6 * rms(exact(games) - truth)
    np.testing.assert_allclose(estimate.sum(1), games.value_full - games.value_empty, atol=1e-9)
    z = (estimate - truth) / solver.standard_error(games.values, games.value_empty, games.value_full)
    assert 0.75 < rms(z) < 1.3
    found = rms(estimate - truth) / rms(truth)
    assert 0.7 * found < report.relative_error < 1.4 * found
    assert report.relative_error < report.kernel_shap_relative_error
    assert report.num_held_out == 60 and report.num_fitted == 180 and report.budget == 60
    assert 0.3 < report.slope < 1.2 and 0.0 <= report.bias < report.relative_error


def test_calibrated_estimates_tend_to_kernel_shap_as_the_budget_grows(population, calibration_games, held_out):
    prior = fit_prior(calibration_games[0])
    values, truth = held_out
    distance = []
    for budget in (60, 600, 6000):
        matrix = sample_coalitions(M, budget, seed=2)
        games = population.games(values, matrix)
        estimate = CalibratedSolver(matrix, prior).attributions(games.values, games.value_empty, games.value_full)
        distance.append(np.abs(estimate - exact(games)).mean())
    assert distance[2] < distance[1] / 3 < distance[0] / 9


def test_calibration_of_too_few_pictures_says_how_many(calibration_games):
    references, designs = calibration_games
    few = references[0]
    with pytest.raises(ValueError, match="at least 16 pictures"):
        fit_prior([Games(few.matrix, few.values[:15], few.value_empty[:15], few.value_full[:15])])
    with pytest.raises(ValueError, match="at least 4 groups"):
        calibrate(references[:3], designs[:3])
    prior = fit_prior(references)
    with pytest.raises(ValueError, match="16 players"):
        CalibratedSolver(sample_coalitions(8, 60), prior)


# ---------------------------------------------------------------- l1_reg


@pytest.mark.parametrize("l1_reg", ["num_features(3)", "num_features(5)", "aic", "bic"])
def test_l1_reg_is_the_shap_librarys(l1_reg):
    import shap

    num_players = 8
    game = interacting_game(num_players, seed=6)
    matrix = sample_coalitions(num_players, 2**num_players - 2)  # every coalition, as shap takes at this budget
    ends = game(np.stack([np.zeros(num_players, bool), np.ones(num_players, bool)]))
    solver = make_design("kernel_shap", num_players, 2**num_players - 2, l1_reg=l1_reg).solver
    assert isinstance(solver, SelectingSolver)
    ours = solver.attributions(game(matrix.coalitions)[None], ends[:1], ends[1:])[0]
    explainer = shap.KernelExplainer(lambda z: game(np.asarray(z) > 0.5), np.zeros((1, num_players)), silent=True)
    theirs = np.asarray(explainer.shap_values(np.ones((1, num_players)), nsamples=2**num_players, l1_reg=l1_reg)).ravel()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.isnan(solver.standard_error(game(matrix.coalitions)[None], ends[:1], ends[1:])).all()
    if l1_reg.startswith("num"):
        assert (ours != 0).sum() == int(l1_reg[-2])


def test_l1_reg_is_off_by_default_and_refuses_what_it_does_not_know():
    assert parse_l1_reg("none") is None and parse_l1_reg("num_features(10)") == 10 and parse_l1_reg("aic") == "aic"
    for bad in ("auto", "num_features(0)", "0.1"):
        with pytest.raises(ValueError, match="num_features"):
            parse_l1_reg(bad)
