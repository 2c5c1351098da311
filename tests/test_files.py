"""Single files: whole or not at all, alike on a disk, in memory and in a bucket; and whether others see the same place."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from patience import PATIENCE_S

from sweep.store.files import FileTree, StoreError, remove_probe, sees_probe, write_probe


@pytest.fixture(params=["local", "memory", "bucket"])
def url(request, tmp_path) -> str:
    if request.param == "bucket":
        return f"{request.getfixturevalue('bucket')}/labels"
    return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out"


def test_files_are_written_read_listed_and_removed(url):
    tree = FileTree(url, "--out")
    tree.check_writable()
    assert tree.read("settings.json") is None and not tree.exists("settings.json") and tree.names("data") == []
    tree.write("settings.json", b"1")
    tree.write("settings.json", b"22")
    for name in ("b", "a", "sub/c"):
        tree.write(f"data/{name}", b"x")
    other = pickle.loads(pickle.dumps(tree))
    assert (other.url, other.option, other.is_local) == (tree.url, "--out", tree.is_local)
    assert other.read("settings.json") == b"22" and other.exists("settings.json")
    assert other.names("data") == ["a", "b"] and other.names("data/sub") == ["c"]
    with other.open("settings.json") as stream:
        assert stream.read() == b"22"
    other.remove("settings.json")
    other.remove("settings.json")
    assert not tree.exists("settings.json") and tree.read("settings.json") is None


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    tree = FileTree(str(tmp_path))
    tree.write("sub/f", b"before")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="no space is left at --store"):
        tree.write("sub/f", b"after")
    assert tree.read("sub/f") == b"before"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["f"]


def test_what_dead_writers_left_is_removed_and_what_the_living_write_is_not(tmp_path):
    tree = FileTree(str(tmp_path))
    code = """
import os, sys
from sweep.store.files import FileTree
with FileTree(sys.argv[1]).unfinished_file() as path:
    path.write_bytes(b"half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=PATIENCE_S)
    with tree.unfinished_file() as path:
        path.write_bytes(b"half")
        assert len(list(path.parent.iterdir())) == 2
        tree.remove_unfinished()
        assert list(path.parent.iterdir()) == [path]


def test_places_that_cannot_be_used_are_refused_by_the_option_that_named_them_and_without_credentials(tmp_path):
    with pytest.raises(StoreError, match="--out nosuch://host/x cannot be opened .*Protocol not known") as caught:
        FileTree("nosuch://user:secret@host/x?token=abc", "--out")
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out .*/file cannot be written to .*give another --out"):
        FileTree(str(tmp_path / "file"), "--out").check_writable()
    with pytest.raises(StoreError, match="--out .*/file cannot be reached"):
        FileTree(str(tmp_path / "file"), "--out").write("f", b"")


def test_a_bucket_that_does_not_answer_is_an_error_with_the_fix(monkeypatch):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    # Port 9 (discard) of this machine: nothing listens, the connection is refused at once.
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    tree = FileTree("s3://bucket/prefix", "--out")
    for use in (lambda: tree.read("f"), lambda: tree.names("data"), lambda: tree.write("f", b""), lambda: tree.exists("f")):
        with pytest.raises(StoreError, match="--out s3://bucket/prefix cannot be reached .*check address, network") as caught:
            use()
        assert "secret" not in str(caught.value)


def test_a_probe_is_seen_under_the_same_place_and_nowhere_else(url, tmp_path):
    name = write_probe(url)
    assert sees_probe(url, name, timeout_s=0.0)
    assert not sees_probe(f"{url}/elsewhere", name, timeout_s=0.0)
    assert not (tmp_path / "out" / "elsewhere").exists()  # a look creates nothing
    remove_probe(url, name)
    assert not sees_probe(url, name, timeout_s=0.0)


def test_a_probe_in_one_process_memory_is_not_seen_by_another_and_one_on_the_disk_is(tmp_path):
    code = "import sys; from sweep.store.files import sees_probe; sys.exit(not sees_probe(*sys.argv[1:], timeout_s=0.0))"
    for url, is_seen in ((str(tmp_path), True), (f"memory://{uuid.uuid4().hex}/out", False)):
        done = subprocess.run([sys.executable, "-c", code, url, write_probe(url)], timeout=PATIENCE_S)
        assert (done.returncode == 0) is is_seen


def test_a_probe_that_appears_late_as_on_a_network_filesystem_is_waited_for(tmp_path):
    name = write_probe(str(tmp_path / "there"))
    mover = subprocess.Popen(["sh", "-c", f"sleep 0.5; mv {tmp_path / 'there'} {tmp_path / 'here'}"])
    began = time.monotonic()
    assert sees_probe(str(tmp_path / "here"), name, timeout_s=20.0)
    assert time.monotonic() - began < 10
    mover.wait()


def test_a_url_of_the_local_disk_is_local(tmp_path):
    tree = FileTree(f"file://{tmp_path}/out/")
    tree.write("f", b"1")
    assert tree.is_local and Path(tmp_path / "out" / "f").read_bytes() == b"1"
