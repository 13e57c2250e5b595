"""Image files as arrays: each opened once, decoded straight to the size that the network needs.

Only formats that Pillow decodes without running another program are accepted. An image of more pixels than the limit
is refused by its header, before memory is spent on it.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import itertools
import os
import re
import stat
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from resfit import dependencies, processors
from resfit.data import arrays, arriving, high_bit_depth, members, urls
from resfit.data.box_geometry import letterbox
from resfit.data.medical import frames, scans
from resfit.errors import ArgumentError, ImageError, InputWarning, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.preprocessing import InputSpec

#: Formats that are read, by Pillow's names; its JPEG reader takes MPO too.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
#: Most pixels of an image that is decoded.
MAX_PIXELS = 100_000_000
#: Largest file in bytes that is opened.
MAX_BYTES = members.MAX_BYTES

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# How files begin that are no usable image, and what to call them: (position, bytes, name).
_FOREIGN = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "video"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
)
# how pictures of HEIF begin, behind the size of their first box
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")
_NO_FILES = "a network with {} input channels takes arrays, not image files"
_NO_SPACING = "no pixel spacing, and the images are scaled to millimetres"
_FORMATS_AND_MPO = (*FORMATS, "MPO")
_open_files = threading.Lock()
_ORIENTATION = 274  # EXIF's tag
_FULL_SIZE = "resfit full size"  # in a PIL image's info: width and height before a JPEG decoder's reduction
_PICTURES = ("HEIC", "AVIF", "JPEG 2000", "JPEG XL", "PSD")
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the second header of a BMP file
_BEGINNING = 300  # bytes in which a drawing says that it is SVG
# How files begin whose format is read: where Pillow does not know one of these, its header is damaged.
_KNOWN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")


class DecodedBatch(NamedTuple):
    """Some images of a sequence.

    Attributes:
        indices: int64 array ``(n,)``: positions of the decoded images in the sequence, ascending.
        images: uint8 array ``(n, height, width, channels)``, RGB or grey; float32 if one is of more than eight bits.
        failures: Positions of the images that could not be decoded, with the reason.
    """

    indices: np.ndarray
    images: np.ndarray
    failures: list[tuple[int, str]]


class ImageHeader(NamedTuple):
    """What a file says of its image.

    Attributes:
        format: Its format, by Pillow's name.
        width: In pixels, as stored.
        height: In pixels, as stored.
        bytes: Size of the file.
        tables: Sum of a JPEG's first quantisation table: the larger, the stronger it is compressed; 0 for others.
        exif: Bytes of EXIF data.
        camera: Checksum of the camera's make, its model and the software; 0 where none is named.
    """

    format: str
    width: int
    height: int
    bytes: int
    tables: int
    exif: int
    camera: int


#: Brings an upright image of mode RGB or L, or one plane of a deeper one (mode F), to the network's size.
Rendering = Callable[["Image"], "Image"]
#: Is shown the header and the upright image of mode RGB or L before it is brought to any size.
Look = Callable[[ImageHeader, "Image"], None]


def decode_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image | arrays.Pixels,
    input_spec: InputSpec,
    *,
    max_pixels: int = MAX_PIXELS,
    look: Look | None = None,
) -> np.ndarray:
    """Decodes one image as a network's input contract says.

    The first frame of an animation counts. EXIF orientation is applied. Transparent pixels are laid over white;
    CMYK and palettes become RGB. Grey of more than 8 bits is taken as 16-bit and scaled over the full range 0..65535;
    nothing of it is rounded (:func:`resfit.data.high_bit_depth.of_grey` has the rules, floating-point grey included).
    Scans,
    DICOM and NIfTI, become pictures as ``input_spec.reading`` says.

    Args:
        source: A file, one frame of a file (:mod:`resfit.data.medical.frames`), the bytes of one, one that is open for
            reading
            in binary, a PIL image, or pixels. All give the same for the same content, but for JPEG files of more than
            twice the size that is needed: their decoder works at a fraction of it, and pixels have been decoded.
        input_spec: Size, resize rule, crop and number of channels (1 or 3).
        max_pixels: Most pixels, width times height, that are decoded. Pillow's own limit, by default 178,956,970,
            holds too.
        look: As :func:`decode_renderings` takes it.

    Returns:
        uint8 array ``(height, width, channels)``, RGB or grey; of the contract's size unless its resize mode is
        ``"none"``. An image of more than 8 bits is float32, values 0..255 with fractions; so is every scan.

    Raises:
        ImageError: The image cannot be used; the text is the reason.
        MissingDependencyError: It is a scan, and what reads it is not installed.
    """
    renderings = [lambda image: resize(image, input_spec)]
    (image,) = decode_renderings(source, input_spec, renderings, max_pixels=max_pixels, look=look)
    return image


def decode_renderings(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image | arrays.Pixels,
    input_spec: InputSpec,
    renderings: Sequence[Rendering],
    *,
    max_pixels: int = MAX_PIXELS,
    look: Look | None = None,
) -> list[np.ndarray]:
    """Decodes one image once and makes several arrays of it.

    Args:
        source: As :func:`decode_image` takes it.
        input_spec: As :func:`decode_image` takes it.
        renderings: Each is called with the upright image, a JPEG perhaps at a fraction of its size, and returns an
            image of its own.
        max_pixels: As :func:`decode_image` takes it.
        look: Is shown the image as well, as the renderings are.

    Returns:
        For each rendering an array ``(height, width, channels)``, as :func:`decode_image` returns it.

    Raises:
        ImageError: The image cannot be used; the text is the reason.
        MissingDependencyError: It is a scan, and what reads it is not installed.
    """
    data = b""
    try:
        if isinstance(source, arrays.Pixels):
            return _of_pixels(source, input_spec, max_pixels, renderings, look)
        if not isinstance(source, bytes | str | os.PathLike):
            found = read_open(source)
            if not isinstance(found, bytes):
                return _of_image(found, None, input_spec, max_pixels, renderings, look)
            source = found
        data = source if isinstance(source, bytes) else read_file(source)
        if not data:
            raise ImageError("empty file")
        return _decode(data, input_spec, max_pixels, renderings, look)
    except (ImageError, MissingDependencyError, arriving.CopyError):
        raise
    except MemoryError as error:
        raise ImageError("too large for the memory") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise ImageError(_reason(error, data, max_pixels)) from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Reads a regular file; nothing else is opened, so that a pipe or device cannot block.

    Args:
        path: The file, one that lies in another (:mod:`resfit.data.members`), or one frame of it; its bytes then stand
            behind a mark (:mod:`resfit.data.medical.frames`).

    Raises:
        ImageError: It is missing, no regular file, unreadable or larger than ``MAX_BYTES``.
    """
    path, frame = frames.parted(path)
    member = members.member_of(path)
    if member is not None:
        return frames.mark(frame) + members.read(member)
    arriving.wait(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{status.st_size} bytes, more than the {MAX_BYTES} that are allowed")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)
        return frames.mark(frame) + data
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


def read_open(source: BinaryIO | Image) -> bytes | Image:
    """Returns all bytes of an open file, from its beginning where that can be reached, or those behind a PIL image.

    Args:
        source: A file that is open for reading in binary, or a PIL image.

    Returns:
        The bytes; a PIL image that is in memory, or at a later frame, is returned as it is.

    Raises:
        ImageError: It cannot be read, or is larger than ``MAX_BYTES``.
    """
    from PIL import Image as Images

    image = source if isinstance(source, Images.Image) else None
    file: Any = getattr(image, "fp", None) if image is not None else source
    with _open_files:  # one file may stand for several images, and is read by several threads
        if image is not None:
            first = image.tell() == 0 if hasattr(image, "tell") else True
            if file is None or not getattr(image, "tile", None) or image.format not in _FORMATS_AND_MPO or not first:
                image.load()
                return image
        try:
            seekable = file.seekable()
            place = file.tell() if seekable else 0
            if seekable:
                file.seek(0)
            data = file.read(MAX_BYTES + 1)
            if seekable and image is not None:
                file.seek(place)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"not open in binary: reading gives {type(data).__name__}")
    if len(data) > MAX_BYTES:
        raise ImageError(f"more than the {MAX_BYTES} bytes that are allowed")
    return bytes(data)


