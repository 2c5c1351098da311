"""The report's figures, drawn with Matplotlib into PNG (Agg, no display, no global state)."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from core.metrics import iou_at, top_patches
from core.statistics import least_squares_line, pearson
from sweep.report import readings as captions
from sweep.report.highlighting import faded, outline
from sweep.report.readings import MATRIX_TITLES, Caption
from sweep.report.result import Example, SweepResult
from sweep.report.tables import (
    SCORE_TITLES,
    chosen_pairs,
    coefficient_curves,
    curve_split,
    headline,
    matrix,
    pair_references,
    reference_scores,
)

EXAMPLES_A_FIGURE = 8
MARKERS = "os^DvPX*<>phd8H"

# Domain names are the user's: "$" in one must not start mathematics.
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_DOTS_PER_INCH = 110
_NUM_TOP_PATCHES = 10
_SIDE = 0.94  # of a picture in the grid of examples, whose columns are 1 apart
_PREDICTION_ONLY: dict[str, Any] = {"color": "#c0392b", "linestyle": ":", "linewidth": 1.3, "zorder": 1}
_ZERO_SHOT: dict[str, Any] = {"color": "#8a8a8a", "linestyle": "--", "linewidth": 1.2, "zorder": 1}
_CHANCE: dict[str, Any] = {"color": "#b8860b", "linestyle": "-.", "linewidth": 1.2, "zorder": 1}
_CEILING: dict[str, Any] = {"color": "#2e7d32", "linestyle": "-", "linewidth": 1.2, "zorder": 1}

_ATTRIBUTION_TITLES = {
    "label": "label",
    "transferred": "transferred",
    "prediction_only": "prediction-only",
    "supervised": "supervised",
    "zero_shot": "zero-shot",
}


@dataclass(frozen=True)
class Drawing:
    """One figure of the report, as PNG bytes."""

    name: str
    caption: Caption
    png: bytes


def draw_figures(result: SweepResult) -> list[Drawing]:
    """All figures, in the order of the report. The same result gives the same bytes on one machine."""
    curves = captions.coefficient_curves(curve_split(result))
    drawings = [
        _drawing("trade_off", captions.TRADE_OFF, trade_off, result),
        _drawing("similarity_correlations", captions.SIMILARITY_CORRELATIONS, similarity_correlations, result),
        _drawing("coefficient_curves", curves, coefficient_panels, result),
    ]
    for column in captions.MATRIX_READINGS:
        drawings.append(_drawing(f"matrix_{column}", captions.matrix(column), matrix_panel, result, column))
    for number, start in enumerate(range(0, len(result.examples), EXAMPLES_A_FIGURE), start=1):
        shown = result.examples[start : start + EXAMPLES_A_FIGURE]
        drawings.append(_drawing(f"examples_{number}", captions.EXAMPLES, example_rows, shown))
    return drawings


def trade_off(result: SweepResult) -> Figure:
    """Figure 2: normalised accuracy against normalised E-RMSE; beside it, against IoU@10."""
    num_columns = _num_legend_columns(result.domains)
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(9.7 + 1.8 * num_columns, 5.2), layout="constrained")
    left, right, legend = figure.subplots(1, 3, width_ratios=[1, 1, 0.44 * num_columns])
    references = reference_scores(result)
    means = headline(result)
    pairs = chosen_pairs(result)
    supervised = _supervised_of_targets(result)
    for axes, column in ((left, "normalized_e_rmse"), (right, "iou_at_10")):
        for domain, marker in zip(result.domains, _cycle(MARKERS), strict=False):
            to_domain = pairs[pairs["target_domain"] == domain]
            colours = [_colours(result.domains)[source] for source in to_domain["source_domain"]]
            axes.scatter(
                to_domain[column], to_domain["normalized_accuracy"], c=colours, marker=marker, s=_area(marker),
                edgecolors="white", linewidths=0.5, zorder=3, gid="pairs",
            )  # fmt: skip
            if domain in supervised.index:
                upper = supervised.loc[domain]
                axes.scatter(
                    [upper[column]], [upper["normalized_accuracy"]], marker=marker, s=_area(marker), facecolors="none",
                    edgecolors="black", linewidths=1.0, zorder=2, gid="supervised",
                )  # fmt: skip
        axes.axhline(1.0, **_PREDICTION_ONLY)
        axes.axhline(means.loc["zero_shot", "normalized_accuracy"], **_ZERO_SHOT)
        axes.set_ylabel("normalised accuracy (larger is better)")
    left.axvline(1.0, **_PREDICTION_ONLY)
    left.axvline(means.loc["zero_shot", "normalized_e_rmse"], **_ZERO_SHOT)
    left.set_xlabel("normalised E-RMSE (smaller is better)")
    left.set_title("(a) against the prediction-only target")
    zero = references[references["reference"] == "zero_predictor"].set_index("domain")["normalized_e_rmse"]
    for domain, marker in zip(result.domains, _cycle(MARKERS), strict=False):
        if domain in zero.index and math.isfinite(zero[domain]):
            left.plot(
                [zero[domain]], [0.025], marker=marker, markersize=6, color="none", markeredgecolor="#555555",
                transform=left.get_xaxis_transform(), gid="zero_predictor",
            )  # fmt: skip
    for name, style in (
        ("prediction_only", _PREDICTION_ONLY),
        ("zero_shot", _ZERO_SHOT),
        ("chance", _CHANCE),
        ("label_ceiling", _CEILING),
    ):
        if math.isfinite(means.loc[name, "iou_at_10"]):
            right.axvline(means.loc[name, "iou_at_10"], **style, gid=name)
    right.set_xlabel("IoU@10 (larger is better)")
    right.set_title("(b) against chance and ceiling")
    _trade_off_legend(legend, result.domains)
    return figure


def similarity_correlations(result: SweepResult) -> Figure:
    """Figure 3: similarity of the vectors and E-RMSE, three panels with line, r and p."""
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(11.5, 3.7), layout="constrained")
    pairs = chosen_pairs(result)
    panels = (
        ("(a)", "similarity_explainability", "normalized_e_rmse"),
        ("(b)", "similarity_explainability", "similarity_prediction_only"),
        ("(c)", "similarity_prediction_only", "normalized_e_rmse"),
    )
    for axes, (letter, x, y) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.scatter(pairs[x], pairs[y], s=20, color="#2b6cb0", alpha=0.75, linewidths=0, zorder=2, gid="pairs")
        fit, line = pearson(pairs[x], pairs[y]), least_squares_line(pairs[x], pairs[y])
        if math.isfinite(line.slope):
            ends = np.array([pairs[x].min(), pairs[x].max()])
            axes.plot(ends, line.slope * ends + line.intercept, color="#6b46c1", linewidth=1.6, zorder=3)
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#999999", "alpha": 0.9}
        axes.set_title(f"{letter} n = {fit.num_points}")
        text = correlation_text(fit.r, fit.p_value)
        axes.text(0.97, 0.96, text, transform=axes.transAxes, ha="right", va="top", bbox=box)
        axes.set_xlabel(MATRIX_TITLES[x])
        axes.set_ylabel(MATRIX_TITLES[y])
        axes.margins(y=0.16)
    return figure


def coefficient_panels(result: SweepResult) -> Figure:
    """Figure 4: normalised E-RMSE, IoU@10 and normalised accuracy against lambda2, a line a target domain."""
    num_columns = _num_legend_columns(result.domains)
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(9.7 + 1.8 * num_columns, 3.9), layout="constrained")
    colours = _colours(result.domains)
    *panels, legend = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.54 * num_columns])
    scores = ("normalized_e_rmse", "iou_at_10", "normalized_accuracy")
    for letter, axes, score in zip("abc", panels, scores, strict=True):
        curves = coefficient_curves(result, score)
        for domain, marker in zip(result.domains, _cycle(MARKERS), strict=False):
            curve = curves[domain].dropna()
            axes.plot(curve.index, curve, marker=marker, markersize=4, linewidth=1.2, color=colours[domain])
        axes.set_title(f"({letter}) {SCORE_TITLES[score]}")
        axes.set_xlabel("lambda2")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if score == "iou_at_10":
            axes.axhline(headline(result).loc["chance", "iou_at_10"], **_CHANCE)
        else:
            axes.axhline(1.0, **_PREDICTION_ONLY)
    legend.axis("off")
    handles = _domain_handles(result.domains, line=True) + [
        Line2D([], [], label="prediction-only", **_PREDICTION_ONLY),
        Line2D([], [], label="chance", **_CHANCE),
    ]
    legend.legend(handles=handles, title="target domain", loc="center left", alignment="left", ncols=num_columns)
    return figure


def matrix_panel(result: SweepResult, column: str) -> Figure:
    """[N, N] heat map of one column of the chosen pairs, annotated; scores carry `supervised` on the diagonal."""
    pairs = chosen_pairs(result)
    values = matrix(result, pairs, column).to_numpy(dtype=float, copy=True)
    alphas = matrix(result, pairs, "alpha").to_numpy(dtype=float)
    num_domains = len(result.domains)
    diagonal = np.full(num_domains, math.nan)
    if column in SCORE_TITLES:
        diagonal = _supervised_of_targets(result)[column].reindex(list(result.domains)).to_numpy(dtype=float)
        np.fill_diagonal(values, diagonal)
    side = 2.3 + 0.47 * max(num_domains, 4)
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(side + 0.7, side - 0.35), layout="constrained")
    axes = figure.subplots()
    colour_map, norm = _matrix_colours(column, values, result)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colour_map, norm=norm)
    for row in range(num_domains):
        for position in range(num_domains):
            if math.isfinite(values[row, position]) and num_domains <= 24:
                red, green, blue, _ = image.cmap(image.norm(values[row, position]))
                is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{values[row, position]:.2f}"
                text += f"\n{alphas[row, position]:.2f}" if column == "lambda2" else ""
                axes.text(
                    position, row, text, ha="center", va="center", color="white" if is_dark else "black",
                    fontsize=8 if num_domains <= 12 else 6,
                )  # fmt: skip
        if math.isfinite(diagonal[row]):
            frame = np.array([[-0.46, -0.46], [0.46, -0.46], [0.46, 0.46], [-0.46, 0.46], [-0.46, -0.46]]) + row
            axes.plot(frame[:, 0], frame[:, 1], color="black", linewidth=1.1, gid="supervised")
    names = [shown_name(domain) for domain in result.domains]
    axes.set_xticks(range(num_domains), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(num_domains), names)
    axes.set_xlim(-0.5, num_domains - 0.5)
    axes.set_ylim(num_domains - 0.5, -0.5)
    axes.set_xlabel("target domain")
    axes.set_ylabel("source domain")
    axes.spines[:].set_visible(False)
    if column != "lambda2":
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def example_rows(examples: Sequence[Example]) -> Figure:
    """Figure 5: a row a picture; the input, then its ten strongest patches by the label and by each model."""
    names = [name for name in _ATTRIBUTION_TITLES if any(name in example.attributions for example in examples)]
    num_columns, num_rows = 1 + len(names), len(examples)
    figure = Figure(dpi=_DOTS_PER_INCH, figsize=(2.1 + 1.35 * num_columns, 0.4 + 1.52 * num_rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(-1.55, num_columns * 1.0)
    axes.set_ylim(num_rows * 1.13, -0.26)
    for column, title in enumerate(["input", *(_ATTRIBUTION_TITLES[name] for name in names)]):
        axes.text(column + _SIDE / 2, -0.07, title, ha="center", va="bottom", fontsize=9, fontweight="bold")
    for row, example in enumerate(examples):
        top = row * 1.13
        label = example.attributions["label"]
        description = f"{shown_name(example.class_name, 26)}\nvector from {shown_name(example.source_domain)}"
        axes.text(-1.5, top + 0.37, shown_name(example.domain), ha="left", va="bottom", fontweight="bold")
        axes.text(-1.5, top + 0.41, description, ha="left", va="top", color="#444444", fontsize=8)
        _show_picture(axes, example.pixels, 0, top)
        for column, name in enumerate(names, start=1):
            if name not in example.attributions:
                axes.text(column + _SIDE / 2, top + _SIDE / 2, "not run", ha="center", va="center", color="#888888")
                continue
            attributions = example.attributions[name]
            is_top = top_patches(attributions[None], _NUM_TOP_PATCHES)[0]
            _show_picture(axes, faded(example.pixels, is_top), column, top)
            edges = [[(column + _SIDE * x, top + _SIDE * y) for x, y in edge] for edge in outline(is_top)]
            axes.add_collection(LineCollection(edges, colors="#d6336c", linewidths=1.2))
            if name == "label":
                place = (column + _SIDE, top + _SIDE + 0.02)
                axes.text(*place, "IoU@10", ha="right", va="top", fontsize=8, color="#444444")
            else:
                overlap = iou_at(_NUM_TOP_PATCHES, attributions[None], label[None])
                place = (column + _SIDE / 2, top + _SIDE + 0.02)
                axes.text(*place, f"{overlap:.2f}", ha="center", va="top", fontsize=8, gid=name)
    return figure


def correlation_text(r: float, p_value: float) -> str:
    """`r = 0.95, p < 0.001`; says so when there is no r."""
    if not math.isfinite(r):
        return "r not defined"
    return f"r = {r:.2f}, " + ("p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}")


def shown_name(name: str, length: int = 20) -> str:
    """A user's name on one line, printable and short. A leading underscore would hide it from a legend."""
    printable = "".join(c if c.isprintable() else " " for c in name)
    printable = " " + printable if printable.startswith("_") else printable
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def _drawing(name: str, caption: Caption, draw: Callable[..., Figure], *arguments: object) -> Drawing:
    with matplotlib.rc_context(_STYLE):
        figure = draw(*arguments)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return Drawing(name=name, caption=caption, png=buffer.getvalue())


