"""Figure 4: normalised E-RMSE, IoU@10 and normalised accuracy against lambda2."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sweep.report.figures.style import CHANCE, DOTS_PER_INCH, PREDICTION_ONLY, Caption, colours, handles, markers, num_legend_columns
from sweep.report.result import SweepResult
from sweep.report.tables import SCORE_TITLES, alpha_bands, coefficient_curves, curve_split, headline


def caption(result: SweepResult) -> Caption:
    return Caption(
        "The scaling coefficient lambda2",
        f"Scores on the {curve_split(result)} split against lambda2, a line a target domain, the mean over its sources. Each pair "
        "counts at its chosen alpha; between its evaluated points it is taken as straight. "
        + ("Bands: 95 % t intervals over the alphas. " if result.cells["alpha"].round(9).nunique() > 2 else "")
        + "A falling E-RMSE with a flat IoU@10 is shrinkage, not explanation.",
        "Figure 4, from ImageNet to ten targets; the normalised accuracy stays above 0.9 for lambda2 up to 1.0.",
    )


def coefficient_panels(result: SweepResult) -> Figure:
    """Three panels with a line a target domain."""
    num_columns = num_legend_columns(result.targets)
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(9.7 + 1.8 * num_columns, 3.9), layout="constrained")
    colour_of, marker_of = colours(result.targets), markers(result.targets)
    *panels, legend = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.54 * num_columns])
    scores = ("normalized_e_rmse", "iou_at_10", "normalized_accuracy")
    for letter, axes, score in zip("abc", panels, scores, strict=True):
        curves, bands = coefficient_curves(result, score), alpha_bands(result, score)
        for target in result.targets:
            curve, band = curves[target].dropna(), bands[target]
            if len(band):
                axes.fill_between(band.index, band["low"], band["high"], color=colour_of[target], alpha=0.12, linewidth=0, gid="bands")
            axes.plot(curve.index, curve, marker=marker_of[target], markersize=4, linewidth=1.2, color=colour_of[target])
        axes.set_title(f"({letter}) {SCORE_TITLES[score]}")
        axes.set_xlabel("lambda2")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        if score == "iou_at_10":
            axes.axhline(headline(result).loc["chance", "iou_at_10"], **CHANCE)
        else:
            axes.axhline(1.0, **PREDICTION_ONLY)
    legend.axis("off")
    entries = [
        *handles(result.targets, colour_of=colour_of, marker_of=marker_of, line=True),
        Line2D([], [], label="prediction-only", **PREDICTION_ONLY),
        Line2D([], [], label="chance", **CHANCE),
    ]
    legend.legend(handles=entries, title="target domain", loc="center left", alignment="left", ncols=num_columns)
    return figure
