"""The Parquet layout: what is written is read back, every naming is understood, what is wrong is refused undecoded."""

import json
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data import parquet_split, pictures
from core.data.domains import DomainError, PictureError, decode_picture, read_domain, write_parquet_split

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
CLASS_IDS = np.arange(12) % 3
NAMES = ["circle", "square", "star"]


def _write(
    path: Path,
    *,
    labels: Sequence[object] = (0, 1, 2),
    images: Sequence[object] | None = None,
    names: Sequence[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
    row_group_size: int | None = None,
    statistics: bool = True,
) -> None:
    """A Parquet file by hand, for what `write_parquet_split` refuses to write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [{"bytes": pictures.encode_png(PIXELS[row % 12]), "path": f"{row}.png"} for row in range(len(labels))]
    table = pa.table({columns[0]: images, columns[1]: labels} if images else {columns[0]: [], columns[1]: []})
    if not images:
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = table.cast(pa.schema([("image", image), ("label", pa.int64())]))
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size, write_statistics=statistics)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    root.mkdir()
    for split in ("train", "test"):
        write_parquet_split(root / f"{split}.parquet", PIXELS, CLASS_IDS, NAMES)
    return root


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.Image, "open", lambda *_, **__: pytest.fail("a picture was decoded"))


def test_what_is_written_is_read_back(shapes: Path) -> None:
    domain = read_domain(shapes)
    assert domain.class_names == tuple(NAMES)
    assert domain.templates == ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
    for name, split in domain.splits.items():
        assert split.class_ids.dtype == np.int64 and np.array_equal(split.class_ids, CLASS_IDS)
        assert split.ids[:2] == [f"{name}/000000.png", f"{name}/000001.png"]
        decoded = [np.asarray(decode_picture(split.read_bytes(index))) for index in range(len(split))]
        assert np.array_equal(decoded, PIXELS)
        with pytest.raises(IndexError):
            split.read_bytes(len(split))


def test_the_same_pictures_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet_split(tmp_path / name, PIXELS, CLASS_IDS, NAMES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


@pytest.mark.parametrize(
    ("pixels", "class_ids", "message"),
    [
        (PIXELS.astype(np.float32), CLASS_IDS, "uint8"),
        (PIXELS[..., 0], CLASS_IDS, "N, H, W, 3"),
        (PIXELS, CLASS_IDS[:-1], "12 integers"),
        (PIXELS, CLASS_IDS + 1, "0 .. 2"),
    ],
)
def test_what_does_not_fit_the_layout_is_not_written(
    tmp_path: Path, pixels: np.ndarray, class_ids: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_parquet_split(tmp_path / "train.parquet", pixels, class_ids, NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet", "test.parquet"],
        ["train_0.parquet", "train_1.parquet", "test.parquet", "gaussian_noise.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet", "test-noisy/0000.parquet"],
        ["only_config/train-00000-of-00001.parquet", "only_config/test-00000-of-00001-0123456789abcdef.parquet"],
    ],
)
def test_every_usual_naming_of_the_files_is_understood(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        _write(tmp_path / file)
    splits = read_domain(tmp_path, name="shapes").splits
    num_train_files = sum("train" in file for file in files)
    assert (len(splits["train"]), len(splits["test"])) == (3 * num_train_files, 3)


def test_shards_are_one_split_in_order_and_repeated_paths_give_way_to_row_numbers(tmp_path: Path) -> None:
    for shard, labels in enumerate([[2, 1, 0, 0, 1], [0, 1]]):
        images = [{"bytes": f"shard {shard} row {row}".encode(), "path": "same.png"} for row in range(len(labels))]
        path = tmp_path / f"data/train-{shard:05d}-of-00002.parquet"
        _write(path, labels=labels, images=images, row_group_size=2)
    _write(tmp_path / "data/test-00000-of-00001.parquet")
    train = read_domain(tmp_path).splits["train"]
    assert train.class_ids.tolist() == [2, 1, 0, 0, 1, 0, 1]
    assert train.ids == [f"train/row-{row:08d}" for row in range(7)]
    expected = [f"shard 0 row {row}".encode() for row in range(5)] + [b"shard 1 row 0", b"shard 1 row 1"]
    assert [train.read_bytes(index) for index in range(7)] == expected
    assert [train.read_bytes(index) for index in reversed(range(7))] == expected[::-1]


def test_fine_label_serves_where_there_is_no_label(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _write(tmp_path / f"{split}.parquet", columns=("image", "fine_label"))
    assert read_domain(tmp_path).class_names == tuple(NAMES)


def test_a_validation_split_serves_as_test_where_there_is_none_and_it_is_said(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shapes / "test.parquet").rename(shapes / "validation.parquet")
    with caplog.at_level(logging.WARNING):
        domain = read_domain(shapes)
    assert domain.splits["test"].ids[0] == "validation/000000.png"
    assert "validation split is used as test" in caplog.text


def test_a_test_split_with_withheld_labels_gives_way_to_validation(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shapes / "test.parquet").rename(shapes / "validation.parquet")
    _write(shapes / "test.parquet", labels=[-1, -1])
    assert read_domain(shapes).splits["test"].ids[0] == "validation/000000.png"
    assert "no labelled test split" in caplog.text
    (shapes / "validation.parquet").unlink()
    with pytest.raises(DomainError, match="test.parquet: every label is -1"):
        read_domain(shapes)


def test_pictures_may_be_files_inside_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for row in range(3):
        (tmp_path / f"files/{row}.png").write_bytes(pictures.encode_png(PIXELS[row]))
    images = [{"bytes": None, "path": f"files/{row}.png"} for row in range(3)]
    inline = {"bytes": b"inline", "path": "/where/it/once/was.png"}
    _write(tmp_path / "test.parquet", images=images, statistics=False)
    _write(tmp_path / "train.parquet", images=[images[0], inline, images[2]], row_group_size=2)
    domain = read_domain(tmp_path)
    assert domain.splits["test"].read_bytes(2) == (tmp_path / "files/2.png").read_bytes()
    assert domain.splits["train"].read_bytes(1) == b"inline"
    (tmp_path / "files/2.png").write_bytes(b"other content")
    assert read_domain(tmp_path).fingerprint != domain.fingerprint


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../outside.png", "row 1 .*does not stay inside the data directory"),
        ("/etc/hostname", "row 1 .*does not stay inside the data directory"),
        ("link.png", "row 1 .*leaves the data directory"),
        ("missing.png", "row 1 .*missing"),
        (None, "row 1 .*neither bytes nor a path"),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.usefixtures("undecoded")
def test_a_picture_outside_the_data_directory_is_refused(
    shapes: Path, tmp_path: Path, path: str | None, message: str, statistics: bool
) -> None:
    (tmp_path / "outside.png").write_bytes(b"secret")
    (shapes / "link.png").symlink_to(tmp_path / "outside.png")
    images = [{"bytes": b"", "path": "0"}, {"bytes": None, "path": path}, {"bytes": b"", "path": "2"}]
    _write(shapes / "train.parquet", images=images, statistics=statistics)
    with pytest.raises(DomainError, match=f"train.parquet, {message}"):
        read_domain(shapes)


def _spoil(split: str, **changes: Any) -> Callable[[Path], object]:
    return lambda root: _write(root / f"{split}.parquet", **changes)


def _spoil_both(**changes: Any) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        for split in ("train", "test"):
            _write(root / f"{split}.parquet", **changes)

    return spoil


def _rename(**names: str) -> Callable[[Path], object]:
    return lambda root: [(root / f"{old}.parquet").rename(root / f"{new}.parquet") for old, new in names.items()]


def _cut_short(root: Path) -> None:
    (root / "train.parquet").write_bytes((root / "train.parquet").read_bytes()[:-20])


def _fill_with(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "train.parquet").write_bytes(content)


BAD_PARQUET: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (_fill_with(b"not Parquet"), "train.parquet is not a Parquet file"),
    "empty file": (_fill_with(b""), "train.parquet is not a Parquet file"),
    "cut short": (_cut_short, "train.parquet is not a Parquet file"),
    "no image": (_spoil("train", columns=("img", "label")), "no column 'image' .*img, label.*rename"),
    "no label": (_spoil("test", columns=("image", "y")), "test.parquet has no column 'label' .*image, y.*rename"),
    "bare bytes": (_spoil("train", images=[b"a", b"b", b"c"]), "'image' is binary, not struct"),
    "text labels": (_spoil("train", labels=["a", "b", "c"]), "'label' is string, not integers"),
    "fractions": (_spoil("train", labels=[0.0, 1.0, 2.0]), "'label' is double, not integers"),
    "no names": (_spoil("train", names=None), "names no classes .*ClassLabel"),
    "high label": (_spoil("test", labels=[0, 3]), "test.parquet, row 1 .*label 3 is outside 0 .. 2"),
    "negative label": (_spoil("train", labels=[0, 1, -1, 2]), "row 2 .*label -1 is outside 0 .. 2"),
    "null label": (_spoil("train", labels=[0, None, 1]), "row 1 .*label is null"),
    "class without picture": (_spoil("train", labels=[0, 2, 0]), "1 of 3 classes have no picture in train: 'square'"),
    "empty split": (_spoil("test", labels=[], images=[]), "split 'test' is empty"),
    "no class": (_spoil_both(labels=[], images=[], names=[]), "has 0 classes"),
    "one class": (_spoil_both(labels=[0], names=["a"]), "has 1 classes"),
    "duplicate names": (_spoil_both(names=["a", "b", "a"]), "more than one class is named 'a'"),
    "blank name": (_spoil_both(names=["a", "b", " "]), "name of a class is empty"),
    "different names": (_spoil("test", names=["square", "circle", "star"]), "name different classes"),
    "no test": (lambda root: (root / "test.parquet").unlink(), "has no test split; add"),
    "no train": (lambda root: (root / "train.parquet").unlink(), "has no train split; add"),
    "unknown names": (_rename(train="a", test="b"), "none of a split .a.parquet, b.parquet"),
    "two data sets": (_spoil("other/train"), "holds 2 data sets; give one of them: .*shapes/other"),
    "missing shard": (_rename(train="train-00000-of-00003"), "lacks 2 of the 3 shards of split 'train', number 00001"),
    "left-over shard": (_spoil("train-00000-of-00001"), "more than one writing of split 'train'"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
@pytest.mark.usefixtures("undecoded")
def test_bad_parquet_is_an_error_that_names_the_fix(case: str, shapes: Path) -> None:
    spoil, message = BAD_PARQUET[case]
    spoil(shapes)
    with pytest.raises(DomainError, match=message):
        read_domain(shapes)


def test_a_damaged_row_group_costs_its_own_pictures_only(tmp_path: Path) -> None:
    _write(tmp_path / "test.parquet")
    images = [{"bytes": bytes([row]) * 5000, "path": str(row)} for row in range(6)]
    _write(tmp_path / "train.parquet", labels=[0, 1, 2] * 2, images=images, row_group_size=2)
    column = pq.ParquetFile(tmp_path / "train.parquet").metadata.row_group(1).column(0)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "train.parquet").write_bytes(content)
    train = read_domain(tmp_path).splits["train"]
    assert train.read_bytes(0)[0] == 0 and train.read_bytes(5)[0] == 5
    for index in (2, 3):
        with pytest.raises(PictureError, match="train.parquet is .*damaged"):
            train.read_bytes(index)


def test_reading_holds_few_row_groups_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "test.parquet")
    images = [{"bytes": np.random.default_rng(row).bytes(100_000), "path": str(row)} for row in range(60)]
    _write(tmp_path / "train.parquet", labels=[0, 1, 2] * 20, images=images, row_group_size=5)
    monkeypatch.setattr(parquet_split, "_CACHE_BYTES", 1_200_000)  # two row groups
    before = pa.total_allocated_bytes()
    train = read_domain(tmp_path).splits["train"]
    for index in [*range(60), 3, 57, 21]:
        assert train.read_bytes(index) == images[index]["bytes"]
        # One row group above the limit: the one that was just read, before the oldest goes.
        assert pa.total_allocated_bytes() - before < 2_500_000


def test_a_split_travels_to_another_process_without_its_pictures(shapes: Path) -> None:
    train = read_domain(shapes).splits["train"]
    expected = [train.read_bytes(index) for index in range(len(train))]
    sent = pickle.dumps(train)
    assert len(sent) < len(expected[0]) * len(expected)
    received = pickle.loads(sent)
    assert received.ids == train.ids and np.array_equal(received.class_ids, train.class_ids)
    assert [received.read_bytes(index) for index in range(len(train))] == expected
