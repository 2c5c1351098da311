"""What a model is fine-tuned on, the order of its batches, and their way to the device while the step before runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.model import Preprocessing


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


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on the training's device. pixels uint8 [B, 3, S, S], class_ids [B], attribution_labels [B, M] or None."""

    pixels: Tensor
    class_ids: Tensor
    attribution_labels: Tensor | None


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


def load_ahead(data: TrainingData, indices: Iterable[Tensor], device: torch.device) -> Generator[Batch, None, None]:
    """The batches of some indices on the device; a thread reads and moves the next one while the caller works on the last."""
    loader = _CudaLoader(data, device) if device.type == "cuda" else _Loader(data, device)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next batch") as thread:
        loading: deque[Future[Batch]] = deque()
        for index in indices:
            loading.append(thread.submit(loader.load, index))
            if len(loading) == 2:
                yield loader.receive(loading.popleft().result())
        while loading:
            yield loader.receive(loading.popleft().result())


class _Loader:
    def __init__(self, data: TrainingData, device: torch.device) -> None:
        self._data, self._device = data, device

    def load(self, index: Tensor) -> Batch:
        """Called in the thread."""
        labels = self._data.attribution_labels
        return Batch(
            self._move(self._data.pictures.gather(index)),
            self._move(self._data.class_ids[index]),
            None if labels is None else self._move(labels[index]),
        )

    def receive(self, batch: Batch) -> Batch:
        """Called where the batch is used, before it is."""
        return batch

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device)


class _CudaLoader(_Loader):
    """Copies from pinned memory on a stream of its own, which the step's stream waits for."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        super().__init__(data, device)
        self._stream = torch.cuda.Stream(device)

    def load(self, index: Tensor) -> Batch:
        with torch.cuda.stream(self._stream):
            return super().load(index)

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
