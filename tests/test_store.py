"""Artifacts: keys, whole or absent, checksums, one computation for two askers, takeover from the dead. Local disk, memory and S3."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweep import leases
from sweep.leases import Leases
from sweep.store import Store, StoreError, artifact_key

KEY = artifact_key("stage", 1, {"a": 1}, [])


def put(store: Store, key: str = KEY, text: str = "content", wait: bool = True):
    def compute(directory: Path):
        (directory / "sub").mkdir()
        (directory / "sub" / "data.txt").write_text(text)
        (directory / "facts.json").write_text(json.dumps({"n": 3}))
        return {"count": 3}

    return store.get_or_compute(key, stage="stage", params={"a": 1}, inputs=["b"], compute=compute, wait=wait)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a local stand-in for S3."""
    moto_server = pytest.importorskip("moto.server", reason="moto is a test dependency")
    boto3 = pytest.importorskip("boto3", reason="boto3 is a test dependency")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="sweeps")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # an instance remembers the server of an earlier test
    yield "s3://sweeps/prefix"
    server.stop()


# ---------------------------------------------------------------- keys


def test_keys_are_a_known_function_of_their_parts_and_blind_to_the_order_of_names():
    assert artifact_key("s", 1, {"a": 1, "b": [1, 2]}, []) == artifact_key("s", 1, {"b": (1, 2), "a": 1}, [])
    # Written down once: a change of the spelling would throw away every artifact there is.
    assert artifact_key("finetune", 1, {"alpha": 0.5}, ["x"]) == "732b5575201f279115d579881d49a9b412343557"


def test_every_part_changes_the_key():
    @dataclass
    class Settings:
        budget: int

    base = ("s", 1, {"x": 0.1, "d": Settings(5)}, ("i",))
    keys = {
        artifact_key(*base),
        artifact_key("t", *base[1:]),
        artifact_key("s", 2, *base[2:]),
        artifact_key("s", 1, {"x": 0.1000000001, "d": Settings(5)}, ("i",)),
        artifact_key("s", 1, {"x": 0.1, "d": Settings(6)}, ("i",)),
        artifact_key("s", 1, {"x": 0.1, "d": None}, ("i",)),
        artifact_key(*base[:3], ("j",)),
        artifact_key("s", 1, {"x": 1}, ()),
        artifact_key("s", 1, {"x": 1.0}, ()),
        artifact_key("s", 1, {"x": True}, ()),
    }
    assert len(keys) == 10


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object(), {1: 2}, b"bytes"])
def test_parameters_without_one_spelling_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        artifact_key("s", 1, {"x": value}, [])


# ---------------------------------------------------------------- whole or absent


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
    place = tmp_path / "store" / "artifacts" / KEY[:2] / KEY
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
    with pytest.raises(StoreError, match=r"data\.txt is missing or damaged: delete"):
        store.verify(KEY)
    path.write_text("longer than before")
    with pytest.raises(StoreError, match=r"data\.txt is missing or damaged"):
        store.open(KEY)
    path.unlink()
    with pytest.raises(StoreError, match=r"data\.txt is missing or damaged"):
        store.open(KEY)


def test_stores_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(str(tmp_path / "file")).check_writable()
    with pytest.raises(StoreError, match="nosuch"):
        Store("nosuch://user:secret@host/x")
    with pytest.raises(StoreError) as caught:
        Store("nosuch://user:secret@host/x?token=abc")
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


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
    assert [results.get(timeout=60) for _ in processes] == ["1"] * 4
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
    deadline = time.monotonic() + 60
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


def test_a_lease_of_another_machine_expires_only_without_renewal(tmp_path, monkeypatch):
    import fsspec

    lease = Leases(fsspec.filesystem("file"), str(tmp_path), True)
    foreign = {"token": "t", "process": "elsewhere:1:0.00", "renewed": time.time()}
    (tmp_path / "name").write_text(json.dumps(foreign))
    with lease.claim("name") as is_mine:
        assert not is_mine
    (tmp_path / "name").write_text(json.dumps({**foreign, "renewed": time.time() - leases.EXPIRY_S - 1}))
    with lease.claim("name") as is_mine:
        assert is_mine
    assert list(tmp_path.iterdir()) == []


def test_a_held_lease_is_renewed(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setattr(leases, "RENEWAL_S", 0.05)
    lease = Leases(fsspec.filesystem("file"), str(tmp_path), True)
    with lease.claim("name") as is_mine:
        assert is_mine
        first = json.loads((tmp_path / "name").read_text())["renewed"]
        time.sleep(0.5)
        assert json.loads((tmp_path / "name").read_text())["renewed"] > first


# ---------------------------------------------------------------- other filesystems


def test_a_store_in_memory_behaves_as_one_on_disk(tmp_path):
    store = Store("memory://sweeps/store", str(tmp_path / "cache"))
    store.check_writable()
    assert put(store).path("sub/data.txt").read_text() == "content"
    assert store.keys() == [KEY]
    store.verify(KEY)


def test_a_bucket_holds_whole_verified_artifacts(bucket, tmp_path):
    store = Store(bucket, str(tmp_path / "cache"))
    store.check_writable()
    artifact = put(store)
    assert artifact.path("sub/data.txt").read_text() == "content"
    assert put(store, text="other").path("sub/data.txt").read_text() == "content"
    assert store.keys("stage") == [KEY]
    store.verify(KEY)
    # A manifest comes last: without it there is no artifact, and a file that changed is found out.
    import fsspec

    filesystem = fsspec.filesystem("s3")
    place = f"{bucket.removeprefix('s3://')}/artifacts/{KEY[:2]}/{KEY}"
    filesystem.pipe_file(f"{place}/sub/data.txt", b"CONTENT")
    with pytest.raises(StoreError, match="damaged"):
        Store(bucket, str(tmp_path / "another cache")).open(KEY).path("sub/data.txt")
    filesystem.rm_file(f"{place}/manifest.json")
    filesystem.invalidate_cache()
    assert not store.exists(KEY)


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
