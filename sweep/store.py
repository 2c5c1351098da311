"""Content-addressed artifacts in a directory or a bucket: whole or absent, checksummed, computed once.

An artifact's key is the hash of everything it depends on. Its files lie at <root>/artifacts/<key[:2]>/<key>/; `manifest.json` is written
last, so that a reader sees a whole artifact or none. On a local disk the directory is filled under another name and renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sweep.leases import Leases
from sweep.processes import is_alive_here, is_of_this_host, this_process

MANIFEST = "manifest.json"
POLL_S = 0.5


class StoreError(ValueError):
    """The store cannot be used, or an artifact in it is damaged; the message names the fix."""


def artifact_key(stage: str, version: int, params: Mapping[str, Any], inputs: Sequence[str]) -> str:
    """Key of an artifact: sha256 (40 hex digits) over canonical JSON. 1 and 1.0 are different parameters.

    Raises TypeError for parameters that JSON does not hold, ValueError for NaN and infinities.
    """
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
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError("parameter names must be strings")
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a key: use numbers, strings, lists and mappings")


def shown(url: str) -> str:
    """A URL without credentials, for messages."""
    return re.sub(r"(//)[^/@]*@", r"\1", url).split("?")[0]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A whole artifact. manifest: stage, params, inputs, files {name: {size, sha256}}, meta, started, seconds, host, created."""

    key: str
    manifest: Mapping[str, Any]
    _store: Store

    def path(self, name: str) -> Path:
        """A local path to one of the files; of a remote store, a verified copy made once."""
        return self._store._local_file(self.key, name, self.manifest)

    def read_json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())


class Store:
    """Artifacts under a directory or an fsspec URL (`s3://bucket/prefix`). Can be sent to other processes."""

    def __init__(self, url: str, cache_dir: str | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"the store {shown(url)} cannot be opened: {error}") from error
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_local = isinstance(filesystem, LocalFileSystem)
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._cache = Path(cache_dir or os.path.join(tempfile.gettempdir(), "explainability-sweep", "cache")) / digest
        self._leases = Leases(filesystem, f"{self._root}/leases", self._is_local)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, str(self._cache.parent))

    def check_writable(self) -> None:
        """Raise StoreError unless the store can be written to."""
        probe = f"{self._root}/.writable-{os.getpid()}-{time.time_ns():x}"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"")
            self._fs.rm_file(probe)
        except Exception as error:  # every filesystem has errors of its own
            reason = f"{type(error).__name__}: {error}"
            raise StoreError(f"the store {shown(self.url)} cannot be written to ({reason}): give another --store") from error
        if self._is_local:
            self._remove_leftovers()

    def exists(self, key: str) -> bool:
        """Whether the artifact is there, whole."""
        return bool(self._fs.exists(self._place(key, MANIFEST)))

    def open(self, key: str) -> Artifact:
        """An artifact that exists. Raises StoreError when it is absent or a file of it is missing or has another size."""
        try:
            manifest = json.loads(self._fs.cat_file(self._place(key, MANIFEST)))
        except FileNotFoundError:
            raise StoreError(f"there is no artifact {key} in {shown(self.url)}: run the sweep again to compute it") from None
        except ValueError as error:
            raise self._damaged(key, MANIFEST) from error
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
        for name, facts in self.open(key).manifest["files"].items():
            with self._fs.open(self._place(key, name), "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != facts["sha256"]:
                    raise self._damaged(key, name)

    def keys(self, stage: str | None = None) -> list[str]:
        """Keys of all whole artifacts, of one stage if named."""
        found = sorted(PurePosixPath(p).parent.name for p in self._fs.glob(f"{self._root}/artifacts/*/*/{MANIFEST}"))
        return [key for key in found if stage is None or self.open(key).manifest["stage"] == stage]

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
        return Path(self._root, "checkpoints") if self._is_local else self._cache.parent / "checkpoints"

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
        parent = f"{self._root}/in_progress" if self._is_local else None
        if parent:
            os.makedirs(parent, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{key}.{this_process()}.", dir=parent))
        try:
            meta = compute(directory)
            names = sorted(str(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if p.is_file())
            files = {}
            for name in names:
                with open(directory / name, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                    if self._is_local:
                        os.fsync(stream.fileno())
                files[name] = {"size": (directory / name).stat().st_size, "sha256": digest}
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
            self._publish(key, directory, names, json.dumps(manifest, indent=1, sort_keys=True))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _publish(self, key: str, directory: Path, names: list[str], manifest: str) -> None:
        if not self._is_local:
            for name in names:
                self._fs.put_file(str(directory / name), self._place(key, name))
            self._fs.pipe_file(self._place(key, MANIFEST), manifest.encode())
            return
        target = Path(self._place(key, MANIFEST)).parent
        (directory / MANIFEST).write_text(manifest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(directory, 0o755)
        try:
            os.rename(directory, target)
        except OSError:
            if self.exists(key):  # another process was as quick, with the same content
                return
            shutil.rmtree(target)  # a directory without a manifest: no artifact
            os.rename(directory, target)

    def _remove_leftovers(self) -> None:
        """Remove what processes of this machine that are dead left half done."""
        for path in Path(self._root).glob("in_progress/*"):
            process = path.name.partition(".")[2].rpartition(".")[0]  # the name is key.process.random
            if is_of_this_host(process) and not is_alive_here(process):
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, key: str, name: str) -> str:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise StoreError(f"an artifact's file cannot be called {name!r}")
        return f"{self._root}/artifacts/{key[:2]}/{key}/{name}"

    def _local_file(self, key: str, name: str, manifest: Mapping[str, Any]) -> Path:
        if name not in manifest["files"]:
            raise StoreError(f"artifact {key} has no file {name!r}; it has {', '.join(manifest['files'])}")
        if self._is_local:
            return Path(self._place(key, name))
        copy = self._cache / key / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f"{copy.name}.{os.getpid()}.{time.time_ns():x}")
            self._fs.get_file(self._place(key, name), str(temporary))
            with open(temporary, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != manifest["files"][name]["sha256"]:
                    raise self._damaged(key, name)
            os.replace(temporary, copy)
        return copy

    def _damaged(self, key: str, name: str) -> StoreError:
        place = shown(self._place(key, name))
        return StoreError(f"{place} is missing or damaged: delete the directory it is in and run the sweep again")
