"""The scores of each picture, by reference: from them two models can be compared on the same pictures without another pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from core.metrics import Array

PER_PICTURE = "per_picture.npz"

PictureScores = Mapping[str, Array]
"""Name of a measured score -> its value for each picture, as `core.metrics.per_picture_scores` gives them."""


def save_per_picture(directory: Path, values: Mapping[str, PictureScores]) -> None:
    """Write PER_PICTURE: the pictures' scores, by the reference's name."""
    arrays = {f"{reference}/{score}": np.asarray(found, np.float64) for reference, of in values.items() for score, found in of.items()}
    np.savez_compressed(directory / PER_PICTURE, **arrays)  # type: ignore[arg-type]


def load_per_picture(path: Path) -> dict[str, dict[str, Array]]:
    """What `save_per_picture` wrote."""
    found: dict[str, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            reference, _, score = name.rpartition("/")
            found.setdefault(reference, {})[score] = arrays[name]
    return found
