"""Photos at their own size, for people to look at under a map."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import arrays, decode, high_bit_depth
from resfit.preprocessing import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

#: Longest side of a photo, in pixels; larger ones are scaled down to it.
LONGEST = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A photo, and what of it the network saw.

    Attributes:
        pixels: uint8 ``(height, width, 3)``, upright.
        box: Left, top, right and bottom of what the network saw, in pixels of the photo.
    """

    pixels: np.ndarray
    box: tuple[float, float, float, float]


def read(
    source: Any,
    contract: InputSpec,
    *,
    longest: int = LONGEST,
    max_pixels: int = decode.MAX_PIXELS,
) -> Photo:
    """Returns a photo at its own size.

    Args:
        source: What was explained: a file, one frame of a file, the bytes of one, an open file, a PIL image,
            :class:`resfit.data.arrays.Pixels`, or an array ``(height, width, channels)``.
        contract: How it became the network's input.
        longest: Its longest side at most, in pixels.
        max_pixels: As :func:`resfit.data.decode.decode_image` takes it.

    Raises:
        ImageError: It cannot be read.
    """
    if isinstance(source, arrays.Pixels) and source.is_ready:
        source = source.scaled()
    if isinstance(source, np.ndarray):
        return _of_array(source, contract, longest)
    whole = dataclasses.replace(contract, resize_mode="none")
    boxes: list[tuple[float, float, float, float]] = []

    def rendering(image: Image) -> Image:
        small = image.copy()
        if max(small.size) > longest:
            small.thumbnail((longest, longest))
        # an image that is scaled to millimetres has been cut to what the network sees
        boxes[:] = [decode.kept_box(*small.size, whole if contract.reading.spacing is not None else contract)]
        return small

    (pixels,) = decode.decode_renderings(source, whole, [rendering], max_pixels=max_pixels)
    return Photo(as_rgb(high_bit_depth.eight_bits(pixels)), boxes[0])


def _of_array(array: np.ndarray, contract: InputSpec, longest: int) -> Photo:
    from PIL import Image

    pixels = as_rgb(array)
    if max(pixels.shape[:2]) > longest:
        small = Image.fromarray(pixels)
        small.thumbnail((longest, longest))
        pixels = np.asarray(small)
    height, width = pixels.shape[:2]
    if array.shape[:2] == tuple(contract.size):  # such an array passes as it is, without a crop
        return Photo(pixels, (0.0, 0.0, float(width), float(height)))
    return Photo(pixels, decode.kept_box(width, height, contract))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image ``(height, width, channels)`` of any number of channels as uint8 RGB."""
    pixels = np.asarray(image)
    if pixels.shape[-1] != 3:
        pixels = np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    return pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
