"""Pictures of Parquet shards, read when they are asked for: memory stays flat however large the split."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.data.directory import DataDirectory, DomainError
from core.data.pictures import PictureError

_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split, without the pictures."""

    relative: str
    group_rows: list[int]  # rows of each row group
    class_names: tuple[str, ...]
    class_ids: np.ndarray  # int64 [rows]
    paths: list[str | None]
    outside_rows: list[int]  # rows whose picture is a file of its own


class ParquetSplit:
    """Pictures of Parquet shards, read a row group at a time when they are asked for.

    `ids` are the split's name and the picture's `path` where these are all given and differ, else its row number;
    `class_ids` int64 [N]. At most 32 MiB of row groups (or one, where it is larger) are held.
    """

    _cache: OrderedDict[int, pa.ChunkedArray]
    _opened: tuple[str, pq.ParquetFile] | None
    _lock: Lock

    def __init__(self, directory: DataDirectory, name: str, shards: Sequence[Shard]) -> None:
        self.class_ids = np.concatenate([shard.class_ids for shard in shards])
        paths = [path for shard in shards for path in shard.paths]
        has_names = all(paths) and len(set(paths)) == len(paths)
        self.ids = [f"{name}/{path}" if has_names else f"{name}/row-{row:08d}" for row, path in enumerate(paths)]
        self._directory = directory
        self._groups = [(shard.relative, group) for shard in shards for group in range(len(shard.group_rows))]
        group_rows = [rows for shard in shards for rows in shard.group_rows]
        self._group_starts = np.concatenate([[0], np.cumsum(group_rows)]).astype(np.int64)
        self._reset()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pieces(self) -> NDArray[np.int64]:
        """The row group of each picture, counted over all files. [N]"""
        return np.repeat(np.arange(len(self._groups)), np.diff(self._group_starts))

    def read_bytes(self, index: int) -> bytes:
        """The encoded picture. Raises PictureError where it is damaged, DomainError where its file has gone."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        group = int(np.searchsorted(self._group_starts, index, side="right")) - 1
        cell = self._row_group(group)[index - int(self._group_starts[group])]
        data = cell["bytes"].as_py()
        if data is not None:
            return data
        relative = self._groups[group][0]
        with reading_parquet(self._directory, relative, PictureError):
            path = cell["path"].as_py() if "path" in cell else None
        if not path:
            raise PictureError(f"{self._directory.describe(relative)} holds neither its bytes nor a path; write it again")
        return self._directory.read(path)

    def _row_group(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            relative, group_in_shard = self._groups[group]
            with reading_parquet(self._directory, relative, PictureError):
                table = self._open_shard(relative).read_row_group(group_in_shard, columns=["image"], use_threads=False)
                num_rows = int(self._group_starts[group + 1] - self._group_starts[group])
                if table.num_rows != num_rows:
                    raise pa.ArrowInvalid(f"row group {group_in_shard} holds {table.num_rows} rows, not {num_rows}")
            images = table.column("image")
            self._cache[group] = images
            while len(self._cache) > 1 and sum(cached.nbytes for cached in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
            return images

    def _open_shard(self, relative: str) -> pq.ParquetFile:
        if self._opened is None or self._opened[0] != relative:
            if self._opened is not None:
                self._opened[1].close(force=True)
                self._opened = None
            self._opened = (relative, pq.ParquetFile(self._directory.open(relative)))
        return self._opened[1]

    def _reset(self) -> None:
        self._cache = OrderedDict()
        self._opened = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "_opened", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


@contextmanager
def reading_parquet(
    directory: DataDirectory, relative: str, failure: type[DomainError] | type[PictureError]
) -> Iterator[None]:
    """Raise `failure` where the file's content is damaged, DomainError where it cannot be reached."""
    where = directory.describe(relative)
    damage: Exception | None = None
    with directory.reading(where):
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError) as error:
            damage = error  # Arrow hands out names and texts as they are: only Python finds that they are not UTF-8
        except OSError as error:
            # Arrow reports damaged pages as a bare OSError; the disk's have a number, the network's a class.
            if type(error) is not OSError or error.errno is not None:
                raise
            damage = error
    if damage is not None:
        reason = " ".join(str(damage).split())
        raise failure(f"{where} is not a Parquet file, or is damaged ({reason}); write it again") from damage
