"""Image folders: classes and splits from directories, nothing from outside, nothing dropped in silence."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from core.data import pictures
from core.data.domains import DomainError, decode_picture, read_domain

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def _write_folder(root: Path, counts: dict[str, int]) -> None:
    for directory, count in counts.items():
        (root / directory).mkdir(parents=True)
        for number in range(count):
            (root / directory / f"{number}.png").write_bytes(pictures.encode_png(PIXELS[number % 12]))


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.Image, "open", lambda *_, **__: pytest.fail("a picture was decoded"))


def test_an_image_folder_with_splits_is_read(tmp_path: Path) -> None:
    counts = {"train/traffic_light": 3, "train/bus": 2, "val/bus": 1, "val/traffic_light": 1}
    _write_folder(tmp_path / "street", counts)
    domain = read_domain(tmp_path / "street")
    assert domain.class_names == ("bus", "traffic light")
    assert domain.splits["train"].class_ids.tolist() == [0, 0, 1, 1, 1]
    assert domain.splits["test"].ids == ["val/bus/0.png", "val/traffic_light/0.png"]
    last = pickle.loads(pickle.dumps(domain.splits["train"])).read_bytes(4)
    assert np.array_equal(np.asarray(decode_picture(last)), PIXELS[2])


def test_an_image_folder_without_splits_gives_a_fifth_to_test_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # "train" is a class here, as in CIFAR-100: its pictures lie in it directly.
    _write_folder(tmp_path / "vehicles", {"train": 200, "bus": 200, "rare": 1})
    domain = read_domain(tmp_path / "vehicles")
    assert "a fifth of its pictures" in caplog.text
    assert domain.class_names == ("bus", "rare", "train")
    train, test = domain.splits["train"], domain.splits["test"]
    assert len(train) + len(test) == 401 and not set(train.ids) & set(test.ids)
    # Binomial(400, 0.2) has standard deviation 8; five of them are no matter of chance.
    assert abs(len(test) - 80) < 40
    assert "rare/0.png" in train.ids

    (tmp_path / "vehicles/bus/0.png").unlink()
    _write_folder(tmp_path / "vehicles", {"tram": 50})
    again = read_domain(tmp_path / "vehicles").splits["test"]
    assert set(test.ids) - {"bus/0.png"} == {name for name in again.ids if not name.startswith("tram/")}


def test_the_smallest_image_folder_still_has_a_test_picture(tmp_path: Path) -> None:
    _write_folder(tmp_path / "few", {"a": 2, "b": 1})
    splits = read_domain(tmp_path / "few").splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}


def test_files_that_are_no_pictures_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write_folder(tmp_path / "d", {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1})
    for name in ("train/a/notes.txt", "train/stray.png", "train/a/.hidden.png"):
        (tmp_path / "d" / name).write_bytes(b"")
    domain = read_domain(tmp_path / "d")
    assert domain.splits["train"].ids == ["train/a/0.png", "train/b/0.png"]
    assert "2 files are not read" in caplog.text and "notes.txt" in caplog.text and "stray.png" in caplog.text


BAD_FOLDERS: dict[str, tuple[dict[str, int], str]] = {
    "no pictures in a class": ({"train/a": 1, "train/b": 0, "test/a": 1}, "no picture in train: 'b'"),
    "class only in test": ({"train/a": 1, "train/b": 1, "test/c": 1}, "no picture in train: 'c'"),
    "one class": ({"train/a": 1, "test/a": 1}, "has 1 classes"),
    "no class directories": ({"train": 2, "test": 2}, "has 0 classes"),
    "no test": ({"train/a": 1, "train/b": 1}, "has no test split"),
    "no train": ({"test/a": 1, "test/b": 1}, "has no train split"),
    "two spellings": ({"train/a_b": 1, "train/a b": 1, "test/a b": 1}, "named 'a b'"),
    "two validations": ({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}, "two directories for split"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
@pytest.mark.usefixtures("undecoded")
def test_a_bad_image_folder_is_an_error_that_names_the_fix(case: str, tmp_path: Path) -> None:
    counts, message = BAD_FOLDERS[case]
    _write_folder(tmp_path / "d", counts)
    with pytest.raises(DomainError, match=message):
        read_domain(tmp_path / "d")


@pytest.mark.parametrize("link", ["train/a/link.png", "train/c", "train/b/album"])
def test_an_image_folder_with_a_link_that_leaves_it_is_refused(tmp_path: Path, link: str) -> None:
    _write_folder(tmp_path / "d", {"train/a": 1, "train/b": 1, "test/a": 1})
    _write_folder(tmp_path / "outside", {"c": 1})
    target = tmp_path / "outside/c"
    (tmp_path / "d" / link).symlink_to(target / "0.png" if link.endswith(".png") else target)
    with pytest.raises(DomainError, match=f"{link} is a link that leaves the data directory"):
        read_domain(tmp_path / "d")


def test_a_link_inside_the_image_folder_is_a_picture_like_others(tmp_path: Path) -> None:
    _write_folder(tmp_path / "d", {"train/a": 1, "train/b": 1, "test/a": 1})
    (tmp_path / "d/test/a/1.png").symlink_to("../../train/a/0.png")
    split = read_domain(tmp_path / "d").splits["test"]
    assert split.read_bytes(1) == (tmp_path / "d/train/a/0.png").read_bytes()
