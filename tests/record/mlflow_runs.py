"""What the tests of the record share: small real stages, and a look at what a store holds."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store

SWEEP_KEY = "0123456789abcdef"
EXPERIMENT = "all_pairs/miniature"
WEIGHTS = b"weights" * 10_000

Start = Callable[..., SweepRun]


@dataclass(frozen=True)
class Vector(Stage):
    """A stage that writes a vector and a curve, as a training does."""

    kind: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1

    domain: str
    alpha: float = 0.5
    error: Exception | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return f"{self.domain} alpha={self.alpha:g}"

    @property
    def params(self) -> Mapping[str, Any]:
        return {"domain": self.domain, "alpha": self.alpha}

    def compute(self, store: Store, directory: Path) -> Mapping[str, Any]:
        (directory / "explainability_vector.safetensors").write_bytes(WEIGHTS)
        return {"accuracy": 0.75, "loss": [2.0, 1.0]}

    def child_run(self, store: Store) -> ChildRun:
        if self.error is not None:
            raise self.error
        manifest = self.artifact(store).manifest
        return ChildRun(
            stage="finetune",
            key=self.key,
            name=self.name,
            params={"source_domain": self.domain, "alpha": self.alpha},
            metrics={"accuracy": manifest["meta"]["accuracy"], "e_rmse": None},
            tags={"kind": "self_explaining"},
            started_s=manifest["started"],
            seconds=manifest["seconds"],
            large_files=[("explainability_vector.safetensors", "vectors")],
            curves={"loss": list(enumerate(manifest["meta"]["loss"]))},
        )


@dataclass(frozen=True)
class Pictures(Vector):
    """A stage of which nothing is recorded."""

    kind: ClassVar[str] = "pictures"

    def child_run(self, store: Store) -> None:
        return None


def published(store: Store, *stages: Stage) -> list[Stage]:
    for stage in stages:
        stage.publish(store)
    return list(stages)


def pair(artifact_key: str = "a" * 40, **changes: Any) -> ChildRun:
    """The child of a pair that needs no artifact."""
    values: dict[str, Any] = {
        "stage": "pair",
        "key": artifact_key,
        "name": "pair cars to scenes",
        "params": {"source_domain": "cars", "target_domain": "scenes", "alpha": 0.5, "lambda1": 1.0, "lambda2": 0.8},
        "metrics": {"accuracy": 0.75, "e_rmse": 0.5},
        "tags": {"constraint_met": "True"},
        "started_s": 1_700_000_000.25,
        "seconds": 12.5,
    }
    return ChildRun(**{**values, **changes})


def children(tracker: Tracker) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], "tags.stage != 'sweep'"))


def parents(tracker: Tracker) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], "tags.stage = 'sweep'"))


def names(tracker: Tracker) -> list[str]:
    return sorted(child.info.run_name for child in children(tracker))


def status(tracker: Tracker, sweep_run: SweepRun) -> str:
    return str(tracker.client.get_run(sweep_run.run_id).info.status)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
