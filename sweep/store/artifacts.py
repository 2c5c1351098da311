"""Content-addressed artifacts in a directory or a bucket: whole or absent, checksummed, computed once.

An artifact's key is the hash of everything it depends on. Its files lie at <root>/artifacts/<key[:2]>/<key>/; `manifest.json` is written
last, so that a reader sees a whole artifact or none. On a local disk the directory is filled under another name and renamed. Elsewhere each
computation has a directory of its own beside the manifest, which names it: two that compute the same never mix their files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sweep.store.credentials import scrubbed, without_credentials
from sweep.store.leases import Leases, create_file, has_directories
from sweep.store.processes import is_alive_here, is_of_this_host, this_process

MANIFEST = "manifest.json"
POLL_S = 0.5


class StoreError(ValueError):
    """The store cannot be used, or an artifact in it is damaged; the message names the fix."""


def artifact_key(stage: str, version: int, params: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Key of an artifact: sha256 (40 hex digits) over canonical JSON. 1 and 1.0 are different parameters, 0.0 and -0.0 are not.

    Raises TypeError for parameters that JSON does not hold, ValueError for NaN and infinities.
    """
    assert not isinstance(inputs, str), "inputs are a sequence of keys"
    document = {"stage": stage, "version": version, "params": _canonical(params), "inputs": list(inputs)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(dataclasses.asdict(value))
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"a parameter is {value}: keys hold finite numbers only")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError("parameter names must be strings")
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a key: use numbers, strings, lists and mappings")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A whole artifact. manifest: stage, params, inputs, files {name: {size, sha256}}, meta, started, seconds, host, created."""

    key: str
    manifest: Mapping[str, Any]
    _store: Store

    def path(self, name: str) -> Path:
        """A local path to one of the files; of a remote store, a verified copy made once."""
        return self._store._local_file(self.key, name, self.manifest)

    def location(self, name: str) -> str:
        """Where one of the files lies, for people and the record: a path, or a URL without credentials."""
        return without_credentials(self._store.url) + self._store._place(self.key, name, self.manifest).removeprefix(self._store._root)

    def read_json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())


