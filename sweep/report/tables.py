"""The numbers that the report, the figures and the terminal show, derived from a SweepResult in one place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from core.metrics import SCORE_NAMED, SCORES
from core.statistics import mean_interval
from sweep.report.references import EXPECTED, REFERENCE_TITLES, REFERENCES
from sweep.report.result import PAIR_COLUMNS, REFERENCE_COLUMNS, SCORE_COLUMNS, SweepResult

SCORE_TITLES = {score.name: score.title for score in SCORES}
PAIR_TITLES = {
    **SCORE_TITLES,
    "lambda2": "chosen lambda2 and alpha",
    "similarity_prediction_only": "similarity of prediction-only vectors",
    "similarity_explainability": "similarity of explainability vectors",
}

MODEL_TITLES = {
    "transferred": "transferred, mean",
    "transferred_mean": "transferred, mean",
    "transferred_best": "transferred, best by IoU@10",
    "source_prediction_only": "source's prediction-only",
    "source_self_explaining": "source's self-explaining",
    **REFERENCE_TITLES,
}

# "While keeping 90 % of the accuracy", section 5.1: a pair that explains well and classifies badly is no success.
KEPT_ACCURACY = 0.9


@dataclass(frozen=True)
class Comparison:
    """How many of the chosen pairs score better than a reference on the same target domain."""

    num_better: int
    num_compared: int

    def __str__(self) -> str:
        return f"{self.num_better} of {self.num_compared}"


def known_references(result: SweepResult) -> list[str]:
    """The references in their order: those that every sweep has, and the optional ones of this one."""
    found = set(result.references["reference"])
    return [reference for reference in REFERENCES if reference in EXPECTED or reference in found]


def reference_scores(result: SweepResult) -> pd.DataFrame:
    """The reference rows with normalised scores filled in where they follow from the prediction-only row."""
    references = result.references.copy()
    prediction_only = references[references["reference"] == "prediction_only"].drop_duplicates("domain")
    divisors = prediction_only.set_index("domain").reindex(references["domain"])
    for score in SCORES:
        if score.numerator is not None:
            divisor = divisors[score.numerator].to_numpy(dtype=float)
            quotient = references[score.numerator] / np.where(divisor > 0, divisor, np.nan)
            references[score.name] = references[score.name].fillna(quotient)
    return references


def chosen_pairs(result: SweepResult) -> pd.DataFrame:
    """One row a finished pair: the chosen point's scores on test and the similarities at its alpha."""
    return _chosen_pairs(result).copy()


@lru_cache(maxsize=4)
def _chosen_pairs(result: SweepResult) -> pd.DataFrame:
    cells = result.cells
    return _with_similarities(result, cells[(cells["split"] == "test") & cells["is_chosen"]])


def paper_points(result: SweepResult) -> pd.DataFrame:
    """One row a pair: its scores on test at the paper's fixed alpha and lambda2, before any factor, and the similarities at that alpha."""
    return _with_similarities(result, result.paper_points)


def _with_similarities(result: SweepResult, pairs: pd.DataFrame) -> pd.DataFrame:
    """In the order of sources and targets, with the similarities at each row's alpha."""
    pairs = pairs.assign(alpha_key=_alpha_key)
    similarities = result.similarities.assign(alpha_key=_alpha_key).drop(columns="alpha")
    pairs = pairs.merge(similarities, how="left", on=[*PAIR_COLUMNS, "alpha_key"], validate="one_to_one")
    orders = {
        column: {name: position for position, name in enumerate(names)}
        for column, names in zip(PAIR_COLUMNS, (result.sources, result.targets), strict=True)
    }
    pairs = pairs.sort_values(list(PAIR_COLUMNS), key=lambda names: names.map(orders[names.name]), ignore_index=True)
    return pairs.drop(columns="alpha_key")


