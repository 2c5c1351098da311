"""Pictures, decoded and resized once: shards of some thousand, made by many tasks and read one at a time by all that use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.domains import PictureError, decode_picture
from core.data.picture_shards import PICTURES_PER_SHARD, PictureShards, write_pixels
from core.model import Preprocessing
from sweep.experiment.config import DataSettings
from sweep.stages.domains import SPLITS, DomainFacts, Split, open_domain, selected
from sweep.stages.stage import Stage, artifacts_of
from sweep.store.artifacts import Store


class CorruptPicturesError(ValueError):
    """More pictures of a domain than allowed cannot be read."""


@dataclass(frozen=True, eq=False)
class PictureShard(Stage):
    """The pictures start .. stop - 1 of a domain's split, decoded and resized. Those that cannot be read are left out and named."""

    kind = "picture_shard"
    version = 1
    unit = "pictures"

    domain: DomainFacts
    data: DataSettings
    preprocessing: Preprocessing
    split: Split
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.domain.name} {self.split} {self.start}-{self.stop}"

    @property
    def params(self) -> dict[str, Any]:
        data = {k: v for k, v in asdict(self.data).items() if k != "max_corrupt_share"}
        where = {"split": self.split, "start": self.start, "stop": self.stop}
        order = {} if self.domain.is_drawn else {"order": "mixed"}
        return {"fingerprint": self.domain.fingerprint, "preprocessing": asdict(self.preprocessing), "data": data, **where, **order}

    @property
    def size(self) -> float:
        return float(self.stop - self.start)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        origin = open_domain(self.domain, self.data).splits["test" if self.split == "test" else "train"]
        index = selected(self.domain, self.data, self.split)[self.start : self.stop]
        kept: list[int] = []
        skipped: list[dict[str, str]] = []

        def readable() -> Iterator[NDArray[np.uint8]]:
            for position, i in enumerate(index.tolist()):
                try:
                    pixels = self.preprocessing.pixels(decode_picture(origin.read_bytes(i)))
                except PictureError as error:
                    skipped.append({"split": self.split, "id": origin.ids[i], "reason": str(error)})
                    continue
                kept.append(position)
                yield pixels

        write_pixels(directory / "pixels.npy", readable())
        description = {
            "ids": [origin.ids[i] for i in index[kept].tolist()],
            "class_ids": [int(origin.class_ids[i]) for i in index[kept].tolist()],
            "positions": [self.start + position for position in kept],
        }
        (directory / "pictures.json").write_text(json.dumps(description))
        return {"num_pictures": len(kept), "skipped": skipped}


@dataclass(frozen=True)
class PictureSplit:
    """A split's pictures. pixels: read from disk when asked for; class_ids: [N]; ids: N picture ids; positions: [N], of the plan."""

    pixels: PictureShards
    class_ids: NDArray[np.int64]
    ids: list[str]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Pictures(Stage):
    """All pictures of a domain: its shards, counted. Raises CorruptPicturesError when too many cannot be read."""

    kind = "pictures"
    version = 2
    is_index = True

    domain: DomainFacts
    shards: tuple[PictureShard, ...]
    max_corrupt_share: float

    @property
    def name(self) -> str:
        return self.domain.name

    @property
    def params(self) -> dict[str, Any]:
        return {"domain": self.domain.fingerprint, "max_corrupt_share": self.max_corrupt_share}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.shards

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        skipped: list[dict[str, str]] = []
        for shard, artifact in zip(self.shards, artifacts_of(self.shards, store), strict=True):
            meta = artifact.manifest["meta"]
            counts[shard.split] += meta["num_pictures"]
            skipped += meta["skipped"]
        num_seen = sum(counts.values()) + len(skipped)
        if len(skipped) > self.max_corrupt_share * num_seen:
            named = "; ".join(f"{s['id']}: {s['reason']}" for s in skipped[:5])
            raise CorruptPicturesError(
                f"{len(skipped)} of {num_seen} pictures of {self.name} cannot be read ({len(skipped) / num_seen:.1%}, allowed "
                f"{self.max_corrupt_share:.1%}): {named}. Mend them, or allow more with --max-corrupt-share"
            )
        empty = [split for split in SPLITS if counts[split] == 0]
        if empty:
            raise CorruptPicturesError(f"no picture of {self.name}/{empty[0]} is left: add pictures to it")
        (directory / "skipped.json").write_text(json.dumps(skipped))
        return {"counts": counts, "num_skipped": len(skipped), "skipped": skipped[:20]}

    def counts(self, store: Store) -> dict[str, int]:
        """Pictures of each split that could be read."""
        return dict(self.artifact(store).manifest["meta"]["counts"])

    def of_range(self, split: Split, start: int, stop: int) -> tuple[PictureShard, ...]:
        """The shards that hold the planned positions start .. stop - 1 of a split."""
        return tuple(s for s in self.shards if s.split == split and s.start < stop and start < s.stop)

    def load(self, store: Store, split: Split) -> PictureSplit:
        """A split, its pixels still on disk."""
        return load_shards(store, self.of_range(split, 0, self.domain.count(split)))


def load_shards(store: Store, shards: tuple[PictureShard, ...]) -> PictureSplit:
    """The pictures of some shards of one split. Only these shards come to this machine."""
    artifacts = artifacts_of(shards, store)
    described = [_description(str(artifact.path("pictures.json"))) for artifact in artifacts]
    return PictureSplit(
        PictureShards([artifact.path("pixels.npy") for artifact in artifacts]),
        np.concatenate([np.asarray(d["class_ids"], dtype=np.int64) for d in described]),
        [picture_id for d in described for picture_id in d["ids"]],
        np.concatenate([np.asarray(d["positions"], dtype=np.int64) for d in described]),
    )


@lru_cache(maxsize=8)
def _description(path: str) -> dict[str, list[Any]]:
    return json.loads(Path(path).read_text())


def make_pictures(domain: DomainFacts, data: DataSettings, preprocessing: Preprocessing) -> Pictures:
    """The pictures stage of a domain with its shards."""
    shards = tuple(
        PictureShard(domain, data, preprocessing, split, start, min(start + PICTURES_PER_SHARD, domain.count(split)))
        for split in SPLITS
        for start in range(0, domain.count(split), PICTURES_PER_SHARD)
    )
    return Pictures(domain, shards, data.max_corrupt_share)
