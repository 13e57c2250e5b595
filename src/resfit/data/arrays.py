"""Arrays as images: which axes and values are certain, what is assumed and said, and what is refused.

An image is ``(height, width, channels)``, RGB, values 0..255. What differs from that is recognised by its dtype, shape
and range, and treated as a file of the same content is: grey without an axis of channels, channels first, alpha, 16
bits, floats 0..1. Every assumption that changes numbers is a :class:`resfit.errors.InputWarning`; what has two readings
is an error that names both.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, ImageError

#: How files of one array, ``.npy``, begin.
NPY = b"\x93NUMPY"
#: How files begin that :func:`to_file` writes: what follows is an array of values 0..255.
MARK = b"resfit pixels\0"

_TOLERANCE = 1e-3  # what rounding may add to a range of values
_BLACK = 8.0  # a picture of fractions no brighter than this is worth a word
_SMALL = 4  # no side of an image is so short where an axis may also be one of channels
_ALPHA, _COLOURS = (2, 4), (1, 3, 4)
_MOST_AXES = 4
_SIXTEEN_BITS = 257  # 65535 / 255


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """One image as numbers, of which dtype, axes and range have been checked.

    Attributes:
        values: Array ``(height, width, channels)``; a view of what the caller has handed over. Never changed.
        factor: What makes 0..255 of its values.
        is_ready: Whether it is the network's input already: neither scaled nor resized nor cropped.
    """

    values: np.ndarray
    factor: float = 1.0
    is_ready: bool = False

    def scaled(self) -> np.ndarray:
        """Returns the values 0..255: uint8 where nothing is lost by that, and float32 otherwise."""
        values, kind = self.values, self.values.dtype.kind
        if kind == "b":
            return values.astype(np.uint8) * np.uint8(255)
        if self.factor == 1.0:
            if kind in "iu":
                return values.astype(np.uint8, copy=False)
            found = np.clip(values.astype(np.float32), 0, 255)
            return found.astype(np.uint8) if (found == np.rint(found)).all() else found
        if kind in "iu":  # in the number format that 16-bit files of grey and of colour are divided in
            wide = values if values.shape[-1] < 3 else values.astype(np.float32)
            return (wide / _SIXTEEN_BITS).astype(np.float32)
        found = np.clip(values.astype(np.float64) * self.factor, 0, 255)
        nearest = np.rint(found)
        if (np.abs(found - nearest) < _TOLERANCE).all():  # eight bits that were divided by 255
            return nearest.astype(np.uint8)
        return found.astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkInput:
    """Images that are a network's input already: of its size, RGB or grey, values 0..255. Nothing is done to them.

    Attributes:
        images: Array ``(n, height, width, channels)``.
    """

    images: np.ndarray | Sequence[np.ndarray]

    def pixels(self) -> list[Pixels]:
        """Returns the images one by one."""
        return [Pixels(image, is_ready=True) for image in self.images]


def as_array(value: Any, where: str = "") -> np.ndarray:
    """Returns what a caller calls an array as one of numpy, without a copy where that is possible.

    Args:
        value: An array or tensor of any library, or nested lists of numbers.
        where: What stands before it in an error, such as ``"image 3: "``.

    Raises:
        ArgumentError: It is none, or lies where numpy cannot read it.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # libraries of tensors raise what they like
        text = " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"images must be arrays of numbers. Received: {where}{type(value).__name__}, which numpy cannot read "
            f"({text}). Pass images of different sizes as a list, and tensors on another device as copies in memory."
        ) from error


def images_of(array: np.ndarray, channels: int, notes: set[str], *, where: str = "") -> list[Pixels]:
    """Returns the images of an array: one, or a batch of them.

    Args:
        array: Of shape ``(height, width)``, ``(height, width, c)``, ``(c, height, width)``, or several such, where
            ``c`` is 1, 3, 4 (RGB and alpha), 2 (grey and alpha) or ``channels``.
        channels: Number of the network's input channels.
        notes: What was assumed is added to it, a sentence each.
        where: What stands before it in an error, such as ``"image 3: "``.

    Raises:
        ArgumentError: Its dtype, shape or range is not that of images, or has two readings.
    """
    return _read(array, channels, notes, where, multilabel=True)


def image_of(array: np.ndarray, channels: int, notes: set[str], *, where: str = "") -> Pixels:
    """Returns an array that stands for one image; a batch of one is one too. As :func:`images_of`."""
    return _read(array, channels, notes, where, multilabel=False)[0]


