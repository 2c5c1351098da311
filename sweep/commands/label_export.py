"""The directory or bucket that the label command writes for others to read.

    labels.json                              what the labels depend on; written first
    data/labels-00000-of-00042.parquet       a shard, whole or absent
    README.md                                the dataset card; written last
    store/                                   the artifacts they come from, where no other store was named
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.stages.labels import LABELS, LabelShard
from sweep.store.artifacts import Store
from sweep.store.files import FileTree, StoreError

SETTINGS = "labels.json"
CARD = "README.md"
STORE = "store"
_SHARD = re.compile(r"data/labels-(\d{5,})-of-(\d{5,})\.parquet")


class LabelExport:
    """Raises StoreError where the location cannot be opened or written."""

    def __init__(self, location: str) -> None:
        self.files = FileTree(location, option="--out")

    def __str__(self) -> str:
        return str(self.files)

    @property
    def store_url(self) -> str:
        """Where the artifacts lie if no store is named."""
        return f"{self.files.url}/{STORE}"

    def settings(self) -> dict[str, Any] | None:
        """What the labels in the directory depend on; None where there are none. Raises StoreError where the file does not say it."""
        content = self.files.read(SETTINGS)
        if content is None:
            return None
        try:
            settings: dict[str, Any] = json.loads(content)
            str(settings["key"]), int(settings["shards"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"--out {self} holds a damaged {SETTINGS} ({type(error).__name__}: {error}): remove it and data/ beside it, and the same "
                "command writes both again, from the artifacts that it finds in its store; or give another directory"
            ) from None
        return settings

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of new labels."""
        self.files.write(SETTINGS, json.dumps(settings, indent=2, sort_keys=True).encode())

    def missing(self, number: int) -> set[int]:
        """Indices of the shards, of `number`, that are not there."""
        found = {_SHARD.fullmatch(f"data/{name}") for name in self.files.names("data")}
        return set(range(number)) - {int(m[1]) for m in found if m and int(m[2]) == number}

    def write_shard(self, shard: LabelShard, index: int, number: int, store: Store) -> None:
        """A finished shard's labels."""
        self.files.write(shard_name(index, number), shard.artifact(store).path(LABELS).read_bytes())

    def write_card(self, text: str) -> None:
        self.files.write(CARD, text.encode())

    @property
    def has_card(self) -> bool:
        return self.files.exists(CARD)


def shard_name(index: int, number: int) -> str:
    return f"data/labels-{index:05d}-of-{number:05d}.parquet"


def skipped_of(shards: Sequence[LabelShard], store: Store) -> list[dict[str, str]]:
    """The pictures of finished shards that could not be read: id and reason."""
    return [skipped for shard in shards for skipped in shard.skipped(store)]
