"""Calibrated Shapley estimates: what the attributions of a data set look like in general, learned from some of its images.

Kernel SHAP treats each image as if nothing were known of it. But the attributions of one classifier's images are alike: where objects
lie, which neighbouring patches go together, how the value depends on a coalition's size. A Gaussian prior over the coefficients of
the size-adjusted regression (`size_adjustment`), learned from images labelled at a higher budget, turns it into a posterior mean:

    coefficients ~ N(m0 + m1 t, B),     t = v(N) - v(empty)
    equation of a pair = features . coefficients + noise,     noise ~ N(0, sigma^2 / (K w))

for the K pairs of a coalition matrix with weights w; directions of sum zero and an equal share of t make efficiency exact. It is still a
linear map from game values, one a matrix of the pool, and tends to Kernel SHAP as the budget grows. It is a *shrinkage* estimator: its
error is smaller, and it is no longer unbiased. `CalibrationReport` says by how much, on held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from core.shapley.kernel_shap import CoalitionMatrix, Values
from core.shapley.size_adjustment import SizeAdjustedSolver, equations, features, zero_sum_basis

HELD_OUT = 4
"""One of so many groups of images is held out of the fit, for the report."""

LEAST_SIGNAL = 0.02
"""Share of its own variance that no direction of the prior falls below, after the references' noise is taken off."""


@dataclass(frozen=True, eq=False)
class Games:
    """Values of N games on one coalition matrix. values [N, P], value_empty [N], value_full [N]."""

    matrix: CoalitionMatrix
    values: Values
    value_empty: Values
    value_full: Values

    def arguments(self) -> tuple[Values, Values, Values]:
        return self.values, self.value_empty, self.value_full


@dataclass(frozen=True, eq=False)
class AttributionPrior:
    """Gaussian prior of the F regression coefficients of a game with M players, given its total t.

    offset, slope: [F], the mean is offset + slope t. covariance: [F, F] around it. noise: variance of a pair's equation around the
    fit. error_scale: the posterior standard deviation is multiplied by it, so that errors of held-out images have the stated size.
    """

    num_players: int
    offset: Values
    slope: Values
    covariance: Values
    noise: float
    error_scale: float = 1.0


