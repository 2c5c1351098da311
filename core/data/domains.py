"""Domains: labelled image data sets with class names and prompt templates, from Parquet or image folders."""

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from core.data.directory import DataDirectory, DomainError, Listing, open_data_directory
from core.data.image_folder import WHOLE, read_image_folder
from core.data.parquet_layout import WithheldLabelsError, find_parquet_splits, read_parquet_split, write_parquet_split
from core.data.pictures import PictureError, decode_picture

__all__ = [
    "DEFAULT_TEMPLATES",
    "Domain",
    "DomainError",
    "LabelledPictures",
    "PictureError",
    "Split",
    "check_templates",
    "decode_picture",
    "read_domain",
    "read_pictures",
    "validation_indices",
    "write_parquet_split",
]

_log = logging.getLogger(__name__)

DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


class Split(Protocol):
    """The pictures of a split, read one at a time; can be sent to other processes."""

    ids: list[str]  # unique in the domain and the same at each reading; not safe as file names
    class_ids: np.ndarray  # int64 [N], positions in the domain's class_names

    def __len__(self) -> int: ...

    @property
    def pieces(self) -> np.ndarray:
        """Which pictures are read together: for each the number of its piece, from 0. int64 [N]"""
        ...

    def read_bytes(self, index: int) -> bytes:
        """The encoded picture. Raises PictureError where it is damaged, DomainError where its file has gone."""
        ...


@dataclass(frozen=True)
class Domain:
    """A labelled image data set. `fingerprint` is the sha256 of its files; names and templates are not in it."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]  # each with one "{}" for the class name
    splits: Mapping[str, Split]  # "train" and "test"
    fingerprint: str
    source: str = ""  # where it was read, for the record: of a Hub data set with its commit
    quick_fingerprint: str = ""  # of the files' names, sizes and times: that they are still the same


@dataclass(frozen=True)
class LabelledPictures:
    """One split of a labelled image data set. `fingerprint` is of its files' names, sizes and times, not of what is in them."""

    name: str
    split_name: str  # train, test, validation, or all
    class_names: tuple[str, ...]
    templates: tuple[str, ...]  # each with one "{}" for the class name
    pictures: Split
    fingerprint: str
    source: str


def read_domain(
    path_or_url: str | os.PathLike[str],
    *,
    name: str | None = None,
    templates: Sequence[str] | None = None,
    checks_content: bool = True,
) -> Domain:
    """Read and check the domain at a directory or URL, without decoding a picture.

    Parquet in the Hugging Face image layout (`train*.parquet`, `data/train-00000-of-00002.parquet`, `train/*.parquet`),
    an image folder (`train/<class>/...`, or `<class>/...`), or `hf://datasets/owner/name[@revision][/path]` to either.
    A validation split is the test split where there is no labelled test split; a warning says so. Local files are read
    once for the fingerprint; without `checks_content` it is the quick one. Raises DomainError, with the file and the fix.
    """
    checked_templates = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    directory = open_data_directory(path_or_url)
    name = _check_name(_name_of(path_or_url) if name is None else name)
    listing = directory.scan()
    parquet_splits = find_parquet_splits(listing.files)
    if parquet_splits:
        splits, class_names, files = _read_parquet(directory, parquet_splits)
    else:
        splits, class_names, files = _read_folder(directory, listing)
    _check_class_names(directory, class_names)
    _check_splits(directory, class_names, splits)
    quick = directory.quick_fingerprint(files)
    fingerprint = directory.fingerprint(files) if checks_content else quick
    return Domain(name, class_names, checked_templates, splits, fingerprint, str(directory), quick)


