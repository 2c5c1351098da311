"""What a sweep says on the terminal when it ends."""

import textwrap
from collections.abc import Iterable

import pandas as pd

from core.metrics import SCORES
from sweep.report.findings import findings, warnings
from sweep.report.result import SweepResult
from sweep.report.tables import KEPT_ACCURACY, MODEL_TITLES, best_pairs, chosen_pairs, headline
from sweep.report.text import PAIR_LENGTH, ascii_pair, ascii_text, number

WIDTH = 100
_SHOWN = tuple(score for score in SCORES if score.terminal_title is not None)


def terminal_summary(result: SweepResult, num_pairs: int = 8) -> str:
    """The best pairs and the reference rows as plain ASCII text, at most WIDTH columns wide (the tables: a column a score)."""
    pairs, best = chosen_pairs(result), best_pairs(result, num_pairs)
    kept = f"those that keep {KEPT_ACCURACY:.0%} of the accuracy first"
    lines = [f"WARNING: {ascii_text(text, 400)}" for text in warnings(result)]
    lines.append(f"The best of {len(pairs)} pairs by IoU@10 ({kept}), on test:" if len(pairs) > 1 else "The pair, on test:")
    lines = [part for line in lines for part in _wrapped(line)]
    names = [ascii_pair(pair["source_domain"], pair["target_domain"]) for _, pair in best.iterrows()]
    lines += ["", f"{'source -> target':<{PAIR_LENGTH + 1}}{'alpha':>6}{'lambda2':>8}{_row(s.terminal_title or '' for s in _SHOWN)}"]
    for name, (_, pair) in zip(names, best.iterrows(), strict=True):
        lines.append(f"{name:<{PAIR_LENGTH + 1}}{pair['alpha']:>6.2f}{pair['lambda2']:>8.2f}{_scores(pair)}")
    over = f"Means over all {len(pairs)} pairs and, for the references, over the same targets:"
    lines += ["", over if len(pairs) > 1 else "Beside the references of its target:"]
    for model, row in headline(result).iterrows():
        lines.append(f"{MODEL_TITLES[str(model)]:<{PAIR_LENGTH + 15}}{_scores(row)}")
    lines.append("")
    lines += [part for text in findings(result)[:2] for part in _wrapped(text.replace("–", "-"))]
    return "\n".join(lines)


def _scores(row: pd.Series) -> str:
    return _row(number(row[score.name], dash="-") for score in _SHOWN)


def _row(cells: Iterable[str]) -> str:
    """Columns as wide as their headings; a normalised score stands a little closer to its own."""
    widths = [max(7, len(score.terminal_title or "") + (1 if score.numerator else 2)) for score in _SHOWN]
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
