"""What two sweeps differ in: settings, code, chosen points and scores, as plain text."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from core.metrics import SCORES
from core.statistics import paired_test
from sweep.report.result import PAIR_COLUMNS
from sweep.report.text import ascii_pair, ascii_text, counted, number

_WIDTH = 100
_VALUE = 48
_SHOWN = {
    "alpha": ("alpha", None),
    "lambda2": ("lambda2", None),
    **{s.name: (s.title, s.lower_is_better) for s in SCORES if s.terminal_title is not None},
}
"""What is compared of the chosen points: its title, and whether less is better; None: neither is."""
_ABSENT = "-"


@dataclass(frozen=True)
class ComparedSweep:
    """One of two. title: what it is called; settings: name -> value; versions: of libraries, and of the code of each kind of stage.

    chosen: the chosen points on test, a row a pair, with PAIR_COLUMNS, alpha, lambda2 and the scores; None of a sweep that has no result.
    """

    title: str
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    chosen: pd.DataFrame | None


def differences(left: ComparedSweep, right: ComparedSweep) -> str:
    """What differs, one line each, left -> right; of the pairs that both have, each score with a paired test over the targets."""
    known = left.versions.keys() & right.versions.keys()  # a stage that one sweep has not, or an old record, is no other version
    lines = [f"left   {left.title}", f"right  {right.title}"]
    num_changed = 0
    our_versions, their_versions = ({name: side.versions[name] for name in known} for side in (left, right))
    for title, ours, theirs in (
        ("Configuration", left.settings, right.settings),
        ("Versions and code", our_versions, their_versions),
    ):
        changed, number_of = _changed(ours, theirs), len({*ours, *theirs})
        num_changed += len(changed)
        if changed:
            lines += ["", f"{title}: {len(changed)} of {number_of} differ, left -> right", *(f"  {line}" for line in changed)]
        else:
            lines += ["", f"{title}: nothing differs ({number_of} compared)" if number_of else f"{title}: not recorded of both"]
    has_same_results, results = _results(left.chosen, right.chosen)
    if not num_changed and has_same_results:
        return "\n".join([*lines[:2], "", "Nothing differs: configuration, versions, chosen points and scores are the same."])
    return "\n".join([*lines, "", *results])


def _changed(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """`name  left -> right` of what differs."""
    names = [n for n in sorted({*left, *right}) if left.get(n, _ABSENT) != right.get(n, _ABSENT)]
    width = max((len(name) for name in names), default=0)
    return [f"{name:<{width}}  {_value(left, name)} -> {_value(right, name)}" for name in names]


def _value(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, _ABSENT)
    return ascii_text(value if isinstance(value, str) else json.dumps(value), _VALUE)


def _results(left: pd.DataFrame | None, right: pd.DataFrame | None) -> tuple[bool, list[str]]:
    """Whether the results are the same, and what they say."""
    missing = [name for name, chosen in (("left", left), ("right", right)) if chosen is None]
    if left is None or right is None:
        return False, [f"Results: none recorded of the {' and of the '.join(missing)} sweep, which is not finished or sums up several"]
    pairs = list(PAIR_COLUMNS)
    both = left.merge(right, on=pairs, suffixes=("_left", "_right"), validate="one_to_one")
    shared = set(both[pairs].itertuples(index=False, name=None))
    only = []
    for name, chosen in (("left", left), ("right", right)):
        names = [ascii_pair(*pair) for pair in chosen[pairs].itertuples(index=False, name=None) if pair not in shared]
        if names:
            only += textwrap.wrap(f"Only in the {name} sweep: {', '.join(names)}", _WIDTH, subsequent_indent="  ")
    if both.empty:
        return False, ["Results: no pair is in both", *only]
    if not only and all(_is_same(both[f"{c}_left"], both[f"{c}_right"]) for c in _SHOWN):
        return True, [f"Results: nothing differs in chosen points and scores of {counted(len(both), 'pair')}"]
    targets = both["target_domain"].nunique()
    head = (
        f"Results: {counted(len(both), 'pair')} in both, chosen points on test. Means over {counted(targets, 'target')} of the means over "
        "their pairs; right - left with its 95 % t interval and the p-value of the paired t-test over the targets; pairs that are better "
        "and worse:"
    )
    lines = [*textwrap.wrap(head, _WIDTH), "", f"{'':<30}{'left':>8}{'right':>8}{'difference':>12}{'95 % interval':>20}{'p':>8}  pairs"]
    return False, [*lines, *(_row(both, column) for column in _SHOWN), *(["", *only] if only else [])]


def _row(both: pd.DataFrame, column: str) -> str:
    title, lower_is_better = _SHOWN[column]
    known = both.dropna(subset=[f"{column}_left", f"{column}_right"])
    of_targets = known.groupby("target_domain")[[f"{column}_left", f"{column}_right"]].mean()
    left, right = of_targets[f"{column}_left"], of_targets[f"{column}_right"]
    test = paired_test(right, left)
    interval = f"[{test.difference.low:+.3f}, {test.difference.high:+.3f}]" if math.isfinite(test.difference.low) else _ABSENT
    difference = f"{test.difference.estimate:+.3f}" if len(known) else _ABSENT
    change = known[f"{column}_right"] - known[f"{column}_left"]
    up, down = int((change > 0).sum()), int((change < 0).sum())
    better, worse = (down, up) if lower_is_better else (up, down)
    counts = f"{up} up, {down} down" if lower_is_better is None else f"{better} better, {worse} worse"
    means = "".join(f"{number(float(side.mean()), dash=_ABSENT):>8}" for side in (left, right))
    return f"{title:<30}{means}{difference:>12}{interval:>20}{number(test.p_value, dash=_ABSENT):>8}  {counts}"


def _is_same(left: pd.Series, right: pd.Series) -> bool:
    return bool(((left == right) | (left.isna() & right.isna())).all())