def intervals_of_pairs(result: SweepResult) -> dict[tuple[str, str], dict[str, Any]]:
    """(source, target) -> score -> its row of the intervals over the test pictures, with score, estimate, low, high and n."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result.intervals.itertuples():
        found.setdefault((row.source_domain, row.target_domain), {})[row.score] = row
    return found


def intervals_of_references(result: SweepResult, target: str) -> dict[str, dict[str, Any]]:
    """Reference -> score -> its row of the intervals over the target's test pictures; of one with an alpha the name ends in it."""
    found: dict[str, dict[str, Any]] = {}
    for row in result.reference_intervals[result.reference_intervals["domain"] == target].itertuples():
        name = row.reference if math.isnan(row.alpha) else f"{row.reference} {row.alpha:.4g}"
        found.setdefault(name, {})[row.score] = row
    return found


def pair_references(result: SweepResult) -> pd.DataFrame:
    """For every finished pair and reference, the reference's scores on the pair's target domain.

    Columns: source_domain, target_domain, reference, SCORE_COLUMNS. `supervised` is the model trained at the pair's
    own alpha; where it was not trained at that alpha the scores are NaN, as for a reference that the domain lacks.
    """
    return _pair_references(result).copy()


@lru_cache(maxsize=4)
def _pair_references(result: SweepResult) -> pd.DataFrame:
    by_key = {
        (row.domain, row.reference, None if math.isnan(row.alpha) else round(row.alpha, 9)): row
        for row in reference_scores(result).itertuples()
    }
    rows = []
    for pair in chosen_pairs(result).itertuples():
        for reference in known_references(result):
            found = by_key.get((pair.target_domain, reference, round(pair.alpha, 9)))
            found = found or by_key.get((pair.target_domain, reference, None))
            scores = {score: getattr(found, score, math.nan) for score in SCORE_COLUMNS}
            rows.append(
                {"source_domain": pair.source_domain, "target_domain": pair.target_domain, "reference": reference}
                | scores
            )
    return pd.DataFrame(rows)


def reference_of_pairs(result: SweepResult, reference: str, score: str) -> pd.Series:
    """One reference's score for every chosen pair, in the order of `chosen_pairs`."""
    long = pair_references(result)
    return long.loc[long["reference"] == reference, score].reset_index(drop=True)


def supervised_of_targets(result: SweepResult) -> pd.DataFrame:
    """The supervised scores of each target domain, mean over the alphas of the pairs that transfer to it."""
    references = pair_references(result)
    return references[references["reference"] == "supervised"].groupby("target_domain").mean(numeric_only=True)


def headline(result: SweepResult) -> pd.DataFrame:
    """Mean scores over the finished pairs: row `transferred`, then every reference. Undefined scores are left out."""
    scores = list(SCORE_COLUMNS)
    references = pair_references(result).groupby("reference")[scores].mean().reindex(known_references(result))
    transferred = chosen_pairs(result)[scores].mean().to_frame("transferred").T
    return pd.concat([transferred, references])


def is_better(result: SweepResult, reference: str, score: str) -> pd.Series:
    """For every chosen pair, in the order of `chosen_pairs`, whether it beats `reference` in `score`; not where either is undefined."""
    transferred, bar = chosen_pairs(result)[score], reference_of_pairs(result, reference, score)
    return transferred < bar if SCORE_NAMED[score].lower_is_better else transferred > bar


def num_better(result: SweepResult, reference: str, score: str) -> Comparison:
    """How many chosen pairs beat `reference` in `score`; pairs where either is undefined are not compared."""
    is_compared = chosen_pairs(result)[score].notna() & reference_of_pairs(result, reference, score).notna()
    return Comparison(int(is_better(result, reference, score).sum()), int(is_compared.sum()))


def best_pairs(result: SweepResult, num_pairs: int = 10) -> pd.DataFrame:
    """The chosen pairs with the highest IoU@10, those that keep KEPT_ACCURACY of the accuracy first."""
    pairs = chosen_pairs(result)
    pairs = pairs.assign(keeps_accuracy=pairs["normalized_accuracy"] >= KEPT_ACCURACY)
    return pairs.sort_values(
        ["keeps_accuracy", "iou_at_10", "correlation"], ascending=False, na_position="last", kind="stable"
    ).head(num_pairs)


BEATEN = {
    "zero predictor": ("zero_predictor", "e_rmse"),
    "mean map": ("mean_map", "e_rmse"),
    "mean map's overlap": ("mean_map", "iou_at_10"),
    "mean map's correlation": ("mean_map", "correlation"),
}
"""What a transferred model should beat: a reference in a score."""


