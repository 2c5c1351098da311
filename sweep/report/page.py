"""The HTML of a sweep, from `templates`: its report, one self-contained page, and its tables each as a page of its own."""

import base64
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from core.metrics import SCORE_NAMED, SCORES
from sweep.report.evidence import COMPARED, Against, comparisons, means_by_group, p_text, ranked, signed
from sweep.report.figures.drawing import Drawing, draw_figures
from sweep.report.findings import (
    INTERVAL_MEANINGS,
    finding,
    findings,
    key_numbers,
    merge_rule,
    standing_meaning,
    title,
    warnings,
    what_of_target,
)
from sweep.report.page_data import page_data
from sweep.report.references import REFERENCE_MEANINGS, REFERENCE_TITLES
from sweep.report.result import FRAMES, SweepResult
from sweep.report.table1 import OUR_SCORES, PAPER_SCORES, ROWS, has_factor, table1
from sweep.report.tables import (
    BEATEN,
    KEPT_ACCURACY,
    MODEL_TITLES,
    SCORE_TITLES,
    best_of_targets,
    best_pairs,
    chosen_pairs,
    domain_table,
    intervals_of_pairs,
    objective_table,
    pair_references,
)
from sweep.report.text import number

_BEST_GROUPS = (
    ("accuracy", ("prediction_only",)),
    ("iou_at_10", ("chance", "prediction_only", "mean_map", "supervised", "label_ceiling")),
    ("e_rmse", ("zero_predictor", "mean_map", "supervised")),
)


def write_report(result: SweepResult, directory: Path) -> Path:
    """Writes report.html and figures/*.png into `directory` and returns the page's path."""
    drawings = draw_figures(result)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (directory / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    path = directory / "report.html"
    path.write_text(render_html(result, drawings), encoding="utf-8")
    return path


def render_html(result: SweepResult, drawings: Sequence[Drawing]) -> str:
    """The whole report as text: no external resource; tables and figures are readable without JavaScript, the rest is drawn by it."""
    return _templates().get_template("report.html").render(
        title=f"{title(result)}: suite {result.suite}",
        result=result,
        drawings=drawings,
        warnings=warnings(result),
        finding=finding(result),
        standing_meaning=standing_meaning(),
        findings=findings(result),
        merge_rule=merge_rule(result),
        what_of_target=what_of_target(result),
        key_numbers=key_numbers(result),
        data=page_data(result),
        scores=SCORES,
        model_titles=MODEL_TITLES,
        reference_meanings=REFERENCE_MEANINGS,
        interval_meanings=INTERVAL_MEANINGS,
        headline=_rows(means_by_group(result).rename_axis("title").reset_index()),
        comparisons=_comparisons(result),
        compared_titles=[SCORE_TITLES[score] for score in COMPARED],
        best_of_targets=_rows(best_of_targets(result)),
        beaten=list(BEATEN),
        pairs=_with_bars(result, chosen_pairs(result)),
        best=_with_bars(result, best_pairs(result)),
        best_groups=[(SCORE_NAMED[score], references) for score, references in _BEST_GROUPS],
        kept_accuracy=KEPT_ACCURACY,
        domain_rows=_rows(domain_table(result)),
        table1=_table1(result),
        has_factor=has_factor(result),
        table1_titles=[SCORE_NAMED[score].title for score in (*PAPER_SCORES, *OUR_SCORES)],
        objective_rows=_rows(objective_table(result)),
        provenance={"sweep_key": result.sweep_key, "command": result.command, "suite": result.suite, **result.provenance},
    )


def tables_as_html(result: SweepResult) -> dict[str, str]:
    """The result's tables, name -> a page that shows it and can sort it: for where Parquet cannot be looked at."""
    pages = {}
    for name in FRAMES:
        frame: pd.DataFrame = getattr(result, name)
        if frame.empty:
            continue
        is_number = [pd.api.types.is_float_dtype(kind) for kind in frame.dtypes]
        pages[name] = _templates().get_template("table.html").render(
            title=f"{name} of {result.command} {result.suite}",
            text_columns=[c for c, holds in zip(frame.columns, is_number, strict=True) if not holds],
            number_columns=[c for c, holds in zip(frame.columns, is_number, strict=True) if holds],
            rows=_rows(frame),
        )
    return pages


def _table1(result: SweepResult) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each source with the rows of its Table 1: a title, and of every score the cell with the paper's (mean, standard deviation)."""
    table = table1(result).set_index(["source_domain", "model", "score"])
    found = []
    row_of = {row.model: row for row in ROWS}
    for source in dict.fromkeys(table.index.get_level_values("source_domain")):
        rows = []
        for model in dict.fromkeys(table.loc[source].index.get_level_values("model")):
            row = row_of.get(model)
            papers = dict(zip(PAPER_SCORES, row.paper, strict=True)) if row else {}
            values = [{**table.loc[(source, model, s)].to_dict(), "paper": papers.get(s)} for s in (*PAPER_SCORES, *OUR_SCORES)]
            rows.append({"model": model, "title": row.title if row else REFERENCE_TITLES[model], "values": values})
        found.append((source, rows))
    return found


def _comparisons(result: SweepResult) -> list[tuple[str, list[tuple[str, list[Against]]]]]:
    """Each group of sources, what holds first, with its references: a title and what came out in each of COMPARED."""
    return [
        (group.name, [(REFERENCE_TITLES[name], list(by_score.values())) for name, by_score in comparisons(result, group).items()])
        for group, _ in ranked(result)
    ]


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("sweep.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(number=number, signed=signed, p_text=p_text, prose=_prose)
    templates.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    templates.tests["finite"] = math.isfinite
    # NaN is no JSON. What is written for a script is escaped so that no name can end it.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return templates


def _rows(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _with_bars(result: SweepResult, pairs: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows of pairs; under `bars` the scores of every reference of the pair's target, under `intervals` those over the test pictures."""
    bars: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _rows(pair_references(result)):
        bars.setdefault((row["source_domain"], row["target_domain"]), {})[row["reference"]] = row
    intervals, found = intervals_of_pairs(result), []
    for row in _rows(pairs):
        key = row["source_domain"], row["target_domain"]
        found.append(row | {"bars": bars[key], "intervals": intervals.get(key, {})})
    return found


def _prose(text: str) -> Markup:
    """Plain text as HTML, with no line break inside of a term."""
    return Markup(escape(text).replace("E-RMSE", '<span class="term">E-RMSE</span>'))
