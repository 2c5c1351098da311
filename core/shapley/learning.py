"""How an estimator learns from a data set before it labels: which pictures it asks for, what it wants of their games, and the fit.

Some of the data set's pictures are evaluated, request by request, wherever there is room (`evaluate`); then one fit is made of all that
(`fit`), and judged on pictures that it was not made of (`CalibrationReport`). Nothing here knows a classifier: games are what
`PictureGames` offers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from core.shapley.coalition_pool import CoalitionPool
from core.shapley.estimator import Coalitions, Estimator, Learned, Values, role_seed

if TYPE_CHECKING:
    from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]
"""What is kept of evaluated pictures, by name: each with a row a picture, so that parts of a request are put together row by row."""


class PictureGames(Protocol):
    """Games of N pictures, to be evaluated."""

    @property
    def ids(self) -> Sequence[str]: ...

    def values(self, coalitions: Coalitions) -> NDArray[np.float32]:
        """v(S). coalitions [P, M] -> [N, P]"""
        ...

    def label_values(self) -> NDArray[np.float32]:
        """All that a label of each picture will be made of: the values of its coalitions in the pool [P], of the empty and the grand one,
        and of whatever else is evaluated for a label. [N, P + 2 + I]
        """
        ...


@dataclass(frozen=True)
class GamesRequest:
    """Pictures to be evaluated together: the index-th request; indices: their positions in the data set."""

    index: int
    indices: tuple[int, ...]


Features = Callable[[GamesRequest], Iterator[tuple["Tensor", Sequence[str]]]]
"""Of a request's pictures, in chunks and in the order they were evaluated in: what is known of their players [N, M, D], and the ids."""

Progress = Callable[[int, int, str], None]
"""Steps done, steps in all, a few words on how it goes."""


@dataclass(frozen=True)
class CalibrationReport:
    """What learned estimates are worth on held-out pictures, at the budget in use, against references of a high budget.

    relative_error, kernel_shap_relative_error (on the same coalitions; NaN where that has no solution, None where it was not tried): root
    of summed squared errors over summed squared attributions, the references' own noise taken off. bias: the same of the mean error over
    pictures, what is common to all (pools make it small). slope: of estimates regressed on references; below 1 is shrinkage. z_spread:
    root mean square of errors over their stated size; what is used has its error bars multiplied by it. is_refitted: whether what is used
    was fitted anew to all pictures, the held-out ones among them.
    """

    num_fitted: int
    num_held_out: int
    budget: int
    relative_error: float
    kernel_shap_relative_error: float | None
    bias: float
    slope: float
    z_spread: float
    is_refitted: bool = False


@dataclass(frozen=True)
class Learning(ABC):
    """One estimator's learning for the labels of one pool.

    reference_budget: evaluations of each picture with a reference, what the learned is judged by.
    default_pictures: how many it learns from where nobody says. learned: what it learns. uses_features: whether the fit asks for features.
    reference_estimator: of the references.
    Raises ValueError, with the fix, for a reference budget that cannot be solved.
    """

    pool: CoalitionPool
    reference_budget: int

    default_pictures: ClassVar[int]
    learned: ClassVar[type[Learned]]
    uses_features: ClassVar[bool] = False
    reference_estimator: ClassVar[Estimator]

    def __post_init__(self) -> None:
        self.reference_estimator.check(self.pool.num_players, self.reference_budget)

    @property
    def trusted_reference_budget(self) -> int | None:
        """Smallest reference budget whose error bars can be trusted."""
        return self.reference_estimator.trusted_budget(self.pool.num_players)

    @abstractmethod
    def least_pictures(self) -> int:
        """Fewest pictures it can learn from."""

    @abstractmethod
    def requests(self, num_available: int, num_pictures: int | None = None, *, request_size: int = 256) -> list[GamesRequest]:
        """A seeded random choice of a data set's `num_available` pictures, at most `num_pictures` (None: `default_pictures`).

        request_size: pictures of a request, where the estimator does not mind. Raises ValueError, with the fix, for too few.
        """

    @abstractmethod
    def num_evaluations(self, requests: Sequence[GamesRequest]) -> int:
        """Evaluations that the labels do not need themselves."""

    @abstractmethod
    def evaluate(self, request: GamesRequest, games: PictureGames) -> dict[str, NDArray[Any]]:
        """What is kept of some of a request's pictures; among it their `ids`."""

    @abstractmethod
    def fit(
        self, requests: Sequence[GamesRequest], games: Sequence[Arrays], features: Features, progress: Progress
    ) -> tuple[Learned, CalibrationReport]:
        """What is learned from evaluated requests, and what it is worth.

        games: of each request, what `evaluate` gave of its pictures (`joined`); nothing where none could be read. features: of a request's
        pictures that were evaluated. Raises ValueError, with the fix, for too few pictures.
        """

    def known(self, games: Iterable[Arrays]) -> dict[str, NDArray[np.float32]]:
        """By picture id, `label_values` that the evaluated pictures' labels need not evaluate again."""
        return {}

    def _chosen(self, num_available: int, num_pictures: int | None) -> list[int]:
        number = min(self.default_pictures if num_pictures is None else num_pictures, num_available)
        if number < self.least_pictures():
            raise ValueError(
                f"the {self.pool.estimator.name} estimator learns from at least {self.least_pictures()} pictures where each has "
                f"{self.pool.num_players} players, here are {number}: let it learn from more, or take an estimator "
                "that learns from none, as size_adjusted"
            )
        order = np.random.default_rng(role_seed(self.pool.seed, f"{self.pool.role}/learned from")).permutation(num_available)
        chosen: list[int] = order[:number].tolist()
        return chosen


def joined(parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Parts of a request put together, picture after picture."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


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
        kernel_shap_relative_error=None if plain is None else relative(plain),
        bias=float(np.sqrt(max(common, 0.0) / size)),
        slope=float((centred * (estimate - estimate.mean(0))).sum() / signal),
        z_spread=float(np.sqrt(np.mean(np.square(error) / (np.square(deviation) + np.square(truth_error))))),
    )
