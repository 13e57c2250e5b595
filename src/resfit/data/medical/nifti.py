"""NIfTI volumes as pictures: one slice, turned to the usual view whatever way the file stores it.

A slice is shown as radiology papers print it after ``nibabel.as_closest_canonical``: in an axial one the front of the
head is up; in a coronal or sagittal one the top of the head is up; the patient's right, or back, is at the left.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import high_bit_depth
from resfit.data.medical import log_filter
from resfit.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from resfit.preprocessing import Plane, Reading

_KIND = "NIfTI"
_MOST_BYTES = 512 * 2**20
_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_MAGIC = {348: (344, (b"n+1\0", b"ni1\0")), 540: (4, (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"))}
_LONGEST_HEADER = 544
_GZIP = b"\x1f\x8b"


def is_nifti(data: bytes) -> bool:
    """Says whether a file is NIfTI, packed or not, by how it begins.

    Args:
        data: All of its bytes, or a kilobyte from its beginning.
    """
    if data.startswith(_GZIP):
        try:
            data = zlib.decompressobj(31).decompress(data[:4096], _LONGEST_HEADER)
        except zlib.error:
            return False
    for order in ("little", "big"):
        place, marks = _MAGIC.get(int.from_bytes(data[:4], order), (0, ()))
        if marks and data[place : place + len(marks[0])] in marks:
            return True
    return False


def count_slices(data: bytes, plane: Plane) -> int:
    """Returns the number of slices of a volume.

    Args:
        data: All bytes of the file, or a few kilobytes from its beginning.
        plane: How it is cut.

    Raises:
        ImageError: The header is damaged; the text is the reason.
        MissingDependencyError: nibabel is not installed.
    """
    with log_filter.reading(_KIND):
        header = _header(_unpacked(data, _LONGEST_HEADER))
        shape = _shape(header)
        return shape[_source_axis(header, plane)[0]]


def read_picture(data: bytes, reading: Reading, frame: int | None, most: int) -> high_bit_depth.HighBitDepthImage:
    """Reads one slice as a picture.

    Args:
        data: All bytes of the file.
        reading: Which slice, plane and window.
        frame: The slice, before what ``reading`` says.
        most: Most pixels of a slice.

    Raises:
        ImageError: It cannot be used; the text is the reason.
        MissingDependencyError: nibabel is not installed.
    """
    with log_filter.reading(_KIND):
        values, spacing, header = _slice(data, reading, frame, most)
        if values.ndim == 3:
            return high_bit_depth.HighBitDepthImage(
                tuple(values[..., channel].astype(np.float32) for channel in range(3)), spacing
            )
        if isinstance(reading.window, tuple):
            centre, width = reading.window
            low, high = centre - width / 2, centre + width / 2
        else:
            low, high = float(header["cal_min"]), float(header["cal_max"])
            if not low < high:
                finite = values[np.isfinite(values)]
                low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return high_bit_depth.HighBitDepthImage((high_bit_depth.scaled(values, low, high),), spacing)


def read_values(
    data: bytes, reading: Reading, frame: int | None = None, most: int = high_bit_depth.MOST_PIXELS
) -> np.ndarray:
    """Returns the values of one slice as :func:`read_picture` shows it, not yet scaled to 0..255.

    Args:
        data: All bytes of the file.
        reading: Which slice and plane.
        frame: The slice, before what ``reading`` says.
        most: Most pixels of a slice.

    Returns:
        float64 array ``(height, width)``, after the file's slope and intercept; or uint8 ``(height, width, 3)``.
    """
    with log_filter.reading(_KIND):
        return _slice(data, reading, frame, most)[0]


def _unpacked(data: bytes, length: int) -> bytes:
    """Returns the first so many bytes of the volume, or all that there are."""
    if not data.startswith(_GZIP):
        return data[:length]
    try:
        return zlib.decompressobj(31).decompress(data, length)
    except zlib.error:
        raise ImageError("damaged: it cannot be unpacked") from None


def _header(data: bytes) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise MissingDependencyError(
            'NIfTI files need nibabel, which is not installed. Install it: pip install "resfit[medical]".'
        ) from error
    kind = nibabel.Nifti2Header if 540 in (int.from_bytes(data[:4], e) for e in ("little", "big")) else None
    return (kind or nibabel.Nifti1Header).from_fileobj(io.BytesIO(data), check=False)


def _shape(header: Any) -> tuple[int, int, int]:
    """Returns the shape of the first volume."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ImageError(f"damaged: it declares {count} dimensions")
    shape = [int(side) for side in header["dim"][1 : min(count, 3) + 1]]
    shape += [1] * (3 - len(shape))
    if min(shape) < 1:
        raise ImageError("damaged: it declares an empty volume")
    return shape[0], shape[1], shape[2]


