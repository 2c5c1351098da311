"""How the figures look alike: the style sheet, the lines of the references, colours and markers of the domains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from sweep.report.text import shown_name

# Domain names are the user's: "$" in one must not start mathematics.
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
DOTS_PER_INCH = 110
MARKERS = "os^DvPX*<>phd8H"
GREY = "#555555"

PREDICTION_ONLY: dict[str, Any] = {"color": "#c0392b", "linestyle": ":", "linewidth": 1.3, "zorder": 1}
ZERO_SHOT: dict[str, Any] = {"color": "#8a8a8a", "linestyle": "--", "linewidth": 1.2, "zorder": 1}
CHANCE: dict[str, Any] = {"color": "#b8860b", "linestyle": "-.", "linewidth": 1.2, "zorder": 1}
LABEL_CEILING: dict[str, Any] = {"color": "#2e7d32", "linestyle": "-", "linewidth": 1.2, "zorder": 1}

_LEVEL_COLOURS = ("#0072b2", "#cc79a7", "#882255", "#56b4e9", "#332288")
"""Of Okabe and Ito's and of Tol's palettes, which the colour-blind tell apart, those that lie near no reference's colour."""
_LEVEL_DASHES = ((0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)))


@dataclass(frozen=True)
class Caption:
    """What stands under a figure: its title, how to read it in words that need no colour, and what the paper has there, if anything."""

    title: str
    text: str
    paper: str = ""


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour a name, all different."""
    if len(names) <= 10:
        palette = matplotlib.colormaps["tab10"](range(10))
    else:
        palette = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    return {name: to_hex(colour) for name, colour in zip(names, palette, strict=False)}


def level_lines(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A line's colour and dashes a name: neighbours differ in both, so that none are told apart by hue alone."""
    return {
        name: {"color": _LEVEL_COLOURS[n % len(_LEVEL_COLOURS)], "linestyle": _LEVEL_DASHES[n % len(_LEVEL_DASHES)], "linewidth": 1.6}
        for n, name in enumerate(names)
    }


def markers(names: Sequence[str]) -> dict[str, str]:
    """A shape a name; they come round again after the fifteenth."""
    return {name: MARKERS[position % len(MARKERS)] for position, name in enumerate(names)}


def area(marker: str) -> float:
    """Marker sizes that look alike: a star fills less of its square."""
    return 90.0 if marker == "*" else 44.0


def num_legend_columns(names: Sequence[str]) -> int:
    """Columns of a legend that names them all and is no higher than its figure."""
    return 1 + (len(names) - 1) // 16


def handles(
    names: Sequence[str], *, colour_of: dict[str, str] | None = None, marker_of: dict[str, str] | None = None, line: bool = False
) -> list[Line2D]:
    """Legend entries of names: in grey where colour says nothing, round where shape says nothing."""
    return [
        Line2D(
            [], [], color=colour_of[name] if colour_of else GREY, marker=marker_of[name] if marker_of else "o", markersize=6,
            linestyle="-" if line else "", label=shown_name(name),
        )
        for name in names
    ]  # fmt: skip
