"""How sure scores on test are, the pictures being a sample of the domain: intervals without another pass of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.metrics import SCORE_NAMED, SCORES, Array, PictureMean, Scored, per_picture_scores
from core.statistics import Interval, bootstrap_interval
from sweep.report.result import INTERVAL_COLUMNS, PAIR_COLUMNS
from sweep.stages.objectives import Cell
from sweep.stages.per_picture import PictureScores

NUM_RESAMPLES = 1000
"""The width is then known to 4 %, and a pair of the miniature takes 30 ms of a processor."""

def score_intervals(values: PictureScores, prediction_only: PictureScores) -> dict[str, Interval]:
    """Of every score that is a function of a mean over pictures, and of its normalised form, in the order of the results' columns.

    A normalised score has one where both models were seen on the same pictures.
    """
    found = {}
    for score in SCORES:
        name = score.numerator or score.name
        own, reference = values.get(name), prediction_only.get(name)
        if own is None:
            continue
        function = SCORE_NAMED[name].function
        assert isinstance(function, PictureMean)
        if score.numerator is None:
            found[score.name] = bootstrap_interval(own, function.of_pictures, num_resamples=NUM_RESAMPLES)
        elif reference is not None and len(reference) == len(own) and reference.any():
            both = np.stack([own, reference])
            found[score.name] = bootstrap_interval(both, _Quotient(function), num_resamples=NUM_RESAMPLES)
    return found


@dataclass(frozen=True)
class _Quotient:
    """A score of one model divided by that of another on the same pictures. [..., N] each -> [...]"""

    score: PictureMean

    def __call__(self, own: Array, reference: Array) -> Array:
        """Where resamples have no picture that the reference has right, half a picture stands for it."""
        value, divisor, half = self.score.of_pictures(own), self.score.of_pictures(reference), 0.5 / reference.shape[-1]
        return np.where(divisor > 0, value / np.where(divisor > 0, divisor, half), 1 + value / half)


@dataclass(frozen=True, eq=False)
class ScoredPoint:
    """A point's cell, and what its scores were computed from.

    prediction_only: the same of the target's prediction-only model on the same pictures, as far as it is known.
    """

    cell: Cell
    scored: Scored
    prediction_only: PictureScores

    def per_picture(self) -> PictureScores:
        return per_picture_scores(self.scored)

    def intervals(self) -> pd.DataFrame:
        """INTERVAL_COLUMNS."""
        pair = [self.cell[column] for column in PAIR_COLUMNS]
        found = score_intervals(self.per_picture(), self.prediction_only)
        rows = [(*pair, name, interval.estimate, interval.low, interval.high, interval.n) for name, interval in found.items()]
        return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))
