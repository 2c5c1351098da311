"""Concepts: shapes, objects, things of nature and letters, a source of explanations that shares no class with a target.

One concept lies anywhere, of any size, on a plain or hilly background, some with specks beside it, so that over the pictures what
matters is found at every position of the 7 x 7 patches.

What is drawn with what: the eight domains share nothing with this source but the primitives of `core.miniature.canvas` (pen, colours,
hills, font); its letters are written here, not by the digits' code. Pretraining shares the drawings of `shapes` and of `objects`'
`PRETRAINING_NAMES`, on other backgrounds and at other sizes; the other objects and `nature` are drawn for this source alone. Pretraining
has captions for letters, a lake, a volcano and sailing, too, but draws them with other code; of the other names it has none.
"""

import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from core.miniature import nature, objects, shapes
from core.miniature.canvas import (
    CANVAS_SIZE,
    Pen,
    Rng,
    font,
    mix,
    random_center,
    random_color,
    random_gray,
    smooth_noise,
    surface,
)

# Hexagons and octagons of three patches are circles; a line is no more than a speck.
_SHAPES = tuple(name for name in shapes.NAMES if name not in ("hexagon", "octagon", "line"))
# A diamond stands on its tip, so a square lies on a side.
_SHAPE_ANGLES = {"square": math.pi / 4, "triangle": -math.pi / 2, "star": -math.pi / 2}
# Like no digit, no ring and, turned a little, no other of them.
_LETTERS = "AEHKMRTY"
NAMES = (*_SHAPES, *objects.NAMES, *nature.NAMES, *(f"letter {letter}" for letter in _LETTERS))

_SMALLEST, _LARGEST = 24.0, 46.0
"""Half the size of a concept, in pixels of the canvas."""
_REACH = 1.4
"""No drawing, turned or not, goes farther from its middle, left, right, up or down, in units."""
_MARGIN, _LETTER_MARGIN = 0.65, 0.9
"""The middle is at least so many units from every edge: a concept is told by most of itself, a letter by every stroke."""
_LEAST_CONTRAST = 55.0
"""Between the mean brightness of a concept and that of what lies behind it."""
_Y, _X = np.mgrid[-1 : 1 : CANVAS_SIZE * 1j, -1 : 1 : CANVAS_SIZE * 1j].astype(np.float32)


def draw(rng: Rng, name: str) -> Image.Image:
    """The concept on a background that it stands out from."""
    cutout, corner = draw_cutout(rng, name)
    mask = cutout.getchannel("A")
    image = _background(rng)
    brightness = np.asarray(cutout.convert("L"))[np.asarray(mask) > 0].mean()
    behind = np.asarray(image.convert("L").reduce(8)).mean()
    if abs(brightness - behind) < _LEAST_CONTRAST:
        away = (0, 0, 0) if brightness > 127 else (255, 255, 255)
        image = Image.blend(image, Image.new("RGB", image.size, away), 0.5)
    _scatter_specks(rng, image)
    image.paste(cutout, corner, mask)
    return image


def draw_cutout(rng: Rng, name: str) -> tuple[Image.Image, tuple[int, int]]:
    """The concept alone on transparent ground, RGBA, and where the upper left corner of that lies on the canvas (or beside it).

    Its size is log-uniform. Places near the edges are likelier than in between, or most concepts would cover the central patches.
    """
    size = math.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST)))
    kind, _, letter = name.partition(" ")
    farthest = CANVAS_SIZE / 2 - size * (_LETTER_MARGIN if kind == "letter" else _MARGIN)
    x, y = CANVAS_SIZE / 2 + farthest * np.cos(rng.uniform(0, math.pi, 2))
    color, second = random_color(rng, saturation=(0.4, 1), value=(0.4, 1)), random_color(rng, saturation=(0.2, 1))
    middle = math.ceil(_REACH * size)
    # Ground of the concept's colour, so that soft edges of letters have no other.
    cutout = Image.new("RGBA", (2 * middle, 2 * middle), (*color, 0))
    pen = Pen(ImageDraw.Draw(cutout), middle, middle, size)
    if name in _SHAPES:
        shapes.draw(replace(pen, angle=_SHAPE_ANGLES.get(name, 0.0)), name, color)
    elif name in objects.NAMES:
        objects.draw(rng, pen, name, color, second)
    elif name in nature.NAMES:
        nature.draw(rng, pen, name, 0.04 * rng.normal())
    elif name in NAMES:
        pen.draw.text((middle, middle), letter, color, font(int(2.3 * size)), anchor="mm", stroke_width=int(rng.integers(4)))
    else:
        raise ValueError(f"no concept is called {name!r}; use one of {NAMES}")
    # Taking the nearest pixel is ten times as quick as mixing them, and edges are smoothed when the canvas is averaged down.
    cutout = cutout.rotate(rng.uniform(-12, 12), Image.Resampling.NEAREST)
    if kind != "letter" and rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return cutout, (int(x) - middle, int(y) - middle)


def _background(rng: Rng) -> Image.Image:
    """One colour, a grainy surface, smooth hills in colour or gray, or a ramp in any direction."""
    first, second = (random_color(rng, saturation=(0, 0.7)) for _ in range(2))
    match int(rng.integers(5)):
        case 0:
            return Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), first)
        case 1:
            return surface(rng, first, second, int(rng.integers(3, 12)))
        case 2:
            return mix(first, second, smooth_noise(rng, int(rng.integers(2, 8))))
        case 3:
            return mix(random_gray(rng), random_gray(rng), smooth_noise(rng, int(rng.integers(3, 14))))
        case _:
            angle = rng.uniform(0, 2 * math.pi)
            return mix(first, second, (0.5 + 0.4 * (math.cos(angle) * _X + math.sin(angle) * _Y)).clip(0, 1))


def _scatter_specks(rng: Rng, image: Image.Image) -> None:
    """One picture in three gets a few spots that are no concept."""
    if rng.random() < 2 / 3:
        return
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        speck = Pen(draw, *random_center(rng, 4), rng.uniform(2, 5), rng.uniform(0, math.pi))
        color = random_color(rng, saturation=(0, 0.9))
        if rng.random() < 0.5:
            speck.ellipse(0, 0, 1, fill=color)
        else:
            speck.box(0, 0, 3, 0.8, color)