def decode_many(
    sources: Sequence[Any],
    input_spec: InputSpec,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    looks: Callable[[int], Look | None] | None = None,
) -> Iterator[DecodedBatch]:
    """Decodes images in parallel, in order, a few batches ahead of the reader.

    Args:
        sources: Images, each as :func:`decode_image` takes it.
        input_spec: As :func:`decode_image` takes it; its resize mode must give one size.
        batch_size: Images a batch, failures included.
        workers: Threads. Default: one a core.
        max_pixels: As :func:`decode_image` takes it.
        looks: For the position of a source what is shown its image, as :func:`decode_renderings` does, or ``None``;
            called, as is that, in the threads.

    Returns:
        An iterator of batches that cover the sequence. Memory stays that of a few batches, however long it is. With
        the resize mode ``"none"`` an image of another size than the contract's is a failure.

    Raises:
        ArgumentError: ``batch_size`` or ``workers`` is less than 1.
    """
    workers = workers if workers is not None else processors.available()
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        if number < 1:
            raise ArgumentError(f"{name} must be at least 1. Received: {number}.")
    return _batches(sources, input_spec, batch_size, workers, max_pixels, looks)


def _batches(
    sources: Sequence[Any],
    input_spec: InputSpec,
    batch_size: int,
    workers: int,
    max_pixels: int,
    looks: Callable[[int], Look | None] | None,
) -> Iterator[DecodedBatch]:
    def work(item: tuple[int, Any]) -> np.ndarray | str:
        position, source = item
        look = None if looks is None else looks(position)
        try:
            if isinstance(source, ImageError):
                raise source
            image = decode_image(source, input_spec, max_pixels=max_pixels, look=look)
            check_size(image, input_spec)
            return image
        except ImageError as error:
            return str(error)

    items: Iterator[Any] = iter(sources)
    if any(isinstance(source, urls.RemoteImage) for source in sources):  # servers are waited for, not worked on
        items = in_order(_fetched, sources, workers=urls.REQUESTS, ahead=2 * urls.REQUESTS)
    decoded = in_order(work, enumerate(items), workers=workers, ahead=max(3 * batch_size, 2 * workers))
    for start in range(0, len(sources), batch_size):
        some = list(itertools.islice(decoded, batch_size))
        yield _batch(start, some, input_spec)


