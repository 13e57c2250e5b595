"""Real images: some to calibrate eight bits on, others to compare an export with Keras on."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import decode, deep, inputs, samples
from resfit.data import image_set as image_sets
from resfit.errors import DataError
from resfit.export.subject import Subject

#: Images that exports are compared on, at most.
CHECKED = 200
#: Images that eight bits are calibrated on, at most.
CALIBRATED = 192
#: Images that are also sent as encoded files, at most.
ENCODED = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images for one export.

    Attributes:
        checking: uint8 ``(n, height, width, channels)``, RGB, as the contract sizes them: what is compared.
        labels: int64 ``(n,)``: their true classes, -1 where these are not known.
        encoded: Some of them as encoded JPEG or PNG, by their position; empty for arrays.
        calibrating: uint8 ``(m, height, width, channels)``: others to calibrate on; the same if there are less than
            four.
        source: Where they are from, in words.
    """

    checking: np.ndarray
    labels: np.ndarray
    encoded: dict[int, bytes]
    calibrating: np.ndarray
    source: str


def gather(subject: Subject, source: Any = None, *, seed: int = 0, count: int = CHECKED) -> Images:
    """Finds and decodes real images for an export.

    Args:
        subject: What is exported; its contract says how they are decoded.
        source: A folder (of class folders or not), a list of files, a CSV file of labelled images, or an array
            ``(n, height, width, channels)`` of the contract's size, as :func:`resfit.data.inputs.batch_of` takes it.
            Default: the images that a classifier was tested on, where they are still there; otherwise images that
            ship with resfit.
        seed: Of the choice among many.
        count: Most images to compare on.

    Raises:
        ArgumentError: The array does not fit the contract, or holds no images.
        DataError: No image can be used.
    """
    if hasattr(source, "__array__"):
        return _of_array(subject, source, seed, count)
    if source is not None:
        paths, labels, words = _of_source(subject, source)
        return _decoded(subject, paths, labels, words, seed, count)
    found = [(path, label) for path, label in subject.tests if path.is_file()]
    if found:
        paths, names = [path for path, _ in found], [label for _, label in found]
        return _decoded(subject, paths, _indices(subject, names), "the images it was tested on", seed, count)
    with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
        shipped = image_sets.scan(samples.unpack(Path(folder) / "images"))
        unknown = np.full(len(shipped), -1)
        return _decoded(subject, shipped.paths, unknown, "Fashion-MNIST, which ships with resfit", seed, count)


def _of_array(subject: Subject, array: Any, seed: int, count: int) -> Images:
    pixels = inputs.batch_of(array, subject.input_spec)
    order = np.random.default_rng(seed).permutation(len(pixels))
    checking, calibrating = _parts(order, count)
    pixels = deep.eight_bits(pixels)
    unknown = np.full(len(checking), -1)
    return Images(pixels[checking], unknown, {}, pixels[calibrating], "images that were passed as an array")


def _of_source(subject: Subject, source: Any) -> tuple[Sequence[Path], np.ndarray, str]:
    if isinstance(source, str | os.PathLike):
        words = Path(source).name
        try:
            found = image_sets.scan(source)
            names = [found.classes[label] if label >= 0 else "" for label in found.labels]
            test = [row for row, part in enumerate(found.splits) if part in ("val", "test")]
            if test:
                found, names = found.subset(test), [names[row] for row in test]
            return found.paths, _indices(subject, names), words
        except DataError:  # images without classes
            source = [source]
    else:
        words = "a list of files"
    paths = image_sets.scan_images(source).paths
    return paths, np.full(len(paths), -1), words


def _indices(subject: Subject, names: Sequence[str]) -> np.ndarray:
    """Returns for each name the class, or -1; an image with several labels has no one class."""
    positions = {label: number for number, label in enumerate(subject.labels)}
    return np.array([-1 if subject.several else positions.get(name, -1) for name in names], np.int64)


def _parts(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits positions: a quarter, but no more than are useful, calibrates; others are compared."""
    if len(order) < 4:
        return order, order
    calibrated = max(1, min(CALIBRATED, len(order) // 4))
    return order[calibrated : calibrated + count], order[:calibrated]


def _decoded(subject: Subject, paths: Sequence[Path], labels: np.ndarray, words: str, seed: int, count: int) -> Images:
    order = np.random.default_rng(seed).permutation(len(paths))
    checking, calibrating = _parts(order, count)
    images, kept = _pixels(subject, [paths[position] for position in checking])
    if not len(kept):
        raise DataError(f"an export is checked on images. Received: {words}, of which none can be decoded.")
    checking = checking[kept]
    others, _ = _pixels(subject, [paths[position] for position in calibrating])
    encoded: dict[int, bytes] = {}
    for row, position in enumerate(checking):
        data = paths[position].read_bytes() if len(encoded) < ENCODED else b""
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG")):
            encoded[row] = data
    return Images(images, labels[checking], encoded, others if len(others) else images, words)


def _pixels(subject: Subject, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    batches = list(decode.decode_many(paths, subject.input_spec))
    shape = (0, *subject.input_spec.size, subject.input_spec.channels)
    images = np.concatenate([np.zeros(shape, np.uint8), *(batch.images for batch in batches)])
    return images, np.concatenate([np.zeros(0, np.int64), *(batch.indices for batch in batches)])
