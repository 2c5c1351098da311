"""Pictures of a split, ready for a model, in shards of plain `.npy`: written one by one, read at random with flat memory.

Pages of a memory map count as resident memory once they are touched, so that a process that trains on a mapped data set grows to the data
set's size. Positional reads into the batch itself leave nothing behind.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PICTURES_PER_SHARD = 2000
MAX_OPEN_FILES = 64
_ROWS_PER_READ = 512
"""Buffers to one read: the system takes 1024."""


class PictureShardError(ValueError):
    """A shard that cannot be read as pictures."""


def write_pixels(path: Path, pictures: Iterable[NDArray[np.uint8]]) -> int:
    """Write pictures uint8 [3, S, S], all of one size, to an `.npy` file [n, 3, S, S] as they come. Returns their number.

    No more than one picture is held. What is left of a writer that was killed is refused by `PictureShards`.
    """
    number, shape = 0, (3, 0, 0)
    with path.open("wb") as file:
        for picture in pictures:
            if number == 0:
                shape = picture.shape
                _write_header(file, 0, shape)
            if picture.dtype != np.uint8 or picture.shape != shape:
                raise PictureShardError(f"picture {number} is {picture.dtype} {picture.shape}, the first was uint8 {shape}")
            file.write(np.ascontiguousarray(picture).data)
            number += 1
        file.seek(0)
        _write_header(file, number, shape)
    return number


def _write_header(file: BinaryIO, number: int, shape: tuple[int, ...]) -> None:
    """The length is the same for every number: numpy leaves room for the first axis to grow."""
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (number, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


class PictureShards:
    """The pictures of several files of `write_pixels`, in their order, as one sequence.

    Files are opened when they are first read, at most `max_open_files` at a time. Several threads may read. Pickled, it is its paths.
    """

    def __init__(self, paths: Sequence[Path], max_open_files: int = MAX_OPEN_FILES) -> None:
        self.paths = tuple(paths)
        self._max_open_files = max_open_files
        self._lock = Lock()
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> tuple[tuple[Path, ...], int]:
        return self.paths, self._max_open_files

    def __setstate__(self, state: tuple[tuple[Path, ...], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return self._layout.starts[-1]

    def gather(self, index: Tensor) -> Tensor:
        """The pictures of an index [n], in its order and as often as it names them. -> uint8 [n, 3, S, S]

        Raises IndexError outside 0 .. len - 1, PictureShardError for files that are no shards, cut short, or of several sizes.
        """
        starts, shape = self._layout.starts, self._layout.shape
        wanted = index.numpy()
        out = np.empty((len(wanted), *shape), dtype=np.uint8)
        if not len(wanted):
            return torch.from_numpy(out)
        if not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"pictures {wanted.min()} .. {wanted.max()} of {len(self)}")
        places = np.argsort(wanted, kind="stable")
        ascending = wanted[places]
        # A run is neighbours in one file: they are read at once into the places where they are wanted.
        is_first = np.diff(ascending, prepend=-2) != 1
        is_first |= np.isin(ascending, starts)
        runs = [*np.flatnonzero(is_first).tolist(), len(places)]
        numbers = (np.searchsorted(starts, ascending[runs[:-1]], side="right") - 1).tolist()
        flat, size = out.data.cast("B"), out[0].nbytes
        for number, run, end in zip(numbers, runs[:-1], runs[1:], strict=True):
            for begin in range(run, end, _ROWS_PER_READ):
                rows = [flat[i * size : (i + 1) * size] for i in places[begin : min(end, begin + _ROWS_PER_READ)].tolist()]
                self._shard(number).read(int(ascending[begin]) - starts[number], rows)
        return torch.from_numpy(out)

    def range(self, start: int, stop: int) -> Tensor:
        """The pictures start .. stop - 1. -> uint8 [stop - start, 3, S, S]"""
        return self.gather(torch.arange(start, stop))

    def read_ahead(self) -> list[int]:
        """Have the system read all files into its cache, each from one end to the other, and go on meanwhile.

        Returns the index of each file's first picture. What is then taken at random does not wait for a disk that seeks.
        """
        for number in range(len(self.paths) if hasattr(os, "posix_fadvise") else 0):  # macOS has none
            os.posix_fadvise(self._shard(number).descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        return self._layout.starts[:-1]

    @cached_property
    def _layout(self) -> _Layout:
        shards = [self._shard(i) for i in range(len(self.paths))]
        shapes = {shard.shape for shard in shards if shard.number}
        if len(shapes) > 1:
            raise PictureShardError(f"the shards hold pictures of several sizes, {sorted(shapes)}: make them again for one model")
        return _Layout([0, *accumulate(shard.number for shard in shards)], next(iter(shapes), (3, 0, 0)))

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            shard = self._open.pop(number, None) or _Shard(self.paths[number])
            self._open[number] = shard
            if len(self._open) > self._max_open_files:
                self._open.popitem(last=False)  # closed once the last read from it is over
            return shard


@dataclass(frozen=True)
class _Layout:
    """starts: index of each shard's first picture, and of the end. shape: of a picture."""

    starts: list[int]
    shape: tuple[int, ...]


class _Shard:
    """One open file. It is closed when nobody holds it any more, so that no read loses its file to another thread's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                header, is_fortran, dtype = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else ((), False, np.dtype(int))
            except ValueError as error:
                raise PictureShardError(f"{path} is no .npy file ({error}): make its pictures again") from error
            self.offset = file.tell()
            size = os.fstat(file.fileno()).st_size
            if len(header) != 4 or is_fortran or dtype != np.uint8:
                raise PictureShardError(f"{path} holds {dtype} {header}, pictures are uint8 [n, 3, S, S]: make them again")
            if self.offset + int(np.prod(header)) != size:
                raise PictureShardError(f"{path} has {size} bytes, which is not what its header says: make its pictures again")
            self.number, self.shape = header[0], header[1:]
            self.descriptor = os.dup(file.fileno())

    def read(self, first: int, rows: list[memoryview]) -> None:
        """Fill rows with the pictures first .. first + len(rows) - 1."""
        size = len(rows[0])
        if os.preadv(self.descriptor, rows, self.offset + first * size) != size * len(rows):
            raise PictureShardError(f"{self.path} became shorter while it was read: make its pictures again")

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)  # a file that was refused never got one
        if descriptor is not None:
            os.close(descriptor)
