"""Scenes seen from the ground: a sky above a horizon, and what tells one place from another."""

import numpy as np
from PIL import Image, ImageDraw

from core.miniature.canvas import (
    CANVAS_SIZE,
    VERTICAL_RAMP,
    Color,
    Pen,
    Rng,
    mix,
    random_color,
    random_gray,
    scale_color,
    surface,
)

NAMES = (
    *("beach", "mountain", "forest path", "desert", "city skyline", "ocean", "snowfield", "country house"),
    *("bedroom", "waterfall"),
)
PRETRAINING_ONLY_NAMES = ("volcano", "sailing")


def draw(rng: Rng, name: str, hue_shift: float = 0.0) -> Image.Image:
    """The scene; `hue_shift` in turns moves the colours of land, water and sky."""
    horizon = int(CANVAS_SIZE * rng.uniform(0.3, 0.65))
    upper = random_color(rng, 0.58 + hue_shift, (0.3, 0.6), (0.6, 0.95))
    lower = random_color(rng, 0.55 + hue_shift, (0.05, 0.3), (0.8, 1))
    image = mix(upper, lower, VERTICAL_RAMP)
    _DRAW[name](rng, image, horizon, hue_shift)
    return image


def _lay_ground(rng: Rng, image: Image.Image, horizon: int, color: Color) -> ImageDraw.ImageDraw:
    ground = surface(rng, color, scale_color(color, 0.8), 7, 0.1)
    image.paste(ground.crop((0, 0, CANVAS_SIZE, CANVAS_SIZE - horizon)), (0, horizon))
    return ImageDraw.Draw(image)


def _beach(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.12 + hue_shift, (0.3, 0.5), (0.8, 0.95)))
    shore = horizon + rng.uniform(8, 22)
    sea = [(0, horizon), (CANVAS_SIZE, horizon), (CANVAS_SIZE, shore + rng.uniform(-6, 10)), (0, shore)]
    draw.polygon(sea, fill=random_color(rng, 0.53 + hue_shift, (0.5, 0.8), (0.5, 0.8)))
    if rng.random() < 0.6:
        x, y = rng.uniform(15, CANVAS_SIZE - 15), rng.uniform(horizon + 20, CANVAS_SIZE - 8)
        parasol = Pen(draw, x, y)
        parasol.dome(0, -3, 12, 11, random_color(rng, saturation=(0.7, 1), value=(0.8, 1)))
        parasol.line([(0, -4), (0, 10)], (90, 60, 40), width=2)


def _mountain(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.3 + hue_shift, (0.3, 0.6), (0.3, 0.5)))
    for _ in range(rng.integers(1, 4)):
        x, half_width, height = rng.uniform(15, CANVAS_SIZE - 15), rng.uniform(26, 50), rng.uniform(28, 55)
        _draw_rock(rng, draw, x, horizon, half_width, height)
        tip = horizon - height
        snow = [(-0.3, 0.3), (0, 0), (0.3, 0.3), (0.1, 0.22), (-0.1, 0.32)]
        draw.polygon([(x + u * half_width, tip + v * height) for u, v in snow], fill=(245, 245, 250))


def _volcano(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.3 + hue_shift, (0.3, 0.6), (0.3, 0.5)))
    x, half_width, height = rng.uniform(15, CANVAS_SIZE - 15), rng.uniform(26, 50), rng.uniform(28, 55)
    _draw_rock(rng, draw, x, horizon, half_width, height)
    lava = [(-0.2, 0.2), (0.2, 0.2), (0.05, 0.6)]
    draw.polygon([(x + u * half_width, horizon - height + v * height) for u, v in lava], fill=(230, 80, 30))


def _draw_rock(rng: Rng, draw: ImageDraw.ImageDraw, x: float, horizon: int, half_width: float, height: float) -> None:
    rock = random_color(rng, (0.05, 0.7), (0.05, 0.3), (0.3, 0.5))
    draw.polygon([(x - half_width, horizon), (x, horizon - height), (x + half_width, horizon)], fill=rock)


def _forest_path(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.28 + hue_shift, (0.4, 0.7), (0.2, 0.4)))
    x = rng.uniform(20, CANVAS_SIZE - 20)
    path = [(x - 3, horizon), (x + 3, horizon), (x + 26, CANVAS_SIZE), (x - 26, CANVAS_SIZE)]
    draw.polygon(path, fill=(160, 130, 90))
    for _ in range(rng.integers(6, 12)):
        tree = Pen(draw, rng.uniform(0, CANVAS_SIZE), horizon + rng.uniform(0, 30))
        tree.box(0, -22.5, rng.uniform(2, 5), 45, (70, 45, 30))
        crown = rng.uniform(8, 15)
        leaves = random_color(rng, 0.33 + hue_shift, (0.5, 0.8), (0.2, 0.45))
        tree.ellipse(0, -50, crown, 10 + crown / 2, fill=leaves)


def _desert(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.09 + hue_shift, (0.4, 0.7), (0.7, 0.9)))
    for _ in range(2):
        x, half_width = rng.uniform(0, CANVAS_SIZE), rng.uniform(30, 60)
        dune = [(x - half_width, horizon + 14), (x, horizon - 8), (x + half_width, horizon + 14)]
        draw.polygon(dune, fill=random_color(rng, 0.1 + hue_shift, (0.4, 0.6), (0.75, 0.95)))
    green = (50, 110, 60)
    for _ in range(rng.integers(1, 3)):
        x, y = rng.uniform(12, CANVAS_SIZE - 12), rng.uniform(horizon + 8, CANVAS_SIZE - 6)
        height = rng.uniform(20, 32)
        draw.rectangle([x - 3, y - height, x + 3, y], fill=green)
        draw.rectangle([x - 10, y - height * 0.6, x + 10, y - height * 0.6 + 4], fill=green)
        for left in (x - 10, x + 7):
            draw.rectangle([left, y - height * 0.85, left + 3, y - height * 0.6], fill=green)


