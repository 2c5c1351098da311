"""Pictures as people hand them over: files, folders, PIL pictures, arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.data.loose_pictures import LoosePicture, read_loose_pictures

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path of a file, a PIL picture of any mode, or RGB uint8 [H, W, 3]."""
Pictures = Picture | Sequence[Picture]
"""One or several; a path may be a folder, whose pictures are all meant; an array may be [N, H, W, 3]."""


class PicturesError(ValueError):
    """What was handed over is no picture; the message says what is."""


def each_picture(pictures: Pictures) -> Iterator[LoosePicture]:
    """The pictures one at a time, in order: RGB, or why one cannot be decoded. Raises PicturesError for what is no picture at all."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4 or isinstance(pictures, Sequence) and not isinstance(pictures, str):
        for number, picture in enumerate(pictures):
            yield from _named(picture, f"picture {number}")
    else:
        yield from _named(pictures, "picture 0")


def _named(picture: Any, name: str) -> Iterator[LoosePicture]:
    if isinstance(picture, str | os.PathLike):
        yield from read_loose_pictures(picture)
    elif isinstance(picture, Image.Image):
        yield LoosePicture(name, picture.convert("RGB"))
    elif isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        yield LoosePicture(name, Image.fromarray(np.ascontiguousarray(picture)))
    else:
        what = f"an array {list(picture.shape)} of {picture.dtype}" if isinstance(picture, np.ndarray) else f"a {type(picture).__name__}"
        raise PicturesError(f"{name} is {what}: give a path, a PIL picture, or RGB uint8 [H, W, 3] (values 0 to 255)")
