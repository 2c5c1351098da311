"""What a prediction of a game leaves of it, as attributions: a Gaussian posterior over coalitions that are drawn one by one.

A prediction g of a game v (`surrogate`) whose Shapley values are known leaves the residual game r = v - g to be estimated, and the
Shapley values of v are those of g plus those of r. The residual is small, and little of it is left to interactions. So coalitions need
no complements (a pair gives one equation for two evaluations, to be rid of interactions of even order): each one is an equation,

    r(S)  =  sum_i (z_i - 1/2) rho_i  +  h(|S|)  +  noise,      (rho, h) ~ N(0, B),   noise ~ N(0, sigma^2 / w(|S|))

with rho of sum zero (r is 0 for the empty and the grand coalition) and h any function of the size that is 0 at both ends, which has no
Shapley values (`size_adjustment`). Coalitions are drawn with sizes between the Shapley kernel and uniform; w is kernel over drawing
mass, so that with growing budget the posterior mean tends to the Shapley values whatever the prediction was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.shapley.estimator import Coalitions, Seed, Values, ValueSolver
from core.shapley.kernel_shap import kernel_size_distribution
from core.shapley.size_adjustment import num_size_terms, zero_sum_basis

EM_STEPS = 50
START = 0.3
"""Share of the residuals' variance that the prior starts from."""


@dataclass(frozen=True, eq=False)
class IndependentCoalitions:
    """Coalitions [P, M] drawn independently, none the complement of another by design. seed: that they were drawn with."""

    coalitions: Coalitions
    seed: Seed = 0

    @property
    def budget(self) -> int:
        return len(self.coalitions)

    @property
    def num_players(self) -> int:
        return self.coalitions.shape[1]

    def prefix(self, budget: int) -> IndependentCoalitions:
        """The first `budget` of them, a design as good as any of that size."""
        if not 0 < budget <= len(self.coalitions):
            raise ValueError(f"{budget} coalitions are no prefix of {len(self.coalitions)}")
        return IndependentCoalitions(self.coalitions[:budget], self.seed)


def draw_coalitions(num_players: int, budget: int, seed: Seed = 0) -> IndependentCoalitions:
    """`budget` coalitions, neither empty nor grand: a size from `_size_mass`, then a subset of that size.

    Raises ValueError for fewer than 2 players or evaluations.
    """
    if num_players < 2:
        raise ValueError(f"Shapley values need at least 2 players, there is {num_players}")
    if budget < 2:
        raise ValueError(f"a budget of {budget} evaluations is too small: at least 2")
    generator = np.random.default_rng(seed)
    sizes = generator.choice(np.arange(1, num_players), budget, p=_size_mass(num_players))
    order = generator.random((budget, num_players)).argsort(1).argsort(1)
    return IndependentCoalitions(order < sizes[:, None], seed)


def _size_mass(num_players: int) -> Values:
    """Drawing probability of the sizes 1 .. M - 1: the geometric mean of the Shapley kernel's and the uniform one."""
    mass = np.sqrt(kernel_size_distribution(num_players))
    return mass / mass.sum()


def weights(coalitions: Coalitions) -> Values:
    """Kernel over drawing mass of each coalition's size, of mean 1 over drawn coalitions. [P]"""
    num_players = coalitions.shape[1]
    return (kernel_size_distribution(num_players) / _size_mass(num_players))[coalitions.sum(1) - 1]


def residual_features(coalitions: Coalitions) -> Values:
    """Regressors of each coalition's equation: directions of sum zero, then odd and even size terms. [P, M] -> [P, M - 1 + J]"""
    return np.column_stack([(coalitions - 0.5) @ zero_sum_basis(coalitions.shape[1]), size_terms(coalitions)])


def size_terms(coalitions: Coalitions) -> Values:
    """Functions of a coalition's size that are 0 for the empty and the grand one. [..., M] -> [..., J]"""
    num_players = coalitions.shape[-1]
    size = (2.0 * coalitions.sum(-1) - num_players) / num_players
    return np.stack([(1.0 - size**2) * size**j for j in range(2 * num_size_terms(num_players))], axis=-1)


