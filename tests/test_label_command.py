"""`python -m sweep.run label`: through Ray Data with processes killed; in this process for the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from core import miniature
from core.data.domains import write_parquet_split
from core.shapley.calibration import CalibrationReport
from core.shapley.surrogate import LEAST_PICTURES
from sweep import run as command_line
from sweep.commands import label_card
from sweep.commands.label import make_job
from sweep.commands.label_directory import LabelDirectory
from sweep.commands.label_options import _request
from sweep.experiment.config import ConfigError
from sweep.stages.calibration_job import CalibrationJob
from sweep.stages.dataset_labels import DatasetLabels
from sweep.stages.label_files import read_labels, read_provenance
from sweep.stages.surrogate_job import SurrogateJob
from sweep.store.artifacts import Store

NUM_PICTURES = 120


def write_signs(directory: Path, number: int) -> Path:
    """Traffic signs, one of which is damaged."""
    directory.mkdir()
    pixels, class_ids = miniature.draw_split("traffic_signs", "train", number, 0)
    path = directory / "train.parquet"
    write_parquet_split(path, pixels, class_ids, miniature.domain_spec("traffic_signs").class_names)
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[50]["bytes"] = images[50]["bytes"][:80]
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(images, table.schema.field(0).type)), path, row_group_size=32)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_signs(tmp_path_factory.mktemp("signs") / "signs", NUM_PICTURES)


def arguments(data: Path, out: Path | str, *more: str) -> list[str]:
    required = ["label", "--data", str(data), "--model", "miniature", "--out", str(out)]
    return [*required, "--budget", "320", "--shard-size", "16", "--batch-size", "64", "--precision", "float32", *more]


def job_of(data: Path, out: Path | str, *more: str) -> DatasetLabels:
    options = command_line._parser().parse_args(arguments(data, out, *more))
    return make_job(_request(options))[0]


def label_here(job: DatasetLabels) -> None:
    """What the actors do, in this process."""
    torch.set_num_threads(1)
    for shard in job.missing():
        job.label(shard)


def all_labels(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((out / "data").glob("*.parquet"))], ignore_index=True)


def start(out: Path, data: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sweep.run", *arguments(data, out, "--workers", "2", "--max-corrupt-share", "0.02")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory) -> tuple[Path, str, dict[str, bytes]]:
    """Labels of a run that was killed after the first shards and continued, with an actor killed: directory, output, first files."""
    out = tmp_path_factory.mktemp("labels") / "out"
    finished = lambda: sorted((out / "data").glob("*.parquet")) if (out / "data").exists() else []  # noqa: E731
    killed = start(out, data)
    wait_for(lambda: len(finished()) >= 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    before = {path.name: path.read_bytes() for path in finished()}
    continued = start(out, data)
    wait_for(lambda: len(finished()) > len(before), continued)
    actors = [p for p in psutil.Process(continued.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())]
    assert actors, [p.cmdline()[:3] for p in psutil.Process(continued.pid).children(recursive=True)]
    actors[0].kill()
    output, _ = continued.communicate(timeout=300)
    assert continued.returncode == 0, output
    return out, output, before


def test_a_killed_run_continues_keeps_what_is_finished_and_survives_the_loss_of_an_actor(labelled):
    out, output, before = labelled
    assert 2 <= len(before) < 8
    assert {name: (out / "data" / name).read_bytes() for name in before} == before
    assert sorted(p.name for p in (out / "data").iterdir()) == [f"labels-{i:05d}-of-00008.parquet" for i in range(8)]
    assert not (out / ".unfinished").exists()
    assert "pictures/s" in output and "evaluations/s" in output and ("left" in output or "estimating" in output)
    assert "outside the model" in output


def test_the_labels_are_those_of_an_undisturbed_run_and_nothing_is_lost_or_doubled(labelled, data, tmp_path):
    job = job_of(data, tmp_path / "here", "--max-corrupt-share", "0.02")
    torch.set_num_threads(1)
    for shard in job.shards()[::3]:
        job.label(shard)
    ours, theirs = all_labels(tmp_path / "here"), all_labels(labelled[0])
    assert len(theirs) == NUM_PICTURES - 1 and theirs["id"].is_unique
    same = theirs.set_index("id").loc[ours["id"]]
    assert len(ours) >= 40 and (same["class_id"].to_numpy() == ours["class_id"].to_numpy()).all()
    np.testing.assert_allclose(np.stack(ours["attributions"]), np.stack(same["attributions"]), atol=1e-4)


def test_a_picture_that_cannot_be_read_is_named_and_counted(labelled):
    out, output, _ = labelled
    assert "1 pictures cannot be read" in output and "000050.png" in output
    named = [s for path in (out / "data").iterdir() for s in read_provenance(path)["skipped"]]
    assert len(named) == 1 and named[0]["reason"]
    assert "000050.png" in (out / "README.md").read_text()


def test_files_open_in_pandas_polars_and_datasets(labelled):
    out, _, _ = labelled
    polars = pytest.importorskip("polars", reason="polars is a test dependency")
    datasets = pytest.importorskip("datasets", reason="datasets is a test dependency")
    with_pandas = all_labels(out)
    assert list(with_pandas) == ["id", "class_id", "attributions", "standard_error", "value_empty", "value_full", "budget"]
    attributions = np.stack(with_pandas["attributions"])
    assert attributions.shape == (119, 49) and attributions.dtype == np.float32
    total = (with_pandas["value_full"] - with_pandas["value_empty"]).to_numpy()
    np.testing.assert_allclose(attributions.sum(1), total, atol=1e-4)
    assert (with_pandas["budget"] == 320).all() and (np.stack(with_pandas["standard_error"]) > 0).all()
    frame = polars.read_parquet(str(out / "data" / "*.parquet"))
    assert frame["attributions"].dtype == polars.Array(polars.Float32, 49)
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))  # by the card's own description
    assert len(loaded) == 119 and loaded.features["attributions"].length == 49
    np.testing.assert_array_equal(np.array(loaded[7]["attributions"], np.float32), attributions[7])


def test_metadata_and_card_say_what_made_the_labels(labelled):
    out, _, _ = labelled
    provenance = read_provenance(next((out / "data").iterdir()))
    assert {"model_fingerprint", "fill", "value", "estimator", "seed", "grid", "budget", "key"} <= set(provenance)
    assert provenance["grid"] == [7, 7] and provenance["estimator"] == "kernel_shap" and provenance["fill"] == "mean"
    settings = json.loads((out / "labels.json").read_text())
    assert settings["key"] == provenance["key"] and settings["num_pictures"] == NUM_PICTURES
    card = (out / "README.md").read_text()
    for text in ("Kernel SHAP", "mean colour", "relative error", "data/*.parquet", provenance["model_fingerprint"][:16]):
        assert text in card


def test_the_same_command_again_labels_nothing_and_other_settings_are_refused(labelled, data, capsys, monkeypatch):
    out, _, _ = labelled
    monkeypatch.setattr("sweep.engines.cluster.connected", lambda *a, **k: pytest.fail("computation was about to start"))
    assert command_line.main(arguments(data, out, "--max-corrupt-share", "0.02")) == 0
    assert "nothing to label" in capsys.readouterr().out
    for other in (["--seed", "1"], ["--fill", "drop"], ["--value", "log_odds"], ["--estimator", "leverage"], ["--max-pictures", "20"]):
        assert command_line.main(arguments(data, out, *other)) == 2
        assert "give another directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "50"], "at least 96"),
        (["--budget", "128", "--estimator", "permutation"], "at least 192"),
        (["--budget", "161"], "even"),
        (["--l1-reg", "ridge"], "num_features"),
        (["--estimator", "permutation", "--budget", "200", "--l1-reg", "aic"], "l1_reg"),
        (["--adaptive", "0"], "positive"),
        (["--batch-size", "many"], "auto or a number"),
        (["--batch-size", "0"], "at least 1"),
        (["--split", "test"], "has no split 'test'"),
        (["--model", "ViT-B-23:openai"], "unknown base model"),
        (["--model", "store/artifacts/ab/abcd"], "no artifact"),
        (["--base", "miniature"], "--base goes with"),
        (["--model", "store/artifacts/ab/abcd", "--templates", "a {}"], "--templates goes with"),
        (["--data", "/does/not/exist"], "cannot read"),
        (["--out", "nosuchprotocol://bucket"], "--out"),
        (["--utilisation", "2"], "utilisation"),
        (["--max-corrupt-share", "1"], "max_corrupt_share"),
        (["--estimator", "calibrated", "--calibration-budget", "40"], "at least 102"),
    ],
)
def test_bad_options_are_refused_with_the_fix(options, message, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sweep.engines.cluster.connected", lambda *a, **k: pytest.fail("computation was about to start"))
    assert command_line.main(arguments(data, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "labels.json").exists()


def test_a_budget_whose_error_bars_cannot_be_trusted_is_warned_of(data, tmp_path, caplog):
    job_of(data, tmp_path / "out", "--budget", "128")
    assert "error bars too small" in caplog.text and "196" in caplog.text
    caplog.clear()
    job_of(data, tmp_path / "out", "--estimator", "calibrated", "--calibration-budget", "128")
    assert "error bars too small" in caplog.text and "--calibration-budget" in caplog.text
    caplog.clear()
    job_of(data, tmp_path / "out", "--budget", "200")
    job_of(data, tmp_path / "out", "--budget", "64", "--estimator", "calibrated")
    assert not caplog.text


def test_a_dry_run_projects_the_cost_and_writes_nothing(data, tmp_path, capsys):
    assert command_line.main(arguments(data, tmp_path / "out", "--dry-run", "--gpu", "A100", "--price-per-hour", "2")) == 0
    text = capsys.readouterr().out
    assert "120 pictures" in text and f"{120 * 322:,} evaluations" in text and "A100" in text and "GPU-hours" in text and "price" in text
    assert not (tmp_path / "out").exists()


def test_calibrated_labels_are_nearer_to_the_truth_and_the_card_reports_bias(data, tmp_path):
    options = ["--estimator", "calibrated", "--budget", "128", "--max-corrupt-share", "0.02"]
    job = job_of(data, tmp_path / "calibrated", *options)
    plain = replace(job, settings=replace(job.settings, estimator="size_adjusted", budget=400))
    calibration = CalibrationJob(plain, 49, job.settings.budget, 400)
    shards = calibration.shards(96)
    assert sum(len(shard.indices) for shard in shards) == 96
    torch.set_num_threads(1)
    for shard in calibration.missing(shards):
        calibration.label(shard)
    assert not calibration.missing(shards)
    prior, report = calibration.prior(shards)
    assert report.relative_error < 0.6 * report.kernel_shap_relative_error and report.num_held_out >= 20
    assert 0.7 < report.z_spread < 1.4
    job = replace(job, learned=prior)
    label_here(job)
    label_card.write(job, "as asked", [], report)
    card = (tmp_path / "calibrated" / "README.md").read_text()
    assert "shrinkage" in card and "bias" in card and f"{report.relative_error:.3f}" in card
    found = all_labels(tmp_path / "calibrated")
    np.testing.assert_allclose(np.stack(found["attributions"]).sum(1), found["value_full"] - found["value_empty"], atol=1e-3)
    with pytest.raises(ConfigError, match="--calibration-pictures"):
        calibration.prior(shards[:3])


@pytest.fixture(scope="module")
def many_signs(tmp_path_factory) -> Path:
    """As many as a surrogate needs."""
    return write_signs(tmp_path_factory.mktemp("many") / "many_signs", LEAST_PICTURES + 10)


SURROGATE = ["--estimator", "surrogate", "--budget", "24", "--calibration-budget", "320", "--shard-size", "128"]


def test_a_surrogates_labels_need_no_evaluation_twice_and_survive_the_loss_of_its_files(many_signs, tmp_path):
    """Through the engines: evaluate, fit, label. Then some files are lost."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sweep.run", *arguments(many_signs, out, *SURROGATE)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stderr
    assert "30/30 epochs" in first.stderr and "no more" in first.stdout and "held-out pictures" in first.stdout
    labels = all_labels(out)
    assert len(labels) == LEAST_PICTURES + 9 and labels["id"].is_unique and (labels["budget"] == 24).all()
    np.testing.assert_allclose(np.stack(labels["attributions"]).sum(1), labels["value_full"] - labels["value_empty"], atol=1e-3)
    assert (np.stack(labels["standard_error"]) > 0).all()
    report = CalibrationReport(**json.loads((out / "calibration" / "report.json").read_text()))
    assert report.relative_error < 0.8 and 0.6 < report.z_spread < 1.6 and report.num_held_out >= 47
    evaluations = (LEAST_PICTURES + 9) * 26 + report.num_held_out * 320
    assert f"{evaluations:,} evaluations" in first.stdout and first.stdout.count("outside the model") == 1  # none when labels are made
    card = (out / "README.md").read_text()
    assert "a network learned" in card and f"tried on {report.num_held_out} others" in card and "000050.png" in card
    for lost in (out / "calibration" / "games-003.npz", out / "data" / "labels-00001-of-00004.parquet", out / "README.md"):
        lost.unlink()
    torch.set_num_threads(1)
    job = job_of(many_signs, out, *SURROGATE)
    learning = SurrogateJob(job, 49, LEAST_PICTURES + 10, 320)
    shards = learning.shards()
    assert [shard.index for shard in learning.missing(shards)] == [3]
    assert learning.label(shards[3]).num_evaluations == 26 * 128
    surrogate, found = learning.fitted()
    assert found == report
    job = replace(job, learned=surrogate, known=learning.known(shards))
    assert [shard.index for shard in job.missing()] == [1]
    assert job.label(job.missing()[0]).num_evaluations == 0
    again = all_labels(out).set_index("id").loc[labels["id"]]
    np.testing.assert_allclose(np.stack(again["attributions"]), np.stack(labels["attributions"]), atol=1e-4)


