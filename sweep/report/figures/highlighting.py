"""A picture in which the strongest patches of an attribution map stand out (Figure 5)."""

import math

import numpy as np
from numpy.typing import NDArray

Segment = list[tuple[float, float]]


def faded(pixels: NDArray[np.uint8], is_top: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with everything outside the top patches turned grey and pale.

    pixels: uint8 [H, W, 3]; is_top: bool [M], M = g * g patches row by row.
    """
    height, width, _ = pixels.shape
    grid = math.isqrt(len(is_top))
    rows = np.arange(height) * grid // height
    columns = np.arange(width) * grid // width
    mask = is_top.reshape(grid, grid)[rows[:, None], columns[None, :]]
    pale = 0.72 * 255 + 0.28 * pixels.mean(axis=2, keepdims=True)
    return np.where(mask[:, :, None], pixels, np.broadcast_to(pale, pixels.shape)).astype(np.uint8)


def outline(is_top: NDArray[np.bool_]) -> list[Segment]:
    """The edges between top patches and the others, as (x, y) with the picture from (0, 0) to (1, 1), y downwards."""
    grid = math.isqrt(len(is_top))
    padded = np.pad(is_top.reshape(grid, grid), 1)
    segments = []
    for row in range(grid + 1):
        for column in range(grid + 1):
            x, y = column / grid, row / grid
            if column < grid and padded[row, column + 1] != padded[row + 1, column + 1]:
                segments.append([(x, y), (x + 1 / grid, y)])
            if row < grid and padded[row + 1, column] != padded[row + 1, column + 1]:
                segments.append([(x, y), (x, y + 1 / grid)])
    return segments