def best_of_targets(result: SweepResult) -> pd.DataFrame:
    """A row a target: its pair with the largest IoU@10, those that keep KEPT_ACCURACY first; and a column a name in BEATEN."""
    pairs = chosen_pairs(result)
    for name, (reference, score) in BEATEN.items():
        pairs[name] = is_better(result, reference, score)
    pairs = pairs.assign(keeps_accuracy=pairs["normalized_accuracy"] >= KEPT_ACCURACY)
    pairs = pairs.sort_values(["keeps_accuracy", "iou_at_10", "correlation"], ascending=False, na_position="last", kind="stable")
    best = pairs.drop_duplicates("target_domain").set_index("target_domain")
    return best.reindex([t for t in result.targets if t in best.index]).reset_index()


def beats(result: SweepResult, rows: pd.DataFrame, reference: str, score: str) -> pd.Series:
    """Whether rows with scores on a target's test split beat a reference that the target has one row of."""
    return margin(result, rows, reference, score) > 0


def margin(result: SweepResult, rows: pd.DataFrame, reference: str, score: str) -> pd.Series:
    """By how much they do."""
    references = reference_scores(result)
    of_targets = references[references["reference"] == reference].drop_duplicates("domain").set_index("domain")[score]
    own, bar = rows[score].astype(float), rows["target_domain"].map(of_targets).astype(float)
    return bar - own if SCORE_NAMED[score].lower_is_better else own - bar


