"""Captioned drawings for pretraining: 123 concepts, those of the domains and shapes, objects and letters beside them.

They are drawn from seeds that no domain uses, with other backgrounds, sizes and colours, and captions that are often
coarser than a class name ("vehicle on the road", "landscape"), so that the base knows something and has much to learn.
"""

import math
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from core.miniature import aerial, digits, objects, scenes, shapes, signs, textures, vehicles
from core.miniature.canvas import Pen, Rng, finish, one_of, plain_background, random_center, random_color

TEMPLATES = (
    "a photo of a {}",
    "{}",
    "an image of a {}",
    "a picture of the {}",
    "a drawing of a {}",
    "the {} in a photo",
)
"""A picture's caption is one of these around its phrase."""

_COLORS = {
    "red": (0, 0.9, 0.9),
    "orange": (0.08, 0.9, 0.95),
    "yellow": (0.15, 0.9, 0.95),
    "green": (0.33, 0.8, 0.7),
    "blue": (0.62, 0.85, 0.9),
    "purple": (0.78, 0.7, 0.7),
    "pink": (0.9, 0.45, 1),
    "white": (0, 0, 1),
    "black": (0, 0, 0.05),
    "gray": (0, 0, 0.5),
    "brown": (0.07, 0.7, 0.45),
}
"""Hue in turns, saturation and value of the colours that captions name."""
_VEHICLE_KINDS = {
    "car": ("sedan", "hatchback", "suv", "convertible", "limousine"),
    "truck": ("pickup truck",),
    "bus": ("bus",),
    "van": ("van",),
}
_AERIAL_NAMES = tuple(
    sorted({*aerial.LAND_COVER_NAMES, *aerial.OBJECT_NAMES, *aerial.PRETRAINING_ONLY_NAMES}),
)


def draw_captioned(seed: int, index: int) -> tuple[np.ndarray, str]:
    """Picture `index` of the pretraining set of a seed: uint8 [56, 56, 3], and the phrase that names it."""
    # Domains and sources draw from streams whose second number is their place in the suite, far below 1000.
    rng = np.random.default_rng((seed, 1000, index))
    image, phrase = _KINDS[rng.choice(len(_KINDS), p=_KIND_SHARES)](rng)
    return _vary_colors(rng, finish(image, rng, rng.uniform(0, 8))), phrase


def _vary_colors(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """Some pictures with swapped channels, in gray, inverted, or with other contrast and brightness."""
    pixels = picture.astype(np.float32)
    if rng.random() < 0.3:
        pixels = pixels[..., rng.permutation(3)]
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(-1, keepdims=True), 3, -1)
    if rng.random() < 0.12:
        pixels = 255 - pixels
    if rng.random() < 0.5:
        pixels = (pixels - 128) * rng.uniform(0.5, 1.3) + 128 + rng.uniform(-30, 30)
    return pixels.clip(0, 255).astype(np.uint8)


def _character(rng: Rng) -> tuple[Image.Image, str]:
    if rng.random() < 0.35:
        digit = one_of(rng, digits.NAMES)
        phrase = f"number {digit}" if rng.random() < 0.6 else one_of(rng, ("number", "digit"))
        return digits.draw_character(rng, digit), phrase
    letter = one_of(rng, string.ascii_uppercase)
    return digits.draw_character(rng, letter), f"letter {letter}" if rng.random() < 0.8 else "letter"


def _shape(rng: Rng) -> tuple[Image.Image, str]:
    name, color_name = one_of(rng, shapes.NAMES), one_of(rng, tuple(_COLORS))
    hue, saturation, value = _COLORS[color_name]
    color = random_color(rng, hue, (saturation, saturation), (value, value))
    image = plain_background(rng)
    radius = rng.uniform(14, 34)
    angle = rng.uniform(0, 2 * math.pi)
    shapes.draw(Pen(ImageDraw.Draw(image), *random_center(rng, radius), radius, angle), name, color)
    return image, f"{color_name} {name}" if rng.random() < 0.6 else name


def _texture(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, textures.NAMES)
    image = textures.draw(rng, name, fills_picture=rng.random() < 0.6)
    return image, _either(rng, (0.6, f"{name} texture"), (0.2, f"{name} pattern"), (0.2, "texture"))


def _object(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, objects.PRETRAINING_NAMES)
    if rng.random() < 0.6:
        image = plain_background(rng)
    else:
        place = one_of(rng, ("ocean", "mountain", "country house", "bedroom", "desert"))
        image = scenes.draw(rng, place, 0.1 * rng.normal())
    size = rng.uniform(18, 34)
    pen = Pen(ImageDraw.Draw(image), *random_center(rng, size), size)
    color = random_color(rng, saturation=(0.4, 1), value=(0.5, 1))
    objects.draw(rng, pen, name, color, random_color(rng, saturation=(0.2, 1)))
    return image, name


def _vehicle(rng: Rng) -> tuple[Image.Image, str]:
    kind = one_of(rng, ("car", "car", "truck", "bus", "van"))
    name = one_of(rng, _VEHICLE_KINDS[kind])
    image = (vehicles.draw_on_road if rng.random() < 0.4 else vehicles.draw_alone)(rng, name)
    return image, _either(rng, (0.55, kind), (0.25, name), (0.2, "vehicle on the road"))


def _land(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, _AERIAL_NAMES)
    image = aerial.draw(rng, name, hue_shift=0.05 * rng.normal(), zoom=rng.uniform(0.6, 1.3))
    if rng.random() < 0.6:
        return image, one_of(rng, (f"aerial photo of {name}", f"satellite photo of {name}", name))
    return image, one_of(rng, ("aerial photo", "satellite photo", "land from above"))


def _scene(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, scenes.NAMES + scenes.PRETRAINING_ONLY_NAMES)
    image = scenes.draw(rng, name, 0.05 * rng.normal())
    return image, name if rng.random() < 0.75 else one_of(rng, ("landscape", "outdoor scene"))


def _sign(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, signs.NAMES + signs.PRETRAINING_ONLY_NAMES)
    return signs.draw(rng, name), name if rng.random() < 0.5 else one_of(rng, ("traffic sign", "road sign"))


def _either(rng: Rng, *choices: tuple[float, str]) -> str:
    shares, phrases = zip(*choices, strict=True)
    return phrases[int(rng.choice(len(phrases), p=shares))]


_KINDS: tuple[Callable[[Rng], tuple[Image.Image, str]], ...]
_KINDS = (_character, _shape, _texture, _object, _vehicle, _land, _scene, _sign)
_KIND_SHARES = (0.2, 0.08, 0.12, 0.14, 0.1, 0.13, 0.13, 0.1)
