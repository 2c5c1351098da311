"""Figure 3: similarity of the task vectors and E-RMSE."""

import math

import numpy as np
from matplotlib.figure import Figure

from core.statistics import Interval, domain_correlation_interval, domain_permutation_test, least_squares_line
from sweep.report.figures.style import DOTS_PER_INCH, Caption
from sweep.report.result import SweepResult
from sweep.report.tables import PAIR_TITLES, chosen_pairs

CAPTION = Caption(
    "Similarity of task vectors and success of the transfer",
    "Each point is a pair; the similarities are taken at the pair's chosen alpha. The line is the least-squares fit, "
    "the box gives Pearson's r with its 95 % interval (domains drawn anew) and its p-value (domains permuted: pairs that share a "
    "domain are not independent). In (b) both orders of two domains are points, and coincide where their alphas do.",
    "Figure 3; r = 0.90 in (b) and r = -0.36 in (c), each with p < 0.01.",
)


def similarity_correlations(result: SweepResult) -> Figure:
    """Three panels, each with its least-squares line, r and p."""
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(11.5, 3.7), layout="constrained")
    pairs = chosen_pairs(result)
    panels = (
        ("(a)", "similarity_explainability", "normalized_e_rmse"),
        ("(b)", "similarity_explainability", "similarity_prediction_only"),
        ("(c)", "similarity_prediction_only", "normalized_e_rmse"),
    )
    for axes, (letter, x, y) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.scatter(pairs[x], pairs[y], s=20, color="#2b6cb0", alpha=0.75, linewidths=0, zorder=2, gid="pairs")
        between = pairs[x], pairs[y], list(pairs["source_domain"]), list(pairs["target_domain"])
        fit, interval = domain_permutation_test(*between), domain_correlation_interval(*between)
        line = least_squares_line(pairs[x], pairs[y])
        if math.isfinite(line.slope):
            ends = np.array([pairs[x].min(), pairs[x].max()])
            axes.plot(ends, line.slope * ends + line.intercept, color="#6b46c1", linewidth=1.6, zorder=3)
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#999999", "alpha": 0.9}
        axes.set_title(f"{letter} n = {fit.num_pairs}")
        text = correlation_text(fit.r, fit.p_value, interval)
        axes.text(0.97, 0.96, text, transform=axes.transAxes, ha="right", va="top", bbox=box)
        axes.set_xlabel(PAIR_TITLES[x])
        axes.set_ylabel(PAIR_TITLES[y])
        axes.margins(y=0.16)
    return figure


def correlation_text(r: float, p_value: float, interval: Interval | None = None) -> str:
    """`r = 0.95 [0.90, 0.98], p < 0.001`; says so when there is no r."""
    if not math.isfinite(r):
        return "r not defined"
    limits = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval is not None and math.isfinite(interval.low) else ""
    return f"r = {r:.2f}{limits}, " + ("p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}")
