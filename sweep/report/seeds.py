"""What several seeds of one sweep say together: means over the targets, each with its interval over the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from core.metrics import SCORES
from core.statistics.intervals import mean_interval
from sweep.report.references import REFERENCE_TITLES
from sweep.report.result import SweepResult
from sweep.report.tables import BEATEN, beats, chosen_pairs, headline, is_better, margin, objective_table
from sweep.report.text import ascii_text, number

SEED_COLUMNS = ("source_domain", "model", "measure", "seed", "value")
"""model: `transferred`, at the chosen points; an objective, at what it would have chosen; or a reference. measure: a score, its mean over
the targets; `regret`, what an objective's points lack of the best correlation among the tried; or `beats: NAME`, the number of targets on
which a name in `BEATEN` is beaten, in the row without a seed by the target's mean over the seeds."""
_SHOWN = {
    "normalized_accuracy": "norm. acc.",
    "e_rmse": "E-RMSE",
    "e_rmse_at_best_scale": "at best scale",
    "correlation": "correlation",
    "iou_at_10": "IoU@10",
}
"""Columns of the summary; the table has all scores."""
_TOLD = {"other_targets": "other targets' lambda2"}
"""Objectives that are told among the models, besides the one that points were chosen by."""
_OF_OBJECTIVES = {"normalized_accuracy": "norm. acc.", "correlation": "correlation", "iou_at_10": "IoU@10", "regret": "regret"}


def over_seeds(results: Sequence[SweepResult]) -> pd.DataFrame:
    """SEED_COLUMNS of every source's transferred models and, under the source `all`, of the references. results: one a seed."""
    rows: list[tuple[str, str, str, int | None, float]] = []
    for result in results:
        seed = int(str(result.provenance["search.seed"]))
        pairs = chosen_pairs(result)
        better = {name: is_better(result, *what) for name, what in BEATEN.items()}
        for source in result.sources:
            of_source = pairs["source_domain"] == source
            rows += [(source, "transferred", s.name, seed, float(pairs.loc[of_source, s.name].mean())) for s in SCORES]
            rows += [(source, "transferred", f"beats: {name}", seed, float(found[of_source].sum())) for name, found in better.items()]
            of_source_points = result.objectives[result.objectives["source_domain"] == source]
            for objective, points in of_source_points.groupby("objective", sort=False):
                rows += [(source, str(objective), s.name, seed, float(points[s.name].mean())) for s in SCORES]
                counts = {name: beats(result, points, *what).sum() for name, what in BEATEN.items()}
                rows += [(source, str(objective), f"beats: {name}", seed, float(count)) for name, count in counts.items()]
        if not result.objectives.empty:
            of_objectives = objective_table(result)[["source_domain", "objective", "regret"]].itertuples(index=False, name=None)
            rows += [(str(source), str(objective), "regret", seed, float(regret)) for source, objective, regret in of_objectives]
        for model, scores in headline(result).iterrows():
            if model != "transferred":
                rows += [("all", str(model), s.name, seed, float(scores[s.name])) for s in SCORES]
    points = {"transferred": [chosen_pairs(result) for result in results]}
    points |= {o: [result.objectives[result.objectives["objective"] == o] for result in results] for o in _TOLD}
    for model, of_model in points.items():
        rows += [(source, model, f"beats: {name}", None, n) for source, name, n in _beaten_on_average(results, of_model)]
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS)).astype({"seed": "Int64"})


def _beaten_on_average(results: Sequence[SweepResult], points: Sequence[pd.DataFrame]) -> Iterator[tuple[str, str, float]]:
    """Source, name in BEATEN, and number of targets on which the mean over the seeds beats the reference's. points: a frame a seed."""
    for name, what in BEATEN.items():
        margins = pd.concat([p.assign(margin=margin(result, p, *what)) for result, p in zip(results, points, strict=True)])
        means = margins.groupby(["source_domain", "target_domain"], sort=False)["margin"].mean()
        for source, of_source in (means > 0).groupby(level=0, sort=False):
            yield str(source), name, float(of_source.sum())


def seeds_summary(table: pd.DataFrame, num_targets: int) -> str:
    """Plain ASCII, at most 100 columns wide: means with 95 % t intervals over the seeds; of what is counted, each seed's count; and the
    same of all objectives, where they were compared.
    """
    num_seeds = table["seed"].nunique()
    lines = [f"Means over {num_targets} targets, with the 95 % t interval over {num_seeds} seeds (in brackets half its width):", ""]
    lines.append(f"{'':<30}" + "".join(f"{title:>14}" for title in _SHOWN.values()))
    told = table[table["model"].isin(["transferred", *_TOLD]) | (table["source_domain"] == "all")]
    for (source, model), of_model in told.groupby(["source_domain", "model"], sort=False):
        of_source = f"from {ascii_text(str(source), 24)}"
        name = {"transferred": of_source, **{o: f"  {title}" for o, title in _TOLD.items()}}.get(str(model)) or REFERENCE_TITLES[str(model)]
        lines.append(f"{name.replace('normalised', 'norm.'):<30}" + _cells(of_model, _SHOWN))
    lines += ["", f"On how many of the {num_targets} targets it is better, each seed; and by the targets' means over the seeds:"]
    counted = told[told["measure"].str.startswith("beats: ")]
    for (source, model, measure), found in counted.groupby(["source_domain", "model", "measure"], sort=False):
        counts = ", ".join(f"{value:.0f}" for value in found.loc[found["seed"].notna(), "value"])
        (of_means,) = found.loc[found["seed"].isna(), "value"]
        what = str(measure).removeprefix("beats: ")
        how = f" at {_TOLD[model]}" if model in _TOLD else ""
        lines.append(f"from {ascii_text(str(source), 24)}{how}: than the {what} on {counts}; by means {of_means:.0f}")
    compared = table[(table["source_domain"] != "all") & (table["model"] != "transferred")]
    if not compared.empty:
        lines += ["", "How lambda2 could be chosen (accuracy_bound, infidelity, other_targets read no explanation label):"]
        lines.append(f"{'':<44}" + "".join(f"{title:>14}" for title in _OF_OBJECTIVES.values()))
        for (source, objective), of_objective in compared.groupby(["source_domain", "model"], sort=False):
            lines.append(f"{ascii_text(f'from {source}', 21):<22}{objective:<22}" + _cells(of_objective, _OF_OBJECTIVES))
    return "\n".join(lines)


def _cells(rows: pd.DataFrame, measures: Iterable[str]) -> str:
    """Each measure's mean over the seeds, and half the width of its interval."""
    cells = []
    for measure in measures:
        mean = mean_interval(rows.loc[rows["measure"] == measure, "value"])
        cells.append(f"{number(mean.estimate, dash='-')} ({number(mean.high - mean.estimate, dash='-')})")
    return "".join(f" {cell:>13}" for cell in cells)
