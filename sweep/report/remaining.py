"""What of a sweep's plan is done and what is left, and how long that may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KindLeft:
    """Of one kind of stage. mean_s: seconds of work of a finished one; None where none is finished."""

    kind: str
    num_done: int
    num_planned: int
    mean_s: float | None

    @property
    def num_left(self) -> int:
        return self.num_planned - self.num_done


def remaining(stages: Mapping[str, Mapping[str, str]], manifests: Mapping[str, Mapping[str, Any]]) -> list[KindLeft]:
    """stages: as of a plan, kind -> key -> name. manifests: of those that are there."""
    found = []
    for kind, names in stages.items():
        seconds = [manifests[key]["seconds"] for key in names if key in manifests]
        found.append(KindLeft(kind, len(seconds), len(names), sum(seconds) / len(seconds) if seconds else None))
    return found


def seconds_left(left: list[KindLeft], manifests: Mapping[str, Mapping[str, Any]], since: float, now: float) -> float | None:
    """Seconds until what is left is done, at the rate of work since `since` (s since the epoch); None where nothing was done since.

    Work of kinds of which none is finished is not in it.
    """
    done_s = sum(m["seconds"] for m in manifests.values() if m["started"] >= since)
    if done_s <= 0 or now <= since:
        return None
    return sum(kind.num_left * kind.mean_s for kind in left if kind.mean_s is not None) / (done_s / (now - since))
