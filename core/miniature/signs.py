"""Traffic signs, at varying places before a plain background or a scene."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from core.miniature import scenes
from core.miniature.canvas import (
    CANVAS_SIZE,
    Color,
    Pen,
    Rng,
    font,
    one_of,
    plain_background,
    random_center,
    regular_polygon,
    scale_color,
)

NAMES = (
    *("stop sign", "yield sign", "no entry sign", "priority road sign", "speed limit 30 sign", "speed limit 80 sign"),
    *("keep right sign", "turn left sign", "warning sign", "no stopping sign"),
)
PRETRAINING_ONLY_NAMES = ("end of limit sign",)
_PLACES = ("city skyline", "forest path", "country house", "mountain", "ocean")
_BLACK = (25, 25, 25)


@dataclass(frozen=True)
class _Paint:
    """The four colours of signs, under the picture's light."""

    red: Color
    white: Color
    blue: Color
    yellow: Color


def draw(rng: Rng, name: str) -> Image.Image:
    """The sign, some on a pole."""
    image = plain_background(rng) if rng.random() < 0.4 else scenes.draw(rng, one_of(rng, _PLACES))
    radius = rng.uniform(17, 28)
    x, y = random_center(rng, radius + 2)
    light = rng.uniform(0.75, 1)
    colors = ((205, 25, 35), (245, 245, 245), (30, 80, 180), (250, 205, 30))
    paint = _Paint(*(scale_color(color, light) for color in colors))
    pen = Pen(ImageDraw.Draw(image), x, y, radius)
    if rng.random() < 0.6:
        pen.draw.rectangle([x - 1.5, y + 0.8 * radius, x + 1.5, CANVAS_SIZE], fill=(130, 130, 130))
    _draw_plate(pen, name, paint)
    return image


def _write(pen: Pen, text: str, height: float, color: Color) -> None:
    pen.draw.text((pen.x, pen.y), text, font=font(int(height * pen.unit)), fill=color, anchor="mm")


def _draw_plate(pen: Pen, name: str, paint: _Paint) -> None:
    match name:
        case "stop sign":
            pen.polygon(regular_polygon(8, 1, math.pi / 8), paint.red, paint.white)
            _write(pen, "STOP", 0.62, paint.white)
        case "yield sign":
            pen.polygon(regular_polygon(3, 1.1, math.pi / 2), paint.red)
            pen.polygon(regular_polygon(3, 0.68, math.pi / 2), paint.white)
        case "no entry sign":
            pen.ellipse(0, 0, 1, fill=paint.red)
            pen.box(0, 0, 1.3, 0.34, paint.white)
        case "priority road sign":
            pen.polygon(regular_polygon(4, 1.1), paint.white)
            pen.polygon(regular_polygon(4, 0.8), paint.yellow)
        case "speed limit 30 sign" | "speed limit 80 sign":
            pen.ellipse(0, 0, 1, fill=paint.red)
            pen.ellipse(0, 0, 0.77, fill=paint.white)
            _write(pen, name.split()[2], 0.95, _BLACK)
        case "keep right sign":
            pen.ellipse(0, 0, 1, fill=paint.blue)
            pen.line([(-0.4, -0.4), (0.35, 0.35)], paint.white, width=4)
            pen.polygon([(0.6, 0.6), (0.05, 0.5), (0.5, 0.05)], paint.white)
        case "turn left sign":
            pen.ellipse(0, 0, 1, fill=paint.blue)
            pen.line([(-0.3, 0), (0.6, 0)], paint.white, width=4)
            pen.polygon([(-0.7, 0), (-0.2, -0.4), (-0.2, 0.4)], paint.white)
        case "warning sign":
            pen.polygon(regular_polygon(3, 1.1, -math.pi / 2), paint.red)
            pen.polygon(regular_polygon(3, 0.75, -math.pi / 2), paint.white)
            _write(pen, "!", 0.9, _BLACK)
        case "no stopping sign":
            pen.ellipse(0, 0, 1, fill=paint.red)
            pen.ellipse(0, 0, 0.8, fill=paint.blue)
            pen.line([(-0.55, -0.55), (0.55, 0.55)], paint.red, width=5)
            pen.line([(0.55, -0.55), (-0.55, 0.55)], paint.red, width=5)
        case "end of limit sign":
            pen.ellipse(0, 0, 1, fill=paint.white)
            pen.line([(0.6, -0.6), (-0.6, 0.6)], _BLACK, width=6)
        case _:
            raise ValueError(f"no sign is called {name!r}; use one of {NAMES + PRETRAINING_ONLY_NAMES}")
