"""Maps as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resfit.explain.photos import as_rgb

if TYPE_CHECKING:
    from resfit.explain.photos import Photo

#: Share of a map's values that are drawn at full strength: single pixels do not decide how bright the others are.
_BRIGHTEST = 0.995
# Colours from nothing to most, as (position, red, green, blue).
_COLOURS = ((0.0, 30, 20, 120), (0.25, 40, 120, 220), (0.5, 60, 200, 120), (0.75, 250, 210, 50), (1.0, 215, 40, 30))
_COLOURS_AGAINST = ((0.0, 40, 40, 60), (0.5, 90, 60, 150), (1.0, 150, 70, 230))
# brightness of what lies outside of what the network saw
_UNSEEN = 0.5


def overlay(image: np.ndarray, heat: np.ndarray, *, strength: float = 0.6, against: bool = False) -> np.ndarray:
    """Lays a map over an image: the more it says, the stronger and the redder.

    Args:
        image: Array ``(height, width, channels)``, RGB or grey, values 0..255.
        heat: Array ``(height, width)``, values 0..1.
        strength: Share of the colour where the map is highest, 0..1.
        against: Whether the map shows what speaks against the class; it is then violet and nowhere red.

    Returns:
        uint8 array ``(height, width, 3)``.
    """
    return _laid(image, *_coloured(_shown(heat), against), strength)


def layer(heat: np.ndarray, *, against: bool = False) -> np.ndarray:
    """Returns a map alone, to be laid over its image at any strength.

    Args:
        heat: Array ``(height, width)``, values 0..1.
        against: As :func:`overlay` takes it.

    Returns:
        uint8 array ``(height, width, 4)``, RGB and opacity: laid over the image at a strength, it is :func:`overlay`.
    """
    return _as_layer(*_coloured(_shown(heat), against))


def over_photo(photo: Photo, heat: np.ndarray, *, strength: float = 0.6, against: bool = False) -> np.ndarray:
    """Lays a map over the photo at its own size. What the network did not see of it is darker.

    Args:
        photo: The photo.
        heat: Array ``(height, width)`` as the network saw the image, values 0..1.
        strength: As :func:`overlay` takes it.
        against: As :func:`overlay` takes it.

    Returns:
        uint8 array ``(height, width, 3)`` of the photo's size.
    """
    size = photo.pixels.shape[:2]
    laid = _laid(photo.pixels, *_coloured(_placed(_shown(heat), photo.box, size), against), strength)
    seen = _inside(photo.box, size)
    return np.where(seen[..., None], laid, np.rint(laid * _UNSEEN).astype(np.uint8))


def photo_layer(photo: Photo, heat: np.ndarray, *, against: bool = False) -> np.ndarray:
    """Returns a map alone at the size of the photo, as :func:`layer` does."""
    return _as_layer(*_coloured(_placed(_shown(heat), photo.box, photo.pixels.shape[:2]), against))


def _laid(image: np.ndarray, colours: np.ndarray, shown: np.ndarray, strength: float) -> np.ndarray:
    base = as_rgb(image).astype(np.float32)
    share = strength * shown
    return np.rint(np.clip(base * (1 - share) + colours * share, 0, 255)).astype(np.uint8)


def _as_layer(colours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    return np.rint(np.concatenate([colours, 255 * shown], axis=-1)).astype(np.uint8)


def _shown(heat: np.ndarray) -> np.ndarray:
    """Returns how much of each place is to be seen, 0..1."""
    limit = float(np.quantile(heat, _BRIGHTEST))
    return np.asarray(np.clip(heat / limit, 0, 1) if limit > 0 else np.clip(heat, 0, 1), np.float32)


def _coloured(shown: np.ndarray, against: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns colours ``(height, width, 3)``, and ``(height, width, 1)``, how much of them is to be seen, 0..1."""
    positions, *channels = np.array(_COLOURS_AGAINST if against else _COLOURS, np.float32).T
    colours = np.stack([np.interp(shown, positions, values) for values in channels], axis=-1).astype(np.float32)
    return colours, shown[..., None]


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Returns which pixels of a photo lie in a box, bool ``(height, width)``."""
    rows, columns = np.zeros(size[0], bool), np.zeros(size[1], bool)
    left, top, right, bottom = _whole_pixels(box, size)
    rows[top:bottom], columns[left:right] = True, True
    return np.asarray(rows[:, None] & columns[None])


def _placed(shown: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Returns a map at the place of the photo that it is of; nothing outside."""
    left, top, right, bottom = _whole_pixels(box, size)
    placed = np.zeros(size, np.float32)
    placed[top:bottom, left:right] = np.clip(enlarged(shown, (bottom - top, right - left)), 0, 1)
    return placed


def _whole_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = min(round(box[0]), size[1] - 1), min(round(box[1]), size[0] - 1)
    return left, top, max(left + 1, min(round(box[2]), size[1])), max(top + 1, min(round(box[3]), size[0]))


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map ``(h, w)`` at another height and width, bilinear, float32."""
    from PIL import Image

    height, width = size
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
