"""Figure 2: normalised accuracy against normalised E-RMSE; beside it, against IoU@10."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sweep.report.figures.style import (
    CHANCE,
    DOTS_PER_INCH,
    GREY,
    LABEL_CEILING,
    PREDICTION_ONLY,
    ZERO_SHOT,
    Caption,
    area,
    colours,
    handles,
    markers,
    num_legend_columns,
)
from sweep.report.result import SweepResult
from sweep.report.tables import chosen_pairs, headline, reference_scores, supervised_of_targets

CAPTION = Caption(
    "Accuracy against explanation error, and against patch overlap",
    "Each point is a pair at its chosen alpha and lambda2, on test. Colour is the source, shape the target "
    "domain. Left: both scores divided by the prediction-only target model's (red dotted lines at 1); grey dashed is "
    "zero-shot, the mean over domains. Hollow shapes are the target model supervised directly. The shapes along the "
    "bottom mark where the zero predictor of each target lies, which explains nothing: a point right of its own "
    "target's mark has more error than no explanation at all. Right: the scale-free view, with chance and the label "
    "ceiling (how well two draws of the labels agree).",
    "Figure 2, for 56 pairs of eight data sets at alpha = 0.5 and lambda2 = 0.8; many pairs lower E-RMSE and keep 90 % of the accuracy.",
)


def trade_off(result: SweepResult) -> Figure:
    """A point a pair in both panels; supervised models hollow, zero predictors along the bottom."""
    is_one_legend = result.sources == result.targets
    widths = [num_legend_columns(names) for names in ([result.targets] if is_one_legend else [result.sources, result.targets])]
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(9.7 + 1.8 * sum(widths), 5.2), layout="constrained")
    left, right, *legends = figure.subplots(1, 2 + len(widths), width_ratios=[1, 1, *(0.44 * width for width in widths)])
    pairs, means, supervised = chosen_pairs(result), headline(result), supervised_of_targets(result)
    for axes, column in ((left, "normalized_e_rmse"), (right, "iou_at_10")):
        _draw_pairs(axes, result, pairs, supervised, column)
        axes.axhline(1.0, **PREDICTION_ONLY)
        axes.axhline(means.loc["zero_shot", "normalized_accuracy"], **ZERO_SHOT)
        axes.set_ylabel("normalised accuracy (larger is better)")
    left.axvline(1.0, **PREDICTION_ONLY)
    left.axvline(means.loc["zero_shot", "normalized_e_rmse"], **ZERO_SHOT)
    left.set_xlabel("normalised E-RMSE (smaller is better)")
    left.set_title("(a) against the prediction-only target")
    _draw_zero_predictors(left, result)
    for name, style in (
        ("prediction_only", PREDICTION_ONLY),
        ("zero_shot", ZERO_SHOT),
        ("chance", CHANCE),
        ("label_ceiling", LABEL_CEILING),
    ):
        if math.isfinite(means.loc[name, "iou_at_10"]):
            right.axvline(means.loc[name, "iou_at_10"], **style, gid=name)
    right.set_xlabel("IoU@10 (larger is better)")
    right.set_title("(b) against chance and ceiling")
    _draw_reference_legend(legends[0])
    if is_one_legend:
        title = "colour: source\nshape: target"
        names = handles(result.targets, colour_of=colours(result.sources), marker_of=markers(result.targets))
        _draw_legend(legends[0], names, title, widths[0])
    else:
        _draw_legend(legends[0], handles(result.sources, colour_of=colours(result.sources)), "colour: source", widths[0])
        _draw_legend(legends[1], handles(result.targets, marker_of=markers(result.targets)), "shape: target", widths[1])
    return figure


def _draw_pairs(axes: Axes, result: SweepResult, pairs: pd.DataFrame, supervised: pd.DataFrame, column: str) -> None:
    colour_of = colours(result.sources)
    for target, marker in markers(result.targets).items():
        to_target = pairs[pairs["target_domain"] == target]
        axes.scatter(
            to_target[column], to_target["normalized_accuracy"], c=[colour_of[source] for source in to_target["source_domain"]],
            marker=marker, s=area(marker), edgecolors="white", linewidths=0.5, zorder=3, gid="pairs",
        )  # fmt: skip
        if target in supervised.index:
            upper = supervised.loc[target]
            axes.scatter(
                [upper[column]], [upper["normalized_accuracy"]], marker=marker, s=area(marker), facecolors="none",
                edgecolors="black", linewidths=1.0, zorder=2, gid="supervised",
            )  # fmt: skip


def _draw_zero_predictors(axes: Axes, result: SweepResult) -> None:
    references = reference_scores(result)
    zero = references[references["reference"] == "zero_predictor"].set_index("domain")["normalized_e_rmse"]
    for target, marker in markers(result.targets).items():
        if target in zero.index and math.isfinite(zero[target]):
            axes.plot(
                [zero[target]], [0.025], marker=marker, markersize=6, color="none", markeredgecolor=GREY,
                transform=axes.get_xaxis_transform(), gid="zero_predictor",
            )  # fmt: skip


def _draw_legend(axes: Axes, names: list[Line2D], title: str, num_columns: int) -> None:
    axes.axis("off")
    axes.legend(handles=names, title=title, loc="upper left", alignment="left", borderaxespad=0, ncols=num_columns)


def _draw_reference_legend(axes: Axes) -> None:
    hollow: dict[str, Any] = {"color": "none", "marker": "o", "markersize": 6, "linestyle": ""}
    lines = [
        Line2D([], [], label="supervised", markeredgecolor="black", **hollow),
        Line2D([], [], label="zero predictor (a)", markeredgecolor=GREY, **hollow),
        Line2D([], [], label="prediction-only", **PREDICTION_ONLY),
        Line2D([], [], label="zero-shot (mean)", **ZERO_SHOT),
        Line2D([], [], label="chance (b)", **CHANCE),
        Line2D([], [], label="label ceiling (b)", **LABEL_CEILING),
    ]
    # As an artist: the next legend of these axes would replace it.
    axes.add_artist(axes.legend(handles=lines, loc="lower left", alignment="left", borderaxespad=0))
