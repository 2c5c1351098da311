"""Checkpoints: in the store, resumed anywhere, saved beside the training, ignored with a warning when damaged."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S

from sweep.store.artifacts import Store, StoreError

KEY = "ab" + "1" * 38


@pytest.fixture(params=["local", "memory", "bucket"])
def url(request, tmp_path) -> str:
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def memory(tmp_path) -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/store", str(tmp_path / "node"))


def train(model: torch.nn.Linear, optimizer: torch.optim.AdamW, num_steps: int) -> None:
    for step in range(num_steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), 0.1 * step)).square().sum().backward()
        optimizer.step()


def fresh() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_another_node_goes_on_where_one_stopped(url, tmp_path):
    checkpoint = Store(url, str(tmp_path / "first node")).checkpoint(KEY)
    assert checkpoint.load() is None
    model, optimizer = fresh()
    train(model, optimizer, 3)
    history = [{"step": 1, "loss": 0.5}]
    with checkpoint:
        checkpoint.save({"step": 1, "model": model.state_dict()})
        checkpoint.close()
        checkpoint.save({"step": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history})
    train(model, optimizer, 3)  # what is saved does not change with the training

    other, its_optimizer = fresh()
    checkpoint = Store(url, str(tmp_path / "other node")).checkpoint(KEY)
    state = checkpoint.load()
    assert state is not None and state["step"] == 3 and state["history"] == history
    assert all(tensor.device.type == "cpu" for tensor in state["model"].values())
    other.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    train(other, its_optimizer, 3)
    assert torch.equal(other.weight, model.weight)  # to the last bit: the same operations on the same numbers

    checkpoint.remove()
    checkpoint.remove()
    assert Store(url, str(tmp_path / "first node")).checkpoint(KEY).load() is None
    assert Store(url, str(tmp_path / "first node")).checkpoint("cd" + "1" * 38).load() is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # nothing half done is left


def _content(store: Store) -> bytes:
    content = store._files.read(f"checkpoints/{KEY}.pt")
    assert content is not None
    return content


@pytest.mark.parametrize("damage", ["cut short", "empty", "a byte", "a pickle", "no mapping", "text"])
def test_a_damaged_checkpoint_is_ignored_with_a_warning(url, tmp_path, caplog, damage):
    store = Store(url, str(tmp_path / "node"))
    with store.checkpoint(KEY) as checkpoint:
        checkpoint.save({"weights": torch.arange(1000.0)} if damage != "no mapping" else {})
    good = _content(store)
    place = good.index(torch.arange(500.0, 502.0).numpy().tobytes()) if damage == "a byte" else 0
    marker = tmp_path / "unpickled"
    content = {
        "cut short": good[: len(good) // 2],
        "empty": b"",
        "a byte": good[:place] + b"\xff" + good[place + 1 :],
        "a pickle": pickle.dumps(Touching(str(marker))),
        "no mapping": _saved([1, 2], tmp_path),
        "text": b"not a checkpoint",
    }[damage]
    store._files.write(f"checkpoints/{KEY}.pt", content)
    with caplog.at_level(logging.WARNING, logger="sweep.store.checkpoints"):
        assert store.checkpoint(KEY).load() is None
    assert f"checkpoints/{KEY}.pt is damaged" in caplog.text and "starts anew" in caplog.text
    assert not marker.exists()


class Touching:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def _saved(value: object, tmp_path: Path) -> bytes:
    torch.save(value, tmp_path / "saved")
    return (tmp_path / "saved").read_bytes()


def test_training_goes_on_during_an_upload_and_a_save_meanwhile_is_skipped(memory, monkeypatch):
    checkpoint = memory.checkpoint(KEY)
    may_upload, uploads = threading.Event(), []
    upload = checkpoint._files.upload

    def slow_upload(path: Path, name: str) -> None:
        uploads.append(name)
        assert may_upload.wait(20)
        upload(path, name)

    monkeypatch.setattr(checkpoint._files, "upload", slow_upload)
    checkpoint.save({"step": 1})  # returns at once
    checkpoint.save({"step": 2})
    assert checkpoint.load() is None and len(uploads) == 1
    may_upload.set()
    checkpoint.close()
    assert checkpoint.load() == {"step": 1}
    may_upload.clear()
    checkpoint.save({"step": 3})
    threading.Timer(0.2, may_upload.set).start()
    checkpoint.remove()  # waits: an upload that ends later would bring the checkpoint back
    assert len(uploads) == 2 and checkpoint.load() is None


def test_only_what_stays_on_a_disk_of_the_node_is_flushed_to_it(url, tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(descriptor) or flush(descriptor))
    store = Store(url, str(tmp_path / "node"))
    with store.checkpoint(KEY) as checkpoint:
        checkpoint.save({"step": 1})
    assert len(flushed) == (1 if store.is_local else 0)
    assert store.checkpoint(KEY).load() == {"step": 1}


def test_a_checkpoint_that_cannot_be_saved_is_a_warning_and_the_one_before_stays(memory, tmp_path, caplog, monkeypatch):
    checkpoint = memory.checkpoint(KEY)
    checkpoint.save({"step": 1})
    checkpoint.close()

    def fail(path: Path, name: str) -> None:
        raise StoreError("no network")

    monkeypatch.setattr(checkpoint._files, "upload", fail)
    with caplog.at_level(logging.WARNING, logger="sweep.store.checkpoints"):
        checkpoint.save({"step": 2})
        checkpoint.close()
    assert "could not be saved" in caplog.text and "no network" in caplog.text
    assert checkpoint.load() == {"step": 1}
    assert [path for path in (tmp_path / "node").rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_reached_is_an_error_not_a_training_from_the_start(memory, monkeypatch):
    checkpoint = memory.checkpoint(KEY)
    checkpoint.save({"step": 1})
    checkpoint.close()

    def fail(*arguments: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(checkpoint._files.fs), "get_file", fail)
    with pytest.raises(StoreError, match="cannot be reached .*no route"):
        checkpoint.load()


def test_the_store_does_not_import_torch():
    code = "import sys, sweep.store.artifacts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
