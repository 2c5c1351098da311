"""The estimators of Shapley values by name, and the pool of coalition designs that a label set is made with.

kernel_shap: constrained regression over paired coalitions, the paper's. leverage: the same regression, coalitions drawn by leverage.
permutation: antithetic permutations, unbiased. size_adjusted: kernel_shap with the effect of a coalition's size taken out: the same
limit, much less variance. calibrated: size_adjusted with a prior learned from some of the data set's pictures, a shrinkage estimator.
surrogate: a network learned from the data set's own evaluations predicts every game, and a picture's own correct it; shrinkage too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, get_args

from core.shapley.calibration import AttributionPrior, CalibratedSolver
from core.shapley.feature_selection import SelectingSolver, parse_l1_reg
from core.shapley.kernel_shap import CoalitionMatrix, Coalitions, Sampling, Values, sample_coalitions
from core.shapley.permutation import PermutationDesign
from core.shapley.residual_posterior import IndependentCoalitions, ResidualSolver, draw_coalitions
from core.shapley.size_adjustment import SizeAdjustedSolver, smallest_adjusted_budget
from core.shapley.surrogate import Surrogate

Estimator = Literal["kernel_shap", "leverage", "permutation", "size_adjusted", "calibrated", "surrogate"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
LEARNED: tuple[Estimator, ...] = ("calibrated", "surrogate")
"""Estimators that learn from the data set before they label."""

Sample = CoalitionMatrix | PermutationDesign | IndependentCoalitions
Learned = AttributionPrior | Surrogate


class Solver(Protocol):
    """Attributions and standard errors [N, M] from values [N, P], value_empty [N] and value_full [N]."""

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values: ...

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values: ...


@dataclass(frozen=True, eq=False)
class Design:
    """Coalitions to evaluate [P, M] and the solver of their values; of the surrogate estimator, of its residual games' values."""

    sample: Sample
    solver: Solver

    @property
    def coalitions(self) -> Coalitions:
        return self.sample.coalitions

    @property
    def budget(self) -> int:
        return len(self.sample.coalitions)


def make_design(
    estimator: Estimator,
    num_players: int,
    budget: int,
    seed: int | tuple[int, ...] = 0,
    *,
    learned: Learned | None = None,
    l1_reg: str = "none",
) -> Design:
    """The design of one estimator. Raises ValueError when the budget cannot be solved or the options do not go together."""
    return _with_solver(_draw(estimator, num_players, budget, seed), estimator, learned, l1_reg)


def _draw(estimator: Estimator, num_players: int, budget: int, seed: int | tuple[int, ...]) -> Sample:
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: choose among {', '.join(ESTIMATORS)}")
    if estimator == "permutation":
        return PermutationDesign(num_players, budget, seed)
    if estimator == "surrogate":
        return draw_coalitions(num_players, budget, seed)
    if estimator == "size_adjusted" and budget < smallest_adjusted_budget(num_players):
        raise ValueError(
            f"a budget of {budget} evaluations cannot determine {num_players} attributions and the size terms: at least "
            f"{smallest_adjusted_budget(num_players)} are needed"
        )
    sampling: Sampling = "leverage" if estimator == "leverage" else "kernel"
    return sample_coalitions(num_players, budget, seed, sampling, must_determine=estimator != "calibrated")


def _with_solver(sample: Sample, estimator: Estimator, learned: Learned | None, l1_reg: str) -> Design:
    selects = parse_l1_reg(l1_reg) is not None
    if selects and estimator not in ("kernel_shap", "leverage"):
        raise ValueError(f"l1_reg selects in a regression: not with the estimator {estimator}; leave it out or take kernel_shap")
    if isinstance(sample, PermutationDesign):
        return Design(sample, sample)
    if isinstance(sample, IndependentCoalitions):
        if not isinstance(learned, Surrogate):
            raise ValueError("the surrogate estimator needs a surrogate: fit one first")
        return Design(sample, ResidualSolver(sample.coalitions, learned.prior))
    if estimator == "calibrated":
        if not isinstance(learned, AttributionPrior):
            raise ValueError("the calibrated estimator needs a prior: fit one first")
        return Design(sample, CalibratedSolver(sample, learned))
    if estimator == "size_adjusted":
        return Design(sample, SizeAdjustedSolver(sample))
    return Design(sample, SelectingSolver(sample, l1_reg) if selects else sample.solver)


@dataclass(frozen=True)
class CoalitionPool:
    """A fixed pool of designs; a picture takes one by the hash of its id.

    With one design for all pictures the estimator's own error would be a map common to all of them, which a model learns and
    transfers. Pools of different `role` ("train", "test", ...) are independent, so that this error cannot pass from train to test.
    """

    num_players: int
    budget: int
    size: int
    role: str
    seed: int = 0
    estimator: Estimator = "kernel_shap"
    l1_reg: str = "none"

    def member_of(self, picture_id: str) -> int:
        """Which member of the pool labels the picture."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{picture_id}".encode()).digest()[:8], "big") % self.size

    def design(self, member: int, budget: int | None = None, learned: Learned | None = None) -> Design:
        """The design of a member; with `budget`, its first coalitions only. Raises IndexError outside the pool."""
        if not 0 <= member < self.size:
            raise IndexError(f"the pool has members 0 to {self.size - 1}, not {member}")
        return _pool_design(self, member, budget, learned)

    def coalitions(self, member: int) -> Coalitions:
        """What the pictures of a member are evaluated on, whatever is learned from it. [P, M]"""
        return _pool_sample(self, member).coalitions


@lru_cache(maxsize=256)
def _pool_design(pool: CoalitionPool, member: int, budget: int | None, learned: Learned | None) -> Design:
    sample = _pool_sample(pool, member)
    if budget is not None and budget < len(sample.coalitions):
        sample = sample.prefix(budget)
    return _with_solver(sample, pool.estimator, learned, pool.l1_reg)


@lru_cache(maxsize=256)
def _pool_sample(pool: CoalitionPool, member: int) -> Sample:
    role = int.from_bytes(hashlib.sha256(pool.role.encode()).digest()[:4], "big")
    return _draw(pool.estimator, pool.num_players, pool.budget, (pool.seed, role, member))
