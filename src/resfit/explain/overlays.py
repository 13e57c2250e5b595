"""Maps as pictures."""

from __future__ import annotations

import numpy as np

#: Share of a map's values that are drawn at full strength: single pixels do not decide how bright the others are.
_BRIGHTEST = 0.995
# Colours from nothing to most, as (position, red, green, blue).
_COLOURS = ((0.0, 30, 20, 120), (0.25, 40, 120, 220), (0.5, 60, 200, 120), (0.75, 250, 210, 50), (1.0, 215, 40, 30))


def overlay(image: np.ndarray, heat: np.ndarray, *, strength: float = 0.6) -> np.ndarray:
    """Lays a map over an image: the more it says, the stronger and the redder.

    Args:
        image: Array ``(height, width, channels)``, RGB or grey, values 0..255.
        heat: Array ``(height, width)``, values 0..1.
        strength: Share of the colour where the map is highest, 0..1.

    Returns:
        uint8 array ``(height, width, 3)``.
    """
    base = as_rgb(image).astype(np.float32)
    colours, shown = _coloured(heat)
    share = strength * shown
    return np.rint(np.clip(base * (1 - share) + colours * share, 0, 255)).astype(np.uint8)


def layer(heat: np.ndarray) -> np.ndarray:
    """Returns a map alone, to be laid over its image at any strength.

    Args:
        heat: Array ``(height, width)``, values 0..1.

    Returns:
        uint8 array ``(height, width, 4)``, RGB and opacity: laid over the image at a strength, it is :func:`overlay`.
    """
    return np.rint(np.concatenate([*_coloured(heat)], axis=-1) * (1, 1, 1, 255)).astype(np.uint8)


def _coloured(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns colours ``(height, width, 3)``, and ``(height, width, 1)``, how much of them is to be seen, 0..1."""
    limit = float(np.quantile(heat, _BRIGHTEST))
    shown = np.clip(heat / limit, 0, 1) if limit > 0 else np.clip(heat, 0, 1)
    positions, *channels = np.array(_COLOURS).T
    colours = np.stack([np.interp(shown, positions, values) for values in channels], axis=-1)
    return colours, shown[..., None]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image ``(height, width, channels)`` of any number of channels as uint8 RGB."""
    pixels = np.asarray(image)
    if pixels.shape[-1] != 3:
        pixels = np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    return pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map ``(h, w)`` at another height and width, bilinear, float32."""
    from PIL import Image

    height, width = size
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
