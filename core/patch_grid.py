"""Maps of a whole picture on the grid of its patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def patch_means(values: NDArray[np.floating], grid: int, resize_mode: str = "shortest") -> NDArray[np.float32]:
    """Mean over each patch of a map [H, W] of a picture, [grid * grid] row by row; pixels that two patches share count by their area.

    The map goes the picture's way (`Preprocessing`): the centre square alone where resize_mode is `shortest`, all of it squashed to a
    square where it is `squash`. It may be coarser or finer than the picture, and must have its aspect ratio.
    """
    height, width = values.shape
    sides = (height, width) if resize_mode == "squash" else (min(height, width),) * 2
    rows, columns = (_shares(length, side, grid) for length, side in zip((height, width), sides, strict=True))
    return (rows @ values.astype(np.float64) @ columns.T).ravel().astype(np.float32)


def _shares(length: int, side: int, grid: int) -> NDArray[np.float64]:
    """Share of each of `length` pixels in the mean over each of `grid` equal parts of the middle `side` pixels. [grid, length]"""
    start = (length - side) / 2
    edges = start + side / grid * np.arange(grid + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0.0, None) * (grid / side)
