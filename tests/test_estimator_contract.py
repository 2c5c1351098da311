"""What every estimator must do, run on each of them: whoever adds one gets these tests with it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from test_kernel_shap import interacting_game

from core.shapley.calibration import AttributionPrior
from core.shapley.coalition_pool import CoalitionPool
from core.shapley.estimator import MOST_IN_A_DESIGN, Learned, role_seed
from core.shapley.estimators import ESTIMATORS, find_estimator, make_design
from core.shapley.kernel_shap import sample_coalitions
from core.shapley.residual_posterior import ResidualPrior
from core.shapley.size_adjustment import num_size_terms
from core.shapley.surrogate_net import Surrogate, SurrogateNet

NUM_FEATURES = 5
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=list(ESTIMATORS))
those_that_learn_nothing = pytest.mark.parametrize(
    "estimator", [e for e in ESTIMATORS.values() if e.learning is None], ids=[e.name for e in ESTIMATORS.values() if e.learning is None]
)


def learned_for(estimator, num_players: int) -> Learned | None:
    """What it could have learned: a wide prior, a network of random weights."""
    if estimator.learning is None:
        return None
    if estimator.learning.learned is AttributionPrior:
        size = num_players - 1 + num_size_terms(num_players)
        return AttributionPrior(num_players, np.zeros(size), np.zeros(size), np.eye(size), 1.0)
    torch.manual_seed(3)
    net = SurrogateNet(NUM_FEATURES, num_players)
    torch.nn.init.normal_(net.out.weight)
    return Surrogate(net.eval(), ResidualPrior(num_players, np.eye(num_players - 1 + 2 * num_size_terms(num_players)), 1.0))


def solved(estimator, game, num_players, budget, seed=0, l1_reg="none"):
    """Attributions and standard errors [M], and the total."""
    sample = estimator.draw(num_players, budget, seed)
    solver = estimator.solver(sample, learned_for(estimator, num_players), l1_reg)
    ends = game(np.stack([np.zeros(num_players, bool), np.ones(num_players, bool)]))
    features = torch.randn(1, num_players, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    phi, error = solver.solve(game(sample.coalitions)[None], ends[:1], ends[1:], lambda: features)
    assert phi.shape == error.shape == (1, num_players)
    return phi[0], error[0], ends[1] - ends[0]


def exact(game, num_players):
    return solved(ESTIMATORS["kernel_shap"], game, num_players, 2**num_players - 2)[0]


@every_estimator
def test_it_is_found_by_its_name_and_names_a_pool_in_any_process(estimator):
    assert find_estimator(estimator.name) is estimator and estimator.card
    again = pickle.loads(pickle.dumps(estimator))
    assert again == estimator and hash(again) == hash(estimator)
    assert [e for e in ESTIMATORS.values() if e == estimator] == [estimator]


@every_estimator
@pytest.mark.parametrize("num_players", [4, 9, 49])
def test_the_smallest_budget_is_the_smallest_that_works(estimator, num_players):
    budget = estimator.smallest_budget(num_players)
    estimator.check(num_players, budget)
    game = interacting_game(num_players)
    for seed in range(6):
        phi, _, total = solved(estimator, game, num_players, budget, seed)
        assert abs(phi.sum() - total) < 1e-3 and np.isfinite(phi).all()
    with pytest.raises(ValueError, match=rf"\b{budget}\b"):  # the fix is in the message
        estimator.check(num_players, budget - 1)


@every_estimator
@pytest.mark.parametrize("num_players", [4, 49, 577])
def test_a_budget_that_memory_would_not_hold_is_refused_before_it_is_drawn(estimator, num_players, monkeypatch):
    monkeypatch.setattr(type(estimator), "draw", lambda *_: pytest.fail("it is being drawn"))
    most = MOST_IN_A_DESIGN // num_players
    with pytest.raises(ValueError, match=rf"for {num_players} players: give at most {most - most % 2}\b"):
        estimator.check(num_players, 10**9)


@every_estimator
def test_a_game_of_one_player_is_refused(estimator):
    with pytest.raises(ValueError, match="at least 2 players"):
        estimator.check(1, 100)


@every_estimator
def test_what_is_drawn_is_the_seeds_and_within_the_budget(estimator):
    one, again, other = (estimator.draw(49, 400, seed).coalitions for seed in (3, 3, (3, 1)))
    assert one.dtype == bool and one.shape[1] == 49 and 0.9 * 400 <= len(one) <= 400
    assert ((one.sum(1) > 0) & (one.sum(1) < 49)).all()  # the two ends are evaluated anyway
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@every_estimator
def test_drawing_leaves_the_global_generators_alone(estimator):
    learned, features = learned_for(estimator, 8), torch.randn(1, 8, NUM_FEATURES)
    before = np.random.get_state(), torch.random.get_rng_state()
    sample = estimator.draw(8, 60, 1)
    estimator.solver(sample, learned).solve(np.ones((1, len(sample.coalitions))), np.zeros(1), np.ones(1), lambda: features)
    after = np.random.get_state(), torch.random.get_rng_state()
    assert before[0][2] == after[0][2] and np.array_equal(before[0][1], after[0][1])
    assert torch.equal(before[1], after[1])


@every_estimator
@pytest.mark.parametrize("budget", [60, 200])
def test_attributions_share_out_the_total(estimator, budget):
    phi, _, total = solved(estimator, interacting_game(12, seed=5), 12, budget, seed=budget)
    assert abs(phi.sum() - total) < (1e-9 if estimator.learning is None else 1e-3)  # a network computes in float32


@those_that_learn_nothing
@pytest.mark.parametrize("budget", [60, 120, 300])
def test_additive_games_are_solved_exactly(estimator, budget):
    weights = np.random.default_rng(1).normal(size=16)
    phi, error, _ = solved(estimator, lambda z: z @ weights + 2.0, 16, budget, seed=5)
    np.testing.assert_allclose(phi, weights, atol=1e-8)  # float64; the shap library rounds below 1e-10
    if estimator.has_error_bars():
        assert error.max() < 1e-7


@those_that_learn_nothing
def test_the_error_falls_with_the_root_of_the_budget(estimator):
    game = interacting_game(11, seed=9)
    truth = exact(game, 11)

    def rms(budget):
        return np.sqrt(np.mean([np.square(solved(estimator, game, 11, budget, seed)[0] - truth) for seed in range(40)]))

    # Four times the budget: a factor of two. Enumerated sizes and drawing without repeats make the fall steeper, to less than twice that.
    assert 1.6 < rms(120) / rms(480) < 4.0


@pytest.mark.parametrize("name", [name for name, e in ESTIMATORS.items() if e.learning is not None])
def test_whatever_was_learned_the_error_vanishes_with_the_budget(name):
    """The priors of these tests are of no use, and still."""
    game = interacting_game(11, seed=9)
    truth = exact(game, 11)
    few, many = (
        np.mean([np.abs(solved(ESTIMATORS[name], game, 11, budget, seed)[0] - truth).mean() for seed in range(5)]) for budget in (30, 1440)
    )
    assert many < few / 4


@every_estimator
def test_error_bars_are_where_they_are_said_to_be_and_hold_from_the_trusted_budget_on(estimator):
    game = interacting_game(16, seed=4)
    if not estimator.has_error_bars():
        assert np.isnan(solved(estimator, game, 16, 100)[1]).all()
        assert estimator.trusted_budget(16) is None and not estimator.can_stop_early
        return
    assert (solved(estimator, game, 16, 100)[1] > 0).all()
    trusted = estimator.trusted_budget(16)
    if trusted is None:
        return
    truth = exact(game, 16)
    z = [(phi - truth) / error for seed in range(120) for phi, error, _ in [solved(estimator, game, 16, trusted, seed)]]
    # 120 draws of 16 players, correlated within a draw: the spread is known to about 5 %; few equations make it a little large.
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.4


@every_estimator
def test_a_prefix_is_what_the_drawing_would_have_given_had_it_stopped(estimator):
    whole = estimator.draw(49, 960, seed=3)
    np.testing.assert_array_equal(whole.prefix(len(whole.coalitions)).coalitions, whole.coalitions)
    with pytest.raises(ValueError, match="prefix"):
        whole.prefix(1200)
    if not estimator.can_stop_early:
        return
    assert estimator.smallest_budget(49) <= estimator.first_round(49, 960) <= 960
    for budget in (480, 576):
        if budget < estimator.first_round(49, 960):
            continue
        part, smaller = whole.prefix(budget), estimator.draw(49, budget, seed=3)
        np.testing.assert_array_equal(part.coalitions, whole.coalitions[: len(part.coalitions)])
        np.testing.assert_array_equal(part.coalitions, smaller.coalitions)


@every_estimator
def test_selection_is_made_or_refused(estimator):
    if not estimator.can_select:
        with pytest.raises(ValueError, match="l1_reg"):
            estimator.check(9, 200, "num_features(3)")
        return
    estimator.check(9, 200, "num_features(3)")
    phi, error, total = solved(estimator, interacting_game(9), 9, 200, l1_reg="num_features(3)")
    assert (phi != 0).sum() == 3 and abs(phi.sum() - total) < 1e-9
    assert np.isnan(error).all() and not estimator.has_error_bars("num_features(3)")
    with pytest.raises(ValueError, match="l1_reg must be"):
        estimator.check(9, 200, "ridge")


@every_estimator
def test_what_must_be_learned_is_asked_for_and_travels_as_bytes(estimator):
    sample = estimator.draw(9, 60)
    if estimator.learning is None:
        estimator.solver(sample)
        return
    with pytest.raises(ValueError, match="fit one first"):
        estimator.solver(sample)
    learned = learned_for(estimator, 9)
    again = estimator.learning.learned.from_bytes(learned.to_bytes()).to("cpu")
    values, ends = np.random.default_rng(0).normal(size=(2, 60)), (np.zeros(2), np.array([1.0, -2.0]))
    features = torch.randn(2, 9, NUM_FEATURES)
    for one, other in zip(*(estimator.solver(sample, x).solve(values, *ends, lambda: features) for x in (learned, again)), strict=True):
        np.testing.assert_array_equal(one, other)


@every_estimator
def test_pools_of_two_roles_have_no_design_in_common(estimator):
    """Nor a coalition, of those too many to meet by chance."""
    roles = ("train", "test", "train/reference")
    pools = {role: CoalitionPool(estimator, 49, 200, 8, role) for role in roles}
    rows = {role: {row.tobytes() for m in range(8) for row in pool.coalitions(m) if 8 < row.sum() < 41} for role, pool in pools.items()}
    designs = {role: {pool.coalitions(m).tobytes() for m in range(8)} for role, pool in pools.items()}
    for role in roles:
        assert len(designs[role]) == 8 and len(rows[role]) > 100
        for other in roles:
            assert role == other or not (rows[role] & rows[other] or designs[role] & designs[other])


def test_roles_enter_seeds_by_their_hash():
    assert role_seed(5, "train", 2) == (5, 0x116F54C4, 2)  # printf train | sha256sum
    assert len({role_seed(0, role) for role in ("train", "test", "train/reference", "test/reference")}) == 4


def test_an_unknown_estimator_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown estimator 'lime': choose among calibrated, .*, surrogate"):
        make_design("lime", 49, 500)
    assert sample_coalitions(49, 500, 1).budget == make_design("kernel_shap", 49, 500, 1).budget