def objective_table(result: SweepResult, told_as: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row a source and objective, means over the pairs; `regret`: correlation that the oracle of correlation has more; and for each name
    in BEATEN the number of pairs in which the reference is beaten.

    told_as: source -> the name that it is told by, together with others of that name; None: each by itself.
    """
    told_as = told_as or {source: source for source in result.sources}
    order = list(dict.fromkeys(told_as.values()))
    columns = ["lambda2", "normalized_accuracy", "e_rmse", "normalized_e_rmse", "correlation", "iou_at_10"]
    rows = result.objectives.assign(**{name: beats(result, result.objectives, *what) for name, what in BEATEN.items()})
    rows["source_domain"] = rows["source_domain"].map(told_as)
    groups = rows.groupby(["source_domain", "objective", "needs_labels"], sort=False)
    table = pd.concat([groups[columns].mean(), groups[list(BEATEN)].sum()], axis=1).reset_index()
    table = table.sort_values("source_domain", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    oracle = table[table["objective"] == "oracle_correlation"].set_index("source_domain")["correlation"]
    return table.assign(regret=oracle.reindex(table["source_domain"]).to_numpy() - table["correlation"].to_numpy())


def domain_table(result: SweepResult) -> pd.DataFrame:
    """For each target domain its references, and the mean and the best (IoU@10) of the pairs that transfer to it.

    Columns: domain, model, alpha, SCORE_COLUMNS. `model` is a reference, `transferred_mean` or `transferred_best`.
    """
    pairs = chosen_pairs(result)
    references = reference_scores(result).rename(columns={"reference": "model"})
    order = {name: position for position, name in enumerate(REFERENCES)}
    blocks = []
    for domain in result.targets:
        to_domain = pairs[pairs["target_domain"] == domain]
        block = references[references["domain"] == domain]
        block = block.sort_values(["model", "alpha"], key=lambda v: v.map(order) if v.name == "model" else v)
        if not to_domain.empty:
            best = to_domain.sort_values("iou_at_10", ascending=False, kind="stable").iloc[0]
            mean = to_domain[list(SCORE_COLUMNS)].mean()
            rows = [
                {"domain": domain, "model": "transferred_mean", "alpha": math.nan, **mean},
                {"domain": domain, "model": "transferred_best", "alpha": best["alpha"], **best[list(SCORE_COLUMNS)]},
            ]
            block = pd.concat([pd.DataFrame(rows), block]) if len(block) else pd.DataFrame(rows)
        blocks.append(block)
    columns = ["model" if c == "reference" else c for c in REFERENCE_COLUMNS]
    return pd.concat(blocks, ignore_index=True)[columns]


def matrix(result: SweepResult, values: pd.DataFrame, column: str) -> pd.DataFrame:
    """[S, T] frame of `column` with a row a source and a column a target; NaN where there is none."""
    rectangle = values.pivot(index="source_domain", columns="target_domain", values=column)
    return rectangle.reindex(index=list(result.sources), columns=list(result.targets))


def coefficient_curves(result: SweepResult, score: str, sources: Sequence[str], alpha: float | None = None) -> pd.DataFrame:
    """`score` against lambda2 for each target domain: index lambda2, a column a target, the mean over those of `sources` that it has.

    Of each pair the cells at its chosen lambda1 and alpha count; with `alpha`, at that one; and those at lambda2 = 0, where alpha says
    nothing. Pairs may have been evaluated at different lambda2: between two of its own points a pair is taken as straight. A lambda2 that
    not all of a target's pairs reach is NaN: the mean would jump as pairs drop out.
    Split: `curve_split`.
    """
    cells = result.cells[result.cells["split"] == curve_split(result)].dropna(subset=[score])
    lambdas = np.unique(cells["lambda2"].round(9))
    if len(lambdas) > 40:  # a sampler that draws freely gives every pair its own points: a grid of them is noise
        lambdas = np.linspace(lambdas[0], lambdas[-1], 25)
    keys = [*PAIR_COLUMNS, "alpha", "lambda1", "lambda2"]
    means = cells.assign(**cells[["alpha", "lambda1", "lambda2"]].round(9)).groupby(keys)[score].mean()
    points = {key: of_pair.droplevel(keys[:-1]) for key, of_pair in means.groupby(level=keys[:-1])}
    at_zero = means[means.index.get_level_values("lambda2") == 0.0].groupby(list(PAIR_COLUMNS)).mean()
    curves: dict[str, list[np.ndarray]] = {domain: [] for domain in result.targets}
    for pair in chosen_pairs(result).itertuples():
        key = (pair.source_domain, pair.target_domain, round(pair.alpha if alpha is None else alpha, 9), round(pair.lambda1, 9))
        if key in points and pair.source_domain in sources:
            own = points[key]
            if key[:2] in at_zero.index and own.index[0] > 0.0:
                own = pd.concat([pd.Series({0.0: at_zero[key[:2]]}), own])
            curve = np.interp(lambdas, own.index, own.to_numpy(), left=math.nan, right=math.nan)
            curves[pair.target_domain].append(curve)
    columns = {domain: np.mean(found, axis=0) if found else np.full(len(lambdas), math.nan) for domain, found in curves.items()}
    return pd.DataFrame(columns, index=pd.Index(lambdas, name="lambda2"))


def alpha_bands(result: SweepResult, score: str, sources: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Of each target the 95 % t interval of its curve over the alphas, as in the paper's Figure 4: index lambda2, columns low and high.

    Only of three alphas or more, an interval over two says nothing; and only where all of them are known.
    """
    cells = result.cells[result.cells["split"] == curve_split(result)]
    curves = [coefficient_curves(result, score, sources, alpha) for alpha in sorted(set(cells["alpha"].round(9)))]
    bands = {}
    for target in result.targets:
        values = pd.concat([curve[target] for curve in curves], axis=1).dropna(axis=1, how="all")
        values = values.dropna() if values.shape[1] > 2 else values.iloc[:0]
        means = {lambda2: mean_interval(row) for lambda2, row in zip(values.index, values.to_numpy(), strict=True)}
        bands[target] = pd.DataFrame({"low": {k: m.low for k, m in means.items()}, "high": {k: m.high for k, m in means.items()}})
    return bands


def curve_split(result: SweepResult) -> str:
    """The split that the searched cells are on."""
    return "validation" if (result.cells["split"] == "validation").any() else "test"


def missing_pairs(result: SweepResult) -> list[tuple[str, str]]:
    """The planned pairs that have no chosen row on test."""
    finished = set(chosen_pairs(result)[list(PAIR_COLUMNS)].itertuples(index=False, name=None))
    return [pair for pair in result.pairs if pair not in finished]


def _alpha_key(frame: pd.DataFrame) -> pd.Series:
    return frame["alpha"].round(9)
