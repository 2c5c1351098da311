"""Objects, mostly made by people, each upright and seen from the side."""

import math

from core.miniature.canvas import Color, Pen, Rng, random_color, regular_polygon, scale_color

PRETRAINING_NAMES = (
    *("face", "flower", "fish", "clock", "mushroom", "balloon", "rocket", "chair", "envelope", "umbrella", "tree"),
    *("ladder", "cup", "bicycle"),
)
NAMES = (
    *PRETRAINING_NAMES,
    *("sailing boat", "lighthouse", "windmill", "tent", "candle", "lamp", "key", "glasses", "crown", "snowman"),
)


def draw(rng: Rng, pen: Pen, name: str, color: Color, second: Color) -> None:
    """Draw the object; one unit of the pen is about half its height. Parts that may have any colour have one of the two."""
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
        case "sailing boat":
            pen.box(0, 0.75, 2, 0.3, random_color(rng, 0.57, (0.4, 0.7), (0.4, 0.7)))
            pen.polygon([(-0.8, 0.4), (0.8, 0.4), (0.5, 0.75), (-0.5, 0.75)], color)
            pen.box(0, -0.3, 0.07, 1.4, (70, 50, 40))
            pen.polygon([(0.1, -1), (0.1, 0.3), (0.75, 0.3)], (245, 245, 240))
            pen.polygon([(-0.1, -0.8), (-0.1, 0.3), (-0.6, 0.3)], second if rng.random() < 0.5 else (225, 225, 220))
        case "lighthouse":
            pen.polygon([(-0.28, -0.5), (0.28, -0.5), (0.42, 1), (-0.42, 1)], (240, 240, 240))
            for stripe in (-0.3, 0.2, 0.7):
                half_width = 0.3 + 0.095 * (stripe + 0.5)
                pen.box(0, stripe, 2 * half_width, 0.24, color)
            pen.box(0, -0.52, 0.8, 0.1, (60, 60, 60))
            pen.box(0, -0.68, 0.36, 0.26, (255, 225, 110))
            pen.dome(0, -0.8, 0.26, 0.24, color)
        case "windmill":
            pen.polygon([(-0.22, -0.3), (0.22, -0.3), (0.42, 1), (-0.42, 1)], random_color(rng, 0.06, (0.3, 0.6), (0.4, 0.7)))
            pen.dome(0, -0.28, 0.26, 0.26, color)
            turn = rng.uniform(0, math.pi / 2)
            for arm in range(4):
                sail = Pen(pen.draw, *pen.at(0, -0.3), pen.unit, turn + arm * math.pi / 2)
                sail.box(0.45, 0, 0.9, 0.06, (60, 45, 35))
                sail.box(0.55, 0.12, 0.65, 0.22, (240, 235, 220))
        case "tent":
            pen.polygon([(0, -0.8), (1.05, 0.7), (-1.05, 0.7)], color)
            pen.polygon([(0, -0.45), (0.32, 0.7), (-0.32, 0.7)], scale_color(color, 0.35))
            pen.line([(0, -0.8), (0, -1)], (60, 50, 40), 2)
        case "candle":
            pen.box(0, 0.4, 0.5, 1.2, color)
            pen.ellipse(0, 1, 0.6, 0.12, second)
            pen.line([(0, -0.2), (0, -0.4)], (30, 30, 30), 2)
            pen.ellipse(0, -0.55, 0.18, 0.3, (250, 170, 30))
            pen.ellipse(0, -0.48, 0.09, 0.17, (255, 245, 170))
        case "lamp":
            pen.box(0, 0.4, 0.12, 1, second)
            pen.dome(0, 1, 0.5, 0.22, second)
            pen.polygon([(-0.35, -0.95), (0.35, -0.95), (0.8, 0), (-0.8, 0)], color)
        case "key":
            metal = random_color(rng, (0.09, 0.16), (0.2, 0.9), (0.5, 0.95))
            pen.ellipse(-0.55, 0, 0.42, outline=metal, width=max(3, int(0.17 * pen.unit)))
            pen.box(0.42, 0, 1.15, 0.17, metal)
            for tooth, length in ((0.55, 0.28), (0.88, 0.4)):
                pen.box(tooth, length / 2, 0.15, length, metal)
        case "glasses":
            thickness = max(3, int(0.1 * pen.unit))
            for side in (-1, 1):
                pen.ellipse(0.52 * side, 0.1, 0.4, 0.36, (205, 225, 235), color, thickness)
                pen.line([(0.9 * side, 0), (1.05 * side, -0.45)], color, thickness)
            pen.line([(-0.15, 0), (0.15, 0)], color, thickness)
        case "crown":
            gold = random_color(rng, (0.1, 0.17), (0.6, 0.95), (0.7, 1))
            pen.polygon([(-0.9, 0.6), (-0.95, -0.5), (-0.45, 0.05), (0, -0.8), (0.45, 0.05), (0.95, -0.5), (0.9, 0.6)], gold)
            pen.box(0, 0.5, 1.8, 0.2, scale_color(gold, 0.6))
            for u, v in ((-0.95, -0.5), (0, -0.8), (0.95, -0.5), (0, 0.2)):
                pen.ellipse(u, v, 0.14, fill=color)
        case "snowman":
            white, coal = (240, 243, 248), (25, 25, 25)
            for v, radius in ((0.6, 0.5), (-0.05, 0.36), (-0.55, 0.27)):
                pen.ellipse(0, v, radius, fill=white, outline=(150, 160, 175))
            for u, v in ((-0.1, -0.6), (0.1, -0.6), (0, -0.1), (0, 0.1)):
                pen.ellipse(u, v, 0.05, fill=coal)
            pen.polygon([(0, -0.55), (0.3, -0.48), (0, -0.45)], (240, 130, 40))
            pen.box(0, -0.8, 0.7, 0.08, color)
            pen.box(0, -0.98, 0.42, 0.36, color)
            for side in (-1, 1):
                pen.line([(0.3 * side, -0.05), (0.8 * side, -0.35)], (90, 60, 40), 2)
