"""The training images that are most alike to an image, by the features that the head reads."""

from __future__ import annotations

import dataclasses
import io
import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, ArtifactError
from resfit.transfer.prototypes import directions

#: Name of the references among the files of a classifier.
REFERENCES = "references.npz"
_MOST_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class References:
    """Images to compare with.

    Attributes:
        features: Array ``(n, features)``, float16 or float32.
        labels: The ``n`` classes by name; ``None`` where there is none.
        paths: The ``n`` files; ``None`` where they are not known.
        thumbnails: The ``n`` images as small JPEGs, or empty.
    """

    features: np.ndarray
    labels: tuple[str | None, ...]
    paths: tuple[Path | None, ...]
    thumbnails: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """A training image that is alike to another image.

    Attributes:
        label: Its class.
        similarity: Cosine of the angle between the features, after the mean of all references is taken off; -1..1.
        path: The file, where it is known.
        thumbnail: A small JPEG of it; empty where there is none.
        position: Which of the references it is.
    """

    label: str | None
    similarity: float
    path: Path | None
    thumbnail: bytes = b""
    position: int = -1

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the picture as JSON-ready values."""
        path = None if self.path is None else str(self.path)
        return {"label": self.label, "similarity": self.similarity, "path": path, "position": self.position}


def nearest(references: References, features: np.ndarray, count: int = 5) -> list[list[Example]]:
    """Returns for each row the references that are most alike, the most alike first.

    Args:
        references: The images to compare with.
        features: Array ``(n, features)``.
        count: How many for each.

    Raises:
        ArgumentError: The features are of another network, or ``count`` is less than 1.
    """
    rows = np.asarray(features, np.float32)
    if count < 1:
        raise ArgumentError(f"examples must be at least 1. Received: {count}.")
    if rows.ndim != 2 or rows.shape[1] != references.features.shape[1]:
        raise ArgumentError(
            f"references must have the features of this network, {rows.shape[1:]} a row. "
            f"Received: {references.features.shape[1:]}."
        )
    known = np.asarray(references.features, np.float32)
    centre = known.mean(axis=0)
    cosines = directions(rows, centre) @ directions(known, centre).T
    found = []
    for row in cosines:
        order = np.argsort(-row, kind="stable")[:count]
        found.append([_example(references, int(place), float(row[place])) for place in order])
    return found


def read_references(content: bytes, classes: Sequence[str]) -> References:
    """Reads the references that a classifier's folder holds.

    Args:
        content: A ``.npz`` file with ``features`` ``(n, features)`` and ``labels`` ``(n,)``, indices of the classes;
            perhaps with ``thumbnails``, the bytes of JPEGs one after the other, and ``offsets`` ``(n + 1,)``, where
            each begins; and with ``paths``.
        classes: Names of the classes.

    Raises:
        ArtifactError: It is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"{size} bytes, more than the {_MOST_BYTES} that are allowed")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            features, labels = arrays["features"], arrays["labels"]
            thumbnails = _thumbnails(arrays, len(labels)) if "thumbnails" in arrays else ()
            paths = [Path(str(path)) for path in arrays["paths"]] if "paths" in arrays else [None] * len(labels)
        if features.ndim != 2 or labels.shape != (len(features),) or len(paths) != len(labels) or not len(labels):
            raise ValueError(f"features {features.shape} and labels {labels.shape} do not belong together")
        if labels.dtype.kind in "ui":
            names = tuple(classes[int(label)] if 0 <= label < len(classes) else None for label in labels)
        else:
            names = tuple(str(label) for label in labels)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{REFERENCES} cannot be read: {error}. Fit the classifier again.") from error
    return References(features, names, tuple(paths), thumbnails)


def _thumbnails(arrays: Any, count: int) -> tuple[bytes, ...]:
    flat, offsets = arrays["thumbnails"], np.asarray(arrays["offsets"], np.int64)
    if flat.dtype != np.uint8 or flat.ndim != 1 or offsets.shape != (count + 1,):
        raise ValueError("thumbnails must be bytes with n + 1 offsets")
    if offsets[0] != 0 or offsets[-1] > len(flat) or (np.diff(offsets) < 0).any():
        raise ValueError("the offsets of the thumbnails are out of order")
    return tuple(flat[begin:end].tobytes() for begin, end in itertools.pairwise(offsets.tolist()))


def _example(references: References, place: int, similarity: float) -> Example:
    thumbnail = references.thumbnails[place] if references.thumbnails else b""
    return Example(references.labels[place], similarity, references.paths[place], thumbnail, place)
