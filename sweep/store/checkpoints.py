"""Checkpoints: the state of a training under way, in the store, so that it outlives the node it runs on."""

from __future__ import annotations

import logging
import os
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sweep.store.files import FileTree, StoreError, is_disk_full
from sweep.store.processes import unfinished_name

# torch is imported where it is needed: many light processes import the store.

_log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint under one name: the last state saved there, or none. Of one process at a time.

    In a bucket, states are uploaded by a thread from a file of this node, so that training goes on; a save while the one before is
    still on its way is skipped. Use it in a `with`, or `close` it at the end.
    """

    def __init__(self, files: FileTree, name: str, workplace: Path) -> None:
        self._files, self._name, self._workplace = files, name, workplace
        self._upload: threading.Thread | None = None

    def load(self) -> dict[str, Any] | None:
        """The state, its tensors on the CPU; None where none was saved, or, with a warning, where what is there is damaged.

        Raises StoreError when the store cannot be reached.
        """
        if self._files.is_local:
            return self._read(Path(self._files.place(self._name)))
        copy = self._scratch_file()
        try:
            self._files.download(self._name, copy)
            return self._read(copy)
        except FileNotFoundError:
            return None
        finally:
            copy.unlink(missing_ok=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state: numbers, texts, tensors, and lists and mappings of them. It may change again once this returns.

        A state that cannot be written is a warning: the training goes on, and the state before is still there.
        """
        try:
            if self._files.is_local:
                with self._files.unfinished_file() as unfinished:
                    _write(state, unfinished)
                    _flush_to_disk(unfinished)
                    self._files.move_in(unfinished, self._name)
            elif self._upload is None or not self._upload.is_alive():
                scratch = self._scratch_file()
                try:
                    _write(state, scratch)
                except BaseException:
                    scratch.unlink(missing_ok=True)
                    raise
                self._upload = threading.Thread(target=self._send, args=(scratch,), name="checkpoint upload")
                self._upload.start()
        except OSError as error:
            self._warn_of_failure(error)
        except RuntimeError as error:
            if not isinstance(error.__context__, OSError):  # torch hides what the disk says in an error of its own
                raise
            self._warn_of_failure(error)

    def remove(self) -> None:
        """Remove the checkpoint, after an upload that is under way."""
        self.close()
        self._files.remove(self._name)

    def close(self) -> None:
        """Wait for an upload that is under way."""
        if self._upload is not None:
            self._upload.join()
            self._upload = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _send(self, scratch: Path) -> None:
        try:
            self._files.upload(scratch, self._name)
        except (StoreError, OSError) as error:
            self._warn_of_failure(error)
        finally:
            scratch.unlink(missing_ok=True)

    def _scratch_file(self) -> Path:
        directory = self._workplace / "in_progress"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / unfinished_name("checkpoint")

    def _read(self, path: Path) -> dict[str, Any] | None:
        import torch

        try:
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{damaged} has another checksum")
            state = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(state, dict):
                raise TypeError(f"it holds a {type(state).__name__}")
            return state
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged archive meets zipfile, torch and its unpickler in a dozen ways
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            _log.warning("the checkpoint %s/%s is damaged (%s): the training starts anew", self._files, self._name, reason)
            return None

    def _warn_of_failure(self, error: Exception) -> None:
        reason = "no space is left" if is_disk_full(error) else error
        _log.warning("a checkpoint could not be saved to %s/%s: %s", self._files, self._name, reason)


def _write(state: Mapping[str, Any], path: Path) -> None:
    """torch copies from a GPU one tensor at a time: no second copy of the state is made."""
    import torch

    with open(path, "wb") as stream:
        torch.save(dict(state), stream)


def _flush_to_disk(path: Path) -> None:
    """Have a file outlive a machine that stops. What is uploaded and removed needs none of it."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())
