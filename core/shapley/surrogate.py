"""A surrogate of a data set's games: one network, learned from few evaluations each of many pictures, that predicts every value v(S).

Estimators that treat each picture alone pay for each attribution in evaluations. But the games of one classifier's pictures are one
function of picture and coalition, and a network can learn it (amortised Shapley values: Jethani et al., 2022; Covert et al., 2023, 2024).
Three things make the prediction a *label*, with an error bar that holds:

- It is fitted to the very evaluations that are labels' own, so that learning costs no further evaluations.
- It predicts the game, not only its attributions, in a form whose Shapley values cost little: a linear part and a part that takes from a
  coalition what a CLS token takes from its sequence, averages over the tokens, each in one of two states.
- What it leaves of a picture's own evaluations corrects it (`residual_posterior`): the prediction is a control variate. However bad it
  is, the label tends to the Shapley values as the budget grows; the better it is, the fewer evaluations do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.shapley.estimator import Estimator, Learned, Sample, Seed, Solver, Values, role_seed
from core.shapley.kernel_shap import CoalitionMatrix
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
from core.shapley.residual_posterior import IndependentCoalitions, ResidualSolver, draw_coalitions
from core.shapley.size_adjustment import SIZE_ADJUSTED, SizeAdjustedSolver
from core.shapley.surrogate_fit import LEAST_PICTURES, EvaluatedPictures, SurrogateFit
from core.shapley.surrogate_net import Surrogate

NUM_REFERENCES = 48
"""Pictures also valued at a high budget, for the report and the error bars; none of them is in the network's fit."""

REFERENCES_A_REQUEST = 16
"""Pictures that share a reference's coalitions."""


class SurrogateSolver(Solver):
    """The prediction of each game, corrected by what it leaves of the values on one sample's coalitions.

    The Shapley values of the network's interactions are computed on coalitions of the sample's own seed: their error too is not common.
    """

    def __init__(self, sample: IndependentCoalitions, surrogate: Surrogate) -> None:
        self._sample, self._surrogate = sample, surrogate
        self._residual = ResidualSolver(sample.coalitions, surrogate.prior)

    def solve(
        self, values: Values, value_empty: Values, value_full: Values, features: Callable[[], Tensor]
    ) -> tuple[Values, Values]:
        predicted = self._surrogate.predict(features(), value_empty, value_full, seed=self._sample.seed)
        return predicted.corrected(self._sample.coalitions, self._residual, values)


