"""Heat maps of the chosen pairs: a row a source, a column a target."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.metrics import SCORE_NAMED, SCORES
from sweep.report.colour_scale import colour_scale
from sweep.report.figures.style import DOTS_PER_INCH, Caption
from sweep.report.result import SweepResult
from sweep.report.tables import PAIR_TITLES, chosen_pairs, matrix, supervised_of_targets
from sweep.report.text import shown_name

READINGS = {
    **{score.name: score.reading for score in SCORES if score.reading is not None},
    "similarity_prediction_only": "Cosine of the prediction-only task vectors; needs no explanation labels.",
    "similarity_explainability": "Cosine of the explainability vectors of source and target.",
    "lambda2": "The chosen lambda2, and below it the chosen alpha.",
}
MOST_ANNOTATED = 24


def caption(result: SweepResult, column: str) -> Caption:
    title = PAIR_TITLES[column]
    has_frames = column in SCORE_NAMED and set(result.sources) & set(result.targets)
    frames = " Framed, where source and target are one: the model supervised on that domain." if has_frames else ""
    return Caption(title[0].upper() + title[1:], f"Row: source, column: target domain. {READINGS[column]}{frames}")


def matrix_panel(result: SweepResult, column: str) -> Figure:
    """[S, T] heat map of one column of the chosen pairs, annotated; where a source is the target, scores are the supervised model's."""
    pairs = chosen_pairs(result)
    values = matrix(result, pairs, column).to_numpy(dtype=float, copy=True)
    alphas = matrix(result, pairs, "alpha").to_numpy(dtype=float)
    own = {}
    if column in SCORE_NAMED:
        supervised = supervised_of_targets(result)[column]
        own = {
            (result.sources.index(name), position): float(supervised[name])
            for position, name in enumerate(result.targets)
            if name in result.sources and math.isfinite(supervised.get(name, math.nan))
        }
    for place, value in own.items():
        values[place] = value
    num_rows, num_columns = values.shape
    figure = Figure(
        dpi=DOTS_PER_INCH, figsize=(3.0 + 0.47 * max(num_columns, 4), 1.95 + 0.47 * max(num_rows, 3)), layout="constrained"
    )
    axes = figure.subplots()
    colour_map, norm = _colours(column, values, result)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colour_map, norm=norm)
    for (row, position), value in np.ndenumerate(values):
        if math.isfinite(value) and max(values.shape) <= MOST_ANNOTATED:
            red, green, blue, _ = image.cmap(image.norm(value))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.2f}" + (f"\n{alphas[row, position]:.2f}" if column == "lambda2" else "")
            axes.text(
                position, row, text, ha="center", va="center", color="white" if is_dark else "black",
                fontsize=8 if max(values.shape) <= 12 else 6,
            )  # fmt: skip
    for row, position in own:
        _draw_frame(axes, row, position)
    axes.set_xticks(range(num_columns), [shown_name(name) for name in result.targets], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(num_rows), [shown_name(name) for name in result.sources])
    axes.set_xlim(-0.5, num_columns - 0.5)
    axes.set_ylim(num_rows - 0.5, -0.5)
    axes.set_xlabel("target domain")
    axes.set_ylabel("source")
    axes.spines[:].set_visible(False)
    if column != "lambda2":
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _draw_frame(axes: Axes, row: int, position: int) -> None:
    corners = np.array([[-0.46, -0.46], [0.46, -0.46], [0.46, 0.46], [-0.46, 0.46], [-0.46, -0.46]])
    axes.plot(corners[:, 0] + position, corners[:, 1] + row, color="black", linewidth=1.1, gid="supervised")


def _colours(column: str, values: NDArray[np.float64], result: SweepResult) -> tuple[str, Normalize]:
    scale = colour_scale(result, column, values)
    if column == "lambda2":
        return "BuPu", Normalize(scale.low, scale.high * 1.6)  # pale: the numbers are what is read
    if scale.middle is None:
        colour_map, norm = "Blues", Normalize(scale.low, scale.high, clip=True)
    else:
        colour_map, norm = "RdBu", TwoSlopeNorm(scale.middle, scale.low, scale.high)
    return (f"{colour_map}_r" if scale.lower_is_better else colour_map), norm
