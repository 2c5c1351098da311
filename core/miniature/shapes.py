"""Plain shapes, each filled with one colour."""

import math

from core.miniature.canvas import Color, Pen, regular_polygon

NAMES = (
    *("circle", "ring", "triangle", "square", "hexagon", "octagon", "star", "cross", "heart", "arrow", "diamond"),
    *("line",),
)


def draw(pen: Pen, name: str, color: Color) -> None:
    """Draw the shape; one unit of the pen is its radius."""
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
