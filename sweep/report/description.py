"""What a sweep is and what to look at, in Markdown: the top of its run's page in the record."""

from collections.abc import Sequence

from sweep.report.findings import finding, title, warnings, what_of_target
from sweep.report.result import SweepResult
from sweep.report.tables import KEPT_ACCURACY, REFERENCE_TITLES, best_pairs, chosen_pairs, reference_of_pairs
from sweep.report.text import number, shown_name

MOST_CHARACTERS = 4000
_LONGEST_NAME = 24
_BARS = (
    ("iou_at_10", ("chance", "prediction_only", "mean_map", "supervised")),
    ("e_rmse", ("zero_predictor", "supervised")),
)


def description_markdown(result: SweepResult, num_pairs: int = 5) -> str:
    """Under MOST_CHARACTERS: what this is, the best pairs beside their references, how to read them, where to look further.

    num_pairs: at most; fewer where names are long.
    """
    best = best_pairs(result, num_pairs)
    bars = {(s, r): reference_of_pairs(result, r, s) for s, references in _BARS for r in references}
    heads = ["source → target", "alpha", "lambda2", "norm. accuracy", "correlation"]
    heads += ["**IoU@10**", *(REFERENCE_TITLES[r] for r in _BARS[0][1]), "**E-RMSE**", *(REFERENCE_TITLES[r] for r in _BARS[1][1])]
    rows = []
    for index, pair in best.iterrows():
        row = [f"{_name(pair['source_domain'])} → {_name(pair['target_domain'])}", number(pair["alpha"], 2), number(pair["lambda2"], 2)]
        row += [number(pair["normalized_accuracy"]), number(pair["correlation"])]
        for score, references in _BARS:
            row += [f"**{number(pair[score])}**", *(number(bars[score, r][index]) for r in references)]
        rows.append(row)
    has_examples = "`figures/examples_1.png` (pictures with their strongest patches), " if result.examples else ""
    parts = [
        f"### {title(result)}",
        f"Suite **{_plain(shown_name(result.suite, 40))}**, command `{result.command}`, points chosen on {result.selected_on}, scored on "
        f"test. An explainability vector of the source is added to the target's classifier, which then explains itself. "
        f"{_plain(what_of_target(result))}".rstrip(),
        *(f"> **Warning.** {_plain(text)}" for text in warnings(result)),
        "**Look first at** `report.html` among the artifacts: everything on one page. Then at `figures/trade_off.png` (accuracy against "
        f"explanation), {has_examples}`figures/coefficient_curves.png` (what lambda2 does).",
        f"**Best of {len(chosen_pairs(result))} pairs** by IoU@10, those that keep {KEPT_ACCURACY:.0%} of the accuracy first; beside each "
        "score, the references of the pair's target:",
        _table(heads, rows),
        "\n".join(f"- **{found.standing}.** {_plain(found.text)}" for found in finding(result)),
        "**How to read it.** IoU@10 and correlation are better when larger, E-RMSE when smaller. E-RMSE falls by shrinkage alone, so a "
        "good pair is above chance, the mean map and prediction-only in IoU@10, near the supervised model, at a normalised accuracy "
        "near 1. Every point, reference and similarity is in `cells.html`, `references.html` and `similarities.html` (and `.parquet`), "
        "each pair at the paper's alpha and lambda2 in `paper_points.html`, "
        "the 95 % intervals over the test pictures in `intervals.html`, of the references in `reference_intervals.html`; child runs carry "
        "the tag `stage`.",
    ]
    text = "\n\n".join(parts) + "\n"
    return text if len(text) < MOST_CHARACTERS or num_pairs == 1 else description_markdown(result, num_pairs - 1)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [":---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _name(name: str) -> str:
    return _plain(shown_name(name, _LONGEST_NAME).strip())


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no link, markup or column of a table. MLflow's renderer knows no backslash before < and &."""
    return "".join({"<": "&lt;", "&": "&amp;"}.get(c) or (f"\\{c}" if c in "\\`*_{}[]#|!~" else c) for c in text)
