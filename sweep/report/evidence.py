"""What is transferred, with how sure it is: means over the target domains, which are what is independent, and paired tests over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pandas as pd

from core.metrics import SCORE_NAMED
from core.statistics import Mean, PairedTest, mean_interval, paired_test
from core.statistics.comparison import SIGNIFICANCE
from sweep.report.references import REFERENCE_TITLES
from sweep.report.result import SCORE_COLUMNS, SweepResult
from sweep.report.tables import (
    KEPT_ACCURACY,
    MODEL_TITLES,
    SCORE_TITLES,
    chosen_pairs,
    headline,
    is_better,
    known_references,
    reference_of_pairs,
)
from sweep.report.text import number, shown_name

_FEW = 3
"""Sources up to which each is told by itself."""
SCALE_FREE = ("iou_at_10", "correlation")
"""The scores that no scale can flatter, in which a transfer is judged against the mean map."""
COMPARED = ("iou_at_10", "correlation", "e_rmse")
"""The scores that are compared with every reference."""

UNTRAINED = ("grad_cam", "attention_rollout", "gradient_rollout")
"""References that explain the prediction-only model from outside, with neither labels nor a vector."""

Standing = Literal["Holds", "Holds in part", "Does not hold", "Not tested"]


@dataclass(frozen=True)
class Group:
    """Sources that are told together. Of several sources a target counts by its mean over them."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Against:
    """A group against a reference in a score. num_better of num_pairs pairs; test: over the targets."""

    reference: str
    num_better: int
    num_pairs: int
    mean: float
    test: PairedTest
    lower_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"] | None:
        """By the paired t-test at 0.05; None where there is none."""
        if not math.isfinite(self.test.p_value):
            return None
        if self.test.p_value >= SIGNIFICANCE:
            return "not told apart"
        return "better" if (self.test.difference.estimate < 0) == self.lower_is_better else "worse"


def groups(result: SweepResult) -> list[Group]:
    """Each source where they are few; else the targets' own domains together, and the other sources, together where they are many."""
    if len(result.sources) <= _FEW:
        return [Group(shown_name(source), (source,)) for source in result.sources]
    single = tuple(source for source in result.sources if source in result.targets)
    others = tuple(source for source in result.sources if source not in result.targets)
    told_alone = [Group(shown_name(source), (source,)) for source in others]
    together = [Group("the other sources", others)] if len(others) > _FEW else told_alone
    return [*([Group("single domains", single)] if single else []), *together]


@lru_cache(maxsize=256)
def over_targets(result: SweepResult, group: Group, score: str) -> Mean:
    """The group's chosen points on test, with the t interval over the targets."""
    return mean_interval(_by_target(result, group, chosen_pairs(result)[score]))


@lru_cache(maxsize=256)
def against(result: SweepResult, group: Group, reference: str, score: str) -> Against:
    """The group beside a reference that every target has a row of."""
    own, bar, better = chosen_pairs(result)[score], reference_of_pairs(result, reference, score), is_better(result, reference, score)
    ours, theirs = _by_target(result, group, own), _by_target(result, group, bar)
    is_compared = _is_in(result, group) & own.notna() & bar.notna()
    num_better, num_pairs = int((better & is_compared).sum()), int(is_compared.sum())
    test, lower_is_better = paired_test(ours, theirs), SCORE_NAMED[score].lower_is_better
    return Against(reference, num_better, num_pairs, mean_interval(theirs).estimate, test, lower_is_better)


def comparisons(result: SweepResult, group: Group) -> dict[str, dict[str, Against]]:
    """Reference -> score of COMPARED -> the group beside it; of every known reference that has one of these scores."""
    found = {}
    for reference in known_references(result):
        by_score = {score: against(result, group, reference, score) for score in COMPARED}
        if any(one.num_pairs for one in by_score.values()):
            found[reference] = by_score
    return found


def best_untrained(result: SweepResult, group: Group, score: str) -> Against | None:
    """The group beside the best of UNTRAINED in a score, where the sweep has one."""
    found = [against(result, group, name, score) for name in UNTRAINED if name in known_references(result)]
    known = [one for one in found if one.num_pairs]
    return max(known, key=lambda one: -one.mean if one.lower_is_better else one.mean, default=None)