def _source_axis(header: Any, plane: Plane) -> tuple[int, np.ndarray]:
    """Returns the axis of the file across a plane, and where each of its axes points (nibabel's orientation)."""
    import nibabel

    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise ImageError("damaged: its orientation is not sound")
    orientation = nibabel.io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise ImageError("damaged: its orientation is not sound")
    return int(np.flatnonzero(orientation[:, 0] == _AXES[plane])[0]), orientation


def _slice(
    data: bytes, reading: Reading, frame: int | None, most: int
) -> tuple[np.ndarray, tuple[float, float] | None, Any]:
    header = _header(_unpacked(data, _LONGEST_HEADER))
    shape = _shape(header)
    axis, orientation = _source_axis(header, reading.plane)
    wanted = reading.frame if frame is None else frame
    count = shape[axis]
    number = (count - 1) // 2 if isinstance(wanted, str) else wanted
    if number >= count:
        raise ImageError(f"it has {count} slices, and slice {number} is asked for (the first is 0)")
    rest = [side for place, side in enumerate(shape) if place != axis]
    high_bit_depth.check_pixels(rest[0], rest[1], most)
    stored = number if orientation[axis, 1] > 0 else count - 1 - number
    volume, first = _volume(data, header, shape, axis, stored)
    plane = np.take(volume, first, axis=axis)
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if plane.dtype.names:
        plane = np.stack([plane[name] for name in plane.dtype.names[:3]], axis=-1)
    else:
        if plane.dtype.kind not in "iuf":
            raise ImageError("values of a kind that is no picture")
        plane = plane.astype(np.float64)
        if slope and np.isfinite([slope, intercept]).all():
            plane = plane * slope + intercept
    # the two axes that are left, in the order right, front, top, each pointing there
    axes = [place for place in range(3) if place != axis]
    if orientation[axes[0], 0] > orientation[axes[1], 0]:
        plane, axes = plane.swapaxes(0, 1), axes[::-1]
    for place, source in enumerate(axes):
        if orientation[source, 1] < 0:
            plane = np.flip(plane, place)
    steps = [abs(float(header["pixdim"][1 + source])) for source in axes]
    spacing = (steps[1], steps[0]) if all(0 < step < 1e6 for step in steps) else None
    return np.ascontiguousarray(plane.swapaxes(0, 1)[::-1]), spacing, header


def _volume(data: bytes, header: Any, shape: tuple[int, int, int], axis: int, stored: int) -> tuple[np.ndarray, int]:
    """Returns as much of the volume as holds a slice, and where along the axis the slice is in it."""
    kind = header.get_data_dtype()
    begin = int(header["vox_offset"])
    if header["magic"].item()[:3] in (b"ni1", b"ni2"):
        raise ImageError("a NIfTI header without its image: the values are in a file of their own")
    if begin < header.sizeof_hdr:
        raise ImageError("damaged: its values begin inside its header")
    if axis == 2:  # slices one after the other: what lies behind is not unpacked
        shape, first = (shape[0], shape[1], stored + 1), stored
    else:
        first = stored
    count = shape[0] * shape[1] * shape[2]
    end = begin + count * kind.itemsize
    if end > _MOST_BYTES:
        raise ImageError(f"{end} bytes of values, more than the {_MOST_BYTES} that are allowed")
    values = _unpacked(data, end)
    if len(values) < end:
        raise ImageError(f"truncated: {len(values)} bytes, where the header declares {end}")
    return np.frombuffer(values, kind, count, begin).reshape(shape, order="F"), first
