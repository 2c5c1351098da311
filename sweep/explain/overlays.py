"""A picture and its map as one picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
_FOR = np.array([196, 30, 58], dtype=np.float32)
_AGAINST = np.array([32, 90, 200], dtype=np.float32)
_STRONGEST = 0.75
"""Share of colour where the map is strongest: the picture still shows."""
_SMALLEST_SIDE = 224


def overlay(picture: Image.Image | NDArray[np.uint8], attributions: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What pytorch-grad-cam's `show_cam_on_image(rgb, mask, use_rgb=True)` takes: the picture [H, W, 3] and a mask [H, W], both in 0..1.

    picture: what the model saw, RGB (`explanation.data`); attributions: its map [g, g]. As there, what speaks against the class is 0, the
    strongest patch 1, and in between it is interpolated.
    """
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    positive = np.maximum(attributions, 0.0).astype(np.float32)
    largest = float(positive.max())
    small = Image.fromarray(positive / largest if largest > 0 else positive)
    mask = small.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
    return pixels.astype(np.float32) / 255.0, np.clip(np.asarray(mask, dtype=np.float32), 0.0, 1.0)


def coloured(pixels: NDArray[np.uint8], attributions: Floats) -> NDArray[np.uint8]:
    """The picture in grey with its patches in red, where they speak for the class, or blue, where against. [H, W, 3] -> that or larger.

    The strongest patch has the strongest colour. Patches are not blurred: the map knows nothing finer. Small pictures are enlarged.
    """
    enlarged = -(-_SMALLEST_SIDE // min(pixels.shape[:2]))
    shown = pixels.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    strength = attributions / max(float(np.abs(attributions).max()), 1e-12)
    height, width, _ = shown.shape
    rows, columns = np.arange(height) * strength.shape[0] // height, np.arange(width) * strength.shape[1] // width
    at_pixel = strength[rows[:, None], columns[None, :], None]
    grey = shown.mean(axis=2, keepdims=True).repeat(3, axis=2)
    share = _STRONGEST * np.abs(at_pixel)
    return ((1.0 - share) * grey + share * np.where(at_pixel > 0, _FOR, _AGAINST)).round().astype(np.uint8)