def _supervised_of_targets(result: SweepResult) -> pd.DataFrame:
    """The supervised scores of each target domain, mean over the alphas of the pairs that transfer to it."""
    references = pair_references(result)
    return references[references["reference"] == "supervised"].groupby("target_domain").mean(numeric_only=True)


def _cycle(markers: str) -> list[str]:
    return list(markers) * 100


def _num_legend_columns(domains: Sequence[str]) -> int:
    return 1 + (len(domains) - 1) // 16


def _area(marker: str) -> float:
    """Marker sizes that look alike: a star fills less of its square."""
    return 90.0 if marker == "*" else 44.0


def _colours(domains: Sequence[str]) -> dict[str, str]:
    if len(domains) <= 10:
        palette = matplotlib.colormaps["tab10"](range(10))
    else:
        palette = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(domains)))
    return {domain: to_hex(colour) for domain, colour in zip(domains, palette, strict=False)}


def _domain_handles(domains: Sequence[str], *, line: bool) -> list[Line2D]:
    colours = _colours(domains)
    style: dict[str, Any] = {"markersize": 6, "linestyle": "-" if line else ""}
    return [
        Line2D([], [], color=colours[d], marker=marker, label=shown_name(d), **style)
        for d, marker in zip(domains, _cycle(MARKERS), strict=False)
    ]