class Scale:
    """The range of values of images that come one after the other: that of the first of them holds for all."""

    def __init__(self) -> None:
        self._factors: dict[np.dtype[Any], float] = {}

    def image_of(self, array: np.ndarray, channels: int, notes: set[str], where: str = "") -> Pixels:
        """Returns an array as an image, as :func:`image_of` does, by the range of those before it.

        Args:
            array: The image.
            channels: Number of the network's input channels.
            notes: What was assumed is added to it.
            where: What stands before it in an error.

        Raises:
            ArgumentError: It is no image, or its values lie outside of the range of those before it.
        """
        found: set[str] = set()
        pixels = image_of(array, channels, found, where=where)
        known = self._factors.setdefault(array.dtype, pixels.factor)
        if known == pixels.factor:
            notes |= found
            return pixels
        if array.max() * known > 255 * (1 + _TOLERANCE):
            raise _refused(
                "the images of a source must have one range of values",
                f"{where}values up to {array.max():g} behind others of at most 1, which were taken for 0..1",
                "Scale all of them to 0..255, or pass uint8.",
            )
        return dataclasses.replace(pixels, factor=known)


def check_values(arrays: Iterable[np.ndarray], notes: set[str], *, where: str = "") -> float:
    """Returns what makes 0..255 of the values of arrays of one dtype.

    Args:
        arrays: All images of a batch: the range is that of them together.
        notes: What was assumed is added to it.
        where: What stands before it in an error, such as ``"image 3: "``.

    Raises:
        ArgumentError: Their values are not those of images.
    """
    low, high, whole, dtype = math.inf, -math.inf, True, np.dtype(np.uint8)
    for array in arrays:
        dtype = array.dtype
        if dtype.kind not in "buif":
            raise _refused("images must have numbers", f"{where}dtype {dtype}", _dtype_remedy(dtype))
        if dtype == np.uint8 or dtype.kind == "b":
            return 1.0
        least, most = array.min(), array.max()
        if not np.isfinite(least + 0.0) or not np.isfinite(most + 0.0):
            raise _refused(
                "images must have finite values", f"{where}NaN or infinite ones", "Repair or leave out the image."
            )
        low, high = min(low, float(least)), max(high, float(most))
        whole = whole and (dtype.kind != "f" or bool((array == np.rint(array)).all()))
    if high < low:
        return 1.0  # no image
    rule = "images must have values 0..255"
    given = f"{where}dtype {dtype}, values {low:g} to {high:g}"
    if low < (-_TOLERANCE if dtype.kind == "f" else 0):
        remedy = "Undo a normalisation by mean and deviation: the network applies its own."
        raise _refused(rule, given, remedy if dtype.kind == "f" else "Save scans as DICOM, or scale them to 0..255.")
    if dtype.kind == "f":
        return _factor_of_floats(high, whole, rule, given, notes)
    if high <= 255:
        if dtype == np.uint16 and high > 0:
            raise _refused(
                "images of 16 bits must have values 0..65535",
                f"{given}, which may be 8-bit values or a nearly black 16-bit image",
                "Pass array.astype('uint8') for the former, PIL.Image.fromarray(array) or a file for the latter.",
            )
        return 1.0
    if high > 65535:
        raise _refused(rule, given, "Scale them to 0..255.")
    notes.add(
        f"{dtype} values up to {high:g} are divided by 257, as those of 16-bit files are; scale them to 0..255 where "
        "that is wrong"
    )
    return 1 / _SIXTEEN_BITS


def to_file(pixels: Pixels) -> bytes:
    """Returns the content of a file that is decoded to the same pixels, whatever their range is.

    Args:
        pixels: Any but a network's input.
    """
    file = io.BytesIO()
    file.write(MARK)
    np.lib.format.write_array(file, np.ascontiguousarray(pixels.scaled()), allow_pickle=False)
    return file.getvalue()


def of_npy(data: bytes, channels: int, most: int) -> tuple[Pixels, set[str]]:
    """Reads a file of one array as an image; nothing in it is executed, and no more is allocated than it holds.

    Args:
        data: All of its bytes, as ``numpy.save`` or :func:`to_file` wrote them.
        channels: Number of the network's input channels.
        most: Most pixels.

    Returns:
        The image, and what was assumed.

    Raises:
        ImageError: It is damaged, too large, or no image; the text is the reason.
    """
    try:
        file = io.BytesIO(data)
        file.seek(len(MARK) if data.startswith(MARK) else 0)
        shape, fortran, dtype = _header(file)
        if dtype.hasobject or len(shape) > _MOST_AXES:
            raise ImageError(f"an array of shape {shape}, dtype {dtype}, which is no image")
        count = math.prod(shape)
        if count > _MOST_AXES * most or count * dtype.itemsize != len(data) - file.tell():
            raise ImageError("damaged, truncated or too large")
        array = np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")
        notes: set[str] = set()
        if data.startswith(MARK) and array.ndim == 3 and array.size and np.isfinite(array).all():
            return Pixels(array), notes
        return image_of(array, channels, notes), notes
    except ArgumentError as error:
        raise ImageError(str(error).rstrip(".")) from error
    except ImageError:
        raise
    except Exception as error:  # numpy raises several kinds over a damaged header
        raise ImageError(f"damaged or truncated ({' '.join(str(error).split())[:100]})") from error


