"""Figure 4: normalised E-RMSE, IoU@10 and normalised accuracy against lambda2."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sweep.report.evidence import Group, groups
from sweep.report.figures.style import CHANCE, DOTS_PER_INCH, PREDICTION_ONLY, Caption, colours, handles, markers, num_legend_columns
from sweep.report.result import SweepResult
from sweep.report.tables import SCORE_TITLES, alpha_bands, coefficient_curves, curve_split, headline
from sweep.report.text import shown_name

_MOST_ROWS = 6
"""Sources up to which each has a row of panels."""
_SCORES = {"normalized_e_rmse": "smaller is better", "iou_at_10": "larger is better", "normalized_accuracy": "larger is better"}


def caption(result: SweepResult) -> Caption:
    rows = _rows(result)
    is_mean = any(len(row.sources) > 1 for row in rows)
    shown = f" A row of panels each: {', '.join(row.name for row in rows)}." if len(rows) > 1 else f" From {rows[0].name}."
    return Caption(
        "The scaling coefficient lambda2",
        f"Scores on the {curve_split(result)} split against lambda2, a line a target domain."
        + shown
        + (" Of several sources the mean over those that a target has." if is_mean else "")
        + " Each pair counts at its chosen alpha; between its evaluated points it is taken as straight, and a line ends where "
        + ("the first of its pairs does. " if is_mean else "its points do. ")
        + ("Bands: 95 % t intervals over the alphas. " if result.cells["alpha"].round(9).nunique() > 2 else "")
        + "A falling E-RMSE with a flat IoU@10 is shrinkage, not explanation.",
        "Figure 4, from ImageNet to ten targets; the normalised accuracy stays above 0.9 for lambda2 up to 1.0.",
    )


def coefficient_panels(result: SweepResult) -> Figure:
    """Three panels with a line a target domain: of all pairs together, else a row of panels a source."""
    rows, num_columns = _rows(result), num_legend_columns(result.targets)
    size = 9.7 + 1.8 * num_columns, 3.9 if len(rows) == 1 else 3.3 * len(rows)
    figure = Figure(dpi=DOTS_PER_INCH, figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), 4, width_ratios=[1, 1, 1, 0.54 * num_columns])
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    above: list[Axes | None] = [None, None, None]
    for number, row in enumerate(rows):
        for column, (score, better) in enumerate(_SCORES.items()):
            axes = above[column] = figure.add_subplot(grid[number, column], sharex=above[0], sharey=above[column])
            _draw_curves(axes, result, row, score)
            axes.set_title(f"({next(letters)}) {row.name}" if len(rows) > 1 else f"({next(letters)}) {SCORE_TITLES[score]}")
            axes.set_ylabel(f"{SCORE_TITLES[score]} ({better})")
            if number == len(rows) - 1:
                axes.set_xlabel("lambda2")
    _draw_legend(figure.add_subplot(grid[:, 3]), result, num_columns)
    return figure


def _rows(result: SweepResult) -> list[Group]:
    """What has a row of panels: all pairs of one set of domains together, else each source, and of many those that are told together."""
    if result.is_all_pairs:
        return [Group("all sources", result.sources)]
    if len(result.sources) <= _MOST_ROWS:
        return [Group(shown_name(source), (source,)) for source in result.sources]
    return groups(result)


def _draw_curves(axes: Axes, result: SweepResult, row: Group, score: str) -> None:
    colour_of, marker_of = colours(result.targets), markers(result.targets)
    curves, bands = coefficient_curves(result, score, row.sources), alpha_bands(result, score, row.sources)
    for target in result.targets:
        curve, band = curves[target].dropna(), bands[target]
        if len(band):
            axes.fill_between(band.index, band["low"], band["high"], color=colour_of[target], alpha=0.12, linewidth=0, gid="bands")
        axes.plot(curve.index, curve, marker=marker_of[target], markersize=4, linewidth=1.2, color=colour_of[target])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if score == "iou_at_10":
        axes.axhline(headline(result).loc["chance", "iou_at_10"], **CHANCE)
    else:
        axes.axhline(1.0, **PREDICTION_ONLY)


def _draw_legend(axes: Axes, result: SweepResult, num_columns: int) -> None:
    axes.axis("off")
    entries = [
        *handles(result.targets, colour_of=colours(result.targets), marker_of=markers(result.targets), line=True),
        Line2D([], [], label="prediction-only", **PREDICTION_ONLY),
        Line2D([], [], label="chance", **CHANCE),
    ]
    axes.legend(handles=entries, title="target domain", loc="center left", alignment="left", ncols=num_columns)
