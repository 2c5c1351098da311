"""Leases: of several processes that want the same artifact, one holds the lease and computes it.

A lease is a small file, created exclusively where the filesystem can (a local disk; object stores by conditional writes) and renewed by a
thread. The lease of a dead process is taken over: at once on the same machine, after EXPIRY_S without renewal elsewhere. Where
exclusive creation is not to be had two processes may both compute; the first to publish wins, so that this costs time alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from fsspec import AbstractFileSystem

from sweep.store.files import create_file
from sweep.store.processes import is_alive_here, is_of_this_host, this_process

RENEWAL_S = 5.0
EXPIRY_S = 60.0


@dataclass(frozen=True)
class Lease:
    """Who holds a lease (token: one holding of it, process: as in `processes`), when it was last renewed and since when it is held.

    Times are s since the epoch; since: None where its holder did not say.
    """

    token: str
    process: str
    renewed: float
    since: float | None = None

    @staticmethod
    def of_this_process(token: str, since: float | None = None) -> Lease:
        now = time.time()
        return Lease(token, this_process(), now, now if since is None else since)

    @property
    def content(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_expired(self) -> bool:
        if is_of_this_host(self.process) and not is_alive_here(self.process):
            return True
        return time.time() - self.renewed > EXPIRY_S


class Leases:
    """Leases in one directory of a filesystem. reaching: what turns its errors into a StoreError; None leaves them."""

    def __init__(
        self, filesystem: AbstractFileSystem, directory: str, reaching: Callable[[], AbstractContextManager[None]] | None = None
    ) -> None:
        self._fs, self._directory, self._reaching = filesystem, directory, reaching or contextlib.nullcontext

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether the lease is ours inside the `with`; it is given back at its end, whatever happens in it."""
        path = f"{self._directory}/{name}"
        token = uuid.uuid4().hex
        with self._reaching():
            is_mine = self._acquire(path, token)
        if not is_mine:
            yield False
            return
        stopped = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(path, token, stopped, time.time()), daemon=True)
        try:
            renewal.start()
            yield True
        finally:
            stopped.set()
            renewal.join()
            with contextlib.suppress(Exception):  # what was computed is published: a lease that stays behind lapses by itself
                if self._is_held(path, token):
                    self._fs.rm_file(path)

    def all(self) -> dict[str, Lease]:
        """Every lease by its name, those of the dead too; and the marks of who removes a dead holder's, as NAME.TOKEN."""
        with self._reaching():
            self._fs.invalidate_cache()
            try:
                names = [str(path).rpartition("/")[2] for path in self._fs.ls(self._directory, detail=False)]
            except FileNotFoundError:
                return {}
            found = {name: self._read(f"{self._directory}/{name}") for name in sorted(names)}
        return {name: lease for name, lease in found.items() if lease is not None}

    def is_held(self, name: str) -> bool:
        """Whether somebody holds the lease whom nobody takes for dead."""
        with self._reaching():
            lease = self._read(f"{self._directory}/{name}")
        return lease is not None and not lease.is_expired

    def _acquire(self, path: str, token: str) -> bool:
        if self._create(path, token):
            return True
        holder = self._read(path)
        if holder is None or not holder.is_expired:
            return False
        # Of several that find a dead holder one removes its lease: the one whose own mark on it is created.
        mark = f"{path}.{holder.token}"
        if not self._create(mark, token):
            marked = self._read(mark)
            if marked is not None and marked.is_expired:
                self._remove(mark)
            return False
        try:
            current = self._read(path)
            if current is not None and current.token == holder.token and current.is_expired:
                self._remove(path)
            return self._create(path, token)
        finally:
            self._remove(mark)

    def _create(self, path: str, token: str) -> bool:
        """Create the file unless it exists; whether it is ours."""
        self._fs.invalidate_cache()
        return create_file(self._fs, path, Lease.of_this_process(token).content) and self._is_held(path, token)

    def _renew(self, path: str, token: str, stopped: threading.Event, since: float) -> None:
        while not stopped.wait(RENEWAL_S):
            with contextlib.suppress(Exception):  # a network that fails for a moment: the next renewal is still in time
                if not self._is_held(path, token):
                    return
                self._fs.pipe_file(path, Lease.of_this_process(token, since).content)

    def _is_held(self, path: str, token: str) -> bool:
        lease = self._read(path)
        return lease is not None and lease.token == token

    def _read(self, path: str) -> Lease | None:
        """The lease; None where there is none. One that cannot be read is as old as its file: its holder may be writing it, or be dead."""
        self._fs.invalidate_cache()
        try:
            try:
                return Lease(**json.loads(self._fs.cat_file(path)))
            except (ValueError, TypeError):
                return Lease("unreadable", "", self._fs.modified(path).timestamp())
        except FileNotFoundError:
            return None

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)
