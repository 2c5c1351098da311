"""Kernel SHAP: Shapley values by constrained weighted least squares over sampled coalitions.

This module knows only a value function's values v(S). Which picture or model they come from is `core.games`.

Definitions, after Lundberg & Lee (2017) and Covert & Lee (2021). For M players the Shapley values solve

    min_phi  sum_S pi(|S|) (v(S) - v(empty) - sum_{i in S} phi_i)^2     subject to  sum_i phi_i = v(N) - v(empty)

over all coalitions S other than the empty and the grand one, where pi(s) is proportional to the Shapley kernel
1 / (C(M, s) s (M - s)). The constraint is eliminated (phi_M is expressed by the others), never imposed by a large weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from core.shapley.estimator import Coalitions, Estimator, Learned, Sample, Seed, Values, ValueSolver
from core.shapley.feature_selection import SelectingSolver

ENUMERATION_EVALUATIONS_A_PLAYER = 10
"""Sizes 1 and M - 1 are enumerated only from a budget of so many times M: below, too few others would be left."""

TRUSTED_EVALUATIONS_A_PLAYER = 4
"""A regression's error bars cover from a budget of so many times M on (see the tests): below, too few equations are left over."""

MAX_DRAWS = 100

Sampling = Literal["kernel", "leverage"]


def kernel_size_distribution(num_players: int) -> Values:
    """Probability of each coalition size 1 .. M - 1 under the Shapley kernel, proportional to 1 / (s (M - s)). [M - 1]"""
    sizes = np.arange(1, num_players)
    mass = 1.0 / (sizes * (num_players - sizes))
    return mass / mass.sum()


def smallest_budget(num_players: int) -> int:
    """Fewest evaluations that can determine the regression: paired coalitions give one equation a pair."""
    return min(2 * (num_players - 1), 2**num_players - 2)


@dataclass(frozen=True, eq=False)
class CoalitionMatrix:
    """Coalitions of one regression, in pairs (row 2 k + 1 is the complement of row 2 k), and their weights.

    coalitions: [P, M] bool. weights: [P] float64, sum 1. is_sampled: [P] bool, False where a size was enumerated.
    The budget P counts evaluations besides v(empty) and v(grand coalition). draws: the sampled pairs in the order they were drawn, repeats
    among them (position among the sampled pairs); correction: kernel mass over drawing mass of each sampled pair, so that weight =
    share of draws x correction.
    """

    coalitions: Coalitions
    weights: Values
    is_sampled: NDArray[np.bool_]
    draws: NDArray[np.int64]
    correction: Values

    @property
    def budget(self) -> int:
        return len(self.coalitions)

    @property
    def num_players(self) -> int:
        return self.coalitions.shape[1]

    @property
    def is_determined(self) -> bool:
        """Whether the regression has one solution."""
        reduced = self.coalitions[::2, :-1].astype(np.float64) - self.coalitions[::2, -1:]
        return bool(np.linalg.matrix_rank(reduced) == self.num_players - 1)

    @cached_property
    def solver(self) -> KernelShapSolver:
        return KernelShapSolver(self)

    def prefix(self, budget: int) -> CoalitionMatrix:
        """The regression over the first `budget` coalitions, as if the drawing had stopped there. Raises ValueError if that is none."""
        num_enumerated = int((~self.is_sampled[::2]).sum())
        num_sampled = budget // 2 - num_enumerated
        if budget % 2 or not 0 < num_sampled <= len(self.correction):
            raise ValueError(f"{budget} coalitions are no prefix of {self.budget}, of which {2 * num_enumerated} are enumerated")
        end = int(np.flatnonzero(self.draws == num_sampled - 1)[0]) + 1
        counts = np.bincount(self.draws[:end], minlength=num_sampled)
        enumerated = 2 * self.weights[: 2 * num_enumerated : 2]
        sampled = counts / end * self.correction[:num_sampled]
        weights = np.concatenate([enumerated, sampled * (1.0 - enumerated.sum()) / sampled.sum()])
        return CoalitionMatrix(
            self.coalitions[:budget], np.repeat(weights / 2, 2), self.is_sampled[:budget], self.draws[:end], self.correction[:num_sampled]
        )