def _fetched(source: Any) -> Any:
    """Returns the bytes of an image at a web address, or why it cannot be had; everything else as it is."""
    if not isinstance(source, urls.RemoteImage):
        return source
    try:
        return read_open(source)  # type: ignore[arg-type]
    except ImageError as error:
        return error


def is_deep(path: str | os.PathLike[str]) -> bool:
    """Says whether an image file is decoded to float32 rather than to uint8; looks at no more than its header.

    Args:
        path: The file.
    """
    try:
        data = members.beginning(path, 4096)
        if data.startswith(b"\xff\xd8\xff"):
            return False
        if not scans.is_scan(data) and data.startswith((b"II", b"MM")):  # its header may lie at its end
            data = members.beginning(path, MAX_BYTES)
    except OSError:
        return False
    if arrays.is_file(data):
        return not arrays.is_eight_bits(data)
    return scans.is_scan(data) or high_bit_depth.is_deep(data)


def is_picture(beginning: bytes) -> bool:
    """Says whether a file is a picture, of a format that is read or not, by how it begins.

    Args:
        beginning: Its first kilobyte, or all of a shorter file.
    """
    if beginning.startswith(_KNOWN) or (beginning.startswith(b"RIFF") and beginning[8:12] == b"WEBP"):
        return True
    if beginning.startswith(b"BM"):
        return int.from_bytes(beginning[14:18], "little") in _BITMAP_HEADERS
    if re.match(rb"P[1-6]\s+(?:\d|#)", beginning):
        return True
    if any(name in _PICTURES and beginning.startswith(mark, at) for at, mark, name in _FOREIGN):
        return True
    return b"<svg" in beginning[:_BEGINNING].lower()


