"""Publishing: how a filled directory becomes an artifact that is there whole or not at all, and what the dead left of it.

On a local disk a rename publishes. In a bucket each publisher uploads to a directory of its own and then writes the manifest, which names
it: the manifest that stands decides, whatever the order of writes. A publisher deletes its own directory alone, and only when another's
manifest stands; what nobody's manifest names after a day was left by the dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sweep.store import processes
from sweep.store.files import FileTree, StoreError, create_file, left_behind, remove_all, written_at
from sweep.store.manifest import MANIFEST, as_bytes, parse_manifest

_WAIT_FOR_ANOTHER_S = 30.0


def publish_by_rename(directory: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Have the files of a directory and their manifest stand at `target`, unless an artifact stands there already."""
    (directory / MANIFEST).write_bytes(as_bytes(manifest))
    target.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(directory, 0o755)
    for path in (*directory.rglob("*"), directory):
        _flush(path)
    while True:
        try:
            os.rename(directory, target)
            break
        except OSError:
            if (target / MANIFEST).exists():  # another process was as quick, with the same content
                return
            if not target.is_dir():
                raise
            _move_aside(target, directory.with_name(processes.unfinished_name("aside")))
    _flush(target.parent)


def publish_by_upload(files: FileTree, directory: Path, place: str, manifest: Mapping[str, Any]) -> None:
    """Upload a directory's files to `place` and write the manifest there, unless another's stands; then remove what was uploaded."""
    own = uuid.uuid4().hex
    with files.reaching():
        for name in manifest["files"]:
            files.upload(directory / name, f"{place}/{own}/{name}")
        _check_uploaded(files, f"{place}/{own}", manifest)
        create_file(files.fs, files.place(f"{place}/{MANIFEST}"), as_bytes({**manifest, "directory": own}))
        if _standing_directory(files, place, str(manifest["key"])) != own:
            with contextlib.suppress(FileNotFoundError):
                files.fs.rm(files.place(f"{place}/{own}"), recursive=True)


def leftovers(files: FileTree, workplace: Path, is_claimed: Callable[[str], bool]) -> list[str]:
    """Where that lies which `remove_leftovers` removes."""
    local = [*_half_computed(workplace, is_claimed), *files.unfinished()]
    if files.is_local:
        return [str(path) for path in local]
    with files.reaching():
        return [*(str(path) for path in local), *_unnamed_uploads(files)]


def remove_leftovers(files: FileTree, workplace: Path, is_claimed: Callable[[str], bool]) -> None:
    """Remove what dead processes left: half computed on this machine, half published in the store. Of the latter what is a day old.

    is_claimed: whether a living process computes an artifact, by its key.
    """
    remove_all(_half_computed(workplace, is_claimed))
    files.remove_unfinished()
    if not files.is_local:
        with files.reaching():
            for place in _unnamed_uploads(files):
                with contextlib.suppress(FileNotFoundError):
                    files.fs.rm(place, recursive=True)


def _half_computed(workplace: Path, is_claimed: Callable[[str], bool]) -> list[Path]:
    """Directories that dead processes were filling. The age of one of another machine is not enough: a long training writes at its end."""
    return [path for path in left_behind(workplace / "in_progress") if not is_claimed(path.name.partition(".")[0])]


def _move_aside(target: Path, aside: Path) -> None:
    """Clear away a directory without a manifest. What another process publishes there meanwhile is put back."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, aside)
        if (aside / MANIFEST).exists():
            with contextlib.suppress(OSError):  # a third one has published the same
                os.rename(aside, target)
        shutil.rmtree(aside, ignore_errors=True)


def _check_uploaded(files: FileTree, own: str, manifest: Mapping[str, Any]) -> None:
    """A publisher that slept for days (a laptop's lid) may find its upload cleared away: it must not name it."""
    if not manifest["files"]:
        return
    files.fs.invalidate_cache()
    start = len(files.place(own)) + 1
    there = {place[start:]: facts["size"] for place, facts in files.fs.find(files.place(own), detail=True).items()}
    if there != {name: facts["size"] for name, facts in manifest["files"].items()}:
        raise StoreError(f"{files.option} {files}: what was uploaded to {own} is not there whole: run the sweep again")


def _standing_directory(files: FileTree, place: str, key: str) -> str | None:
    """The directory that the manifest names which stands now; None of one that is damaged. Another's may still be on its way."""
    deadline = time.monotonic() + _WAIT_FOR_ANOTHER_S
    while True:
        files.fs.invalidate_cache()
        content = files.read(f"{place}/{MANIFEST}")
        if content is not None:
            try:
                return parse_manifest(content, key).get("directory")
            except ValueError:
                return None
        if time.monotonic() > deadline:
            raise StoreError(f"{files.option} {files}: the manifest of {place} could not be written: run the sweep again")
        time.sleep(0.1)


def _unnamed_uploads(files: FileTree) -> list[str]:
    """Places of uploaded directories that no manifest names and in which nothing is younger than a day."""
    files.fs.invalidate_cache()
    root = files.place("artifacts")
    newest: dict[str, dict[str, float]] = defaultdict(dict)  # place of an artifact -> its directories -> time of the last write
    has_manifest: set[str] = set()
    for path, facts in files.fs.find(root, detail=True).items():
        parts = path[len(root) + 1 :].split("/")
        place = f"artifacts/{'/'.join(parts[:2])}"
        if len(parts) == 3 and parts[2] == MANIFEST:
            has_manifest.add(place)
        elif len(parts) > 3:
            newest[place][parts[2]] = max(newest[place].get(parts[2], 0.0), written_at(facts))
    found = []
    for place, directories in newest.items():
        old = {name for name, written in directories.items() if time.time() - written > processes.LEFT_BEHIND_S}
        # A manifest beside a single directory names it: no need to read every manifest of the store.
        if not old or (place in has_manifest and len(directories) == 1):
            continue
        named = None
        if place in has_manifest:
            named = _standing_directory(files, place, place.rpartition("/")[2])
            if named is None:
                continue  # a damaged manifest: for people to look at
        found += [files.place(f"{place}/{name}") for name in old if name != named]
    return found


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
