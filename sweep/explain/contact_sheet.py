"""Pictures beside their maps on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweep.report.text import shown_name

_COLUMNS = 4
_SIDE_INCHES = 1.7
_DOTS_PER_INCH = 110


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture on the sheet. pixels: what the model saw; coloured: with its map, and with others beside; uint8 [H, W, 3] all."""

    name: str
    title: str
    pixels: NDArray[np.uint8]
    coloured: tuple[NDArray[np.uint8], ...]


def contact_sheet(entries: Sequence[Entry], note: str) -> bytes:
    """PNG of the pictures, each with its coloured maps at its right. note: stands under them, how to read it."""
    num_sides = 1 + max(len(entry.coloured) for entry in entries)
    columns = min(_COLUMNS if num_sides == 2 else _COLUMNS - 1, len(entries))
    rows = -(-len(entries) // columns)
    each = num_sides * _SIDE_INCHES + 0.05 * (num_sides - 2) + 0.25
    width, height = columns * each + 0.1, rows * (_SIDE_INCHES + 0.55) + 0.45
    with rc_context({"text.parse_math": False, "font.size": 8}):  # names are the user's: "$" in one must not start mathematics
        figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
        for number, entry in enumerate(entries):
            row, column = divmod(number, columns)
            left = (0.1 + column * each) / width
            bottom = 1.0 - (row + 1) * (_SIDE_INCHES + 0.55) / height + 0.1 / height
            for side, pixels in enumerate((entry.pixels, *entry.coloured)):
                place = (left + side * (_SIDE_INCHES + 0.05) / width, bottom, _SIDE_INCHES / width, _SIDE_INCHES / height)
                axes = figure.add_axes(place)
                axes.imshow(pixels, interpolation="nearest", aspect="auto")
                axes.axis("off")
                if side == 0:
                    text = f"{shown_name(entry.name, 44)}\n{shown_name(entry.title, 44)}"
                    axes.text(0, 1.03, text, transform=axes.transAxes, ha="left", va="bottom", linespacing=1.25)
        figure.text(0.1 / width, 0.12 / height, note, ha="left", va="bottom", color="#555555")
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
