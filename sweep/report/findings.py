"""The result in sentences, and what a reader must know before any of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweep.report.evidence import groups, told
from sweep.report.references import EXPECTED, REFERENCE_TITLES
from sweep.report.result import SCORE_COLUMNS, SweepResult
from sweep.report.tables import SCORE_TITLES, chosen_pairs, headline, missing_pairs
from sweep.report.text import number, shown_name


def title(result: SweepResult) -> str:
    """What was transferred between what, in a line."""
    if result.is_all_pairs:
        return f"Transferring explanations between all pairs of {len(result.targets)} domains"
    return f"Transferring explanations from {_counted(result.sources, 'source')} to {_counted(result.targets, 'target domain')}"


@dataclass(frozen=True)
class KeyNumber:
    """A score of the transferred models, as it is shown large. beside: what it is judged by."""

    title: str
    value: str
    beside: str


_KEY_SCORES = (
    ("iou_at_10", ("chance", "prediction_only", "mean_map", "supervised")),
    ("correlation", ("prediction_only", "mean_map", "supervised")),
    ("normalized_e_rmse", ("zero_predictor", "mean_map", "supervised")),
    ("normalized_accuracy", ("zero_shot", "supervised")),
)


def key_numbers(result: SweepResult) -> list[KeyNumber]:
    """The four means to look at first."""
    means = headline(result)
    return [
        KeyNumber(
            SCORE_TITLES[score],
            number(means.loc["transferred", score]),
            ", ".join(f"{REFERENCE_TITLES[name]} {number(means.loc[name, score])}" for name in references),
        )
        for score, references in _KEY_SCORES
    ]


def finding(result: SweepResult) -> str:
    """The result in one sentence."""
    means, pairs = headline(result), len(chosen_pairs(result))
    overlap = {name: number(means.loc[name, "iou_at_10"], 2) for name in ("transferred", "prediction_only", "chance", "supervised")}
    kept = means.loc["transferred", "normalized_accuracy"]
    kept_text = f"{kept:.0%}" if math.isfinite(kept) else "an unknown share"
    over = f"On average over {pairs} pairs, a" if pairs > 1 else "A"
    return (
        f"{over} transferred explainability vector takes the overlap of a classifier's ten strongest patches with the label's (IoU@10) "
        f"from {overlap['prediction_only']} to {overlap['transferred']}, where chance gives {overlap['chance']} and training on the "
        f"target's own labels {overlap['supervised']}, and keeps {kept_text} of the accuracy."
    )


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


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
        found.append(f"{len(missing)} of {len(result.pairs)} pairs have no result and are in no mean: {named}{more}.")
    known = set(result.references[["domain", "reference"]].itertuples(index=False, name=None))
    absent = [REFERENCE_TITLES[r] for r in EXPECTED if any((domain, r) not in known for domain in result.targets)]
    if absent:
        found.append(f"No score can be judged without its references; missing for some domains: {', '.join(absent)}.")
    undefined = chosen_pairs(result)[list(SCORE_COLUMNS)].isna().sum()
    undefined = undefined[undefined > 0]
    if len(undefined):
        counts = ", ".join(f"{SCORE_TITLES[score]} {count}" for score, count in undefined.items())
        found.append(f"Some scores are undefined and left out of the means (pairs concerned: {counts}).")
    return found


def findings(result: SweepResult) -> list[str]:
    """The result in sentences: each group of sources against the bars that explain nothing, with intervals; then how to read them."""
    means = headline(result)

    def mean(model: str, score: str) -> str:
        return number(means.loc[model, score])

    return [
        *(told(result, group) for group in groups(result)),
        f"Beside them, over the same pairs: supervised models correlation {mean('supervised', 'correlation')}, IoU@10 "
        f"{mean('supervised', 'iou_at_10')}, E-RMSE {mean('supervised', 'e_rmse')}; prediction-only models "
        f"{mean('prediction_only', 'correlation')}, {mean('prediction_only', 'iou_at_10')}, {mean('prediction_only', 'e_rmse')}; two "
        f"draws of labels {mean('label_ceiling', 'correlation')}, {mean('label_ceiling', 'iou_at_10')}, {mean('label_ceiling', 'e_rmse')}.",
        f"Normalised E-RMSE falls by shrinkage alone: it is {mean('transferred', 'normalized_e_rmse')} for the "
        f"transferred models on average, and {mean('zero_predictor', 'normalized_e_rmse')} for the zero predictor. So "
        "read it beside the scores that no scale can flatter: correlation, E-RMSE at the best scale, and IoU@10 "
        "against chance.",
    ]