def test_a_surrogate_of_too_few_pictures_is_refused_before_anything_is_computed(data, tmp_path, capsys):
    assert command_line.main(arguments(data, tmp_path / "out", *SURROGATE)) == 2
    assert f"at least {LEAST_PICTURES} pictures, here are 120" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fine_tuned_model_of_a_sweep_labels_its_own_classes(data, tmp_path, base):
    spec = miniature.domain_spec("traffic_signs")
    store = Store(str(tmp_path / "store"))

    def compute(directory: Path) -> None:
        from safetensors.torch import save_file

        state = {k: v.clone() * 1.01 for k, v in base.visual.state_dict().items()}
        save_file(state, directory / "visual.safetensors")

    params = {"class_names": spec.class_names, "templates": spec.templates, "base": base.fingerprint}
    key = "ab" + "0" * 38
    store.get_or_compute(key, stage="finetune", params=params, inputs=(), compute=compute)
    model = ["--model", f"{tmp_path}/store/artifacts/ab/{key}", "--max-pictures", "16", "--budget", "128"]
    job = job_of(data, tmp_path / "out", *model)
    label_here(job)
    zero_shot = job_of(data, tmp_path / "zero", "--max-pictures", "16", "--budget", "128")
    label_here(zero_shot)
    assert job.model.fingerprint != zero_shot.model.fingerprint
    difference = np.stack(all_labels(tmp_path / "out")["attributions"]) - np.stack(all_labels(tmp_path / "zero")["attributions"])
    assert np.abs(difference).max() > 1e-3
    other = {**params, "class_names": [*spec.class_names[:-1], "cloud"]}
    store.get_or_compute("ab" + "1" * 38, stage="finetune", params=other, inputs=(), compute=compute)
    with pytest.raises(ConfigError, match="same class names"):
        job_of(data, tmp_path / "out2", "--model", f"{tmp_path}/store/artifacts/ab/{'ab' + '1' * 38}")
    foreign = {**params, "base": "0" * 64}
    store.get_or_compute("ab" + "2" * 38, stage="finetune", params=foreign, inputs=(), compute=compute)
    with pytest.raises(ConfigError, match="another base"):
        job_of(data, tmp_path / "out2", "--model", f"{tmp_path}/store/artifacts/ab/{'ab' + '2' * 38}")


