"""Kernel SHAP with a few non-zero attributions, as `shap.KernelExplainer` does by default: `l1_reg`.

An L1 path over the weighted regression picks the players, and the constrained regression is solved over these alone. Off by default
here: it is another estimator, which sets most attributions of a picture to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.shapley.estimator import Values, ValueSolver
from core.shapley.l1_reg import parse_l1_reg

if TYPE_CHECKING:
    from core.shapley.kernel_shap import CoalitionMatrix


class SelectingSolver(ValueSolver):
    """Kernel SHAP attributions of a coalition matrix with selected players only; the others are 0.

    l1_reg: `num_features(K)`, `aic` or `bic`. There is no error bar for what was selected by the same data: standard errors are NaN.
    """

    def __init__(self, matrix: CoalitionMatrix, l1_reg: str) -> None:
        selection = parse_l1_reg(l1_reg)
        if selection is None:
            raise ValueError("without selection the solver is KernelShapSolver")
        self._selection = selection
        self._z = matrix.coalitions.astype(np.float64)
        self._weights = matrix.weights
        size = self._z.sum(1)
        # Both forms of an equation, sum over S = v(S) - v(empty) and sum over the complement = v(N) - v(S), as in the shap library.
        scale = np.sqrt(np.concatenate([matrix.weights * (matrix.num_players - size), matrix.weights * size]))
        self._scale = scale
        self._design = scale[:, None] * np.concatenate([self._z, self._z - 1.0])

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        games = np.asarray(values, np.float64) - np.asarray(value_empty, np.float64)[:, None]
        totals = np.asarray(value_full, np.float64) - np.asarray(value_empty, np.float64)
        return np.stack([self._solve(game, total) for game, total in zip(games, totals, strict=True)])

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """NaN, [N, M]."""
        return np.full((len(values), self._z.shape[1]), np.nan)

    def _solve(self, game: Values, total: float) -> Values:
        chosen = self._select(self._scale * np.concatenate([game, game - total]))
        phi = np.zeros(self._z.shape[1])
        if len(chosen) == 0:
            return phi + total / len(phi)  # nothing stands out: all alike
        rest, last = chosen[:-1], chosen[-1]
        reduced = self._z[:, rest] - self._z[:, [last]]
        root = np.sqrt(self._weights)
        solved = np.linalg.lstsq(root[:, None] * reduced, root * (game - total * self._z[:, last]), rcond=None)[0]
        phi[rest], phi[last] = solved, total - solved.sum()
        return phi

    def _select(self, target: Values) -> NDArray[np.int64]:
        from sklearn.linear_model import LassoLarsIC, lars_path
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if isinstance(self._selection, int):
            active = lars_path(self._design, target, max_iter=min(self._selection, self._z.shape[1]))[1]
            return np.sort(np.asarray(active, dtype=np.int64))
        model = make_pipeline(StandardScaler(with_mean=False), LassoLarsIC(criterion=self._selection))
        return np.flatnonzero(model.fit(self._design, target)[-1].coef_)