def _trade_off_legend(axes: Axes, domains: Sequence[str]) -> None:
    axes.axis("off")
    first = axes.legend(
        handles=_domain_handles(domains, line=False), title="colour: source\nshape: target",
        loc="upper left", alignment="left", borderaxespad=0,
        ncols=_num_legend_columns(domains),
    )  # fmt: skip
    axes.add_artist(first)
    hollow: dict[str, Any] = {"color": "none", "marker": "o", "markersize": 6, "linestyle": ""}
    lines = [
        Line2D([], [], label="supervised", markeredgecolor="black", **hollow),
        Line2D([], [], label="zero predictor (a)", markeredgecolor="#555555", **hollow),
        Line2D([], [], label="prediction-only", **_PREDICTION_ONLY),
        Line2D([], [], label="zero-shot (mean)", **_ZERO_SHOT),
        Line2D([], [], label="chance (b)", **_CHANCE),
        Line2D([], [], label="label ceiling (b)", **_CEILING),
    ]
    axes.legend(handles=lines, loc="lower left", alignment="left", borderaxespad=0)


def _matrix_colours(column: str, values: NDArray[np.float64], result: SweepResult) -> tuple[str, Normalize]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if column in ("normalized_e_rmse", "normalized_accuracy"):
        reach = max(abs(low - 1), abs(high - 1), 0.25)  # a loss of a few per cent must not look like a disaster
        return ("RdBu_r" if column == "normalized_e_rmse" else "RdBu"), TwoSlopeNorm(1.0, 1.0 - reach, 1.0 + reach)
    if column == "iou_at_10":
        chance = headline(result).loc["chance", "iou_at_10"]
        start = chance if math.isfinite(chance) else 0.0
        return "Blues", Normalize(start, max(high, start + 0.05), clip=True)
    if column == "lambda2":
        return "BuPu", Normalize(min(low, 0.0), max(high, 0.1) * 1.6)  # pale: the numbers are what is read
    reach = max(abs(low), abs(high), 0.2)
    return "RdBu", TwoSlopeNorm(0.0, -reach, reach)


def _show_picture(axes: Axes, pixels: NDArray[np.uint8], column: int, top: float) -> None:
    axes.imshow(pixels, extent=(column, column + _SIDE, top + _SIDE, top), interpolation="nearest", aspect="auto")
