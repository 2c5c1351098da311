"""Artifacts on other filesystems, memory and a bucket: whole or absent, verified copies, what others do meanwhile."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from small_artifact import KEY, PLACE, compute_twice, put

from sweep.store.artifacts import Store, StoreError
from sweep.store.files import FileTree


@pytest.fixture(params=["memory", "bucket"])
def remote(request, tmp_path) -> Store:
    url = request.getfixturevalue("bucket") if request.param == "bucket" else f"memory://{uuid.uuid4().hex}/store"
    return Store(url, str(tmp_path / "cache"))


def _change(store: Store, name: str, content: bytes | None) -> None:
    """Change or remove a file of the artifact behind the store's back."""
    filesystem, root = fsspec.core.url_to_fs(store.url)
    (path,) = [p for p in filesystem.find(f"{root}/{PLACE}") if p.endswith(f"/{name}")]
    filesystem.rm_file(path) if content is None else filesystem.pipe_file(path, content)


def test_a_remote_store_holds_whole_verified_artifacts(remote, tmp_path):
    remote.check_writable()
    artifact = put(remote)
    assert artifact.path("sub/data.txt").read_text() == "content"
    assert put(remote, text="other").path("sub/data.txt").read_text() == "content"
    assert remote.keys("stage") == [KEY] and remote.keys("other") == []
    remote.verify(KEY)
    assert list((tmp_path / "cache" / "in_progress").iterdir()) == []


@pytest.mark.parametrize("content", [b"CONTENT", None])
def test_what_is_damaged_remotely_is_found_out(remote, tmp_path, content):
    put(remote)
    _change(remote, "data.txt", content)
    message = rf"sub/data\.txt of the artifact {remote.url}/.*/{KEY} is missing or damaged: delete this directory"
    with pytest.raises(StoreError, match=message):
        remote.open(KEY).path("sub/data.txt")
    with pytest.raises(StoreError, match=message):
        remote.verify(KEY)
    assert [p for p in (tmp_path / "cache" / "files").rglob("*") if p.is_file()] == []


def test_what_is_computed_again_is_not_read_from_the_old_copy(remote):
    assert put(remote, text="old").path("sub/data.txt").read_text() == "old"
    filesystem, root = fsspec.core.url_to_fs(remote.url)
    filesystem.rm(f"{root}/{PLACE}", recursive=True)
    assert put(remote, text="new").path("sub/data.txt").read_text() == "new"


def test_a_copy_that_lost_bytes_is_made_again(remote):
    path = put(remote).path("sub/data.txt")
    path.write_text("con")
    assert remote.open(KEY).path("sub/data.txt").read_text() == "content"


def test_of_two_that_compute_a_remote_artifact_the_first_stands(remote):
    compute_twice(remote)


def test_an_upload_that_was_cut_off_is_no_artifact(remote):
    filesystem, root = fsspec.core.url_to_fs(remote.url)
    filesystem.pipe_file(f"{root}/{PLACE}/{uuid.uuid4().hex}/facts.json", b"half")
    assert not remote.exists(KEY) and remote.keys() == []
    assert put(remote).read_json("facts.json") == {"n": 3}


def test_a_remote_store_tells_by_one_listing_which_of_many_artifacts_exist(bucket, tmp_path, caplog):
    store = Store(bucket, str(tmp_path / "cache"))
    keys = [f"{number:02x}" + "a" * 38 for number in range(20)]
    for key in keys[:3]:
        put(store, key)
    filesystem, root = fsspec.core.url_to_fs(bucket)
    filesystem.pipe_file(f"{root}/artifacts/{keys[5][:2]}/{keys[5]}/{uuid.uuid4().hex}/facts.json", b"half")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        assert store.existing([*keys, "ff" + "b" * 38]) == set(keys[:3])
        assert len([record for record in caplog.records if record.name == "werkzeug"]) == 1
        assert store.existing(iter(keys[2:4])) == {keys[2]}
    assert not store.is_local


def test_what_others_publish_or_remove_in_a_bucket_is_seen_at_once(bucket, tmp_path):
    boto3 = pytest.importorskip("boto3")
    client, name = boto3.client("s3"), bucket.split("/")[2]
    store = Store(bucket, str(tmp_path / "cache"))
    put(store)
    manifest = client.get_object(Bucket=name, Key=f"prefix/{PLACE}/manifest.json")["Body"].read()
    assert store.keys() == [KEY]  # lists the bucket, which s3fs remembers
    client.delete_object(Bucket=name, Key=f"prefix/{PLACE}/manifest.json")
    assert not store.exists(KEY) and store.keys() == []
    client.put_object(Bucket=name, Key=f"prefix/{PLACE}/manifest.json", Body=manifest)
    assert store.exists(KEY) and store.keys() == [KEY]


def test_a_misspelt_bucket_is_refused_and_not_created(bucket):
    boto3 = pytest.importorskip("boto3")
    before = boto3.client("s3").list_buckets()["Buckets"]
    with pytest.raises(StoreError, match="bucket does not exist.*--store"):
        Store("s3://misspelt/prefix").check_writable()
    assert boto3.client("s3").list_buckets()["Buckets"] == before


def test_one_computation_for_two_askers_in_a_bucket(bucket, tmp_path):
    computed = []

    def compute(directory: Path):
        computed.append(1)
        time.sleep(1.0)
        (directory / "f").write_text("1")
        return None

    stores = [Store(bucket, str(tmp_path / str(i))) for i in range(2)]
    threads = [
        threading.Thread(target=s.get_or_compute, args=(KEY,), kwargs={"stage": "s", "params": {}, "inputs": [], "compute": compute})
        for s in stores
    ]
    threads[0].start()
    time.sleep(0.3)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert computed == [1]


def test_several_are_opened_by_one_reading(remote, monkeypatch):
    keys = [f"{n:040x}" for n in (3, 1, 2)]
    for key in keys:
        put(remote, key=key, text=key)
    asked = []
    plain = FileTree.read
    monkeypatch.setattr(FileTree, "read", lambda self, name: asked.append(name) or plain(self, name))
    found = remote.open_all(keys)
    assert not asked and [artifact.key for artifact in found] == keys
    assert [artifact.path("sub/data.txt").read_text() for artifact in found] == keys
    with pytest.raises(StoreError, match="there is no artifact 0{38}ff"):
        remote.open_all([*keys, "ff".rjust(40, "0")])
    assert remote.open_all([]) == []
