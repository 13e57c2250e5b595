"""Real images for the export of a detector: some to calibrate on, others to compare on, with true boxes where known."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import decode
from resfit.data.boxes import BoxSet, scan_boxes
from resfit.errors import DataError, ResfitError
from resfit.export import images as real_images
from resfit.export.detection.export_detector import ExportDetector
from resfit.export.images import Images
from resfit.tasks.detection.detections import Detections
from resfit.tasks.detection.evaluation import matched

# An image of 224 pixels counts one; the pixels of all are held in memory.
_UNIT = 224 * 224
_FEWEST = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Images to compare a detector on.

    Attributes:
        images: As exports of classifiers take them.
        boxes: The true boxes of those that are compared, or None where they are not known.
    """

    images: Images
    boxes: BoxSet | None = None


def gather(subject: ExportDetector, source: Any, *, seed: int) -> Pictures:
    """Finds and decodes images for an export.

    Args:
        subject: What is exported.
        source: As :func:`resfit.data.boxes.scan_boxes` takes it, for boxes of the detector's classes; or as
            :func:`resfit.export.images.gather` does.
        seed: Of the choice among many.

    Raises:
        DataError: No image can be used.
    """
    height, width = subject.input_spec.size
    count = max(_FEWEST, min(real_images.CHECKED, real_images.CHECKED * _UNIT // (height * width)))
    found = _with_boxes(subject, source)
    if found is None:
        return Pictures(real_images.gather(subject, source, seed=seed, count=count))
    order = np.random.default_rng(seed).permutation(len(found))
    checking, calibrating = real_images.parts(order, count)
    pixels, kept = _decoded(subject, [found.paths[row] for row in checking])
    if not len(kept):
        raise DataError(f"an export is checked on images. Received: {len(found)} pictures; none can be decoded.")
    others, _ = _decoded(subject, [found.paths[row] for row in calibrating])
    chosen = [int(checking[row]) for row in kept]
    encoded = {0: found.paths[chosen[0]].read_bytes()}
    name = Path(source).name if isinstance(source, str | os.PathLike) else "a set with boxes"
    words = (
        f"{len(kept)} of the {len(found)} images of {name} with true boxes, drawn at random with seed {seed}; "
        f"{len(calibrating)} others are kept for calibrating int8"
    )
    images = Images(
        pixels,
        np.full(len(kept), -1),
        encoded,
        others if len(others) else pixels,
        words,
        real_images.names([found.paths[row] for row in chosen]),
    )
    return Pictures(images, found.subset(chosen))


def average_precision(
    subject: ExportDetector, pictures: Pictures, found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> float | None:
    """Returns the box AP of detections; None where true boxes are not known, or there are none.

    Args:
        subject: What is exported.
        pictures: What was detected on.
        found: Boxes in pixels of the input, scores and classes of each.
    """
    if pictures.boxes is None:
        return None
    predicted = []
    sizes = [(int(height), int(width)) for height, width in pictures.boxes.sizes]
    for path, size, (boxes, scores, classes) in zip(pictures.boxes.paths, sizes, found, strict=True):
        own = subject.fitted(size).to_image(boxes, clip=True).astype(np.float32)
        scores, classes = scores.astype(np.float32), classes.astype(np.int64)
        predicted.append(Detections(path, own, scores, classes, subject.labels, size))
    value = float(matched(pictures.boxes, predicted).figures()["ap"])
    return value if np.isfinite(value) else None


def _with_boxes(subject: ExportDetector, source: Any) -> BoxSet | None:
    """The source as pictures with boxes of the detector's classes, preferring its test part; None where it is none."""
    if source is None or hasattr(source, "__array__"):
        return None
    try:
        found = source if isinstance(source, BoxSet) else scan_boxes(source, classes=subject.labels)
    except (ResfitError, OSError, TypeError, ValueError):
        return None
    held_out = [row for row, part in enumerate(found.splits) if part in ("val", "test")]
    found = found.subset(held_out) if held_out else found
    return found if len(found) and len(found.boxes) and tuple(found.classes) == tuple(subject.labels) else None


def _decoded(subject: ExportDetector, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    batches = list(decode.decode_many(paths, subject.input_spec))
    shape = (0, *subject.input_spec.size, subject.input_spec.channels)
    pixels = np.concatenate([np.zeros(shape, np.uint8), *(batch.images for batch in batches)])
    return pixels, np.concatenate([np.zeros(0, np.int64), *(batch.indices for batch in batches)])
