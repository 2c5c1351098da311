"""`python -m sweep.run label` in this process: what it refuses, writes and writes again. Through Ray, with kills: test_label_kills.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from image_sets import damage, write_drawn
from in_process import EnginesHere, engines_here, no_engines
from labelling import DAMAGED, NUM_PICTURES, all_labels, arguments, graph_of, label, maps

from core.shapley.coalition_pool import CoalitionPool
from core.shapley.shap_library import SHAP
from sweep import run as command_line
from sweep.stages.label_files import read_labels, read_provenance
from sweep.store.artifacts import Store
from sweep.store.files import FileTree

QUICK = ["--budget", "104", "--max-corrupt-share", "0.1"]
FEW = [*QUICK, "--max-pictures", "24", "--shard-size", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Traffic signs in two splits; one picture is damaged."""
    directory = write_drawn(tmp_path_factory.mktemp("signs") / "signs", "traffic_signs", train=NUM_PICTURES, test=40)
    damage(directory / "train.parquet", DAMAGED)
    return directory


@pytest.fixture
def here(monkeypatch) -> EnginesHere:
    return engines_here(monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "50"], "at least 96"),
        (["--budget", "128", "--estimator", "permutation"], "at least 192"),
        (["--budget", "161"], "even"),
        (["--l1-reg", "ridge"], "num_features"),
        (["--estimator", "permutation", "--budget", "200", "--l1-reg", "aic"], "l1_reg"),
        (["--adaptive", "0"], "positive"),
        (["--adaptive", "0.5", "--estimator", "shap"], "stopping early needs error bars"),
        (["--pool-size", "0"], "at least one coalition matrix"),
        (["--batch-size", "many"], "auto or a number"),
        (["--batch-size", "0"], "at least 1"),
        (["--shard-size", "0"], "at least 1"),
        (["--max-pictures", "0"], "at least 1"),
        (["--split", "validation"], "has no split 'validation'"),
        (["--model", "ViT-B-23:openai"], "unknown base model"),
        (["--model", "store/artifacts/ab/abcd"], "no artifact"),
        (["--base", "miniature"], "--base goes with"),
        (["--model", "store/artifacts/ab/abcd", "--templates", "a {}"], "--templates goes with"),
        (["--data", "/does/not/exist"], "cannot read"),
        (["--out", "nosuchprotocol://bucket"], "--out"),
        (["--store", "nosuchprotocol://bucket"], "--store"),
        (["--utilisation", "2", "--dry-run"], "utilisation"),
        (["--price-per-hour", "nan"], "price_per_hour must be a finite number, 0 or more, not nan"),
        (["--price-per-hour", "-1"], "price_per_hour must be a finite number, 0 or more, not -1"),
        (["--workers", "0", "--dry-run"], "--workers must be at least 1"),
        (["--max-corrupt-share", "1"], "max_corrupt_share"),
        (["--estimator", "calibrated", "--calibration-budget", "40"], "at least 102"),
        (["--estimator", "calibrated", "--calibration-pictures", "20"], "at least 65 pictures"),
        (["--estimator", "calibrated", "--max-pictures", "60"], "signs/train: the calibrated estimator learns from at least 65 pictures"),
        (["--estimator", "surrogate"], f"at least 480 pictures where each has 49 players, here are {NUM_PICTURES}"),
    ],
)
def test_bad_options_are_refused_with_the_fix(options, message, data, tmp_path, capsys, monkeypatch):
    no_engines(monkeypatch)
    assert command_line.main(arguments(data, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "labels.json").exists() and not (tmp_path / "out" / "data").exists()


def test_a_bad_price_is_refused_before_anything_is_labelled(data, tmp_path, capsys, monkeypatch):
    no_engines(monkeypatch)
    assert command_line.main(arguments(data, tmp_path / "out", "--utilisation", "2")) == 2
    assert "utilisation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_whose_error_bars_cannot_be_trusted_is_warned_of(data, tmp_path, caplog):
    graph_of(data, tmp_path / "out", "--budget", "128")
    assert "error bars too small" in caplog.text and "196" in caplog.text
    caplog.clear()
    graph_of(data, tmp_path / "out", "--estimator", "calibrated", "--calibration-budget", "128")
    assert "error bars too small" in caplog.text and "--calibration-budget" in caplog.text
    caplog.clear()
    graph_of(data, tmp_path / "out", "--budget", "200")
    graph_of(data, tmp_path / "out", "--budget", "64", "--estimator", "calibrated")
    assert not caplog.text


def test_a_dry_run_projects_the_cost_and_writes_nothing(data, tmp_path, capsys, monkeypatch):
    no_engines(monkeypatch)
    assert command_line.main(arguments(data, tmp_path / "out", "--dry-run", "--gpu", "A100", "--price-per-hour", "2")) == 0
    text = capsys.readouterr().out
    assert "120 pictures" in text and f"{120 * 322:,} evaluations" in text and "A100" in text and "GPU-hours" in text and "price" in text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_evaluations_that_an_estimator_makes_of_its_budget(data, tmp_path, capsys):
    asked = arguments(data, tmp_path / "out", "--dry-run", "--estimator", "permutation", "--budget", "200")
    assert command_line.main(asked) == 0
    text = capsys.readouterr().out
    assert "192 of 200 evaluations" in text and f"{120 * 194:,} evaluations" in text


def test_a_dry_run_looks_at_the_place_of_the_labels(data, tmp_path, here, capsys):
    label(data, tmp_path / "out", *FEW)
    written = sorted(tmp_path.rglob("*"))
    assert command_line.main(arguments(data, tmp_path / "out", *FEW, "--dry-run")) == 0
    assert command_line.main(arguments(data, tmp_path / "out", *FEW, "--seed", "1", "--dry-run")) == 2
    assert "holds labels of other data, another model or other settings" in capsys.readouterr().err
    assert command_line.main(arguments(data, tmp_path / "out" / "labels.json" / "below", *FEW, "--dry-run")) == 2
    assert "is no directory that can be written to" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == written


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"key": "k"}', b'{"key": "k", "shards": null}'])
def test_settings_that_are_damaged_are_refused_and_the_fix_of_the_message_labels_nothing_again(content, data, tmp_path, here, capsys):
    out = tmp_path / "out"
    label(data, out, *FEW)
    whole = {path: path.read_bytes() for path in (out / "data").iterdir()} | {out / "labels.json": (out / "labels.json").read_bytes()}
    (out / "labels.json").write_bytes(content)
    here.works.clear()
    for more in ([], ["--dry-run"]):
        assert command_line.main(arguments(data, out, *FEW, *more)) == 2
        assert "holds a damaged labels.json" in (message := capsys.readouterr().err) and "remove it and data/ beside it" in message
    for path in whole:
        path.unlink()
    label(data, out, *FEW)
    assert here.works == [] and {path: path.read_bytes() for path in whole} == whole