def check_size(image: np.ndarray, input_spec: InputSpec) -> None:
    """Makes sure that a decoded image fits into a batch.

    Raises:
        ImageError: It has another size than the contract's, which does not resize.
    """
    height, width = image.shape[:2]
    if (height, width) != tuple(input_spec.size):
        wanted = f"{input_spec.size[1]}x{input_spec.size[0]}"
        raise ImageError(f"{width}x{height} pixels, and the network takes {wanted} without resizing")


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int | None = None, ahead: int = 64
) -> Generator[_Result, None, None]:
    """Does something with each item in parallel threads, and gives the results in the order of the items.

    Args:
        work: Called in one of the threads.
        items: The items; taken as they are needed.
        workers: Threads. Default: one a core.
        ahead: Most results, done or under way, that wait for the reader: memory stays bounded.

    Returns:
        An iterator of the results; closing it drops what has not begun. The first items are begun with the first
        ``next``, and while the reader is busy the threads go on.
    """
    coming = iter(items)
    pending: deque[concurrent.futures.Future[_Result]] = deque()
    with concurrent.futures.ThreadPoolExecutor(workers or processors.available()) as pool:
        try:
            while True:
                pending.extend(pool.submit(work, item) for item in itertools.islice(coming, ahead - len(pending)))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batch(start: int, results: list[np.ndarray | str], input_spec: InputSpec) -> DecodedBatch:
    good = [(start + row, item) for row, item in enumerate(results) if not isinstance(item, str)]
    bad = [(start + row, item) for row, item in enumerate(results) if isinstance(item, str)]
    shape = (*input_spec.size, input_spec.channels)
    images = np.stack([item for _, item in good]) if good else np.zeros((0, *shape), np.uint8)
    return DecodedBatch(np.array([index for index, _ in good], np.int64), images, bad)


def _decode(
    data: bytes, spec: InputSpec, max_pixels: int, renderings: Sequence[Rendering], look: Look | None = None
) -> list[np.ndarray]:
    from PIL import Image

    data, frame = frames.unmarked(data)
    if arrays.is_file(data) and not frame:
        pixels, notes = arrays.of_npy(data, spec.channels, min(max_pixels, high_bit_depth.MOST_PIXELS))
        for note in sorted(notes):
            warnings.warn(note, InputWarning, stacklevel=2)
        return _of_pixels(pixels, spec, max_pixels, renderings, look)
    if spec.channels not in (1, 3):
        raise ImageError(_NO_FILES.format(spec.channels))
    scan = scans.read_picture(data, spec.reading, frame, min(max_pixels, high_bit_depth.MOST_PIXELS))
    if scan is not None:
        height, width = scan.planes[0].shape
        return _deep(scan, spec, renderings, look, ImageHeader("scan", width, height, len(data), 0, 0, 0))
    if frame:
        raise ImageError(f"it has one frame, and frame {frame} is asked for (the first is 0)")
    _quieten()
    is_heif = data.startswith(_HEIF, 4) and b"avif" not in data[8:64]
    if is_heif and not _heif_is_read():
        raise ImageError('HEIC, which needs pillow-heif: pip install "resfit[heif]"; or convert it to JPEG or PNG')
    with Image.open(io.BytesIO(data), formats=("HEIF",) if is_heif else FORMATS) as image:
        return _of_image(image, data, spec, max_pixels, renderings, look)


