"""Scans, DICOM and NIfTI, among other images: which files are such, what they are called, how they become pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resfit.data import high_bit_depth
from resfit.data.medical import dicom, nifti

if TYPE_CHECKING:
    from resfit.preprocessing import Reading

#: What must not be forgotten where such files are used.
NOTICE = "research use, not a medical device"

_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[..., high_bit_depth.HighBitDepthImage]], ...] = (
    (dicom.is_dicom, dicom.read_picture),
    (nifti.is_nifti, nifti.read_picture),
)
# how other images begin: most files are told by it at once
_OTHERS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


def is_scan(data: bytes) -> bool:
    """Says whether a file is a scan by how it begins.

    Args:
        data: All of its bytes, or a few kilobytes from its beginning.
    """
    return _reader(data) is not None


def read_picture(
    data: bytes, reading: Reading, frame: int | None, most: int
) -> high_bit_depth.HighBitDepthImage | None:
    """Reads a scan as a picture; returns ``None`` for a file that is none.

    Args:
        data: All bytes of the file.
        reading: Which frame, window and plane.
        frame: The frame, before what ``reading`` says.
        most: Most pixels.

    Raises:
        ImageError: It cannot be used; the text is the reason.
        MissingDependencyError: What reads it is not installed.
    """
    read = _reader(data)
    return None if read is None else read(data, reading, frame, most)


def _reader(data: bytes) -> Callable[..., high_bit_depth.HighBitDepthImage] | None:
    if data.startswith(_OTHERS) and data[128:132] != b"DICM":
        return None
    return next((read for knows, read in _KINDS if knows(data)), None)
