"""A small artifact for tests of the store: two files, a fact for the manifest, one key."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec

from sweep.store.artifacts import Artifact, Store, artifact_key

KEY = artifact_key("stage", 1, {"a": 1}, [])
PLACE = f"artifacts/{KEY[:2]}/{KEY}"


def put(store: Store, key: str = KEY, text: str = "content", wait: bool = True) -> Artifact | None:
    def compute(directory: Path) -> dict[str, int]:
        (directory / "sub").mkdir()
        (directory / "sub" / "data.txt").write_text(text)
        (directory / "facts.json").write_text(json.dumps({"n": 3}))
        return {"count": 3}

    return store.get_or_compute(key, stage="stage", params={"a": 1}, inputs=["b"], compute=compute, wait=wait)


def compute_twice(store: Store) -> None:
    """A holder that was cut off for long loses its lease to another, then publishes late; trainings are not the same to the bit."""
    first: list[Artifact] = []

    def late(directory: Path) -> None:
        (directory / "facts.json").write_text("late")
        filesystem, root = fsspec.core.url_to_fs(store.url)
        filesystem.rm_file(f"{root}/leases/{KEY}")
        first.append(put(store, text="first"))

    artifact = store.get_or_compute(KEY, stage="late", params={}, inputs=[], compute=late)
    assert first[0].path("sub/data.txt").read_text() == "first"
    assert artifact.manifest == first[0].manifest
    store.verify(KEY)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    filesystem.invalidate_cache()
    assert len(filesystem.find(f"{root}/{PLACE}")) == 3  # two files and the manifest: nothing of the late one
