"""How sure a point's scores are, the pictures of its split being a sample of the domain: intervals without another pass of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.metrics import SCORE_NAMED, PictureMean, Scored, per_picture_scores
from core.statistics import bootstrap_interval
from sweep.report.result import INTERVAL_COLUMNS, PAIR_COLUMNS
from sweep.stages.objectives import Cell

NUM_RESAMPLES = 1000
"""The width is then known to 4 %, and a pair of the miniature takes 30 ms of a processor."""


@dataclass(frozen=True, eq=False)
class ScoredPoint:
    """A point's cell, and what its scores were computed from.

    prediction_only_is_correct: bool [N], the pictures of the split that the target's prediction-only model classifies rightly.
    """

    cell: Cell
    scored: Scored
    prediction_only_is_correct: np.ndarray

    def intervals(self) -> pd.DataFrame:
        """INTERVAL_COLUMNS: of every score that is a function of a mean over pictures, and of the normalised accuracy.

        Both models of a normalised score must be seen on the same pictures. Of the prediction-only one only the answers are at hand, so
        that a normalised error has no interval.
        """
        found = {}
        for name, values in per_picture_scores(self.scored).items():
            score = SCORE_NAMED[name].function
            assert isinstance(score, PictureMean)
            found[name] = bootstrap_interval(values, score.of_pictures, num_resamples=NUM_RESAMPLES)
        if self.scored.is_correct is not None and self.prediction_only_is_correct.any():
            both = np.stack([self.scored.is_correct, self.prediction_only_is_correct])
            found["normalized_accuracy"] = bootstrap_interval(both, _share_kept, num_resamples=NUM_RESAMPLES)
        pair = [self.cell[column] for column in PAIR_COLUMNS]
        in_order = [(name, found[name]) for name in SCORE_NAMED if name in found]
        rows = [(*pair, name, interval.estimate, interval.low, interval.high, interval.n) for name, interval in in_order]
        return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def _share_kept(is_correct: np.ndarray, reference_is_correct: np.ndarray) -> np.ndarray:
    """The quotient of two accuracies. Where resamples have nothing that the reference has right, half a picture stands for it."""
    own, reference = is_correct.mean(axis=-1), reference_is_correct.mean(axis=-1)
    half = 0.5 / is_correct.shape[-1]
    return np.where(reference > 0, own / np.maximum(reference, half), 1 + own / half)
