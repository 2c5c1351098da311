"""Training data read shard by shard: for data sets larger than a node's memory or disk.

An epoch visits the shards in an order of its own, some at a time, a window, whose pictures are shuffled together (as WebDataset's shuffle
buffer and FFCV's quasi-random order, Leclerc et al., 2023, do). A node holds two windows, the one that is trained on and the next, which a
thread brings meanwhile: shards are read from one end to the other, and the labels in memory are those of two windows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from core.data.picture_shards import PictureShards
from core.model import Preprocessing
from core.training_data import WHOLE, Batch, Share

AT_ONCE = 4
"""Shards of a window that are brought at the same time: one connection to a bucket is slower than a training on a GPU."""


@dataclass(frozen=True, eq=False)
class ShardPart:
    """What of a shard is trained on, on this machine.

    path: the pixels' file. rows [n]: which of its pictures; class_ids [n], attribution_labels [n, M] or None: theirs.
    """

    path: Path
    rows: Tensor
    class_ids: Tensor
    attribution_labels: Tensor | None


class TrainingShard(Protocol):
    """A shard that may lie elsewhere."""

    def __len__(self) -> int:
        """Its pictures that are trained on: known without it."""
        ...

    def opened(self) -> AbstractContextManager[ShardPart]:
        """Bring it here for the time of a `with`, which one thread may enter and another leave."""
        ...


@dataclass(frozen=True)
class Window:
    """shards: numbers of those whose pictures are shuffled together. rows [n]: their pictures in the order of training, counted through."""

    shards: tuple[int, ...]
    rows: Tensor


def windows(sizes: Sequence[int], num_shards: int, seed: int, epoch: int) -> Iterator[Window]:
    """An epoch's windows of `num_shards` shards (the last may have fewer) over shards of `sizes` pictures: a function of seed and epoch."""
    order = torch.randperm(len(sizes), generator=_generator(seed, epoch, 0)).tolist()
    for number, first in enumerate(range(0, len(order), num_shards), 1):
        shards = tuple(order[first : first + num_shards])
        yield Window(shards, torch.randperm(sum(sizes[i] for i in shards), generator=_generator(seed, epoch, number)))


def _generator(seed: int, epoch: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 100_003 + number)


