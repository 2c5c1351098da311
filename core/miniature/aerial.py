"""Land seen from above, as in satellite and aerial photos."""

import math
from collections.abc import Callable

from PIL import Image, ImageDraw

from core.miniature.canvas import (
    CANVAS_SIZE,
    Pen,
    Point,
    Rng,
    blob_mask,
    one_of,
    random_center,
    random_color,
    random_gray,
    scale_color,
    surface,
)

LAND_COVER_NAMES = (
    *("annual crop", "forest", "highway", "industrial", "pasture", "permanent crop", "residential", "river"),
    *("sea lake",),
)
OBJECT_NAMES = (
    *("airplane", "baseball diamond", "bridge", "dense residential", "freeway", "harbor", "parking lot", "river"),
    *("roundabout", "storage tanks", "tennis court", "forest"),
)
PRETRAINING_ONLY_NAMES = ("lake",)
_OPEN_LAND = ("field", "pasture", "forest")
_SHADOW = (50, 50, 50)


def draw(rng: Rng, name: str, *, hue_shift: float = 0.0, zoom: float = 1.0) -> Image.Image:
    """The place; `hue_shift` in turns moves the land's colours, `zoom` widens roads, rivers and houses."""
    return _DRAW[name](rng, hue_shift, zoom)


def _ground(rng: Rng, name: str, hue_shift: float) -> Image.Image:
    match name:
        case "forest":
            dark = random_color(rng, 0.33 + hue_shift, (0.4, 0.7), (0.1, 0.25))
            return surface(rng, dark, random_color(rng, 0.31 + hue_shift, (0.4, 0.7), (0.3, 0.45)), 14, 0.25)
        case "pasture":
            dark = random_color(rng, 0.27 + hue_shift, (0.3, 0.5), (0.55, 0.75))
            return surface(rng, dark, random_color(rng, 0.24 + hue_shift, (0.3, 0.5), (0.6, 0.85)), 4, 0.06)
        case "field":
            earth = random_color(rng, 0.11 + hue_shift, (0.3, 0.6), (0.5, 0.75))
            return surface(rng, earth, random_color(rng, 0.2 + hue_shift, (0.3, 0.5), (0.45, 0.75)), 3, 0.06)
        case "water":
            deep = random_color(rng, 0.6 + hue_shift, (0.5, 0.8), (0.25, 0.5))
            return surface(rng, deep, random_color(rng, 0.56 + hue_shift, (0.4, 0.7), (0.35, 0.6)), 5, 0.05)
    assert name == "concrete", name
    return surface(rng, random_gray(rng, 0.4, 0.6), random_gray(rng, 0.5, 0.75), 6, 0.06)


def _on(rng: Rng, grounds: tuple[str, ...], hue_shift: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = _ground(rng, one_of(rng, grounds), hue_shift)
    return image, ImageDraw.Draw(image)


def _turned_pen(rng: Rng, draw: ImageDraw.ImageDraw, margin: float, unit: float = 1.0) -> Pen:
    """A pen at a random place at least `margin` from the edges, turned at random."""
    return Pen(draw, *random_center(rng, margin), unit, rng.uniform(0, 2 * math.pi))


def _random_course(rng: Rng, draw: ImageDraw.ImageDraw, swing: float) -> list[Point]:
    """A winding line across the whole canvas, of 13 points that swing by up to `swing` pixels."""
    across = Pen(draw, CANVAS_SIZE / 2, CANVAS_SIZE / 2, angle=rng.uniform(0, math.pi))
    offset, phase, num_waves = rng.uniform(-25, 25), rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.3)
    steps = [step / 12 for step in range(13)]
    return [across.at(190 * (step - 0.5), offset + swing * math.sin(phase + num_waves * 2 * math.pi * step)) for step in steps]


def _lake(rng: Rng, hue_shift: float, zoom: float, *, has_shore: bool = True) -> Image.Image:
    image = _ground(rng, "water", hue_shift)
    if has_shore:
        shore = _ground(rng, one_of(rng, _OPEN_LAND), hue_shift)
        image.paste(shore, (0, 0), blob_mask(rng, rng.uniform(0.25, 0.5)))
    return image


