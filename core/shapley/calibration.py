"""Calibrated Shapley estimates: what the attributions of a data set look like in general, learned from some of its pictures.

Kernel SHAP treats each picture as if nothing were known of it. But the attributions of one classifier's pictures are alike: where objects
lie, which neighbouring patches go together, how the value depends on a coalition's size. A Gaussian prior over the coefficients of
the size-adjusted regression (`size_adjustment`), learned from pictures labelled at a higher budget, turns it into a posterior mean:

    coefficients ~ N(m0 + m1 t, B),     t = v(N) - v(empty)
    equation of a pair = features . coefficients + noise,     noise ~ N(0, sigma^2 / (K w))

for the K pairs of a coalition matrix with weights w; directions of sum zero and an equal share of t make efficiency exact. It is still a
linear map from game values, one a matrix of the pool, and tends to Kernel SHAP as the budget grows. It is a *shrinkage* estimator: its
error is smaller, and it is no longer unbiased. `CalibrationReport` says by how much, on held-out pictures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from core.shapley.estimator import Estimator, Learned, Sample, Seed, Values, ValueSolver, role_seed
from core.shapley.kernel_shap import CoalitionMatrix, sample_coalitions
from core.shapley.learning import (
    Arrays,
    CalibrationReport,
    Features,
    GamesRequest,
    Learning,
    PictureGames,
    Progress,
    held_out_report,
)
from core.shapley.size_adjustment import SIZE_ADJUSTED, SizeAdjustedSolver, equations, features, zero_sum_basis

NUM_GROUPS = 16
"""Groups of pictures, each with coalitions of its own, so that the references' error is not common to all pictures."""

HELD_OUT_EVERY = 4
"""Every fourth group of pictures is held out of the fit that is reported."""

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
class AttributionPrior(Learned):
    """Gaussian prior of the F regression coefficients of a game with M players, given its total t.

    offset, slope: [F], the mean is offset + slope t. covariance: [F, F] around it. noise: variance of a pair's equation around the
    fit. error_scale: the posterior standard deviation is multiplied by it, so that errors of held-out pictures have the stated size.
    """

    num_players: int
    offset: Values
    slope: Values
    covariance: Values
    noise: float
    error_scale: float = 1.0

    def to_bytes(self) -> bytes:
        content = io.BytesIO()
        np.savez(content, **{name: np.asarray(value) for name, value in asdict(self).items()})  # type: ignore[arg-type]
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> AttributionPrior:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] if arrays[name].ndim else arrays[name].item() for name in arrays.files}
        return cls(**found)


class CalibratedSolver(ValueSolver):
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
        """Posterior standard deviation, the same for every picture of the matrix. [N, M]"""
        return np.tile(self._deviation, (len(values), 1))


def is_held_out(group: int) -> bool:
    """Whether a group of pictures is held out of the fit that is reported."""
    return group % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def calibrate(references: Sequence[Games], designs: Sequence[Games | None]) -> tuple[AttributionPrior, CalibrationReport]:
    """The prior of all groups of pictures, and a report from a fit without those that are held out.

    references[k]: games of a group at a high budget. designs[k]: of a group that is held out, the same games at the budget that will be
    used; None of the others. Raises ValueError for too few pictures, as `fit_prior`, or no group held out.
    """
    held_out = [k for k, design in enumerate(designs) if design is not None]
    fitted = [k for k, design in enumerate(designs) if design is None]
    if not held_out or not fitted:
        raise ValueError(
            f"calibration needs at least {HELD_OUT_EVERY} groups of pictures, one of them held out; {len(references)} have pictures that "
            "can be read"
        )
    prior = fit_prior([references[k] for k in fitted])
    num_fitted = sum(len(references[k].values) for k in fitted)
    tried = [design for k in held_out for design in [designs[k]] if design is not None]
    report = _report(prior, [references[k] for k in held_out], tried, num_fitted)
    whole = fit_prior(references)
    return replace(whole, error_scale=report.z_spread), replace(report, is_refitted=True)


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


