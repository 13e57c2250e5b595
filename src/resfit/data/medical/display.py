"""What a decoded DICOM frame looks like: modality table, window, polarity and palette, from stored values to grey.

Nothing here trusts a file more than :mod:`resfit.data.medical.dicom` does, which calls it: what is odd raises.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import high_bit_depth
from resfit.data.medical import dicom_tags
from resfit.errors import ImageError

if TYPE_CHECKING:
    from resfit.preprocessing import Reading

_MOST_LUT_ENTRIES = 4 * 65536
_AT_ONCE = 2**21  # pixels that go through the tables at a time
_MOST_LEVELS = 2**17  # stored values that a table is made for
_WINDOWS = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
_RESCALING = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


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


def of(raw: np.ndarray, ds: Any, index: int, reading: Reading) -> Frame:
    """Returns a decoded frame with what turns it into what is shown.

    Args:
        raw: Stored values, ``(rows, columns)`` or ``(rows, columns, samples)``.
        ds: The file, as pydicom read it. Enhanced files' values for this frame are put where plain ones have theirs.
        index: Which frame it is.
        reading: Which window.

    Raises:
        ImageError: The window is not there, or the palette is not sound. Whatever pydicom raises comes through.
    """
    _take_from_groups(ds, index)
    grey = raw.ndim == 2 and ds.get("PhotometricInterpretation") != "PALETTE COLOR"
    return _grey(raw, ds, reading) if grey else _colour(raw, ds)


def planes(frame: Frame) -> Iterator[np.ndarray]:
    """Yields the planes of a picture: float32 arrays ``(rows, columns)``, values 0..255."""
    for channel in range(frame.raw.shape[2]) if frame.raw.ndim == 3 else (None,):
        raw = frame.raw if channel is None else frame.raw[..., channel]
        low, high = (int(raw.min()), int(raw.max())) if raw.dtype.kind in "iu" else (0, _MOST_LEVELS)
        if high - low >= _MOST_LEVELS:
            yield _plane(frame, raw)
            continue
        # each stored value goes through the tables once, however many pixels have it
        places = raw.astype(np.int64) - low
        levels = np.flatnonzero(np.bincount(places.ravel(), minlength=high - low + 1))
        table = np.zeros(high - low + 1, np.float32)
        table[levels] = _plane(frame, (levels + low).astype(raw.dtype)[:, None])[:, 0]
        yield table[places]


def _plane(frame: Frame, raw: np.ndarray) -> np.ndarray:
    """Returns stored values ``(rows, columns)`` as shown, a few rows at a time, so that memory stays small."""
    step = max(1, _AT_ONCE // max(1, raw.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(raw), step)]
    black, white = frame.black, frame.white
    if black is None or white is None:
        black, white = _extremes(frame, raw, parts)
    if frame.inverted:
        black, white = white, black
    plane = np.empty(raw.shape, np.float32)
    for part in parts:
        plane[part] = high_bit_depth.scaled(frame.shown(raw[part]), black, white)
    if frame.padding is not None:
        plane[raw == frame.padding] = 0
    return plane


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

    dicom_tags.complete_shown(ds, None if isinstance(reading.window, tuple) else reading.window)
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
        with _applying("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"):
            values = apply_modality_lut(values, ds)
        with _applying("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"):
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


@contextlib.contextmanager
def _applying(*keywords: str) -> Iterator[None]:
    """While it lasts, what goes wrong is told as a fault of these elements."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception:
        names = ", ".join(map(dicom_tags.named, keywords))
        raise ImageError(f"damaged or unusual: one of these cannot be applied: {names}") from None


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
        with _applying("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"):
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


def _extremes(frame: Frame, raw: np.ndarray, parts: list[slice]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for part in parts:
        values = raw[part] if frame.padding is None else raw[part][raw[part] != frame.padding]
        values = np.asarray(frame.shown(values), np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)
