"""Where the pictures to be labelled come from: the shards of a sweep, or a data set that is decoded as it is labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.domains import LabelledPictures, PictureError, decode_picture, read_pictures
from core.model import Preprocessing
from sweep.experiment.config import ConfigError, Device
from sweep.stages.domains import Split
from sweep.stages.pictures import Pictures, load_shards
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

CHUNK = 64
"""Pictures decoded while the ones before are labelled."""
DECODERS: dict[Device, int] = {"cpu": 1, "cuda": 4}


@dataclass(frozen=True)
class Chunk:
    """Pictures that could be read: pixels uint8 [N, 3, S, S]; skipped: id and reason of the others."""

    ids: list[str]
    class_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    skipped: list[dict[str, str]]


class PictureRange(Protocol):
    """Pictures in a fixed order, read a part at a time: memory stays flat however many there are."""

    @property
    def num_pictures(self) -> int: ...

    @property
    def params(self) -> dict[str, Any]:
        """What of it goes into keys."""
        ...

    def inputs(self, positions: Sequence[int]) -> tuple[Stage, ...]:
        """The stages that pictures at these positions come from."""
        ...

    def chunks(self, store: Store, positions: Sequence[int], device: Device) -> Iterator[Chunk]: ...


@dataclass(frozen=True)
class StoredPictures:
    """The pictures of one split of a sweep's domain."""

    pictures: Pictures
    split: Split

    @property
    def num_pictures(self) -> int:
        return self.pictures.domain.count(self.split)

    @property
    def params(self) -> dict[str, Any]:
        return {"split": self.split}

    def inputs(self, positions: Sequence[int]) -> tuple[Stage, ...]:
        wanted = set(positions)
        shards = self.pictures.of_range(self.split, min(positions), max(positions) + 1)
        return tuple(s for s in shards if not wanted.isdisjoint(range(s.start, s.stop)))

    def chunks(self, store: Store, positions: Sequence[int], device: Device) -> Iterator[Chunk]:
        wanted = np.asarray(positions)
        for shard in self.inputs(positions):
            here = load_shards(store, (shard,))  # type: ignore[arg-type]  # the shards of `of_range`
            row_at = {position: n for n, position in enumerate(here.positions.tolist())}
            rows = [row_at[p] for p in wanted.tolist() if p in row_at]
            for begin in range(0, len(rows), CHUNK):
                index = np.asarray(rows[begin : begin + CHUNK], dtype=np.int64)
                pixels = here.pixels.gather(torch.from_numpy(index))
                yield Chunk([here.ids[i] for i in index.tolist()], here.class_ids[index], pixels.numpy(), [])


@dataclass(frozen=True)
class StreamedPictures:
    """A data set of the label command, decoded in a thread while the pictures before are labelled."""

    location: str
    split: str | None
    fingerprint: str
    num_pictures: int
    preprocessing: Preprocessing

    @property
    def params(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "split": self.split, "preprocessing": asdict(self.preprocessing)}

    def inputs(self, positions: Sequence[int]) -> tuple[Stage, ...]:
        return ()

    def chunks(self, store: Store, positions: Sequence[int], device: Device) -> Iterator[Chunk]:
        origin = _read(self.location, self.split)
        if origin.fingerprint != self.fingerprint:
            raise ConfigError(f"the files of {self.location} changed while they were labelled: start again")
        parts = [positions[i : i + CHUNK] for i in range(0, len(positions), CHUNK)]
        with ThreadPoolExecutor(DECODERS[device]) as pool:
            waiting = [pool.submit(self._decode, origin, i) for i in parts[0]] if parts else []
            for n in range(len(parts)):
                ready = waiting
                waiting = [pool.submit(self._decode, origin, i) for i in parts[n + 1]] if n + 1 < len(parts) else []
                yield self._collected(origin, parts[n], [future.result() for future in ready])

    def _decode(self, origin: LabelledPictures, index: int) -> NDArray[np.uint8] | PictureError:
        """A picture's pixels uint8 [3, S, S], or why it cannot be read."""
        try:
            return self.preprocessing.pixels(decode_picture(origin.pictures.read_bytes(index)))
        except PictureError as error:
            return error

    def _collected(
        self, origin: LabelledPictures, indices: Sequence[int], decoded: list[NDArray[np.uint8] | PictureError]
    ) -> Chunk:
        """The pictures that could be read, and the others by name."""
        ids, class_ids = origin.pictures.ids, origin.pictures.class_ids
        good = [(i, pixels) for i, pixels in zip(indices, decoded, strict=True) if not isinstance(pixels, PictureError)]
        bad = [(i, error) for i, error in zip(indices, decoded, strict=True) if isinstance(error, PictureError)]
        size = self.preprocessing.image_size
        pixels = np.stack([p for _, p in good]) if good else np.empty((0, 3, size, size), np.uint8)
        skipped = [{"id": ids[i], "reason": str(error)} for i, error in bad]
        return Chunk([ids[i] for i, _ in good], class_ids[[i for i, _ in good]], pixels, skipped)


@lru_cache(maxsize=2)
def _read(location: str, split: str | None) -> LabelledPictures:
    return read_pictures(location, split=split)
