"""Attribution labels: shards on an actor pool, and the label set that they make up. One way to a label, for sweeps and for data sets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.games.attribution_labels import AttributionLabels, Labeller, LabelSettings
from core.model import Preprocessing
from sweep.experiment.config import Device
from sweep.stages.domains import Split
from sweep.stages.label_files import AttributionRanges, read_attributions, read_labels, read_provenance, write_labels
from sweep.stages.label_pictures import PictureRange
from sweep.stages.learned import Learned
from sweep.stages.models import Classifier
from sweep.stages.stage import ChildRun, Stage, artifacts_of
from sweep.store.artifacts import Store

# Coalitions evaluated at once: on a CPU few, so that a layer's activations stay in its cache. Fixed, so that a sweep's numbers are too.
BATCH_SIZES: dict[tuple[str, str], int] = {
    ("cpu", "float32"): 64,
    ("cpu", "bfloat16"): 128,
    ("cuda", "float32"): 2048,
    ("cuda", "bfloat16"): 2048,
}
LABELS, MEAN_MAP = "labels.parquet", "mean_map.npy"


@dataclass(frozen=True, eq=False)
class LabelShard(Stage):
    """Labels of the pictures at the positions start .. stop - 1, of a classifier's game.

    role: names the coalition pool, so that label sets of different roles share no coalitions. learned: what the estimator has learned, if
    it learns. batch_size: None finds it by trial.
    """

    kind = "label"
    version = 3
    engine = "shards"
    uses_device = True
    unit = "pictures"

    title: str
    pictures: PictureRange
    classifier: Classifier
    preprocessing: Preprocessing
    settings: LabelSettings
    role: str
    start: int
    stop: int
    learned: Learned | None = None
    batch_size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.title} {self.start}-{self.stop}"

    @property
    def params(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures.params,
            "classifier": self.classifier.params,
            "settings": asdict(self.settings),
            "role": self.role,
            "start": self.start,
            "stop": self.stop,
            "device": self.classifier.device,
        }

    @property
    def inputs(self) -> tuple[Stage, ...]:
        pictures = self.pictures.inputs(range(self.start, self.stop))
        return (*self.classifier.inputs, *pictures, *((self.learned,) if self.learned else ()))

    @property
    def size(self) -> float:
        return float(self.stop - self.start)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """Label the pictures. Those that cannot be read are left out and named in the file's metadata."""
        bench = workbench(store, self.pictures, self.classifier, self.settings, self.role, self.learned, self.batch_size)
        labeller, evaluator, device = bench.labeller, bench.labeller.evaluator, self.classifier.device
        began = time.monotonic()
        before = evaluator.num_evaluations, evaluator.seconds
        ids: list[str] = []
        class_ids: list[int] = []
        parts: list[AttributionLabels] = []
        skipped: list[dict[str, str]] = []
        for chunk in self.pictures.chunks(store, range(self.start, self.stop), device):
            skipped += chunk.skipped
            if not chunk.ids:
                continue
            inputs = self.preprocessing.normalise(torch.from_numpy(chunk.pixels).to(device))
            own = torch.from_numpy(chunk.class_ids).to(device)
            began += bench.find_batch_size(inputs, own)  # start-up, as loading the model is
            parts.append(labeller.label(inputs, own, chunk.ids))
            ids += chunk.ids
            class_ids += chunk.class_ids.tolist()
        labels = AttributionLabels.concatenate(parts) if parts else AttributionLabels.none(labeller.num_patches)
        write_labels(directory / LABELS, ids, np.array(class_ids, dtype=np.int64), labels, self._provenance(labels, skipped))
        return {
            "num_pictures": len(ids),
            "num_skipped": len(skipped),
            "evaluations": evaluator.num_evaluations - before[0],
            "seconds": round(time.monotonic() - began, 3),
            "evaluation_seconds": round(evaluator.seconds - before[1], 3),
        }

    def _provenance(self, labels: AttributionLabels, skipped: list[dict[str, str]]) -> dict[str, Any]:
        side = int(round(labels.attributions.shape[1] ** 0.5))
        return {
            "key": self.key,
            "role": self.role,
            "model": self.classifier.name,
            "model_fingerprint": self.classifier.fingerprint,
            "grid": [side, side],
            **asdict(self.settings),
            "skipped": skipped,
        }

    def load(self, store: Store) -> AttributionLabels:
        return _read(str(self.artifact(store).path(LABELS)))[1]

    def skipped(self, store: Store) -> list[dict[str, str]]:
        """Id and reason of the pictures that could not be read."""
        artifact = self.artifact(store)
        return read_provenance(artifact.path(LABELS))["skipped"] if artifact.manifest["meta"]["num_skipped"] else []


@lru_cache(maxsize=128)
def _read(path: str) -> tuple[list[str], AttributionLabels]:
    return read_labels(Path(path))


class Workbench:
    """What a worker keeps between shards: the classifier with its labeller, and its batch size."""

    def __init__(self, labeller: Labeller, batch_size: int | None) -> None:
        self.labeller = labeller
        self._finds_batch_size = batch_size is None

    def find_batch_size(self, inputs: torch.Tensor, class_ids: torch.Tensor) -> float:
        """Find the batch size by trial, at the first pictures there are; gives the seconds that took."""
        if not self._finds_batch_size:
            return 0.0
        began = time.monotonic()
        self.labeller.find_batch_size(inputs, class_ids)
        self._finds_batch_size = False
        return time.monotonic() - began


