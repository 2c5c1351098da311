"""What the drawings share: colours, surfaces, a pen in unit coordinates, and the finished picture.

Pictures are drawn at twice their size and averaged down, so that edges are smooth.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURE_SIZE = 56
"""Side of a finished picture, in pixels."""
CANVAS_SIZE = 2 * PICTURE_SIZE
"""Side of the canvas that drawings are made on, in pixels."""

Rng = np.random.Generator
Color = tuple[int, int, int]
Point = tuple[float, float]
Hue = float | tuple[float, float] | None
Range = tuple[float, float]

VERTICAL_RAMP = np.tile(np.linspace(0, 1, CANVAS_SIZE, dtype=np.float32)[:, None], (1, CANVAS_SIZE))


def random_color(rng: Rng, hue: Hue = None, saturation: Range = (0.3, 1), value: Range = (0.3, 1)) -> Color:
    """A random colour; `hue` in turns is a centre (jittered), a range, or None for any."""
    if hue is None:
        turn = rng.uniform()
    elif isinstance(hue, tuple):
        turn = rng.uniform(*hue)
    else:
        turn = hue + 0.03 * rng.normal()
    red, green, blue = colorsys.hsv_to_rgb(turn % 1, rng.uniform(*saturation), rng.uniform(*value))
    return int(255 * red), int(255 * green), int(255 * blue)


def random_gray(rng: Rng, low: float = 0.2, high: float = 0.9) -> Color:
    """A random gray with brightness in [low, high]."""
    level = int(255 * rng.uniform(low, high))
    return level, level, level


def scale_color(color: Color, factor: float) -> Color:
    """The colour, darker by `factor` <= 1."""
    return int(factor * color[0]), int(factor * color[1]), int(factor * color[2])


def to_color(values: np.ndarray) -> Color:
    """Three numbers, clipped to bytes."""
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def contrasting(color: Color, against: float, *, least: float, step: float) -> Color:
    """The colour, or, where its brightness is within `least` of `against`, one that stands out by `step`."""
    brightness = float(np.mean(color))
    if abs(brightness - against) >= least:
        return color
    return to_color(np.array(color) + (step if against < 128 else -step))


def smooth_noise(rng: Rng, num_cells: int) -> np.ndarray:
    """Random hills, `num_cells` to a side: float32 [CANVAS_SIZE, CANVAS_SIZE] in [0, 1]."""
    cells = Image.fromarray((rng.random((num_cells, num_cells)) * 255).astype(np.uint8))
    return np.asarray(cells.resize((CANVAS_SIZE, CANVAS_SIZE), Image.Resampling.BICUBIC), np.float32) / 255


def mix(first: Sequence[float], second: Sequence[float], share: np.ndarray) -> Image.Image:
    """A picture that goes from the first colour (share 0) to the second (share 1)."""
    start, change = np.asarray(first, np.float32), np.subtract(second, first).astype(np.float32)
    return Image.fromarray((start + change * share.astype(np.float32)[..., None]).clip(0, 255).astype(np.uint8))


def surface(rng: Rng, first: Color, second: Color, num_cells: int = 5, grain: float = 0.15) -> Image.Image:
    """Hills between two colours, with grain."""
    noise = grain * rng.standard_normal((CANVAS_SIZE, CANVAS_SIZE), dtype=np.float32)
    return mix(first, second, (smooth_noise(rng, num_cells) + noise).clip(0, 1))


def plain_background(rng: Rng) -> Image.Image:
    """A background without a subject: one colour, coloured hills, a ramp, or gray hills."""
    match int(rng.integers(4)):
        case 0:
            return Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), random_color(rng, saturation=(0, 0.7)))
        case 1:
            first, second = (random_color(rng, saturation=(0, 0.7)) for _ in range(2))
            return surface(rng, first, second, int(rng.integers(3, 9)))
        case 2:
            first, second = (random_color(rng, saturation=(0, 0.7)) for _ in range(2))
            return mix(first, second, VERTICAL_RAMP)
        case _:
            return surface(rng, random_gray(rng), random_gray(rng), int(rng.integers(3, 12)))


def blob_mask(rng: Rng, threshold: float) -> Image.Image:
    """A mask of large soft-edged patches: where random hills rise above the threshold."""
    return Image.fromarray(((smooth_noise(rng, 3) > threshold) * 255).astype(np.uint8))


def random_corner(rng: Rng, width: float, height: float, margin: float = 2) -> Point:
    """Where to put the upper left corner of a box so that it lies on the canvas."""
    return (
        rng.uniform(margin, max(margin + 1, CANVAS_SIZE - width - margin)),
        rng.uniform(margin, max(margin + 1, CANVAS_SIZE - height - margin)),
    )


def random_center(rng: Rng, margin: float) -> Point:
    """A point at least `margin` from every edge."""
    x, y = rng.uniform(margin, CANVAS_SIZE - margin, 2)
    return float(x), float(y)


def one_of(rng: Rng, choices: Sequence[str]) -> str:
    """One of the words, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def regular_polygon(num_corners: int, radius: float = 1.0, start: float = 0.0) -> list[Point]:
    """Corners of a regular polygon around the origin, the first at angle `start` (radians)."""
    angles = [start + 2 * math.pi * corner / num_corners for corner in range(num_corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


@dataclass(frozen=True)
class Pen:
    """Draws in unit coordinates: the origin at (x, y), one unit = `unit` pixels, turned by `angle` radians."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    unit: float = 1.0
    angle: float = 0.0

    def at(self, u: float, v: float) -> Point:
        """The canvas point of unit coordinates (u, v)."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.unit * (u * cosine - v * sine), self.y + self.unit * (u * sine + v * cosine)

    def polygon(self, points: Sequence[Point], fill: Color | None = None, outline: Color | None = None) -> None:
        self.draw.polygon([self.at(u, v) for u, v in points], fill=fill, outline=outline)

    def box(self, u: float, v: float, width: float, height: float, fill: Color | None = None, outline: Color | None = None) -> None:
        """A rectangle centred on (u, v)."""
        half_width, half_height = width / 2, height / 2
        self.polygon(
            [
                (u - half_width, v - half_height),
                (u + half_width, v - half_height),
                (u + half_width, v + half_height),
                (u - half_width, v + half_height),
            ],
            fill,
            outline,
        )

    def ellipse(
        self,
        u: float,
        v: float,
        radius: float,
        radius_v: float | None = None,
        fill: Color | None = None,
        outline: Color | None = None,
        width: int = 1,
    ) -> None:
        """An ellipse with its axes along the canvas, whatever the pen's angle."""
        x, y = self.at(u, v)
        a, b = self.unit * radius, self.unit * (radius if radius_v is None else radius_v)
        self.draw.ellipse([x - a, y - b, x + a, y + b], fill=fill, outline=outline, width=width)

    def dome(self, u: float, v: float, radius: float, radius_v: float, fill: Color) -> None:
        """The upper half of an ellipse."""
        x, y = self.at(u, v)
        a, b = self.unit * radius, self.unit * radius_v
        self.draw.pieslice([x - a, y - b, x + a, y + b], 180, 360, fill=fill)

    def line(self, points: Sequence[Point], fill: Color, width: int = 1) -> None:
        self.draw.line([self.at(u, v) for u, v in points], fill=fill, width=width)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font, at a size in pixels."""
    return ImageFont.load_default(size)


def finish(image: Image.Image, rng: Rng, noise: float = 3.0) -> np.ndarray:
    """The picture: averaged down to uint8 [56, 56, 3], with pixel noise of the given standard deviation."""
    pixels = np.asarray(image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX), np.float32)
    if noise:
        pixels = pixels + noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return pixels.clip(0, 255).astype(np.uint8)
