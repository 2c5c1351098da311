"""The eight domains of the miniature suite: class names, prompt templates and drawings.

Each mirrors one of the paper's data sets (section 5): cars Stanford Cars, textures DTD, land_cover EuroSAT,
traffic_signs GTSRB, aerial_objects RESISC45, scenes SUN397, street_digits SVHN and clean_digits MNIST.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from core.miniature import aerial, digits, scenes, signs, textures, vehicles
from core.miniature.canvas import PICTURE_SIZE, Rng, finish

Split = Literal["train", "test"]

PROMPT_TEMPLATES = ("a photo of a {}", "{}", "an image of a {}", "a picture of the {}")


@dataclass(frozen=True)
class MiniatureDomain:
    """A domain's name, its class names in the order of their ids, and its prompt templates with one "{}" each."""

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class _Drawn:
    """How a domain is drawn and what its prompts call a class."""

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
DOMAIN_NAMES = tuple(_DOMAINS)


def domain_spec(name: str) -> MiniatureDomain:
    """The domain's class names and prompt templates; ValueError if there is no such domain."""
    drawn = _drawn(name)
    templates = tuple(template.format(phrase) for phrase in drawn.phrases for template in PROMPT_TEMPLATES)
    return MiniatureDomain(name, drawn.class_names, templates)


def draw_split(name: str, split: Split, num_pictures: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures of a split: uint8 [num_pictures, 56, 56, 3] and class ids, int64 [num_pictures].

    Every run of as many pictures as there are classes holds each class once. A picture depends on its place in the
    split, not on `num_pictures`: asking for more gives the same ones first. ValueError for an unknown domain or split.
    """
    drawn = _drawn(name)
    if split not in ("train", "test"):
        raise ValueError(f'no split is called {split!r}; use "train" or "test"')
    stream = (seed, DOMAIN_NAMES.index(name), int(split == "test"))
    num_classes = len(drawn.class_names)
    class_ids = np.empty(num_pictures, np.int64)
    pictures = np.empty((num_pictures, PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    for index in range(num_pictures):
        round_, place = divmod(index, num_classes)
        if place == 0:
            order = np.random.default_rng((*stream, 0, round_)).permutation(num_classes)
        class_ids[index] = order[place]
        rng = np.random.default_rng((*stream, 1, index))
        image = drawn.draw(rng, drawn.class_names[order[place]], split == "test")
        pictures[index] = finish(image, rng, drawn.pixel_noise)
    return pictures, class_ids


def _drawn(name: str) -> _Drawn:
    if name not in _DOMAINS:
        raise ValueError(f"no domain of the miniature suite is called {name!r}; use one of {', '.join(DOMAIN_NAMES)}")
    return _DOMAINS[name]
