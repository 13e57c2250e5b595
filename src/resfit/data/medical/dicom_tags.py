"""Elements of DICOM files that are missing, empty or odd: filled in where there is one way to read the file.

What is filled in is told by a warning that names the element and what is taken for it; where there are two ways, or
none, the reason of the refusal names the element.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from resfit.errors import ImageError

_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")


def named(keyword: str) -> str:
    """Returns an element as the standard calls it, such as ``"Rescale Slope (0028,1053)"``."""
    from pydicom import datadict

    tag = datadict.tag_for_keyword(keyword)
    return f"{datadict.dictionary_description(keyword)} ({tag >> 16:04X},{tag & 0xFFFF:04X})" if tag else keyword


def number(ds: Any, keyword: str) -> float | None:
    """Returns the number in an element; ``None`` where it is missing or empty.

    Raises:
        ImageError: It is none, or there are several.
    """
    try:
        value = ds.get(keyword)
        if value is None or value == "" or (isinstance(value, list | tuple) and not value):
            return None
        found = float(value)
    except Exception:
        raise ImageError(f"damaged: its {named(keyword)} is not a number") from None
    if not math.isfinite(found):
        raise ImageError(f"damaged: its {named(keyword)} is not a finite number")
    return found


def whole(ds: Any, keyword: str) -> int | None:
    """Returns the whole number in an element; ``None`` where it is missing or empty.

    Raises:
        ImageError: It is none, or there are several.
    """
    found = number(ds, keyword)
    if found is not None and found != int(found):
        raise ImageError(f"damaged: its {named(keyword)} is not a whole number")
    return None if found is None else int(found)


def complete_pixels(ds: Any, frames: int, held: int | None) -> None:
    """Fills in what says how pixels are stored.

    Args:
        ds: The file; it is changed. Rows and columns are known.
        frames: Number of frames.
        held: Bytes of pixels; ``None`` where they are compressed.

    Raises:
        ImageError: It cannot be told.
    """
    pixels = int(ds.Rows) * int(ds.Columns) * frames
    colours = _text(ds, "PhotometricInterpretation")
    if not colours:
        raise ImageError(f"its {named('PhotometricInterpretation')} is missing or empty: which values are bright?")
    samples, bits = whole(ds, "SamplesPerPixel"), whole(ds, "BitsAllocated")
    if samples is None:
        samples = 1 if colours in _GREY else 3 if colours in _COLOUR else None
        if samples is None:
            raise ImageError(f"its {named('SamplesPerPixel')} is missing or empty")
        _take(ds, "SamplesPerPixel", samples, f"as {named('PhotometricInterpretation')} says")
    if bits is None:
        sizes = {size: pixels * samples * size for size in (1, 2, 4)}  # with a byte behind, where they are odd
        fitting = [size for size, expected in sizes.items() if held in (expected, expected + expected % 2)]
        if len(fitting) != 1:
            raise ImageError(f"its {named('BitsAllocated')} is missing or empty")
        bits = 8 * fitting[0]
        _take(ds, "BitsAllocated", bits, "as many as there are bytes of pixels")
    if whole(ds, "BitsStored") is None:
        _take(ds, "BitsStored", bits, f"all of {named('BitsAllocated')}")
    if whole(ds, "HighBit") is None:
        ds.HighBit = ds.BitsStored - 1  # there is no other in the standard
    if whole(ds, "PixelRepresentation") is None:
        _take(ds, "PixelRepresentation", 0, "unsigned values")
    if samples > 1 and whole(ds, "PlanarConfiguration") is None:
        if held is None:  # compressed frames say it themselves
            ds.PlanarConfiguration = 0
        else:
            _take(ds, "PlanarConfiguration", 0, "the colours of a pixel side by side")
    stored = whole(ds, "BitsStored") or 0
    if not 1 <= stored <= bits:
        raise ImageError(f"its {named('BitsStored')} is {stored}, where {named('BitsAllocated')} is {bits}")


def complete_shown(ds: Any, window: int | None) -> None:
    """Fills in what says how stored values are shown: rescaling, window and its function.

    Args:
        ds: The file; it is changed.
        window: Which of its windows is used; ``None`` for none.

    Raises:
        ImageError: There is no one way to read it.
    """
    if "RescaleSlope" in ds or "RescaleIntercept" in ds:
        slope, intercept = number(ds, "RescaleSlope"), number(ds, "RescaleIntercept")
        if slope == 0:
            raise ImageError(f"its {named('RescaleSlope')} is 0, which makes all values the same")
        if slope is None and intercept is None:
            del ds["RescaleSlope"], ds["RescaleIntercept"]  # as if there were neither: 1 and 0
        elif slope is None:
            _take(ds, "RescaleSlope", 1, "values as they are")
        elif intercept is None:
            _take(ds, "RescaleIntercept", 0, "values as they are")
    if "VOILUTFunction" in ds and not _text(ds, "VOILUTFunction"):
        del ds["VOILUTFunction"]  # empty is the standard's LINEAR
    if window is not None and ("WindowCenter" in ds or "WindowWidth" in ds) and not ds.get("VOILUTSequence"):
        _complete_window(ds, window)


def _complete_window(ds: Any, window: int) -> None:
    centres, widths = _numbers(ds, "WindowCenter"), _numbers(ds, "WindowWidth")
    if not centres and not widths:
        return
    if not centres or not widths:
        missing = "WindowCenter" if not centres else "WindowWidth"
        _drop_window(ds, f"its {named(missing)} is missing or empty")
    elif window < min(len(centres), len(widths)):
        width = widths[window]
        if width < 0:
            raise ImageError(f"its {named('WindowWidth')} is negative")
        if width == 0:
            _drop_window(ds, f"its {named('WindowWidth')} is 0")
        elif width < 1 and _text(ds, "VOILUTFunction") in ("", "LINEAR"):
            raise ImageError(f"its {named('WindowWidth')} is below 1, where its window is linear")


def _numbers(ds: Any, keyword: str) -> list[float]:
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return []
        found = [float(one) for one in (value if isinstance(value, list | tuple) or _is_many(value) else [value])]
    except Exception:
        raise ImageError(f"damaged: its {named(keyword)} is not a number") from None
    if not all(map(math.isfinite, found)):
        raise ImageError(f"damaged: its {named(keyword)} is not a finite number")
    return found


def _is_many(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str)


def _drop_window(ds: Any, why: str) -> None:
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in ds:
            del ds[keyword]
    _tell(f"a DICOM file is shown with the full range of its values: {why}. --window CENTRE,WIDTH chooses another.")


def _take(ds: Any, keyword: str, value: int, meaning: str) -> None:
    setattr(ds, keyword, value)
    _tell(f"{named(keyword)} is missing or empty in a DICOM file: {value} is taken ({meaning}).")


def _tell(text: str) -> None:
    # Python shows the same text once: a folder of such files says it in a line
    warnings.warn(text, UserWarning, stacklevel=1)


def _text(ds: Any, keyword: str) -> str:
    try:
        value = ds.get(keyword)
    except Exception:
        raise ImageError(f"damaged: its {named(keyword)} cannot be read") from None
    return str(value).strip() if value is not None else ""
