"""Kernel SHAP with the effect of a coalition's size taken out: the same estimand, a fraction of the variance.

What an additive game cannot fit of a classifier's game is, for the most part, a function of how many patches are there at all. Let
h be any function of the size that is 0 for the empty and the grand coalition. By symmetry its Shapley values are 0, and in Kernel SHAP's
weighted least squares it is orthogonal to every direction in which attributions can differ at equal sum. So a regression that fits

    (v(S) - v(complement of S)) / 2  =  1/2 sum_i (+-1) phi_i  +  h(|S|)

beside the attributions has the same limit (with all coalitions it *is* the Shapley value), is as consistent, and leaves the noise of a
sample of coalitions without h. Here h(|S|) = s (1 - s^2) (c_0 + c_1 s^2 + c_2 s^4) with s = (2 |S| - M) / M.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from core.shapley.estimator import Coalitions, Estimator, Learned, Sample, Seed, Values, ValueSolver
from core.shapley.kernel_shap import (
    TRUSTED_EVALUATIONS_A_PLAYER,
    CoalitionMatrix,
    first_round_after_enumeration,
    sample_coalitions,
)

NUM_SIZE_TERMS = 3


def num_size_terms(num_players: int) -> int:
    """Terms of h that differ over the sizes there are."""
    return min(NUM_SIZE_TERMS, (num_players - 1) // 2)


def smallest_adjusted_budget(num_players: int) -> int:
    """Fewest evaluations that can determine attributions and size terms: one equation a pair."""
    return min(2 * (num_players - 1 + num_size_terms(num_players)), 2**num_players - 2)


def features(coalitions: Coalitions) -> Values:
    """Regressors of each pair's equation: directions of sum zero (`zero_sum_basis`), then the size terms. [P, M] -> [P / 2, M - 1 + J]"""
    num_players = coalitions.shape[1]
    size = (2.0 * coalitions[::2].sum(1) - num_players) / num_players
    terms = [size * (1.0 - size**2) * size ** (2 * j) for j in range(num_size_terms(num_players))]
    return np.column_stack([(coalitions[::2] - 0.5) @ zero_sum_basis(num_players), *terms])


@lru_cache(maxsize=8)
def zero_sum_basis(num_players: int) -> Values:
    """Orthonormal columns that span the vectors of sum zero. [M, M - 1]"""
    columns = np.linalg.qr(np.column_stack([np.ones(num_players), np.eye(num_players)[:, :-1]]))[0]
    return columns[:, 1:]


def equations(coalitions: Coalitions, values: Values, value_empty: Values, value_full: Values) -> tuple[Values, Values]:
    """What the features have to explain of each pair's equation, and the total to be shared out. -> [N, P / 2], [N]

    values [N, P], value_empty [N], value_full [N]. With every player given an equal share, the rest has sum zero.
    """
    values, empty, full = (np.asarray(v, np.float64) for v in (values, value_empty, value_full))
    total = full - empty
    num_players = coalitions.shape[1]
    equal_share = (coalitions[::2] - 0.5).sum(1) / num_players
    return (values[:, 0::2] - values[:, 1::2]) / 2 - total[:, None] * equal_share, total


class SizeAdjustedSolver(ValueSolver):
    """The adjusted regression of one coalition matrix. Raises ValueError when its coalitions do not determine it."""

    def __init__(self, matrix: CoalitionMatrix) -> None:
        self.coalitions = matrix.coalitions
        self._features = features(matrix.coalitions)
        weighted, gram = _normal_equations(matrix, self._features)
        if not _is_regular(gram):
            least = smallest_adjusted_budget(matrix.num_players)
            raise ValueError(
                f"{matrix.budget} evaluations leave {matrix.num_players} attributions and the size terms undetermined: raise the budget "
                f"(at least {least})"
            )
        self._map = np.linalg.solve(gram, weighted.T)  # coefficients of each pair's equation: [F, K]
        self._basis = zero_sum_basis(matrix.num_players)
        self._is_sampled = matrix.is_sampled[::2]
        leverage = np.einsum("kf,fk->k", self._features, self._map)
        self._inflation = 1.0 / np.clip(1.0 - leverage, 0.05, None)  # HC2
        self._pair_weights = 2 * matrix.weights[::2]

    def coefficients(self, values: Values, value_empty: Values, value_full: Values) -> tuple[Values, Values, Values]:
        """Coefficients [N, F], residuals [N, P / 2] and totals [N] of N games."""
        target, total = equations(self.coalitions, values, value_empty, value_full)
        found = target @ self._map.T
        return found, target - found @ self._features.T, total

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Shapley value estimates. values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        found, _, total = self.coefficients(values, value_empty, value_full)
        num_players = len(self._basis)
        return total[:, None] / num_players + found[:, : num_players - 1] @ self._basis.T

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Standard error of each attribution from the sampling of coalitions (HC2), as `KernelShapSolver.standard_error`. [N, M]"""
        _, residual, _ = self.coefficients(values, value_empty, value_full)
        sampled = self._is_sampled
        gain = self._basis @ self._map[: self._basis.shape[1]]  # [M, K]
        squared = gain[:, sampled] ** 2 * self._inflation[sampled]
        return np.sqrt(residual[:, sampled] ** 2 @ squared.T)

    def coefficient_covariance(self, residual: Values) -> Values:
        """Mean over games of the coefficients' sampling covariance, from residuals [N, P / 2]. [F, F]"""
        variance = (residual**2).mean(0) * self._inflation * self._is_sampled
        return (self._map * variance) @ self._map.T

    def noise(self, residual: Values) -> Values:
        """Variance of an equation around the fit, from residuals [N, P / 2], kernel weighted. [N]"""
        num_pairs, num_features = self._features.shape
        return residual**2 @ self._pair_weights * num_pairs / max(1, num_pairs - num_features)


@dataclass(frozen=True)
class SizeAdjusted(Estimator):
    """The regression with size terms beside the attributions."""

    name: str = "size_adjusted"
    card: str = "Kernel SHAP with the effect of a coalition's size taken out: the same limit, less variance"

    def smallest_budget(self, num_players: int) -> int:
        return smallest_adjusted_budget(num_players)

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> CoalitionMatrix:
        if num_players > 1 and budget < smallest_adjusted_budget(num_players):
            raise ValueError(
                f"a budget of {budget} evaluations cannot determine {num_players} attributions and the size terms: at least "
                f"{smallest_adjusted_budget(num_players)} are needed"
            )
        return sample_coalitions(num_players, budget, seed, is_enough=determines_size_terms)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> SizeAdjustedSolver:
        assert isinstance(sample, CoalitionMatrix)
        return SizeAdjustedSolver(sample)

    def trusted_budget(self, num_players: int) -> int:
        return TRUSTED_EVALUATIONS_A_PLAYER * num_players

    def first_round(self, num_players: int, budget: int) -> int:
        return first_round_after_enumeration(num_players, budget, super().first_round(num_players, budget))


def determines_size_terms(matrix: CoalitionMatrix) -> bool:
    """Whether the adjusted regression has one solution."""
    return matrix.is_determined and _is_regular(_normal_equations(matrix, features(matrix.coalitions))[1])


def _normal_equations(matrix: CoalitionMatrix, regressors: Values) -> tuple[Values, Values]:
    """Weighted regressors [K, F] and their Gram matrix [F, F]."""
    weighted = 2 * matrix.weights[::2, None] * regressors
    return weighted, weighted.T @ regressors


def _is_regular(gram: Values) -> bool:
    return bool(np.linalg.matrix_rank(gram, hermitian=True) == len(gram))


SIZE_ADJUSTED = SizeAdjusted()