def read_pictures(
    path_or_url: str | os.PathLike[str], *, split: str | None = None, templates: Sequence[str] | None = None
) -> LabelledPictures:
    """Read and check one split, without decoding a picture or reading any other split.

    The layouts of `read_domain`, and a single Parquet file. split: train, test, validation, or "all" where files and directories
    name no split; None takes train, or the only one there is. A class may have no picture here. Raises DomainError, with the fix.
    """
    checked_templates = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    text = os.fspath(path_or_url)
    single = PurePosixPath(text).name if text.lower().endswith(".parquet") else None
    directory = open_data_directory(text[: -len(single)].rstrip("/") or "/" if single and "/" in text else "." if single else text)
    name = _check_name(_name_of(text[: -len(".parquet")] if single else text))
    listing = directory.scan()
    parquet = [single] if single else [file for file in listing.files if file.lower().endswith(".parquet")]
    if parquet:
        found = find_parquet_splits(parquet)
        if len(found) > 1:
            raise DomainError(f"{directory} holds {len(found)} data sets; give one of them: {', '.join(sorted(found)[:8])}")
        by_split = next(iter(found.values())) if found else {WHOLE: parquet}
        split = _choose_split(directory, split, by_split)
        pictures: Split
        pictures, class_names, files = read_parquet_split(directory, split, by_split[split])
    else:
        folders, class_names, _ = read_image_folder(directory, listing, divide=False)
        split = _choose_split(directory, split, folders)
        pictures, files = folders[split], folders[split].ids
    _check_class_names(directory, class_names)
    if len(pictures) == 0:
        raise DomainError(f"{directory}: split {split!r} is empty; add pictures to it")
    source = directory.describe(single) if single else str(directory)
    return LabelledPictures(name, split, class_names, checked_templates, pictures, directory.quick_fingerprint(files), source)


def _choose_split(directory: DataDirectory, asked: str | None, there: Mapping[str, object]) -> str:
    if asked is None:
        if "train" in there or len(there) == 1:
            return "train" if "train" in there else next(iter(there))
        raise DomainError(f"{directory} has the splits {', '.join(sorted(there))}; choose one with --split")
    if asked not in there:
        raise DomainError(f"{directory} has no split {asked!r}; it has: {', '.join(sorted(there))}")
    return asked


