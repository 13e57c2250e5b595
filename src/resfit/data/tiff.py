"""TIFF files of 16 bits a colour, which Pillow would cut to eight: read as grey ones of so many times the width."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np

from resfit.errors import ImageError

_WIDTH, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _PREDICTOR, _TILE_WIDTH = 256, 258, 262, 277, 284, 317, 322
_EXTRA_SAMPLES, _FORMATS = 338, 339
_SHORT, _LONG = 3, 4
_Order = Literal["little", "big"]


def read_colours(data: bytes) -> np.ndarray | None:
    """Returns the colours of a TIFF file: uint16 array ``(height, width, samples)``; ``None`` for one of another kind.

    The colours of a pixel stand one after the other, as the pixels of a grey row do. Where a row holds differences,
    they are those to the same colour of the pixel before, and are added up here.

    Args:
        data: All bytes of the file. The size of the image has been looked at.

    Raises:
        ImageError: It is damaged.
    """
    from PIL import Image

    order: _Order = "little" if data[:2] == b"II" else "big"
    found = {tag: (place, kind, number) for tag, place, kind, number in _entries(data, order)}
    samples = found.get(_SAMPLES, (0, 0, 1))[2]
    if (
        samples not in (3, 4)
        or found.get(_PLANAR, (0, 0, 1))[2] != 1
        or not {_WIDTH, _BITS, _PHOTOMETRIC} <= set(found)
    ):
        return None
    width = found[_WIDTH][2]
    block = found[_TILE_WIDTH][2] if _TILE_WIDTH in found else width
    differs = found.get(_PREDICTOR, (0, 0, 1))[2] == 2
    twin = bytearray(data)
    changes = {_WIDTH: samples * width, _TILE_WIDTH: samples * block, _BITS: 16, _PHOTOMETRIC: 1, _SAMPLES: 1}
    changes |= {_PREDICTOR: 1, _FORMATS: 1}
    for tag, number in changes.items():
        if tag in found:
            _put(twin, found[tag][0], _LONG if tag in (_WIDTH, _TILE_WIDTH) else _SHORT, number, order)
    if _EXTRA_SAMPLES in found:  # of no meaning now: a private tag of no meaning to anyone
        twin[found[_EXTRA_SAMPLES][0] : found[_EXTRA_SAMPLES][0] + 2] = (65000).to_bytes(2, order)
    with Image.open(io.BytesIO(bytes(twin)), formats=("TIFF",)) as image:
        if image.mode not in ("I;16", "I;16B", "I;16L", "I;16N") or block < 1:
            return None
        values = np.asarray(image).astype(np.uint16)
    colours = values.reshape(values.shape[0], width, samples)
    if differs:
        for start in range(0, width, block):
            part = colours[:, start : start + block]
            np.cumsum(part, axis=1, dtype=np.uint16, out=part)
    return colours


def _entries(data: bytes, order: _Order) -> Iterator[tuple[int, int, int, int]]:
    """Yields tag, place, kind and number of each entry of the first directory; the number is the first of several."""
    start = int.from_bytes(data[4:8], order)
    for place in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], order), 12):
        entry = data[place : place + 12]
        if len(entry) < 12:
            raise ImageError("damaged or truncated")
        kind = int.from_bytes(entry[2:4], order)
        yield (
            int.from_bytes(entry[:2], order),
            place,
            kind,
            int.from_bytes(entry[8 : 10 if kind == _SHORT else 12], order),
        )


def _put(data: bytearray, place: int, kind: int, number: int, order: _Order) -> None:
    """Makes an entry one of a single number."""
    if number >= 2**32:
        raise ImageError("damaged: its width is not sound")
    value = number.to_bytes(2, order) + b"\0\0" if kind == _SHORT else number.to_bytes(4, order)
    data[place + 2 : place + 12] = kind.to_bytes(2, order) + (1).to_bytes(4, order) + value
