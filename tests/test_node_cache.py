"""The node's cache: one download a node, verified copies, the least recently used go first and nothing in use."""

from __future__ import annotations

import fcntl
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from hashlib import sha256
from pathlib import Path

import pytest
from patience import PATIENCE_S
from small_artifact import KEY, put

from sweep.store.artifacts import Store, StoreError
from sweep.store.node_cache import RECENT_S, ChecksumError, NodeCache

SPAWN = multiprocessing.get_context("spawn")


class Holder:
    pass


def fetch(cache: NodeCache, content: bytes, holder: object, name: str = "f") -> Path:
    return cache.copy(name, len(content), sha256(content).hexdigest(), lambda path: path.write_bytes(content) and None, holder)


def _read(url: str, cache: str, barrier, results) -> None:
    store = Store(url, cache)
    barrier.wait(60)
    results.put(store.open(KEY).path("big").stat().st_size)


def test_of_processes_of_a_node_one_downloads(bucket, tmp_path, caplog):
    def compute(directory: Path) -> None:
        (directory / "big").write_bytes(os.urandom(3_000_000))

    Store(bucket, str(tmp_path / "publisher")).get_or_compute(KEY, stage="s", params={}, inputs=[], compute=compute)
    num_processes = 4
    barrier, results = SPAWN.Barrier(num_processes), SPAWN.Queue()
    arguments = (bucket, str(tmp_path / "node"), barrier, results)
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        processes = [SPAWN.Process(target=_read, args=arguments) for _ in range(num_processes)]
        for process in processes:
            process.start()
        assert [results.get(timeout=PATIENCE_S) for _ in processes] == [3_000_000] * num_processes
        for process in processes:
            process.join()
    assert len([record for record in caplog.records if "GET" in record.getMessage() and "/big " in record.getMessage()]) == 1


def _download_and_stall(directory: str, marker: str) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"hal")
        Path(marker).touch()
        time.sleep(600)

    NodeCache(Path(directory)).copy("f", 4, sha256(b"half").hexdigest(), download, Holder())


def test_a_download_whose_process_is_killed_is_taken_over_by_one_that_waits(tmp_path):
    process = SPAWN.Process(target=_download_and_stall, args=(str(tmp_path / "node"), str(tmp_path / "marker")))
    process.start()
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "marker").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(fetch(NodeCache(tmp_path / "node"), b"half", Holder())))
    waiting.start()
    time.sleep(0.3)
    assert not found  # it waits for the one that downloads
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    waiting.join(20)
    assert found[0].read_bytes() == b"half"
    assert [path.name for path in (tmp_path / "node" / "files").rglob("*") if path.is_file()] == ["f"]


def test_a_download_with_another_checksum_is_no_copy(tmp_path):
    with pytest.raises(ChecksumError):
        NodeCache(tmp_path).copy("f", 4, sha256(b"good").hexdigest(), lambda path: path.write_bytes(b"evil") and None, Holder())
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, path.stat().st_mtime))


def test_over_the_limit_the_least_recently_used_copies_go_and_those_in_use_stay(tmp_path):
    cache = NodeCache(tmp_path, limit_gb=3e-6)  # three of these files
    holders = [Holder() for _ in range(4)]
    contents = [bytes([number]) * 1000 for number in range(6)]
    paths = [fetch(cache, content, holder, f"sub/{content[0]}") for content, holder in zip(contents[:3], holders, strict=False)]
    for path, age in zip(paths, (4000, 3000, 2000), strict=True):
        _age(path, age)
    assert fetch(cache, contents[0], holders[0], "sub/0") == paths[0]  # used again: now it is the youngest
    holders[1] = Holder()  # nobody holds the second any longer
    gc.collect()
    fetch(cache, contents[3], holders[3])
    assert [path.exists() for path in paths] == [True, False, True]  # the oldest that nobody holds

    fetch(cache, contents[4], Holder())
    assert [path.exists() for path in paths] == [True, False, True]  # all that is left is held or was used just now
    for path in paths[::2]:
        _age(path, RECENT_S + 60)
    holders.clear()
    gc.collect()
    fetch(cache, contents[5], Holder())
    assert [path.exists() for path in paths] == [False, False, False]