def validation_indices(ids: Sequence[str], share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation), int64 and ascending: validation are the `share` of the ids with the lowest hashes.

    At least one picture is in each. An id's hash depends on it and the seed alone, so that pictures that are added
    later move only few others between the two.
    """
    if not 0 < share < 1:
        raise ValueError(f"the validation share must lie between 0 and 1, not {share}")
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} pictures cannot be split into train and validation; give at least 2")
    hashes = np.fromiter((hashlib.sha256(f"{seed}:{id_}".encode()).digest() for id_ in ids), dtype="S32", count=len(ids))
    ranks = np.argsort(hashes, kind="stable")
    num_validation = min(max(1, round(share * len(ids))), len(ids) - 1)
    validation = np.sort(ranks[:num_validation]).astype(np.int64)
    train = np.sort(ranks[num_validation:]).astype(np.int64)
    return train, validation


def _read_parquet(
    directory: DataDirectory, found: Mapping[str, Mapping[str, list[str]]]
) -> tuple[dict[str, Split], tuple[str, ...], list[str]]:
    if len(found) > 1:
        places = ", ".join(directory.describe(base) if base else str(directory) for base in sorted(found)[:8])
        raise DomainError(f"{directory} holds {len(found)} data sets; give one of them: {places}")
    ((_, files),) = found.items()
    _check_split_names(directory, set(files))
    train, class_names, train_files = read_parquet_split(directory, "train", files["train"])
    test_name = "test" if "test" in files else "validation"
    try:
        test, test_class_names, test_files = read_parquet_split(directory, test_name, files[test_name])
    except WithheldLabelsError:
        if test_name == "validation" or "validation" not in files:
            raise
        test_name = "validation"
        test, test_class_names, test_files = read_parquet_split(directory, test_name, files[test_name])
    _warn_of_substitute(directory, test_name)
    if class_names != test_class_names:
        raise DomainError(
            f"{directory}: splits 'train' and {test_name!r} name different classes in their schemas; "
            "write both with the same ClassLabel"
        )
    return {"train": train, "test": test}, class_names, sorted({*train_files, *test_files})


def _read_folder(directory: DataDirectory, listing: Listing) -> tuple[dict[str, Split], tuple[str, ...], list[str]]:
    if not listing.files:
        raise DomainError(f"{directory} holds no files; put Parquet files or a directory of pictures per class there")
    parquet = [file for file in listing.files if file.lower().endswith(".parquet")]
    if parquet:
        raise DomainError(
            f"{directory} holds Parquet files, but none of a split ({', '.join(parquet[:3])}); "
            "name them train.parquet and test.parquet, or train-00000-of-00002.parquet and so on"
        )
    splits, class_names, files = read_image_folder(directory, listing)
    _check_split_names(directory, set(splits))
    test_name = "test" if "test" in splits else "validation"
    _warn_of_substitute(directory, test_name)
    return {"train": splits["train"], "test": splits[test_name]}, class_names, files


def _check_split_names(directory: DataDirectory, found: set[str]) -> None:
    if "train" not in found:
        raise DomainError(
            f"{directory} has no train split; add train*.parquet, or a directory train with a directory per class"
        )
    if not found & {"test", "validation"}:
        raise DomainError(
            f"{directory} has no test split; add test*.parquet, or a directory test with a directory per class"
        )


def _warn_of_substitute(directory: DataDirectory, test_name: str) -> None:
    if test_name == "validation":
        _log.warning("%s has no labelled test split: its validation split is used as test", directory)


def _check_class_names(directory: DataDirectory, class_names: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise DomainError(
            f"{directory} has {len(class_names)} classes {list(class_names)}, but classification needs at least 2; "
            "give each class a directory, or name all classes in the schema's ClassLabel"
        )
    if not all(class_name.strip() for class_name in class_names):
        raise DomainError(f"{directory}: the name of a class is empty; name every class, the prompts are made of it")
    try:
        "".join(class_names).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell one
        raise DomainError(f"{directory}: the name of a class is no valid Unicode text; write the names again") from None
    duplicates = sorted({class_name for class_name in class_names if class_names.count(class_name) > 1})
    if duplicates:
        raise DomainError(
            f"{directory}: more than one class is named {', '.join(map(repr, duplicates[:5]))}; give each its own name "
            "(in folder names '_' counts as a space)"
        )


def _check_splits(directory: DataDirectory, class_names: Sequence[str], splits: Mapping[str, Split]) -> None:
    for name, split in splits.items():
        if len(split) == 0:
            raise DomainError(f"{directory}: split {name!r} is empty; add pictures to it")
    counts = np.bincount(splits["train"].class_ids, minlength=len(class_names))
    missing = [class_name for class_name, count in zip(class_names, counts, strict=True) if count == 0]
    if missing:
        raise DomainError(
            f"{directory}: {len(missing)} of {len(class_names)} classes have no picture in train: "
            f"{', '.join(map(repr, missing[:5]))}; add pictures or remove the class"
        )


def _name_of(path_or_url: str | os.PathLike[str]) -> str:
    """The last part of a path; of a Hub data set its name without owner, revision and path."""
    text = os.fspath(path_or_url)
    if text.startswith("hf://datasets/"):
        parts = text.removeprefix("hf://datasets/").split("/")
        return parts[min(1, len(parts) - 1)].split("@")[0]
    if "://" in text:
        return PurePosixPath(text.split("://", 1)[1]).name
    return os.path.basename(os.path.abspath(os.path.expanduser(text)))


def _check_name(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise DomainError(
            f"the domain name {name!r} goes into file names: use up to 64 letters, digits, '_' and '-', not '-' first; "
            "rename the directory or give another name"
        )
    return name


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The prompt templates. Raises DomainError unless there is one at least, each with one {} for the class name and no other brace."""
    if isinstance(templates, str) or not templates:
        raise DomainError("templates must be a list of at least one prompt, such as 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise DomainError(
                f"the template {template!r} must hold '{{}}' once, for the class name, and no other brace"
            )
    return tuple(templates)
