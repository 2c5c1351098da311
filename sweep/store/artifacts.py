"""Content-addressed artifacts in a directory or a bucket: whole or absent, checksummed, computed once.

An artifact's key is the hash of everything it depends on. Its files lie at <root>/artifacts/<key[:2]>/<key>/; `manifest.json` is written
last, so that a reader sees a whole artifact or none. On a local disk the directory is filled under another name and renamed. Elsewhere each
computation has a directory of its own beside the manifest, which names it: two that compute the same never mix their files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.store import files as places
from sweep.store.checkpoints import Checkpoint
from sweep.store.credentials import without_credentials
from sweep.store.files import Entry, FileTree, StoreError
from sweep.store.keys import artifact_key, canonical
from sweep.store.leases import Lease, Leases
from sweep.store.manifest import MANIFEST, as_bytes, parse_manifest, sha256_of
from sweep.store.node_cache import ChecksumError, NodeCache, limit_from_environment
from sweep.store.processes import unfinished_name
from sweep.store.publishing import leftovers, publish_by_rename, publish_by_upload, remove_leftovers

__all__ = ["Artifact", "Store", "StoreError", "artifact_key"]

POLL_S = 0.5
_FEW_KEYS = 8


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A whole artifact. manifest: as in `manifest`; it was checked when it was read."""

    key: str
    manifest: Mapping[str, Any]
    _store: Store

    def path(self, name: str) -> Path:
        """A local path to one of the files; of a remote store, a verified copy that is made once a node.

        Open it while this artifact lives, or ask again: with a limit on the node's cache, copies that nobody holds are removed.
        """
        return self._store._local_file(self, name)

    @contextlib.contextmanager
    def borrowed(self, name: str) -> Iterator[Path]:
        """`path` for what is read once and in turn: of a remote store, a copy that goes at the end of the `with` if nobody else has it."""
        with self._store._borrowed_file(self, name) as path:
            yield path

    def location(self, name: str) -> str:
        """Where one of the files lies, for people and the record: a path, or a URL without credentials."""
        parts = [without_credentials(self._store.url), _place(self.key), self.manifest.get("directory", ""), name]
        return "/".join(part for part in parts if part)

    def read_json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text())


