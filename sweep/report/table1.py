"""Table 1 of the paper: five models, each a mean over the targets, with what does not differ from the best; and the paper's own.

Below them what a reader needs beside them: references, which are in no test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.metrics import SCORE_NAMED
from core.statistics.comparison import not_worse_than_best
from core.statistics.intervals import mean_interval
from sweep.report.result import SCORE_COLUMNS, SweepResult
from sweep.report.tables import chosen_pairs, pair_references, reference_scores

PAPER_SCORES = ("accuracy", "e_rmse", "iou_at_1", "iou_at_10", "infidelity")
"""The paper's columns."""
OUR_SCORES = ("correlation", "e_rmse_at_best_scale", "infidelity_at_best_scale")
"""Scores beside them that no scale can flatter."""
TABLE1_COLUMNS = ("source_domain", "model", "score", "mean", "sd", "num_targets", "is_best", "does_not_differ_from_best", "is_reference")


@dataclass(frozen=True)
class Row:
    """A model of the table. parameters: the paper's symbol. paper: its means and standard deviations, in the order of PAPER_SCORES."""

    model: str
    title: str
    parameters: str
    paper: tuple[tuple[float, float], ...]


ROWS = (
    Row(
        "zero_shot",
        "zero-shot",
        "θ base",
        ((0.475, 0.211), (1.313, 0.225), (0.012, 0.006), (0.090, 0.021), (2.421, 0.834)),
    ),
    Row(
        "source_prediction_only",
        "fine-tuned on the source",
        "θ ft(S)",
        ((0.363, 0.242), (1.179, 0.136), (0.008, 0.007), (0.072, 0.028), (1.892, 0.453)),
    ),
    Row(
        "source_self_explaining",
        "the same with explanations",
        "θ ft*(S)",
        ((0.367, 0.238), (0.907, 0.155), (0.041, 0.013), (0.147, 0.033), (1.130, 0.345)),
    ),
    Row(
        "prediction_only",
        "fine-tuned on the target",
        "θ ft(T)",
        ((0.890, 0.106), (1.599, 0.219), (0.009, 0.005), (0.076, 0.021), (3.535, 0.978)),
    ),
    Row(
        "transferred",
        "transferred",
        "θ ft*(T)",
        ((0.876, 0.121), (0.943, 0.186), (0.071, 0.082), (0.166, 0.052), (1.228, 0.394)),
    ),
)
"""The paper's numbers are of ViT-B/32 with ImageNet+X as the source, over ten targets."""
REFERENCE_ROWS = (
    "chance", "zero_predictor", "mean_map", "grad_cam", "attention_rollout", "gradient_rollout", "side_head", "supervised", "label_ceiling",
)  # fmt: skip
"""References below the models, where the sweep has them."""


def table1(result: SweepResult) -> pd.DataFrame:
    """TABLE1_COLUMNS, a row a source, model and score, where sources' own models were scored. Models first, then references.

    A source whose vectors were made one of several has no models of its own, and three rows of the five. The maps of the transferred
    model are those it ships, with its factor where it has one; the others' are as they come. sd: over the targets.
    does_not_differ_from_best: from the best model of the column by a paired t-test at p < 0.05. is_reference: of REFERENCE_ROWS, which are
    neither best nor tested.
    """
    if result.source_models.empty:
        return pd.DataFrame(columns=list(TABLE1_COLUMNS))
    rows = []
    for source in result.sources:
        scores, references = _of_source(result, source), _references_of(result, source)
        for score in (*PAPER_SCORES, *OUR_SCORES):
            values = {row.model: scores[row.model][score].to_numpy(dtype=float) for row in ROWS if row.model in scores}
            lower_is_better = SCORE_NAMED[score].lower_is_better
            alike = not_worse_than_best(values, lower_is_better)
            means = {model: float(np.nanmean(found)) for model, found in values.items() if not np.isnan(found).all()}
            best = min(means, key=lambda model: means[model] if lower_is_better else -means[model]) if means else None
            for model, found in values.items():
                rows.append((source, model, score, *_mean_and_sd(found), model == best, model in alike, False))
        for name, frame in references.items():
            for score in (*PAPER_SCORES, *OUR_SCORES):
                rows.append((source, name, score, *_mean_and_sd(frame[score].to_numpy(dtype=float)), False, False, True))
    return pd.DataFrame(rows, columns=list(TABLE1_COLUMNS))


def has_factor(result: SweepResult) -> bool:
    """Whether transferred models ship with a factor of their maps that the sources' and the target's models do not have."""
    return bool((chosen_pairs(result)["attribution_scale"].fillna(1.0) != 1.0).any())


def _mean_and_sd(values: np.ndarray) -> tuple[float, float, int]:
    """Over the targets that have a value, and how many have."""
    found = mean_interval(values)
    return found.estimate, found.sd, found.n


def _references_of(result: SweepResult, source: str) -> dict[str, pd.DataFrame]:
    """Of REFERENCE_ROWS those that are known of some target -> their scores on the source's targets."""
    found = pair_references(result)
    found = found[(found["source_domain"] == source) & found[list(SCORE_COLUMNS)].notna().any(axis=1)]
    return {name: found[found["reference"] == name] for name in REFERENCE_ROWS if (found["reference"] == name).any()}


def _of_source(result: SweepResult, source: str) -> dict[str, pd.DataFrame]:
    """Model -> its scores on the source's targets, all in the same order of targets."""
    pairs = chosen_pairs(result)
    pairs = pairs[pairs["source_domain"] == source].set_index("target_domain")
    references = reference_scores(result)
    found = {"transferred": pairs}
    for model in ("zero_shot", "prediction_only"):
        found[model] = references[references["reference"] == model].set_index("domain").reindex(pairs.index)
    own = result.source_models[result.source_models["source_domain"] == source]
    if own.empty:
        return found
    found["source_prediction_only"] = own[own["model"] == "source_prediction_only"].set_index("target_domain").reindex(pairs.index)
    explaining = own[own["model"] == "source_self_explaining"]
    at_alpha = [
        explaining[(explaining["target_domain"] == target) & np.isclose(explaining["alpha"], pair["alpha"])]
        for target, pair in pairs.iterrows()
    ]
    found["source_self_explaining"] = pd.concat(at_alpha).set_index("target_domain").reindex(pairs.index)
    return found