def test_files_that_are_lost_are_written_again_without_labelling(data, tmp_path, here, capsys):
    out, store = tmp_path / "out", tmp_path / "store"
    label(data, out, *FEW, "--store", str(store))
    assert not (out / "store").exists() and {work.kind for work in here.works} == {"base", "head", "label"}
    written = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(written) == 2 + 3
    (out / "data" / "labels-00001-of-00003.parquet").unlink()
    (out / "README.md").unlink()
    here.works.clear()
    label(data, out, *FEW, "--store", str(store))
    assert here.works == []
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == written
    (out / "README.md").unlink()  # a run that was killed before the card
    label(data, out, *FEW, "--store", str(store))
    assert (out / "README.md").read_bytes() == written[Path("README.md")] and here.works == []
    label(data, tmp_path / "copy", *FEW, "--store", str(store))
    assert here.works == [] and (tmp_path / "copy" / "data" / "labels-00002-of-00003.parquet").exists()
    capsys.readouterr()


def test_an_artifact_that_is_lost_is_labelled_again_alone(data, tmp_path, here):
    out = tmp_path / "out"
    label(data, out, *FEW)
    before = maps(all_labels(out))
    name = "labels-00001-of-00003.parquet"
    key = read_provenance(out / "data" / name)["key"]
    (artifact,) = (out / "store" / "artifacts").glob(f"*/{key}")
    (artifact / "manifest.json").unlink()
    (out / "data" / name).unlink()
    here.works.clear()
    label(data, out, *FEW)
    assert [work.key for work in here.works] == [key]
    np.testing.assert_array_equal(maps(all_labels(out)), before)


def test_labels_of_two_splits_share_no_coalitions(data, tmp_path, here, monkeypatch):
    """With shared coalitions the regression's own error is a common map of train and test, which models would learn and transfer."""
    drawn: dict[str, set[bytes]] = {"train": set(), "test": set()}
    sample = CoalitionPool.sample

    def noted(pool: CoalitionPool, member: int, budget: int | None = None):
        found = sample(pool, member) if budget is None else sample(pool, member, budget)
        drawn[split].add(np.packbits(found.coalitions).tobytes())
        return found

    monkeypatch.setattr(CoalitionPool, "sample", noted)
    for split in ("train", "test"):
        label(data, tmp_path / split, *QUICK, "--split", split, "--max-pictures", "16")
    assert len(drawn["train"]) > 8 and len(drawn["test"]) > 8
    assert not drawn["train"] & drawn["test"]
    roles = [read_provenance(next((tmp_path / split / "data").iterdir()))["role"] for split in ("train", "test")]
    assert roles == ["train", "test"]


