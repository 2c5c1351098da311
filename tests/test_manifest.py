"""Manifests that others may have written: nothing of them leads out of the store or the cache, and nothing else breaks on them."""

from __future__ import annotations

import json
import uuid

import fsspec
import pytest
from small_artifact import KEY, PLACE, put

from sweep.store.artifacts import Store, StoreError
from sweep.store.manifest import is_safe_name


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"
    return Store(url, str(tmp_path / "cache"))


FACTS = {"size": 7, "sha256": "0" * 64}
CHANGES = {
    "another artifact's": {"key": "ab" + "1" * 38},
    "key is no text": {"key": 3},
    "stage is no text": {"stage": None},
    "params are a list": {"params": []},
    "inputs are a text": {"inputs": "abc"},
    "inputs are numbers": {"inputs": [1]},
    "files are a list": {"files": ["facts.json"]},
    "meta is a text": {"meta": "x"},
    "times are texts": {"created": "now"},
    "times are infinite": {"started": 1e999},
    "a size is negative": {"files": {"f": {**FACTS, "size": -1}}},
    "a size is a fraction": {"files": {"f": {**FACTS, "size": 7.0}}},
    "a size is a truth": {"files": {"f": {**FACTS, "size": True}}},
    "a checksum leads away": {"files": {"facts.json": {**FACTS, "sha256": "../../../../outside"}}},
    "a checksum is short": {"files": {"f": {**FACTS, "sha256": "0" * 63}}},
    "a checksum is no hex": {"files": {"f": {**FACTS, "sha256": "g" * 64}}},
    "a checksum ends a line": {"files": {"f": {**FACTS, "sha256": "0" * 64 + "\n"}}},
    "a checksum is a list": {"files": {"f": {**FACTS, "sha256": ["0"]}}},
    "facts are missing": {"files": {"f": {"size": 7}}},
    "a name leads away": {"files": {"../../../../outside": FACTS}},
    "a name is absolute": {"files": {"/etc/passwd": FACTS}},
    "a name is the manifest's": {"files": {"manifest.json": FACTS}},
    "a name ends": {"files": {"f\0g": FACTS}},
    "a name is no Unicode": {"files": {"\ud800": FACTS}},
    "a name is too long": {"files": {"f" * 256: FACTS}},
    "the directory leads away": {"directory": "../" + "a" * 29},
    "the directory is no name": {"directory": 7},
    "the directory is empty": {"directory": ""},
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_that_this_store_would_not_have_written_is_refused(store, tmp_path, case):
    put(store)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    manifest = json.loads(filesystem.cat_file(f"{root}/{PLACE}/manifest.json"))
    filesystem.pipe_file(f"{root}/{PLACE}/manifest.json", json.dumps({**manifest, **CHANGES[case]}).encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=rf"manifest\.json of the artifact .*{KEY} is missing or damaged: delete this directory"):
        store.open(KEY).path("facts.json")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_a_file_that_is_no_manifest_is_refused(store, content):
    put(store)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    filesystem.pipe_file(f"{root}/{PLACE}/manifest.json", content)
    with pytest.raises(StoreError, match=r"manifest\.json of the artifact .* is missing or damaged"):
        store.open(KEY)


def test_every_field_of_a_manifest_is_needed(store):
    put(store)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    manifest = json.loads(filesystem.cat_file(f"{root}/{PLACE}/manifest.json"))
    for field in set(manifest) - {"directory"}:
        without = {name: value for name, value in manifest.items() if name != field}
        filesystem.pipe_file(f"{root}/{PLACE}/manifest.json", json.dumps(without).encode())
        with pytest.raises(StoreError, match="damaged"):
            store.open(KEY)


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "./a", "a//b", "a/", "/a", "a\\b", "a\0", "manifest.json", "\udcff", 3, None])
def test_names_that_could_lead_out_of_an_artifact_are_not_safe(name):
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a", "a/b", "a b.json", "ä/ö.txt", "..a", "sub/manifest.json", "x" * 255])
def test_ordinary_names_are_safe(name):
    assert is_safe_name(name)