def _of_image(
    image: Image,
    data: bytes | None,
    spec: InputSpec,
    max_pixels: int,
    renderings: Sequence[Rendering],
    look: Look | None,
) -> list[np.ndarray]:
    """Makes arrays of a PIL image: one just opened from ``data``, or without data one that is in memory."""
    from PIL import ImageOps

    if spec.channels not in (1, 3):
        raise ImageError(_NO_FILES.format(spec.channels))
    if spec.reading.spacing is not None:
        raise ImageError(_NO_SPACING)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, more than the {max_pixels} that are allowed")
    if not width * height:
        raise ImageError(f"{width}x{height} pixels")
    image.info.pop(_FULL_SIZE, None)
    size = 0 if data is None else len(data)
    if data is not None and image.format in ("JPEG", "MPO"):
        _shrink(image, spec)
    colours = None if data is None else high_bit_depth.of_file(image, data)
    if colours is not None:
        return _deep(colours, spec, renderings, look, _header(image, width, height, size))
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    quarter_turned = orientation in (5, 6, 7, 8)
    # what was opened here needs no copy
    upright: Image = image if data is not None and orientation == 1 else ImageOps.exif_transpose(image)
    if upright.mode in high_bit_depth.MODES:
        high_bit_depth.check_pixels(*upright.size)
        picture = high_bit_depth.of_grey(np.asarray(upright))
        return _deep(picture, spec, renderings, look, _header(image, width, height, size))
    if data is not None and image.size != (width, height):  # decoded at a fraction of its size
        upright.info[_FULL_SIZE] = (height, width) if quarter_turned else (width, height)
    return _plain(upright, spec, renderings, look, _header(image, width, height, size))


def _of_pixels(
    pixels: arrays.Pixels, spec: InputSpec, max_pixels: int, renderings: Sequence[Rendering], look: Look | None
) -> list[np.ndarray]:
    """Makes arrays of pixels, as of a file that holds them."""
    from PIL import Image as Images

    if pixels.is_ready:
        return [pixels.values for _ in renderings]
    if spec.reading.spacing is not None:
        raise ImageError(_NO_SPACING)
    height, width, channels = pixels.values.shape
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, more than the {max_pixels} that are allowed")
    values = pixels.scaled()
    header = ImageHeader("array", width, height, pixels.values.nbytes, 0, 0, 0)
    if values.dtype == np.uint8 and spec.channels in (1, 3):
        image = Images.fromarray(np.ascontiguousarray(values[..., 0] if channels == 1 else values))
        return _plain(image, spec, renderings, look, header)
    high_bit_depth.check_pixels(width, height)
    if spec.channels in (1, 3) and channels in (2, 4):
        alpha = values[..., -1:].astype(np.float32) / 255
        values = values[..., :-1] * alpha + 255 * (1 - alpha)
    picture = high_bit_depth.HighBitDepthImage(
        tuple(values[..., channel].astype(np.float32) for channel in range(values.shape[-1]))
    )
    return _deep(picture, spec, renderings, look, header)


def _plain(
    image: Image, spec: InputSpec, renderings: Sequence[Rendering], look: Look | None, header: ImageHeader
) -> list[np.ndarray]:
    """Makes arrays of an upright image of eight bits."""
    plain = _eight_bits(image, "RGB" if spec.channels == 3 else "L")
    made = [np.asarray(rendering(plain)) for rendering in renderings]
    if look is not None:
        look(header, plain)
    return [array if array.ndim == 3 else array[:, :, None] for array in made]


def _deep(
    picture: high_bit_depth.HighBitDepthImage,
    spec: InputSpec,
    renderings: Sequence[Rendering],
    look: Look | None,
    header: ImageHeader,
) -> list[np.ndarray]:
    made = high_bit_depth.rendered(picture, spec, renderings)
    if look is not None:
        look(header, high_bit_depth.as_image(picture))
    return made


