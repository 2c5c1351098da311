"""The dataset card beside the labels: what they are, what made them and how large their errors are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.shapley.calibration import CalibrationReport
from core.shapley.kernel_shap import Values
from sweep.commands.label_directory import CARD, LabelDirectory
from sweep.stages.dataset_labels import DatasetLabels
from sweep.stages.label_files import read_labels

ESTIMATORS = {
    "kernel_shap": "Kernel SHAP: constrained weighted least squares over coalitions paired with their complements",
    "leverage": "Kernel SHAP regression over paired coalitions drawn in proportion to their leverage",
    "permutation": "antithetic permutation sampling (unbiased)",
    "size_adjusted": "Kernel SHAP with the effect of a coalition's size taken out: the same limit, less variance",
    "calibrated": "size-adjusted Kernel SHAP with a Gaussian prior learned from this data set: a *shrinkage* estimator, not unbiased",
    "surrogate": "a network learned from this data set's evaluations predicts each picture's game, and what it leaves of the picture's own "
    "evaluations corrects it: a *shrinkage* estimator, not unbiased",
}


def is_written(out: LabelDirectory) -> bool:
    return CARD in out.names("")


def write(job: DatasetLabels, precision_choice: str, skipped: Sequence[dict[str, str]], report: CalibrationReport | None) -> None:
    """Write the card of finished labels; reads them once, shard by shard, for their errors."""
    job.out.write(CARD, _text(job, precision_choice, skipped, report).encode())


def _text(job: DatasetLabels, precision_choice: str, skipped: Sequence[dict[str, str]], report: CalibrationReport | None) -> str:
    settings, pictures = job.settings, job.pictures
    errors = _Errors(job)
    has_no_bars = settings.l1_reg != "none"
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
        f"| model | {job.model.checkpoint or job.model.base} (fingerprint {job.model.fingerprint[:16]}) |",
        f"| value v(S) | {settings.value}, scale {settings.label_scale} |",
        f"| patches outside S | {'mean colour (0 after normalisation)' if settings.fill == 'mean' else 'tokens dropped'} |",
        f"| estimator | {ESTIMATORS[settings.estimator]} |",
        f"| evaluations a picture | {errors.mean_budget:.1f} on average (budget {settings.budget}), besides the empty and the full one |",
        f"| coalitions | pool of {settings.pool_size}, seed {settings.seed}; a picture's by the hash of its id |",
        f"| l1_reg | {settings.l1_reg} |",
        f"| arithmetic | {precision_choice} |",
        f"| relative error, from the standard errors | {'none: l1_reg leaves no error bar' if has_no_bars else f'{errors.relative:.3f}'} |",
        f"| pictures without a label | {len(skipped)} |",
        "",
        "Columns: `id`, `class_id`, `attributions` [M] and `standard_error` [M] (row by row over the patch grid), `value_empty`, "
        "`value_full`, `budget`. The attributions of a picture sum to `value_full - value_empty`. The relative error is the root of summed "
        "squared standard errors over summed squared attributions.",
    ]
    if report is not None:
        plain = report.kernel_shap_relative_error
        kernel_shap = f" (Kernel SHAP, same coalitions: {f'{plain:.3f}' if plain == plain else 'no solution'})"
        compared = kernel_shap if settings.estimator == "calibrated" else ""
        lines += [
            "",
            "## What was learned from the pictures",
            "",
            f"Learned from {report.num_fitted} pictures and tried on {report.num_held_out} others, at {report.budget} evaluations, against "
            f"references of a high budget{' (the prior in use is fitted to all of them)' if settings.estimator == 'calibrated' else ''}:",
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

    def __init__(self, job: DatasetLabels) -> None:
        self.num_pictures, self.num_players = 0, 0
        squared_error, squared_label, budget = 0.0, 0.0, 0.0
        number = len(job.shards())
        for index in sorted(job.out.finished(number)):
            with job.out.open(job.out.shard_name(index, number)) as file:
                _, labels = read_labels(file)
            self.num_pictures += len(labels)
            self.num_players = labels.attributions.shape[1]
            squared_error += _sum_of_squares(labels.standard_error)
            squared_label += _sum_of_squares(labels.attributions)
            budget += float(labels.budget.sum())
        self.mean_budget = budget / max(1, self.num_pictures)
        self.relative = (squared_error / max(squared_label, 1e-12)) ** 0.5


def _sum_of_squares(values: np.ndarray) -> float:
    exact: Values = values.astype(np.float64)
    return float(np.square(exact).sum())
