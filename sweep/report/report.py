"""The report of a sweep: one self-contained HTML page, the figures as files, and the terminal's summary."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from sweep.report.figures import Drawing, draw_figures, shown_name
from sweep.report.page import name_cell, number, number_cell, page, prose, table
from sweep.report.result import REFERENCES, SCORE_COLUMNS, SweepResult
from sweep.report.tables import (
    KEPT_ACCURACY,
    REFERENCE_TITLES,
    SCORE_TITLES,
    best_pairs,
    chosen_pairs,
    domain_table,
    headline,
    missing_pairs,
    num_better,
    reference_of_pairs,
)

_MODEL_TITLES = {
    "transferred": "transferred, mean",
    "transferred_mean": "transferred, mean",
    "transferred_best": "transferred, best by IoU@10",
    **REFERENCE_TITLES,
}
_REFERENCE_MEANINGS = {
    "zero_predictor": "answers 0 for every patch. It explains nothing, and yet its E-RMSE is low.",
    "mean_map": "answers the mean of the target's training labels for every picture: position alone, no picture.",
    "other_mean_map": "the same with the labels of another domain.",
    "chance": "a random order of the patches.",
    "prediction_only": "the target's classifier, trained without explanation supervision; what normalised scores "
    "are divided by.",
    "zero_shot": "the base model, not trained on the target.",
    "supervised": "trained on the target's own explanation labels, at the alpha of the pair: the upper bound for a "
    "transfer.",
    "label_ceiling": "how well two independent draws of the labels agree. A model without noise of its own could pass "
    "it a little; one far above it has learnt the labels' errors.",
}
_SCORE_MEANINGS = {
    "accuracy": "share of test pictures classified rightly.",
    "normalized_accuracy": "accuracy divided by the prediction-only target model's.",
    "e_rmse": "root of the mean over pictures of the squared L2 distance between predicted and label attributions "
    "of the true class (smaller is better). Shrinking every attribution towards 0 lowers it.",
    "normalized_e_rmse": "E-RMSE divided by the prediction-only target model's.",
    "e_rmse_at_best_scale": "E-RMSE after all predictions are multiplied by the one number that suits them best: what "
    "is left when scale is no merit. Never above the zero predictor's.",
    "correlation": "Pearson correlation of predicted and label attributions in a picture, mean over pictures.",
    "iou_at_1": "share of pictures whose strongest patch is the label's strongest patch.",
    "iou_at_10": "overlap of the ten strongest patches with the label's ten, divided by their union. Chance is not 0.",
    "infidelity": "mean squared gap between the attributions of a set of patches and the change of the logit when "
    "the set is hidden (smaller is better). Needs no labels.",
    "infidelity_at_best_scale": "infidelity after the attributions are multiplied by the best single number.",
}


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
    """The whole page as text: no external resource, readable without JavaScript."""
    title = f"Transferring explanations between all pairs of {len(result.domains)} domains: suite {result.suite}"
    sections = (
        ("results", "Results", _results(result)),
        ("best", "Best pairs", _best_pairs_section(result)),
        ("figures", "Figures", _figures_section([d for d in drawings if not d.name.startswith("matrix_")])),
        ("matrices", "Matrices", _matrices_section([d for d in drawings if d.name.startswith("matrix_")])),
        ("domains", "Each domain and its references", _domains_section(result)),
        ("pairs", "All pairs", _all_pairs_section(result)),
        ("scores", "How the scores are defined", _definitions_section()),
        ("provenance", "Provenance", _provenance_section(result)),
    )
    return page(title, f"sweep {result.sweep_key}", warnings(result), sections)


def warnings(result: SweepResult) -> list[str]:
    """What a reader must know before any number: selection on test, unfinished pairs, gaps."""
    found = []
    if result.selected_on == "test":
        found.append(
            "Alpha and lambda2 were chosen on the test split that the scores are measured on, as in the paper's grid. "
            "Every score of a transferred model is therefore too good."
        )
    missing = missing_pairs(result)
    if missing:
        named = "; ".join(f"{shown_name(source)} to {shown_name(target)}" for source, target in missing[:5])
        more = " and others" if len(missing) > 5 else ""
        num_all = len(result.domains) * (len(result.domains) - 1)
        found.append(f"{len(missing)} of {num_all} pairs have no result and are in no mean: {named}{more}.")
    known = set(result.references[["domain", "reference"]].itertuples(index=False, name=None))
    absent = [REFERENCE_TITLES[r] for r in REFERENCES if any((domain, r) not in known for domain in result.domains)]
    if absent:
        found.append(f"No score can be judged without its references; missing for some domains: {', '.join(absent)}.")
    undefined = chosen_pairs(result)[list(SCORE_COLUMNS)].isna().sum()
    undefined = undefined[undefined > 0]
    if len(undefined):
        counts = ", ".join(f"{SCORE_TITLES[score]} {count}" for score, count in undefined.items())
        found.append(f"Some scores are undefined and left out of the means (pairs concerned: {counts}).")
    return found


def findings(result: SweepResult) -> list[str]:
    """The result in sentences: first how many pairs pass the bars that explain nothing."""
    means = headline(result)
    zero, mean_map = num_better(result, "zero_predictor", "e_rmse"), num_better(result, "mean_map", "e_rmse")
    chance, map_overlap = num_better(result, "chance", "iou_at_10"), num_better(result, "mean_map", "iou_at_10")
    own = num_better(result, "prediction_only", "iou_at_10")
    scaled = num_better(result, "prediction_only", "correlation")

    def mean(model: str, score: str) -> str:
        return number(means.loc[model, score])

    return [
        f"In E-RMSE {zero} pairs beat the zero predictor, which explains nothing, and {mean_map} the mean map.",
        f"Normalised E-RMSE falls by shrinkage alone: it is {mean('transferred', 'normalized_e_rmse')} for the "
        f"transferred models on average, and {mean('zero_predictor', 'normalized_e_rmse')} for the zero predictor. So "
        "read it beside the scores that no scale can flatter: correlation, E-RMSE at the best scale, and IoU@10 "
        "against chance.",
        f"IoU@10 is {mean('transferred', 'iou_at_10')} on average; prediction-only "
        f"{mean('prediction_only', 'iou_at_10')}, chance {mean('chance', 'iou_at_10')}, mean map "
        f"{mean('mean_map', 'iou_at_10')}, supervised {mean('supervised', 'iou_at_10')}, label ceiling "
        f"{mean('label_ceiling', 'iou_at_10')}. {chance} pairs beat chance, {own} their prediction-only target, "
        f"{map_overlap} the mean map.",
        f"Correlation with the labels is {mean('transferred', 'correlation')} on average; prediction-only "
        f"{mean('prediction_only', 'correlation')}, supervised {mean('supervised', 'correlation')}. {scaled} pairs "
        "improve on their prediction-only target.",
        f"The transferred models keep {mean('transferred', 'normalized_accuracy')} of the prediction-only accuracy on "
        f"average ({mean('transferred', 'accuracy')} against {mean('prediction_only', 'accuracy')}; zero-shot "
        f"{mean('zero_shot', 'accuracy')}).",
    ]


def terminal_summary(result: SweepResult, num_pairs: int = 8) -> str:
    """The best pairs and the reference rows as plain ASCII text, at most 100 columns wide."""
    header = f"{'source -> target':<37}{'alpha':>6}{'lambda2':>8}{'accuracy':>10}{'(norm.)':>8}"
    header += f"{'E-RMSE':>8}{'(norm.)':>8}{'corr.':>7}{'IoU@10':>8}"
    shown = ("accuracy", "normalized_accuracy", "e_rmse", "normalized_e_rmse", "correlation", "iou_at_10")

    def scores(row: pd.Series) -> str:
        cells = (_ascii_number(row[score]) for score in shown)
        return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (10, 8, 8, 8, 7, 8), strict=True))

    pairs, best = chosen_pairs(result), best_pairs(result, num_pairs)
    lines = [f"WARNING: {_ascii(text, 400)}" for text in warnings(result)]
    kept = f"those that keep {KEPT_ACCURACY:.0%} of the accuracy first"
    lines += [f"The best of {len(pairs)} pairs by IoU@10 ({kept}), on test:", "", header]
    for _, pair in best.iterrows():
        name = f"{_ascii(pair['source_domain'], 16)} -> {_ascii(pair['target_domain'], 16)}"
        lines.append(f"{name:<37}{pair['alpha']:>6.2f}{pair['lambda2']:>8.2f}{scores(pair)}")
    lines += ["", f"Means over all {len(pairs)} pairs and, for the references, over the same targets:"]
    for model, row in headline(result).iterrows():
        lines.append(f"{_MODEL_TITLES[str(model)]:<51}{scores(row)}")
    lines += ["", *(text.replace("–", "-") for text in findings(result)[:2])]
    return "\n".join(part for line in lines for part in _wrapped(line, 100))


def _results(result: SweepResult) -> str:
    means = headline(result)
    rows = [
        [name_cell(_MODEL_TITLES[str(model)]), *(number_cell(row[s]) for s in SCORE_COLUMNS)]
        for model, row in means.iterrows()
    ]
    num_pairs = len(chosen_pairs(result))
    return (
        "<p>A classifier that was trained on a <i>source</i> domain to explain itself differs from one trained only "
        "to classify by an explainability vector. Here that vector is added to a classifier of another, the "
        "<i>target</i> domain, which then says which patches of a picture speak for its class, without one "
        "explanation label of its own domain. Judge a transferred model by the rows around it: it should lie well "
        "above chance and the mean map, which look at no picture, towards the supervised model, and keep the "
        "prediction-only accuracy.</p>"
        f'<div class="finding">{"".join(f"<p>{prose(text)}</p>" for text in findings(result))}</div>'
        + table(
            ["model", *(SCORE_TITLES[s] for s in SCORE_COLUMNS)],
            rows,
            caption=f"Means over {num_pairs} pairs on test; each reference is the one of the pair's target domain.",
            row_classes=["own", *[""] * len(REFERENCES)],
        )
    )


def _best_pairs_section(result: SweepResult) -> str:
    best = best_pairs(result)
    groups = (
        ("accuracy", ("prediction_only",)),
        ("iou_at_10", ("chance", "prediction_only", "mean_map", "supervised", "label_ceiling")),
        ("e_rmse", ("zero_predictor", "mean_map", "supervised")),
    )
    head = '<tr><th class="name" colspan="2">pair</th><th class="group" colspan="2">chosen</th>'
    names = '<tr><th class="name">source</th><th class="name">target</th><th>alpha</th><th>lambda2</th>'
    for score, references in groups:
        head += f'<th class="group" colspan="{1 + len(references)}">{escape(SCORE_TITLES[score])}</th>'
        names += "<th>transferred</th>" + "".join(f"<th>{escape(REFERENCE_TITLES[r])}</th>" for r in references)
    bars = {(s, r): reference_of_pairs(result, r, s) for s, references in groups for r in references}
    body = ""
    for index, pair in best.iterrows():
        body += f"<tr>{name_cell(pair['source_domain'])}{name_cell(pair['target_domain'])}"
        body += number_cell(pair["alpha"], 2) + number_cell(pair["lambda2"], 2)
        for score, references in groups:
            body += number_cell(pair[score], bold=True)
            body += "".join(number_cell(bars[score, reference][index]) for reference in references)
        body += "</tr>"
    return (
        f"<p>The highest IoU@10 on test among the pairs that keep {KEPT_ACCURACY:.0%} of the prediction-only accuracy "
        "(others follow only when these are fewer), each beside the references of its target domain. They are the best "
        f"of {len(chosen_pairs(result))}, picked by a test score: expect a little less of them on new pictures.</p>"
        f'<div class="scroll"><table><thead>{head}</tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figures_section(drawings: Iterable[Drawing]) -> str:
    return "".join(_figure(drawing) for drawing in drawings)


def _matrices_section(drawings: Iterable[Drawing]) -> str:
    return f'<div class="matrices">{_figures_section(drawings)}</div>'


def _figure(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.png).decode("ascii")
    alternative = escape(drawing.caption.title)
    return (
        f'<figure id="{escape(drawing.name)}"><img alt="{alternative}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{prose(drawing.caption.title)}.</b> {prose(drawing.caption.text)}</figcaption></figure>"
    )


def _domains_section(result: SweepResult) -> str:
    rows, classes, previous = [], [], ""
    for _, row in domain_table(result).iterrows():
        is_first, previous = row["domain"] != previous, row["domain"]
        is_own = str(row["model"]).startswith("transferred")
        classes.append(" ".join(c for c, holds in (("first", is_first), ("own", is_own)) if holds))
        names = [name_cell(row["domain"] if is_first else ""), name_cell(_MODEL_TITLES[row["model"]])]
        rows.append([*names, number_cell(row["alpha"], 2), *(number_cell(row[s]) for s in SCORE_COLUMNS)])
    caption = "On each domain's test pictures. Transferred: the pairs with this domain as their target."
    return table(["domain", "model", "alpha", *(SCORE_TITLES[s] for s in SCORE_COLUMNS)], rows, caption, classes, 2)


def _all_pairs_section(result: SweepResult) -> str:
    pairs = chosen_pairs(result)
    zero, mean_map = (reference_of_pairs(result, r, "e_rmse") for r in ("zero_predictor", "mean_map"))
    similarities = ("similarity_prediction_only", "similarity_explainability")
    rows = []
    for index, pair in pairs.iterrows():
        rows.append(
            [name_cell(pair["source_domain"]), name_cell(pair["target_domain"])]
            + [number_cell(pair[c], 2) for c in ("alpha", "lambda1", "lambda2")]
            + [number_cell(pair[c]) for c in (*SCORE_COLUMNS, *similarities)]
            + [number_cell(zero[index]), number_cell(mean_map[index])]
        )
    header = ["source", "target", "alpha", "lambda1", "lambda2", *(SCORE_TITLES[s] for s in SCORE_COLUMNS)]
    header += ["similarity, prediction-only", "similarity, explainability"]
    header += ["E-RMSE of zero predictor", "E-RMSE of mean map"]
    caption = "The chosen point of every pair on test. Select a heading to sort by it."
    return table(header, rows, caption, num_names=2, table_class="sortable")


def _definitions_section() -> str:
    scores = "".join(f"<dt>{prose(SCORE_TITLES[s])}</dt><dd>{prose(_SCORE_MEANINGS[s])}</dd>" for s in SCORE_COLUMNS)
    references = "".join(
        f"<dt>{prose(REFERENCE_TITLES[r])}</dt><dd>{prose(_REFERENCE_MEANINGS[r])}</dd>" for r in REFERENCES
    )
    return f"<h3>Scores</h3><dl>{scores}</dl><h3>References</h3><dl>{references}</dl>"


def _provenance_section(result: SweepResult) -> str:
    entries = {"sweep_key": result.sweep_key, "suite": result.suite, **result.provenance}
    rows = [[name_cell(name), f'<td class="name long">{escape(str(value))}</td>'] for name, value in entries.items()]
    return table(["setting", "value"], rows, "Every setting and hash that these numbers depend on.", num_names=2)


def _ascii_number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _ascii(text: str, length: int) -> str:
    """Nothing that a terminal would obey or fail to show: an escape sequence in a folder's name stays text."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain if len(plain) <= length else plain[: length - 1] + "~"


def _wrapped(line: str, width: int) -> list[str]:
    parts = []
    while len(line) > width:
        cut = line.rfind(" ", 0, width + 1)
        cut = cut if cut > 0 else width
        parts.append(line[:cut])
        line = line[cut:].lstrip()
    return [*parts, line]
