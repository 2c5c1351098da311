"""The directory a domain's files lie in: local, on the Hugging Face Hub, or behind any other fsspec URL."""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote

import fsspec

_log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 5 * 2**20
_HUB_TIMEOUT_S = 10.0
_BLOCK_BYTES = 2**20
_ACCESS = "accept the conditions on its page if it has any, and log in (`hf auth login`, or the HF_TOKEN variable)"
_HUB_DATASET = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)


class DomainError(ValueError):
    """A domain's data cannot be used; the message names the file and the fix."""


@dataclass(frozen=True)
class Listing:
    """What lies under a data directory: POSIX paths relative to it, sorted; hidden entries are left out."""

    files: tuple[str, ...]
    directories: tuple[str, ...]
    irregular: frozenset[str]  # those of `files` that are links, pipes or devices: `check` them before use


@dataclass(frozen=True, repr=False)
class DataDirectory:
    """A directory that hands out its own files and nothing outside itself. It can be pickled and opened elsewhere."""

    location: str  # a resolved local path, or a URL (of a Hub data set: pinned to a commit)
    is_local: bool

    def __str__(self) -> str:
        """The location without the user and password that a URL may carry."""
        return re.sub(r"://[^/@]*@", "://", self.location)

    __repr__ = __str__

    def describe(self, relative: str) -> str:
        """The full name of a file, for messages."""
        return f"{str(self).rstrip('/')}/{relative}"

    def scan(self) -> Listing:
        """Everything under the directory. Links are listed, never followed. Raises DomainError."""
        with self.reading(str(self)):
            return _list_local(Path(self.location)) if self.is_local else self._list_remote()

    def check(self, relative: str) -> None:
        """Raise DomainError unless `relative` is a regular file that lies in the directory, links resolved."""
        _check_relative(relative)
        if self.is_local:
            self._local_path(relative)

    def open(self, relative: str, read_ahead: bool = False) -> BinaryIO:
        """The file, open for reading. Raises DomainError.

        Each read of a remote one is a request for just these bytes; with read_ahead for READ_AHEAD_BYTES more, which later reads take from.
        """
        _check_relative(relative)
        with self.reading(self.describe(relative)):
            if self.is_local:
                return self._local_path(relative).open("rb")
            filesystem, root = self._filesystem()
            cache = "readahead" if read_ahead else "none"
            return filesystem.open(f"{root}/{relative}", "rb", block_size=READ_AHEAD_BYTES, cache_type=cache)

    def read(self, relative: str) -> bytes:
        """The file's content. Raises DomainError."""
        with self.open(relative) as file, self.reading(self.describe(relative)):
            return file.read()

    def fingerprint(self, relatives: Sequence[str]) -> str:
        """sha256 over names and contents of the files; of remote ones, over the checksums that their store keeps."""
        digest = hashlib.sha256()
        for relative in sorted(relatives):
            digest.update(f"{relative}\0{self._file_fingerprint(relative)}\n".encode())
        return digest.hexdigest()

    def quick_fingerprint(self, relatives: Sequence[str]) -> str:
        """sha256 over names, sizes and times of change of local files, without reading them; of remote ones as `fingerprint`.

        For data sets that take hours to read. It does not notice content that was changed in place with its time set back.
        """
        if not self.is_local:
            return self.fingerprint(relatives)
        digest = hashlib.sha256()
        for relative in sorted(relatives):
            with self.reading(self.describe(relative)):
                state = self._local_path(relative).stat()
            digest.update(f"{relative}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _file_fingerprint(self, relative: str) -> str:
        if self.is_local:
            digest = hashlib.sha256()
            with self.open(relative) as file, self.reading(self.describe(relative)):
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
            return digest.hexdigest()
        with self.reading(self.describe(relative)):
            filesystem, root = self._filesystem()
            info = filesystem.info(f"{root}/{relative}")
            # The Hub's git checksums name the content; ukey() would take in what else it says about a file.
            content = (info.get("lfs") or {}).get("sha256") or info.get("blob_id")
            return content or filesystem.ukey(f"{root}/{relative}")

    def _local_path(self, relative: str) -> Path:
        root = Path(self.location)
        path = Path(os.path.realpath(root / relative))
        if not path.is_relative_to(root):
            raise DomainError(
                f"{self.describe(relative)} is a link that leaves the data directory (to {path}); "
                "copy the file into the data directory"
            )
        if path.is_dir():
            raise DomainError(f"{self.describe(relative)} is a link to a directory; put the directory itself there")
        if not path.is_file():
            raise DomainError(f"{self.describe(relative)} is missing or not a regular file; put it there or remove it")
        return path

    def _list_remote(self) -> Listing:
        filesystem, root = self._filesystem()
        relatives = sorted(name[len(root) :].lstrip("/") for name in filesystem.find(root))
        files = [name for name in relatives if name and not any(map(_is_hidden, name.split("/")))]
        directories = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        return Listing(tuple(files), tuple(sorted(directories)), frozenset())

    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, root = fsspec.core.url_to_fs(self.location)
        return filesystem, root.rstrip("/")

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what goes wrong while reading `what` from here into a DomainError that names it and the fix."""
        try:
            yield
        except DomainError:
            raise
        except Exception as error:
            if not self.is_local:
                if _is_gated(error):
                    raise DomainError(f"cannot read {what}: the data set is gated: {_ACCESS}") from error
                # Every remote store has exceptions of its own, and a client that is not installed is an ImportError.
                fix = "check address, network and credentials, or copy the files here and give the directory"
                raise DomainError(f"cannot read {what}: {_first_line(error)}; {fix}") from error
            if isinstance(error, OSError):
                fix = "check that it exists and that its permissions let you read it"
                raise DomainError(f"cannot read {what}: {error.strerror or error}; {fix}") from error
            raise


def open_data_directory(path_or_url: str | os.PathLike[str]) -> DataDirectory:
    """The data directory at a path or URL; a Hub data set is pinned to the commit it has now. Raises DomainError."""
    text = os.fspath(path_or_url)
    if text.startswith("hf://"):
        return DataDirectory(_pin_hub_dataset(text), is_local=False)
    if "://" in text and not text.startswith(("file://", "local://")):
        return DataDirectory(text, is_local=False)
    path = Path(text.removeprefix("file://").removeprefix("local://")).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DomainError(
            f"cannot read {path}: {reason}; give a directory of Parquet files, an image folder, or hf://datasets/..."
        ) from error
    if not stat.S_ISDIR(mode):
        raise DomainError(f"{path} is a file; give the directory that holds both the train and the test split")
    return DataDirectory(os.path.realpath(path), is_local=True)


def _list_local(root: Path) -> Listing:
    files: list[str] = []
    directories: list[str] = []
    irregular: list[str] = []
    pending = [""]
    while pending:
        parent = pending.pop()
        with os.scandir(root / parent) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                relative = f"{parent}/{entry.name}" if parent else entry.name
                _check_encodable(relative)
                if entry.is_dir(follow_symlinks=False):
                    directories.append(relative)
                    pending.append(relative)
                    continue
                files.append(relative)
                if not entry.is_file(follow_symlinks=False):
                    irregular.append(relative)
    return Listing(tuple(sorted(files)), tuple(sorted(directories)), frozenset(irregular))


def _check_relative(relative: str) -> None:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative or not path.parts:
        raise DomainError(
            f"the picture path {relative!r} does not stay inside the data directory; "
            "store the picture's bytes, or a path relative to the data directory"
        )


def _is_hidden(name: str) -> bool:
    """Files that version control, caches and archive tools leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def _check_encodable(relative: str) -> None:
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise DomainError(f"the file name {relative!r} is not UTF-8; rename it") from None


def _pin_hub_dataset(url: str) -> str:
    """`hf://datasets/owner/name[@revision][/path]` with the commit as revision: workers read what was checked here."""
    match = _HUB_DATASET.fullmatch(url)
    if match is None:
        raise DomainError(f"{url} is no Hub data set; write hf://datasets/owner/name[@revision][/path]")
    from huggingface_hub import HfApi  # here: it takes a second to import and most domains are local
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    repository, path = match["repository"], (match["path"] or "").strip("/")
    revision = unquote(match["revision"]) if match["revision"] else None
    try:
        # One request, without retries: where the Hub cannot be reached this ends within the time-out.
        commit = HfApi().dataset_info(repository, revision=revision, timeout=_HUB_TIMEOUT_S).sha
    except OfflineModeIsEnabled as error:
        raise DomainError(f"cannot read {url}: HF_HUB_OFFLINE is set; unset it, or give a local directory") from error
    except RevisionNotFoundError as error:
        raise DomainError(f"cannot read {url}: it has no revision {revision!r}; check its page on the Hub") from error
    except RepositoryNotFoundError as error:  # gated ones among them
        raise DomainError(
            f"cannot read {url}: it does not exist or you have no access; check owner and name, and {_ACCESS}"
        ) from error
    except Exception as error:  # the HTTP client's own exceptions: no name, no route, time-out, 5xx, proxy, certificate
        raise DomainError(
            f"cannot reach the Hugging Face Hub for {url}: {_first_line(error)}; check the network (HF_ENDPOINT names "
            "a mirror), or download the files elsewhere and give the directory"
        ) from error
    pinned = f"hf://datasets/{repository}@{commit}"
    _log.info("%s is read at commit %s", url, commit)
    return f"{pinned}/{path}" if path else pinned


def _is_gated(error: BaseException | None) -> bool:
    """Whether the Hub refused a file because its conditions were not accepted; the client wraps that in errors of the file system."""
    while error is not None:
        if type(error).__name__ == "GatedRepoError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