def standing(result: SweepResult, group: Group) -> Standing:
    """Holds: better than the mean map in all of SCALE_FREE, by a paired t-test, with KEPT_ACCURACY kept; in part: in one of them."""
    verdicts = [against(result, group, "mean_map", score).verdict for score in SCALE_FREE]
    if all(verdict is None for verdict in verdicts):
        return "Not tested"
    if "better" not in verdicts or not over_targets(result, group, "normalized_accuracy").estimate >= KEPT_ACCURACY:
        return "Does not hold"
    return "Holds" if set(verdicts) == {"better"} else "Holds in part"


def ranked(result: SweepResult) -> list[tuple[Group, Standing]]:
    """The groups, what holds first; of one standing the larger overlap first."""
    order: list[Standing] = ["Holds", "Holds in part", "Not tested", "Does not hold"]
    found = [(group, standing(result, group)) for group in groups(result)]
    overlap = {group: over_targets(result, group, "iou_at_10").estimate for group, _ in found}
    return sorted(found, key=lambda one: (order.index(one[1]), -overlap[one[0]] if math.isfinite(overlap[one[0]]) else math.inf))


def means_by_group(result: SweepResult) -> pd.DataFrame:
    """Mean scores of each group's transferred models, a target counting once, then of the references; index: titles."""
    means = headline(result)
    if len(groups(result)) > 1:
        own = {
            f"transferred from {group.name}": {score: over_targets(result, group, score).estimate for score in SCORE_COLUMNS}
            for group, _ in ranked(result)
        }
        means = pd.concat([pd.DataFrame.from_dict(own, orient="index"), means.drop(index="transferred")])
    return means.rename(index=MODEL_TITLES)


def told(result: SweepResult, group: Group) -> str:
    """The group in a sentence a score: its mean, what it is judged by, over how many, with intervals."""
    num_pairs = int(_is_in(result, group).sum())
    num_targets = _by_target(result, group, chosen_pairs(result)["iou_at_10"]).size
    parts = [
        _judged(result, group, score, references)
        for score, references in (
            ("correlation", ("mean_map", "prediction_only")),
            ("iou_at_10", ("mean_map", "chance")),
            ("e_rmse", ("zero_predictor", "mean_map")),
        )
    ]
    kept = f"normalised accuracy {with_interval(over_targets(result, group, 'normalized_accuracy'))}"
    pairs = f"{num_pairs} pairs, " if num_pairs != num_targets else ""
    return f"From {group.name} ({pairs}{num_targets} targets; 95 % intervals over targets): {'; '.join(parts)}; {kept}."


def _judged(result: SweepResult, group: Group, score: str, references: Sequence[str]) -> str:
    title = SCORE_TITLES[score]
    title = title if title.startswith(("IoU", "E-RMSE")) else title.lower()
    bars = []
    for name in references:
        found = against(result, group, name, score)
        if found.num_pairs:
            difference = found.test.difference
            sure = f", {p_text(found.test.p_value)}" if math.isfinite(found.test.p_value) else ""
            bars.append(
                f"{REFERENCE_TITLES[name]} {number(found.mean)}: better in {found.num_better} of {found.num_pairs}, "
                f"difference {signed(difference)}{sure}"
            )
    beside = f" ({'; '.join(bars)})" if bars else ""
    return f"{title} {with_interval(over_targets(result, group, score))}{beside}"


def _is_in(result: SweepResult, group: Group) -> pd.Series:
    return chosen_pairs(result)["source_domain"].isin(group.sources)


def _by_target(result: SweepResult, group: Group, values: pd.Series) -> pd.Series:
    """Values of the chosen pairs -> a mean a target over the group's sources, in the order of the targets' names."""
    is_in = _is_in(result, group)
    return values[is_in].groupby(chosen_pairs(result).loc[is_in, "target_domain"]).mean()


def with_interval(mean: Mean, digits: int = 3) -> str:
    """`0.294 [0.235, 0.353]`; of one target the value alone."""
    interval = f" [{number(mean.low, digits)}, {number(mean.high, digits)}]" if math.isfinite(mean.low) else ""
    return f"{number(mean.estimate, digits)}{interval}"


def signed(mean: Mean) -> str:
    """The same of a difference."""
    sign = "+" if mean.estimate > 0 else ""
    return f"{sign}{with_interval(mean)}"


def p_text(value: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