def _header(image: Any, width: int, height: int, size: int) -> ImageHeader:
    tables = getattr(image, "quantization", None) or {}
    exif = image.info.get("exif") or b""
    camera = 0
    if exif:
        try:
            tags = image.getexif()
            named = [str(tags[tag]) for tag in (271, 272, 305) if tag in tags]  # make, model, software
            camera = zlib.crc32(" ".join(named).encode()) if named else 0
        except Exception:  # damaged metadata are no reason to refuse an image
            camera = 0
    return ImageHeader(image.format or "", width, height, size, sum(tables.get(0, ())), len(exif), camera)


@functools.cache
def _quieten() -> None:
    """Hides what Pillow says of odd metadata, such as damaged EXIF data, unless the user asked for warnings.

    One filter for good, below those of the user: ``warnings.catch_warnings`` around each image is no way, for the
    filters belong to all threads, and two that overlap leave the inner ones in force.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.", category=UserWarning, append=True)


def _shrink(image: Any, spec: InputSpec) -> None:
    """Lets the JPEG decoder work at a fraction of the size, never under twice the size that is needed."""
    if spec.resize_mode == "none":
        return
    # a quarter turn in the EXIF data swaps the sides, so the larger one is asked of both
    side = 2 * max(spec.resize_size)
    image.draft("RGB" if spec.channels == 3 and image.mode != "CMYK" else None, (side, side))


def _eight_bits(image: Image, mode: str) -> Image:
    """Brings any mode of Pillow's of up to 8 bits a colour to RGB or L."""
    from PIL import Image as Images

    if image.mode == mode:
        return image
    if image.mode in ("La", "RGBa"):  # colours that alpha has been multiplied into
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Images.new("RGBA", colour.size, (255, 255, 255, 255))
        image = Images.alpha_composite(white, colour)
    return image if image.mode == mode else image.convert(mode)


def as_colours(image: Image) -> Image:
    """Returns a PIL image of any mode as RGB, what is transparent over white.

    Args:
        image: The image, upright or not; what its EXIF data say is kept.
    """
    colours = _eight_bits(image, "RGB")
    colours.info.update({key: value for key, value in image.info.items() if key == "exif"})
    return colours


def full_size(image: Image) -> tuple[int, int]:
    """Returns height and width in pixels of the upright image that a file holds.

    Args:
        image: As renderings and looks get it: of a JPEG perhaps at a fraction of its size.
    """
    width, height = image.info.get(_FULL_SIZE, image.size)
    return int(height), int(width)


def letterboxed(image: Image, spec: InputSpec) -> Image:
    """Fits an image into a contract's size with its own proportions, and pads both sides.

    Args:
        image: As :func:`resize` takes it.
        spec: The contract.
    """
    fitted = letterbox(full_size(image), spec.size)
    rows, columns = fitted.resized
    top, left = fitted.offset
    return placed(image, spec, (0.0, 0.0, float(image.width), float(image.height)), (left, top, columns, rows))


def placed(
    image: Image,
    spec: InputSpec,
    part: tuple[float, float, float, float],
    place: tuple[int, int, int, int],
    change: Callable[[Image], Image] | None = None,
) -> Image:
    """Puts a part of an image somewhere into a contract's size; the rest is padding.

    Args:
        image: As :func:`resize` takes it.
        spec: The contract.
        part: Left, top, right and bottom in pixels of ``image``.
        place: Left, top, width and height in pixels of the result.
        change: What becomes of the part before it is put there, such as its colours.
    """
    from PIL import Image as Images

    method: Any = getattr(Images.Resampling, spec.interpolation.upper())
    left, top, width, height = place
    resized = image.resize((width, height), method, box=part)
    resized = resized if change is None else change(resized)
    if (height, width) == tuple(spec.size):
        return resized
    mean = sum(spec.fill) / len(spec.fill)
    colour: Any = spec.fill if image.mode == "RGB" else mean if image.mode == "F" else round(mean)
    canvas = Images.new(image.mode, (spec.size[1], spec.size[0]), colour)
    canvas.paste(resized, (left, top))
    return canvas


