"""Figure 5: pictures with their strongest patches by the label and by each model."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.metrics import iou_at, top_patches
from sweep.report.example import Example
from sweep.report.figures.highlighting import faded, outline
from sweep.report.figures.style import DOTS_PER_INCH, Caption
from sweep.report.result import SOURCE_MODELS
from sweep.report.text import shown_name

CAPTION = Caption(
    "Pictures and their ten strongest patches",
    "Each row is a test picture of the domain at its left. The ten patches with the highest attribution for the true "
    "class are shown as they are, outlined; the rest is faded. Below each: IoU@10 with the label. The transferred "
    "explanation comes from the source named at the left; source, prediction-only and source, self-explaining are that source's own "
    "models with the target's classes. A source of combined vectors has no model of its own. Supervised was trained on the target's own "
    "labels: what a transfer does without.",
    "Figure 5, which has all columns but the last.",
)
EXAMPLES_A_FIGURE = 8
_NUM_TOP_PATCHES = 10
_SIDE = 0.94  # of a picture in the grid, whose columns are 1 apart
_ATTRIBUTION_TITLES = {
    "label": "label",
    "transferred": "transferred",
    "prediction_only": "prediction-only",
    "source_prediction_only": "source,\nprediction-only",
    "source_self_explaining": "source,\nself-explaining",
    "zero_shot": "zero-shot",
    "supervised": "supervised",
}


def example_rows(examples: Sequence[Example]) -> Figure:
    """Figure 5: a row a picture; the input, then its ten strongest patches by the label and by each model."""
    names = [name for name in _ATTRIBUTION_TITLES if any(name in example.attributions for example in examples)]
    num_columns, num_rows = 1 + len(names), len(examples)
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(2.1 + 1.35 * num_columns, 0.56 + 1.52 * num_rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(-1.55, num_columns * 1.0)
    axes.set_ylim(num_rows * 1.13, -0.4)
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
                text = "no such\nmodel" if name in SOURCE_MODELS else "not run"
                axes.text(column + _SIDE / 2, top + _SIDE / 2, text, ha="center", va="center", color="#888888")
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


def _show_picture(axes: Axes, pixels: NDArray[np.uint8], column: int, top: float) -> None:
    axes.imshow(pixels, extent=(column, column + _SIDE, top + _SIDE, top), interpolation="nearest", aspect="auto")