_last: tuple[tuple[Any, ...], Workbench] | None = None


def workbench(
    store: Store,
    pictures: PictureRange,
    classifier: Classifier,
    settings: LabelSettings,
    role: str,
    learned: Learned | None,
    batch_size: int | None,
) -> Workbench:
    """The process's workbench for a label set: shards come set by set, so that the last one is usually the right one."""
    global _last
    wanted = (classifier.fingerprint, settings, role, learned.key if learned else None, batch_size)
    if _last is None or _last[0] != wanted:
        known: Mapping[str, Any] | None = None
        found = None
        if learned is not None:
            found, known = learned.load(store, classifier.device), learned.known(store, pictures)
        labeller = Labeller(classifier.load(store), settings, role, batch_size=batch_size or 64, learned=found, known=known)
        _last = (wanted, Workbench(labeller, batch_size))
    return _last[1]


class LabelMeans:
    """Means over a label set's labels, added up part by part."""

    def __init__(self) -> None:
        self.number = 0
        self._squared_error = self._squared_label = 0.0
        self._map: NDArray[np.float64] | float = 0.0

    def add(self, labels: AttributionLabels) -> None:
        self.number += len(labels)
        self._squared_error += float(np.square(labels.standard_error.astype(np.float64)).sum())
        self._squared_label += float(np.square(labels.attributions.astype(np.float64)).sum())
        self._map = self._map + labels.attributions.astype(np.float64).sum(axis=0)

    def save_map(self, path: Path) -> None:
        """The mean map, float64 [M]."""
        np.save(path, np.asarray(self._map / max(1, self.number)))

    def as_meta(self) -> dict[str, Any]:
        number = max(1, self.number)
        error = (self._squared_error / number) ** 0.5 if np.isfinite(self._squared_error) else None
        return {"num_pictures": self.number, "label_standard_error": error, "label_norm": (self._squared_label / number) ** 0.5}


@dataclass(frozen=True, eq=False)
class LabelSet(Stage):
    """The labels of one split for one role: its shards, with what they took and what they say on average."""

    kind = "label_set"
    version = 1
    is_index = True

    domain: str
    split: Split
    role: str
    settings: LabelSettings
    shards: tuple[LabelShard, ...]

    @property
    def name(self) -> str:
        return f"{self.domain} {self.role}"

    @property
    def params(self) -> dict[str, Any]:
        return {"split": self.split, "role": self.role}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.shards

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """Sums over the shards, read one at a time. Files: mean_map.npy, float64 [M]."""
        means = LabelMeans()
        evaluations, seconds, started = 0, 0.0, np.inf
        for shard, artifact in zip(self.shards, artifacts_of(self.shards, store), strict=True):
            means.add(shard.load(store))
            evaluations += artifact.manifest["meta"]["evaluations"]
            seconds += artifact.manifest["seconds"]
            started = min(started, artifact.manifest["started"])
        means.save_map(directory / MEAN_MAP)
        return {**means.as_meta(), "evaluations": evaluations, "seconds": seconds, "started": started}

    def load(self, store: Store) -> AttributionLabels:
        """All labels, in the order of the split's pictures: the first ones, where fewer are labelled."""
        return AttributionLabels.concatenate([shard.load(store) for shard in self.shards])

    def attributions(self, store: Store) -> NDArray[np.float32]:
        """Those of all labels, in their order, and nothing else of them: what a training holds in memory. [N, M]"""
        return np.concatenate([read_attributions(path) for path in self._files(store)])

    def attributions_by_range(self, store: Store) -> AttributionRanges:
        """`attributions`, to be read a part at a time."""
        artifacts = artifacts_of(self.shards, store)
        counts = [artifact.manifest["meta"]["num_pictures"] for artifact in artifacts]
        return AttributionRanges(tuple((artifact, LABELS) for artifact in artifacts), np.cumsum([0, *counts]))

    def _files(self, store: Store) -> list[Path]:
        return [artifact.path(LABELS) for artifact in artifacts_of(self.shards, store)]

    def rows(self, store: Store) -> NDArray[np.int64]:
        """Which rows of the split's pictures have these labels, in their order."""
        return np.arange(self.artifact(store).manifest["meta"]["num_pictures"])

    def mean_map(self, store: Store) -> np.ndarray:
        """[M]"""
        return np.load(self.artifact(store).path(MEAN_MAP))

    def child_run(self, store: Store) -> ChildRun:
        meta = self.artifact(store).manifest["meta"]
        return ChildRun(
            stage="label",
            key=self.key,
            name=self.name,
            params={
                "source_domain": self.domain,
                "split": self.split,
                "role": self.role,
                **{f"label.{k}": v for k, v in asdict(self.settings).items()},
            },
            metrics={k: meta[k] for k in ("num_pictures", "evaluations", "label_standard_error", "label_norm")},
            tags={},
            started_s=meta["started"],
            seconds=meta["seconds"],
        )


def shard_ranges(num_pictures: int, size: int) -> tuple[tuple[int, int], ...]:
    """The ranges of a label set's shards."""
    return tuple((start, min(start + size, num_pictures)) for start in range(0, num_pictures, size))


def batch_size_of(device: Device, settings: LabelSettings) -> int:
    return BATCH_SIZES[device, settings.precision]
