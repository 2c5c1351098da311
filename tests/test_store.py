"""Artifacts on a local disk: whole or absent, checksums, one computation for two askers, takeover from the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S
from small_artifact import KEY, PLACE, compute_twice, put

from sweep.store.artifacts import Store, StoreError


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def test_an_artifact_is_computed_once_and_read_back_with_its_manifest(store):
    artifact = put(store)
    assert store.exists(KEY) and store.keys() == [KEY] == store.keys("stage") and store.keys("other") == []
    assert artifact.path("sub/data.txt").read_text() == "content"
    assert artifact.read_json("facts.json") == {"n": 3}
    manifest = store.open(KEY).manifest
    assert (manifest["stage"], manifest["params"], manifest["inputs"], manifest["meta"]) == ("stage", {"a": 1}, ["b"], {"count": 3})
    assert set(manifest["files"]) == {"sub/data.txt", "facts.json"}
    assert put(store, text="other").path("sub/data.txt").read_text() == "content"
    store.verify(KEY)


def test_an_error_while_computing_publishes_nothing_and_frees_the_claim(store):
    def fail(directory: Path):
        (directory / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_compute(KEY, stage="s", params={}, inputs=[], compute=fail)
    assert not store.exists(KEY)
    assert put(store, wait=False) is not None


def test_a_directory_without_a_manifest_is_no_artifact(store, tmp_path):
    place = tmp_path / "store" / PLACE
    place.mkdir(parents=True)
    (place / "facts.json").write_text("half")
    assert not store.exists(KEY)
    with pytest.raises(StoreError, match="run the sweep again"):
        store.open(KEY)
    assert put(store).read_json("facts.json") == {"n": 3}


def test_damaged_artifacts_are_named_with_the_fix(store):
    artifact = put(store)
    path = artifact.path("sub/data.txt")
    path.write_text("CONTENT")  # the same size: only the checksum tells
    store.open(KEY)
    with pytest.raises(StoreError, match=rf"sub/data\.txt of the artifact .*/{KEY} is missing or damaged: delete this directory"):
        store.verify(KEY)
    path.write_text("longer than before")
    with pytest.raises(StoreError, match=r"data\.txt of .* is missing or damaged"):
        store.open(KEY)
    path.unlink()
    with pytest.raises(StoreError, match=r"data\.txt of .* is missing or damaged"):
        store.open(KEY)


def test_stores_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(str(tmp_path / "file")).check_writable()


def test_stores_that_cannot_be_opened_are_refused_with_the_fix_and_without_credentials(monkeypatch):
    for url in ("nosuch://user:secret@host/x?token=abc", "nosuch://user:se/cr@secret@host/x"):
        with pytest.raises(StoreError, match="Protocol not known: nosuch.*give a directory or a URL") as caught:
            Store(url)
        assert "secret" not in str(caught.value) and "abc" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # not installed
    with pytest.raises(StoreError, match="gcsfs"):
        Store("gs://bucket/prefix")


def test_a_damaged_manifest_is_named_and_none_leads_out_of_the_store(store, tmp_path):
    put(store)
    path = tmp_path / "store" / PLACE / "manifest.json"
    manifest = json.loads(path.read_text())
    outside = {**manifest, "files": {"../../../../outside": manifest["files"]["facts.json"]}}
    for content in ("", "{", "[]", "{}", json.dumps(outside)):
        path.write_text(content)
        with pytest.raises(StoreError, match=rf"manifest\.json of the artifact .*/{KEY} is missing or damaged: delete this directory"):
            store.open(KEY)


def test_a_computation_cannot_write_the_manifest(store):
    with pytest.raises(AssertionError, match=r"manifest\.json"):
        store.get_or_compute(KEY, stage="s", params={}, inputs=[], compute=lambda d: (d / "manifest.json").write_text("{}") and None)
    assert not store.exists(KEY)


def test_names_that_leave_the_artifact_are_refused(store):
    artifact = put(store)
    for name in ("../other", "/etc/passwd", "absent"):
        with pytest.raises(StoreError):
            artifact.path(name)


def test_a_store_can_be_sent_to_other_processes(store):
    put(store)
    assert pickle.loads(pickle.dumps(store)).open(KEY).read_json("facts.json") == {"n": 3}


# ---------------------------------------------------------------- one computation for two askers


def _count_computations(url: str, counter: str, results: multiprocessing.Queue) -> None:
    def compute(directory: Path):
        with open(counter, "a") as stream:
            stream.write("x")
        time.sleep(0.5)
        (directory / "f").write_text("1")
        return None

    artifact = Store(url).get_or_compute(KEY, stage="s", params={}, inputs=[], compute=compute)
    results.put(artifact.path("f").read_text())


def _hold(url: str, marker: str) -> None:
    def compute(directory: Path):
        Path(marker).touch()
        time.sleep(600)
        return None

    Store(url).get_or_compute(KEY, stage="s", params={}, inputs=[], compute=compute)


def test_of_processes_that_ask_at_once_one_computes(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (str(tmp_path / "store"), str(tmp_path / "counter"), results)
    processes = [context.Process(target=_count_computations, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=PATIENCE_S) for _ in processes] == ["1"] * 4
    for process in processes:
        process.join()
    assert (tmp_path / "counter").read_text() == "x"


def test_of_threads_that_ask_at_once_one_computes(store):
    computed = []

    def compute(directory: Path):
        computed.append(1)
        time.sleep(0.2)
        return None

    def ask():
        store.get_or_compute(KEY, stage="s", params={}, inputs=[], compute=compute)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1]


def test_the_claim_of_a_killed_process_is_taken_over_at_once_and_its_leftovers_go(tmp_path):
    url, marker = str(tmp_path / "store"), tmp_path / "computing"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(url, str(marker)))
    process.start()
    deadline = time.monotonic() + PATIENCE_S
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store = Store(url)
    assert put(store, wait=False) is None  # held by a living process
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    began = time.monotonic()
    assert put(store) is not None
    assert time.monotonic() - began < 10
    assert len(list((tmp_path / "store" / "in_progress").iterdir())) == 1
    store.check_writable()
    assert list((tmp_path / "store" / "in_progress").iterdir()) == []
    assert list((tmp_path / "store" / "leases").iterdir()) == []


def test_of_two_that_compute_although_only_one_should_the_first_stands(store):
    compute_twice(store)


def test_of_many_artifacts_those_that_exist_are_told(store):
    keys = [f"{number:02x}" + "a" * 38 for number in range(20)]
    for key in keys[:3]:
        put(store, key)
    assert store.existing(keys) == set(keys[:3]) and store.existing([]) == set()
    assert store.is_local


def test_what_another_publishes_while_a_directory_without_a_manifest_is_cleared_away_stands(store, tmp_path, monkeypatch):
    place = tmp_path / "store" / PLACE
    rename, done = os.rename, []

    def late_rename(source, target):
        if Path(target) == place and not done:
            done.append("left")
            place.mkdir(parents=True)  # of an artifact whose manifest somebody deleted
            (place / "facts.json").write_text("old")
        elif Path(source) == place:  # the other one publishes between the look at the directory and its move
            (place / "manifest.json").write_text(json.dumps({"not": "looked at"}))
        rename(source, target)

    monkeypatch.setattr(os, "rename", late_rename)
    with pytest.raises(StoreError, match=r"manifest\.json"):  # what stands is the other's
        put(store)
    assert json.loads((place / "manifest.json").read_text()) == {"not": "looked at"}
    assert (place / "facts.json").read_text() == "old"
