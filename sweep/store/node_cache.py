"""Copies of a remote store's files on this node: each downloaded once a node, however many processes want it.

A lock (flock) on a file of the content's checksum keeps others waiting while one downloads; the kernel releases it when its holder dies.
With a limit the least recently used copies go before a download. A copy stays while an artifact that handed it out lives in this process,
and for ten minutes after any process last asked for it; what is open or memory-mapped stays readable even without its name.
A borrowed copy goes with its last borrower: of what is read once and in turn, a node never holds much.
What a killed download left counts as well, and goes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakValueDictionary

from sweep.store.files import StoreError
from sweep.store.manifest import sha256_of

LIMIT_VARIABLE = "EXPLAINABILITY_SWEEP_CACHE_GB"
RECENT_S = 600.0
_UNFINISHED = ".unfinished"

# (copy, id of its holder) -> holder, which is an artifact of this process.
_held: WeakValueDictionary[tuple[Path, int], object] = WeakValueDictionary()


class ChecksumError(StoreError):
    """What was downloaded is not what the manifest says."""


def limit_from_environment() -> float | None:
    """The limit in gigabytes (10^9 bytes) that EXPLAINABILITY_SWEEP_CACHE_GB sets; None without. Raises StoreError."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0.0 < limit < float("inf"):
        raise StoreError(f"{LIMIT_VARIABLE} is {text!r}: give gigabytes, such as 200, or unset it for no limit")
    return limit


class NodeCache:
    """Verified copies under a directory of this node, by their checksum: what is computed again is never taken for what it was.

    limit_gb: size above which the least recently used copies are removed before a download (10^9 bytes); None for no limit.
    """

    def __init__(self, directory: Path, limit_gb: float | None = None) -> None:
        self._files = directory / "files"
        self._borrowed = directory / "borrowed"
        self._locks = directory / "locks"
        self._limit_bytes = None if limit_gb is None else limit_gb * 1e9

    def copy(self, name: str, size: int, sha256: str, download: Callable[[Path], None], holder: object) -> Path:
        """The copy of a file; `download` fills a path where there is none. It is not evicted while `holder` lives.

        Raises ChecksumError, and whatever `download` raises.
        """
        path = self._files / sha256 / name
        with self._locked(sha256, fcntl.LOCK_SH):
            is_there = self._touch(path, size)
        if not is_there:
            with self._locked(sha256, fcntl.LOCK_EX):
                if not self._touch(path, size):
                    self._make_room(size)
                    self._fetch(path, sha256, download)
        _held[path, id(holder)] = holder
        return path

    @contextlib.contextmanager
    def borrowed(self, name: str, size: int, sha256: str, download: Callable[[Path], None], holder: object) -> Iterator[Path]:
        """A copy for the time of a `with`; it is removed at the end unless another process has borrowed it, or `copy` had it anyway.

        Raises ChecksumError, and whatever `download` raises.
        """
        kept = self._files / sha256 / name
        with self._locked(sha256, fcntl.LOCK_SH):
            is_kept = self._touch(kept, size)
        if is_kept:
            _held[kept, id(holder)] = holder
            yield kept
            return
        path, lock = self._borrowed / sha256 / name, f"{sha256}.borrowed"
        with self._locked(lock, fcntl.LOCK_SH) as descriptor:
            while not self._touch(path, size):  # a lock that changes its kind is let go meanwhile, and the copy may be removed then
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._touch(path, size):
                    self._make_room(size)
                    self._fetch(path, sha256, download)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            try:
                yield path
            finally:
                with contextlib.suppress(BlockingIOError):  # another process has it: the last one removes it
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)

    def _fetch(self, path: Path, sha256: str, download: Callable[[Path], None]) -> None:
        # One name for all that try: the lock is ours, so that what is there was left by one who died.
        unfinished = path.parent.with_name(f"{sha256}{_UNFINISHED}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(unfinished)
            if sha256_of(unfinished) != sha256:
                raise ChecksumError(f"what was downloaded of {path.name} has another checksum")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _touch(self, path: Path, size: int) -> bool:
        """Whether the copy is there, with a note that it was used now: many disks are mounted without times of access."""
        try:
            state = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if state.st_size != size:
            return False
        os.utime(path, (time.time(), state.st_mtime))
        return True

    def _make_room(self, size: int) -> None:
        if self._limit_bytes is None:
            return
        copies = [(path.suffix != _UNFINISHED, state.st_atime, state.st_size, path) for path, state in self._copies()]
        total = sum(size for _, _, size, _ in copies) + size
        in_use = {path for path, _ in list(_held)}
        for _, _, copy_size, path in sorted(copies):
            if total <= self._limit_bytes:
                return
            if path not in in_use and self._evict(path):
                total -= copy_size

    def _copies(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Whole ones, and those that are being downloaded or whose downloader was killed."""
        patterns = ("*/**/*", f"*{_UNFINISHED}")
        for path in (path for place in (self._files, self._borrowed) for pattern in patterns for path in place.glob(pattern)):
            with contextlib.suppress(OSError):  # gone meanwhile
                if path.is_file():
                    yield path, path.stat()

    def _evict(self, path: Path) -> bool:
        is_borrowed = path.is_relative_to(self._borrowed)
        sha256 = path.relative_to(self._borrowed if is_borrowed else self._files).parts[0].removesuffix(_UNFINISHED)
        try:
            with self._locked(f"{sha256}.borrowed" if is_borrowed else sha256, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if path.suffix != _UNFINISHED and time.time() - path.stat().st_atime < RECENT_S:
                    return False
                path.unlink()
                return True
        except OSError:  # another process uses it at this moment, or has removed it
            return False

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[int]:
        self._locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, how)
            yield descriptor
        finally:
            os.close(descriptor)  # releases the lock
