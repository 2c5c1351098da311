"""`python -m sweep.run label` through Ray Data, its processes killed: what was finished stays, and the labels are the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from image_sets import damage, write_drawn
from in_process import compute, no_engines
from labelling import DAMAGED, NUM_PICTURES, all_labels, arguments, graph_of, maps
from patience import PATIENCE_S

from sweep import run as command_line
from sweep.stages.label_files import read_provenance
from sweep.store.artifacts import Store

TOLERANT = ["--max-corrupt-share", "0.02", "--shard-size", "8", "--budget", "104"]
NUM_SHARDS = NUM_PICTURES // 8
GUARD = Path(__file__).parent / "driver_without_models.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = write_drawn(tmp_path_factory.mktemp("signs") / "signs", "traffic_signs", train=NUM_PICTURES)
    damage(directory / "train.parquet", DAMAGED)
    return directory


def start(out: Path, data: Path, num_workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(GUARD), *arguments(data, out, "--workers", str(num_workers), "--threads-per-worker", "1", *TOLERANT)]
    environment = {**os.environ, "PYTHONPATH": str(GUARD.parent.parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def actors_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that label."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def artifacts(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (out / "store" / "artifacts").glob("*/*/manifest.json")}


@dataclass(frozen=True)
class Labelled:
    """A run that was killed after its first shards, and continued while an actor was killed: its directory, what it said, what was there
    when it continued."""

    out: Path
    output: str
    first_files: dict[str, bytes]
    first_artifacts: dict[str, bytes]


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory) -> Labelled:
    out = tmp_path_factory.mktemp("labels") / "out"
    finished = lambda: sorted((out / "data").glob("*.parquet")) if (out / "data").exists() else []  # noqa: E731
    killed = start(out, data, 1)
    wait_for(lambda: len(finished()) >= 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    files, stored = {path.name: path.read_bytes() for path in finished()}, artifacts(out)
    continued = start(out, data, 2)
    wait_for(lambda: actors_of(continued), continued)
    number = len(finished())  # those of the first run, and what it had labelled and not yet exported
    wait_for(lambda: len(finished()) > number, continued)
    actors_of(continued)[0].kill()
    assert len(finished()) < NUM_SHARDS
    output, _ = continued.communicate(timeout=PATIENCE_S)
    assert continued.returncode == 0, output
    return Labelled(out, output, files, stored)


def test_a_killed_run_continues_keeps_what_is_finished_and_survives_the_loss_of_an_actor(labelled):
    out, output, before = labelled.out, labelled.output, labelled.first_files
    assert 2 <= len(before) < NUM_SHARDS
    assert {name: (out / "data" / name).read_bytes() for name in before} == before
    assert sorted(p.name for p in (out / "data").iterdir()) == [f"labels-{i:05d}-of-{NUM_SHARDS:05d}.parquet" for i in range(NUM_SHARDS)]
    assert not (out / ".unfinished").exists() or not list((out / ".unfinished").iterdir())
    assert "pictures/s" in output and "evaluations/s" in output and ("left" in output or "estimating" in output)
    assert "outside the model" in output
    after = artifacts(out)
    assert labelled.first_artifacts and {key: after[key] for key in labelled.first_artifacts} == labelled.first_artifacts
    store = Store(str(out / "store"))
    assert len(store.keys("label")) == NUM_SHARDS
    for key in after:
        store.verify(key)


def test_the_labels_are_those_of_an_undisturbed_run_and_nothing_is_lost_or_doubled(labelled, data, tmp_path):
    graph, store = graph_of(data, tmp_path / "here", *TOLERANT), Store(str(tmp_path / "store"))
    theirs = all_labels(labelled.out)
    assert len(theirs) == NUM_PICTURES - 1 and theirs["id"].is_unique
    for shard in (graph.shards[0], graph.shards[DAMAGED // 8], graph.shards[-1]):
        compute(store, shard)
        ids = graph.pictures.pictures.ids[shard.start : shard.stop]
        same = theirs[theirs["id"].isin(ids)]
        ours = shard.load(store)
        assert len(ours) == len(same) >= 7
        assert same["class_id"].tolist() == [
            int(graph.pictures.pictures.class_ids[n]) for n in range(shard.start, shard.stop) if n != DAMAGED
        ]
        # Which pictures share a batch differs between processes, and with it the order of sums in float32.
        np.testing.assert_allclose(ours.attributions, maps(same), atol=1e-4)


def test_a_picture_that_cannot_be_read_is_named_and_counted(labelled):
    out, output = labelled.out, labelled.output
    assert "1 pictures cannot be read" in output and f"{DAMAGED:06d}.png" in output
    named = [s for path in (out / "data").iterdir() for s in read_provenance(path)["skipped"]]
    assert len(named) == 1 and named[0]["reason"]
    assert f"{DAMAGED:06d}.png" in (out / "README.md").read_text()


def test_files_open_in_pandas_polars_and_datasets(labelled):
    out = labelled.out
    polars = pytest.importorskip("polars", reason="polars is a test dependency")
    datasets = pytest.importorskip("datasets", reason="datasets is a test dependency")
    with_pandas = all_labels(out)
    assert list(with_pandas) == ["id", "class_id", "attributions", "standard_error", "value_empty", "value_full", "budget"]
    attributions = maps(with_pandas)
    assert attributions.shape == (119, 49) and attributions.dtype == np.float32
    total = (with_pandas["value_full"] - with_pandas["value_empty"]).to_numpy()
    np.testing.assert_allclose(attributions.sum(1), total, atol=1e-4)
    assert (with_pandas["budget"] == 104).all() and (np.stack(with_pandas["standard_error"]) > 0).all()
    frame = polars.read_parquet(str(out / "data" / "*.parquet"))
    assert frame["attributions"].dtype == polars.Array(polars.Float32, 49)
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))  # by the card's own description
    assert len(loaded) == 119 and loaded.features["attributions"].length == 49
    np.testing.assert_array_equal(np.array(loaded[7]["attributions"], np.float32), attributions[7])


def test_metadata_and_card_say_what_made_the_labels(labelled):
    out = labelled.out
    provenance = read_provenance(next((out / "data").iterdir()))
    assert {"model_fingerprint", "fill", "value", "estimator", "seed", "grid", "budget", "key", "role"} <= set(provenance)
    assert provenance["grid"] == [7, 7] and provenance["estimator"] == "kernel_shap" and provenance["fill"] == "mean"
    assert provenance["role"] == "train"
    settings = json.loads((out / "labels.json").read_text())
    assert settings["num_pictures"] == NUM_PICTURES and settings["shards"] == NUM_SHARDS and settings["role"] == "train"
    assert settings["model"]["fingerprint"] == provenance["model_fingerprint"]
    assert Store(str(out / "store")).open(provenance["key"]).manifest["stage"] == "label"
    card = (out / "README.md").read_text()
    for text in ("Kernel SHAP", "mean colour", "relative error", "data/*.parquet", provenance["model_fingerprint"][:16]):
        assert text in card


def test_the_same_command_again_labels_nothing_and_other_settings_are_refused(labelled, data, capsys, monkeypatch):
    out = labelled.out
    no_engines(monkeypatch)
    assert command_line.main(arguments(data, out, *TOLERANT)) == 0
    assert "nothing to label" in capsys.readouterr().out
    for other in (["--seed", "1"], ["--fill", "drop"], ["--value", "log_odds"], ["--estimator", "leverage"], ["--max-pictures", "20"]):
        assert command_line.main(arguments(data, out, *TOLERANT, *other)) == 2
        assert "give another directory" in capsys.readouterr().err
