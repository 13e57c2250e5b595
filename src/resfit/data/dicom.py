"""DICOM files as pictures: decoded by pydicom, through the modality table, the window and the polarity, at full depth.

A file is not trusted: sizes are looked at before anything is decoded, in the header and in the compressed frame alike.
No text of a file reaches an error: reasons are resfit's own words and numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from resfit.data import codestreams, deep, quiet
from resfit.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from resfit.preprocessing import Reading

_MOST_INFLATED = 256 * 2**20
_MOST_LUT_ENTRIES = 4 * 65536
_AT_ONCE = 2**21  # pixels that go through the tables at a time
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
_IMPLICIT, _LITTLE, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_WINDOWS = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
_RESCALING = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a file before its pixels are read.

    Attributes:
        patient: The patient's ID; else what names the study. Empty where there is neither. An identifier.
        sex: Of the patient.
        site: The institution. An identifier.
        frames: Number of frames; 0 for a file without an image.
        series: What names the series. An identifier.
        number: Place in the series.
    """

    patient: str = ""
    sex: str = ""
    site: str = ""
    frames: int = 1
    series: str = ""
    number: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame and what turns it into what is shown.

    Attributes:
        raw: Array ``(rows, columns)`` of stored values, or ``(rows, columns, 3)`` of red, green and blue.
        shown: Turns stored values into those after modality table and window; works on any part of them.
        black: Shown value that is black; ``None`` for the lowest one.
        white: Shown value that is white; ``None`` for the highest one.
        padding: Stored value that is no part of the image, if there is one.
        spacing: Millimetres from row to row and from column to column, where the file says.
    """

    raw: np.ndarray
    shown: Callable[[np.ndarray], np.ndarray]
    black: float | None = None
    white: float | None = None
    padding: float | None = None
    spacing: tuple[float, float] | None = None
    inverted: bool = False


def is_dicom(data: bytes) -> bool:
    """Says whether a file is DICOM by how it begins.

    Args:
        data: At least its first 132 bytes. Some old files begin with their first element: group 2 or 8.
    """
    if data[128:132] == b"DICM":
        return True
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    if data[:1] in (b"\x02", b"\x08") and data[1:2] == data[3:4] == b"\0":
        return explicit or int.from_bytes(data[4:8], "little") < 65536
    return explicit and data[:2] in (b"\0\x02", b"\0\x08") and data[2:3] == b"\0"


def read_header(file: BinaryIO) -> Header:
    """Reads what is known of a file before its pixels.

    Args:
        file: The file, open at its beginning.

    Raises:
        ImageError: It is damaged; the text is the reason.
        MissingDependencyError: pydicom is not installed.
    """
    tags = ["PatientID", "PatientSex", "InstitutionName", "NumberOfFrames", "SeriesInstanceUID", "StudyInstanceUID"]
    tags += ["InstanceNumber", "Rows", "SOPClassUID"]
    with _reading():
        ds = _dataset(file, stop_before_pixels=True, specific_tags=tags)
        numbered = ds.get("InstanceNumber")
        return Header(
            patient=_text(ds.get("PatientID")) or _text(ds.get("StudyInstanceUID")),
            sex=_text(ds.get("PatientSex")).upper()[:1],
            site=_text(ds.get("InstitutionName")),
            frames=_frames(ds) if "Rows" in ds else 0,
            series=_text(ds.get("SeriesInstanceUID")),
            number=float(numbered) if numbered is not None else 0.0,
        )


def read_directory(file: BinaryIO) -> list[tuple[str, ...]]:
    """Returns the files that a DICOMDIR lists, each as the parts of its path, as they stand there.

    Args:
        file: The DICOMDIR, open at its beginning.

    Raises:
        ImageError: It is damaged, or no DICOMDIR.
        MissingDependencyError: pydicom is not installed.
    """
    with _reading():
        ds = _dataset(file, directory=True)
        found = [record.get("ReferencedFileID") for record in ds.DirectoryRecordSequence]
        return [(str(name),) if isinstance(name, str) else tuple(map(str, name)) for name in found if name]


def read_picture(data: bytes, reading: Reading, frame: int | None, most: int) -> deep.Picture:
    """Reads one frame as a picture.

    Args:
        data: All bytes of the file.
        reading: Which frame and window.
        frame: The frame, before what ``reading`` says.
        most: Most pixels, rows times columns, that are decoded.

    Raises:
        ImageError: It cannot be used; the text is the reason.
        MissingDependencyError: pydicom is not installed.
    """
    found = read_frame(data, reading, frame, most)
    with _reading():
        return deep.Picture(tuple(_planes(found)), found.spacing)


def read_frame(data: bytes, reading: Reading, frame: int | None = None, most: int = deep.MOST_PIXELS) -> Frame:
    """Reads one frame; as :func:`read_picture`, but with its values not yet scaled to 0..255.

    Args:
        data: All bytes of the file.
        reading: Which frame and window.
        frame: The frame, before what ``reading`` says.
        most: Most pixels, rows times columns, that are decoded.

    Returns:
        The frame. ``found.shown(found.raw)`` is what pydicom's ``apply_voi_lut(apply_modality_lut(...))`` gives.
    """
    with _reading():
        ds = _dataset(io.BytesIO(data))
        from pydicom.pixels import pixel_array

        _check_decoder(ds)
        _check_sizes(ds, most)
        index = _chosen(_frames(ds), reading.frame if frame is None else frame)
        _check_frame(ds, index)
        try:
            raw = pixel_array(ds, index=index)
        except Exception as error:
            raise ImageError(f"damaged: its pixels cannot be decoded ({type(error).__name__})") from None
        _take_from_groups(ds, index)
        grey = raw.ndim == 2 and ds.get("PhotometricInterpretation") != "PALETTE COLOR"
        return _grey(raw, ds, reading) if grey else _colour(raw, ds)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns whatever pydicom and its plugins raise into a reason that quotes nothing of the file."""
    try:
        with quiet.reading():
            yield
    except (ImageError, MissingDependencyError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"damaged or unusual DICOM file ({type(error).__name__})") from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of a decoder written in Rust
            raise ImageError("damaged DICOM file (its frame cannot be decoded)") from None
        raise


