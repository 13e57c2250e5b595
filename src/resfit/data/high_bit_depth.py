"""Pictures of more than eight bits: planes of float32, values 0..255 with fractions, up to the network.

Pillow resizes one plane of float32 at a time (its mode ``F``), by the same rules as eight bits; a colour picture is
three planes.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import tiff
from resfit.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.preprocessing import InputSpec

#: Most pixels of a picture of more than eight bits: it takes four to sixteen bytes a pixel.
MOST_PIXELS = 40_000_000
#: Pillow's modes of more than eight bits.
MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_SEPARATE = "more than 8 bits a colour, one colour plane after the other; save it as PNG"
_GREY = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, eq=False)
class HighBitDepthImage:
    """A picture before it is resized.

    Attributes:
        planes: One plane of grey, or red, green and blue: float32 arrays ``(height, width)``, values 0..255.
        spacing: Millimetres from row to row and from column to column, where the file says.
    """

    planes: tuple[np.ndarray, ...]
    spacing: tuple[float, float] | None = None


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns values as float32 from 0 at ``low`` to 255 at ``high``; those outside are cut.

    Args:
        values: Array of any numbers. Not changed.
        low: What becomes black.
        high: What becomes white; may lie below ``low``.
    """
    if not np.isfinite([low, high]).all() or low == high:
        return np.zeros(values.shape, np.float32)
    result = np.subtract(values, low, dtype=np.float64)
    result *= 255 / (high - low)
    np.nan_to_num(result, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(result, 0, 255, out=result).astype(np.float32)


def of_grey(values: np.ndarray) -> HighBitDepthImage:
    """Returns the picture of a grey image of whole numbers (16 bits) or of floating-point ones.

    Whole numbers are cut to 0..65535 and divided by 257. Floating-point ones within 0..1 are multiplied by 255, within
    0..255 they are taken as they are, and otherwise they are stretched from the lowest to the highest.

    Args:
        values: Array ``(height, width)``.
    """
    if values.dtype.kind in "iu":
        return HighBitDepthImage(((np.clip(values, 0, 65535) / 257).astype(np.float32),))
    finite = np.nan_to_num(values.astype(np.float64), posinf=3.4e38, neginf=-3.4e38)
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 255:
        return HighBitDepthImage(((finite * (255 if high <= 1 else 1)).astype(np.float32),))
    return HighBitDepthImage((scaled(finite, low, high),))


def of_colour(values: np.ndarray) -> HighBitDepthImage:
    """Returns the picture of a colour image of 16 bits: array ``(height, width, 3 or 4)``; what is clear is white."""
    wide = values[..., :3].astype(np.float32) / 257
    if values.shape[-1] == 4:
        alpha = values[..., 3:].astype(np.float32) / 65535
        wide = wide * alpha + 255 * (1 - alpha)
    return HighBitDepthImage(tuple(np.ascontiguousarray(wide[..., channel]) for channel in range(3)))


def of_file(image: Image, data: bytes) -> HighBitDepthImage | None:
    """Returns the picture of a file of 16 bits a colour that Pillow would cut to eight; ``None`` for all others.

    PNG files are read by TensorFlow.

    Args:
        image: The file as Pillow opened it.
        data: All of its bytes.

    Raises:
        ImageError: It is damaged or too large.
    """
    tiles: Sequence[Any] = getattr(image, "tile", ())
    mode = str(tiles[0][-1] if image.format == "PNG" else tiles[0][-1][0]) if tiles else ""
    if image.format not in ("PNG", "TIFF") or not mode.startswith(("RGB;16", "RGBA;16")):
        bits = getattr(image, "tag_v2", {}).get(258, (8,)) if image.format == "TIFF" and image.mode != "F" else (8,)
        if len(bits) > 1 and max(bits) > 8:  # Pillow takes every byte for a pixel
            raise ImageError(_SEPARATE)
        return None
    check_pixels(*image.size)
    colours = tiff.read_colours(data) if image.format == "TIFF" else _colours_of_png(data)
    if colours is None:
        raise ImageError(_SEPARATE)
    return of_colour(colours)


def _colours_of_png(data: bytes) -> np.ndarray:
    import tensorflow as tf

    try:
        colours: np.ndarray = tf.io.decode_png(data, dtype=tf.uint16).numpy()
        return colours
    except tf.errors.InvalidArgumentError:
        raise ImageError("damaged or truncated") from None


def check_pixels(width: int, height: int, most: int = MOST_PIXELS) -> None:
    """Makes sure that a picture is not too large to be read.

    Raises:
        ImageError: It is.
    """
    if not (width > 0 and height > 0 and width * height <= most):
        raise ImageError(f"{width}x{height} pixels; at least one and at most {most} are read")


def rendered(
    picture: HighBitDepthImage, spec: InputSpec, renderings: Sequence[Callable[[Image], Image]]
) -> list[np.ndarray]:
    """Makes arrays of a picture, as :func:`resfit.data.decode.decode_renderings` does of one of eight bits.

    Args:
        picture: The picture.
        spec: The contract.
        renderings: Each is called with every plane in turn, and must do the same to all.

    Returns:
        For each rendering a float32 array ``(height, width, channels)``, values 0..255.
    """
    from PIL import Image as Images

    planes = picture.planes
    if spec.channels == 1 and len(planes) == 3:
        planes = (np.tensordot(np.array(_GREY, np.float32), np.stack(planes), 1),)
    images: list[Image] = [Images.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in planes]
    if spec.reading.spacing is not None:
        images = [_to_scale(image, picture.spacing, spec) for image in images]
    arrays = []
    for rendering in renderings:
        array = np.stack([np.asarray(rendering(image)) for image in images], axis=-1)
        np.clip(array, 0, 255, out=array)  # bicubic and Lanczos resizing overshoot
        arrays.append(np.repeat(array, spec.channels // array.shape[-1], axis=-1))
    return arrays


def as_image(picture: HighBitDepthImage) -> Image:
    """Returns a picture as people see it, rounded to eight bits: an image of mode L or RGB.

    Args:
        picture: The picture.
    """
    from PIL import Image as Images

    values = eight_bits(np.stack(picture.planes, axis=-1))
    return Images.fromarray(values if values.shape[-1] == 3 else values[..., 0])


def _to_scale(image: Image, spacing: tuple[float, float] | None, spec: InputSpec) -> Image:
    """Returns the image at ``spec.reading.spacing`` millimetres a pixel, cut or padded to the size before the crop."""
    from PIL import Image as Images

    wanted = spec.reading.spacing
    if spacing is None or wanted is None:
        raise ImageError("no pixel spacing, and the images are scaled to millimetres")
    method: Any = getattr(Images.Resampling, spec.interpolation.upper())
    sides, starts, lengths = [], [], []
    for count, step, room in zip(image.size[::-1], spacing, spec.resize_size, strict=True):
        full = count * step / wanted  # pixels of the result that all of the image takes
        side = max(1, min(room, round(full)))
        length = min(float(count), side * wanted / step) if full > room else float(count)
        sides.append(side)
        lengths.append(length)
        starts.append((count - length) / 2)
    box = (starts[1], starts[0], starts[1] + lengths[1], starts[0] + lengths[0])
    part = image.resize((sides[1], sides[0]), method, box=box)
    room_height, room_width = spec.resize_size
    canvas = Images.new("F", (room_width, room_height), 0.0)
    canvas.paste(part, ((room_width - sides[1]) // 2, (room_height - sides[0]) // 2))
    return canvas


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Returns a decoded image as uint8, rounded, for people to look at; one that is uint8 already as it is.

    Args:
        image: Array of values 0..255.
    """
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def is_deep(data: bytes) -> bool:
    """Says whether a file that Pillow reads holds more than eight bits a colour.

    Args:
        data: All of its bytes, or as many from its beginning as its header takes.
    """
    from PIL import Image as Images

    if data.startswith(b"\xff\xd8\xff"):
        return False
    try:
        with Images.open(io.BytesIO(data), formats=("PNG", "TIFF", "PPM")) as image:
            tiles: Sequence[Any] = getattr(image, "tile", ())
            return image.mode in MODES or any(";16" in str(tile[-1]) for tile in tiles)
    except Exception:  # no image of these formats, or damaged
        return False