class Store:
    """Artifacts under a directory or an fsspec URL (`s3://bucket/prefix`). Can be sent to other processes."""

    def __init__(self, url: str, cache_dir: str | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            fix = "give a directory or a URL such as s3://bucket/prefix, and install what its protocol needs"
            raise StoreError(f"the store {without_credentials(url)} cannot be opened ({scrubbed(str(error), url)}): {fix}") from None
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_local = isinstance(filesystem, LocalFileSystem)
        self._cache_dir = cache_dir
        users_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self._cache = Path(cache_dir or f"{users_cache}/explainability-sweep").expanduser()
        # What this machine works on: for a local store in it, so that a rename publishes; for a remote one in the cache.
        self._workplace = Path(self._root) if self._is_local else self._cache
        self._leases = Leases(filesystem, f"{self._root}/leases")

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self._cache_dir)

    @property
    def is_local(self) -> bool:
        """Whether artifacts are files of this machine, not objects of a bucket."""
        return self._is_local

    def check_writable(self) -> None:
        """Raise StoreError unless the store can be written to."""
        probe = f"{self._root}/.writable-{os.getpid()}-{time.time_ns():x}"
        try:
            if has_directories(self._fs):
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"")
            self._fs.rm_file(probe)
        except Exception as error:  # every filesystem has errors of its own
            reason = f"{type(error).__name__}: {scrubbed(str(error), self.url)}"
            raise StoreError(f"the store {without_credentials(self.url)} cannot be written to ({reason}): give another --store") from None
        self._remove_leftovers()

    def exists(self, key: str) -> bool:
        """Whether the artifact is there, whole."""
        self._fs.invalidate_cache()  # others publish meanwhile
        return bool(self._fs.exists(self._place(key, MANIFEST)))

    def open(self, key: str) -> Artifact:
        """An artifact that exists. Raises StoreError when it is absent or a file of it is missing or has another size."""
        manifest = self._read_manifest(key)
        if self._is_local:
            for name, facts in manifest["files"].items():
                try:
                    size = os.stat(self._place(key, name)).st_size
                except FileNotFoundError:
                    size = -1
                if size != facts["size"]:
                    raise self._damaged(key, name)
        return Artifact(key, manifest, self)

    def verify(self, key: str) -> None:
        """Raise StoreError unless every file has the checksum of the manifest."""
        manifest = self.open(key).manifest
        for name, facts in manifest["files"].items():
            try:
                with self._fs.open(self._place(key, name, manifest), "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:
                digest = None
            if digest != facts["sha256"]:
                raise self._damaged(key, name)

    def keys(self, stage: str | None = None) -> list[str]:
        """Keys of all whole artifacts, of one stage if named."""
        self._fs.invalidate_cache()
        found = sorted(PurePosixPath(p).parent.name for p in self._fs.glob(f"{self._root}/artifacts/*/*/{MANIFEST}"))
        return [key for key in found if stage is None or self._read_manifest(key)["stage"] == stage]

    def scratch(self, name: str) -> str:
        """A directory or URL beside the artifacts that every node of a cluster sees, for what an engine wants to write meanwhile."""
        return f"{self.url}/scratch/{name}"

    def remove_scratch(self, name: str) -> None:
        """Remove a scratch directory and what is in it."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/scratch/{name}", recursive=True)

    @property
    def checkpoint_directory(self) -> Path:
        """Where a training keeps its checkpoint: in the store, or for a remote one on this machine."""
        return self._workplace / "checkpoints"

    def get_or_compute(
        self,
        key: str,
        *,
        stage: str,
        params: Mapping[str, Any],
        inputs: Sequence[str],
        compute: Callable[[Path], Mapping[str, Any] | None],
        wait: bool = True,
    ) -> Artifact | None:
        """The artifact; if absent, `compute` fills a directory with its files and returns what goes into the manifest as `meta`.

        Of several processes that ask at once one computes, the others wait (or, with wait=False, get None). When the computing
        process dies another takes over. An error in `compute` publishes nothing.
        """
        while True:
            if self.exists(key):
                return self.open(key)
            with self._leases.claim(key) as is_mine:
                if is_mine:
                    if not self.exists(key):
                        self._compute(key, stage, params, inputs, compute)
                    return self.open(key)
            if not wait:
                return None
            time.sleep(POLL_S)

    def _compute(
        self,
        key: str,
        stage: str,
        params: Mapping[str, Any],
        inputs: Sequence[str],
        compute: Callable[[Path], Mapping[str, Any] | None],
    ) -> None:
        started = time.time()
        parent = self._workplace / "in_progress"
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{key}.{this_process()}.", dir=parent))
        try:
            meta = compute(directory)
            names = sorted(str(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if p.is_file())
            assert MANIFEST not in names, f"the name {MANIFEST} is the store's own"
            files = {n: {"size": (directory / n).stat().st_size, "sha256": _sha256(directory / n)} for n in names}
            manifest = {
                "key": key,
                "stage": stage,
                "params": _canonical(params),
                "inputs": list(inputs),
                "files": files,
                "meta": dict(meta or {}),
                "started": started,
                "seconds": time.time() - started,
                "host": socket.gethostname(),
                "created": time.time(),
            }
            publish = self._publish_by_rename if self._is_local else self._publish_by_upload
            publish(key, directory, manifest)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _publish_by_rename(self, key: str, directory: Path, manifest: Mapping[str, Any]) -> None:
        target = Path(self._place(key, MANIFEST)).parent
        (directory / MANIFEST).write_text(_as_text(manifest))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(directory, 0o755)
        for path in (*directory.rglob("*"), directory):
            _flush(path)
        try:
            os.rename(directory, target)
        except OSError:
            if self.exists(key):  # another process was as quick, with the same content
                return
            shutil.rmtree(target)  # a directory without a manifest: no artifact
            os.rename(directory, target)
        _flush(target.parent)

    def _publish_by_upload(self, key: str, directory: Path, manifest: Mapping[str, Any]) -> None:
        manifest = {**manifest, "directory": uuid.uuid4().hex}
        for name in manifest["files"]:
            self._fs.put_file(str(directory / name), self._place(key, name, manifest))
        create_file(self._fs, self._place(key, MANIFEST), _as_text(manifest).encode())
        # Of several that computed the same, the first manifest stands. What it does not name was left by others, dead or late.
        kept = {MANIFEST, self._read_manifest(key)["directory"]}
        self._fs.invalidate_cache()
        for path in self._fs.ls(self._place(key, MANIFEST).rpartition("/")[0], detail=False):
            if PurePosixPath(path).name not in kept:
                self._fs.rm(path, recursive=True)

    def _remove_leftovers(self) -> None:
        """Remove what processes of this machine that are dead left half done."""
        for path in self._workplace.glob("in_progress/*"):
            process = path.name.partition(".")[2].rpartition(".")[0]  # the name is key.process.random
            if is_of_this_host(process) and not is_alive_here(process):
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, key: str, name: str, manifest: Mapping[str, Any] | None = None) -> str:
        directory = manifest.get("directory") if manifest else None
        return "/".join([self._root, "artifacts", key[:2], key, *([directory] if directory else []), name])

    def _read_manifest(self, key: str) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self._fs.cat_file(self._place(key, MANIFEST)))
            names = [*manifest["files"], manifest.get("directory", "")]
        except FileNotFoundError:
            store = without_credentials(self.url)
            raise StoreError(f"there is no artifact {key} in {store}: run the sweep again to compute it") from None
        except (ValueError, TypeError, LookupError):
            raise self._damaged(key, MANIFEST) from None
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
            raise self._damaged(key, MANIFEST)
        return manifest

    def _local_file(self, key: str, name: str, manifest: Mapping[str, Any]) -> Path:
        if name not in manifest["files"]:
            raise StoreError(f"artifact {key} has no file {name!r}; it has {', '.join(manifest['files'])}")
        if self._is_local:
            return Path(self._place(key, name))
        facts = manifest["files"][name]
        # Under its checksum: what was deleted and computed again is not taken for what it was before.
        copy = self._cache / "files" / facts["sha256"] / name
        if not copy.exists() or copy.stat().st_size != facts["size"]:
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
            try:
                self._fs.get_file(self._place(key, name, manifest), str(temporary))
                if _sha256(temporary) != facts["sha256"]:
                    raise self._damaged(key, name)
                os.replace(temporary, copy)
            except FileNotFoundError:
                raise self._damaged(key, name) from None
            finally:
                temporary.unlink(missing_ok=True)
        return copy

    def _damaged(self, key: str, name: str) -> StoreError:
        place = f"{without_credentials(self.url)}/artifacts/{key[:2]}/{key}"
        return StoreError(f"{name} of the artifact {place} is missing or damaged: delete this directory and run the sweep again")


def _as_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have a file or a directory on the disk before what is written next: after a power loss an artifact is whole or absent too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (error.errno == errno.EINVAL and path.is_dir()):  # some network filesystems cannot for directories
            raise
    finally:
        os.close(descriptor)
