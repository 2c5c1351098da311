"""Captioned drawings for pretraining: 123 concepts, those of the domains and shapes, objects and letters beside them.

They are drawn from seeds that no domain uses, with other backgrounds, sizes and colours, and captions that are often
coarser than a class name ("vehicle on the road", "landscape"), so that the base knows something and has much to learn.
"""

import math
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from core.miniature import aerial, digits, scenes, signs, textures, vehicles
from core.miniature.canvas import (
    Color,
    Pen,
    Rng,
    finish,
    one_of,
    plain_background,
    random_center,
    random_color,
    regular_polygon,
)

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
_SHAPE_NAMES = (
    *("circle", "ring", "triangle", "square", "hexagon", "octagon", "star", "cross", "heart", "arrow", "diamond"),
    *("line",),
)
_OBJECT_NAMES = (
    *("face", "flower", "fish", "clock", "mushroom", "balloon", "rocket", "chair", "envelope", "umbrella", "tree"),
    *("ladder", "cup", "bicycle"),
)
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
    # Domains draw from streams whose second number is below eight.
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
    name, color_name = one_of(rng, _SHAPE_NAMES), one_of(rng, tuple(_COLORS))
    hue, saturation, value = _COLORS[color_name]
    color = random_color(rng, hue, (saturation, saturation), (value, value))
    image = plain_background(rng)
    radius = rng.uniform(14, 34)
    angle = rng.uniform(0, 2 * math.pi)
    _draw_shape(Pen(ImageDraw.Draw(image), *random_center(rng, radius), radius, angle), name, color)
    return image, f"{color_name} {name}" if rng.random() < 0.6 else name


def _texture(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, textures.NAMES)
    image = textures.draw(rng, name, fills_picture=rng.random() < 0.6)
    return image, _either(rng, (0.6, f"{name} texture"), (0.2, f"{name} pattern"), (0.2, "texture"))


def _object(rng: Rng) -> tuple[Image.Image, str]:
    name = one_of(rng, _OBJECT_NAMES)
    if rng.random() < 0.6:
        image = plain_background(rng)
    else:
        place = one_of(rng, ("ocean", "mountain", "country house", "bedroom", "desert"))
        image = scenes.draw(rng, place, 0.1 * rng.normal())
    size = rng.uniform(18, 34)
    _draw_object(rng, Pen(ImageDraw.Draw(image), *random_center(rng, size), size), name)
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


def _draw_shape(pen: Pen, name: str, color: Color) -> None:
    """One unit is the shape's radius."""
    match name:
        case "circle":
            pen.ellipse(0, 0, 1, fill=color)
        case "ring":
            pen.ellipse(0, 0, 1, outline=color, width=int(0.3 * pen.unit))
        case "triangle" | "square" | "hexagon" | "octagon":
            num_corners = {"triangle": 3, "square": 4, "hexagon": 6, "octagon": 8}[name]
            pen.polygon(regular_polygon(num_corners), color)
        case "star":
            tips, dents = regular_polygon(5), regular_polygon(5, 0.45, math.pi / 5)
            pen.polygon([point for pair in zip(tips, dents, strict=True) for point in pair], color)
        case "cross":
            pen.box(0, 0, 2, 0.6, color)
            pen.box(0, 0, 0.6, 2, color)
        case "heart":
            upright = Pen(pen.draw, pen.x, pen.y, pen.unit)
            for lobe in (-0.5, 0.5):
                upright.ellipse(lobe, -0.3, 0.5, fill=color)
            upright.polygon([(-0.95, -0.1), (0.95, -0.1), (0, 1)], color)
        case "arrow":
            pen.box(0, 0, 1.6, 0.3, color)
            pen.polygon([(1.2, 0), (0.49, -0.5), (0.49, 0.5)], color)
        case "diamond":
            upright = Pen(pen.draw, pen.x, pen.y, pen.unit)
            upright.polygon([(-0.7, 0), (0, -1), (0.7, 0), (0, 1)], color)
        case "line":
            pen.box(0, 0, 3, 5 / pen.unit, color)


