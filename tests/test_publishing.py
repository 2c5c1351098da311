"""Publishing in a bucket: whatever the order of writes, the manifest that stands names a directory that is there."""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small_artifact import KEY, PLACE, put

from sweep.store import processes
from sweep.store.artifacts import Store
from sweep.store.files import FileTree
from sweep.store.manifest import as_bytes, parse_manifest, sha256_of
from sweep.store.publishing import publish_by_upload

MANIFEST = f"{PLACE}/manifest.json"


class WithoutConditions(MemoryFileSystem):
    """A filesystem without exclusive creation, on which a test decides in which order two threads write and read the manifest."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict = {}
        self.pseudo_dirs = [""]
        self.before_write = lambda: None
        self.after_read = lambda: None

    def pipe_file(self, path, value, mode="overwrite", **options):
        if mode == "create":
            raise NotImplementedError
        if path.endswith("manifest.json"):
            self.before_write()
        super().pipe_file(path, value, **options)

    def cat_file(self, path, **options):
        content = super().cat_file(path, **options)
        if path.endswith("manifest.json"):
            self.after_read()
        return content


@pytest.fixture
def files() -> FileTree:
    tree = FileTree(f"memory://{uuid.uuid4().hex}/store")
    tree.fs = WithoutConditions()
    return tree


def publish(files: FileTree, directory: Path, text: str) -> None:
    directory.mkdir()
    (directory / "f").write_text(text)
    facts = {"size": len(text), "sha256": sha256_of(directory / "f")}
    manifest = {"key": KEY, "stage": "s", "params": {}, "inputs": [], "files": {"f": facts}, "meta": {}}
    publish_by_upload(files, directory, PLACE, {**manifest, "started": 0.0, "seconds": 0.0, "created": 0.0, "host": "h"})


def standing(files: FileTree) -> str:
    """The content of the file that the manifest names."""
    content = files.read(MANIFEST)
    assert content is not None
    found = files.read(f"{PLACE}/{parse_manifest(content, KEY)['directory']}/f")
    assert found is not None, "the manifest names a directory that is not there"
    return found.decode()


def directories(files: FileTree) -> int:
    return len([path for path in files.fs.find(files.place(PLACE)) if not path.endswith("manifest.json")])


def test_a_publisher_that_read_its_own_manifest_leaves_the_upload_of_one_that_writes_after_it(files, tmp_path):
    """Both find no manifest; A writes and reads its own; then B writes; then A goes on with what it read."""
    looked, b_may_write = threading.Event(), threading.Event()
    b = threading.Thread(target=publish, args=(files, tmp_path / "b", "b"))

    def before_write() -> None:
        if threading.current_thread() is b:
            looked.set()  # B has found no manifest
            assert b_may_write.wait(20)

    def after_read() -> None:
        if threading.current_thread() is not b and not b_may_write.is_set():
            b_may_write.set()
            b.join(20)

    files.fs.before_write, files.fs.after_read = before_write, after_read
    b.start()
    assert looked.wait(20)
    publish(files, tmp_path / "a", "a")
    assert not b.is_alive()
    assert standing(files) == "b"


def test_a_publisher_whose_manifest_was_replaced_removes_its_own_upload_alone(files, tmp_path):
    """Both find no manifest; A writes; B writes; then A reads B's."""
    nested: list[str] = []

    def before_write() -> None:
        if not nested:  # A is about to write: B publishes its whole, and A's write comes first of the two only in time of looking
            nested.append("b")
            publish(files, tmp_path / "b", "b")

    files.fs.before_write = before_write
    publish(files, tmp_path / "a", "a")  # A's manifest replaces B's: B's upload stays until nobody can be reading it
    assert standing(files) == "a" and directories(files) == 2

    files.fs.before_write = lambda: None
    publish(files, tmp_path / "c", "c")  # finds A's manifest
    assert standing(files) == "a" and directories(files) == 2


def test_an_upload_that_was_cleared_away_meanwhile_is_not_named(files, tmp_path):
    upload = files.upload

    def upload_and_lose(path: Path, name: str) -> None:
        upload(path, name)
        files.fs.rm_file(files.place(name))

    files.upload = upload_and_lose
    with pytest.raises(ValueError, match="is not there whole: run the sweep again"):
        publish(files, tmp_path / "a", "a")
    assert files.read(MANIFEST) is None


@pytest.fixture(params=["memory", "bucket"])
def remote(request, tmp_path) -> Store:
    url = request.getfixturevalue("bucket") if request.param == "bucket" else f"memory://{uuid.uuid4().hex}/store"
    return Store(url, str(tmp_path / "cache"))


def test_what_dead_publishers_left_is_removed_once_it_is_old_and_what_manifests_name_stays(remote, monkeypatch):
    put(remote)
    other = "ab" + "1" * 38
    filesystem, root = fsspec.core.url_to_fs(remote.url)
    left = [f"{root}/{PLACE}/{uuid.uuid4().hex}/sub/data.txt", f"{root}/artifacts/ab/{other}/{uuid.uuid4().hex}/f"]
    for path in left:
        filesystem.pipe_file(path, b"half")
    remote.check_writable()
    filesystem.invalidate_cache()
    assert all(filesystem.exists(path) for path in left)  # its publisher may be at work
    monkeypatch.setattr(processes, "LEFT_BEHIND_S", -2.0)  # everything is old; S3 tells times in seconds
    remote.check_writable()
    filesystem.invalidate_cache()
    assert not any(filesystem.exists(path) for path in left)
    remote.verify(KEY)


def test_a_damaged_manifest_costs_nothing_that_could_be_saved_from_it(remote, monkeypatch):
    put(remote)
    filesystem, root = fsspec.core.url_to_fs(remote.url)
    filesystem.pipe_file(f"{root}/{MANIFEST}", as_bytes({"key": KEY}))
    filesystem.pipe_file(f"{root}/{PLACE}/{uuid.uuid4().hex}/f", b"half")
    monkeypatch.setattr(processes, "LEFT_BEHIND_S", -2.0)
    remote.check_writable()
    filesystem.invalidate_cache()
    assert len(filesystem.find(f"{root}/{PLACE}")) == 4


def test_what_a_process_of_another_machine_was_filling_goes_after_a_day(tmp_path):
    in_progress = tmp_path / "in_progress"
    for age_s, name in ((0.0, "young"), (processes.LEFT_BEHIND_S + 60, "old")):
        path = in_progress / f"{name}.elsewhere.internal:1:0.00.{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        then = time.time() - age_s
        os.utime(path, (then, then))
    Store(str(tmp_path)).check_writable()
    assert [path.name.partition(".")[0] for path in in_progress.iterdir()] == ["young"]
