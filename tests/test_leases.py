"""Leases: held, renewed, given back, taken over from the dead and from nobody else."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from patience import wait_for

from sweep.store import leases
from sweep.store.artifacts import Store
from sweep.store.leases import Leases
from sweep.store.processes import this_process


def test_a_lease_of_another_machine_expires_only_without_renewal(tmp_path):
    lease = Leases(fsspec.filesystem("file"), str(tmp_path))
    foreign = {"token": "t", "process": "elsewhere:1:0.00", "renewed": time.time()}
    (tmp_path / "name").write_text(json.dumps(foreign))
    with lease.claim("name") as is_mine:
        assert not is_mine
    (tmp_path / "name").write_text(json.dumps({**foreign, "renewed": time.time() - leases.EXPIRY_S - 1}))
    with lease.claim("name") as is_mine:
        assert is_mine
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_lease_that_cannot_be_read_holds_until_it_is_old(tmp_path, content):
    lease = Leases(fsspec.filesystem("file"), str(tmp_path))
    (tmp_path / "name").write_text(content)  # its holder is writing it, or lost power while it did
    with lease.claim("name") as is_mine:
        assert not is_mine
    old = time.time() - leases.EXPIRY_S - 1
    os.utime(tmp_path / "name", (old, old))
    with lease.claim("name") as is_mine:
        assert is_mine
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_not_taken_for_the_holder(tmp_path):
    host, pid, started = this_process().rsplit(":", 2)
    for process, is_free in ((f"{host}:{pid}:{started}", False), (f"{host}:{pid}:{float(started) - 60:.2f}", True)):
        (tmp_path / "name").write_text(json.dumps({"token": "t", "process": process, "renewed": time.time()}))
        with Leases(fsspec.filesystem("file"), str(tmp_path)).claim("name") as is_mine:
            assert is_mine is is_free


def test_a_taker_over_that_died_halfway_blocks_nobody(tmp_path):
    old = {"token": "t", "process": "elsewhere:1:0.00", "renewed": time.time() - leases.EXPIRY_S - 1}
    (tmp_path / "name").write_text(json.dumps(old))
    (tmp_path / "name.t").write_text(json.dumps({**old, "token": "u"}))  # the mark of one who was about to remove the lease
    lease = Leases(fsspec.filesystem("file"), str(tmp_path))
    with lease.claim("name") as is_mine:
        assert not is_mine
    with lease.claim("name") as is_mine:
        assert is_mine
    assert list(tmp_path.iterdir()) == []


class Failing(LocalFileSystem):
    """A disk that cannot be read from for a while."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.is_down, self.num_failures = False, 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        if self.is_down:
            self.num_failures += 1
            raise OSError("the network is down")
        return super().cat_file(path, start, end, **options)


def test_a_renewal_that_fails_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL_S", 0.05)
    filesystem = Failing()
    with Leases(filesystem, str(tmp_path)).claim("name") as is_mine:
        assert is_mine
        filesystem.is_down = True
        wait_for(lambda: filesystem.num_failures >= 2)
        content = (tmp_path / "name").read_text()
        filesystem.is_down = False
        wait_for(lambda: (tmp_path / "name").read_text() not in (content, ""))


def test_a_held_lease_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL_S", 0.05)
    lease = Leases(fsspec.filesystem("file"), str(tmp_path))
    with lease.claim("name") as is_mine:
        assert is_mine
        first = (tmp_path / "name").read_text()
        wait_for(lambda: (tmp_path / "name").read_text() not in (first, ""))


def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path):
    """Races show in a share of the rounds only: threads change over as often as they can, and there are many rounds."""
    lease = Leases(fsspec.filesystem("file"), str(tmp_path))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(60):
            dead = {"token": f"dead{number}", "process": "elsewhere:1:0.00", "renewed": 0.0}
            (tmp_path / "name").write_text(json.dumps(dead))
            assert _most_holders_at_once(lease, num_askers=6) == 1
            assert list(tmp_path.iterdir()) == []
    finally:
        sys.setswitchinterval(interval)


def _most_holders_at_once(lease: Leases, num_askers: int) -> int:
    holders, counts, was_held = [], [], threading.Event()

    def ask():
        while not was_held.is_set():
            with lease.claim("name") as is_mine:
                if is_mine:
                    holders.append(None)
                    time.sleep(0.005)
                    counts.append(len(holders))
                    was_held.set()
                    holders.pop()

    threads = [threading.Thread(target=ask) for _ in range(num_askers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(counts)


def test_a_training_of_days_on_another_machine_keeps_its_directory(tmp_path):
    """Nothing is written into it until its end: while its lease is renewed, its age says nothing."""
    store, key = Store(str(tmp_path)), "ab" * 20
    directory = tmp_path / "in_progress" / f"{key}.elsewhere:1:0.00.{'0' * 32}"
    directory.mkdir(parents=True)
    (tmp_path / "leases").mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(directory, (two_days_ago, two_days_ago))
    lease = tmp_path / "leases" / key
    lease.write_text(json.dumps({"token": "t", "process": "elsewhere:1:0.00", "renewed": time.time()}))
    store.check_writable()
    assert directory.is_dir() and store.leftovers() == []
    lease.write_text(json.dumps({"token": "t", "process": "elsewhere:1:0.00", "renewed": two_days_ago}))
    assert store.leftovers() == [str(directory)]
    store.check_writable()
    assert not directory.exists()
