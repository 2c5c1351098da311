"""A disk that fills up: a message that says so instead of a traceback, and a training that goes on without its checkpoint."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from in_process import SMALL_SWEEP, engines_here
from safetensors.torch import save_file

from sweep import run
from sweep.store.artifacts import Store
from sweep.store.files import is_disk_full

BIG = {"weight": torch.zeros(2**20)}
KEY = "ab" + "1" * 38


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of one MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs `mount` and root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


WRITERS = {
    "safetensors": lambda place: save_file(BIG, place / "weights"),
    "torch, into a stream": lambda place: torch.save(BIG, (place / "weights").open("wb")),
    "plain bytes": lambda place: (place / "weights").write_bytes(b"1" * 2**22),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_from_other_errors_whoever_writes(disk, writer):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each library has a type of its own
        WRITERS[writer](disk)
    assert is_disk_full(caught.value)
    assert not is_disk_full(RuntimeError("unexpected pos 704 vs 598")) and not is_disk_full(FileNotFoundError(2, "no such file"))


def test_a_training_goes_on_without_the_checkpoint_that_no_space_is_left_for(disk, caplog):
    checkpoint = Store(str(disk / "store")).checkpoint(KEY)
    with checkpoint, caplog.at_level(logging.WARNING):
        checkpoint.save({"step": 1, **{name: value[:9].clone() for name, value in BIG.items()}})
        checkpoint.save({"step": 2, **BIG})
    assert "could not be saved" in caplog.text and "no space is left" in caplog.text
    assert checkpoint.load()["step"] == 1


class Unwritable:
    def __reduce__(self):
        raise RuntimeError("no part of a state")


def test_what_is_no_disks_fault_is_for_no_warning(tmp_path):
    with Store(str(tmp_path)).checkpoint(KEY) as checkpoint, pytest.raises(RuntimeError, match="no part of a state"):
        checkpoint.save({"step": Unwritable()})


def test_a_sweep_whose_store_fills_up_says_so_and_keeps_what_is_finished(disk, tmp_path, monkeypatch, capsys):
    """The base's weights are no 1 MB; the pictures or the first model are too many for what is left."""
    monkeypatch.chdir(tmp_path)
    engines_here(monkeypatch)
    store = disk / "store"
    assert run.main(["all_pairs", *SMALL_SWEEP, "--num-trials", "4", "--store", str(store)]) == run.EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "no space is left" in said and "give the same command again" in said and "Traceback" not in said
    kept = Store(str(store))
    for key in kept.keys():  # noqa: SIM118
        kept.verify(key)