def test_labels_go_to_a_bucket_as_well(data):
    job = job_of(data, "memory://labels/out", "--max-pictures", "40", "--budget", "128")
    job.out.check_writable()
    job.out.begin({"key": job.key})
    label_here(job)
    assert not job.missing() and job.out.settings() == {"key": job.key}
    with job.out.open(job.out.shard_name(1, 3)) as file:
        ids, labels = read_labels(file)
    assert len(ids) == 16 and labels.attributions.shape == (16, 49)


def test_a_shard_none_of_whose_pictures_can_be_read_is_an_empty_file(tmp_path, data):
    table = pq.read_table(data / "train.parquet").slice(48, 4)
    (tmp_path / "few").mkdir()
    pq.write_table(table, tmp_path / "few" / "train.parquet")
    job = job_of(tmp_path / "few", tmp_path / "out", "--shard-size", "1", "--budget", "128")
    label_here(job)
    assert [len(pd.read_parquet(p)) for p in sorted((tmp_path / "out" / "data").iterdir())] == [1, 1, 0, 1]
    assert len(all_labels(tmp_path / "out")) == 3


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_every_finished_file_whole(small_disk, data):
    job = job_of(data, small_disk / "out", "--budget", "128")
    job.out.check_writable()
    with pytest.raises(OSError, match="No space left"):
        label_here(job)
    files = sorted((small_disk / "out" / "data").iterdir())
    assert files and len(files) < 8
    assert sum(len(pd.read_parquet(path)) for path in files) >= 16 * len(files) - 1
    assert not list((small_disk / "out" / ".unfinished").iterdir())


def test_files_of_a_directory_appear_whole(tmp_path):
    out = LabelDirectory(str(tmp_path / "out"))
    out.write("data/x.parquet", b"abc")
    assert (tmp_path / "out" / "data" / "x.parquet").read_bytes() == b"abc" and out.names("data") == ["x.parquet"]
    assert out.finished(3) == set()
    out.remove_unfinished()
    shutil.rmtree(tmp_path / "out")
    assert out.names("data") == [] and out.settings() is None
