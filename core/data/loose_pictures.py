"""Pictures that belong to no data set: a file, or all files of a directory, decoded one at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from core.data.directory import DomainError
from core.data.image_folder import PICTURE_SUFFIXES
from core.data.pictures import PictureError, decode_picture


@dataclass(frozen=True)
class LoosePicture:
    """A picture by its name: relative to the directory that was asked for. picture: RGB, or why it cannot be decoded."""

    name: str
    picture: Image.Image | PictureError


def find_pictures(place: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The picture files at a path, sorted: itself, or those below it by their suffix; hidden ones are left out, links are not followed.

    Raises DomainError where there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DomainError(f"there is no picture and no directory {path}: give a file, or a directory with pictures")
    found = []
    for directory, below, files in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(directory, name) for name in files if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")]
    if not found:
        raise DomainError(f"{path} holds no picture ({', '.join(PICTURE_SUFFIXES[:4])} ...): give another directory")
    return tuple(sorted(found))


def read_loose_pictures(place: str | os.PathLike[str], paths: tuple[Path, ...] | None = None) -> Iterator[LoosePicture]:
    """The pictures that `find_pictures` finds at a path, or some of them. A picture bomb is a PictureError like damage is."""
    root = Path(place).expanduser()
    for path in find_pictures(place) if paths is None else paths:
        name = path.name if path == root else path.relative_to(root).as_posix()
        try:
            yield LoosePicture(name, decode_picture(path.read_bytes()))
        except PictureError as error:
            yield LoosePicture(name, error)
        except OSError as error:
            yield LoosePicture(name, PictureError(f"it cannot be read: {error.strerror or error}"))
