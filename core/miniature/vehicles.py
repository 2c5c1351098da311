"""Vehicles seen from the side: eight body shapes, on a road or on a plain background."""

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from core.miniature.canvas import (
    CANVAS_SIZE,
    Point,
    Rng,
    plain_background,
    random_color,
    random_corner,
    random_gray,
    surface,
)


@dataclass(frozen=True)
class Body:
    """A vehicle's outline and windows in a unit box, x from the front, y down; `aspect` is length by height."""

    outline: tuple[Point, ...]
    window: tuple[Point, ...] | Literal["bus row", "limousine row"] | None
    aspect: float


BODIES = {
    "sedan": Body(
        ((0, 0.55), (0.18, 0.5), (0.32, 0.12), (0.68, 0.12), (0.82, 0.5), (1, 0.56), (1, 0.85), (0, 0.85)),
        ((0.24, 0.48), (0.35, 0.2), (0.65, 0.2), (0.76, 0.48)),
        2.5,
    ),
    "hatchback": Body(
        ((0, 0.6), (0.2, 0.5), (0.38, 0.1), (0.9, 0.1), (1, 0.5), (1, 0.85), (0, 0.85)),
        ((0.28, 0.48), (0.42, 0.2), (0.84, 0.2), (0.9, 0.48)),
        1.9,
    ),
    "convertible": Body(
        (
            *((0, 0.55), (0.3, 0.5), (0.36, 0.25), (0.4, 0.25), (0.38, 0.52)),
            *((0.78, 0.52), (1, 0.5), (1, 0.85), (0, 0.85)),
        ),
        None,
        2.7,
    ),
    "pickup truck": Body(
        ((0, 0.55), (0.2, 0.5), (0.28, 0.1), (0.52, 0.1), (0.56, 0.5), (1, 0.5), (1, 0.85), (0, 0.85)),
        ((0.26, 0.46), (0.31, 0.18), (0.49, 0.18), (0.5, 0.46)),
        2.4,
    ),
    "van": Body(
        ((0, 0.5), (0.12, 0.05), (1, 0.05), (1, 0.88), (0, 0.88)),
        ((0.06, 0.42), (0.15, 0.15), (0.4, 0.15), (0.4, 0.42)),
        1.8,
    ),
    "bus": Body(((0, 0.05), (1, 0.05), (1, 0.9), (0, 0.9)), "bus row", 2.4),
    "suv": Body(
        ((0, 0.5), (0.2, 0.42), (0.28, 0.08), (0.95, 0.08), (1, 0.45), (1, 0.82), (0, 0.82)),
        ((0.25, 0.4), (0.32, 0.16), (0.88, 0.16), (0.93, 0.4)),
        1.75,
    ),
    "limousine": Body(
        ((0, 0.5), (0.1, 0.45), (0.17, 0.12), (0.86, 0.12), (0.93, 0.45), (1, 0.5), (1, 0.85), (0, 0.85)),
        "limousine row",
        4.0,
    ),
}
NAMES = tuple(BODIES)


def draw_on_road(rng: Rng, name: str) -> Image.Image:
    """The vehicle on a road below a skyline."""
    horizon = int(CANVAS_SIZE * rng.uniform(0.25, 0.5))
    sky = random_color(rng, (0.5, 0.62), (0.05, 0.4), (0.6, 1))
    image = surface(rng, sky, random_gray(rng, 0.6, 1), 3, 0.05)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, horizon, CANVAS_SIZE, CANVAS_SIZE], fill=random_gray(rng, 0.3, 0.55))
    for _ in range(rng.integers(5)):
        left, width, height = rng.uniform(0, CANVAS_SIZE), rng.uniform(6, 20), rng.uniform(5, 25)
        house = random_color(rng, saturation=(0, 0.4), value=(0.3, 0.7))
        draw.rectangle([left, horizon - height, left + width, horizon], fill=house)
    length = rng.uniform(64, 94)
    height = length / BODIES[name].aspect * rng.uniform(0.92, 1.1)
    left, top = random_corner(rng, length, height * 1.1)
    # A vehicle stands on the road, not in the sky.
    _draw_body(rng, draw, name, left, max(top, CANVAS_SIZE / 4), length, height)
    return image


def draw_alone(rng: Rng, name: str) -> Image.Image:
    """The vehicle, of any size, on a plain background."""
    image = plain_background(rng)
    length = rng.uniform(36, 90)
    height = length / BODIES[name].aspect * rng.uniform(0.92, 1.1)
    left, top = random_corner(rng, length, height * 1.1)
    _draw_body(rng, ImageDraw.Draw(image), name, left, top, length, height)
    return image


def _draw_body(rng: Rng, draw: ImageDraw.ImageDraw, name: str, left: float, top: float, length: float, height: float) -> None:
    body = BODIES[name]
    faces_right = rng.random() < 0.5

    def to_canvas(points: tuple[Point, ...]) -> list[Point]:
        return [(left + length * (1 - u if faces_right else u), top + height * v) for u, v in points]

    draw.polygon(to_canvas(body.outline), fill=random_color(rng, saturation=(0.1, 1)), outline=(20, 20, 20))
    glass = (190, 220, 235) if rng.random() < 0.6 else (40, 50, 60)
    if body.window == "bus row":
        panes = [(0.05 + 0.92 * pane / 6, 0.15, 0.45) for pane in range(6)]
    elif body.window == "limousine row":
        panes = [(0.2 + 0.62 * pane / 5, 0.2, 0.42) for pane in range(5)]
    else:
        panes = []
        if body.window:
            draw.polygon(to_canvas(body.window), fill=glass)
    for front, upper, lower in panes:
        corners = ((front, upper), (front + 0.1, upper), (front + 0.1, lower), (front, lower))
        draw.polygon(to_canvas(corners), fill=glass)
    radius = length * (rng.uniform(0.075, 0.095) if body.aspect < 3 else 0.055)
    for axle in (0.2, 0.8):
        ((x, y),) = to_canvas(((axle, 0.87),))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(25, 25, 25))
        hub = 0.45 * radius
        draw.ellipse([x - hub, y - hub, x + hub, y + hub], fill=random_gray(rng, 0.5, 0.9))
