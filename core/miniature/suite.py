"""The drawn data sets of the miniature suite, eight domains and a source: class names, prompt templates and drawings.

Each domain mirrors one of the paper's data sets (section 5): cars Stanford Cars, textures DTD, land_cover EuroSAT,
traffic_signs GTSRB, aerial_objects RESISC45, scenes SUN397, street_digits SVHN and clean_digits MNIST. The source, concepts,
is no target: none of its classes is a class of a domain, so that what it teaches about explanations is of no domain in particular.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from core.data.pictures import encode_png
from core.miniature import aerial, concepts, digits, scenes, signs, textures, vehicles
from core.miniature.canvas import PICTURE_SIZE, Rng, finish

Split = Literal["train", "test"]

PROMPT_TEMPLATES = ("a photo of a {}", "{}", "an image of a {}", "a picture of the {}")


@dataclass(frozen=True)
class MiniatureDomain:
    """A domain's or source's name, its class names in the order of their ids, and its prompt templates with one "{}" each."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class _Drawn:
    """How a data set is drawn and what its prompts call a class."""

    class_names: tuple[str, ...]
    phrases: tuple[str, ...]
    draw: Callable[[Rng, str, bool], Image.Image]
    pixel_noise: float = 3.0


_DOMAINS = {
    "cars": _Drawn(vehicles.NAMES, ("{}",), lambda rng, name, is_test: vehicles.draw_on_road(rng, name)),
    "textures": _Drawn(textures.NAMES[:10], ("{} texture", "{} pattern"), lambda rng, name, is_test: textures.draw(rng, name)),
    "land_cover": _Drawn(
        aerial.LAND_COVER_NAMES,
        ("satellite photo of {}", "{}"),
        lambda rng, name, is_test: aerial.draw(rng, name, zoom=0.7),
    ),
    "traffic_signs": _Drawn(signs.NAMES, ("{}",), lambda rng, name, is_test: signs.draw(rng, name)),
    "aerial_objects": _Drawn(
        aerial.OBJECT_NAMES,
        ("aerial photo of {}", "{}"),
        lambda rng, name, is_test: aerial.draw(rng, name, zoom=1.15),
    ),
    "scenes": _Drawn(scenes.NAMES, ("{}",), lambda rng, name, is_test: scenes.draw(rng, name)),
    "street_digits": _Drawn(digits.NAMES, ("number {}",), lambda rng, name, is_test: digits.draw_street_number(rng, name)),
    "clean_digits": _Drawn(
        digits.NAMES,
        ("number {}",),
        lambda rng, name, is_test: digits.draw_handwritten(rng, name, is_test=is_test),
        pixel_noise=0.0,
    ),
}
_SOURCES = {"concepts": _Drawn(concepts.NAMES, ("{}",), lambda rng, name, is_test: concepts.draw(rng, name))}
_DATA_SETS = _DOMAINS | _SOURCES
# A data set's place is in its seeds: a new one comes last.
_STREAMS = {name: place for place, name in enumerate(_DATA_SETS)}
DOMAIN_NAMES = tuple(_DOMAINS)
"""The domains, each a source and a target."""
SOURCE_NAMES = tuple(_SOURCES)
"""Data sets that explanations are learnt from and never transferred to."""


def domain_spec(name: str) -> MiniatureDomain:
    """The class names and prompt templates of a domain or source; ValueError if there is none of the name."""
    drawn = _drawn(name)
    templates = tuple(template.format(phrase) for phrase in drawn.phrases for template in PROMPT_TEMPLATES)
    return MiniatureDomain(name, drawn.class_names, templates)


class DrawnSplit:
    """The first pictures of a split, each drawn when it is asked for: a data set whose files are a seed.

    Every run of as many pictures as there are classes holds each class once. A picture depends on its place in the split, not on
    `num_pictures`: asking for more gives the same ones first. ids: as of a Parquet split that `write_parquet_split` wrote of them;
    class_ids: int64 [num_pictures]. Raises ValueError for an unknown name or split.
    """

    def __init__(self, name: str, split: Split, num_pictures: int, seed: int = 0) -> None:
        self._drawn = _drawn(name)
        if split not in ("train", "test"):
            raise ValueError(f'no split is called {split!r}; use "train" or "test"')
        self._split, self._name = split, name
        self._stream = (seed, _STREAMS[name], int(split == "test"))
        num_classes = len(self._drawn.class_names)
        rounds = range(-(-num_pictures // num_classes))
        orders = [np.random.default_rng((*self._stream, 0, round_)).permutation(num_classes) for round_ in rounds]
        self.class_ids = np.concatenate([np.empty(0, np.int64), *orders])[:num_pictures].astype(np.int64)
        self.ids = [f"{split}/{index:06d}.png" for index in range(num_pictures)]

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def pieces(self) -> np.ndarray:
        """Each picture is one by itself. [N]"""
        return np.arange(len(self))

    def __reduce__(self) -> tuple[type, tuple[str, str, int, int]]:
        return DrawnSplit, (self._name, self._split, len(self), self._stream[0])

    def pixels(self, index: int) -> np.ndarray:
        """One picture, uint8 [56, 56, 3]."""
        rng = np.random.default_rng((*self._stream, 1, index))
        image = self._drawn.draw(rng, self._drawn.class_names[self.class_ids[index]], self._split == "test")
        return finish(image, rng, self._drawn.pixel_noise)

    def read_bytes(self, index: int) -> bytes:
        """One picture as a PNG file."""
        return encode_png(self.pixels(index))


def draw_split(name: str, split: Split, num_pictures: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a `DrawnSplit`: uint8 [num_pictures, 56, 56, 3] and class ids, int64 [num_pictures]."""
    drawn = DrawnSplit(name, split, num_pictures, seed)
    pictures = np.empty((num_pictures, PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    for index in range(num_pictures):
        pictures[index] = drawn.pixels(index)
    return pictures, drawn.class_ids


def _drawn(name: str) -> _Drawn:
    if name not in _DATA_SETS:
        raise ValueError(
            f"no domain of the miniature suite is called {name!r}; use one of {', '.join(DOMAIN_NAMES)}, "
            f"or the source {' or '.join(SOURCE_NAMES)}"
        )
    return _DATA_SETS[name]
