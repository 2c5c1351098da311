"""The dataset card beside the labels: what they are, what made them and how large their errors are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.shapley.estimators import find_estimator
from core.shapley.learning import CalibrationReport
from sweep.stages.dataset import LabelGraph
from sweep.store.artifacts import Store


def text(
    graph: LabelGraph, store: Store, precision_choice: str, skipped: Sequence[dict[str, str]], report: CalibrationReport | None
) -> str:
    """The card of finished labels; reads them once, shard by shard, for their errors."""
    settings, pictures = graph.settings, graph.pictures
    errors = _Errors(graph, store)
    estimator = find_estimator(settings.estimator)
    has_bars = estimator.has_error_bars(settings.l1_reg)
    relative_error = f"{errors.relative:.3f}" if has_bars else "none: this estimate has no error bars"
    pool = f"pool of {settings.pool_size} of the role `{graph.role}`, seed {settings.seed}"
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        f"  - split: {pictures.split_name}",
        "    path: data/*.parquet",
        "---",
        f"# Attribution labels of {pictures.name}/{pictures.split_name}",
        "",
        f"{errors.num_pictures:,} pictures, {errors.num_players} patches each: estimated Shapley values of the patches for the true "
        f"class's {settings.value} of a classifier.",
        "",
        "| | |",
        "| --- | --- |",
        f"| data | {pictures.source}, split {pictures.split_name} |",
        f"| model | {graph.classifier.name} (fingerprint {graph.classifier.fingerprint[:16]}) |",
        f"| value v(S) | {settings.value}, scale {settings.label_scale} |",
        f"| patches outside S | {'mean colour (0 after normalisation)' if settings.fill == 'mean' else 'tokens dropped'} |",
        f"| estimator | {estimator.card} |",
        f"| evaluations a picture | {errors.mean_budget:.1f} on average (budget {settings.budget}), besides the empty and the full one |",
        f"| coalitions | {pool}; a picture's by the hash of its id |",
        f"| l1_reg | {settings.l1_reg} |",
        f"| arithmetic | {precision_choice} |",
        f"| relative error, from the standard errors | {relative_error} |",
        f"| pictures without a label | {len(skipped)} |",
        "",
        "Columns: `id`, `class_id`, `attributions` [M] and `standard_error` [M] (row by row over the patch grid), `value_empty`, "
        "`value_full`, `budget`. The attributions of a picture sum to `value_full - value_empty`. The relative error is the root of summed "
        "squared standard errors over summed squared attributions.",
    ]
    if report is not None:
        plain = report.kernel_shap_relative_error
        kernel_shap = f" (Kernel SHAP, same coalitions: {f'{plain:.3f}' if plain is not None and plain == plain else 'no solution'})"
        compared = "" if plain is None else kernel_shap
        lines += [
            "",
            "## What was learned from the pictures",
            "",
            f"Learned from {report.num_fitted} pictures and tried on {report.num_held_out} others, at {report.budget} evaluations, against "
            f"references of a high budget{' (what is in use is fitted to all of them)' if report.is_refitted else ''}:",
            "",
            "| | |",
            "| --- | --- |",
            f"| relative error | {report.relative_error:.3f}{compared} |",
            f"| bias common to all pictures, relative | {report.bias:.3f} |",
            f"| slope of estimates on references (below 1: shrinkage) | {report.slope:.3f} |",
            f"| spread of errors over their error bars | {report.z_spread:.2f} |",
        ]
    if settings.target_error is not None:
        stopped = f"Pictures stopped early at an estimated relative error of {settings.target_error}: their error bars are a little small."
        lines += ["", stopped]
    if skipped:
        lines += ["", "## Pictures without a label", "", *(f"- {s['id']}: {s['reason']}" for s in skipped[:1000])]
    return "\n".join(lines) + "\n"


class _Errors:
    """Sums over all shards."""

    def __init__(self, graph: LabelGraph, store: Store) -> None:
        self.num_pictures, self.num_players = 0, graph.base.num_patches
        squared_error, squared_label, budget = 0.0, 0.0, 0.0
        for shard in graph.shards:
            labels = shard.load(store)
            self.num_pictures += len(labels)
            squared_error += _sum_of_squares(labels.standard_error)
            squared_label += _sum_of_squares(labels.attributions)
            budget += float(labels.budget.sum())
        self.mean_budget = budget / max(1, self.num_pictures)
        self.relative = (squared_error / max(squared_label, 1e-12)) ** 0.5


def _sum_of_squares(values: np.ndarray) -> float:
    return float(np.square(values.astype(np.float64)).sum())