@dataclass(frozen=True)
class SurrogateLearning(Learning):
    """Pictures are evaluated as their labels will be, so that nothing is evaluated twice; the first of them at the reference budget too."""

    default_pictures: ClassVar[int] = 8192
    learned: ClassVar[type[Learned]] = Surrogate
    uses_features: ClassVar[bool] = True
    reference_estimator: ClassVar[Estimator] = SIZE_ADJUSTED

    def least_pictures(self) -> int:
        return LEAST_PICTURES

    def requests(self, num_available: int, num_pictures: int | None = None, *, request_size: int = 256) -> list[GamesRequest]:
        """Those with references first."""
        chosen = self._chosen(num_available, num_pictures)
        number = len(chosen)
        edges = [*range(0, NUM_REFERENCES, REFERENCES_A_REQUEST), *range(NUM_REFERENCES, number, request_size), number]
        return [GamesRequest(k, tuple(chosen[a:b])) for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))]

    def num_evaluations(self, requests: Sequence[GamesRequest]) -> int:
        return sum(len(request.indices) for request in requests if _has_reference(request)) * self.reference_budget

    def evaluate(self, request: GamesRequest, games: PictureGames) -> dict[str, NDArray[Any]]:
        """The labels' own `values` [N, P + 2 + I], and `reference` [N, R] of pictures that have one."""
        found = {"ids": np.array(games.ids, dtype=np.str_), "values": games.label_values()}
        if _has_reference(request):
            found["reference"] = games.values(self._reference(request).coalitions)
        return found

    def known(self, games: Iterable[Arrays]) -> dict[str, NDArray[np.float32]]:
        return {
            picture_id: values
            for arrays in games
            for picture_id, values in zip(arrays.get("ids", np.empty(0)).tolist(), arrays.get("values", ()), strict=True)
        }

    def fit(
        self, requests: Sequence[GamesRequest], games: Sequence[Arrays], features: Features, progress: Progress
    ) -> tuple[Surrogate, CalibrationReport]:
        fit = SurrogateFit(self._evaluated(requests, games, features), seed=self.pool.seed)
        for epoch in range(fit.epochs):
            progress(epoch + 1, fit.epochs, f"unexplained variance {fit.epoch():.3f}")
        surrogate = fit.finish()
        report = self._report(surrogate, requests, games, fit)
        return replace(surrogate, prior=replace(surrogate.prior, error_scale=report.z_spread)), report

    def _evaluated(self, requests: Sequence[GamesRequest], games: Sequence[Arrays], features: Features) -> EvaluatedPictures:
        found: list[Tensor] = []
        ids: list[str] = []
        for request in requests:
            for chunk, chunk_ids in features(request):
                found.append(chunk.bfloat16())
                ids += chunk_ids
        there = [arrays for arrays in games if len(arrays.get("ids", ()))]
        if ids != [picture_id for arrays in there for picture_id in arrays["ids"].tolist()]:
            raise ValueError("the pictures that can be read are not those that were evaluated: the data set changed; evaluate it again")
        if len(ids) < LEAST_PICTURES:
            raise ValueError(
                f"a surrogate is learned from at least {LEAST_PICTURES} pictures, {len(ids)} can be read: let it learn from more, or take "
                "another estimator"
            )
        values = np.concatenate([arrays["values"] for arrays in there]).astype(np.float64)
        pool = self.pool
        members = np.array([pool.member_of(picture_id) for picture_id in ids], dtype=np.int64)
        coalitions = np.stack([pool.coalitions(member) for member in range(pool.size)])
        num_values = coalitions.shape[1]
        ends = values[:, num_values], values[:, num_values + 1]
        return EvaluatedPictures(torch.cat(found), members, coalitions, values[:, :num_values], *ends)

    def _report(
        self, surrogate: Surrogate, requests: Sequence[GamesRequest], games: Sequence[Arrays], fit: SurrogateFit
    ) -> CalibrationReport:
        """Estimates of the pictures with references, at the budget in use."""
        start = 0
        truth, truth_error, estimate, deviation = [], [], [], []
        pictures = fit.pictures
        for request, arrays in zip(requests, games, strict=True):
            if "reference" not in arrays:
                continue
            reference = arrays["reference"].astype(np.float64)
            index = np.arange(start, start + len(reference))
            start += len(reference)
            ends = pictures.value_empty[index], pictures.value_full[index]
            solver = SizeAdjustedSolver(self._reference(request))
            truth.append(solver.attributions(reference, *ends))
            truth_error.append(solver.standard_error(reference, *ends))
            for member, n in zip(pictures.members[index].tolist(), index.tolist(), strict=True):
                found = self._estimate(surrogate, pictures, member, n)
                estimate.append(found[0])
                deviation.append(found[1])
        if not truth:
            raise ValueError("no picture with a reference can be read: let it learn from more, or take another estimator")
        return held_out_report(
            np.concatenate(truth),
            np.concatenate(truth_error),
            np.concatenate(estimate),
            np.concatenate(deviation),
            None,
            budget=self.pool.budget,
            num_fitted=fit.num_fitted,
        )

    def _estimate(self, surrogate: Surrogate, pictures: EvaluatedPictures, member: int, n: int) -> tuple[Values, Values]:
        one = slice(n, n + 1)
        solver = SURROGATE.solver(self.pool.sample(member), surrogate)
        return solver.solve(
            pictures.values[one], pictures.value_empty[one], pictures.value_full[one], lambda: pictures.features[one].float()
        )

    def _reference(self, request: GamesRequest) -> CoalitionMatrix:
        seed = role_seed(self.pool.seed, f"{self.pool.role}/reference", request.index)
        return SIZE_ADJUSTED.draw(self.pool.num_players, self.reference_budget, seed)


def _has_reference(request: GamesRequest) -> bool:
    return request.index < NUM_REFERENCES // REFERENCES_A_REQUEST


@dataclass(frozen=True)
class SurrogateEstimator(Estimator):
    """A learned prediction of every game, corrected by the picture's own values."""

    name: str = "surrogate"
    card: str = (
        "a network learned from this data set's evaluations predicts each picture's game, and what it leaves of the picture's own "
        "evaluations corrects it: a *shrinkage* estimator, not unbiased"
    )
    can_stop_early: ClassVar[bool] = False
    learning: ClassVar[type[Learning] | None] = SurrogateLearning

    def smallest_budget(self, num_players: int) -> int:
        return 2

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> IndependentCoalitions:
        return draw_coalitions(num_players, budget, seed)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> SurrogateSolver:
        assert isinstance(sample, IndependentCoalitions)
        if not isinstance(learned, Surrogate):
            raise ValueError("the surrogate estimator needs a surrogate: fit one first")
        return SurrogateSolver(sample, learned)


SURROGATE = SurrogateEstimator()
