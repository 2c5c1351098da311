"""The job that labels the pictures of one data set, shard by shard, into a label directory. Memory stays flat however long it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.domains import LabelledPictures, PictureError, decode_picture
from core.games.attribution_labels import AttributionLabels, Labeller, LabelSettings
from core.shapley.estimators import Learned
from core.shapley.surrogate import Surrogate
from sweep.commands.label_directory import LabelDirectory
from sweep.engines.shards import ShardReport
from sweep.experiment.config import Device
from sweep.stages.label_files import write_labels
from sweep.stages.label_model import LabelModel, to_device

CHUNK = 64
"""Pictures decoded while the ones before are labelled."""

ROLE = "train"
DECODERS: dict[Device, int] = {"cpu": 1, "cuda": 4}


@dataclass(frozen=True)
class DatasetShard:
    """Pictures start .. stop - 1 in the data set's order; the index-th of `number` shards."""

    index: int
    number: int
    start: int
    stop: int


@dataclass
class _Kept:
    """What an actor keeps between shards."""

    labeller: Labeller | None = None
    has_batch_size: bool = False


@dataclass(frozen=True)
class DatasetLabels:
    """The job. batch_size: None finds it by trial. max_pictures: only the first of the data set. learned, known: see `Labeller`."""

    pictures: LabelledPictures
    model: LabelModel
    settings: LabelSettings
    device: Device
    out: LabelDirectory
    key: str
    shard_size: int = 256
    max_pictures: int | None = None
    batch_size: int | None = None
    learned: Learned | None = None
    known: Mapping[str, NDArray[np.float32]] | None = field(default=None, repr=False)
    _kept: _Kept = field(default_factory=_Kept, init=False, compare=False, repr=False)  # not copied by `replace`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": _Kept()}

    @property
    def num_pictures(self) -> int:
        number = len(self.pictures.pictures)
        return number if self.max_pictures is None else min(number, self.max_pictures)

    def shards(self) -> list[DatasetShard]:
        starts = range(0, self.num_pictures, self.shard_size)
        return [DatasetShard(i, len(starts), s, min(s + self.shard_size, self.num_pictures)) for i, s in enumerate(starts)]

    def missing(self) -> list[DatasetShard]:
        """The shards whose files are not there."""
        shards = self.shards()
        finished = self.out.finished(len(shards))
        return [shard for shard in shards if shard.index not in finished]

    def label(self, shard: DatasetShard) -> ShardReport:
        """Label a shard and publish its file. Pictures that cannot be read are left out and named in the file's metadata."""
        labeller = self.labeller()
        began = time.monotonic()
        before = labeller.evaluator.num_evaluations, labeller.evaluator.seconds
        ids: list[str] = []
        class_ids: list[int] = []
        parts: list[AttributionLabels] = []
        skipped: list[dict[str, str]] = []
        for chunk in decoded_chunks(self, range(shard.start, shard.stop)):
            skipped += chunk.skipped
            if not chunk.ids:
                continue
            inputs = self.inputs(chunk.pixels)
            own = torch.from_numpy(chunk.class_ids).to(self.device)
            began += self.find_batch_size(inputs, own)  # start-up, as loading the model is
            parts.append(labeller.label(inputs, own, chunk.ids))
            ids += chunk.ids
            class_ids += chunk.class_ids.tolist()
        labels = AttributionLabels.concatenate(parts) if parts else _no_labels(labeller.num_patches)
        self._publish(shard, ids, class_ids, labels, skipped)
        evaluator = labeller.evaluator
        return ShardReport(
            len(ids),
            evaluator.num_evaluations - before[0],
            len(skipped),
            seconds=time.monotonic() - began,
            evaluation_seconds=evaluator.seconds - before[1],
        )

    def labeller(self) -> Labeller:
        """The actor's labeller, made at its first use."""
        if self._kept.labeller is None:
            classifier = to_device(self.model.load(), self.device)
            learned = self.learned.to(self.device) if isinstance(self.learned, Surrogate) else self.learned
            self._kept.labeller = Labeller(
                classifier, self.settings, ROLE, batch_size=self.batch_size or 64, learned=learned, known=self.known
            )
        return self._kept.labeller

    def find_batch_size(self, inputs: Tensor, class_ids: Tensor) -> float:
        """Find the actor's batch size by trial, at the first pictures it has; gives the seconds that took."""
        if self.batch_size is not None or self._kept.has_batch_size:
            return 0.0
        began = time.monotonic()
        self.labeller().find_batch_size(inputs, class_ids)
        self._kept.has_batch_size = True
        return time.monotonic() - began

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self.model.preprocessing.normalise(torch.from_numpy(pixels).to(self.device))

    def _publish(
        self, shard: DatasetShard, ids: list[str], class_ids: list[int], labels: AttributionLabels, skipped: list[dict[str, str]]
    ) -> None:
        grid = int(round(labels.attributions.shape[1] ** 0.5))
        provenance = {
            "key": self.key,
            "model": self.model.checkpoint or self.model.base,
            "model_fingerprint": self.model.fingerprint,
            "grid": [grid, grid],
            **asdict(self.settings),
            "skipped": skipped,
        }
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "labels.parquet"
            write_labels(path, ids, np.array(class_ids, dtype=np.int64), labels, provenance)
            self.out.write(self.out.shard_name(shard.index, shard.number), path.read_bytes())


@dataclass(frozen=True)
class Chunk:
    """Pictures that could be read: pixels uint8 [N, 3, S, S]; skipped: id and reason of the others."""

    ids: list[str]
    class_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    skipped: list[dict[str, str]]


def decoded_chunks(job: DatasetLabels, indices: Sequence[int]) -> Iterator[Chunk]:
    """The pictures in chunks; each is decoded while the one before is in use."""
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    with ThreadPoolExecutor(DECODERS[job.device]) as pool:
        waiting = [pool.submit(decode, job, index) for index in chunks[0]] if chunks else []
        for n in range(len(chunks)):
            ready = waiting
            waiting = [pool.submit(decode, job, index) for index in chunks[n + 1]] if n + 1 < len(chunks) else []
            yield collected(job, chunks[n], [future.result() for future in ready])


def decode(job: DatasetLabels, index: int) -> NDArray[np.uint8] | PictureError:
    """A picture's pixels uint8 [3, S, S], or why it cannot be read."""
    try:
        return job.model.preprocessing.pixels(decode_picture(job.pictures.pictures.read_bytes(index)))
    except PictureError as error:
        return error


def collected(job: DatasetLabels, indices: Sequence[int], decoded: list[NDArray[np.uint8] | PictureError]) -> Chunk:
    """The pictures that could be read, and the others by name."""
    origin = job.pictures.pictures
    good = [(i, pixels) for i, pixels in zip(indices, decoded, strict=True) if not isinstance(pixels, PictureError)]
    skipped = [{"id": origin.ids[i], "reason": str(e)} for i, e in zip(indices, decoded, strict=True) if isinstance(e, PictureError)]
    size = job.model.preprocessing.image_size
    pixels = np.stack([p for _, p in good]) if good else np.empty((0, 3, size, size), np.uint8)
    return Chunk([origin.ids[i] for i, _ in good], origin.class_ids[[i for i, _ in good]], pixels, skipped)


def _no_labels(num_patches: int) -> AttributionLabels:
    """Labels of no picture, for a shard none of whose pictures can be read."""
    empty = lambda *shape: np.empty(shape, np.float32)  # noqa: E731
    return AttributionLabels(
        empty(0, num_patches), empty(0, num_patches), empty(0), empty(0), empty(0, 0), np.empty(0, np.int32)
    )
