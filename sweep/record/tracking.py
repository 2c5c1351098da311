"""The names under which `commands` and `run` still know the record; they go once these import its modules themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.record import tracker
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import TrackingError

__all__ = ["SweepRun", "Tracker", "TrackingError"]


class Tracker(tracker.Tracker):
    def start_sweep(self, sweep_key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> SweepRun:
        return SweepRun(self, sweep_key, name, params, tags)
