"""The directory or bucket that the label command writes: Parquet shards, settings, calibration and a dataset card.

    labels.json                              what the labels depend on; written first
    data/labels-00000-of-00042.parquet       a shard, whole or absent
    calibration/...                          of the calibrated and the surrogate estimator
    README.md                                the dataset card; written last
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sweep.experiment.config import ConfigError
from sweep.store.credentials import scrubbed, without_credentials

SETTINGS = "labels.json"
CARD = "README.md"
_SHARD = re.compile(r"labels-(\d{5,})-of-(\d{5,})\.parquet")


class LabelDirectory:
    """Can be sent to other processes. Raises ConfigError where the location cannot be opened or written."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") if "://" in location else str(Path(location).expanduser().absolute())
        try:
            self._fs, root = fsspec.core.url_to_fs(self.location)
        except (ValueError, ImportError) as error:
            fix = "give a directory or a URL such as s3://bucket/labels, and install what its protocol needs"
            raise ConfigError(f"--out {without_credentials(location)} cannot be opened ({scrubbed(str(error), location)}): {fix}") from None
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def __str__(self) -> str:
        return without_credentials(self.location)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelDirectory, (self.location,)

    def settings(self) -> dict[str, Any] | None:
        """What the labels in the directory depend on; None where there are none."""
        with self._reaching():
            if not self._fs.exists(f"{self._root}/{SETTINGS}"):
                return None
            return json.loads(self._fs.cat_file(f"{self._root}/{SETTINGS}"))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of new labels."""
        self.write(SETTINGS, json.dumps(settings, indent=2, sort_keys=True).encode())

    def shard_name(self, index: int, number: int) -> str:
        return f"data/labels-{index:05d}-of-{number:05d}.parquet"

    def finished(self, number: int) -> set[int]:
        """Indices of the shards, of `number`, that are there."""
        names = self.names("data")
        return {int(m[1]) for name in names if (m := _SHARD.fullmatch(name)) and int(m[2]) == number}

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the directory, sorted."""
        with self._reaching():
            self._fs.invalidate_cache()
            if not self._fs.exists(f"{self._root}/{folder}"):
                return []
            return sorted(path.rsplit("/", 1)[-1] for path in self._fs.ls(f"{self._root}/{folder}", detail=False))

    def open(self, name: str) -> BinaryIO:
        return self._fs.open(f"{self._root}/{name}", "rb")

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all: on a local disk written under another name and moved; a bucket's upload is atomic."""
        place = f"{self._root}/{name}"
        if not self._is_local:
            with self._reaching():
                self._fs.pipe_file(place, content)
            return
        target = Path(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(self._root) / ".unfinished"
        scratch.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=scratch)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def check_writable(self) -> None:
        """Raise ConfigError unless files can be written there."""
        try:
            self.write(".writable", b"")
            self._fs.rm_file(f"{self._root}/.writable")
        except Exception as error:  # every filesystem has errors of its own
            reason = f"{type(error).__name__}: {scrubbed(str(error), self.location)}"
            raise ConfigError(f"--out {self} cannot be written to ({reason}): give another") from None

    def remove_unfinished(self) -> None:
        """Remove what killed processes left of files they were writing."""
        if self._is_local:
            shutil.rmtree(Path(self._root) / ".unfinished", ignore_errors=True)

    @contextlib.contextmanager
    def _reaching(self) -> Any:
        try:
            yield
        except (OSError, ImportError) as error:
            reason = scrubbed(str(error), self.location)
            raise ConfigError(f"--out {self} cannot be reached ({reason}): check address, network and credentials") from error
