"""What an estimator of Shapley values declares: how it draws coalitions, how it solves their values, and what it asks of whoever uses it.

One concrete estimator a module, beside its mathematics; `estimators` is the table of them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from core.shapley.l1_reg import parse_l1_reg

if TYPE_CHECKING:
    from torch import Tensor

    from core.shapley.learning import Learning

Coalitions = NDArray[np.bool_]
"""[P, M], True where a player is present."""
Values = NDArray[np.float64]
Seed = int | tuple[int, ...]

FIRST_ROUND_EVALUATIONS_A_PLAYER = 6
"""Evaluations before the first look at a picture's error, where pictures may stop early; error bars of fewer are no guide."""
MOST_IN_A_DESIGN = 2**23
"""Players times coalitions, at most: of more a pool of designs with their regressions is too large for a worker."""


class Sample(Protocol):
    """Coalitions of one draw, with all that its solver needs of the draw."""

    @property
    def coalitions(self) -> Coalitions: ...

    def prefix(self, budget: int) -> Sample:
        """The sample, had the drawing stopped after `budget` coalitions. Raises ValueError where that is none."""
        ...


class Solver(ABC):
    """Solves games that were valued on one sample's coalitions."""

    @abstractmethod
    def solve(
        self, values: Values, value_empty: Values, value_full: Values, features: Callable[[], Tensor]
    ) -> tuple[Values, Values]:
        """Attributions, each row summing to v(N) - v(empty), and their standard errors. [N, M], [N, M]

        values [N, P], value_empty [N], value_full [N]. features: gives what is known of the N games' players, [N, M, D]; called only by a
        solver that wants it.
        """


class ValueSolver(Solver):
    """A solver that wants the values alone. All methods take values [N, P], value_empty [N] and value_full [N] and give [N, M]."""

    @abstractmethod
    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values: ...

    @abstractmethod
    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values: ...

    def solve(
        self, values: Values, value_empty: Values, value_full: Values, features: Callable[[], Tensor]
    ) -> tuple[Values, Values]:
        return self.attributions(values, value_empty, value_full), self.standard_error(values, value_empty, value_full)


class Learned(ABC):
    """What an estimator has learned from a data set. Equal to itself alone: designs are kept by it."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """An npz file; nothing in it is executed when it is read."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Of `to_bytes`, on the CPU."""

    def to(self, device: str) -> Self:
        """The same on a torch device, where it has tensors."""
        return self


@dataclass(frozen=True, eq=False)
class Design:
    """Coalitions to evaluate [P, M] and the solver of their values."""

    sample: Sample
    solver: Solver

    @property
    def coalitions(self) -> Coalitions:
        return self.sample.coalitions

    @property
    def budget(self) -> int:
        return len(self.sample.coalitions)


class Estimator(ABC):
    """Subclasses are frozen dataclasses: two estimators with equal fields are one, and a pool of coalitions is named by its estimator.

    name: on the command line and in artifact keys. card: the words of a dataset card. can_select: whether it takes an `l1_reg` (see
    `feature_selection`). can_stop_early: whether its error bars tell one picture from another, so that pictures can do with fewer
    evaluations. learning: how it learns from a data set before it labels; None where it learns nothing.
    """

    name: str
    card: str
    can_select: ClassVar[bool] = False
    can_stop_early: ClassVar[bool] = True
    learning: ClassVar[type[Learning] | None] = None

    @abstractmethod
    def smallest_budget(self, num_players: int) -> int:
        """Fewest evaluations, those of the empty and the grand coalition not counted, that it can do with."""

    @abstractmethod
    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> Sample:
        """At most `budget` coalitions, the same for the same seed. Raises ValueError, with the fix, for a budget it cannot do with."""

    @abstractmethod
    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> Solver:
        """The solver of a sample that it drew. learned: what `learning` found. Raises ValueError where that is missing."""

    def check(self, num_players: int, budget: int, l1_reg: str = "none") -> None:
        """Raises ValueError, with the fix, for what it cannot work with; before anything is evaluated or learned."""
        self.check_l1_reg(l1_reg)
        most = MOST_IN_A_DESIGN // max(1, num_players) // 2 * 2
        if budget > most:
            raise ValueError(f"a budget of {budget} evaluations is beyond what memory holds for {num_players} players: give at most {most}")
        self.draw(num_players, budget)

    def check_l1_reg(self, l1_reg: str) -> None:
        """Raises ValueError for a selection that is none, or that it cannot make."""
        if parse_l1_reg(l1_reg) is not None and not self.can_select:
            raise ValueError(f"l1_reg selects in a regression: not with the estimator {self.name}; leave it out or take kernel_shap")

    def has_error_bars(self, l1_reg: str = "none") -> bool:
        """Whether its standard errors are numbers; there are none for what was selected by the same values."""
        return l1_reg == "none"

    def trusted_budget(self, num_players: int) -> int | None:
        """Smallest budget from which on its error bars can be trusted; None where all can, or where there are none."""
        return None

    def first_round(self, num_players: int, budget: int) -> int:
        """Fewest evaluations after which a picture that has `budget` may stop early, if it can at all."""
        return FIRST_ROUND_EVALUATIONS_A_PLAYER * num_players


def role_seed(seed: int, role: str, *parts: int) -> tuple[int, ...]:
    """The seed of what is drawn in a role: the caller's seed, the first 32 bits of the role's SHA-256, and what tells draws apart.

    A role names a use of coalitions ("train", "test", "train/reference"): what is drawn in two of them is independent.
    """
    return (seed, int.from_bytes(hashlib.sha256(role.encode()).digest()[:4], "big"), *parts)
