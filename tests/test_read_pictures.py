"""One split of one data set: which one is chosen, both layouts of ImageNet, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.data.domains import DomainError, decode_picture, read_pictures, write_parquet_split
from core.model import prompt_class_names

IMAGENET = Path(__file__).parent.parent.parent / "shared" / "data" / "imagenet"
needs_imagenet = pytest.mark.skipif(not IMAGENET.is_dir(), reason="the ImageNet sample (shared/data beside the checkout) is not here")
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 16, 3), dtype=np.uint8)
NAMES = ["cat", "dog", "owl"]


def write(path: Path, class_ids=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet_split(path, PIXELS, np.arange(12) % 3 if class_ids is None else class_ids, NAMES)
    return path


def folder(directory: Path, picture: bytes, classes=("n_1", "n_2")) -> None:
    for name in classes:
        (directory / name).mkdir(parents=True)
        for n in range(3):
            (directory / name / f"{n}.png").write_bytes(picture)


@pytest.fixture
def png(tmp_path) -> bytes:
    write(tmp_path / "png" / "train.parquet")
    return read_pictures(tmp_path / "png").pictures.read_bytes(0)


def test_train_is_the_default_and_any_split_can_be_chosen(tmp_path):
    write(tmp_path / "one" / "train.parquet")
    write(tmp_path / "one" / "validation.parquet", np.zeros(12, dtype=np.int64))  # a class without pictures is allowed here
    assert read_pictures(tmp_path / "one").split_name == "train"
    validation = read_pictures(tmp_path / "one", split="validation")
    assert validation.split_name == "validation" and set(validation.pictures.class_ids) == {0}
    assert validation.class_names == tuple(NAMES) and validation.name == "one"
    with pytest.raises(DomainError, match="has no split 'test'; it has: train, validation"):
        read_pictures(tmp_path / "one", split="test")
    (tmp_path / "one" / "train.parquet").rename(tmp_path / "one" / "test.parquet")
    with pytest.raises(DomainError, match="choose one with --split"):
        read_pictures(tmp_path / "one")


def test_other_splits_are_not_read(tmp_path):
    write(tmp_path / "one" / "train.parquet")
    (tmp_path / "one" / "test.parquet").write_bytes(b"damaged")
    assert len(read_pictures(tmp_path / "one").pictures) == 12
    with pytest.raises(DomainError, match="test.parquet"):
        read_pictures(tmp_path / "one", split="test")


def test_files_without_a_split_in_their_names_are_one_split(tmp_path, png):
    write(tmp_path / "a" / "sample.parquet")
    assert read_pictures(tmp_path / "a").split_name == "all"
    single = read_pictures(tmp_path / "a" / "sample.parquet", split="all")
    assert len(single.pictures) == 12 and single.name == "sample" and single.source.endswith("sample.parquet")
    write(tmp_path / "a" / "train.parquet", np.zeros(12, dtype=np.int64))
    assert read_pictures(str(tmp_path / "a" / "train.parquet")).split_name == "train"
    folder(tmp_path / "b", png)
    whole = read_pictures(tmp_path / "b")
    assert whole.split_name == "all" and len(whole.pictures) == 6 and whole.class_names == ("n 1", "n 2")


def test_validation_of_an_image_folder_beside_a_test_split(tmp_path, png):
    for split in ("train", "val", "test"):
        folder(tmp_path / "c" / split, png)
    validation = read_pictures(tmp_path / "c", split="validation")
    assert [i.split("/")[0] for i in validation.pictures.ids] == ["val"] * 6


def test_empty_and_unclassified_data_is_refused(tmp_path, png):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DomainError, match="at least 2"):
        read_pictures(tmp_path / "empty")
    folder(tmp_path / "one", png, classes=("only",))
    with pytest.raises(DomainError, match="1 classes"):
        read_pictures(tmp_path / "one")
    with pytest.raises(DomainError, match="nowhere"):
        read_pictures(tmp_path / "nowhere" / "x.parquet")


def test_quick_fingerprint_notices_a_replaced_file_and_is_stable(tmp_path):
    path = write(tmp_path / "one" / "train.parquet")
    first = read_pictures(tmp_path / "one").fingerprint
    assert read_pictures(tmp_path / "one").fingerprint == first
    write(path, np.zeros(12, dtype=np.int64))
    os.utime(path, ns=(1, 1))
    assert read_pictures(tmp_path / "one").fingerprint != first


def test_it_can_be_sent_to_other_processes(tmp_path):
    write(tmp_path / "one" / "train.parquet")
    found = read_pictures(tmp_path / "one")
    copy = pickle.loads(pickle.dumps(found))
    assert copy.pictures.read_bytes(3) == found.pictures.read_bytes(3) and copy.fingerprint == found.fingerprint


def test_wordnet_ids_get_names_that_prompts_can_be_made_of(caplog):
    ids = [f"n{i:08d}" for i in range(1000)]
    names = prompt_class_names(ids)
    assert len(names) == 1000 and names[0] == "tench" and names[999] == "toilet paper"
    assert prompt_class_names(["cat", "dog"]) == ("cat", "dog")
    assert prompt_class_names(ids[:5]) == tuple(ids[:5])
    assert "WordNet" in caplog.text


@needs_imagenet
def test_imagenet_in_its_two_layouts(tmp_path):
    parquet = read_pictures(IMAGENET)
    assert len(parquet.pictures) == 1000 and len(parquet.class_names) == 1000 and parquet.split_name == "all"
    rows = pq.read_table(next(IMAGENET.glob("*.parquet"))).to_pylist()
    for n, row in enumerate(rows):
        place = tmp_path / "imagenet" / "train" / f"n{row['label']:08d}"
        place.mkdir(parents=True)
        (place / f"n{row['label']:08d}_{n}.JPEG").write_bytes(row["image"]["bytes"])
    folders = read_pictures(tmp_path / "imagenet")
    assert folders.split_name == "train" and len(folders.pictures) == 1000
    assert len(prompt_class_names(folders.class_names)) == 1000 and prompt_class_names(folders.class_names)[0] == "tench"
    for class_id in (0, 17, 999):
        at = [int(np.flatnonzero(p.pictures.class_ids == class_id)[0]) for p in (parquet, folders)]
        assert parquet.pictures.read_bytes(at[0]) == folders.pictures.read_bytes(at[1])
        assert decode_picture(folders.pictures.read_bytes(at[1])).mode == "RGB"
