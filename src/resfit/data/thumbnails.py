"""Small JPEGs of image files, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfit.data.decode import Rendering, decode_renderings, in_order
from resfit.errors import ImageError
from resfit.preprocessing import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.data.decode import ImageHeader

#: Longer side of a thumbnail, in pixels.
SIDE = 96
_QUALITY = 80


def thumbnails(paths: Sequence[str | Path], *, side: int = SIDE) -> Iterator[bytes]:
    """Yields a JPEG of each file, in order; empty bytes where it cannot be decoded. Nothing is enlarged.

    Args:
        paths: Image files.
        side: Longer side in pixels.
    """
    contract = InputSpec(size=(side, side), crop_fraction=1.0)

    def work(path: str | Path) -> bytes:
        try:
            (image,) = decode_renderings(path, contract, [_within(side)])
        except ImageError:
            return b""
        return jpeg(image)

    return in_order(work, paths)


def of_decoded(header: ImageHeader, image: Image) -> bytes:
    """Returns a JPEG of an image that was decoded for something else; empty bytes where that has left it too small.

    Args:
        header: What its file says.
        image: The upright image, perhaps at a fraction of its size.
    """
    if max(image.size) < min(SIDE, max(header.width, header.height)):
        return b""
    small = np.asarray(_within(SIDE)(image))
    return jpeg(small if small.ndim == 3 else small[:, :, None])


def jpeg(image: np.ndarray) -> bytes:
    """Returns an array ``(height, width, 3 or 1)``, values 0..255, as JPEG, without any metadata."""
    from PIL import Image as Images

    eight_bits = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    pixels = eight_bits[:, :, 0] if image.shape[-1] == 1 else eight_bits
    target = io.BytesIO()
    Images.fromarray(pixels).save(target, "JPEG", quality=_QUALITY)
    return target.getvalue()


def _within(side: int) -> Rendering:
    def render(image: Image) -> Image:
        small = image.copy()
        small.thumbnail((side, side))
        return small

    return render