@dataclass(frozen=True, eq=False)
class ResidualPrior:
    """covariance: B, [F, F]. noise: sigma^2. error_scale: factor of the posterior standard deviation, from pictures with references."""

    num_players: int
    covariance: Values
    noise: float
    error_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residual games of N pictures that share coalitions [P, M]. values: [N, P]"""

    coalitions: Coalitions
    values: Values


class ResidualSolver(ValueSolver):
    """Posterior means of residual attributions from the residual games' values on one design."""

    def __init__(self, coalitions: Coalitions, prior: ResidualPrior) -> None:
        num_players = coalitions.shape[1]
        if num_players != prior.num_players:
            raise ValueError(f"the surrogate is for {prior.num_players} players, the coalitions have {num_players}")
        gain, covariance = _posterior(residual_features(coalitions), weights(coalitions), prior.covariance, prior.noise)
        basis = zero_sum_basis(num_players)
        self._map: Values = basis @ gain[: num_players - 1]  # [M, P]
        own = covariance[: num_players - 1, : num_players - 1]
        self._deviation: Values = prior.error_scale * np.sqrt(np.einsum("mf,fg,mg->m", basis, own, basis))

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """values [N, P] of residual games, whose value_empty [N] and value_full [N] are 0 -> [N, M], each row of sum zero."""
        return values @ self._map.T

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """Posterior standard deviation, the same for every picture of the design. [N, M]"""
        return np.tile(self._deviation, (len(values), 1))


def _posterior(features: Values, weight: Values, covariance: Values, noise: float) -> tuple[Values, Values]:
    """Gain [F, P] from an equation's value to the coefficients, and their covariance [F, F]."""
    precision = weight / noise
    inverse = np.linalg.inv(np.linalg.inv(covariance) + features.T @ (precision[:, None] * features))
    posterior: Values = inverse.astype(np.float64)
    return posterior @ (precision[:, None] * features).T, posterior


def fit_residual_prior(games: Sequence[Residuals]) -> ResidualPrior:
    """Covariance and noise by expectation-maximisation, from pictures the prediction was not fitted to.

    Works with fewer equations a picture than coefficients. Without shrinkage, the likelihood of few pictures is largest where nothing is
    noise. Raises ValueError without games.
    """
    if not games:
        raise ValueError("no residual games to fit a prior to")
    num_players = games[0].coalitions.shape[1]
    features = [residual_features(group.coalitions) for group in games]
    weight = [weights(group.coalitions) for group in games]
    num_games = sum(len(group.values) for group in games)
    num_values = sum(group.values.size for group in games)
    power = max(sum(float((np.square(g.values) * w).sum()) for g, w in zip(games, weight, strict=True)) / num_values, 1e-12)
    size = features[0].shape[1]
    spread = np.mean([np.square(f).sum(1).mean() for f in features])
    covariance = np.eye(size) * START * power / spread
    noise = (1.0 - START) * power
    for _ in range(EM_STEPS):
        second, squared = np.zeros((size, size)), 0.0
        for group, x, w in zip(games, features, weight, strict=True):
            gain, posterior = _posterior(x, w, covariance, noise)
            found = group.values @ gain.T
            second += found.T @ found + len(found) * posterior
            squared += float((np.square(group.values - found @ x.T) * w).sum())
            squared += len(found) * float(np.einsum("pf,fg,pg,p->", x, posterior, x, w))
        covariance = _shrunk(second, num_games, num_players - 1) + 1e-9 * power / spread * np.eye(size)
        noise = max(squared / num_values, 1e-12)
    return ResidualPrior(num_players, covariance, noise)


def _shrunk(second: Values, num_games: int, num_directions: int) -> Values:
    """Covariance from a sum of second moments [F, F], as if F games more had all directions alike and the size terms uncorrelated."""
    size = len(second)
    alike = np.diag(second).copy() / num_games
    alike[:num_directions] = alike[:num_directions].mean()
    return (second + size * np.diag(alike)) / (num_games + size)
