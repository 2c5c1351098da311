"""Kernel SHAP against brute force, the Shapley axioms, the shap library and its own error bars."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from core.shapley.coalition_pool import CoalitionPool
from core.shapley.kernel_shap import KERNEL_SHAP, sample_coalitions, smallest_budget


def brute_force(game, num_players):
    """Shapley values by their definition: the mean marginal contribution over coalitions of the others."""
    phi = np.zeros(num_players)
    for i in range(num_players):
        others = [j for j in range(num_players) if j != i]
        for size in range(num_players):
            weight = math.factorial(size) * math.factorial(num_players - size - 1) / math.factorial(num_players)
            for subset in itertools.combinations(others, size):
                z = np.zeros(num_players, dtype=bool)
                z[list(subset)] = True
                with_i = z.copy()
                with_i[i] = True
                phi[i] += weight * (game(with_i[None])[0] - game(z[None])[0])
    return phi


def interacting_game(num_players, seed=0):
    """Additive, pairwise and threshold parts: nothing that a linear fit gets right by chance."""
    generator = np.random.default_rng(seed)
    linear, pairwise = generator.normal(size=num_players), generator.normal(size=(num_players, num_players))

    def game(z):
        z = z.astype(np.float64)
        return z @ linear + np.einsum("pi,ij,pj->p", z, pairwise, z) + (z.sum(1) > num_players / 2) * 3.0 + 0.7

    return game


def solve(game, matrix):
    ends = np.stack([np.zeros(matrix.coalitions.shape[1], bool), np.ones(matrix.coalitions.shape[1], bool)])
    v0, v1 = game(ends)
    values = game(matrix.coalitions)[None]
    args = (values, np.array([v0]), np.array([v1]))
    return matrix.solver.attributions(*args)[0], matrix.solver.standard_error(*args)[0], v1 - v0


@pytest.mark.parametrize("num_players", [2, 3, 4, 5, 8, 10])
def test_full_budget_equals_brute_force_shapley_values(num_players):
    game = interacting_game(num_players, seed=num_players)
    phi, standard_error, total = solve(game, sample_coalitions(num_players, 2**num_players - 2))
    np.testing.assert_allclose(phi, brute_force(game, num_players), atol=1e-9)
    np.testing.assert_allclose(phi.sum(), total, atol=1e-9)
    assert (standard_error == 0).all()


def test_axioms_null_player_symmetry_and_linearity():
    num_players, matrix = 8, sample_coalitions(8, 2**8 - 2)
    base = interacting_game(num_players, seed=3)

    def without_player_2(z):
        z = z.copy()
        z[:, 2] = False
        return base(z)

    def symmetric(z):
        z = z.astype(float)
        return np.square(z[:, 0] + z[:, 1]) + z[:, 0] * z[:, 1] * z[:, 5]

    null, _, _ = solve(without_player_2, matrix)
    assert abs(null[2]) < 1e-9
    twins, _, _ = solve(symmetric, matrix)
    assert abs(twins[0] - twins[1]) < 1e-9
    a, b = solve(base, matrix)[0], solve(symmetric, matrix)[0]
    both, _, _ = solve(lambda z: 2.0 * base(z) - 3.0 * symmetric(z), matrix)
    np.testing.assert_allclose(both, 2 * a - 3 * b, atol=1e-9)


@pytest.mark.parametrize("budget", [96, 160, 512])
def test_additive_games_are_solved_exactly_at_any_budget(budget):
    weights = np.random.default_rng(1).normal(size=49)
    phi, standard_error, total = solve(lambda z: z @ weights + 2.0, sample_coalitions(49, budget, seed=5))
    np.testing.assert_allclose(phi, weights, atol=1e-8)
    assert standard_error.max() < 1e-8


def test_efficiency_holds_at_every_budget():
    game = interacting_game(12)
    for budget in (40, 120, 400):
        phi, _, total = solve(game, sample_coalitions(12, budget, seed=budget))
        assert abs(phi.sum() - total) < 1e-9


def test_error_falls_with_the_root_of_the_budget():
    game, num_players = interacting_game(11, seed=9), 11
    truth = brute_force(game, num_players)

    def rms(budget):
        errors = [solve(game, sample_coalitions(num_players, budget, seed=s))[0] - truth for s in range(60)]
        return np.sqrt(np.mean(np.square(errors)))

    # Both budgets lie where sizes 1 and M - 1 are enumerated; drawing without repeats makes the fall a little steeper than the root.
    ratio = rms(120) / rms(480)
    assert 1.7 < ratio < 3.6


def test_standard_error_covers_the_true_error():
    game, num_players = interacting_game(16, seed=4), 16
    truth = sample_coalitions(num_players, 2**num_players - 2)
    phi_true, _, _ = solve(game, truth)
    for budget in (80, 240):
        z = []
        for seed in range(80):
            phi, standard_error, _ = solve(game, sample_coalitions(num_players, budget, seed=seed))
            z.append((phi - phi_true) / standard_error)
        spread = np.sqrt(np.mean(np.square(z)))
        # 80 draws x 16 players, correlated within a draw: the spread itself is known to about 5 %.
        assert 0.8 < spread < 1.25, (budget, spread)


def test_sampling_is_paired_distinct_and_reproducible():
    matrix = sample_coalitions(49, 512, seed=7)
    z = matrix.coalitions
    assert z.shape == (512, 49) and matrix.budget == 512
    assert (z[0::2] == ~z[1::2]).all()
    assert len({row.tobytes() for row in z}) == 512
    assert ((z.sum(1) > 0) & (z.sum(1) < 49)).all()
    assert abs(matrix.weights.sum() - 1) < 1e-12
    np.testing.assert_array_equal(z, sample_coalitions(49, 512, seed=7).coalitions)
    assert not np.array_equal(z, sample_coalitions(49, 512, seed=8).coalitions)


def test_sizes_1_and_48_are_enumerated_only_from_a_budget_that_leaves_others():
    sizes = lambda budget: (sample_coalitions(49, budget, seed=0).coalitions.sum(1) == 1).sum()  # noqa: E731
    assert sizes(512) == 49
    assert sizes(256) < 49
    assert sample_coalitions(49, 512).is_sampled.sum() == 512 - 98
    assert sample_coalitions(49, 256).is_sampled.all()


def test_the_smallest_budget_can_always_be_solved():
    for seed in range(40):
        assert sample_coalitions(49, smallest_budget(49), seed).is_determined
        assert sample_coalitions(6, smallest_budget(6), seed).is_determined


def test_budgets_that_cannot_be_solved_say_what_is_needed():
    with pytest.raises(ValueError, match="at least 96"):
        sample_coalitions(49, 50)
    with pytest.raises(ValueError, match="even"):
        sample_coalitions(49, 101)
    assert smallest_budget(49) == 96 and smallest_budget(3) == 4 and smallest_budget(2) == 2


def test_pool_gives_pictures_different_coalitions_and_roles_disjoint_ones():
    train = CoalitionPool(KERNEL_SHAP, 49, 160, 16, "train")
    test = CoalitionPool(KERNEL_SHAP, 49, 160, 8, "test")
    members = {train.member_of(f"train/{i}") for i in range(300)}
    assert members == set(range(16))
    rows = lambda pool: {r.tobytes() for m in range(pool.size) for r in pool.design(m).coalitions if 2 < r.sum() < 47}  # noqa: E731
    assert len(rows(train)) > 16 * 80
    assert not rows(train) & rows(test)
    assert train.member_of("a") == CoalitionPool(KERNEL_SHAP, 49, 160, 16, "train").member_of("a")
    with pytest.raises(IndexError):
        test.design(8)