def resize(image: Image, spec: InputSpec) -> Image:
    """Resizes and crops a Pillow image as a contract says.

    Args:
        image: Of mode RGB, L or F.
        spec: The contract.
    """
    from PIL import Image as Images

    target_height, target_width = spec.size
    if spec.resize_mode == "none":
        return image
    if spec.resize_mode == "letterbox":
        return letterboxed(image, spec)
    whole = spec.resize_size == (target_height, target_width)
    if spec.resize_mode == "fit":
        target_height, target_width = spec.fitted_size(*full_size(image))
    if whole and image.size == (target_width, target_height):
        return image
    method: Callable[..., Any] = getattr(Images.Resampling, spec.interpolation.upper())
    if spec.resize_mode in ("squash", "fit"):
        return image.resize((target_width, target_height), method)  # type: ignore[arg-type]
    box = kept_box(*image.size, spec)
    return image.resize((target_width, target_height), method, box=box)  # type: ignore[arg-type]


def kept_box(width: int, height: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """Returns what of an image the network gets to see: left, top, right and bottom, in pixels of the image.

    Args:
        width: Of the image.
        height: Of the image.
        spec: The contract.
    """
    if spec.resize_mode != "shorter":
        return 0.0, 0.0, float(width), float(height)
    target_height, target_width = spec.size
    box_height, box_width = spec.resize_size
    scale = max(box_height / height, box_width / width)
    # the crop, in pixels of the source: resizing only what is kept costs less and is the same
    full_height, full_width = max(round(height * scale), target_height), max(round(width * scale), target_width)
    top, left = (full_height - target_height) // 2, (full_width - target_width) // 2
    return (
        left * width / full_width,
        top * height / full_height,
        (left + target_width) * width / full_width,
        (top + target_height) * height / full_height,
    )


@functools.cache
def _heif_is_read() -> bool:
    """Lets Pillow read HEIF where pillow-heif is installed; says whether it is."""
    if not dependencies.is_installed("pillow_heif"):
        return False
    import pillow_heif

    pillow_heif.options.THUMBNAILS = False
    pillow_heif.register_heif_opener()
    return True


def _reason(error: Exception, data: bytes, max_pixels: int) -> str:
    text = " ".join(str(error).split())[:200]
    name = type(error).__name__
    if name == "UnidentifiedImageError":
        return _what_it_is(data)
    if name == "DecompressionBombError":
        count, *limit = map(int, re.findall(r"\d+", text))  # "Image size (N pixels) exceeds limit of M pixels"
        return f"{count} pixels, more than the {min([max_pixels, *limit])} that are allowed"
    damage = ("truncated", "broken data stream", "could not create decoder object", "decoder error")
    if any(words in text.lower() for words in damage) or isinstance(error, (EOFError, SyntaxError)):
        return f"damaged or truncated ({text})"
    return f"cannot be decoded ({name}: {text})"


def _what_it_is(data: bytes) -> str:
    """Says what a file is that Pillow takes for no image."""
    if data.startswith(_KNOWN) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return "damaged or truncated (its header cannot be read)"
    for position, begin, name in _FOREIGN:
        if data.startswith(begin, position):
            return f"not an image of a known format, but {name}; convert it to JPEG or PNG"
    head = data[:1000].lower()
    for mark, name in ((b"<svg", "SVG"), (b"<!doctype html", "a web page"), (b"<html", "a web page")):
        if mark in head:
            return f"not an image of a known format, but {name}"
    return "not an image of a known format"
