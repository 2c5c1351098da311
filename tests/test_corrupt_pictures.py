"""Pictures that cannot be read: few are skipped and named, too many end the sweep."""

from __future__ import annotations

import shutil

import pytest
from image_sets import damage, write_noise
from in_process import compute, engines_here, graph_of

from sweep import run as command_line
from sweep.stages.pictures import CorruptPicturesError
from sweep.store.artifacts import Store


@pytest.fixture
def domains(tmp_path) -> list[str]:
    """Two domains; of the first's 24 pictures one is damaged."""
    locations = [write_noise(tmp_path / name) for name in ("one", "two")]
    damage(locations[0] / "train.parquet", 5)
    return [str(location) for location in locations]


def test_few_are_skipped_counted_and_named(domains, tmp_path):
    store = Store(str(tmp_path / "store"))
    pictures = graph_of(store, "--domains", *domains, "--max-corrupt-share", "0.1").pictures("one")
    compute(store, pictures)
    meta = pictures.artifact(store).manifest["meta"]
    (skipped,) = meta["skipped"]
    assert meta["num_skipped"] == 1 and "5" in skipped["id"] and skipped["reason"]
    assert sum(pictures.counts(store).values()) == 23
    there = [picture_id for split in ("train", "validation", "test") for picture_id in pictures.load(store, split).ids]
    assert len(there) == 23 and skipped["id"] not in there


def test_too_many_fail(domains, tmp_path):
    store = Store(str(tmp_path / "store"))
    pictures = graph_of(store, "--domains", *domains).pictures("one")
    with pytest.raises(CorruptPicturesError, match="1 of 24 pictures of one cannot be read.*--max-corrupt-share"):
        compute(store, pictures)
    assert not store.exists(pictures.key)


def test_the_command_ends_with_exit_code_2_and_keeps_what_was_read(domains, tmp_path, monkeypatch, capsys, new_database):
    engines_here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(new_database, "mlflow.db")
    assert command_line.main(["all_pairs", "--domains", *domains, "--num-steps", "2"]) == 2
    assert "1 of 24 pictures of one cannot be read" in capsys.readouterr().err
    assert len(Store(str(tmp_path / "sweep_store")).keys("picture_shard")) == 6
