"""What a model is fine-tuned on, the order of its batches, and their way to the device while the step before runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from core.model import Preprocessing


@dataclass(frozen=True)
class Share:
    """One worker's part of every batch: every `size`-th picture from that of its `rank` on. The default is all."""

    rank: int = 0
    size: int = 1

    def of(self, index: Tensor) -> Tensor:
        return index[self.rank :: self.size]


WHOLE = Share()


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch, or a worker's share of one. pixels uint8 [B, 3, S, S], class_ids [B], attribution_labels [B, M] or None."""

    pixels: Tensor
    class_ids: Tensor
    attribution_labels: Tensor | None


class BatchSource(Protocol):
    """What a training takes its batches from: pictures at random (`TrainingData`) or shard by shard (`core.shard_stream.ShardStream`)."""

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def is_labelled(self) -> bool:
        """Whether its batches have attribution labels."""
        ...

    def __len__(self) -> int: ...

    def without_labels(self) -> BatchSource: ...

    def batches(
        self, batch_size: int, total_steps: int, seed: int, start: int = 0, share: Share = WHOLE
    ) -> Generator[Batch, None, None]:
        """Each step's batch on the CPU from step `start` on: a function of seed and step alone. A thread asks for them; close it."""
        ...


class PictureSource(Protocol):
    """What some pictures are measured on is taken from, by their numbers: `TrainingData` or `core.shard_stream.ShardStream`."""

    @property
    def preprocessing(self) -> Preprocessing: ...

    def __len__(self) -> int: ...

    def take(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """The batches of some indices."""
        ...


class Pictures(Protocol):
    """Decoded pictures that can be taken at random; a thread takes them (`core.data.picture_shards.PictureShards` is one)."""

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Tensor:
        """index [n] on the CPU -> uint8 [n, 3, S, S] on the CPU"""
        ...


@dataclass(frozen=True, eq=False)
class PicturesInMemory:
    """Pictures few enough to be held. pixels: uint8 [N, 3, S, S]."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, index: Tensor) -> Tensor:
        return self.pixels[index]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """N pictures (the first ones, where `pictures` has more). class_ids [N], attribution_labels [N, M] or None."""

    pictures: Pictures
    class_ids: Tensor
    preprocessing: Preprocessing
    attribution_labels: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.pictures) < len(self):
            raise ValueError(f"there are {len(self)} class ids for {len(self.pictures)} pictures: take the class ids of the same split")
        if self.attribution_labels is not None and len(self.attribution_labels) != len(self):
            raise ValueError(f"there are {len(self.attribution_labels)} attribution labels for {len(self)} pictures: label them all")

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def is_labelled(self) -> bool:
        return self.attribution_labels is not None

    def without_labels(self) -> TrainingData:
        return replace(self, attribution_labels=None)

    def batches(
        self, batch_size: int, total_steps: int, seed: int, start: int = 0, share: Share = WHOLE
    ) -> Generator[Batch, None, None]:
        return self.take(share.of(index) for index in batches(len(self), batch_size, total_steps, seed, start))

    def take(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """The batches of some indices, each read when it is asked for."""
        labels = self.attribution_labels
        for index in indices:
            yield Batch(self.pictures.gather(index), self.class_ids[index], None if labels is None else labels[index])


def batches(num_pictures: int, batch_size: int, total_steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Indices of each step's batch from step `start` on: a function of seed and step only, alike for every training on the data."""
    size = min(batch_size, num_pictures)
    per_epoch = num_pictures // size
    order, epoch_of_order = torch.empty(0, dtype=torch.long), -1
    for step in range(start, total_steps):
        epoch, position = divmod(step, per_epoch)
        if epoch != epoch_of_order:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order, epoch_of_order = torch.randperm(num_pictures, generator=generator), epoch
        yield order[position * size : (position + 1) * size]


def load_ahead(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Batches on the device; a thread reads and moves the next one while the caller works on the last. Closes `batches` at its end."""
    loader = _CudaLoader(batches, device) if device.type == "cuda" else _Loader(batches, device)
    with closing(batches), ThreadPoolExecutor(max_workers=1, thread_name_prefix="next batch") as thread:
        loading: deque[Future[Batch | None]] = deque(thread.submit(loader.load) for _ in range(2))
        while (batch := loading.popleft().result()) is not None:
            yield loader.receive(batch)
            loading.append(thread.submit(loader.load))


class _Loader:
    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device

    def load(self) -> Batch | None:
        """The next batch, None at the end. Called in the thread."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        labels = batch.attribution_labels
        return Batch(self._move(batch.pixels), self._move(batch.class_ids), None if labels is None else self._move(labels))

    def receive(self, batch: Batch) -> Batch:
        """Called where the batch is used, before it is."""
        return batch

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


class _CudaLoader(_Loader):
    """Copies from pinned memory on a stream of its own, which the step's stream waits for."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        super().__init__(batches, device)
        self._stream = torch.cuda.Stream(device)

    def load(self) -> Batch | None:
        with torch.cuda.stream(self._stream):
            return super().load()

    def receive(self, batch: Batch) -> Batch:
        # All copies that were begun so far: this batch's are among them, the next one's may be. Both are short beside a step.
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (batch.pixels, batch.class_ids, batch.attribution_labels):
            if tensor is not None:
                tensor.record_stream(current)  # or its memory could be given to the next batch while the step still reads it
        return batch

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)
