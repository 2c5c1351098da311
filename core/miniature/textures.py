"""Textures: a pattern between two colours, over the whole picture or on a patch of it."""

import math

import numpy as np
from PIL import Image, ImageDraw

from core.miniature.canvas import (
    CANVAS_SIZE,
    Rng,
    mix,
    plain_background,
    random_color,
    random_corner,
    smooth_noise,
)

NAMES = (
    *("striped", "polka-dotted", "checkered", "grid", "zigzagged", "honeycombed", "cracked", "marbled", "bubbly"),
    *("swirly", "woven", "blotchy", "sprinkled", "radial"),
)
_Y, _X = np.mgrid[0:CANVAS_SIZE, 0:CANVAS_SIZE].astype(np.float32)


def draw(rng: Rng, name: str, *, fills_picture: bool | None = None) -> Image.Image:
    """The texture; if `fills_picture` is None, three in five lie as a patch on a plain background."""
    share = _pattern(rng, name)
    first, second = (np.array(random_color(rng, saturation=(0.05, 0.9), value=(0.1, 0.95)), np.float32) for _ in range(2))
    if abs(first.mean() - second.mean()) < 60:
        second = 255 - 0.6 * first if first.mean() > 128 else np.minimum(255, first + 110)
    grain = 0.07 * rng.standard_normal(share.shape, dtype=np.float32)
    image = mix(first.tolist(), second.tolist(), (share + grain).clip(0, 1))
    if fills_picture is None:
        fills_picture = rng.random() >= 0.6
    if fills_picture:
        return image
    background = plain_background(rng)
    width, height = rng.uniform(0.5, 0.85, 2) * CANVAS_SIZE
    left, top = random_corner(rng, width, height, 0)
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(mask)
    (pen.ellipse if rng.random() < 0.5 else pen.rectangle)([left, top, left + width, top + height], fill=255)
    background.paste(image, (0, 0), mask)
    return background


def _turned_axes(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in a frame turned and shifted at random."""
    angle, shift_u, shift_v = rng.uniform(0, math.pi), *rng.uniform(0, 99, 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    return _X * cosine + _Y * sine + shift_u, -_X * sine + _Y * cosine + shift_v


def _cell_edges(centers: np.ndarray) -> np.ndarray:
    """Distance to the second nearest centre less that to the nearest: small at the edges of Voronoi cells."""
    half = CANVAS_SIZE // 2
    y, x = (2 * axis.astype(np.float32)[..., None] for axis in np.mgrid[0:half, 0:half])
    squared = (x - centers[:, 0]) ** 2 + (y - centers[:, 1]) ** 2
    nearest = np.sqrt(np.partition(squared, 1, -1)[..., :2])
    return np.kron(nearest[..., 1] - nearest[..., 0], np.ones((2, 2), np.float32))


def _hexagon_centers(rng: Rng) -> np.ndarray:
    spacing = rng.uniform(16, 26)
    row_height = spacing * math.sqrt(3) / 2
    rows, columns = int(CANVAS_SIZE / row_height) + 2, int(CANVAS_SIZE / spacing) + 2
    grid = [((column + row % 2 / 2) * spacing, row * row_height) for row in range(-1, rows) for column in range(-1, columns)]
    return (np.array(grid) + rng.uniform(0, spacing, 2)).astype(np.float32)


def _marks(rng: Rng, name: str) -> np.ndarray:
    """Bubbles or sprinkles scattered over the canvas."""
    image = Image.new("L", (CANVAS_SIZE, CANVAS_SIZE), 0)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(18, 50)):
        x, y = rng.uniform(0, CANVAS_SIZE, 2)
        if name == "bubbly":
            radius = rng.uniform(4, 14)
            box = [x - radius, y - radius, x + radius, y + radius]
            pen.ellipse(box, outline=255, fill=int(rng.integers(120)), width=2)
        else:
            angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(5, 9)
            end = [x, y, x + length * math.cos(angle), y + length * math.sin(angle)]
            pen.line(end, fill=int(rng.integers(140, 255)), width=3)
    return np.asarray(image) / 255


def _pattern(rng: Rng, name: str) -> np.ndarray:
    """Share of the second colour, [CANVAS_SIZE, CANVAS_SIZE] in [0, 1]."""
    period = rng.uniform(12, 30)
    if name in ("bubbly", "sprinkled"):
        return _marks(rng, name)
    if name == "honeycombed":
        return (_cell_edges(_hexagon_centers(rng)) < rng.uniform(2.5, 4.5)) * 1.0
    if name == "cracked":
        centers = rng.uniform(-8, CANVAS_SIZE + 8, (int(rng.integers(12, 40)), 2)).astype(np.float32)
        return (_cell_edges(centers) < rng.uniform(1.8, 3.5)) * 1.0
    if name in ("swirly", "radial"):
        center_x, center_y = rng.uniform(0.2 * CANVAS_SIZE, 0.8 * CANVAS_SIZE, 2)
        angle = np.arctan2(_Y - center_y, _X - center_x)
        if name == "radial":
            return 0.5 + 0.5 * np.sin(8 * angle)
        return 0.5 + 0.5 * np.sin(2 * angle + 2 * math.pi * np.hypot(_X - center_x, _Y - center_y) / period)
    if name == "blotchy":
        return (smooth_noise(rng, 10) > 0.5) * 1.0
    u, v = _turned_axes(rng)
    match name:
        case "striped":
            return (np.sin(2 * math.pi * u / period) > 0) * 1.0
        case "polka-dotted":
            radius = rng.uniform(0.25, 0.4) * period
            return (np.hypot(u % period - period / 2, v % period - period / 2) < radius) * 1.0
        case "checkered":
            return (np.floor(1.5 * u / period) + np.floor(1.5 * v / period)) % 2
        case "grid":
            width = rng.uniform(2, 4)
            return ((u % period < width) | (v % period < width)) * 1.0
        case "zigzagged":
            teeth = 1.5 * rng.uniform(0.5, 0.9) * period * np.abs(v / period % 2 - 1)
            return ((u + teeth) / period % 1 < 0.5) * 1.0
        case "marbled":
            return 0.5 + 0.5 * np.sin(2 * math.pi * (u / period / 1.5 + 2.2 * smooth_noise(rng, 6)))
        case "woven":
            is_warp = (np.floor(u / period) + np.floor(v / period)) % 2 > 0
            return 0.5 + 0.5 * np.sin(8 * math.pi * np.where(is_warp, u, v) / period)
    raise ValueError(f"no texture is called {name!r}; use one of {NAMES}")