def is_file(data: bytes) -> bool:
    """Says whether a file holds one array, by how it begins.

    Args:
        data: Its first bytes.
    """
    return data.startswith((NPY, MARK))


def is_eight_bits(data: bytes) -> bool:
    """Says whether a file of one array holds bytes or truth values.

    Args:
        data: As many bytes from its beginning as its header takes.
    """
    try:
        return _header(io.BytesIO(data.removeprefix(MARK)))[2] in (np.uint8, np.bool_)
    except Exception:  # damaged
        return False


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads the header of a file of one array: shape, whether the first axis runs fastest, dtype."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _read(array: np.ndarray, channels: int, notes: set[str], where: str, *, multilabel: bool) -> list[Pixels]:
    if array.dtype.kind not in "buif":
        raise _refused(_rule(channels), f"{where}dtype {array.dtype}", _dtype_remedy(array.dtype))
    if array.ndim == _MOST_AXES and multilabel and not len(array):
        return []
    if 0 in array.shape or not 2 <= array.ndim <= _MOST_AXES:
        raise _refused(_rule(channels), where + _shape(array), "")
    if array.ndim == _MOST_AXES:
        if not multilabel and len(array) != 1:
            raise _refused(
                "images in a list must be one image each",
                where + _shape(array),
                "Pass a batch by itself, not in a list.",
            )
        layout = _layout(array, array.shape[1:], channels, where, multilabel=False)
        images = list(array)
    else:
        layout = _layout(array, array.shape, channels, where, multilabel=multilabel)
        images = list(array) if layout == "nhw" else [array]
    if layout == "chw":
        if array.shape[-3] != 1:
            notes.add(f"the shape {array.shape} is read as channels first; pass (height, width, channels) otherwise")
        images = [np.moveaxis(image, 0, -1) for image in images]
    images = [image[..., None] if image.ndim == 2 else image for image in images]
    factor = check_values(images, notes, where=where)
    return [Pixels(image, factor) for image in images]


def _layout(array: np.ndarray, shape: tuple[int, ...], channels: int, where: str, *, multilabel: bool) -> str:
    """Returns how the axes are read: ``"hw"``, ``"hwc"``, ``"chw"``, or ``"nhw"`` for a batch of grey images."""
    takes_files = channels in (1, 3)
    if len(shape) == 2:
        if takes_files and min(shape) > _SMALL:
            return "hw"
        raise _refused(_rule(channels), where + _shape(array), "")
    first, _, last = shape
    if last == channels:
        return "hwc"
    found = {}
    if takes_files and last in (*_COLOURS, *_ALPHA):
        found["hwc"] = shape[:2]
    if first == channels or (takes_files and first in _COLOURS):
        found["chw"] = shape[1:]
    if takes_files and multilabel and first != 1:
        found["nhw"] = shape[1:]
    likely = [name for name, sides in found.items() if min(sides) > _SMALL] or list(found)
    if likely == ["chw", "nhw"] and first == channels == 3:
        return "chw"
    if len(likely) == 1:
        return likely[0]
    words = {"hwc": "(height, width, channels)", "chw": "(channels, height, width)", "nhw": "(images, height, width)"}
    both = f", which may be {' or '.join(words[name] for name in likely)}" if likely else ""
    raise _refused(_rule(channels), where + _shape(array) + both, "Pass axes in the first order." if both else "")


def _factor_of_floats(high: float, whole: bool, rule: str, given: str, notes: set[str]) -> float:
    if high > 255 + _TOLERANCE:
        divide = "Divide 16-bit values by 257. " if high <= 65535 else ""
        raise _refused(rule, given, f"{divide}Cut what lies outside with numpy.clip if little of it does.")
    if high <= 0:
        return 1.0
    if high <= 1 + _TOLERANCE:
        notes.add(
            f"floats of which the maximum is {high:g} are taken as 0..1 and multiplied by 255; pass values 0..255"
        )
        return 255.0
    if high < _BLACK and not whole:
        notes.add(
            f"floats of which the maximum is {high:g} are taken as 0..255, which is nearly black; if they are scaled "
            "otherwise, multiply them up to 0..255"
        )
    return 1.0


def _rule(channels: int) -> str:
    return (
        f"images must be files, folders, bytes of files, PIL images, or arrays of shape (height, width, {channels}) "
        "with numbers 0..255"
    )


def _shape(array: np.ndarray) -> str:
    return f"shape {array.shape}, dtype {array.dtype}"


def _dtype_remedy(dtype: np.dtype[Any]) -> str:
    return "Pass images of different sizes as a list of arrays." if dtype.kind == "O" else ""


def _refused(rule: str, given: str, remedy: str) -> ArgumentError:
    return ArgumentError(f"{rule}. Received: {given}.{' ' + remedy if remedy else ''}")
