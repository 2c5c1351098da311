"""Figure 6: IoU@10 of Kernel SHAP against its number of evaluations, and the level that one pass of a transferred model reaches."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from core.statistics.crossing import crossing_interval
from core.statistics.intervals import Interval, mean_interval
from sweep.report.figures.style import CHANCE, DOTS_PER_INCH, LABEL_CEILING, Caption, level_lines
from sweep.report.result import SweepResult
from sweep.report.tables import headline
from sweep.report.text import shown_name

_CURVE = "#333333"
PAPER_CROSSING = 150
"""Perturbations, of ViT-B/32 over the paper's ten targets."""


def caption(result: SweepResult) -> Caption:
    levels = "; ".join(f"{shown_name(source)}: {_words(found)}" for source, (_, found) in _levels(result).items())
    return Caption(
        "How many evaluations one pass is worth",
        "IoU@10 of plain Kernel SHAP with the test labels, mean over the targets with its 95 % interval, against its evaluations a "
        "picture; the labels were made on other coalitions. Level lines: the transferred models, one pass on the same pictures; "
        "a diamond where Kernel SHAP reaches one. Kernel SHAP reaches the level "
        f"at: {levels}. In the paper: {PAPER_CROSSING}. The labels are estimates too: the label ceiling is what a second draw of them "
        "reaches.",
    )


def convergence_panel(result: SweepResult) -> Figure:
    """One panel: the curve with its band, a level a source, chance and label ceiling."""
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(7.8, 4.2), layout="constrained")
    axes = figure.subplots()
    table = result.convergence.groupby(["budget", "target_domain"])["iou_at_10"].mean().unstack("target_domain")
    means = [mean_interval(row.to_numpy()) for _, row in table.iterrows()]
    budgets = table.index.to_numpy()
    axes.plot(budgets, [m.estimate for m in means], color=_CURVE, marker="o", markersize=4, label="Kernel SHAP")
    if all(math.isfinite(m.low) for m in means):
        label = f"its 95 % interval, {means[0].n} targets"
        axes.fill_between(budgets, [m.low for m in means], [m.high for m in means], color=_CURVE, alpha=0.13, linewidth=0, label=label)
    line_of = level_lines(result.sources)
    for source, (level, found) in _levels(result).items():
        axes.axhline(level, label=f"from {shown_name(source)}, one pass", **line_of[source])
        if found is not None:
            axes.plot([found.estimate], [level], marker="D", color=line_of[source]["color"], markersize=6, zorder=4)
    references = headline(result)["iou_at_10"]
    axes.axhline(references["chance"], label="chance", **CHANCE)
    axes.axhline(references["label_ceiling"], label="label ceiling", **LABEL_CEILING)
    axes.set_xscale("log")
    axes.set_xticks(budgets)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("evaluations a picture (log scale)")
    axes.set_ylabel("IoU@10 with the label")
    axes.set_ylim(0, None)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _levels(result: SweepResult) -> dict[str, tuple[float, Interval | None]]:
    """Source -> IoU@10 of its transferred models on the curve's pictures, mean over the targets, and where Kernel SHAP reaches it.

    Its interval is by a bootstrap over the pictures of each target, which are the same for curve and level.
    """
    wide = result.convergence.pivot(index=["target_domain", "picture"], columns="budget", values="iou_at_10")
    levels = {}
    for source in result.sources:
        of_source = result.one_pass[result.one_pass["source_domain"] == source].set_index(["target_domain", "picture"])["iou_at_10"]
        curves = wide.loc[wide.index.isin(of_source.index)]
        if curves.empty:
            continue
        level = of_source.reindex(curves.index)
        targets = curves.index.get_level_values("target_domain").to_numpy()
        found = crossing_interval(curves.columns.to_numpy(), curves.to_numpy(), level.to_numpy(), targets=targets)
        levels[source] = float(level.groupby("target_domain").mean().mean()), found
    return levels


def _words(found: Interval | None) -> str:
    if found is None:
        return "nowhere in this range"
    high = f"{found.high:.0f}" if math.isfinite(found.high) else "beyond the range"
    return f"{found.estimate:.0f} evaluations (95 % interval {found.low:.0f} to {high}, over {found.n} pictures)"
