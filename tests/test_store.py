"""Artifacts: keys, whole or absent, checksums, one computation for two askers, takeover from the dead. Local disk, memory and S3."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from sweep.store.artifacts import Artifact, Store, StoreError, artifact_key

KEY = artifact_key("stage", 1, {"a": 1}, [])
PLACE = f"artifacts/{KEY[:2]}/{KEY}"


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
    name = f"sweeps-{uuid.uuid4().hex}"  # moto's buckets outlive its server
    boto3.client("s3").create_bucket(Bucket=name)
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # an instance remembers the server of an earlier test
    yield f"s3://{name}/prefix"
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


def _random_params(rng: random.Random, depth: int = 3):
    if depth and rng.random() < 0.6:
        values = [_random_params(rng, depth - 1) for _ in range(rng.randint(1, 4))]
        return values if rng.random() < 0.4 else {f"n{rng.randrange(1000)}_{i}": v for i, v in enumerate(values)}
    return rng.choice([None, True, rng.randrange(-5, 5), rng.uniform(-1, 1), 10.0 ** rng.randint(-300, 300), rng.choice("aé\U0001f600")])


def _shuffled(rng: random.Random, value):
    """The same parameters, names in another order, sequences as tuples."""
    if isinstance(value, dict):
        return {k: _shuffled(rng, value[k]) for k in rng.sample(list(value), len(value))}
    return tuple(_shuffled(rng, v) for v in value) if isinstance(value, list) else value


def _with_one_leaf_changed(rng: random.Random, value):
    if isinstance(value, dict):
        name = rng.choice(list(value))
        return {**value, name: _with_one_leaf_changed(rng, value[name])}
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [_with_one_leaf_changed(rng, v) if i == place else v for i, v in enumerate(value)]
    return math.nextafter(value, math.inf) if isinstance(value, float) else f"not {value}"


@pytest.mark.parametrize("seed", range(50))
def test_keys_depend_on_every_value_and_on_no_order_of_names(seed):
    rng = random.Random(seed)
    params = {"x": _random_params(rng)}
    key = artifact_key("s", 1, params, [])
    assert artifact_key("s", 1, _shuffled(rng, params), []) == key
    assert artifact_key("s", 1, json.loads(json.dumps(params)), []) == key
    assert artifact_key("s", 1, _with_one_leaf_changed(rng, params), []) != key


def test_zero_has_one_key_whatever_its_sign():
    assert artifact_key("s", 1, {"x": -0.0}, []) == artifact_key("s", 1, {"x": 0.0}, [])


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


# ---------------------------------------------------------------- other filesystems


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


def _compute_twice(store: Store) -> None:
    """A holder that was cut off for long loses its lease to another, then publishes late; trainings are not the same to the bit."""
    first: list[Artifact] = []

    def late(directory: Path):
        (directory / "facts.json").write_text("late")
        filesystem, root = fsspec.core.url_to_fs(store.url)
        filesystem.rm_file(f"{root}/leases/{KEY}")
        first.append(put(store, text="first"))
        return None

    artifact = store.get_or_compute(KEY, stage="late", params={}, inputs=[], compute=late)
    assert first[0].path("sub/data.txt").read_text() == "first"
    assert artifact.manifest == first[0].manifest
    store.verify(KEY)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    filesystem.invalidate_cache()
    assert len(filesystem.find(f"{root}/{PLACE}")) == 3  # two files and the manifest: nothing of the late one


def test_of_two_that_compute_although_only_one_should_the_first_stands(store):
    _compute_twice(store)


def test_of_two_that_compute_a_remote_artifact_the_first_stands(remote):
    _compute_twice(remote)


def test_an_upload_that_was_cut_off_is_no_artifact_and_is_cleared_away(remote):
    filesystem, root = fsspec.core.url_to_fs(remote.url)
    filesystem.pipe_file(f"{root}/{PLACE}/{uuid.uuid4().hex}/facts.json", b"half")
    assert not remote.exists(KEY) and remote.keys() == []
    assert put(remote).read_json("facts.json") == {"n": 3}
    filesystem.invalidate_cache()
    assert len(filesystem.find(f"{root}/{PLACE}")) == 3


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