def test_labels_of_the_shap_library_say_that_they_have_no_error_bars(data, tmp_path, here):
    label(data, tmp_path / "shap", "--budget", "400", "--estimator", "shap", "--max-pictures", "4")
    found = all_labels(tmp_path / "shap")
    assert len(found) == 4 and np.isnan(np.stack(found["standard_error"])).all()
    np.testing.assert_allclose(maps(found).sum(1), found["value_full"] - found["value_empty"], atol=1e-4)
    card = (tmp_path / "shap" / "README.md").read_text()
    assert SHAP.card in card and "none: this estimate has no error bars" in card
    label(data, tmp_path / "exact", "--budget", "1000", "--max-pictures", "4")
    exact = maps(all_labels(tmp_path / "exact"))
    # Both estimate one quantity, at a relative error of about 0.7 and 0.4: correlations near 0.75, and near 0 for unrelated games.
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(maps(found), exact, strict=True)]) > 0.5


def test_pictures_that_stop_early_are_said_to(data, tmp_path, here):
    label(data, tmp_path / "out", "--budget", "1200", "--adaptive", "0.8", "--max-pictures", "8")
    budgets = all_labels(tmp_path / "out")["budget"]
    assert budgets.min() < 1200
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{budgets.mean():.1f} on average (budget 1200)" in card and "stopped early" in card


def test_labels_go_to_a_bucket_as_well(data, here):
    out = FileTree("memory://labels/out")
    label(data, "memory://labels/out", *FEW)
    assert out.names("data") == [f"labels-{n:05d}-of-00003.parquet" for n in range(3)] and out.exists("README.md")
    with out.fs.open(out.place("data/labels-00001-of-00003.parquet"), "rb") as file:
        ids, labels = read_labels(file)
    assert len(ids) == 8 and labels.attributions.shape == (8, 49)
    assert len(Store("memory://labels/out/store").keys("label")) == 3


def test_a_shard_none_of_whose_pictures_can_be_read_is_an_empty_file(tmp_path, data, here):
    table = pq.read_table(data / "train.parquet").slice(48, 4)
    (tmp_path / "few").mkdir()
    pq.write_table(table, tmp_path / "few" / "train.parquet")
    label(tmp_path / "few", tmp_path / "out", "--shard-size", "1", "--budget", "104", "--max-corrupt-share", "0.3")
    assert [len(pd.read_parquet(p)) for p in sorted((tmp_path / "out" / "data").iterdir())] == [1, 1, 0, 1]
    assert len(all_labels(tmp_path / "out")) == 3


def test_too_many_pictures_that_cannot_be_read_end_the_run_and_finished_shards_stay(tmp_path, data, here, capsys):
    asked = arguments(data, tmp_path / "out", "--budget", "104", "--max-pictures", "80")
    assert command_line.main([*asked, "--max-corrupt-share", "0.001"]) == 2
    message = capsys.readouterr().err
    assert "1 of 80 pictures cannot be read" in message and f"{DAMAGED:06d}.png" in message and "--max-corrupt-share" in message
    assert len(list((tmp_path / "out" / "data").iterdir())) == DAMAGED // 16 + 1 and not (tmp_path / "out" / "README.md").exists()
    here.works.clear()
    assert command_line.main([*asked, "--max-corrupt-share", "0.02"]) == 0
    assert len(here.works) == 5 - (DAMAGED // 16 + 1)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("with_store", [False, True], ids=["labels", "labels and artifacts"])
def test_a_full_disk_stops_the_run_and_leaves_every_finished_file_whole(with_store, small_disk, data, here, tmp_path, capsys):
    out = small_disk / "out"
    elsewhere = [] if with_store else ["--store", str(tmp_path / "store")]
    assert command_line.main(arguments(data, out, *QUICK, *elsewhere)) == 2
    assert "no space is left" in capsys.readouterr().err
    files = sorted((out / "data").glob("*")) if (out / "data").exists() else []
    assert len(files) < 8 and (files or with_store)
    assert sum(len(pd.read_parquet(path)) for path in files) >= 16 * len(files) - 1
    assert not list(out.glob(".unfinished/*")) and not list(out.glob("store/in_progress/*"))
    store = Store(str(out / "store") if with_store else str(tmp_path / "store"))
    for key in store.keys("label"):
        store.verify(key)
    if not with_store:
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        number = len(here.works)
        assert command_line.main(arguments(data, out, *QUICK, *elsewhere)) == 0
        assert len(here.works) - number < 8 and len(all_labels(out)) == NUM_PICTURES - 1