def _dataset(file: BinaryIO, directory: bool = False, **options: Any) -> Any:
    try:
        import pydicom
        from pydicom import filereader
    except ImportError as error:
        raise MissingDependencyError(
            'DICOM files need pydicom, which is not installed. Install it: pip install "resfit[medical]".'
        ) from error
    filereader.read_preamble(file, force=True)
    meta = filereader._read_file_meta_info(file)
    if (meta.get("MediaStorageSOPClassUID") == _DIRECTORY) != directory:
        raise ImageError("no DICOMDIR" if directory else "a DICOMDIR, which lists images and holds none")
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        _check_inflated(file.read())
    file.seek(0)
    ds = pydicom.dcmread(file, force=True, **options)
    if not ds.file_meta.get("TransferSyntaxUID"):
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(_IMPLICIT if implicit else _LITTLE if little else _BIG)
    return ds


def _check_inflated(packed: bytes) -> None:
    unpacker, left, total = zlib.decompressobj(-zlib.MAX_WBITS), packed, 0
    while left and not unpacker.eof:
        total += len(unpacker.decompress(left, 2**20))
        left = unpacker.unconsumed_tail
        if total > _MOST_INFLATED:
            raise ImageError(f"it unpacks to more than the {_MOST_INFLATED} bytes that are allowed")


