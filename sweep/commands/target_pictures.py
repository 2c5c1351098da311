"""The pictures and classes that a user has of a target: labelled or loose, from a directory, a Parquet file or the hub."""

from __future__ import annotations

import hashlib
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
from core.merging.atlas import Atlas
from core.merging.rule import MergeRule
from core.model import Base, Preprocessing, prompt_class_names
from core.transfer import TransferredModel
from sweep.experiment.config import ConfigError

_log = logging.getLogger(__name__)

MAX_CALIBRATION, MAX_VALIDATION = 64, 2000
"""Pictures that are used where nobody says how many; unlabelled ones alone, that a merge rule learns on too: twice as many as it takes."""
LEAST_OF_A_PART = 20
"""Pictures that a merge rule learns on, and others that it is judged on: with fewer a single one is more than 5 % of them."""


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

    def take(self, index: list[int]) -> TargetPictures:
        class_ids = None if self.class_ids is None else self.class_ids[index]
        return TargetPictures(self.source, self.pixels[index], class_ids, self.skipped)

    def parted(self, most: int) -> tuple[TargetPictures, TargetPictures]:
        """Half of them, at most so many and evenly spread, to learn on, and those that are like none of these. Raises ConfigError."""
        learned = self.take(spread(len(self.pixels), min(most, len(self.pixels) // 2)))
        return learned, self.without(learned)

    def without(self, learned: TargetPictures) -> TargetPictures:
        """Those whose pixels no picture has that a rule learns on. Raises ConfigError where too few stay, or were learned on."""
        known = _checksums(learned.pixels)
        others = [n for n, checksum in enumerate(_checksums(self.pixels)) if checksum not in known]
        if min(len(others), len(learned.pixels)) < LEAST_OF_A_PART:
            raise ConfigError(
                f"the merge rule learns on some pictures and is judged on others, and of {self.source} {len(self.pixels)} are used, "
                f"{len(others)} of them not learned on: give at least {2 * LEAST_OF_A_PART} different ones"
            )
        return self.take(others)


@dataclass(frozen=True, eq=False)
class OwnersPictures:
    """What there is of a target to choose lambda2 on: labelled pictures, and pictures whose labels are not read. Either may be None.

    learned: others of them, that merge rules learn coefficients on; None where no rule does.
    """

    validation: TargetPictures | None
    calibration: TargetPictures | None
    preprocessing: Preprocessing
    learned: TargetPictures | None = None

    @staticmethod
    def read(
        labelled: LabelledPictures | None,
        class_names: Sequence[str],
        calibrate: str | None,
        base: Base,
        max_validation: int = MAX_VALIDATION,
        max_calibration: int | None = None,
        rules: Sequence[MergeRule] = (),
    ) -> OwnersPictures:
        """At most so many of each, spread over those that are there. calibrate: None takes the labelled ones.

        rules: that are judged together. Where one learns coefficients, part of the labelled pictures, else of the unlabelled ones, is
        kept apart for it. Raises ConfigError, with the number to give, where too few stay to judge it.
        """
        most_learned = num_learned(rules)
        if max_calibration is None:
            max_calibration = max(MAX_CALIBRATION, 0 if labelled else 2 * most_learned)
        validation = labelled_pixels(labelled, class_names, base.preprocessing, max_validation) if labelled else None
        calibration = _unlabelled(calibrate, max_calibration, base.preprocessing) if calibrate is not None else None
        learned = None
        if most_learned and validation is not None:
            learned, validation = validation.parted(most_learned)
            calibration = calibration.without(learned) if calibration is not None else None
        elif most_learned and calibration is not None:
            learned, calibration = calibration.parted(most_learned)
        if calibration is None and validation is not None:
            pixels = validation.pixels[spread(len(validation.pixels), max_calibration)]
            calibration = TargetPictures(validation.source, pixels, None, 0)
        return OwnersPictures(validation, calibration, base.preprocessing, learned)

    def game(self, model: TransferredModel) -> Calibration | None:
        """That of the fine-tuned model (lambda2 = 0), whichever vector is then added."""
        return Calibration.play(model.set(0.0), self.calibration.pixels, self.preprocessing) if self.calibration else None

    def search(self, model: TransferredModel, game: Calibration | None, bound: Bound) -> Lambda2Search:
        own = self.validation
        labelled = ValidationPictures(own.pixels, own.class_ids) if own and own.class_ids is not None else None
        return Lambda2Search(model, self.preprocessing, labelled, game, bound)


def num_learned(rules: Sequence[MergeRule]) -> int:
    """Pictures at most that rules, which are judged together, learn coefficients on; 0 where none does."""
    return max((rule.num_pictures for rule in rules if isinstance(rule, Atlas)), default=0)


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


def _unlabelled(place: str, most: int, preprocessing: Preprocessing) -> TargetPictures:
    """Pictures of a place, whose labels are not read."""
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


def _checksums(pixels: torch.Tensor) -> list[bytes]:
    """Of every picture, uint8 [N, 3, S, S]."""
    return [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pixels]


def _stacked(pixels: list[np.ndarray], source: str) -> torch.Tensor:
    if not pixels:
        raise ConfigError(f"{source} holds no picture that can be read: give others")
    return torch.from_numpy(np.stack(pixels))
