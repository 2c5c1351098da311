"""The command line: what options change, and bad input refused before any computation with exit code 2 and the fix."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.domains import write_parquet_split
from sweep import run as command_line
from sweep.experiment.config import SweepConfig

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 16, 3), dtype=np.uint8)
CLASS_IDS = np.arange(12) % 3


def write_domain(directory: Path, num_classes: int = 3) -> Path:
    directory.mkdir()
    names = [f"class {i}" for i in range(num_classes)]
    for split in ("train", "test"):
        write_parquet_split(directory / f"{split}.parquet", PIXELS, CLASS_IDS % num_classes, names)
    return directory


@pytest.fixture
def domains(tmp_path) -> list[Path]:
    return [write_domain(tmp_path / name) for name in ("one", "two")]


def refused(capsys, monkeypatch, tmp_path, *arguments: str) -> str:
    """The message of a command that must be refused with exit code 2, before Ray or the store is touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweep.engines.cluster.connected", lambda *a, **k: pytest.fail("computation was about to start"))
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(command_line.main(["all_pairs", *arguments]))
    assert caught.value.code == 2
    assert not (tmp_path / "sweep_store" / "artifacts").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "minature"], "choose among miniature, paper"),
        (["--suite", "miniature", "--domains", "cars", "planes"], "no domain 'planes'"),
        (["--suite", "miniature", "--domains", "cars"], "at least two domains"),
        (["--search", "random"], "invalid choice"),
        (["--alphas", "0.5,1.5"], r"alpha must lie in [0, 1], not 1.5"),
        (["--alphas", "1.0"], "explainability vector is zero"),
        (["--alphas", "half"], "no list of numbers"),
        (["--alphas", "0.5,0.5"], "each once"),
        (["--lambdas", "0.1"], "two ends"),
        (["--lambdas", "nan,1"], "finite"),
        (["--num-trials", "0"], "at least one trial"),
        (["--num-steps", "0"], "must be positive"),
        (["--budget", "50"], "at least 102"),
        (["--estimator", "permutation", "--budget", "100"], "at least 192"),
        (["--estimator", "calibrated"], "invalid choice"),
        (["--test-budget", "201"], "even"),
        (["--base", "ViT-B-23:openai"], "unknown base model"),
        (["--base", "ViT-B-32"], "name the weights"),
        (["--domains", "/does/not/exist", "/neither"], "there is no directory"),
        (["--max-corrupt-share", "2"], "max_corrupt_share"),
        (["--max-train-pictures", "1"], "at least 2"),
        (["--store", "nosuchprotocol://bucket"], "nosuchprotocol"),
        (["--tracking-uri", "nosuchscheme://host"], "tracking"),
    ],
)
def test_bad_options_are_refused_with_the_fix(arguments, message, capsys, monkeypatch, tmp_path):
    assert message in refused(capsys, monkeypatch, tmp_path, *arguments)


def test_a_store_that_is_a_file_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "--store" in refused(capsys, monkeypatch, tmp_path, "--store", str(tmp_path / "taken"))


def test_templates_without_a_place_for_the_class_name_are_refused(capsys, monkeypatch, tmp_path, domains):
    message = refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains), "--templates", "a photo")
    assert "{}" in message


def test_parquet_that_is_no_image_data_set_is_refused(capsys, monkeypatch, tmp_path, domains):
    def replaced(table: pa.Table) -> str:
        pq.write_table(table, domains[1] / "train.parquet")
        return refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains))

    good = pq.read_table(domains[0] / "train.parquet")
    assert "image" in replaced(good.drop_columns(["image"]))
    assert "label" in replaced(good.drop_columns(["label"]))
    at = good.column_names.index("label")
    assert "label" in replaced(good.set_column(at, "label", pa.array([7] * len(good), good.schema.field("label").type)))
    assert "class 2" in replaced(good.filter(pa.compute.not_equal(good["label"], 2)))
    assert "empty" in replaced(good.slice(0, 0)) or "no picture" in capsys.readouterr().err
    (domains[1] / "train.parquet").write_bytes(b"no parquet")
    assert "train.parquet" in refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains))