def _check_sizes(ds: Any, most: int) -> None:
    """Looks at the sizes that the header declares, before anything is decoded."""
    rows, columns = ds.get("Rows"), ds.get("Columns")
    present = [name for name in _PIXELS if name in ds]
    if not present:
        raise ImageError("a DICOM file without an image (no pixel data)" if rows is None else "it has no pixel data")
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise ImageError("a DICOM file whose number of rows or columns is missing")
    deep.check_pixels(columns, rows, most)
    samples, bits = ds.get("SamplesPerPixel", 1), ds.get("BitsAllocated", 0)
    if samples not in (1, 3) or not 1 <= int(bits) <= 64:
        raise ImageError(f"{samples} samples a pixel of {bits} bits; 1 or 3 of 1 to 64 are read")
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        declared = math.ceil(rows * columns * samples * int(bits) * _frames(ds) / 8)
        subsampled = ds.get("PhotometricInterpretation") == "YBR_FULL_422"
        held = len(ds[present[0]].value)
        if held < (declared * 2 // 3 if subsampled else declared):
            raise ImageError(f"truncated: {held} bytes of pixels, where the header declares {declared}")


def _frames(ds: Any) -> int:
    number = ds.get("NumberOfFrames")
    return 1 if number in (None, "") else max(1, int(number))


def _chosen(count: int, wanted: int | str) -> int:
    """Returns which of so many frames is read."""
    if isinstance(wanted, str):
        return (count - 1) // 2
    if wanted >= count:
        raise ImageError(f"it has {count} frames, and frame {wanted} is asked for (the first is 0)")
    return wanted


def _check_decoder(ds: Any) -> None:
    """Makes sure that the compression is known and that something installed undoes it."""
    from pydicom.pixels import get_decoder

    syntax: Any = ds.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        known = "" if syntax.name == str(syntax) else f" ({syntax.name})"
        raise ImageError(f"its compression{known} is not supported") from None
    if not decoder.is_available:
        missing = [text.partition(" - ")[2] for text in decoder.missing_dependencies if "pylibjpeg" in text]
        raise ImageError(
            f"{syntax.name} needs a decoder that is not installed. Install it: "
            f'pip install "resfit[medical]" ({"; ".join(missing) or "none is known"})'
        )


def _check_frame(ds: Any, index: int) -> None:
    """Makes sure that a compressed frame is no larger than the header says: its decoder trusts the frame alone."""
    from pydicom.encaps import get_frame

    syntax = ds.file_meta.TransferSyntaxUID
    sized = next((size for start, size in codestreams.SIZES.items() if syntax.name.startswith(start)), None)
    if sized is None:
        return
    extended = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        extended = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    found = sized(get_frame(ds.PixelData, index, number_of_frames=_frames(ds), extended_offsets=extended))
    if found is None:
        raise ImageError("damaged or truncated: the header of its compressed frame is not sound")
    width, height, components = found
    if width * height > ds.Rows * ds.Columns or components > max(ds.SamplesPerPixel, 1):
        raise ImageError(
            f"its compressed frame has {width}x{height} pixels of {components}, where the header declares "
            f"{ds.Columns}x{ds.Rows} of {ds.SamplesPerPixel}"
        )


def _take_from_groups(ds: Any, index: int) -> None:
    """Puts what an enhanced file says of this frame where plain files say it of their one."""
    for sequence, names in (
        ("PixelValueTransformationSequence", _RESCALING),
        ("FrameVOILUTSequence", _WINDOWS),
        ("PixelMeasuresSequence", _SPACINGS),
    ):
        item = _of_frame(ds, index, sequence)
        for name in names:
            if item is not None and name in item:
                ds[name] = item[name]


def _of_frame(ds: Any, index: int, sequence: str) -> Any:
    each, shared = ds.get("PerFrameFunctionalGroupsSequence"), ds.get("SharedFunctionalGroupsSequence")
    groups = [each[index]] if each and index < len(each) else []
    groups += list(shared or ())[:1]
    for group in groups:
        if group.get(sequence):
            return group[sequence].value[0]
    return None


def _grey(raw: np.ndarray, ds: Any, reading: Reading) -> Frame:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    black: float | None = None
    white: float | None = None
    padding = None
    if isinstance(reading.window, tuple):
        centre, width = reading.window
        black, white = centre - width / 2, centre + width / 2
        index = None
    else:
        index = reading.window
        black, white = _range(ds, index)
        if black is None:
            index, padding = None, ds.get("PixelPaddingValue")

    def shown(values: np.ndarray) -> np.ndarray:
        values = apply_modality_lut(values, ds)
        return values if index is None else apply_voi_lut(values, ds, index=index)

    return Frame(
        raw,
        shown,
        black,
        white,
        float(padding) if isinstance(padding, int) else None,
        _spacing(ds),
        ds.get("PhotometricInterpretation") == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE",
    )


def _range(ds: Any, index: int) -> tuple[float, float] | tuple[None, None]:
    """Returns the values that a file's window or VOI table shows as black and as white; none without such."""
    tables = ds.get("VOILUTSequence") or ()
    if tables and None not in (tables[0].get("LUTDescriptor"), tables[0].get("LUTData")):
        _check_choice(len(tables), index)
        return 0.0, float(2 ** tables[index].LUTDescriptor[2] - 1)
    if ds.get("WindowCenter") is None or ds.get("WindowWidth") is None:
        return None, None
    _check_choice(min(ds["WindowCenter"].VM, ds["WindowWidth"].VM), index)
    if ds.get("ModalityLUTSequence"):
        low, high = 0.0, float(2 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1)
    elif ds.PixelRepresentation == 0:
        low, high = 0.0, float(2**ds.BitsStored - 1)
    else:
        low, high = -float(2 ** (ds.BitsStored - 1)), float(2 ** (ds.BitsStored - 1) - 1)
    if ds.get("RescaleSlope") is not None and ds.get("RescaleIntercept") is not None:
        slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
        low, high = low * slope + intercept, high * slope + intercept
    return low, high


def _check_choice(count: int, index: int) -> None:
    if index >= count:
        raise ImageError(f"it has {count} windows, and window {index} is asked for (the first is 0)")


def _colour(raw: np.ndarray, ds: Any) -> Frame:
    bits = int(ds.get("BitsStored") or ds.BitsAllocated)
    if ds.get("PhotometricInterpretation") == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        _check_palette(ds)
        raw = apply_color_lut(raw, ds)
        bits = 8 * raw.dtype.itemsize
    if raw.ndim != 3 or raw.shape[-1] not in (3, 4):
        raise ImageError("a colour image without three colours")
    return Frame(raw[..., :3], lambda values: values, 0.0, float(2**bits - 1), None, _spacing(ds))


def _check_palette(ds: Any) -> None:
    """Adds up what a segmented palette unpacks to: a few bytes can stand for very many entries."""
    for colour in ("Red", "Green", "Blue"):
        data = ds.get(f"Segmented{colour}PaletteColorLookupTableData")
        if not data:
            continue
        wide = ds[f"{colour}PaletteColorLookupTableDescriptor"].value[2] > 8
        kind = ("<u2" if ds.original_encoding[1] else ">u2") if wide else "u1"
        words = np.frombuffer(data[: len(data) // 2 * 2] if wide else data, kind).astype(np.int64)
        place = total = longest = 0
        while place + 1 < len(words):
            operation, count = int(words[place]), int(words[place + 1])
            if operation == 2:  # earlier segments again
                total += count * max(longest, 1)
                place += 4 if wide else 6
            else:
                longest = max(longest, count)
                total += count
                place += 2 + (count if operation == 0 else 1)
            if total > _MOST_LUT_ENTRIES or operation > 2:
                raise ImageError("damaged: its palette is not sound")


def _spacing(ds: Any) -> tuple[float, float] | None:
    for name in _SPACINGS:
        value = ds.get(name)
        if value is not None and len(value) == 2 and all(0 < float(step) < 1e6 for step in value):
            return float(value[0]), float(value[1])
    return None


def _planes(frame: Frame) -> Iterator[np.ndarray]:
    """Yields the planes of a picture, a few rows at a time through the tables, so that memory stays small."""
    for channel in range(frame.raw.shape[2]) if frame.raw.ndim == 3 else (None,):
        raw = frame.raw if channel is None else frame.raw[..., channel]
        step = max(1, _AT_ONCE // max(1, raw.shape[1]))
        parts = [slice(start, start + step) for start in range(0, len(raw), step)]
        black, white = frame.black, frame.white
        if black is None or white is None:
            black, white = _extremes(frame, raw, parts)
        if frame.inverted:
            black, white = white, black
        plane = np.empty(raw.shape, np.float32)
        for part in parts:
            plane[part] = deep.scaled(frame.shown(raw[part]), black, white)
        if frame.padding is not None:
            plane[raw == frame.padding] = 0
        yield plane


def _extremes(frame: Frame, raw: np.ndarray, parts: list[slice]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for part in parts:
        values = raw[part] if frame.padding is None else raw[part][raw[part] != frame.padding]
        values = np.asarray(frame.shown(values), np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if value not in (None, "") else ""