def fit_prior(references: Sequence[Games]) -> AttributionPrior:
    """The prior from games valued at a high budget; each matrix has its own pictures, so that its error is not common to all.

    Raises ValueError with fewer pictures than M players: the covariance would be mostly shrinkage.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    num_players = references[0].matrix.num_players
    num_pictures = sum(len(games.values) for games in references)
    if num_pictures < num_players:
        raise ValueError(f"calibration needs at least {num_players} pictures for {num_players} players, not {num_pictures}")
    solvers = [SizeAdjustedSolver(games.matrix) for games in references]
    solved = [solver.coefficients(*games.arguments()) for solver, games in zip(solvers, references, strict=True)]
    found = np.concatenate([coefficients for coefficients, _, _ in solved])
    total = np.concatenate([totals for _, _, totals in solved])
    regressors = np.column_stack([np.ones(num_pictures), total])
    mean = np.linalg.lstsq(regressors, found, rcond=None)[0]  # [2, F]
    centred = found - regressors @ mean
    scale = np.maximum(centred.std(0), 1e-12)
    sample = (centred / scale).T @ (centred / scale) / (num_pictures - 2)
    share = float(ledoit_wolf_shrinkage(centred / scale, assume_centered=True))
    shrunk = (1.0 - share) * sample + share * np.diag(np.diag(sample))
    sampling = sum(solver.coefficient_covariance(r) * len(r) for solver, (_, r, _) in zip(solvers, solved, strict=True)) / num_pictures
    eigenvalues, eigenvectors = np.linalg.eigh(shrunk - sampling / np.outer(scale, scale))
    correlation = (eigenvectors * np.maximum(eigenvalues, LEAST_SIGNAL)) @ eigenvectors.T
    noise = np.concatenate([solver.noise(r) for solver, (_, r, _) in zip(solvers, solved, strict=True)])
    return AttributionPrior(num_players, mean[0], mean[1], correlation * np.outer(scale, scale), max(float(noise.mean()), 1e-12))


@dataclass(frozen=True)
class CalibrationLearning(Learning):
    """Each group of pictures is valued at the reference budget on coalitions of its own, a held-out one at the labels' budget too."""

    default_pictures: ClassVar[int] = 160
    learned: ClassVar[type[Learned]] = AttributionPrior
    reference_estimator: ClassVar[Estimator] = SIZE_ADJUSTED

    def least_pictures(self) -> int:
        """As many fitted ones as there are players."""
        return next(n for n in count(1) if n - n // HELD_OUT_EVERY >= self.pool.num_players)

    def requests(self, num_available: int, num_pictures: int | None = None, *, request_size: int = 256) -> list[GamesRequest]:
        """A request a group."""
        chosen = self._chosen(num_available, num_pictures)
        return [GamesRequest(k, tuple(chosen[k::NUM_GROUPS])) for k in range(min(NUM_GROUPS, len(chosen)))]

    def num_evaluations(self, requests: Sequence[GamesRequest]) -> int:
        held_out = sum(len(request.indices) for request in requests if is_held_out(request.index))
        return sum(len(request.indices) for request in requests) * (self.reference_budget + 2) + held_out * self.pool.budget

    def evaluate(self, request: GamesRequest, games: PictureGames) -> dict[str, NDArray[Any]]:
        """`reference` [N, R], the `ends` (empty and grand coalition) [N, 2] and of a held-out group the `design` [N, P]."""
        num_players = self.pool.num_players
        ends = np.stack([np.zeros(num_players, dtype=bool), np.ones(num_players, dtype=bool)])
        found = {"ids": np.array(games.ids, dtype=np.str_), "ends": games.values(ends)}
        found["reference"] = games.values(self._reference(request).coalitions)
        if is_held_out(request.index):
            found["design"] = games.values(self._design(request).coalitions)
        return found

    def fit(
        self, requests: Sequence[GamesRequest], games: Sequence[Arrays], features: Features, progress: Progress
    ) -> tuple[AttributionPrior, CalibrationReport]:
        references, designs = [], []
        for request, arrays in zip(requests, games, strict=True):
            if not len(arrays.get("ids", ())):
                continue
            values = {name: arrays[name].astype(np.float64) for name in ("reference", "ends", "design") if name in arrays}
            empty, full = values["ends"].T
            references.append(Games(self._reference(request), values["reference"], empty, full))
            designs.append(Games(self._design(request), values["design"], empty, full) if "design" in values else None)
        found = calibrate(references, designs)
        progress(1, 1, f"relative error {found[1].relative_error:.3f}")
        return found

    def _reference(self, request: GamesRequest) -> CoalitionMatrix:
        return SIZE_ADJUSTED.draw(self.pool.num_players, self.reference_budget, self._seed("reference", request))

    def _design(self, request: GamesRequest) -> CoalitionMatrix:
        return CALIBRATED.draw(self.pool.num_players, self.pool.budget, self._seed("held out", request))

    def _seed(self, what: str, request: GamesRequest) -> tuple[int, ...]:
        return role_seed(self.pool.seed, f"{self.pool.role}/{what}", request.index)


@dataclass(frozen=True)
class Calibrated(Estimator):
    """The posterior mean under a prior learned from the data set."""

    name: str = "calibrated"
    card: str = "size-adjusted Kernel SHAP with a Gaussian prior learned from this data set: a *shrinkage* estimator, not unbiased"
    can_stop_early: ClassVar[bool] = False
    learning: ClassVar[type[Learning] | None] = CalibrationLearning

    def smallest_budget(self, num_players: int) -> int:
        return 2

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> CoalitionMatrix:
        return sample_coalitions(num_players, budget, seed, must_determine=False)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> CalibratedSolver:
        assert isinstance(sample, CoalitionMatrix)
        if not isinstance(learned, AttributionPrior):
            raise ValueError("the calibrated estimator needs a prior: fit one first")
        return CalibratedSolver(sample, learned)


CALIBRATED = Calibrated()
