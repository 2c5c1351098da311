"""Digits and letters: house-number digits in a font, and handwritten ones on black."""

from functools import lru_cache
from importlib.metadata import distribution

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from core.miniature.canvas import (
    CANVAS_SIZE,
    Color,
    Rng,
    contrasting,
    font,
    plain_background,
    random_color,
    random_corner,
    surface,
    to_color,
)

NAMES = tuple(str(digit) for digit in range(10))
HANDWRITTEN_TEST_SHARE = 0.2
"""Share of the handwritten source digits that only the test split is drawn from."""


def draw_street_number(rng: Rng, name: str) -> Image.Image:
    """The digit on a wall, blurred a little, some with parts of neighbouring digits."""
    wall = np.array(random_color(rng, saturation=(0, 0.7), value=(0.1, 0.9)), np.float32)
    image = surface(rng, to_color(wall), to_color(wall + 25 * rng.normal(size=3)), 4, 0.12)
    ink = random_color(rng, saturation=(0, 0.7), value=(0.1, 1))
    if abs(np.mean(ink) - wall.mean()) < 70:
        ink = to_color(wall + (120 if wall.mean() < 128 else -120))
    size = rng.uniform(58, 82)
    x, y = rng.uniform(0.32 * CANVAS_SIZE, 0.68 * CANVAS_SIZE), rng.uniform(0.34 * CANVAS_SIZE, 0.66 * CANVAS_SIZE)
    for side in (-1, 1):
        if rng.random() < 0.45:
            neighbour = _glyph(rng, NAMES[rng.integers(10)], 0.8 * size)
            faded = to_color(0.6 * np.array(ink) + 0.4 * wall)
            _stamp(image, neighbour, x + side * size * rng.uniform(0.8, 0.95), y + rng.uniform(-3, 3), faded)
    _stamp(image, _glyph(rng, name, size), x, y, ink)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def draw_handwritten(rng: Rng, name: str, *, is_test: bool) -> Image.Image:
    """A handwritten digit in white on black; train and test never share a source digit."""
    sources = handwritten_sources(int(name), is_test=is_test)
    size = int(rng.uniform(58, 88))
    mask = Image.fromarray(_handwritten_images()[0][sources[rng.integers(len(sources))]])
    mask = mask.resize((size, size), Image.Resampling.BICUBIC)
    mask = mask.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    # The 8 x 8 sources are soft once enlarged: a steeper tone curve gives back firm strokes.
    mask = Image.fromarray((1.7 * (np.asarray(mask, np.float32) - 50)).clip(0, 255).astype(np.uint8))
    image = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), (0, 0, 0))
    left, top = random_corner(rng, size, size, 0)
    image.paste((255, 255, 255), (int(left), int(top)), mask)
    return image


def handwritten_sources(digit: int, *, is_test: bool) -> np.ndarray:
    """Indices into scikit-learn's handwritten digits from which a split of this digit is drawn."""
    of_digit = np.flatnonzero(_handwritten_images()[1] == digit)
    num_test = int(len(of_digit) * HANDWRITTEN_TEST_SHARE)
    # The source is ordered by writer: a contiguous cut also parts the writers.
    return of_digit[-num_test:] if is_test else of_digit[:-num_test]


@lru_cache
def _handwritten_images() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] and int64 [1797]."""
    # scikit-learn's `load_digits` reads this file; importing it takes a second in every process that draws.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    return (rows[:, :-1].reshape(-1, 8, 8) / 16 * 255).clip(0, 255).astype(np.uint8), rows[:, -1].astype(np.int64)


def draw_character(rng: Rng, character: str) -> Image.Image:
    """A letter or digit in a font: a third in white on black, the others in any colours."""
    if rng.random() < 0.35:
        image, ink = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), (0, 0, 0)), (255, 255, 255)
    else:
        image = plain_background(rng)
        ink = random_color(rng, saturation=(0, 1), value=(0, 1))
        ink = contrasting(ink, float(np.asarray(image).mean()), least=70, step=120)
    glyph = _glyph(rng, character, rng.uniform(34, 80), max_turn=15)
    x, y = rng.uniform(0.3 * CANVAS_SIZE, 0.7 * CANVAS_SIZE, 2)
    _stamp(image, glyph, float(x), float(y), ink)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))


def _glyph(rng: Rng, text: str, size: float, max_turn: float = 12) -> Image.Image:
    """The character as a mask: slanted, of varying weight, turned by up to `max_turn` degrees."""
    side = int(1.5 * size)
    mask = Image.new("L", (side, side), 0)
    middle = (0.75 * size, 0.75 * size)
    weight = int(rng.integers(3))
    ImageDraw.Draw(mask).text(middle, text, font=font(int(size)), fill=255, anchor="mm", stroke_width=weight)
    slant = rng.uniform(-0.25, 0.25)
    shear = (1, slant, -slant * 0.75 * size, 0, 1, 0)
    mask = mask.transform(mask.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    return mask.rotate(rng.uniform(-max_turn, max_turn), Image.Resampling.BILINEAR)


def _stamp(image: Image.Image, mask: Image.Image, x: float, y: float, color: Color) -> None:
    """Paint the mask's shape, centred on (x, y)."""
    image.paste(color, (int(x - mask.width / 2), int(y - mask.height / 2)), mask)
