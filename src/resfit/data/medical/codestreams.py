"""What compressed frames say of their size: read before a decoder, which trusts it, makes room for them."""

from __future__ import annotations

import struct
from collections.abc import Callable

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
# the size stands elsewhere too: hierarchical JPEG, a number of lines at the end
_ODD = frozenset({0xDC, 0xDE, 0xDF})
_SCAN, _LS_EXTENSION, _OVERSIZED = 0xDA, 0xF8, 4


def jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Returns width, height and components of a JPEG or JPEG-LS frame; ``None`` where its header is not sound.

    Args:
        frame: The compressed bytes.
    """
    place = frame.find(b"\xff\xd8")
    if place < 0:
        return None
    place += 2
    while place + 4 <= len(frame):
        if frame[place] != 0xFF:
            return None
        marker = frame[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        if marker in _ALONE:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", frame, place + 2)
        if marker in _ODD or marker == _SCAN or length < 2:
            return None
        if marker == _LS_EXTENSION and frame[place + 4 : place + 5] == bytes([_OVERSIZED]):
            return None
        if marker in _FRAME_HEADERS:
            if place + 10 > len(frame):
                return None
            height, width, components = struct.unpack_from(">HHB", frame, place + 5)
            return width, height, components
        place += 2 + length
    return None


def jpeg2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Returns width, height and components of a JPEG 2000 frame; ``None`` where its header is not sound.

    Args:
        frame: The compressed bytes: a codestream, or one in a JP2 file.
    """
    place = frame.find(b"\xff\x4f\xff\x51")
    if place < 0 or place + 44 > len(frame):
        return None
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, place + 8)
    (components,) = struct.unpack_from(">H", frame, place + 40)
    width, height = right - left, bottom - top
    if width < 1 or height < 1 or tile_width < 1 or tile_height < 1:
        return None
    if -(-right // tile_width) * -(-bottom // tile_height) > 65535:
        return None
    return width, height, components


#: What finds the size in a frame, by the start of the name of its transfer syntax.
SIZES: dict[str, Callable[[bytes], tuple[int, int, int] | None]] = {
    "JPEG 2000": jpeg2000_size,
    "High-Throughput JPEG 2000": jpeg2000_size,
    "JPEG": jpeg_size,
}