def sample_coalitions(
    num_players: int,
    budget: int,
    seed: Seed = 0,
    sampling: Sampling = "kernel",
    must_determine: bool = True,
    is_enough: Callable[[CoalitionMatrix], bool] = lambda matrix: matrix.is_determined,
) -> CoalitionMatrix:
    """Draw paired coalitions for a regression with `budget` evaluations.

    With budget >= 2^M - 2 every coalition is taken, with the exact Shapley kernel. Below, pairs (S, complement of S) are drawn with
    sizes after the kernel until `budget` distinct coalitions stand; repeats add to the weight. Sizes 1 and M - 1 are enumerated first
    when the budget leaves enough for the others. A draw that leaves the attributions undetermined (likely only near the smallest
    budget) is drawn again.
    sampling: `leverage` draws all sizes alike, in proportion to a coalition's leverage in the regression (Musco & Witter, 2025), and
    weighs what it draws by kernel over drawing probability; nothing is enumerated.
    must_determine: whether the coalitions alone must determine what is estimated; an estimator with a prior does with fewer.
    is_enough: whether they do; more than attributions may be fitted.
    Raises ValueError when the budget cannot determine M attributions, or is odd.
    """
    least = smallest_budget(num_players)
    if num_players < 2:
        raise ValueError(f"Kernel SHAP needs at least 2 players, there is {num_players}")
    if must_determine and budget < least:
        raise ValueError(
            f"a budget of {budget} evaluations cannot determine {num_players} attributions: paired coalitions need at least "
            f"{least}; raise the budget (about {ENUMERATION_EVALUATIONS_A_PLAYER * num_players} is usual)"
        )
    if budget % 2 or budget < 2:
        raise ValueError(f"coalitions come in pairs: make the budget even and at least 2, not {budget}")
    size_mass = kernel_size_distribution(num_players)
    if num_players <= 20 and budget >= 2**num_players - 2:
        return _all_coalitions(num_players, size_mass)
    generator = np.random.default_rng(seed)
    for _ in range(MAX_DRAWS):
        matrix = _draw(num_players, budget, size_mass, generator, sampling)
        if not must_determine or is_enough(matrix):
            return matrix
    raise ValueError(f"{MAX_DRAWS} draws of {budget} coalitions left the {num_players} attributions undetermined: raise the budget")


def _draw(
    num_players: int, budget: int, size_mass: Values, generator: np.random.Generator, sampling: Sampling
) -> CoalitionMatrix:
    rows: list[NDArray[np.bool_]] = []
    kernel_mass = size_mass.copy()
    if sampling == "kernel" and num_players > 3 and budget >= ENUMERATION_EVALUATIONS_A_PLAYER * num_players:
        rows = list(np.eye(num_players, dtype=bool))
        kernel_mass[[0, -1]] = 0.0
    num_enumerated = len(rows)
    kernel_mass = _by_pair(kernel_mass)
    draw_mass = kernel_mass if sampling == "kernel" else _by_pair(np.ones(num_players - 1))
    draw_mass = draw_mass / draw_mass.sum()
    position: dict[bytes, int] = {}
    draws: list[int] = []
    correction: list[float] = []
    while len(rows) < budget // 2:
        size = int(generator.choice(np.arange(1, len(draw_mass) + 1), p=draw_mass))
        row = np.zeros(num_players, dtype=bool)
        row[generator.choice(num_players, size, replace=False)] = True
        name = min(row.tobytes(), (~row).tobytes())
        if name not in position:
            position[name] = len(position)
            rows.append(row)
            correction.append(kernel_mass[size - 1] / draw_mass[size - 1])
        draws.append(position[name])
    pairs = np.array(rows)
    weights = np.empty(len(pairs))
    weights[:num_enumerated] = 2 * size_mass[0] / num_players if num_enumerated else 0.0
    sampled = np.bincount(draws) * correction
    weights[num_enumerated:] = sampled / sampled.sum() * kernel_mass.sum()
    coalitions = np.stack([pairs, ~pairs], axis=1).reshape(budget, num_players)
    is_sampled = np.repeat(np.arange(len(pairs)) >= num_enumerated, 2)
    return CoalitionMatrix(
        coalitions, np.repeat(weights / weights.sum() / 2, 2), is_sampled, np.array(draws), np.array(correction)
    )


