"""Calibrated Shapley estimates: what the attributions of a data set look like in general, learned from a few hundred of its images.

Kernel SHAP treats each image as if nothing were known of it. But the attributions of one classifier's images are alike: where objects
lie, which neighbouring patches go together, how large interactions are. A Gaussian prior with these means and covariances, learned
from images labelled at a high budget, turns the regression into a posterior mean:

    attributions = m0 + m1 t + Q theta,     theta ~ N(0, B),     t = v(N) - v(empty)
    (v(S) - v(complement of S)) / 2 = 1/2 sum_i (+-1) attributions_i + noise,     noise ~ N(0, sigma^2 / (K w))

for the K pairs of a coalition matrix with weights w; Q spans the space of sum zero, so that efficiency holds exactly. It is still a
linear map from game values, one a matrix of the pool, and tends to Kernel SHAP as the budget grows. It is a *shrinkage* estimator: its
error is smaller, and no longer unbiased. `Calibration.report` says by how much, on held-out images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import null_space

from core.kernel_shap import CoalitionMatrix, Values

HELD_OUT = 4
"""One of so many groups of images is held out of the fit, for the report."""


@dataclass(frozen=True, eq=False)
class Games:
    """Values of N games on one coalition matrix. values [N, P], value_empty [N], value_full [N]."""

    matrix: CoalitionMatrix
    values: Values
    value_empty: Values
    value_full: Values

    def attributions(self) -> Values:
        return self.matrix.solver.attributions(self.values, self.value_empty, self.value_full)

    def standard_error(self) -> Values:
        return self.matrix.solver.standard_error(self.values, self.value_empty, self.value_full)


@dataclass(frozen=True, eq=False)
class AttributionPrior:
    """Gaussian prior of M attributions given their sum t.

    offset: [M], sums to 0. slope: [M], sums to 1: the mean is offset + slope t. covariance: [M, M] around it, rows sum to 0.
    noise: variance of a pair's equation around the best additive game. error_scale: the posterior standard deviation is multiplied by
    it, so that errors of held-out images have the stated size.
    """

    offset: Values
    slope: Values
    covariance: Values
    noise: float
    error_scale: float = 1.0

    @property
    def num_players(self) -> int:
        return len(self.offset)


class CalibratedSolver:
    """The posterior mean of one coalition matrix as a linear map of game values, with the prior's error bars."""

    def __init__(self, matrix: CoalitionMatrix, prior: AttributionPrior) -> None:
        if matrix.num_players != prior.num_players:
            raise ValueError(f"the calibration is for {prior.num_players} players, the coalitions have {matrix.num_players}")
        basis = null_space(np.ones((1, prior.num_players)))  # Q: [M, M - 1]
        signs = matrix.coalitions[::2] - 0.5  # x / 2 of each pair's equation: [K, M]
        precision = len(signs) * 2 * matrix.weights[::2] / prior.noise  # of each equation: [K]
        design = signs @ basis
        information = design.T @ (precision[:, None] * design)
        posterior = np.linalg.inv(information + np.linalg.inv(basis.T @ prior.covariance @ basis))
        gain = basis @ posterior @ (precision[:, None] * design).T  # [M, K]: from what the prior mean leaves of the equations
        self._rest: Values = np.repeat(gain / 2, 2, axis=1) * np.tile([1.0, -1.0], len(signs))  # [M, P]
        self._share: Values = prior.slope - gain @ (signs @ prior.slope)
        self._offset: Values = prior.offset - gain @ (signs @ prior.offset)
        covariance = basis @ posterior @ basis.T
        self._deviation: Values = prior.error_scale * np.sqrt(covariance.diagonal())

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Posterior means. values [N, P], value_empty [N], value_full [N] -> [N, M], each row summing to v(N) - v(empty)."""
        values, empty, full = (np.asarray(v, np.float64) for v in (values, value_empty, value_full))
        return values @ self._rest.T + (full - empty)[:, None] * self._share + self._offset

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Posterior standard deviation, the same for every image of the matrix. [N, M]"""
        return np.tile(self._deviation, (len(values), 1))


@dataclass(frozen=True)
class CalibrationReport:
    """What calibrated estimates are worth on held-out images, at the budget in use, against references of a high budget.

    relative_error, kernel_shap_relative_error: root of summed squared errors over summed squared attributions, the references' own
    noise taken off. bias: the same of the mean error over images, what is common to all (pools make it small). slope: of estimates
    regressed on references; below 1 is shrinkage. z_spread: root mean square of errors over their stated size; the prior that is used
    has its error bars multiplied by it.
    """

    num_fitted: int
    num_held_out: int
    budget: int
    relative_error: float
    kernel_shap_relative_error: float
    bias: float
    slope: float
    z_spread: float