def _sea_lake(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    return _lake(rng, hue_shift, zoom, has_shore=rng.random() < 0.6)


def _forest(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image = _ground(rng, "forest", hue_shift)
    if rng.random() < 0.5:
        image.paste(_ground(rng, "pasture", hue_shift), (0, 0), blob_mask(rng, rng.uniform(0.2, 0.45)))
    return image


def _annual_crop(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("field",), hue_shift)
    angle = rng.uniform(0, math.pi)
    for _ in range(rng.integers(1, 4)):
        pen, (width, height) = Pen(draw, *random_center(rng, 20), angle=angle), rng.uniform(35, 70, 2)
        crop = random_color(rng, (0.08 + hue_shift, 0.16 + hue_shift), (0.4, 0.7), (0.45, 0.75))
        pen.box(0, 0, width, height, crop)
        for furrow in range(-5, 6):
            pen.box(0, furrow * height / 11, width, 1.6, scale_color(crop, 0.75))
    return image


def _permanent_crop(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("field",), hue_shift)
    angle = rng.uniform(0, math.pi)
    for _ in range(rng.integers(1, 4)):
        pen, (width, height) = Pen(draw, *random_center(rng, 20), angle=angle), rng.uniform(35, 70, 2)
        pen.box(0, 0, width, height, random_color(rng, (0.24 + hue_shift, 0.32 + hue_shift), (0.4, 0.7), (0.45, 0.75)))
        for row in range(-5, 6):
            for column in range(-4, 5):
                pen.ellipse(column * width / 9, row * height / 11, 2, fill=(30, 80, 30))
    return image


def _pasture(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("pasture",), hue_shift)
    for _ in range(rng.integers(2, 9)):
        Pen(draw, *random_center(rng, 0)).ellipse(0, 0, rng.uniform(2, 5), fill=(35, 75, 35))
    return image


def _highway(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, _OPEN_LAND, hue_shift)
    course = _random_course(rng, draw, rng.uniform(0, 8))
    draw.line(course, fill=random_gray(rng, 0.5, 0.7), width=int(rng.uniform(7, 11) * zoom), joint="curve")
    draw.line(course, fill=(230, 230, 200), width=1)
    for x, y in course[1:-1:2]:
        if rng.random() < 0.6:
            draw.rectangle([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=random_color(rng))
    return image


def _draw_river(rng: Rng, draw: ImageDraw.ImageDraw, hue_shift: float, width: float) -> list[Point]:
    course = _random_course(rng, draw, rng.uniform(8, 22))
    water = random_color(rng, 0.58 + hue_shift, (0.4, 0.7), (0.3, 0.55))
    draw.line(course, fill=water, width=int(width), joint="curve")
    return course


def _river(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, _OPEN_LAND, hue_shift)
    _draw_river(rng, draw, hue_shift, rng.uniform(10, 18) * zoom)
    return image


def _bridge(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, _OPEN_LAND, hue_shift)
    course = _draw_river(rng, draw, hue_shift, rng.uniform(10, 18) * zoom + 6)
    (before_x, before_y), (after_x, after_y) = course[5], course[7]
    stream = math.atan2(after_y - before_y, after_x - before_x)
    deck = Pen(draw, *course[rng.integers(4, 9)], angle=stream)
    deck.box(0, 0, 8, 46 * zoom, (190, 190, 190), (90, 90, 90))
    return image


def _residential(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("pasture", "concrete"), hue_shift)
    block, extent = rng.uniform(11, 15) * zoom, rng.uniform(40, 80)
    pen = _turned_pen(rng, draw, 20)
    for row in range(-8, 9):
        pen.box(0, (2 * row + 0.5) * block, 200, 2.5, (150, 150, 150))
        for column in range(-8, 9):
            u, v = row * block, column * block
            if math.hypot(u, v) < extent and rng.random() < 0.85:
                roof = (0.02, 0.05, 0.08)[rng.integers(3)] + hue_shift
                pen.box(u, v, 0.6 * block, 0.5 * block, random_color(rng, roof, (0.3, 0.7), (0.4, 0.8)))
    return image


def _industrial(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("concrete",), hue_shift)
    angle = rng.uniform(0, math.pi)
    for _ in range(rng.integers(2, 6)):
        (x, y), (width, height) = random_center(rng, 10), rng.uniform(22, 46, 2)
        Pen(draw, x + 3, y + 3, angle=angle).box(0, 0, width, height, _SHADOW)
        hall = Pen(draw, x, y, angle=angle)
        hall.box(0, 0, width, height, random_color(rng, 0.58 + hue_shift, (0, 0.3), (0.7, 1)))
        hall.box(0, 0, width, 2, (120, 120, 130))
    return image


def _airplane(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("concrete", "field"), hue_shift)
    pen, white = _turned_pen(rng, draw, 26, unit=rng.uniform(36, 52)), random_gray(rng, 0.85, 1)
    pen.box(0, 0, 1, 0.14, white)
    pen.polygon([(0.12, 0), (-0.15, 0.5), (-0.22, 0.5), (-0.08, 0), (-0.22, -0.5), (-0.15, -0.5)], white)
    pen.polygon([(-0.38, 0), (-0.5, 0.2), (-0.5, -0.2)], white)
    return image


def _storage_tanks(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("concrete", "field"), hue_shift)
    (left, top), radius = rng.uniform(18, CANVAS_SIZE - 50, 2), rng.uniform(8, 11)
    for column in range(2):
        for row in range(rng.integers(2, 4)):
            tank = Pen(draw, left + 2.5 * column * radius, top + 2.5 * row * radius)
            tank.ellipse(3, 3, radius, fill=_SHADOW)
            tank.ellipse(0, 0, radius, fill=random_gray(rng, 0.85, 1))
            tank.ellipse(0, 0, 2, fill=(130, 130, 130))
    return image


def _baseball_diamond(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("pasture",), hue_shift)
    radius, (x, y), start = rng.uniform(26, 38), random_center(rng, 22), rng.uniform(0, 360)
    draw.pieslice([x - radius, y - radius, x + radius, y + radius], start, start + 90, fill=(185, 130, 80))
    axis = Pen(draw, x, y, radius, math.radians(start + 45))
    infield = Pen(draw, *axis.at(0.42, 0), radius, axis.angle + math.pi / 4)
    infield.box(0, 0, 0.45, 0.45, (90, 160, 70))
    return image


def _tennis_court(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("pasture", "concrete"), hue_shift)
    length, white = rng.uniform(40, 52), (255, 255, 255)
    pen = _turned_pen(rng, draw, 30)
    pen.box(0, 0, length, 0.55 * length, (40, 110, 80))
    pen.box(0, 0, 0.8 * length, 0.38 * length, (150, 75, 60), white)
    pen.box(0, 0, 2, 0.38 * length, white)
    pen.box(0, 0, 0.8 * length, 1, white)
    return image


def _roundabout(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("pasture", "concrete", "field"), hue_shift)
    pen, radius, asphalt = _turned_pen(rng, draw, 34), rng.uniform(18, 26), (110, 110, 115)
    pen.box(0, 0, 240, 9, asphalt)
    pen.box(0, 0, 9, 240, asphalt)
    pen.ellipse(0, 0, radius, fill=asphalt)
    pen.ellipse(0, 0, 0.55 * radius, fill=(70, 140, 60))
    return image


def _parking_lot(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("concrete",), hue_shift)
    pen = _turned_pen(rng, draw, 25)
    for row in (-17, 0, 17):
        for space in range(-3, 4):
            if rng.random() < 0.85:
                pen.box(8 * space, row, 5, 11, random_color(rng, saturation=(0, 0.9), value=(0.2, 1)))
    return image


def _harbor(rng: Rng, hue_shift: float, zoom: float) -> Image.Image:
    image, draw = _on(rng, ("water",), hue_shift)
    pen = _turned_pen(rng, draw, 25)
    pen.box(0, 0, 80, 5, (170, 150, 120))
    for berth in range(8):
        for side in (-11, 11):
            if rng.random() < 0.8:
                pen.box(9 * (berth - 3.5), side, 5, 14, random_gray(rng, 0.8, 1))
    return image


_DRAW: dict[str, Callable[[Rng, float, float], Image.Image]] = {
    "annual crop": _annual_crop,
    "forest": _forest,
    "highway": _highway,
    "freeway": _highway,
    "industrial": _industrial,
    "pasture": _pasture,
    "permanent crop": _permanent_crop,
    "residential": _residential,
    "dense residential": _residential,
    "river": _river,
    "sea lake": _sea_lake,
    "lake": _lake,
    "airplane": _airplane,
    "baseball diamond": _baseball_diamond,
    "bridge": _bridge,
    "harbor": _harbor,
    "parking lot": _parking_lot,
    "roundabout": _roundabout,
    "storage tanks": _storage_tanks,
    "tennis court": _tennis_court,
}