def test_without_a_limit_nothing_goes(tmp_path):
    cache = NodeCache(tmp_path)
    old = fetch(cache, b"old", Holder())
    _age(old, 1e6)
    fetch(cache, b"new", Holder())
    assert old.exists()


def test_the_limit_comes_from_the_environment_of_the_node_unless_it_is_given(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/store"
    put(Store(url, str(tmp_path)))
    monkeypatch.setenv("EXPLAINABILITY_SWEEP_CACHE_GB", "1e-9")  # a byte
    path = Store(url, str(tmp_path)).open(KEY).path("sub/data.txt")
    _age(path, RECENT_S + 60)
    other = Store(url, str(tmp_path), cache_gb=1.0).open(KEY).path("facts.json")
    assert path.exists()
    other.unlink()
    Store(url, str(tmp_path)).open(KEY).path("facts.json")
    assert not path.exists()
    assert Store(url, str(tmp_path)).open(KEY).path("sub/data.txt").read_text() == "content"  # and is had again


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused_with_the_fix(tmp_path, monkeypatch, text):
    monkeypatch.setenv("EXPLAINABILITY_SWEEP_CACHE_GB", text)
    with pytest.raises(StoreError, match="EXPLAINABILITY_SWEEP_CACHE_GB is .*give gigabytes"):
        Store(str(tmp_path))


def borrow(cache: NodeCache, content: bytes, downloads: list[bytes]):
    def download(path: Path) -> None:
        path.write_bytes(content)
        downloads.append(content)

    return cache.borrowed("f", len(content), sha256(content).hexdigest(), download, Holder())


def test_a_borrowed_copy_goes_with_its_last_borrower(tmp_path):
    """Two borrowers, as processes are: each opens the lock for itself."""
    one, other, downloads = NodeCache(tmp_path), NodeCache(tmp_path), []
    with borrow(one, b"once", downloads) as path:
        with borrow(other, b"once", downloads) as same:
            assert same == path and path.read_bytes() == b"once"
        assert path.exists()
    assert not path.exists() and downloads == [b"once"]
    with pytest.raises(RuntimeError, match="of the borrower"), borrow(one, b"once", downloads):
        raise RuntimeError("of the borrower")
    assert not path.exists() and downloads == [b"once", b"once"]


def test_what_is_kept_anyway_is_borrowed_and_stays(tmp_path):
    cache, downloads, holder = NodeCache(tmp_path), [], Holder()
    kept = fetch(cache, b"kept", holder)
    with borrow(cache, b"kept", downloads) as path:
        assert path == kept
    assert kept.exists() and not downloads


def test_a_copy_whose_borrower_was_killed_makes_room_when_it_is_old(tmp_path):
    cache, downloads = NodeCache(tmp_path, limit_gb=15e-9), []
    left = tmp_path / "borrowed" / sha256(b"left behind").hexdigest() / "f"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"left behind")
    with borrow(cache, b"left behind", downloads) as path:
        assert path == left and not downloads
        old = time.time() - RECENT_S - 1
        os.utime(left, (old, old))
        fetch(cache, b"another", Holder())
        assert left.exists()  # somebody has it
    left.write_bytes(b"left behind")
    os.utime(left, (old, old))
    fetch(cache, b"a third", Holder())
    assert not left.exists()


@pytest.mark.parametrize("folder", ["files", "borrowed"])
def test_a_download_that_was_killed_counts_and_makes_room_at_once_unless_it_goes_on(tmp_path, folder):
    cache, holder = NodeCache(tmp_path, limit_gb=15e-9), Holder()
    left = tmp_path / folder / f"{sha256(b'never whole').hexdigest()}.unfinished"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"never who")
    with cache._locked(left.stem if folder == "files" else f"{left.stem}.borrowed", fcntl.LOCK_EX):
        fetch(cache, b"another", holder)
        assert left.exists()  # somebody downloads it
    fetch(cache, b"a third", holder)
    assert not left.exists()