def _city_skyline(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_gray(rng, 0.3, 0.5))
    left = rng.uniform(-10, 20)
    while left < CANVAS_SIZE * rng.uniform(0.7, 1.1):
        width, height = rng.uniform(9, 18), rng.uniform(20, 60)
        draw.rectangle([left, horizon - height, left + width, horizon + 2], fill=random_gray(rng, 0.25, 0.6))
        for y in np.arange(horizon - height + 3, horizon - 3, 5):
            for x in np.arange(left + 2, left + width - 2, 4):
                draw.rectangle([x, y, x + 1, y + 2], fill=(250, 230, 140) if rng.random() < 0.6 else (60, 60, 70))
        left += width + rng.uniform(0, 4)


def _ocean(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.58 + hue_shift, (0.5, 0.8), (0.3, 0.6)))
    for _ in range(10):
        x, y = rng.uniform(0, CANVAS_SIZE), rng.uniform(horizon, CANVAS_SIZE)
        draw.arc([x - 8, y - 3, x + 8, y + 3], 180, 360, fill=(220, 235, 245))


def _sailing(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    _ocean(rng, image, horizon, hue_shift)
    boat = Pen(ImageDraw.Draw(image), rng.uniform(20, CANVAS_SIZE - 20), horizon + rng.uniform(2, 18))
    boat.polygon([(-12, 0), (12, 0), (8, 6), (-8, 6)], (120, 60, 40))
    boat.polygon([(0, -2), (0, -30), (13, -4)], (250, 250, 250))


def _snowfield(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, (235, 240, 248))
    for _ in range(rng.integers(1, 5)):
        x, base, size = rng.uniform(8, CANVAS_SIZE - 8), horizon + rng.uniform(0, 35), rng.uniform(0.7, 1.2)
        for tier in range(3):
            half_width, foot = 10 * size - 2 * tier, base - 9 * tier * size
            branches = [(x - half_width, foot), (x + half_width, foot), (x, foot - 14 * size)]
            draw.polygon(branches, fill=(30, 80 + 20 * tier, 60))


def _country_house(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    draw = _lay_ground(rng, image, horizon, random_color(rng, 0.28 + hue_shift, (0.4, 0.7), (0.4, 0.65)))
    house = Pen(draw, rng.uniform(8, CANVAS_SIZE - 55), horizon - rng.uniform(-5, 10), rng.uniform(32, 46))
    # One unit is the house's width; walls, roof, door and two windows.
    house.box(0.5, 0.06, 1, 0.6, random_color(rng, saturation=(0.05, 0.5), value=(0.7, 1)))
    house.polygon([(-0.1, -0.24), (0.5, -0.6), (1.1, -0.24)], random_color(rng, 0.02, (0.5, 0.9), (0.4, 0.7)))
    house.box(0.5, 0.225, 0.16, 0.27, (80, 50, 30))
    for middle in (0.2, 0.8):
        house.box(middle, 0, 0.2, 0.18, (170, 210, 240))


def _bedroom(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    image.paste(random_color(rng, saturation=(0.05, 0.4), value=(0.6, 0.95)), (0, 0, CANVAS_SIZE, CANVAS_SIZE))
    draw = ImageDraw.Draw(image)
    floor = random_color(rng, 0.08, (0.3, 0.6), (0.4, 0.7))
    draw.rectangle([0, horizon + 15, CANVAS_SIZE, CANVAS_SIZE], fill=floor)
    x, y, length = rng.uniform(4, CANVAS_SIZE - 66), horizon + 5, rng.uniform(48, 62)
    draw.rectangle([x, y, x + length, y + 22], fill=random_color(rng))
    draw.rectangle([x, y - 16, x + 5, y + 28], fill=(90, 60, 40))
    draw.rectangle([x + length - 4, y - 4, x + length, y + 28], fill=(90, 60, 40))
    draw.rectangle([x + 6, y - 5, x + 22, y + 3], fill=(250, 250, 250))


def _waterfall(rng: Rng, image: Image.Image, horizon: int, hue_shift: float) -> None:
    image.paste(surface(rng, (90, 80, 70), (50, 70, 40), 6, 0.15), (0, 0))
    draw = ImageDraw.Draw(image)
    x, width = rng.uniform(20, CANVAS_SIZE - 20), rng.uniform(10, 18)
    draw.rectangle([x - width / 2, 10, x + width / 2, CANVAS_SIZE - 25], fill=(225, 240, 250))
    draw.ellipse([x - 1.8 * width, CANVAS_SIZE - 38, x + 1.8 * width, CANVAS_SIZE - 8], fill=(120, 180, 210))


_DRAW = {
    "beach": _beach,
    "mountain": _mountain,
    "volcano": _volcano,
    "forest path": _forest_path,
    "desert": _desert,
    "city skyline": _city_skyline,
    "ocean": _ocean,
    "sailing": _sailing,
    "snowfield": _snowfield,
    "country house": _country_house,
    "bedroom": _bedroom,
    "waterfall": _waterfall,
}
