"""Pictures of both orientations for a contract whose box is turned for portraits: a letterbox for each."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resfit.data import image_dimensions, inputs
from resfit.errors import ImageError
from resfit.features.progress import Progress
from resfit.preprocessing import InputSpec


def letterbox_for(contract: InputSpec, *, portrait: bool) -> InputSpec:
    """Returns the letterbox of a contract of ``"fit"`` for pictures of one orientation; a letterbox stays as it is.

    Args:
        contract: The contract.
        portrait: Whether it is for pictures that are higher than wide.
    """
    if contract.resize_mode != "fit":
        return contract
    short, long = sorted(contract.size)
    return dataclasses.replace(contract, size=(long, short) if portrait else (short, long), resize_mode="letterbox")


def at_size(detector: Any) -> tuple[Any, ...]:
    """Returns the detectors with a letterbox as their contract: the one for landscapes first, then that for portraits.

    Args:
        detector: A detector; one whose contract is a letterbox is the only one.
    """
    return tuple(detector._letterboxed.values()) if detector.input_spec.resize_mode == "fit" else (detector,)


def is_portrait(item: Any) -> bool:
    """Whether an image is higher than wide as displayed; one that cannot be read is not.

    Args:
        item: One of :class:`resfit.data.inputs.Sources`.
    """
    try:
        if isinstance(item, Path):
            found = image_dimensions.read_dimensions(item)
        elif isinstance(item, bytes | bytearray | memoryview):
            found = image_dimensions._of_picture(io.BytesIO(item))
        elif hasattr(item, "getexif"):
            width, height = item.size
            return (width > height) if item.getexif().get(274, 1) in (5, 6, 7, 8) else height > width
        elif hasattr(item, "values"):
            return bool(item.values.shape[0] > item.values.shape[1])
        else:
            return False
    except (ImageError, OSError, ValueError, SyntaxError):
        return False
    return found.height > found.width


def run(
    detectors: dict[bool, Any],
    sources: inputs.Sources,
    engine: Any,
    batch_size: int | None,
    progress: Progress | None,
    max_detections: int | None,
) -> Iterator[Any]:
    """Yields what detectors find in pictures, each by the detector of its orientation, in order.

    Args:
        detectors: The detector for landscapes (False) and the one for portraits.
        sources: The pictures.
        engine: As ``Detector._run`` takes it.
        batch_size: Likewise.
        progress: Likewise.
        max_detections: Likewise.
    """
    portrait = [is_portrait(item) for item in sources.items]
    parts = {
        turned: inputs.Sources(tuple(item for item, own in zip(sources.items, portrait, strict=True) if own == turned))
        for turned in (False, True)
    }
    found = {
        turned: detectors[turned]._run(part, engine, batch_size, None, max_detections) for turned, part in parts.items()
    }
    for done, turned in enumerate(portrait, start=1):
        yield next(found[turned])
        if progress is not None:
            progress("network", done, len(portrait))
