"""The pictures and classes that a user has of a target: labelled or loose, from a directory, a Parquet file or the hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.data.domains import LabelledPictures, PictureError, decode_picture, read_pictures
from core.data.loose_pictures import find_pictures, read_loose_pictures
from core.games.lambda2 import Bound, Calibration, Lambda2Search, ValidationPictures
from core.model import Base, Preprocessing, prompt_class_names
from core.transfer import TransferredModel
from sweep.experiment.config import ConfigError

_log = logging.getLogger(__name__)

MAX_CALIBRATION, MAX_VALIDATION = 64, 2000
"""Pictures that are used where nobody says how many."""


@dataclass(frozen=True, eq=False)
class TargetPictures:
    """Pictures of one purpose: pixels uint8 [N, 3, S, S]; class_ids: int64 [N] where they are labelled; skipped: those that are damaged."""

    source: str
    pixels: torch.Tensor
    class_ids: np.ndarray | None
    skipped: int

    @property
    def described(self) -> dict[str, Any]:
        source = self.source if "://" in self.source else Path(self.source).name  # the model is meant to be given away
        return {"source": source, "num_pictures": len(self.pixels), "num_skipped": self.skipped}


@dataclass(frozen=True, eq=False)
class OwnersPictures:
    """What there is of a target to choose lambda2 on: labelled pictures, and pictures whose labels are not read. Either may be None."""

    validation: TargetPictures | None
    calibration: TargetPictures | None
    preprocessing: Preprocessing

    @staticmethod
    def read(
        labelled: LabelledPictures | None,
        class_names: Sequence[str],
        calibrate: str | None,
        base: Base,
        max_validation: int = MAX_VALIDATION,
        max_calibration: int = MAX_CALIBRATION,
    ) -> OwnersPictures:
        """At most so many of each, spread over those that are there. calibrate: None takes the labelled ones."""
        validation = labelled_pixels(labelled, class_names, base.preprocessing, max_validation) if labelled else None
        return OwnersPictures(validation, _calibration(calibrate, max_calibration, base.preprocessing, validation), base.preprocessing)

    def game(self, model: TransferredModel) -> Calibration | None:
        """That of the fine-tuned model (lambda2 = 0), whichever vector is then added."""
        return Calibration.play(model.set(0.0), self.calibration.pixels, self.preprocessing) if self.calibration else None

    def search(self, model: TransferredModel, game: Calibration | None, bound: Bound) -> Lambda2Search:
        own = self.validation
        labelled = ValidationPictures(own.pixels, own.class_ids) if own and own.class_ids is not None else None
        return Lambda2Search(model, self.preprocessing, labelled, game, bound)


def read_validation(place: str | None, class_names: Sequence[str] | None) -> tuple[LabelledPictures | None, tuple[str, ...]]:
    """Labelled pictures, where a place is given, and the names of the classes: as given, else theirs. Raises ConfigError."""
    labelled = read_pictures(place, split=held_out_split(place)) if place else None
    names = prompt_class_names(class_names or (labelled.class_names if labelled else ()))
    check_class_names(names)
    return labelled, names


def held_out_split(place: str | None) -> str | None:
    """The split of labelled pictures that no training has seen: that of the name validation or test, where there are splits."""
    path = Path(place or "").expanduser()
    return next((split for split in ("validation", "test") if (path / split).is_dir() or list(path.glob(f"{split}*.parquet"))), None)


def check_class_names(names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or doubled or not all(name.strip() for name in names):
        raise ConfigError(f"class names must be two or more, all different and none empty{f' (twice: {doubled[:3]})' if doubled else ''}")


def labelled_pixels(
    labelled: LabelledPictures, class_names: Sequence[str], preprocessing: Preprocessing, most: int
) -> TargetPictures:
    """Raises ConfigError where the pictures' classes are not among the names."""
    names = prompt_class_names(labelled.class_names)
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise ConfigError(
            f"--validation {labelled.source} has {len(unknown)} classes that are not named ({', '.join(unknown[:3])}): its directories and "
            "--classes must name the same classes"
        )
    ids = np.array([list(class_names).index(name) for name in names])[labelled.pictures.class_ids]
    pixels, kept, skipped = [], [], 0
    for index in spread(len(labelled.pictures), most):
        try:
            pixels.append(preprocessing.pixels(decode_picture(labelled.pictures.read_bytes(index))))
            kept.append(index)
        except PictureError as error:
            _log.warning("%s: %s is skipped: %s", labelled.source, labelled.pictures.ids[index], error)
            skipped += 1
    return TargetPictures(labelled.source, _stacked(pixels, labelled.source), ids[kept], skipped)


def _calibration(
    place: str | None, most: int, preprocessing: Preprocessing, validation: TargetPictures | None
) -> TargetPictures | None:
    """Unlabelled pictures of a place; without it the labelled ones, whose labels it does not read."""
    if place is None:
        if validation is None:
            return None
        return TargetPictures(validation.source, validation.pixels[spread(len(validation.pixels), most)], None, 0)
    if "://" in place or place.endswith(".parquet") or list(Path(place).glob("*.parquet")):
        labelled = read_pictures(place, split=held_out_split(place))
        names = prompt_class_names(labelled.class_names)
        return labelled_pixels(labelled, names, preprocessing, most)
    paths = find_pictures(place)
    chosen = tuple(paths[i] for i in spread(len(paths), most))
    pixels, skipped = [], 0
    for loose in read_loose_pictures(place, chosen):
        if isinstance(loose.picture, PictureError):
            _log.warning("%s: %s is skipped: %s", place, loose.name, loose.picture)
            skipped += 1
        else:
            pixels.append(preprocessing.pixels(loose.picture))
    return TargetPictures(place, _stacked(pixels, place), None, skipped)


def spread(number: int, most: int) -> list[int]:
    """At most so many of the first `number` integers, evenly spread: pictures of one class often stand together."""
    return list(range(number)) if number <= most else np.linspace(0, number - 1, most).round().astype(int).tolist()


def _stacked(pixels: list[np.ndarray], source: str) -> torch.Tensor:
    if not pixels:
        raise ConfigError(f"{source} holds no picture that can be read: give others")
    return torch.from_numpy(np.stack(pixels))