def calibrate(references: list[Games], designs: list[Games]) -> tuple[AttributionPrior, CalibrationReport]:
    """The prior of all images, and a report from a fit without every fourth group of them.

    references[k], designs[k]: the same images' games at a high budget, and at the budget that will be used. Raises ValueError for too
    few images, as `fit_prior`, or fewer than two groups.
    """
    held_out = [k for k in range(len(references)) if k % HELD_OUT == HELD_OUT - 1]
    fitted = [k for k in range(len(references)) if k % HELD_OUT != HELD_OUT - 1]
    if not held_out:
        raise ValueError(f"calibration needs at least {HELD_OUT} groups of images, there are {len(references)}")
    prior = fit_prior([references[k] for k in fitted])
    num_fitted = sum(len(references[k].values) for k in fitted)
    report = _report(prior, [references[k] for k in held_out], [designs[k] for k in held_out], num_fitted)
    whole = fit_prior(references)
    return replace(whole, error_scale=report.z_spread), report


def _report(prior: AttributionPrior, references: list[Games], designs: list[Games], num_fitted: int) -> CalibrationReport:
    truth = np.concatenate([games.attributions() for games in references])
    truth_error = np.concatenate([games.standard_error() for games in references])
    plain = np.concatenate([games.attributions() for games in designs])
    estimates, deviations = [], []
    for games in designs:
        solver = CalibratedSolver(games.matrix, prior)
        estimates.append(solver.attributions(games.values, games.value_empty, games.value_full))
        deviations.append(solver.standard_error(games.values, games.value_empty, games.value_full))
    estimate, deviation = np.concatenate(estimates), np.concatenate(deviations)
    noise = np.square(truth_error).sum()
    size = max(np.square(truth).sum() - noise, 1e-12)
    error = estimate - truth
    common = np.square(error.mean(0)).sum() * len(error) - np.square(error - error.mean(0)).sum() / max(1, len(error) - 1)
    centred = truth - truth.mean(0)
    signal = max(np.square(centred).sum() - noise, 1e-12)
    return CalibrationReport(
        num_fitted=num_fitted,
        num_held_out=len(truth),
        budget=designs[0].matrix.budget,
        relative_error=float(np.sqrt(max(np.square(error).sum() - noise, 0.0) / size)),
        kernel_shap_relative_error=float(np.sqrt(max(np.square(plain - truth).sum() - noise, 0.0) / size)),
        bias=float(np.sqrt(max(common, 0.0) / size)),
        slope=float((centred * (estimate - estimate.mean(0))).sum() / signal),
        z_spread=float(np.sqrt(np.mean(np.square(error) / (np.square(deviation) + np.square(truth_error))))),
    )


def fit_prior(references: list[Games]) -> AttributionPrior:
    """The prior from games valued at a high budget; each matrix has its own images, so that its error is not common to all.

    Raises ValueError with fewer images than M players: the covariance would be mostly shrinkage.
    """
    phi = np.concatenate([games.attributions() for games in references])
    error = np.concatenate([games.standard_error() for games in references])
    total = np.concatenate([games.value_full - games.value_empty for games in references]).astype(np.float64)
    num_images, num_players = phi.shape
    if num_images < num_players:
        raise ValueError(f"calibration needs at least {num_players} images for {num_players} players, not {num_images}")
    mean_total = total.mean()
    centred = total - mean_total
    slope = centred @ (phi - phi.mean(0)) / (centred @ centred) if centred @ centred > 1e-12 else np.full(num_players, 1 / num_players)
    slope = slope + (1.0 - slope.sum()) / num_players
    offset = phi.mean(0) - slope * mean_total
    offset = offset - offset.mean()
    basis = null_space(np.ones((1, num_players)))
    theta = (phi - offset - slope * total[:, None]) @ basis
    sample = theta.T @ theta / (num_images - 2)
    signal = _shrunk(theta, sample) - np.mean(error**2) * num_players / (num_players - 1) * np.eye(num_players - 1)
    eigenvalues, eigenvectors = np.linalg.eigh(signal)
    eigenvalues = np.clip(eigenvalues, 0.02 * np.trace(sample) / len(sample), None)
    covariance = basis @ (eigenvectors * eigenvalues) @ eigenvectors.T @ basis.T
    return AttributionPrior(offset, slope, covariance, _noise(references))


def _shrunk(theta: Values, sample: Values) -> Values:
    """The sample covariance drawn towards a multiple of the identity (Ledoit & Wolf, 2004)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    share = float(ledoit_wolf_shrinkage(theta, assume_centered=True))
    return (1.0 - share) * sample + share * np.trace(sample) / len(sample) * np.eye(len(sample))


def _noise(references: list[Games]) -> float:
    """Variance of a pair's equation around the best additive game, over all images and pairs, Shapley kernel weighted."""
    found = []
    for games in references:
        residual = games.matrix.solver.pair_residuals(games.values, games.value_empty, games.value_full)
        num_pairs, free = residual.shape[1], residual.shape[1] - (games.matrix.num_players - 1)
        found.append((residual**2 @ (2 * games.matrix.weights[::2])) * num_pairs / max(free, 1))
    return float(np.concatenate(found).mean())
