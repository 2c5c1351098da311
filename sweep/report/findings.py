"""The result in sentences, and what a reader must know before any of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.merging.addition import Addition
from core.merging.rules import MERGE_RULES
from sweep.experiment.config import LABEL_FREE_OBJECTIVES
from sweep.report.evidence import SCALE_FREE, Group, Standing, against, best_untrained, over_targets, ranked, told, with_interval
from sweep.report.references import EXPECTED, REFERENCE_TITLES
from sweep.report.result import SCORE_COLUMNS, SweepResult
from sweep.report.tables import KEPT_ACCURACY, SCORE_TITLES, chosen_pairs, headline, missing_pairs
from sweep.report.text import number, shown_name


def title(result: SweepResult) -> str:
    """What was transferred between what, in a line."""
    if result.is_all_pairs:
        return f"Transferring explanations between all pairs of {len(result.targets)} domains"
    return f"Transferring explanations from {_counted(result.sources, 'source')} to {_counted(result.targets, 'target domain')}"


def merge_rule(result: SweepResult) -> str | None:
    """The merge rule as `--merge` takes it; None where it is addition, or not known."""
    rule = str(result.provenance.get("search.merge", Addition.name))
    return None if rule == Addition.name else rule


def what_of_target(result: SweepResult) -> str:
    """What of the target's own domain its transferred classifier comes from, besides its class labels: a sentence or two."""
    rule, sentences = merge_rule(result), []
    if rule is not None and (known := MERGE_RULES.get(rule.partition(":")[0])) is not None and "coefficients" in known.needs:
        sentences.append(
            f"By the merge rule {rule} each part of the vector has a coefficient, which is learned on the target's own pictures, without "
            "labels."
        )
    elif rule is not None:
        sentences.append(f"The merge rule {rule} edits the vector before it is added.")
    objective = result.provenance.get("search.objective")
    if objective in LABEL_FREE_OBJECTIVES:
        sentences.append("No explanation label of the target's domain has a part in training, merging or the rule that chooses the point.")
    elif objective is not None:
        sentences.append(
            f"Alpha and lambda2 are chosen with explanation labels of the target's own {result.selected_on} pictures (objective "
            f"{objective}); no others of its domain are read."
        )
    return " ".join(sentences)


@dataclass(frozen=True)
class Finding:
    """What came out of a group of sources, in a sentence."""

    standing: Standing
    text: str


@dataclass(frozen=True)
class KeyNumber:
    """A score of a group's transferred models, as it is shown large. interval: 95 %, with its n; beside: what the score is judged by."""

    title: str
    value: str
    interval: str
    beside: str


_KEY_SCORES = (
    ("iou_at_10", ("chance", "prediction_only", "mean_map", "supervised")),
    ("correlation", ("prediction_only", "mean_map", "supervised")),
    ("normalized_e_rmse", ("zero_predictor", "mean_map", "supervised")),
    ("normalized_accuracy", ("zero_shot", "supervised")),
)


def key_numbers(result: SweepResult) -> list[tuple[str, list[KeyNumber]]]:
    """Of each group of sources, what holds first, the four means to look at first."""
    return [(f"From {group.name}: {standing.lower()}", _key_numbers(result, group)) for group, standing in ranked(result)]


def _key_numbers(result: SweepResult, group: Group) -> list[KeyNumber]:
    found = []
    for score, references in _KEY_SCORES:
        mean = over_targets(result, group, score)
        interval = f"[{number(mean.low)}, {number(mean.high)}], " if math.isfinite(mean.low) else ""
        beside = ", ".join(f"{REFERENCE_TITLES[name]} {number(against(result, group, name, score).mean)}" for name in references)
        found.append(KeyNumber(SCORE_TITLES[score], number(mean.estimate), f"{interval}n = {_counted_targets(mean.n)}", beside))
    return found


def finding(result: SweepResult) -> list[Finding]:
    """The result in a sentence a group of sources, what holds first: the first lines of the report."""
    return [Finding(standing, _sentence(result, group)) for group, standing in ranked(result)]


def standing_meaning() -> str:
    """What `finding` calls to hold."""
    scores = " and ".join(SCORE_TITLES[score] for score in SCALE_FREE)
    return (
        f"Holds: {scores}, which no scale can flatter, are both better than the mean map's over the targets (paired t-test, p < 0.05) and "
        f"{KEPT_ACCURACY:.0%} of the accuracy is kept; in part: one of the two. The mean map looks at no picture; how a group stands to "
        "what explains without training (Grad-CAM, the rollouts) is told beside it. In brackets 95 % t intervals over the n targets."
    )


