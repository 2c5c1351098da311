"""What several seeds of one sweep say together: means over the targets, each with its interval over the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from core.metrics import SCORES
from core.statistics.intervals import mean_interval
from sweep.report.result import SweepResult
from sweep.report.tables import BEATEN, chosen_pairs, headline, reference_of_pairs
from sweep.report.text import ascii_text, number

SEED_COLUMNS = ("source_domain", "model", "measure", "seed", "value")
"""measure: a score, its mean over the targets; or `beats: NAME`, the number of targets on which a name in `BEATEN` is beaten."""
_SHOWN = (*(score.name for score in SCORES if score.terminal_title is not None), "iou_at_1", "e_rmse_at_best_scale")


def over_seeds(results: Sequence[SweepResult]) -> pd.DataFrame:
    """SEED_COLUMNS of every source's transferred models and, under the source `all`, of the references. results: one a seed."""
    rows: list[tuple[str, str, str, int, float]] = []
    for result in results:
        seed = int(str(result.provenance["search.seed"]))
        pairs = chosen_pairs(result)
        better = {name: _beats(result, pairs, name) for name in BEATEN}
        for source in result.sources:
            of_source = pairs["source_domain"] == source
            rows += [(source, "transferred", s.name, seed, float(pairs.loc[of_source, s.name].mean())) for s in SCORES]
            rows += [(source, "transferred", f"beats: {name}", seed, float(found[of_source].sum())) for name, found in better.items()]
        for model, scores in headline(result).iterrows():
            if model != "transferred":
                rows += [("all", str(model), s.name, seed, float(scores[s.name])) for s in SCORES]
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _beats(result: SweepResult, pairs: pd.DataFrame, name: str) -> pd.Series:
    reference, score = BEATEN[name]
    lower_is_better = next(s for s in SCORES if s.name == score).lower_is_better
    bar = reference_of_pairs(result, reference, score)
    return pairs[score] < bar if lower_is_better else pairs[score] > bar


def seeds_summary(table: pd.DataFrame, num_targets: int) -> str:
    """Plain ASCII: means with 95 % t intervals over the seeds; of what is counted, each seed's count."""
    num_seeds = table["seed"].nunique()
    lines = [f"Means over {num_targets} targets, with the 95 % t interval over {num_seeds} seeds (in brackets half its width):", ""]
    titles = {s.name: s.terminal_title or s.title for s in SCORES}
    lines.append(f"{'':<34}" + "".join(f"{_short(titles[name]):>16}" for name in _SHOWN))
    for (source, model), of_model in table.groupby(["source_domain", "model"], sort=False):
        name = f"from {ascii_text(str(source), 28)}" if model == "transferred" else str(model).replace("_", " ")
        cells = []
        for measure in _SHOWN:
            mean = mean_interval(of_model.loc[of_model["measure"] == measure, "value"])
            cells.append(f"{number(mean.estimate, dash='-')} ({number(mean.high - mean.estimate, dash='-')})")
        lines.append(f"{name:<34}" + "".join(f"{cell:>16}" for cell in cells))
    lines.append("")
    counted = table[table["measure"].str.startswith("beats: ")]
    for (source, measure), found in counted.groupby(["source_domain", "measure"], sort=False):
        counts = ", ".join(f"{value:.0f}" for value in found["value"])
        what = str(measure).removeprefix("beats: ")
        lines.append(f"from {ascii_text(str(source), 28)}: better than the {what} on {counts} of {num_targets} targets")
    return "\n".join(lines)


def _short(title: str) -> str:
    return {"E-RMSE at best scale": "E-RMSE best sc."}.get(title, title)
