"""Domains as a whole: real pictures, names, templates, fingerprints, and the validation split."""

import gc
import hashlib
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.domains import DomainError, decode_picture, read_domain, validation_indices, write_parquet_split

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
CLASS_IDS = np.arange(12) % 3
NAMES = ["circle", "square", "star"]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    root.mkdir()
    for split in ("train", "test"):
        write_parquet_split(root / f"{split}.parquet", PIXELS, CLASS_IDS, NAMES)
    return root


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "num_classes", "a_class"),
    [
        ("mnist", 1500, 500, 10, "seven"),
        ("gtsrb", 1290, 516, 43, "speed limit 20"),
        ("cifar100", 2000, 800, 100, "aquarium fish"),
        ("dtd", 340, 160, 10, "banded"),
    ],
)
def test_real_pictures_are_read_and_all_decode(
    name: str, num_train: int, num_test: int, num_classes: int, a_class: str
) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real pictures at {REAL_DATA / name}: they are not part of the project")
    domain = read_domain(REAL_DATA / name)
    assert (domain.name, len(domain.class_names), a_class in domain.class_names) == (name, num_classes, True)
    assert (len(domain.splits["train"]), len(domain.splits["test"])) == (num_train, num_test)
    ids = domain.splits["train"].ids + domain.splits["test"].ids
    assert len(set(ids)) == len(ids) == num_train + num_test
    for split in domain.splits.values():
        assert np.array_equal(np.unique(split.class_ids), np.arange(num_classes))
        for index in range(0, len(split), 5):
            image = decode_picture(split.read_bytes(index))
            assert image.mode == "RGB" and min(image.size) >= 25


def test_a_path_that_is_no_directory_is_an_error(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="nowhere: No such file"):
        read_domain(tmp_path / "nowhere")
    with pytest.raises(DomainError, match="is a file; give the directory"):
        read_domain(shapes / "train.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DomainError, match="holds no files"):
        read_domain(tmp_path / "empty")


def test_the_fingerprint_is_of_the_content_alone(shapes: Path, tmp_path: Path) -> None:
    before = read_domain(shapes).fingerprint
    assert len(before) == 64
    moved = shapes.rename(tmp_path / "moved")
    assert read_domain(moved, name="other", templates=["a {}"]).fingerprint == before
    (moved / "README.txt").write_text("beside the data")
    assert read_domain(moved).fingerprint == before
    write_parquet_split(moved / "test.parquet", 255 - PIXELS, CLASS_IDS, NAMES)
    assert read_domain(moved).fingerprint != before


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "-a", "ä", "a.b", "a" * 65])
def test_a_name_that_is_not_safe_in_file_names_is_refused(shapes: Path, name: str) -> None:
    with pytest.raises(DomainError, match="goes into file names"):
        read_domain(shapes, name=name)


@pytest.mark.parametrize("templates", [[], "a {}", ["a photo"], ["{} and {}"], ["a {} {x}"], ["a {0}"], ["{{}}"]])
def test_a_template_needs_one_place_for_the_class_name(shapes: Path, templates: Sequence[str]) -> None:
    with pytest.raises(DomainError, match="template"):
        read_domain(shapes, templates=templates)


def test_templates_and_name_can_be_given(shapes: Path) -> None:
    domain = read_domain(str(shapes) + "/", name="my-shapes_2", templates=["a drawing of a {}"])
    assert (domain.name, domain.templates) == ("my-shapes_2", ("a drawing of a {}",))


def test_validation_takes_its_share_and_leaves_the_rest_to_train() -> None:
    ids = [f"train/{number}.png" for number in range(200)]
    train, validation = validation_indices(ids)
    assert (len(train), len(validation)) == (180, 20)
    assert train.dtype == validation.dtype == np.int64
    assert sorted([*train, *validation]) == list(range(200))
    assert not np.array_equal(validation, validation_indices(ids, seed=1)[1])


def test_validation_goes_by_the_ids_not_by_their_order() -> None:
    ids = [f"train/{number}.png" for number in range(200)]
    shuffled = list(np.random.default_rng(0).permutation(ids))
    chosen = {ids[index] for index in validation_indices(ids)[1]}
    assert {shuffled[index] for index in validation_indices(shuffled)[1]} == chosen
    more = [f"train/new-{number}.png" for number in range(50)] + ids
    kept = chosen & {more[index] for index in validation_indices(more)[1]}
    # 25 of 250 are chosen now, of which about 5 are new: all but a few of the 20 remain.
    assert len(kept) >= 15


def test_validation_has_the_lowest_hashes() -> None:
    ids = [f"train/{number}.png" for number in range(1000)]
    lowest = sorted(ids, key=lambda id_: hashlib.sha256(f"7:{id_}".encode()).digest())[:100]
    assert [ids[index] for index in validation_indices(ids, seed=7)[1]] == [id_ for id_ in ids if id_ in set(lowest)]


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_a_domain_holds_ids_and_class_ids_and_nothing_else_a_picture(tmp_path: Path, layout: str) -> None:
    number = 20_000 if layout == "parquet" else 2_000
    if layout == "parquet":
        for split in ("train", "test"):
            write_parquet_split(tmp_path / f"{split}.parquet", PIXELS, CLASS_IDS, NAMES)
        schema = pq.read_schema(tmp_path / "train.parquet")
        rows = [{"bytes": b"x", "path": f"n01440764_{row}.JPEG"} for row in range(number)]
        pq.write_table(pa.table({"image": rows, "label": np.arange(number) % 3}, schema=schema), tmp_path / "train.parquet")
        del rows
    else:
        for name in ("train/a", "train/b", "test/a"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "test/a/0.png").write_bytes(b"x")
        for row in range(number):
            (tmp_path / f"train/{'ab'[row % 2]}/n01440764_{row}.png").write_bytes(b"x")
    read_domain(tmp_path)  # what is made once and kept: regular expressions, modules
    gc.collect()
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    train = read_domain(tmp_path).splits["train"]
    gc.collect()
    # What the reading allocated, and not what another thread of the test process did meanwhile.
    traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/core/data/*")])
    tracemalloc.stop()
    held = sum(trace.size for trace in traces.statistics("filename")) + pa.total_allocated_bytes() - arrow
    needed = sum(map(sys.getsizeof, train.ids)) + sys.getsizeof(train.ids) + train.class_ids.nbytes
    # Under a byte a picture more: the smallest thing that could be kept of each is a pointer.
    assert len(train) == number and held - needed < number


@pytest.mark.parametrize(
    ("num_pictures", "share", "expected"), [(2, 0.1, 1), (2, 0.9, 1), (5, 0.001, 1), (3, 0.999, 2)]
)
def test_neither_side_of_the_validation_split_is_empty(num_pictures: int, share: float, expected: int) -> None:
    train, validation = validation_indices([str(number) for number in range(num_pictures)], share)
    assert (len(train), len(validation)) == (num_pictures - expected, expected)


@pytest.mark.parametrize(("ids", "share"), [(["a"], 0.1), ([], 0.1), (["a", "b"], 0.0), (["a", "b"], 1.0)])
def test_a_validation_split_that_cannot_be_is_refused(ids: list[str], share: float) -> None:
    with pytest.raises(ValueError, match="validation"):
        validation_indices(ids, share)