def _draw_object(rng: Rng, pen: Pen, name: str) -> None:
    """One unit is about half the object's height."""
    color = random_color(rng, saturation=(0.4, 1), value=(0.5, 1))
    second = random_color(rng, saturation=(0.2, 1))
    match name:
        case "face":
            pen.ellipse(0, 0, 0.8, 1, (235, 195, 160))
            for eye in (-0.3, 0.3):
                pen.ellipse(eye, -0.2, 0.12, fill=(30, 30, 30))
            pen.ellipse(0, 0.45, 0.35, 0.12, (180, 60, 60))
            if rng.random() < 0.7:
                pen.dome(0, -0.3, 0.85, 0.8, random_color(rng, 0.08, (0.3, 0.7), (0.1, 0.6)))
        case "flower":
            pen.box(0, 0.5, 0.12, 1, (40, 130, 50))
            for u, v in regular_polygon(6, 0.45):
                pen.ellipse(u, v - 0.3, 0.3, fill=color)
            pen.ellipse(0, -0.3, 0.25, fill=(240, 210, 60))
        case "fish":
            pen.ellipse(0, 0, 0.8, 0.45, color)
            pen.polygon([(0.6, 0), (1.1, -0.4), (1.1, 0.4)], color)
            pen.ellipse(-0.45, -0.1, 0.1, fill=(10, 10, 10))
        case "clock":
            pen.ellipse(0, 0, 0.9, fill=second)
            pen.ellipse(0, 0, 0.75, fill=(245, 245, 245))
            for length, width in ((0.6, 2), (0.4, 3)):
                hand = rng.uniform(0, 2 * math.pi)
                pen.line([(0, 0), (length * math.cos(hand), length * math.sin(hand))], (0, 0, 0), width)
        case "mushroom":
            pen.box(0, 0.4, 0.4, 0.8, (235, 225, 200))
            pen.dome(0, 0, 0.8, 0.8, color)
            pen.ellipse(-0.3, -0.35, 0.12, fill=(255, 255, 255))
            pen.ellipse(0.3, -0.4, 0.12, fill=(255, 255, 255))
        case "balloon":
            pen.ellipse(0, -0.3, 0.6, 0.7, color)
            pen.line([(0, 0.4), (0.1, 1.1)], (60, 60, 60))
        case "rocket":
            pen.polygon([(-0.25, 0.6), (-0.25, -0.4), (0, -1), (0.25, -0.4), (0.25, 0.6)], (225, 225, 235))
            for side in (-1, 1):
                pen.polygon([(side * 0.25, 0.2), (side * 0.6, 0.8), (side * 0.25, 0.6)], color)
            pen.polygon([(-0.15, 0.6), (0, 1.1), (0.15, 0.6)], (250, 150, 30))
            pen.ellipse(0, -0.2, 0.13, fill=(60, 120, 200))
        case "chair":
            pen.box(-0.425, 0, 0.15, 1.8, second)
            pen.box(0, 0.075, 1, 0.15, second)
            pen.box(0.425, 0.45, 0.15, 0.9, second)
        case "envelope":
            pen.box(0, 0, 1.8, 1.1, (240, 235, 215))
            pen.line([(-0.9, -0.55), (0, 0.1), (0.9, -0.55)], (90, 80, 70), 2)
        case "umbrella":
            pen.dome(0, -0.1, 0.9, 0.8, color)
            pen.box(0, 0.4, 0.08, 1, (70, 50, 40))
        case "tree":
            pen.box(0, 0.6, 0.24, 0.8, (100, 65, 35))
            pen.ellipse(0, -0.25, 0.65, fill=random_color(rng, 0.31, (0.5, 0.9), (0.3, 0.6)))
        case "ladder":
            for rail in (-0.3, 0.3):
                pen.box(rail, 0, 0.1, 2, second)
            for rung in range(7):
                pen.box(0, -0.86 + 0.28 * rung, 0.6, 0.08, second)
        case "cup":
            pen.box(0, 0.05, 1, 1.1, color)
            pen.ellipse(0.625, 0.025, 0.275, 0.325, outline=color, width=4)
        case "bicycle":
            for wheel in (-0.6, 0.6):
                pen.ellipse(wheel, 0.4, 0.4, outline=(20, 20, 20), width=2)
            pen.line([(-0.6, 0.4), (-0.1, 0.4), (0.35, -0.2), (-0.35, -0.2), (-0.1, 0.4)], color, 3)
            pen.line([(0.6, 0.4), (0.3, -0.4)], color, 3)
