"""The training images that are most alike to an image, by the features that the head reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.numerics import nearest_rows


@dataclasses.dataclass(frozen=True, eq=False)
class NeighbourSource:
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


def nearest(references: NeighbourSource, features: np.ndarray, count: int = 5) -> list[list[Example]]:
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
    return [
        [_example(references, place, cosine) for place, cosine in zip(places.tolist(), cosines.tolist(), strict=True)]
        for places, cosines in zip(*nearest_rows(references.features, rows, count), strict=True)
    ]


def _example(references: NeighbourSource, place: int, similarity: float) -> Example:
    thumbnail = references.thumbnails[place] if references.thumbnails else b""
    return Example(references.labels[place], similarity, references.paths[place], thumbnail, place)
