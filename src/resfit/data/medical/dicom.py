"""DICOM files as pictures: decoded by pydicom, through the modality table, the window and the polarity, at full depth.

A file is not trusted: sizes are looked at before anything is decoded, in the header and in the compressed frame alike.
No text of a file reaches an error: reasons are resfit's own words and numbers.
"""

from __future__ import annotations

import dataclasses
import io
import math
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from resfit.data import high_bit_depth
from resfit.data.medical import codestreams, dicom_tags, display, log_filter
from resfit.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from resfit.preprocessing import Reading

_KIND = "DICOM"
_MOST_INFLATED = 256 * 2**20
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
_IMPLICIT, _LITTLE, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


@dataclasses.dataclass(frozen=True)
class DicomHeader:
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


def read_header(file: BinaryIO) -> DicomHeader:
    """Reads what is known of a file before its pixels.

    Args:
        file: The file, open at its beginning.

    Raises:
        ImageError: It is damaged; the text is the reason.
        MissingDependencyError: pydicom is not installed.
    """
    tags = ["PatientID", "PatientSex", "InstitutionName", "NumberOfFrames", "SeriesInstanceUID", "StudyInstanceUID"]
    tags += ["InstanceNumber", "Rows", "SOPClassUID"]
    with log_filter.reading(_KIND):
        ds = _dataset(file, stop_before_pixels=True, specific_tags=tags)
        numbered = dicom_tags.number(ds, "InstanceNumber")
        return DicomHeader(
            patient=_text(ds.get("PatientID")) or _text(ds.get("StudyInstanceUID")),
            sex=_text(ds.get("PatientSex")).upper()[:1],
            site=_text(ds.get("InstitutionName")),
            frames=_frames(ds) if "Rows" in ds else 0,
            series=_text(ds.get("SeriesInstanceUID")),
            number=numbered if numbered is not None else 0.0,
        )


def read_directory(file: BinaryIO) -> list[tuple[str, ...]]:
    """Returns the files that a DICOMDIR lists, each as the parts of its path, as they stand there.

    Args:
        file: The DICOMDIR, open at its beginning.

    Raises:
        ImageError: It is damaged, or no DICOMDIR.
        MissingDependencyError: pydicom is not installed.
    """
    with log_filter.reading(_KIND):
        ds = _dataset(file, directory=True)
        found = [record.get("ReferencedFileID") for record in ds.DirectoryRecordSequence]
        return [(str(name),) if isinstance(name, str) else tuple(map(str, name)) for name in found if name]


def read_picture(data: bytes, reading: Reading, frame: int | None, most: int) -> high_bit_depth.HighBitDepthImage:
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
    with log_filter.reading(_KIND):
        return high_bit_depth.HighBitDepthImage(tuple(display.planes(found)), found.spacing)


def read_frame(
    data: bytes, reading: Reading, frame: int | None = None, most: int = high_bit_depth.MOST_PIXELS
) -> display.Frame:
    """Reads one frame; as :func:`read_picture`, but with its values not yet scaled to 0..255.

    Args:
        data: All bytes of the file.
        reading: Which frame and window.
        frame: The frame, before what ``reading`` says.
        most: Most pixels, rows times columns, that are decoded.

    Returns:
        The frame. ``found.shown(found.raw)`` is what pydicom's ``apply_voi_lut(apply_modality_lut(...))`` gives.
    """
    with log_filter.reading(_KIND):
        ds = _dataset(io.BytesIO(data))
        from pydicom.pixels import pixel_array

        _check_decoder(ds)
        _check_sizes(ds, most)
        index = _chosen(_frames(ds), reading.frame if frame is None else frame)
        _check_frame(ds, index)
        try:
            raw = pixel_array(ds, index=index)
        except Exception:
            raise ImageError(f"damaged: its {dicom_tags.named(_pixels(ds))} cannot be decoded") from None
        return display.of(raw, ds, index, reading)


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
    present = _pixels(ds)
    if not present:
        raise ImageError(
            "a DICOM file without an image (no pixel data)" if "Rows" not in ds else "it has no pixel data"
        )
    rows, columns = dicom_tags.whole(ds, "Rows"), dicom_tags.whole(ds, "Columns")
    if rows is None or columns is None:
        missing = [dicom_tags.named(name) for name, side in (("Rows", rows), ("Columns", columns)) if side is None]
        raise ImageError(f"its {' and '.join(missing)} is missing or empty")
    high_bit_depth.check_pixels(columns, rows, most)
    is_packed = ds.file_meta.TransferSyntaxUID.is_encapsulated
    if present == _PIXELS[0]:
        dicom_tags.complete_pixels(ds, _frames(ds), None if is_packed else len(ds[present].value or b""))
    samples, bits = ds.get("SamplesPerPixel", 1), ds.get("BitsAllocated", 0)
    if samples not in (1, 3) or not 1 <= int(bits) <= 64:
        raise ImageError(f"{samples} samples a pixel of {bits} bits; 1 or 3 of 1 to 64 are read")
    if not is_packed:
        declared = math.ceil(rows * columns * samples * int(bits) * _frames(ds) / 8)
        subsampled = ds.get("PhotometricInterpretation") == "YBR_FULL_422"
        held = len(ds[present].value or b"")
        if held < (declared * 2 // 3 if subsampled else declared):
            raise ImageError(f"truncated: {held} bytes of pixels, where the header declares {declared}")


def _frames(ds: Any) -> int:
    return max(1, dicom_tags.whole(ds, "NumberOfFrames") or 1)


def _pixels(ds: Any) -> str:
    """Returns the element that holds the pixels; empty where there is none."""
    return next((name for name in _PIXELS if name in ds), "")


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


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if value not in (None, "") else ""
