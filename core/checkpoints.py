"""Where a training's state is kept while it runs, so that a killed one continues."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import torch

_log = logging.getLogger(__name__)

_DAMAGED = (BadZipFile, UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError)
"""What reading a file with any bytes changed may raise."""


class Checkpoint(Protocol):
    """The latest state of one training: tensors, numbers, strings, lists and dicts."""

    def load(self) -> Mapping[str, Any] | None:
        """The state that was saved last, tensors on the CPU; None where there is none."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state in the last one's place. Its tensors are the training's own and change once this returns."""
        ...

    def remove(self) -> None:
        """Forget the state; nothing happens where there is none."""
        ...


@dataclass(frozen=True)
class FileCheckpoint:
    """A file. It is replaced whole: a kill while saving leaves the state before."""

    path: Path

    def load(self) -> Mapping[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            with ZipFile(self.path) as archive:  # torch writes checksums, and does not look at them
                if damaged := archive.testzip():
                    raise BadZipFile(f"the checksum of {damaged} is wrong")
            state: Mapping[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except _DAMAGED as error:
            _log.warning("the checkpoint %s is damaged (%s): the training begins anew", self.path, repr(error)[:200])
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        torch.save(dict(state), temporary)
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
