"""Things of nature: what stands in the land or the sky, plants and animals."""

import math

from core.miniature.canvas import Pen, Point, Rng, random_color, random_gray, regular_polygon, scale_color

NAMES = (
    *("lake", "volcano", "island", "rainbow", "cloud", "sun", "moon", "lightning", "snowflake", "leaf", "apple", "cherries"),
    *("butterfly", "snail"),
)
_BARK = (95, 65, 40)


def draw(rng: Rng, pen: Pen, name: str, hue_shift: float) -> None:
    """Draw it; one unit of the pen is about half its size, `hue_shift` in turns moves its colours."""
    match name:
        case "lake":
            bank = random_color(rng, (0.1 + hue_shift, 0.33 + hue_shift), (0.4, 0.7), (0.4, 0.8))
            shore = _shore(rng)
            pen.polygon([(1.12 * u, 1.12 * v) for u, v in shore], bank)
            pen.polygon(shore, random_color(rng, 0.57 + hue_shift, (0.5, 0.8), (0.45, 0.75)))
            for u, v in ((-0.25, -0.2), (0.25, 0), (-0.15, 0.22)):
                pen.line([(u - 0.2, v), (u + 0.2, v)], (225, 235, 245), _stroke(pen, 0.05))
        case "volcano":
            for puff in range(4):
                smoke = random_gray(rng, 0.45, 0.7)
                pen.ellipse(0.1 * puff + rng.uniform(-0.1, 0.1), -0.5 - 0.11 * puff, 0.16 + 0.05 * puff, fill=smoke)
            rock = random_color(rng, 0.06 + hue_shift, (0.2, 0.5), (0.2, 0.45))
            pen.polygon([(-1.05, 0.85), (-0.25, -0.4), (0.25, -0.4), (1.05, 0.85)], rock)
            lava = [(-0.25, -0.4), (0.25, -0.4), (0.3, 0.15), (0.14, -0.05), (0.05, 0.5), (-0.1, 0), (-0.28, 0.25)]
            pen.polygon(lava, random_color(rng, 0.04 + hue_shift, (0.85, 1), (0.85, 1)))
        case "island":
            pen.ellipse(0, 0.6, 1.1, 0.38, random_color(rng, 0.55 + hue_shift, (0.5, 0.8), (0.5, 0.8)))
            pen.ellipse(0, 0.52, 0.65, 0.2, random_color(rng, 0.12 + hue_shift, (0.3, 0.5), (0.8, 0.95)))
            pen.polygon([(-0.12, 0.5), (0.04, 0.5), (0.12, -0.5), (0.02, -0.5)], _BARK)
            leaves = random_color(rng, 0.32 + hue_shift, (0.6, 0.9), (0.35, 0.6))
            for u, v in ((-0.7, -0.25), (-0.5, -0.8), (0.1, -1), (0.65, -0.75), (0.75, -0.2)):
                pen.polygon([(0.02, -0.55), (0.5 * u + 0.05, 0.5 * v - 0.42), (u, v), (0.5 * u, 0.5 * v - 0.2)], leaves)
        case "rainbow":
            x, y = pen.at(0, 0.5)
            band = 0.13 * pen.unit
            for index, hue in enumerate((0, 0.08, 0.16, 0.35, 0.6, 0.78)):
                radius = 1.1 * pen.unit - index * band
                color = random_color(rng, hue + hue_shift, (0.8, 1), (0.8, 1))
                pen.draw.arc([x - radius, y - radius, x + radius, y + radius], 180, 360, fill=color, width=math.ceil(band))
        case "cloud":
            gray = random_gray(rng, 0.7, 1)
            for u, v, radius in ((-0.6, 0.15, 0.38), (-0.15, -0.15, 0.5), (0.35, -0.05, 0.42), (0.72, 0.2, 0.3)):
                pen.ellipse(u, v, radius, fill=gray)
            pen.box(0.05, 0.35, 1.4, 0.34, gray)
        case "sun":
            color = random_color(rng, 0.13 + hue_shift, (0.7, 1), (0.85, 1))
            for ray in range(8):
                arm = Pen(pen.draw, pen.x, pen.y, pen.unit, ray * math.pi / 4)
                arm.polygon([(0.65, -0.13), (1.1, 0), (0.65, 0.13)], color)
            pen.ellipse(0, 0, 0.55, fill=color)
        case "moon":
            turns = [math.pi * (step / 10 - 0.6) for step in range(13)]
            outer = [(math.cos(turn), math.sin(turn)) for turn in turns]
            tips = outer[0][0]
            inner = [(tips + 0.62 * (u - tips), v) for u, v in outer]
            pen.polygon([*outer, *reversed(inner)], random_color(rng, 0.14 + hue_shift, (0.1, 0.5), (0.85, 1)))
        case "lightning":
            bolt = [(0.15, -1), (-0.5, 0.15), (-0.05, 0.15), (-0.25, 1), (0.5, -0.25), (0.05, -0.25), (0.45, -1)]
            pen.polygon(bolt, random_color(rng, 0.15 + hue_shift, (0.6, 1), (0.9, 1)))
        case "snowflake":
            color = random_color(rng, 0.55 + hue_shift, (0, 0.4), (0.85, 1))
            for branch in range(6):
                arm = Pen(pen.draw, pen.x, pen.y, pen.unit, branch * math.pi / 3)
                arm.box(0.5, 0, 1, 0.11, color)
                for side in (-1, 1):
                    arm.line([(0.5, 0), (0.8, 0.25 * side)], color, _stroke(pen, 0.09))
        case "leaf":
            color = random_color(rng, (0.05 + hue_shift, 0.36 + hue_shift), (0.6, 0.9), (0.4, 0.8))
            steps = [step / 8 for step in range(9)]
            upper = [(2 * step - 1, -0.5 * math.sin(math.pi * step**0.8)) for step in steps]
            pen.polygon([*upper, *[(u, -v) for u, v in reversed(upper)]], color)
            vein = scale_color(color, 0.55)
            pen.line([(-1, 0), (1.25, 0)], vein, _stroke(pen, 0.07))
            for u in (-0.5, -0.1, 0.3):
                for side in (-1, 1):
                    pen.line([(u + 0.25, 0), (u, 0.3 * side)], vein, _stroke(pen, 0.04))
        case "apple":
            color = random_color(rng, (hue_shift, 0.3 + hue_shift), (0.7, 0.95), (0.6, 0.9))
            for side in (-1, 1):
                pen.ellipse(0.28 * side, 0.2, 0.55, 0.7, color)
            pen.line([(0, -0.35), (0.1, -0.85)], _BARK, _stroke(pen, 0.1))
            pen.ellipse(0.38, -0.72, 0.28, 0.13, random_color(rng, 0.3 + hue_shift, (0.6, 0.9), (0.4, 0.6)))
        case "cherries":
            color = random_color(rng, 0.97 + hue_shift, (0.75, 1), (0.5, 0.85))
            for u, v in ((-0.5, 0.55), (0.45, 0.65)):
                pen.line([(0.1, -0.8), (u, v)], (70, 120, 50), _stroke(pen, 0.08))
                pen.ellipse(u, v, 0.38, fill=color)
                pen.ellipse(u - 0.12, v - 0.13, 0.08, fill=(250, 225, 225))
            pen.ellipse(0.42, -0.8, 0.34, 0.15, (70, 150, 60))
        case "butterfly":
            wing, spot = random_color(rng, saturation=(0.6, 1), value=(0.6, 1)), random_color(rng, saturation=(0.2, 1))
            for side in (-1, 1):
                pen.polygon([(0, 0), (0.35 * side, -0.75), (0.95 * side, -0.85), (0.95 * side, -0.2), (0.5 * side, 0.1)], wing)
                pen.ellipse(0.45 * side, 0.4, 0.38, 0.42, wing)
                pen.ellipse(0.65 * side, -0.45, 0.17, fill=spot)
                pen.line([(0, -0.5), (0.22 * side, -0.95)], (30, 25, 25), 2)
            pen.ellipse(0, 0.05, 0.09, 0.6, (30, 25, 25))
        case "snail":
            body, shell = random_color(rng, 0.1 + hue_shift, (0.2, 0.5), (0.6, 0.9)), random_color(rng, value=(0.4, 0.8))
            pen.polygon([(-0.95, 0.75), (0.95, 0.75), (1, 0), (0.7, 0), (0.6, 0.5), (-0.3, 0.45)], body)
            for u in (0.72, 0.98):
                pen.line([(0.85, 0.05), (u + 0.05, -0.4)], body, _stroke(pen, 0.07))
            pen.ellipse(-0.1, 0, 0.62, fill=shell)
            for radius in (0.44, 0.24):
                pen.ellipse(-0.1, 0, radius, outline=scale_color(shell, 0.45), width=_stroke(pen, 0.09))


def _stroke(pen: Pen, width: float) -> int:
    """A line's width in pixels, from units."""
    return max(2, round(width * pen.unit))


def _shore(rng: Rng) -> list[Point]:
    """A closed line of 14 points around the origin, wider than high, with bays."""
    return [(rng.uniform(0.75, 1) * u, 0.6 * rng.uniform(0.75, 1) * v) for u, v in regular_polygon(14)]