class Store:
    """Artifacts under a directory or an fsspec URL (`s3://bucket/prefix`). Can be sent to other processes.

    cache_dir: where a remote store's files are copied to on each node; by default in the user's cache directory.
    cache_gb: size above which copies that were not used for longest are removed; by default EXPLAINABILITY_SWEEP_CACHE_GB of each node's
    environment, without which there is no limit.
    """

    def __init__(self, url: str, cache_dir: str | None = None, cache_gb: float | None = None) -> None:
        self._files = FileTree(url)
        self.url = self._files.url
        self._settings = (cache_dir, cache_gb)
        users_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = Path(cache_dir or f"{users_cache}/explainability-sweep").expanduser()
        self._cache = NodeCache(cache, limit_from_environment() if cache_gb is None else cache_gb)
        # What this machine works on: for a local store in it, so that a rename publishes; for a remote one in the cache.
        self._workplace = Path(self._files.root) if self.is_local else cache
        self._leases = Leases(self._files.fs, self._files.place("leases"), self._files.reaching)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, *self._settings)

    def __str__(self) -> str:
        """The URL without credentials."""
        return str(self._files)

    @property
    def is_local(self) -> bool:
        """Whether it is a directory: on a disk of this machine, or one that it shares."""
        return self._files.is_local

    def check_writable(self) -> None:
        """Raise StoreError unless the store can be written to; clear away what the dead left in it."""
        self._files.check_writable()
        remove_leftovers(self._files, self._workplace, self.is_claimed)

    def write_probe(self) -> str:
        """Write a small file, whose name other processes give to `sees_probe` to find out whether they reach this very store."""
        return places.write_probe(self.url)

    def sees_probe(self, name: str) -> bool:
        return places.sees_probe(self.url, name)

    def remove_probe(self, name: str) -> None:
        places.remove_probe(self.url, name)

    def exists(self, key: str) -> bool:
        """Whether the artifact is there, whole."""
        return self._files.exists(f"{_place(key)}/{MANIFEST}")

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys whose artifacts are there, whole: of a remote store by one listing, not by a request each."""
        asked = set(keys)
        if self.is_local or len(asked) <= _FEW_KEYS:
            return {key for key in asked if self.exists(key)}
        return asked & self._listed()

    def is_claimed(self, key: str) -> bool:
        """Whether a living process, here or elsewhere, is computing the artifact."""
        return self._leases.is_held(key)

    def open(self, key: str) -> Artifact:
        """An artifact that exists. Raises StoreError when it is absent or a file of it is missing or has another size."""
        manifest = self._read_manifest(key)
        if self.is_local:
            for name, facts in manifest["files"].items():
                try:
                    size = os.stat(self._files.place(_place_of(key, name, manifest))).st_size
                except (FileNotFoundError, NotADirectoryError):
                    size = -1
                if size != facts["size"]:
                    raise self._damaged(key, name)
        return Artifact(key, manifest, self)

    def open_all(self, keys: Sequence[str]) -> list[Artifact]:
        """`open` for several, in their order: of a bucket many at a time."""
        found = {} if self.is_local else self.manifests(keys)
        return [Artifact(key, found[key], self) if key in found else self.open(key) for key in keys]

    def verify(self, key: str) -> None:
        """Raise StoreError unless every file has the checksum of the manifest."""
        manifest = self.open(key).manifest
        for name, facts in manifest["files"].items():
            try:
                with self._files.reaching(), self._files.open(_place_of(key, name, manifest)) as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:
                digest = None
            if digest != facts["sha256"]:
                raise self._damaged(key, name)

    def manifests(self, keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """The manifests of those of the keys whose artifacts are there, by default of all: of a bucket many at a time.

        Raises StoreError for one that is damaged.
        """
        key_of = {f"{_place(key)}/{MANIFEST}": key for key in (self._listed() if keys is None else keys)}
        return {key_of[name]: self._parsed(content, key_of[name]) for name, content in self._files.read_many(key_of).items()}

    def leases(self) -> dict[str, Lease]:
        """Who computes what: leases by the artifact's key, of the dead too; as `Leases.all`."""
        return self._leases.all()

    def checkpoints(self) -> dict[str, Entry]:
        """The checkpoints of trainings that have not ended, by the artifact's key."""
        return {name.removesuffix(".pt"): entry for name, entry in self._files.listing("checkpoints").items()}

    def scratches(self) -> dict[str, float]:
        """When something in each scratch directory was last written, s since the epoch."""
        newest: dict[str, float] = {}
        for name, entry in self._files.listing("scratch").items():
            folder = name.partition("/")[0]
            newest[folder] = max(newest.get(folder, 0.0), entry.written)
        return newest

    def leftovers(self) -> list[str]:
        """What the dead left half done, as paths or places of the bucket: `check_writable` removes it."""
        return leftovers(self._files, self._workplace, self.is_claimed)

    def remove(self, key: str) -> None:
        """Remove an artifact, so that it is there whole or not at all for whoever looks meanwhile."""
        if self.is_local:
            aside = self._workplace / "in_progress" / unfinished_name("removed")
            aside.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._files.place(_place(key)), aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            self._files.remove(f"{_place(key)}/{MANIFEST}")
            with self._files.reaching(), contextlib.suppress(FileNotFoundError):
                self._files.fs.rm(self._files.place(_place(key)), recursive=True)

    def remove_lease(self, name: str) -> None:
        """Remove the lease of a dead holder by taking it over; one whose holder may live stays."""
        with self._leases.claim(name):
            pass

    def keys(self, stage: str | None = None) -> list[str]:
        """Keys of all whole artifacts, of one stage if named."""
        return sorted(key for key in self._listed() if stage is None or self._read_manifest(key)["stage"] == stage)

    def checkpoint(self, key: str) -> Checkpoint:
        """The checkpoint of the training that computes an artifact; it lies in the store and does not die with a node."""
        return Checkpoint(self._files, f"checkpoints/{key}.pt", self._workplace)

    def scratch(self, name: str) -> str:
        """A directory or URL beside the artifacts that every node of a cluster sees, for what an engine wants to write meanwhile."""
        return f"{self.url}/scratch/{name}"

    def remove_scratch(self, name: str) -> None:
        """Remove a scratch directory and what is in it."""
        with self._files.reaching(), contextlib.suppress(FileNotFoundError):
            self._files.fs.rm(self._files.place(f"scratch/{name}"), recursive=True)

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
        directory = self._workplace / "in_progress" / unfinished_name(key)
        directory.mkdir(parents=True)
        try:
            meta = compute(directory)
            names = sorted(str(p.relative_to(directory).as_posix()) for p in directory.rglob("*") if p.is_file())
            assert MANIFEST not in names, f"the name {MANIFEST} is the store's own"
            manifest = {
                "key": key,
                "stage": stage,
                "params": canonical(params),
                "inputs": list(inputs),
                "files": {n: {"size": (directory / n).stat().st_size, "sha256": sha256_of(directory / n)} for n in names},
                "meta": dict(meta or {}),
                "started": started,
                "seconds": time.time() - started,
                "host": socket.gethostname(),
                "created": time.time(),
            }
            parse_manifest(as_bytes(manifest), key)  # what is published can be opened
            if self.is_local:
                publish_by_rename(directory, Path(self._files.place(_place(key))), manifest)
            else:
                publish_by_upload(self._files, directory, _place(key), manifest)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _listed(self) -> set[str]:
        """Keys of all whole artifacts, by one listing."""
        root = self._files.place("artifacts")
        if self.is_local:
            return {path.parent.name for path in Path(root).glob(f"*/*/{MANIFEST}")}
        with self._files.reaching():
            self._files.fs.invalidate_cache()
            names = [path[len(root) + 1 :].split("/") for path in self._files.fs.find(root)]
        return {parts[1] for parts in names if len(parts) == 3 and parts[2] == MANIFEST}

    def _read_manifest(self, key: str) -> dict[str, Any]:
        content = self._files.read(f"{_place(key)}/{MANIFEST}")
        if content is None:
            raise StoreError(f"there is no artifact {key} in {self._files}: run the sweep again to compute it")
        return self._parsed(content, key)

    def _parsed(self, content: bytes, key: str) -> dict[str, Any]:
        try:
            return parse_manifest(content, key)
        except ValueError as error:
            raise self._damaged(key, MANIFEST) from error

    def _local_file(self, artifact: Artifact, name: str) -> Path:
        place, size, sha256 = self._whereabouts(artifact, name)
        if self.is_local:
            return Path(self._files.place(place))
        try:
            return self._cache.copy(name, size, sha256, lambda copy: self._files.download(place, copy), artifact)
        except (FileNotFoundError, ChecksumError):
            raise self._damaged(artifact.key, name) from None

    @contextlib.contextmanager
    def _borrowed_file(self, artifact: Artifact, name: str) -> Iterator[Path]:
        place, size, sha256 = self._whereabouts(artifact, name)
        with contextlib.ExitStack() as stack:
            try:
                path = Path(self._files.place(place))
                if not self.is_local:
                    borrowed = self._cache.borrowed(name, size, sha256, lambda copy: self._files.download(place, copy), artifact)
                    path = stack.enter_context(borrowed)
            except (FileNotFoundError, ChecksumError):
                raise self._damaged(artifact.key, name) from None
            yield path

    def _whereabouts(self, artifact: Artifact, name: str) -> tuple[str, int, str]:
        """Place below the root, size and checksum of one of an artifact's files."""
        files = artifact.manifest["files"]
        if name not in files:
            raise StoreError(f"artifact {artifact.key} has no file {name!r}; it has {', '.join(files)}")
        return _place_of(artifact.key, name, artifact.manifest), files[name]["size"], files[name]["sha256"]

    def _damaged(self, key: str, name: str) -> StoreError:
        return StoreError(
            f"{name} of the artifact {self._files}/{_place(key)} is missing or damaged: delete this directory and run the sweep again"
        )


def _place(key: str) -> str:
    return f"artifacts/{key[:2]}/{key}"


def _place_of(key: str, name: str, manifest: Mapping[str, Any]) -> str:
    directory = manifest.get("directory")
    return "/".join([_place(key), *([directory] if directory else []), name])
