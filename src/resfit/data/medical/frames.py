"""Addresses of single frames: ``scan.dcm#frame=3`` is the fourth frame of ``scan.dcm``, or slice of a volume.

Read as bytes, a frame of a file is the file behind a short mark, so that whatever goes by the bytes (digests, caches,
decoders) tells the frames of a file apart.
"""

from __future__ import annotations

import os
from pathlib import Path

_SIGN = "#frame="
_MARK = b"resfit frame\0"
_LENGTH = len(_MARK) + 8


def address(path: Path, frame: int) -> Path:
    """Returns the address of one frame of a file."""
    return path.with_name(f"{path.name}{_SIGN}{frame}")


def parted(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Returns the file of an address, and the frame if it names one.

    Args:
        path: An address, or a plain path. A file that is really called so is a file.
    """
    text = os.fspath(path)
    if _SIGN not in text:
        return (path if isinstance(path, Path) else Path(path)), None
    name, _, number = text.rpartition(_SIGN)
    if number.isascii() and number.isdecimal() and len(number) < 10 and not os.path.lexists(path):
        return Path(name), int(number)
    return Path(path), None


def mark(frame: int | None) -> bytes:
    """Returns what stands before the bytes of a file for one frame of it; nothing for the file as a whole."""
    return b"" if frame is None else _MARK + frame.to_bytes(8, "little")


def unmarked(data: bytes) -> tuple[bytes, int | None]:
    """Returns the bytes of a file, and the frame that was marked before them."""
    if not data.startswith(_MARK):
        return data, None
    return data[_LENGTH:], int.from_bytes(data[len(_MARK) : _LENGTH], "little")
