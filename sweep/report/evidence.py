"""What is transferred, with how sure it is: means over the target domains, which are what is independent, and paired tests over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from core.statistics import Mean, PairedTest, mean_interval, paired_test
from sweep.report.references import REFERENCE_TITLES
from sweep.report.result import SweepResult
from sweep.report.tables import SCORE_TITLES, chosen_pairs, is_better, reference_of_pairs
from sweep.report.text import number, shown_name

_FEW = 3
"""Sources up to which each is told by itself."""


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


def groups(result: SweepResult) -> list[Group]:
    """Each source where they are few; else the targets' own domains together, and the other sources, together where they are many."""
    if len(result.sources) <= _FEW:
        return [Group(shown_name(source), (source,)) for source in result.sources]
    single = tuple(source for source in result.sources if source in result.targets)
    others = tuple(source for source in result.sources if source not in result.targets)
    told_alone = [Group(shown_name(source), (source,)) for source in others]
    together = [Group("the other sources", others)] if len(others) > _FEW else told_alone
    return [*([Group("single domains", single)] if single else []), *together]


def over_targets(result: SweepResult, group: Group, score: str) -> Mean:
    """The group's chosen points on test, with the t interval over the targets."""
    return mean_interval(_by_target(result, group, chosen_pairs(result)[score]))


def against(result: SweepResult, group: Group, reference: str, score: str) -> Against:
    """The group beside a reference that every target has a row of."""
    own, bar, better = chosen_pairs(result)[score], reference_of_pairs(result, reference, score), is_better(result, reference, score)
    ours, theirs = _by_target(result, group, own), _by_target(result, group, bar)
    is_compared = _is_in(result, group) & own.notna() & bar.notna()
    return Against(
        reference, int((better & is_compared).sum()), int(is_compared.sum()), mean_interval(theirs).estimate, paired_test(ours, theirs)
    )


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
    kept = f"normalised accuracy {_with_interval(over_targets(result, group, 'normalized_accuracy'))}"
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
            sure = f", {_p(found.test.p_value)}" if math.isfinite(found.test.p_value) else ""
            bars.append(
                f"{REFERENCE_TITLES[name]} {number(found.mean)}: better in {found.num_better} of {found.num_pairs}, "
                f"difference {_signed(difference)}{sure}"
            )
    beside = f" ({'; '.join(bars)})" if bars else ""
    return f"{title} {_with_interval(over_targets(result, group, score))}{beside}"


def _is_in(result: SweepResult, group: Group) -> pd.Series:
    return chosen_pairs(result)["source_domain"].isin(group.sources)


def _by_target(result: SweepResult, group: Group, values: pd.Series) -> pd.Series:
    """Values of the chosen pairs -> a mean a target over the group's sources, in the order of the targets' names."""
    is_in = _is_in(result, group)
    return values[is_in].groupby(chosen_pairs(result).loc[is_in, "target_domain"]).mean()


def _with_interval(mean: Mean) -> str:
    interval = f" [{number(mean.low)}, {number(mean.high)}]" if math.isfinite(mean.low) else ""
    return f"{number(mean.estimate)}{interval}"


def _signed(mean: Mean) -> str:
    sign = "+" if mean.estimate > 0 else ""
    return f"{sign}{_with_interval(mean)}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
