"""Image folders: a directory per class, with or without split directories above."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from core.data.directory import DataDirectory, DomainError, Listing
from core.data.parquet_layout import SPLIT_NAMES

_log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_TEST_SHARE = 0.2
WHOLE = "all"
"""The split of a data set that has none."""


class FolderSplit:
    """Pictures that are files of their own. `ids` are their paths in the data directory, `class_ids` int64 [N]."""

    def __init__(self, directory: DataDirectory, relatives: Sequence[str], class_ids: Sequence[int]) -> None:
        self.ids = list(relatives)
        self.class_ids = np.asarray(class_ids, dtype=np.int64)
        self._directory = directory

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pieces(self) -> np.ndarray:
        """Each picture is one by itself. [N]"""
        return np.arange(len(self))

    def read_bytes(self, index: int) -> bytes:
        """The encoded picture. Raises DomainError where its file has gone."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return self._directory.read(self.ids[index])


def read_image_folder(
    directory: DataDirectory, listing: Listing, *, divide: bool = True
) -> tuple[dict[str, FolderSplit], tuple[str, ...], list[str]]:
    """The splits by name (train, test, validation), the class names, and the files used.

    Class names are the directories' names with "_" as a space, class ids their rank. Without split directories a fifth
    of the pictures, chosen by the hash of their path, is the test split; with divide=False all are one split, "all".
    Raises DomainError; decodes nothing.
    """
    pictures = [file for file in listing.files if PurePosixPath(file).suffix.lower() in PICTURE_SUFFIXES]
    split_directories = _find_split_directories(directory, pictures, keep_validation=not divide)
    by_split: dict[str, dict[str, list[str]]] = {}  # split -> class directory -> pictures
    if split_directories:
        for top in split_directories:
            if SPLIT_NAMES[top.lower()] in by_split:
                raise DomainError(f"{directory} has two directories for split {SPLIT_NAMES[top.lower()]!r}; keep one")
            by_split[SPLIT_NAMES[top.lower()]] = _group_by_class(f"{top}/", pictures, listing)
    elif not divide:
        by_split[WHOLE] = _group_by_class("", pictures, listing)
    else:
        by_class = _group_by_class("", pictures, listing)
        by_split["train"] = {name: [file for file in files if not _is_test(file)] for name, files in by_class.items()}
        by_split["test"] = {name: [file for file in files if _is_test(file)] for name, files in by_class.items()}
        _keep_a_train_picture(by_split)
        _log.warning(
            "%s has no split directories: a fifth of its pictures, by the hash of their path, is the test split",
            directory,
        )

    used = {file for by_class in by_split.values() for files in by_class.values() for file in files}
    _check_entries(directory, listing, used, tuple(f"{top}/" for top in split_directories))
    class_directories = sorted({name for by_class in by_split.values() for name in by_class})
    rank = {name: class_id for class_id, name in enumerate(class_directories)}
    splits = {}
    for split, by_class in by_split.items():
        rows = sorted((file, rank[name]) for name, files in by_class.items() for file in files)
        splits[split] = FolderSplit(directory, [file for file, _ in rows], [class_id for _, class_id in rows])
    return splits, tuple(name.replace("_", " ") for name in class_directories), sorted(used)


def _find_split_directories(directory: DataDirectory, pictures: Sequence[str], keep_validation: bool) -> list[str]:
    """The top directories that are splits: those with a split's name, where "train" holds directories of pictures.

    "train" can be a class as well (CIFAR-100 has one): then the pictures lie in it directly. Beside a test split the
    validation split is not needed, unless it is to be kept.
    """
    depths: dict[str, Counter[bool]] = defaultdict(Counter)
    for picture in pictures:
        parts = picture.split("/")
        if len(parts) > 1:
            depths[parts[0]][len(parts) > 2] += 1
    named = [top for top in sorted(depths) if top.lower() in SPLIT_NAMES]
    if not named or (len(named) < len(depths) and not all(depths[top][True] for top in named)):
        return []
    others = sorted(set(depths) - set(named))
    if not keep_validation and any(SPLIT_NAMES[top.lower()] == "test" for top in named):
        named = [top for top in named if SPLIT_NAMES[top.lower()] != "validation"]
    if others:
        _log.warning("%s: beside the splits %s the directories %s are not read", directory, named, others)
    return named


def _group_by_class(prefix: str, pictures: Sequence[str], listing: Listing) -> dict[str, list[str]]:
    """Pictures by class directory below `prefix`; a directory without pictures is a class with none."""
    below = [path[len(prefix) :] for path in listing.directories if path.startswith(prefix)]
    by_class: dict[str, list[str]] = {path: [] for path in below if "/" not in path}
    for picture in pictures:
        if picture.startswith(prefix):
            class_directory, slash, _ = picture[len(prefix) :].partition("/")
            if slash:
                by_class[class_directory].append(picture)
    return by_class


def _is_test(relative: str) -> bool:
    return int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8]) < _TEST_SHARE * 2**64


def _keep_a_train_picture(by_split: dict[str, dict[str, list[str]]]) -> None:
    """A small class whose pictures all hash to test gives one back; a small data set gets a test picture."""
    train, test = by_split["train"], by_split["test"]
    for name in train:
        if test[name] and not train[name]:
            train[name].append(test[name].pop())
    if not any(test.values()):
        spare = sorted(name for name, files in train.items() if len(files) > 1)
        if spare:
            test[spare[0]].append(train[spare[0]].pop())


def _check_entries(directory: DataDirectory, listing: Listing, used: set[str], prefixes: tuple[str, ...]) -> None:
    """Refuse links that leave the directory, and say which files are not read."""
    inside = [file for file in listing.files if file.startswith(prefixes)] if prefixes else listing.files
    for file in inside:
        if file in listing.irregular:
            directory.check(file)
    unused = [file for file in inside if file not in used]
    if unused:
        _log.warning(
            "%s: %d files are not read, being no pictures or in no class directory: %s",
            directory,
            len(unused),
            ", ".join(unused[:3]),
        )
