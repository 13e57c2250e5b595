"""Real images: some to calibrate eight bits on, others to compare an export with Keras on."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import dataset as image_sets
from resfit.data import decode, high_bit_depth, inputs, samples
from resfit.errors import DataError
from resfit.export.export_model import ExportModel

#: Images that exports are compared on, at most.
CHECKED = 200
#: Images that eight bits are calibrated on, at most.
CALIBRATED = 192
#: Images that are also sent as encoded files, at most.
ENCODED = 16

_JPEG = b"\xff\xd8\xff"


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images for one export.

    Attributes:
        checking: uint8 ``(n, height, width, channels)``, RGB, as the contract sizes them: what is compared.
        labels: int64 ``(n,)``: their true classes, -1 where these are not known.
        encoded: Some of them as encoded JPEG or PNG, by their position; empty for arrays.
        calibrating: uint8 ``(m, height, width, channels)``: others to calibrate on; the same if there are less than
            four.
        source: Where they are from, how many there are, and how they were chosen, in words.
        files: Names of what is compared, from the folder on that all of it is in; empty for arrays.
    """

    checking: np.ndarray
    labels: np.ndarray
    encoded: dict[int, bytes]
    calibrating: np.ndarray
    source: str
    files: tuple[str, ...] = ()

    @property
    def photo(self) -> bytes:
        """A JPEG file among those compared, or else the first image as a PNG file."""
        for data in self.encoded.values():
            if data.startswith(_JPEG):
                return data
        return png(self.checking[0])


def png(image: np.ndarray) -> bytes:
    """Returns an image as an encoded PNG file.

    Args:
        image: ``(height, width, channels)`` of 1 or 3 channels, 0..255.
    """
    from PIL import Image

    data = io.BytesIO()
    pixels = np.rint(image).astype(np.uint8)
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[:, :, 0]).save(data, "PNG")
    return data.getvalue()


def gather(subject: ExportModel, source: Any = None, *, seed: int = 0, count: int = CHECKED) -> Images:
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
        gone = len(subject.tests) - len(found)
        return _decoded(subject, paths, _indices(subject, names), "images it was tested on", seed, count, gone=gone)
    with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
        shipped = image_sets.scan(samples.unpack(Path(folder) / "images"))
        unknown = np.full(len(shipped), -1)
        words = "images of Fashion-MNIST, which ships with resfit"
        if subject.tests:
            words += f" (none of the {len(subject.tests)} images it was tested on is there any more)"
        return _decoded(subject, shipped.paths, unknown, words, seed, count)


def _of_array(subject: ExportModel, array: Any, seed: int, count: int) -> Images:
    pixels = inputs.batch_of(array, subject.input_spec)
    order = np.random.default_rng(seed).permutation(len(pixels))
    checking, calibrating = parts(order, count)
    pixels = high_bit_depth.eight_bits(pixels)
    unknown = np.full(len(checking), -1)
    words = _chosen("images that were passed as an array", len(array), len(checking), len(calibrating), seed)
    return Images(pixels[checking], unknown, {}, pixels[calibrating], words)


def _of_source(subject: ExportModel, source: Any) -> tuple[Sequence[Path], np.ndarray, str]:
    if isinstance(source, str | os.PathLike):
        words = f"images of {Path(source).name}"
        try:
            found = image_sets.scan(source)
            names = [found.classes[label] if label >= 0 else "" for label in found.labels]
            test = [row for row, part in enumerate(found.splits) if part in ("val", "test")]
            if test:
                words = f"images of {Path(source).name} that are for testing"
                found, names = found.subset(test), [names[row] for row in test]
            return found.paths, _indices(subject, names), words
        except DataError:  # images without classes
            source = [source]
    else:
        words = "files of a list"
    paths = image_sets.scan_images(source).paths
    return paths, np.full(len(paths), -1), words


def _indices(subject: ExportModel, names: Sequence[str]) -> np.ndarray:
    """Returns for each name the class, or -1; an image with several labels has no one class."""
    positions = {label: number for number, label in enumerate(subject.labels)}
    return np.array([-1 if subject.multilabel else positions.get(name, -1) for name in names], np.int64)


def parts(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits positions: a quarter, but no more than are useful, calibrates; others are compared.

    Args:
        order: Positions in random order.
        count: Most that are compared.

    Returns:
        Those that are compared, and those that calibrate.
    """
    if len(order) < 4:
        return order, order
    calibrated = max(1, min(CALIBRATED, len(order) // 4))
    return order[calibrated : calibrated + count], order[:calibrated]


def _chosen(
    words: str, total: int, checked: int, calibrated: int, seed: int, *, gone: int = 0, unreadable: int = 0
) -> str:
    """Returns how many images of how many are compared, and what became of the others."""
    if total < 4:
        others = ["the same calibrate int8"]
    else:
        others = [f"{calibrated} others are kept for calibrating int8"]
        left = total - checked - unreadable - calibrated
        others += [f"{left} are left out, since {CHECKED} are enough"] if left > 0 else []
    others += [f"{unreadable} cannot be read"] if unreadable else []
    others += [f"{gone} are not there any more"] if gone else []
    return f"{checked} of the {total + gone} {words}, drawn at random with seed {seed}; {'; '.join(others)}"


def _decoded(
    subject: ExportModel,
    paths: Sequence[Path],
    labels: np.ndarray,
    words: str,
    seed: int,
    count: int,
    *,
    gone: int = 0,
) -> Images:
    order = np.random.default_rng(seed).permutation(len(paths))
    checking, calibrating = parts(order, count)
    images, kept = _pixels(subject, [paths[position] for position in checking])
    if not len(kept):
        raise DataError(f"an export is checked on images. Received: {len(paths)} {words}; none can be decoded.")
    unreadable = len(checking) - len(kept)
    checking = checking[kept]
    others, _ = _pixels(subject, [paths[position] for position in calibrating])
    encoded: dict[int, bytes] = {}
    for row, position in enumerate(checking):
        data = decode.read_file(paths[position]) if len(encoded) < ENCODED else b""
        if data.startswith((_JPEG, b"\x89PNG")):
            encoded[row] = data
    words = _chosen(words, len(paths), len(checking), len(calibrating), seed, gone=gone, unreadable=unreadable)
    chosen = names([paths[position] for position in checking])
    return Images(images, labels[checking], encoded, others if len(others) else images, words, chosen)


def names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Returns paths from the folder on that all are in, so that nothing above it is told.

    Args:
        paths: At least one.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    try:
        above = Path(os.path.commonpath([path.parent for path in whole]))
    except ValueError:  # on several drives
        return tuple(path.name for path in whole)
    return tuple(path.relative_to(above).as_posix() for path in whole)


def _pixels(subject: ExportModel, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    batches = list(decode.decode_many(paths, subject.input_spec))
    shape = (0, *subject.input_spec.size, subject.input_spec.channels)
    images = np.concatenate([np.zeros(shape, np.uint8), *(batch.images for batch in batches)])
    return images, np.concatenate([np.zeros(0, np.int64), *(batch.indices for batch in batches)])
