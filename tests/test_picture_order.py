"""The order of a sweep's pictures: of a data set that lies class by class the first ones, which are labelled, are of many classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.data.domains import write_parquet_split
from sweep.experiment.config import DataSettings, DomainLocation
from sweep.stages.domains import SPLITS, look_at, mixed, open_domain, selected

NUM_CLASSES, NUM_EACH = 12, 20
DATA = DataSettings(validation_share=0.25)


def image_folder(directory: Path) -> Path:
    for split in ("train", "test"):
        for c in range(NUM_CLASSES):
            (directory / split / f"class-{c:02d}").mkdir(parents=True)
            for i in range(NUM_EACH):
                Image.new("RGB", (8, 8), (20 * c, i, 0)).save(directory / split / f"class-{c:02d}" / f"{i:03d}.png")
    return directory


def parquet(directory: Path, rows_a_group: int) -> Path:
    directory.mkdir()
    class_ids = np.repeat(np.arange(NUM_CLASSES), NUM_EACH)
    pictures = np.zeros((len(class_ids), 8, 8, 3), np.uint8)
    pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = 20 * class_ids, np.arange(len(class_ids))
    for split in ("train", "test"):
        write_parquet_split(directory / f"{split}.parquet", pictures, class_ids, [f"class {c}" for c in range(NUM_CLASSES)])
        pq.write_table(pq.read_table(directory / f"{split}.parquet"), directory / f"{split}.parquet", row_group_size=rows_a_group)
    return directory


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("layout", ["image folder", "Parquet"])
def test_the_first_pictures_are_of_many_classes(tmp_path, layout, split):
    location = image_folder(tmp_path / "own") if layout == "image folder" else parquet(tmp_path / "own", 240)
    facts = look_at(DomainLocation("own", str(location)), DATA)
    index = selected(facts, DATA, split)
    origin = open_domain(facts, DATA).splits["test" if split == "test" else "train"]
    assert len(np.unique(index)) == len(index) == facts.count(split)
    assert len(np.unique(origin.class_ids[index[:24]])) >= 8, "24 pictures at random are of about ten of twelve classes"
    assert np.array_equal(index, selected(look_at(DomainLocation("own", str(location)), DATA), DATA, split))
    assert not np.array_equal(index, selected(facts, DataSettings(validation_share=0.25, seed=1), split))


def test_row_groups_are_read_one_after_the_other(tmp_path):
    """A shard of some pictures reads the row groups that hold them, and no group is read twice."""
    facts = look_at(DomainLocation("own", str(parquet(tmp_path / "own", 10))), DATA)
    index = selected(facts, DATA, "test")
    pieces = open_domain(facts, DATA).splits["test"].pieces[index]
    assert np.count_nonzero(np.diff(pieces)) == NUM_CLASSES * NUM_EACH // 10 - 1
    assert not np.array_equal(pieces, np.sort(pieces)) and not np.array_equal(index, np.sort(index))


def test_what_is_mixed_are_the_pictures_that_were_asked_for():
    index, pieces = np.arange(0, 100, 3), np.repeat(np.arange(10), 10)
    found = mixed(index, pieces, 0)
    assert sorted(found) == index.tolist() and not np.array_equal(found, index)


def test_drawn_pictures_stay_as_they_are(tmp_path):
    """They are drawn in a random order, and what was computed of them stays valid."""
    data = DataSettings(max_train_pictures=40, max_test_pictures=20)
    facts = look_at(DomainLocation("scenes", "miniature:scenes"), data)
    assert np.array_equal(selected(facts, data, "test"), np.arange(20))
