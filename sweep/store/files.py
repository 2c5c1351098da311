"""Single files of a directory or a bucket, each whole or not at all; and whether another machine sees the same place.

This is the home of fsspec: local disks and buckets look alike above it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from sweep.store.credentials import scrubbed, without_credentials
from sweep.store.processes import is_left_behind, unfinished_name

BUCKET_PROTOCOLS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_UNFINISHED = ".unfinished"
_PROBE_POLL_S = 0.25
# s3fs holds ten pieces of 50 MiB, sent or received, in memory by default.
_S3_TRANSFER: Mapping[str, int] = {"chunksize": 16 * 2**20, "max_concurrency": 4}


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch hides the system's in its own, safetensors only quotes it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE or any(f"(os error {number})" in str(error) for number in _NO_SPACE):
            return True
        error = error.__cause__ or error.__context__
    return False


class StoreError(ValueError):
    """A place for files cannot be used, or what lies there is damaged; the message names the fix and no credentials."""


class UnreachableError(StoreError):
    """A bucket does not answer, or not as it should: it may in a minute."""


@dataclass(frozen=True)
class Entry:
    """A file of a listing. size: bytes; written: when it was last written, s since the epoch."""

    size: int
    written: float


class FileTree:
    """Files under a directory or an fsspec URL (`s3://bucket/prefix`), by their names relative to it. Can be sent to other processes.

    option: the command-line option that named the place, for messages. Methods raise StoreError where the place cannot be reached.
    """

    def __init__(self, url: str, option: str = "--store") -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
        self.option = option
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            fix = "give a directory or a URL such as s3://bucket/prefix, and install what its protocol needs"
            reason = scrubbed(str(error), url)
            raise StoreError(f"{option} {without_credentials(url)} cannot be opened ({reason}): {fix}") from None
        self.fs: AbstractFileSystem = filesystem
        self.root = root.rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)
        self._transfer = _S3_TRANSFER if "s3" in filesystem.protocol else {}

    def __str__(self) -> str:
        """The URL without credentials."""
        return without_credentials(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileTree, (self.url, self.option)

    def place(self, name: str) -> str:
        """The path of a file for the filesystem."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        with self.reaching():
            self.fs.invalidate_cache()  # others write meanwhile
            return bool(self.fs.exists(self.place(name)))

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        with self.reaching():
            try:
                return self.fs.cat_file(self.place(name))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those of the files that are there: of a bucket many at a time."""
        if self.is_local:
            contents = ((name, self.read(name)) for name in names)
            return {name: content for name, content in contents if content is not None}
        name_of = {self.place(name): name for name in names}
        with self.reaching():
            found = self.fs.cat(list(name_of), on_error="return") if name_of else {}
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {name_of[place]: content for place, content in found.items() if isinstance(content, bytes)}

    def listing(self, folder: str) -> dict[str, Entry]:
        """Every file below a folder by its name relative to it; none where there is no such folder."""
        start = len(self.place(folder)) + 1
        with self.reaching():
            self.fs.invalidate_cache()
            found = self.fs.find(self.place(folder), detail=True)
        return {place[start:]: Entry(int(facts["size"] or 0), written_at(facts)) for place, facts in found.items()}

    def open(self, name: str) -> BufferedIOBase:
        """A file, open for reading. Raises FileNotFoundError where there is none."""
        with self.reaching():
            return self.fs.open(self.place(name), "rb")

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no such folder."""
        with self.reaching():
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.place(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all: on a local disk written under another name and moved; a bucket's upload is atomic."""
        with self.reaching():
            if not self.is_local:
                make_parents(self.fs, self.place(name))
                self.fs.pipe_file(self.place(name), content)
                return
            with self.unfinished_file() as temporary:
                with open(temporary, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                self.move_in(temporary, name)

    def upload(self, path: Path, name: str) -> None:
        """A local file to a remote place, whole or not at all, without holding it in memory."""
        assert not self.is_local, "a local file is moved, not uploaded"
        with self.reaching():
            make_parents(self.fs, self.place(name))
            self.fs.put_file(str(path), self.place(name), **self._transfer)

    def download(self, name: str, path: Path) -> None:
        """A remote file to a local path, without holding it in memory. Raises FileNotFoundError where there is none."""
        with self.reaching():
            self.fs.invalidate_cache()
            self.fs.get_file(self.place(name), str(path), **self._transfer)

    @contextlib.contextmanager
    def unfinished_file(self) -> Iterator[Path]:
        """A new path on the place's own disk to write to and then `move_in`; removed if it is still there at the end."""
        assert self.is_local
        path = Path(self.root) / _UNFINISHED / unfinished_name("file")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def move_in(self, path: Path, name: str) -> None:
        """Have a file of `unfinished_file` stand under its name, at once and in place of what was there."""
        target = Path(self.place(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self.reaching(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.place(name))

    def check_writable(self) -> None:
        """Raise StoreError unless files can be written there."""
        probe = f".writable-{uuid.uuid4().hex}"
        try:
            make_parents(self.fs, self.place(probe))
            self.fs.pipe_file(self.place(probe), b"")
            self.fs.rm_file(self.place(probe))
        except Exception as error:  # every filesystem has errors of its own
            reason = f"{type(error).__name__}: {scrubbed(str(error), self.url)}"
            raise StoreError(f"{self.option} {self} cannot be written to ({reason}): give another {self.option}") from None

    def unfinished(self) -> list[Path]:
        """What processes that are dead left of files they were writing."""
        return left_behind(Path(self.root) / _UNFINISHED) if self.is_local else []

    def remove_unfinished(self) -> None:
        """Remove what processes that are dead left of files they were writing."""
        if self.is_local:
            remove_left_behind(Path(self.root) / _UNFINISHED)

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what a filesystem raises into a StoreError without credentials. What is missing stays a FileNotFoundError."""
        try:
            yield
        except (StoreError, FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # every filesystem has errors of its own; a client that is not installed is an ImportError
            if is_disk_full(error):
                free = "free some and give the same command again; what is finished stays"
                raise StoreError(f"no space is left at {self.option} {self}: {free}") from error
            reason = f"{type(error).__name__}: {scrubbed(str(error), self.url)}"
            fix = "check address, network, permissions and credentials"
            kind = StoreError if self.is_local else UnreachableError
            raise kind(f"{self.option} {self} cannot be reached ({reason}): {fix}") from error


def written_at(facts: Mapping[str, Any]) -> float:
    """When a file of a listing was last written, s since the epoch; now where its filesystem does not say."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = facts.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return time.time()


def write_probe(url: str) -> str:
    """Write a small file under a directory or URL; returns its name, by which other processes look for it. Raises StoreError."""
    name = f".probe-{uuid.uuid4().hex}"
    FileTree(url).write(name, b"")
    return name


def sees_probe(url: str, name: str, timeout_s: float = 5.0) -> bool:
    """Whether this process finds the file of another's `write_probe` under the same URL. Creates nothing; False where it fails.

    Network filesystems show new files to other machines after seconds, so that it looks for `timeout_s` before it says no.
    """
    tree = FileTree(url)
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(StoreError):
            if tree.is_local:
                with contextlib.suppress(OSError):
                    os.listdir(tree.root)  # has NFS ask its server again
            if tree.exists(name):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_PROBE_POLL_S)


def remove_probe(url: str, name: str) -> None:
    """Remove the file of `write_probe`."""
    FileTree(url).remove(name)


def has_directories(filesystem: AbstractFileSystem) -> bool:
    """False for buckets: a directory is a prefix of names there, and to make one would create a bucket that was only misspelt."""
    protocols = [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
    return BUCKET_PROTOCOLS.isdisjoint(protocols)


def make_parents(filesystem: AbstractFileSystem, path: str) -> None:
    """Make the directory that a file is to lie in, where there are directories."""
    if has_directories(filesystem):
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)


def create_file(filesystem: AbstractFileSystem, path: str, content: bytes) -> bool:
    """Create a file unless it exists; whether it was created. Of several at once one succeeds, if the filesystem can tell."""
    if filesystem.exists(path):
        return False
    make_parents(filesystem, path)
    try:
        if isinstance(filesystem, LocalFileSystem):  # its pipe_file looks first and writes then
            with open(path, "xb") as stream:
                stream.write(content)
        else:
            filesystem.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except (TypeError, ValueError, NotImplementedError):  # no exclusive creation on this filesystem
        filesystem.pipe_file(path, content)
    except OSError as error:
        if error.errno == errno.EBUSY:  # how s3fs tells that another conditional write to this name is under way
            return False
        if error.errno != errno.ENOSYS:
            raise
        filesystem.pipe_file(path, content)  # a server that speaks S3 without conditional writes
    return True


def left_behind(directory: Path) -> list[Path]:
    """The files and directories with an `unfinished_name` whose makers are dead."""
    return [path for path in directory.glob("*") if is_left_behind(path)]


def remove_left_behind(directory: Path) -> None:
    """Remove what `left_behind` finds."""
    remove_all(left_behind(directory))


def remove_all(paths: Iterable[Path]) -> None:
    """Remove files and directories, those that are gone already too."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
