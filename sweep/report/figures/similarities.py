"""Figure 3: similarity of the task vectors and E-RMSE."""

import math

import numpy as np
from matplotlib.figure import Figure

from core.statistics import Interval, centred, domain_correlation_interval, domain_permutation_test, least_squares_line
from sweep.report.figures.style import DOTS_PER_INCH, Caption
from sweep.report.result import SweepResult
from sweep.report.tables import PAIR_TITLES, chosen_pairs, paper_points

CAPTION = Caption(
    "Similarity of task vectors and success of the transfer",
    "Each point is a pair. The line is the least-squares fit, the box gives Pearson's r with its 95 % interval (domains drawn anew) and "
    "its p-value (domains permuted: pairs that share a domain are not independent). In the upper row are the paper's panels: all pairs at "
    "its alpha = 0.5 (or the nearest that was trained) and lambda2 = 0.8, maps as the head gives them; in (b) both orders of two domains "
    "are points, and coincide. In the lower row are the chosen points, with their maps' factor, within targets: every value less its mean "
    "over the pairs of the target, since with a factor errors differ more between targets than between the sources of one. (e) has the "
    "maps' correlation, which no scale can change.",
    "Figure 3; r = 0.90 in (b) and r = -0.36 in (c), each with p < 0.01; of (a) it says that r is negative.",
)
_EXPLAINABILITY, _PREDICTION = "similarity_explainability", "similarity_prediction_only"
_PAPERS_PANELS = (
    ("(a)", _EXPLAINABILITY, "e_rmse"),
    ("(b)", _EXPLAINABILITY, _PREDICTION),
    ("(c)", _PREDICTION, "e_rmse"),
)
_WITHIN_TARGETS = (
    ("(d)", _EXPLAINABILITY, "normalized_e_rmse"),
    ("(e)", _PREDICTION, "correlation"),
    ("(f)", _PREDICTION, "normalized_e_rmse"),
)


def similarity_correlations(result: SweepResult) -> Figure:
    """Six panels, each with its least-squares line, r and p: the paper's three, and below them the chosen points within targets."""
    figure = Figure(dpi=DOTS_PER_INCH, figsize=(11.5, 7.2), layout="constrained")
    panels = [(paper_points(result), False, *panel) for panel in _PAPERS_PANELS]
    panels += [(chosen_pairs(result), True, *panel) for panel in _WITHIN_TARGETS]
    for axes, (pairs, is_within, letter, x, y) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        known = pairs[pairs[x].notna() & pairs[y].notna()]
        sources, targets = list(known["source_domain"]), list(known["target_domain"])
        between = known[x], known[y], sources, targets
        fit = domain_permutation_test(*between, within_targets=is_within)
        interval = domain_correlation_interval(*between, within_targets=is_within)
        shown_x, shown_y = (centred(known[c].to_numpy(), targets if is_within else None) for c in (x, y))
        axes.scatter(shown_x, shown_y, s=20, color="#2b6cb0", alpha=0.75, linewidths=0, zorder=2, gid="pairs")
        line = least_squares_line(shown_x, shown_y)
        if math.isfinite(line.slope):
            ends = np.array([shown_x.min(), shown_x.max()])
            axes.plot(ends, line.slope * ends + line.intercept, color="#6b46c1", linewidth=1.6, zorder=3)
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#999999", "alpha": 0.9}
        axes.set_title(f"{letter} {'within targets, ' if is_within else ''}n = {fit.num_pairs}")
        text = correlation_text(fit.r, fit.p_value, interval)
        axes.text(0.97, 0.96, text, transform=axes.transAxes, ha="right", va="top", bbox=box)
        relative = "\nless its mean over the target's pairs" if is_within else ""
        axes.set_xlabel(PAIR_TITLES[x] + relative)
        axes.set_ylabel(PAIR_TITLES[y] + relative)
        axes.margins(y=0.16)
    return figure


def correlation_text(r: float, p_value: float, interval: Interval | None = None) -> str:
    """`r = 0.95 [0.90, 0.98], p < 0.001`; says so when there is no r."""
    if not math.isfinite(r):
        return "r not defined"
    limits = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval is not None and math.isfinite(interval.low) else ""
    return f"r = {r:.2f}{limits}, " + ("p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}")