@dataclass(frozen=True, eq=False)
class ShardStream:
    """Pictures of shards, as a training's batches. window: shards that are shuffled together.

    What a window holds is what its batches are drawn from: data sets whose pictures lie sorted by class want a wide one.
    """

    shards: Sequence[TrainingShard]
    window: int
    preprocessing: Preprocessing
    is_labelled: bool

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def without_labels(self) -> ShardStream:
        return replace(self, is_labelled=False)

    def batches(
        self, batch_size: int, total_steps: int, seed: int, start: int = 0, share: Share = WHOLE
    ) -> Generator[Batch, None, None]:
        size = min(batch_size, len(self))
        with ExitStack() as stack:
            coming = stack.enter_context(_Coming(self, self._visits(size, total_steps, seed, start)))
            for _ in range(start, total_steps):
                yield _joined(coming.take(size, share))

    def take(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """The batches of some indices, counted over all shards, without labels. All are held: for a few pictures.

        Each shard that holds some of them comes here once, the others not at all.
        """
        wanted = list(indices)
        index = torch.cat(wanted)
        ends = torch.tensor([len(shard) for shard in self.shards]).cumsum(0)
        shard_of = torch.bucketize(index, ends, right=True)
        places, pixels, class_ids = [], [], []
        for number in shard_of.unique().tolist():
            here = (shard_of == number).nonzero()[:, 0]
            rows = index[here] - ends[number] + len(self.shards[number])
            with self.shards[number].opened() as part:
                pixels.append(PictureShards([part.path]).gather(part.rows[rows]))
            class_ids.append(part.class_ids[rows])
            places.append(here)
        order = torch.cat(places).argsort()
        sizes = [len(each) for each in wanted]
        for batch, classes in zip(torch.cat(pixels)[order].split(sizes), torch.cat(class_ids)[order].split(sizes), strict=True):
            yield Batch(batch, classes, None)

    def _visits(self, size: int, total_steps: int, seed: int, start: int) -> Iterator[Window]:
        """The windows from step `start` to the end, each with those of its rows that batches of `size` take; an epoch's rest is left."""
        sizes = [len(shard) for shard in self.shards]
        per_epoch = sum(sizes) // size
        for epoch in range(start // per_epoch, -(-total_steps // per_epoch)):
            begin = max(0, start - epoch * per_epoch) * size
            end = min(per_epoch, total_steps - epoch * per_epoch) * size
            at = 0
            for window in windows(sizes, self.window, seed, epoch):
                rows = window.rows[max(0, begin - at) : max(0, end - at)]
                at += len(window.rows)
                if len(rows):
                    yield Window(window.shards, rows)


class _Coming:
    """The windows of some visits, one at hand, the next one on its way."""

    def __init__(self, stream: ShardStream, visits: Iterator[Window]) -> None:
        self._stream, self._visits = stream, visits
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next window")
        self._on_their_way: deque[Future[_OpenWindow]] = deque()
        self._current: _OpenWindow | None = None

    def __enter__(self) -> _Coming:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for future in self._on_their_way:
            if not future.cancelled() and future.exception() is None:
                future.result().close()
        if self._current is not None:
            self._current.close()

    def take(self, number: int, share: Share) -> Iterator[Batch]:
        """A worker's share of the next `number` pictures, in a part for each window that they lie in."""
        taken = 0
        while taken < number:
            if self._current is None or not self._current.num_left:
                self._advance()
            assert self._current is not None
            rows = self._current.next_rows(number - taken)
            own = rows[(share.rank - taken) % share.size :: share.size]
            taken += len(rows)
            if len(own):
                yield self._current.read(own)

    def _advance(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None
        else:
            self._send_for_one()
        future = self._on_their_way.popleft()
        self._send_for_one()
        self._current = future.result()

    def _send_for_one(self) -> None:
        window = next(self._visits, None)
        if window is not None:
            self._on_their_way.append(self._thread.submit(_OpenWindow, self._stream, window))


class _OpenWindow:
    """A window whose shards are on this machine."""

    def __init__(self, stream: ShardStream, window: Window) -> None:
        self._rows, self._at = window.rows, 0
        with ExitStack() as stack:  # left after the threads: what some have opened is closed where another fails
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shard") as threads:
                opening = [threads.submit(stack.enter_context, stream.shards[number].opened()) for number in window.shards]
            parts = [each.result() for each in opening]
            self._pictures = PictureShards([part.path for part in parts], max_open_files=len(parts))
            starts = self._pictures.read_ahead()
            self._places = torch.cat([start + part.rows for start, part in zip(starts, parts, strict=True)])
            self._class_ids = torch.cat([part.class_ids for part in parts])
            labels = [part.attribution_labels for part in parts if part.attribution_labels is not None]
            self._labels = torch.cat(labels) if stream.is_labelled else None
            assert len(self._places) == sum(len(stream.shards[number]) for number in window.shards), "a shard has another length"
            self._stack = stack.pop_all()

    @property
    def num_left(self) -> int:
        return len(self._rows) - self._at

    def next_rows(self, most: int) -> Tensor:
        rows = self._rows[self._at : self._at + most]
        self._at += len(rows)
        return rows

    def read(self, rows: Tensor) -> Batch:
        labels = None if self._labels is None else self._labels[rows]
        return Batch(self._pictures.gather(self._places[rows]), self._class_ids[rows], labels)

    def close(self) -> None:
        self._stack.close()


def _joined(parts: Iterator[Batch]) -> Batch:
    """One batch of several parts."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    labels = [part.attribution_labels for part in found if part.attribution_labels is not None]
    return Batch(
        torch.cat([part.pixels for part in found]), torch.cat([part.class_ids for part in found]), torch.cat(labels) if labels else None
    )
