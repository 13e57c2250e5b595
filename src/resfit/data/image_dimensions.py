"""Size and EXIF rotation of an image file, without decoding it."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO, NamedTuple

from resfit.data import arriving, decode, members
from resfit.data.box_geometry import ORIENTATIONS, displayed_size
from resfit.data.medical import scans
from resfit.errors import ImageError
from resfit.preprocessing import Reading

_ORIENTATION = 274


class ImageDimensions(NamedTuple):
    """Sizes of an image.

    Attributes:
        height: In pixels, as displayed: after the rotation that EXIF data asks for.
        width: Likewise.
        stored_height: In pixels, as stored.
        stored_width: Likewise.
        orientation: EXIF's tag 274, 1..8; 1 without one.
    """

    height: int
    width: int
    stored_height: int
    stored_width: int
    orientation: int


def read_dimensions(path: str | os.PathLike[str], *, max_pixels: int = decode.MAX_PIXELS) -> ImageDimensions:
    """Reads the header of an image file, of the formats that :mod:`resfit.data.decode` decodes.

    Args:
        path: A regular file, or the address of an image inside another file (:mod:`resfit.data.members`).
        max_pixels: Most pixels, width times height, that will be decoded.

    Raises:
        ImageError: It is no such image, or has more pixels; the text is the reason.
    """
    begin, member = b"", members.member_of(path)
    arriving.wait(path)
    try:
        if member is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        with open(path, "rb") if member is None else io.BytesIO(members.read(member)) as file:
            begin = file.read(4096)
            if not begin:
                raise ImageError("empty file")
            file.seek(0)
            header = _of_scan(path) if scans.is_scan(begin) else _of_picture(file)
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except OSError as error:
        if type(error).__name__ == "UnidentifiedImageError":
            raise ImageError(decode._reason(error, begin, max_pixels)) from error
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        raise ImageError(decode._reason(error, begin, max_pixels)) from error
    if header.height * header.width > max_pixels:
        raise ImageError(f"{header.width}x{header.height} pixels, more than the {max_pixels} that are allowed")
    return header


def _of_picture(file: BinaryIO) -> ImageDimensions:
    from PIL import Image

    decode._quieten()
    with Image.open(file, formats=decode.FORMATS) as image:
        width, height = image.size
        if image.format == "PNG" and not _png_may_rotate(file, image):
            return ImageDimensions(height, width, height, width, 1)
        if image.format == "PNG" and width * height > decode.MAX_PIXELS:
            return ImageDimensions(height, width, height, width, 1)  # is refused before it is decoded
        if image.format == "TIFF":  # its size is that as displayed already
            tags: Any = image
            width, height = int(tags.tag_v2.get(256, width)), int(tags.tag_v2.get(257, height))
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged metadata; a decoder does not rotate then either
            orientation = 1
    orientation = orientation if orientation in ORIENTATIONS else 1
    shown = displayed_size(orientation, (height, width))
    return ImageDimensions(*shown, height, width, orientation)


def _png_may_rotate(file: BinaryIO, image: Any) -> bool:
    """Whether a PNG holds EXIF or XMP data, which Pillow finds behind the pixels only by decoding them."""
    if {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & set(image.info):
        return True
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        pixels |= kind == b"IDAT"
        if kind == b"eXIf" or (pixels and kind in (b"tEXt", b"zTXt", b"iTXt")):
            return True
        if kind == b"IEND":
            break
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _of_scan(path: str | os.PathLike[str]) -> ImageDimensions:
    """The size of a DICOM or NIfTI file's first frame."""
    scan = scans.read_picture(decode.read_file(path), Reading(), None, decode.MAX_PIXELS)
    if scan is None:
        raise ImageError("not an image of a known format")
    height, width = scan.planes[0].shape
    return ImageDimensions(height, width, height, width, 1)
