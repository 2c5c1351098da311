"""The report's figures, drawn with Matplotlib into PNG (Agg, no display, no global state)."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sweep.report.figures import coefficients, convergence, examples, matrices, similarities, trade_off
from sweep.report.figures.style import STYLE, Caption
from sweep.report.result import SweepResult


@dataclass(frozen=True)
class Drawing:
    """One figure of the report, as PNG bytes."""

    name: str
    caption: Caption
    png: bytes

    @property
    def is_matrix(self) -> bool:
        return self.name.startswith("matrix_")


def draw_figures(result: SweepResult) -> list[Drawing]:
    """All figures, in the order of the report. The same result gives the same bytes on one machine."""
    drawings = [
        _drawing("trade_off", trade_off.CAPTION, trade_off.trade_off, result),
        _drawing("similarity_correlations", similarities.CAPTION, similarities.similarity_correlations, result),
        _drawing("coefficient_curves", coefficients.caption(result), coefficients.coefficient_panels, result),
    ]
    if not result.convergence.empty:
        drawings.append(_drawing("convergence", convergence.caption(result), convergence.convergence_panel, result))
    for column in matrices.READINGS:
        drawings.append(_drawing(f"matrix_{column}", matrices.caption(result, column), matrices.matrix_panel, result, column))
    for number, start in enumerate(range(0, len(result.examples), examples.EXAMPLES_A_FIGURE), start=1):
        shown = result.examples[start : start + examples.EXAMPLES_A_FIGURE]
        drawings.append(_drawing(f"examples_{number}", examples.CAPTION, examples.example_rows, shown))
    return drawings


def _drawing(name: str, caption: Caption, draw: Callable[..., Figure], *arguments: object) -> Drawing:
    with matplotlib.rc_context(STYLE):
        figure = draw(*arguments)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return Drawing(name=name, caption=caption, png=buffer.getvalue())
