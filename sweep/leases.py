"""Leases: of several processes that want the same artifact, one holds the lease and computes it.

A lease is a small file, created exclusively where the filesystem can (a local disk; object stores by conditional writes) and renewed by a
thread. The lease of a dead process is taken over: at once on the same machine, after EXPIRY_S without renewal elsewhere. Where
exclusive creation is not to be had two processes may both compute; what they publish is the same, so that this costs time alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem

from sweep.processes import is_alive_here, is_of_this_host, this_process

RENEWAL_S = 5.0
EXPIRY_S = 60.0


class Leases:
    """Leases in one directory of a filesystem."""

    def __init__(self, filesystem: AbstractFileSystem, directory: str, is_local: bool) -> None:
        self._fs, self._directory, self._is_local = filesystem, directory, is_local

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether the lease is ours inside the `with`; it is given back at its end, whatever happens in it."""
        path = f"{self._directory}/{name}"
        token = uuid.uuid4().hex
        if not self._acquire(path, token):
            yield False
            return
        stopped = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(path, token, stopped), daemon=True)
        renewal.start()
        try:
            yield True
        finally:
            stopped.set()
            renewal.join()
            if (self._read(path) or {}).get("token") == token:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    def _acquire(self, path: str, token: str) -> bool:
        if self._create(path, token):
            return True
        holder = self._read(path)
        if holder is None or not self._is_expired(holder):
            return False
        # Of several that find a dead holder one removes its lease: the one whose own mark on it is created.
        mark = f"{path}.{holder['token']}"
        if not self._create(mark, token):
            marked = self._read(mark)
            if marked is not None and self._is_expired(marked):
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(mark)
            return False
        try:
            if (self._read(path) or {}).get("token") == holder["token"]:
                self._fs.rm_file(path)
            return self._create(path, token)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(mark)

    def _create(self, path: str, token: str) -> bool:
        """Create the file unless it exists; whether it is ours."""
        content = json.dumps(self._content(token)).encode()
        if self._is_local:
            os.makedirs(self._directory, exist_ok=True)
            temporary = f"{path}.{token}.new"
            with open(temporary, "wb") as stream:
                stream.write(content)
            try:
                os.link(temporary, path)  # fails where the name exists, and a reader never sees half a file
                return True
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        if self._fs.exists(path):
            return False
        try:
            self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):  # no exclusive creation on this filesystem
            self._fs.pipe_file(path, content)
        return (self._read(path) or {}).get("token") == token

    def _content(self, token: str) -> dict[str, Any]:
        return {"token": token, "process": this_process(), "renewed": time.time()}

    def _renew(self, path: str, token: str, stopped: threading.Event) -> None:
        while not stopped.wait(RENEWAL_S):
            if (self._read(path) or {}).get("token") != token:
                return
            content = json.dumps(self._content(token)).encode()
            if self._is_local:
                temporary = f"{path}.{token}.new"
                with open(temporary, "wb") as stream:
                    stream.write(content)
                os.replace(temporary, path)
            else:
                with contextlib.suppress(OSError):
                    self._fs.pipe_file(path, content)

    def _read(self, path: str) -> dict[str, Any] | None:
        """Who holds a lease; None where nobody does."""
        self._fs.invalidate_cache()
        try:
            return dict(json.loads(self._fs.cat_file(path)))
        except (FileNotFoundError, ValueError):
            return None

    @staticmethod
    def _is_expired(holder: dict[str, Any]) -> bool:
        if is_of_this_host(holder["process"]) and not is_alive_here(holder["process"]):
            return True
        return time.time() - float(holder["renewed"]) > EXPIRY_S