def test_two_domains_of_one_name_are_refused(capsys, monkeypatch, tmp_path, domains):
    (tmp_path / "other").mkdir()
    twin = write_domain(tmp_path / "other" / "one")
    assert "two domains are called 'one'" in refused(capsys, monkeypatch, tmp_path, "--domains", str(domains[0]), str(twin))


def test_too_many_corrupt_pictures_fail_and_few_are_skipped_and_named(tmp_path, monkeypatch):
    """Through the pictures stage itself; the command's end-to-end way is in test_real_pictures.py."""
    from sweep.commands.all_pairs import make_plan
    from sweep.stages import computations as stages
    from sweep.store.artifacts import Store

    directory = write_domain(tmp_path / "one")
    write_domain(tmp_path / "two")
    table = pq.read_table(directory / "train.parquet")
    images = table["image"].to_pylist()
    images[5] = {"bytes": b"\x89PNG broken", "path": None}
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(table.column_names.index("image"), "image", column), directory / "train.parquet")
    locations = ["--domains", str(directory), str(tmp_path / "two")]
    store = Store(str(tmp_path / "store"))
    with pytest.raises(stages.CorruptPicturesError, match="1 of .* pictures of one cannot be read"):
        stages.compute_pictures(make_plan(config(*locations)), store, "one")
    plan = make_plan(config(*locations, "--max-corrupt-share", "0.1"))
    (skipped,) = stages.compute_pictures(plan, store, "one").manifest["meta"]["skipped"]
    assert "5" in skipped["id"] and skipped["reason"]
    total = sum(stages.count_pictures(plan, store, "one").values())
    assert total == 23


def config(*arguments: str) -> SweepConfig:
    return command_line.config_from(command_line._parser().parse_args(["all_pairs", *arguments]))


def test_options_change_the_suite_and_nothing_else():
    plain = config()
    assert plain.suite == "miniature" and len(plain.pairs) == 56
    changed = config("--alphas", "0.1:0.9:0.4", "--search", "grid", "--seed", "7", "--budget", "128")
    assert changed.search.alphas == (0.1, 0.5, 0.9)
    assert changed.search.method == "grid" and len(changed.search.lambdas) == 13 and changed.search.lambdas[-1] == 1.2
    assert changed.labels.train.budget == 128 and changed.labels.test.budget == plain.labels.test.budget
    assert {changed.recipe.seed, changed.data.seed, changed.labels.train.seed, changed.search.seed} == {7}
    assert changed.recipe.learning_rate == plain.recipe.learning_rate


def test_the_paper_suite_is_the_papers(monkeypatch):
    paper = config("--suite", "paper")
    assert paper.base == "ViT-B-32:datacomp_xl_s13b_b90k" and paper.device == "cuda"
    assert len(paper.pairs) == 56 and paper.search.method == "grid"
    assert paper.search.alphas == tuple(round(0.1 * i, 1) for i in range(1, 10))
    assert paper.search.lambdas == tuple(round(0.1 * i, 1) for i in range(13))
    assert paper.labels.train.budget == 500
    assert [d.epochs for d in paper.domains] == [35, 76, 12, 11, 15, 14, 4, 5]


def test_own_domains_may_be_named(tmp_path):
    named = config("--domains", f"digits={tmp_path}", "miniature:cars", "hf://datasets/ylecun/mnist@abc")
    assert [d.name for d in named.domains] == ["digits", "cars", "mnist"]


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["all_pairs", "--help"])
    text = capsys.readouterr().out
    for option in ("--suite", "--domains", "--search", "--alphas", "--lambdas", "--num-trials", "--address", "--store", "--tracking-uri"):
        assert option in text
    assert isinstance(command_line._parser(), argparse.ArgumentParser)
