"""What a sweep says on the terminal when it ends."""

import textwrap
from collections.abc import Iterable

import pandas as pd

from core.metrics import SCORE_NAMED, SCORES
from sweep.report.evidence import groups, means_by_group
from sweep.report.findings import findings, warnings
from sweep.report.references import REFERENCE_TITLES
from sweep.report.result import MERGE_COLUMN, SweepResult
from sweep.report.table1 import PAPER_SCORES, REFERENCE_ROWS, ROWS, has_factor, table1
from sweep.report.tables import BEATEN, KEPT_ACCURACY, best_of_targets, best_pairs, chosen_pairs, objective_table
from sweep.report.text import PAIR_LENGTH, ascii_pair, ascii_text, number

WIDTH = 100
_SHORT = {"zero predictor": "zero", "mean map": "map", "mean map's overlap": "map IoU", "mean map's correlation": "map corr."}
"""Of BEATEN."""
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
    if MERGE_COLUMN in best:
        lines += ["", "Merged by, as the searches chose:"]
        lines += [f"{name:<{PAIR_LENGTH + 1}} {ascii_text(rule, 60)}" for name, rule in zip(names, best[MERGE_COLUMN], strict=True)]
    over = f"Means over the pairs, {len(pairs)} in all, and, for the references, over the same targets:"
    lines += ["", over if len(pairs) > 1 else "Beside the references of its target:"]
    for title, row in means_by_group(result).iterrows():
        lines.append(f"{ascii_text(str(title), PAIR_LENGTH + 14):<{PAIR_LENGTH + 15}}{_scores(row)}")
    lines += ["", *_of_targets(result), *_table1(result), *_objectives(result), ""]
    lines += [part for text in findings(result)[: len(groups(result))] for part in _wrapped(ascii_text(text.replace("–", "-"), 2000))]
    return "\n".join(lines)


def _of_targets(result: SweepResult) -> list[str]:
    """For each target the best source, and what it beats."""
    lines = _wrapped(
        "The best source for each target, and what it beats (zero, map: the E-RMSE of the zero predictor and of the mean map; and the "
        "mean map's IoU@10 and correlation):"
    )
    for _, row in best_of_targets(result).iterrows():
        beaten = ", ".join(_SHORT[name] for name in BEATEN if row[name]) or "none of them"
        name = ascii_pair(row["source_domain"], row["target_domain"])
        lines.append(f"{name:<{PAIR_LENGTH + 1}}{row['alpha']:>6.2f}{row['lambda2']:>8.2f}   {beaten}")
    return lines


def _table1(result: SweepResult) -> list[str]:
    """The paper's Table 1, where the sources' own models were scored."""
    table, lines = table1(result), []
    shown = (*PAPER_SCORES, "correlation")
    titles = {row.model: row.title for row in ROWS} | {name: f"  {REFERENCE_TITLES[name]}" for name in REFERENCE_ROWS}
    for source, of_source in table.groupby("source_domain", sort=False):
        cells = of_source.set_index(["model", "score"])
        number_of_targets = int(of_source["num_targets"].max())
        heads = "".join(f"{SCORE_NAMED[score].title:>13}" for score in shown[:-1]) + f"{'corr.':>8}"
        what = f"mean and standard deviation over {number_of_targets} targets; * the best of a"
        lines += ["", f"Table 1 from {ascii_text(str(source), 40)}: {what}"]
        lines.append("column, + not different from it (paired t-test, p < 0.05); indented: references, not in the test")
        if has_factor(result):
            lines.append("The transferred model's maps have the factor that it ships with, the others' none.")
        lines.append(f"{'':<27}{heads}")
        for model in dict.fromkeys(of_source["model"]):
            title = titles[model]
            row = f"{title:<27}"
            for score in shown:
                cell = cells.loc[(model, score)]
                mark = "*" if cell["is_best"] else "+" if cell["does_not_differ_from_best"] else " "
                mean, sd = number(cell["mean"], dash="-"), number(cell["sd"], 2, dash="-")
                row += f"{mean:>7}{mark}" if score == "correlation" else f"{mean:>7}{mark}{sd:>5}"
            lines.append(row.rstrip())
    return lines


_OBJECTIVE_COLUMNS = {
    "lambda2": "lambda2", "normalized_accuracy": "acc.", "normalized_e_rmse": "E-RMSE", "correlation": "corr.", "iou_at_10": "IoU@10",
    "regret": "regret", **{name: _SHORT[name] for name in BEATEN},
}  # fmt: skip


def _objectives(result: SweepResult) -> list[str]:
    """How the point could have been chosen, where objectives were compared; many sources by their groups."""
    table = objective_table(result, {source: group.name for group in groups(result) for source in group.sources})
    lines = []
    if len(table):
        lines = ["", *_wrapped(
            "How lambda2 could be chosen: means on test of the points that each objective takes, accuracy and E-RMSE normalised; * reads "
            "explanation labels. Other targets: the largest lambda2 at which the source's other targets keep the accuracy on average "
            "(from others their vectors were learned on unions with this target). An oracle takes the best on test among the points that "
            "keep the bound (or 98 %, where the paper's universal vector has 0.59 of the E-RMSE). Regret: of correlation. Then the number "
            "of pairs in which it beats the zero predictor and the mean map."
        )]  # fmt: skip
    for source, rows in table.groupby("source_domain", sort=False):
        title = f"from {ascii_text(str(source), 16)}"
        lines += ["", f"{title:<21}" + "".join(f"{name:>{_width(name)}}" for name in _OBJECTIVE_COLUMNS.values())]
        for _, row in rows.iterrows():
            name = f"{str(row['objective']).replace('_', ' ')}{' *' if row['needs_labels'] else ''}"
            cells = {c: str(row[c]) if c in BEATEN else number(row[c], dash="-") for c in _OBJECTIVE_COLUMNS}
            lines.append(f"{name:<21}" + "".join(f"{cells[c]:>{_width(title)}}" for c, title in _OBJECTIVE_COLUMNS.items()))
    return lines


def _width(title: str) -> int:
    return len(title) + 2 if title in _SHORT.values() else 8


def _scores(row: pd.Series) -> str:
    return _row(number(row[score.name], dash="-") for score in _SHOWN)


def _row(cells: Iterable[str]) -> str:
    """Columns as wide as their headings; a normalised score stands a little closer to its own."""
    widths = [max(7, len(score.terminal_title or "") + (1 if score.numerator else 2)) for score in _SHOWN]
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