def _by_pair(mass: Values) -> Values:
    """Mass of the sizes 1 .. M - 1 added up over a size and its complement's. [M - 1] -> [M // 2]"""
    pairs = (mass + mass[::-1])[: (len(mass) + 1) // 2]
    if len(mass) % 2:
        pairs[-1] /= 2  # the middle size is its own complement
    return pairs


def _all_coalitions(num_players: int, size_mass: Values) -> CoalitionMatrix:
    """Every coalition but the empty and the grand one, each with its exact Shapley kernel weight."""
    half = np.arange(1, 2 ** (num_players - 1), dtype=np.int64)  # the last player is absent: one of each pair
    pairs = (half[:, None] >> np.arange(num_players)) & 1 == 1
    coalitions = np.stack([pairs, ~pairs], axis=1).reshape(-1, num_players)
    size = coalitions.sum(1)
    per_size = np.bincount(size, minlength=num_players + 1)
    weights = size_mass[size - 1] / per_size[size]
    none = np.zeros(len(coalitions), dtype=bool)
    return CoalitionMatrix(coalitions, weights / weights.sum(), none, np.array([], dtype=np.int64), np.array([]))


class KernelShapSolver(ValueSolver):
    """The regression of one coalition matrix, as linear maps from game values: one matrix product a batch of games.

    attributions = rest @ (v(S) - v(empty)) + share * (v(N) - v(empty)), solved once in float64.
    Raises ValueError when the drawn coalitions do not determine the attributions (too small a budget).
    """

    def __init__(self, matrix: CoalitionMatrix) -> None:
        z = matrix.coalitions.astype(np.float64)
        reduced = z[:, :-1] - z[:, -1:]  # phi_M = total - sum of the others
        gram = reduced.T @ (matrix.weights[:, None] * reduced)
        if np.linalg.matrix_rank(gram, hermitian=True) < len(gram):
            raise ValueError(
                f"{matrix.budget} evaluations leave the {matrix.num_players} attributions undetermined: raise the budget"
            )
        regression = np.linalg.solve(gram, (reduced * matrix.weights[:, None]).T)  # [M - 1, P]
        offset = -regression @ z[:, -1]
        self.rest: Values = np.vstack([regression, -regression.sum(0)])  # [M, P]
        self.share: Values = np.append(offset, 1.0 - offset.sum())  # [M]
        self._coalitions = z
        # Error of a pair counts once: the two rows of a pair carry the same equation, so their mean is the observation.
        leverage = np.einsum("pm,mp->p", reduced, regression).reshape(-1, 2).sum(1)
        pair_map = self.rest[:, 0::2] - self.rest[:, 1::2]  # [M, P / 2]
        sampled = matrix.is_sampled[::2]
        self._is_sampled = sampled
        self._squared_pair_map = pair_map[:, sampled] ** 2 / np.clip(1.0 - leverage[sampled], 0.05, None)

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Shapley value estimates. values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        values, value_empty, value_full = (np.asarray(v, np.float64) for v in (values, value_empty, value_full))
        return (values - value_empty[:, None]) @ self.rest.T + (value_full - value_empty)[:, None] * self.share

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Standard error of each attribution from the sampling of coalitions. Same arguments as `attributions` -> [N, M].

        The heteroscedasticity-consistent (HC2) estimate over the sampled pairs; enumerated sizes add none. 0 where all coalitions
        were taken.
        """
        if not self._is_sampled.any():
            return np.zeros((len(np.asarray(values)), len(self.rest)))
        residual = self._pair_residuals(values, value_empty, value_full)
        return np.sqrt(residual[:, self._is_sampled] ** 2 @ self._squared_pair_map.T)

    def _pair_residuals(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """What the fitted additive game leaves of each pair's equation, (v(S) - v(complement)) / 2. -> [N, P / 2]"""
        phi = self.attributions(values, value_empty, value_full)
        residual = np.asarray(values, np.float64) - np.asarray(value_empty, np.float64)[:, None] - phi @ self._coalitions.T
        pairs = residual.reshape(len(residual), -1, 2)
        return (pairs[:, :, 0] - pairs[:, :, 1]) / 2  # a pair's two equations, turned the same way round


@dataclass(frozen=True)
class KernelShap(Estimator):
    """The regression, over coalitions drawn by `sampling`; with an `l1_reg` over selected players only."""

    name: str
    card: str
    sampling: Sampling
    can_select: ClassVar[bool] = True

    def smallest_budget(self, num_players: int) -> int:
        return smallest_budget(num_players)

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> CoalitionMatrix:
        return sample_coalitions(num_players, budget, seed, self.sampling)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> ValueSolver:
        assert isinstance(sample, CoalitionMatrix)
        return sample.solver if l1_reg == "none" else SelectingSolver(sample, l1_reg)

    def trusted_budget(self, num_players: int) -> int:
        return TRUSTED_EVALUATIONS_A_PLAYER * num_players

    def first_round(self, num_players: int, budget: int) -> int:
        plain = super().first_round(num_players, budget)
        return plain if self.sampling == "leverage" else first_round_after_enumeration(num_players, budget, plain)


def first_round_after_enumeration(num_players: int, budget: int, plain: int) -> int:
    """Where sizes are enumerated they come first, and a prefix needs others beside them; else `plain`."""
    enumeration = ENUMERATION_EVALUATIONS_A_PLAYER * num_players
    return enumeration if budget >= enumeration else plain


KERNEL_SHAP = KernelShap(
    "kernel_shap", "Kernel SHAP: constrained weighted least squares over coalitions paired with their complements", "kernel"
)
LEVERAGE = KernelShap("leverage", "Kernel SHAP regression over paired coalitions drawn in proportion to their leverage", "leverage")
