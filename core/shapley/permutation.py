"""Shapley values by antithetic permutation sampling: each permutation of the players is walked forwards and backwards.

A walk's marginal contributions are one unbiased estimate of all Shapley values, and sum to v(N) - v(empty). The coalitions of the
backward walk are the complements of the forward walk's (Mitchell et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.shapley.estimator import Coalitions, Estimator, Learned, Sample, Seed, Values, ValueSolver

POOLED_DEGREES = 4
"""Weight of the variance common to a picture's players, in permutations, when a player's own is estimated from few."""


def evaluations_per_permutation(num_players: int) -> int:
    """Coalitions of a permutation walked both ways, the empty and the grand one not counted."""
    return 2 * (num_players - 1)


class PermutationDesign(ValueSolver):
    """Coalitions of several antithetic permutations; its own solver.

    coalitions: [P, M] bool, permutation after permutation; row 2 k + 1 is the complement of row 2 k.
    The budget is used in whole permutations: the largest multiple of 2 (M - 1) in it.
    Raises ValueError when it holds fewer than two, which leaves no error bar.
    """

    def __init__(self, num_players: int, budget: int, seed: Seed = 0) -> None:
        if num_players < 2:
            raise ValueError(f"permutation sampling needs at least 2 players, there is {num_players}")
        per_permutation = evaluations_per_permutation(num_players)
        number = budget // per_permutation
        if number < 2:
            raise ValueError(
                f"a budget of {budget} evaluations holds no two antithetic permutations of {num_players} players: permutation sampling "
                f"needs at least {2 * per_permutation}, and uses multiples of {per_permutation}"
            )
        generator = np.random.default_rng(seed)
        self._orders = np.stack([generator.permutation(num_players) for _ in range(number)])
        self.coalitions: Coalitions = np.concatenate([_walk(order) for order in self._orders])

    @property
    def budget(self) -> int:
        return len(self.coalitions)

    @property
    def num_players(self) -> int:
        return self._orders.shape[1]

    @property
    def solver(self) -> PermutationDesign:
        return self

    def prefix(self, budget: int) -> PermutationDesign:
        """The first permutations, as many as fit in `budget`. Raises ValueError below two."""
        number = budget // evaluations_per_permutation(self.num_players)
        if not 2 <= number <= len(self._orders):
            raise ValueError(f"{budget} coalitions are no prefix of {self.budget} in at least two whole permutations")
        shorter = object.__new__(PermutationDesign)
        shorter._orders = self._orders[:number]
        shorter.coalitions = self.coalitions[: number * evaluations_per_permutation(self.num_players)]
        return shorter

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Shapley value estimates. values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        return self._walked(values, value_empty, value_full).mean(1)

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Standard error of each attribution from the spread between permutations. Same arguments -> [N, M].

        The variance of a player over a handful of permutations is itself uncertain: it is pooled with the mean over the picture's players,
        which counts as `POOLED_DEGREES` permutations.
        """
        walked = self._walked(values, value_empty, value_full)
        number = walked.shape[1]
        own = walked.var(1, ddof=1)
        pooled = ((number - 1) * own + POOLED_DEGREES * own.mean(1, keepdims=True)) / (number - 1 + POOLED_DEGREES)
        return np.sqrt(pooled / number)

    def _walked(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Estimate of each antithetic permutation. [N, R, M]"""
        values, empty, full = (np.asarray(v, np.float64) for v in (values, value_empty, value_full))
        pairs = values.reshape(len(values), len(self._orders), -1, 2)
        ends = [np.broadcast_to(v[:, None, None], (len(values), len(self._orders), 1)) for v in (empty, full)]
        forwards = np.concatenate([ends[0], pairs[..., 0], ends[1]], axis=2)  # v of the first 0 .. M players
        backwards = np.concatenate([ends[1], pairs[..., 1], ends[0]], axis=2)  # v of the others
        steps = (np.diff(forwards, axis=2) - np.diff(backwards, axis=2)) / 2
        out = np.empty_like(steps)
        np.put_along_axis(out, np.broadcast_to(self._orders, steps.shape), steps, axis=2)
        return out


def _walk(order: NDArray[np.int64]) -> Coalitions:
    """Prefixes of 1 .. M - 1 players, each followed by its complement. [2 (M - 1), M]"""
    rank = np.argsort(order)
    prefixes = rank[None, :] < np.arange(1, len(order))[:, None]
    return np.stack([prefixes, ~prefixes], axis=1).reshape(-1, len(order))


@dataclass(frozen=True)
class Permutation(Estimator):
    """Antithetic permutations, each walked whole."""

    name: str = "permutation"
    card: str = "antithetic permutation sampling (unbiased)"

    def smallest_budget(self, num_players: int) -> int:
        return 2 * evaluations_per_permutation(num_players)

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> PermutationDesign:
        return PermutationDesign(num_players, budget, seed)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> PermutationDesign:
        assert isinstance(sample, PermutationDesign)
        return sample


PERMUTATION = Permutation()