INTERVAL_MEANINGS = {
    "over targets": "Of means: Student's t over the targets, each by its mean over the sources that are told together. It says what other "
    "target domains would change; the seed is one.",
    "over test pictures": "Of one pair's scores, and of a reference's: a bootstrap (BCa) over the n test pictures of its target that the "
    "score was measured on, all for accuracies, else the labelled ones; of a normalised score over the pictures of both models. It says "
    "what other pictures would change for this one model, chosen as it is, against these labels: not another seed, target or draw of "
    "labels, nor that a pair was picked by its score. Pairs and references of one target share its pictures, so that two of them can be "
    "told apart where their intervals overlap. Where all pictures agree, as at an accuracy of 1, it "
    "has no width, which is no certainty.",
    "over seeds": "With --seeds N, where the seeds end: Student's t over N trainings, labellings and searches on the same pictures and "
    "domains.",
}
"""What each of the 95 % intervals is over."""

_TOLD_BY = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from", None: "beside"}


def _sentence(result: SweepResult, group: Group) -> str:
    pairs = chosen_pairs(result)
    num_pairs = int(pairs["source_domain"].isin(group.sources).sum())
    num_targets = pairs.loc[pairs["source_domain"].isin(group.sources), "target_domain"].nunique()
    counts = f"n = {_counted_targets(num_targets)}" + (f", {num_pairs} pairs" if num_pairs != num_targets else "")
    parts = []
    for score, others in (("iou_at_10", ("chance", "supervised")), ("correlation", ("supervised",)), ("e_rmse", ("zero_predictor",))):
        mean, bar = over_targets(result, group, score), against(result, group, "mean_map", score)
        n = f", n = {mean.n}" if mean.n != num_targets else ""
        known = [(name, against(result, group, name, score).mean) for name in others]
        beside = "".join(f", {REFERENCE_TITLES[name]} {number(value, 2)}" for name, value in known if math.isfinite(value))
        judged = f", {_TOLD_BY[bar.verdict]} the mean map's {number(bar.mean, 2)}" if bar.num_pairs else ""
        if (untrained := best_untrained(result, group, score)) is not None and score in SCALE_FREE:
            judged += f", {_TOLD_BY[untrained.verdict]} {REFERENCE_TITLES[untrained.reference]}'s {number(untrained.mean, 2)}"
        title = SCORE_TITLES[score] if score != "correlation" else "correlation"
        parts.append(f"{title} {with_interval(mean, 2)}{n}{judged}{f' ({beside[2:]})' if beside else ''}")
    kept = over_targets(result, group, "normalized_accuracy")
    limits = f" [{kept.low:.0%}, {kept.high:.0%}]" if math.isfinite(kept.low) else ""
    kept_text = f"{kept.estimate:.0%}{limits}" if math.isfinite(kept.estimate) else "an unknown share"
    return f"From {group.name} ({counts}): {'; '.join(parts)}; {kept_text} of the accuracy kept."


def _counted_targets(number_of: int) -> str:
    return f"{number_of} target{'' if number_of == 1 else 's'}"


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
    """The result in sentences: each group of sources against the bars that explain nothing, what holds first; then how to read them."""
    means, order = headline(result), ranked(result)
    shrunk = ", ".join(f"{number(over_targets(result, group, 'normalized_e_rmse').estimate)} from {group.name}" for group, _ in order)

    def mean(model: str, score: str) -> str:
        return number(means.loc[model, score])

    return [
        *(told(result, group) for group, _ in order),
        f"Beside them, over the same pairs: supervised models correlation {mean('supervised', 'correlation')}, IoU@10 "
        f"{mean('supervised', 'iou_at_10')}, E-RMSE {mean('supervised', 'e_rmse')}; prediction-only models "
        f"{mean('prediction_only', 'correlation')}, {mean('prediction_only', 'iou_at_10')}, {mean('prediction_only', 'e_rmse')}; two "
        f"draws of labels {mean('label_ceiling', 'correlation')}, {mean('label_ceiling', 'iou_at_10')}, {mean('label_ceiling', 'e_rmse')}.",
        f"Normalised E-RMSE falls by shrinkage alone: it is {shrunk}, and {mean('zero_predictor', 'normalized_e_rmse')} for the zero "
        "predictor. So read it beside the scores that no scale can flatter: correlation, E-RMSE at the best scale, and IoU@10 "
        "against chance.",
    ]