class CalibratedSolver:
    """The posterior mean of one coalition matrix as a linear map of game values, with the prior's error bars."""

    def __init__(self, matrix: CoalitionMatrix, prior: AttributionPrior) -> None:
        if matrix.num_players != prior.num_players:
            raise ValueError(f"the calibration is for {prior.num_players} players, the coalitions have {matrix.num_players}")
        self._coalitions, self._prior = matrix.coalitions, prior
        self._features = features(matrix.coalitions)
        precision = len(self._features) * 2 * matrix.weights[::2] / prior.noise  # of each equation: [K]
        information = self._features.T @ (precision[:, None] * self._features)
        posterior = np.linalg.inv(information + np.linalg.inv(prior.covariance))
        self._gain = posterior @ (precision[:, None] * self._features).T  # [F, K]
        self._basis = zero_sum_basis(prior.num_players)
        own = posterior[: prior.num_players - 1, : prior.num_players - 1]
        self._deviation: Values = prior.error_scale * np.sqrt(np.einsum("mf,fg,mg->m", self._basis, own, self._basis))

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Posterior means. values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        target, total = equations(self._coalitions, values, value_empty, value_full)
        mean = self._prior.offset + total[:, None] * self._prior.slope
        found = mean + (target - mean @ self._features.T) @ self._gain.T
        return total[:, None] / self._prior.num_players + found[:, : self._prior.num_players - 1] @ self._basis.T

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Posterior standard deviation, the same for every image of the matrix. [N, M]"""
        return np.tile(self._deviation, (len(values), 1))


@dataclass(frozen=True)
class CalibrationReport:
    """What calibrated estimates are worth on held-out images, at the budget in use, against references of a high budget.

    relative_error, kernel_shap_relative_error (NaN where that has no solution): root of summed squared errors over summed squared
    attributions, the references' own noise taken off. bias: the same of the mean error over images, what is common to all (pools make
    it small). slope: of estimates regressed on references; below 1 is shrinkage. z_spread: root mean square of errors over their
    stated size; the prior that is used has its error bars multiplied by it.
    """

    num_fitted: int
    num_held_out: int
    budget: int
    relative_error: float
    kernel_shap_relative_error: float
    bias: float
    slope: float
    z_spread: float


def is_held_out(group: int) -> bool:
    """Whether a group of images is held out of the fit that is reported."""
    return group % HELD_OUT == HELD_OUT - 1


def calibrate(references: list[Games], designs: list[Games | None]) -> tuple[AttributionPrior, CalibrationReport]:
    """The prior of all images, and a report from a fit without every fourth group of them.

    references[k], designs[k]: the same images' games at a high budget, and at the budget that will be used (needed of the groups that
    `is_held_out` names). Raises ValueError for too few images, as `fit_prior`, or too few groups.
    """
    held_out = [k for k, design in enumerate(designs) if is_held_out(k) and design is not None]
    fitted = [k for k in range(len(references)) if not is_held_out(k)]
    if not held_out:
        raise ValueError(f"calibration needs at least {HELD_OUT} groups of images, there are {len(references)}")
    prior = fit_prior([references[k] for k in fitted])
    num_fitted = sum(len(references[k].values) for k in fitted)
    tried = [design for k in held_out for design in [designs[k]] if design is not None]
    report = _report(prior, [references[k] for k in held_out], tried, num_fitted)
    whole = fit_prior(references)
    return replace(whole, error_scale=report.z_spread), report


def _report(prior: AttributionPrior, references: list[Games], designs: list[Games], num_fitted: int) -> CalibrationReport:
    solvers = [SizeAdjustedSolver(games.matrix) for games in references]
    truth = np.concatenate([solver.attributions(*games.arguments()) for solver, games in zip(solvers, references, strict=True)])
    truth_error = np.concatenate([solver.standard_error(*games.arguments()) for solver, games in zip(solvers, references, strict=True)])
    is_determined = all(games.matrix.is_determined for games in designs)
    plain = [games.matrix.solver.attributions(*games.arguments()) for games in designs] if is_determined else [np.full(truth.shape, np.nan)]
    estimates, deviations = [], []
    for games in designs:
        calibrated = CalibratedSolver(games.matrix, prior)
        estimates.append(calibrated.attributions(*games.arguments()))
        deviations.append(calibrated.standard_error(*games.arguments()))
    estimate, deviation = np.concatenate(estimates), np.concatenate(deviations)
    return held_out_report(
        truth, truth_error, estimate, deviation, np.concatenate(plain), budget=designs[0].matrix.budget, num_fitted=num_fitted
    )


def held_out_report(
    truth: Values, truth_error: Values, estimate: Values, deviation: Values, plain: Values | None, *, budget: int, num_fitted: int
) -> CalibrationReport:
    """Estimates against references, both [N, M], with their error bars. plain: Kernel SHAP's estimates at the same budget."""
    noise = np.square(truth_error).sum()
    size = max(np.square(truth).sum() - noise, 1e-12)
    error = estimate - truth

    def relative(found: Values) -> float:
        return float(np.sqrt(np.maximum(np.square(found - truth).sum() - noise, 0.0) / size))

    common = np.square(error.mean(0)).sum() * len(error) - np.square(error - error.mean(0)).sum() / max(1, len(error) - 1)
    centred = truth - truth.mean(0)
    signal = max(np.square(centred).sum() - noise, 1e-12)
    return CalibrationReport(
        num_fitted=num_fitted,
        num_held_out=len(truth),
        budget=budget,
        relative_error=relative(estimate),
        kernel_shap_relative_error=float("nan") if plain is None else relative(plain),
        bias=float(np.sqrt(max(common, 0.0) / size)),
        slope=float((centred * (estimate - estimate.mean(0))).sum() / signal),
        z_spread=float(np.sqrt(np.mean(np.square(error) / (np.square(deviation) + np.square(truth_error))))),
    )


def fit_prior(references: list[Games]) -> AttributionPrior:
    """The prior from games valued at a high budget; each matrix has its own images, so that its error is not common to all.

    Raises ValueError with fewer images than M players: the covariance would be mostly shrinkage.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    num_players = references[0].matrix.num_players
    num_images = sum(len(games.values) for games in references)
    if num_images < num_players:
        raise ValueError(f"calibration needs at least {num_players} images for {num_players} players, not {num_images}")
    solvers = [SizeAdjustedSolver(games.matrix) for games in references]
    solved = [solver.coefficients(*games.arguments()) for solver, games in zip(solvers, references, strict=True)]
    found = np.concatenate([coefficients for coefficients, _, _ in solved])
    total = np.concatenate([totals for _, _, totals in solved])
    regressors = np.column_stack([np.ones(num_images), total])
    mean = np.linalg.lstsq(regressors, found, rcond=None)[0]  # [2, F]
    centred = found - regressors @ mean
    scale = np.maximum(centred.std(0), 1e-12)
    sample = (centred / scale).T @ (centred / scale) / (num_images - 2)
    share = float(ledoit_wolf_shrinkage(centred / scale, assume_centered=True))
    shrunk = (1.0 - share) * sample + share * np.diag(np.diag(sample))
    sampling = sum(solver.coefficient_covariance(r) * len(r) for solver, (_, r, _) in zip(solvers, solved, strict=True)) / num_images
    eigenvalues, eigenvectors = np.linalg.eigh(shrunk - sampling / np.outer(scale, scale))
    correlation = (eigenvectors * np.maximum(eigenvalues, LEAST_SIGNAL)) @ eigenvectors.T
    noise = np.concatenate([solver.noise(r) for solver, (_, r, _) in zip(solvers, solved, strict=True)])
    return AttributionPrior(num_players, mean[0], mean[1], correlation * np.outer(scale, scale), max(float(noise.mean()), 1e-12))
