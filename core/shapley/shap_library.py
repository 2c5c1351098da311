"""`shap.KernelExplainer` itself (Lundberg & Lee, 2017, in the shap library): the paper's own tool. Slow, for comparison.

Which coalitions it asks for depends on NumPy's global generator and on the budget, not on values. So it is run twice with one seed:
with a function that writes down what it is asked for, and, once the values of that are known, with one that answers with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from core.shapley.estimator import Coalitions, Estimator, Learned, Sample, Seed, Values, ValueSolver
from core.shapley.kernel_shap import MAX_DRAWS, smallest_budget

Game = Callable[[Values], Values]
"""Rows of 0 and 1 [P, M] -> values [P]."""


@dataclass(frozen=True, eq=False)
class ShapSample:
    """What the explainer asks for with a budget and a seed of NumPy's global generator; repeats of a coalition may be among it. [P, M]"""

    coalitions: Coalitions
    budget: int
    seed: int

    def prefix(self, budget: int) -> ShapSample:
        """Itself alone: the explainer divides a budget up before it draws."""
        if budget != len(self.coalitions):
            raise ValueError(f"{budget} coalitions are no prefix of {len(self.coalitions)}: shap.KernelExplainer draws for one budget")
        return self


class ShapSolver(ValueSolver):
    """The explainer, run anew for each game."""

    def __init__(self, sample: ShapSample, l1_reg: str) -> None:
        self._sample = sample
        self._l1_reg: str | bool = False if l1_reg == "none" else l1_reg

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """values [N, P], value_empty [N], value_full [N] -> [N, M]"""
        return np.stack([self._explained(*game) for game in zip(values, value_empty, value_full, strict=True)])

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        """NaN, [N, M]: the library estimates none."""
        return np.full((len(values), self._sample.coalitions.shape[1]), np.nan)

    def _explained(self, values: Values, value_empty: float, value_full: float) -> Values:
        answers: Iterator[Values] = iter([np.array([value_empty]), np.array([value_full]), np.asarray(values, np.float64)])
        num_players = self._sample.coalitions.shape[1]
        return explained(lambda rows: next(answers), num_players, self._sample.budget, self._sample.seed, self._l1_reg)


def explained(game: Game, num_players: int, budget: int, seed: int, l1_reg: str | bool) -> Values:
    """What `shap.KernelExplainer` gives for a game. [M]

    It asks for the empty coalition, the grand one and then for all others at once. seed: of NumPy's global generator, which is put back.
    """
    import shap

    with _global_seed(seed):
        explainer = shap.KernelExplainer(game, np.zeros((1, num_players)), silent=True)
        found = explainer.shap_values(np.ones((1, num_players)), nsamples=budget, l1_reg=l1_reg, silent=True)
    return np.asarray(found, dtype=np.float64).reshape(num_players)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """NumPy's global generator, which the library draws from, seeded meanwhile."""
    before: Any = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@dataclass(frozen=True)
class ShapLibrary(Estimator):
    """The budget is the library's `nsamples`; of few players it asks for fewer coalitions, or for one twice."""

    name: str = "shap"
    card: str = "`shap.KernelExplainer` of the shap library on the same game"
    can_select: ClassVar[bool] = True
    can_stop_early: ClassVar[bool] = False

    def smallest_budget(self, num_players: int) -> int:
        return smallest_budget(num_players)

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> ShapSample:
        if num_players < 2:
            raise ValueError(f"Kernel SHAP needs at least 2 players, there is {num_players}")
        if budget < smallest_budget(num_players):
            raise ValueError(
                f"a budget of {budget} evaluations cannot determine {num_players} attributions: shap.KernelExplainer pairs coalitions and "
                f"needs at least {smallest_budget(num_players)}"
            )
        for word in np.random.SeedSequence(seed).generate_state(MAX_DRAWS).tolist():
            sample = _drawn(num_players, budget, word)
            if _is_determined(sample.coalitions):
                return sample
        raise ValueError(f"{MAX_DRAWS} draws of {budget} coalitions left the {num_players} attributions undetermined: raise the budget")

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> ShapSolver:
        assert isinstance(sample, ShapSample)
        return ShapSolver(sample, l1_reg)

    def has_error_bars(self, l1_reg: str = "none") -> bool:
        return False


def _drawn(num_players: int, budget: int, seed: int) -> ShapSample:
    asked: list[Coalitions] = []

    def noted(rows: Values) -> Values:
        asked.append(np.asarray(rows) > 0.5)
        return np.arange(len(rows), dtype=np.float64)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a draw that cannot be solved, which the caller finds out and draws again
        explained(noted, num_players, budget, seed, l1_reg=False)
    empty, grand, coalitions = asked
    assert not empty.any() and grand.all()
    return ShapSample(coalitions, budget, seed)


def _is_determined(coalitions: Coalitions) -> bool:
    """Whether the constrained regression has one solution."""
    return bool(np.linalg.matrix_rank(coalitions[:, :-1].astype(np.float64) - coalitions[:, -1:]) == coalitions.shape[1] - 1)


SHAP = ShapLibrary()
