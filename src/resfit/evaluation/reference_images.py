"""Training images that a classifier keeps: their features, classes and thumbnails, in a few megabytes."""

from __future__ import annotations

import dataclasses
import io
import itertools
import zipfile
from collections.abc import Sequence

import numpy as np

from resfit.errors import ArtifactError
from resfit.numerics import nearest_rows

#: Most training images that are kept.
MAX_ROWS = 1000
#: Bytes that they may take up, about.
MAX_BYTES = 6_000_000
_THUMBNAIL_BYTES = 2500
_SPARE = 1.6  # some of the images will be set aside
_LARGEST = 64_000_000  # of what is read back
_ARRAYS = ("features", "labels", "digests", "offsets", "thumbnails")


@dataclasses.dataclass(frozen=True, eq=False)
class References:
    """Some of the training images.

    Attributes:
        features: float32 array ``(n, features)``: what the head reads, rounded to float16.
        labels: int64 array ``(n,)``: classes by number; -1 where an image has several labels.
        digests: The first 16 hexadecimal digits of each file's SHA-256; empty where it was not known.
        thumbnails: JPEGs of at most 96 pixels; empty where there is none.
    """

    features: np.ndarray
    labels: np.ndarray
    digests: tuple[str, ...]
    thumbnails: tuple[bytes, ...]

    def nearest(self, rows: np.ndarray, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Returns the training images whose features are nearest
        (:func:`resfit.numerics.nearest_rows`).

        Args:
            rows: Features ``(n, features)``.
            count: How many for each row.

        Returns:
            Positions ``(n, count)``, nearest first, and their cosines.
        """
        return nearest_rows(self.features, rows, count)

    def to_bytes(self) -> bytes:
        """Returns them as the content of an ``.npz`` file."""
        target = io.BytesIO()
        np.savez_compressed(
            target,
            features=np.clip(self.features, -65504, 65504).astype(np.float16),
            labels=self.labels.astype(np.int32),
            digests=np.array([digest[:16] for digest in self.digests], "S16"),
            offsets=np.cumsum([0, *(len(image) for image in self.thumbnails)]),
            thumbnails=np.frombuffer(b"".join(self.thumbnails), np.uint8),
        )
        return target.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> References:
        """Restores what :meth:`to_bytes` returned.

        Raises:
            ArtifactError: It is damaged, or something else.
        """
        arrays = read_arrays(data, _ARRAYS)
        features, labels, digests, offsets, images = (arrays[name] for name in _ARRAYS)
        count = len(labels) if labels.ndim == 1 else -1
        right = bool(features.ndim == 2 and len(features) == len(digests) == count and offsets.shape == (count + 1,))
        right = right and labels.dtype.kind == offsets.dtype.kind == "i" and features.dtype.kind == "f"
        right = right and digests.dtype.kind == "S" and images.dtype == np.uint8 and images.ndim == 1
        right = right and offsets[0] == 0 and offsets[-1] == len(images) and bool((np.diff(offsets) >= 0).all())
        if not right or not np.isfinite(features).all():
            raise ArtifactError("the kept training images are damaged. Fit the classifier again.")
        blob = images.tobytes()
        return cls(
            features=features.astype(np.float32),
            labels=labels.astype(np.int64),
            digests=tuple(digest.decode("ascii", "replace") for digest in digests.tolist()),
            thumbnails=tuple(blob[begin:end] for begin, end in itertools.pairwise(offsets.tolist())),
        )


def sampling_order(count: int, seed: int = 0) -> np.ndarray:
    """Returns when the turn of each image of a set comes to be kept: a random order of 0 to ``count - 1``.

    Args:
        count: Number of images.
        seed: Of the order.
    """
    return np.random.default_rng(seed).permutation(count)


def choose(labels: np.ndarray, width: int, order: np.ndarray, *, spare: float = 1.0) -> np.ndarray:
    """Returns which images are kept: as many of each class as there is room for, those whose turn comes first.

    Args:
        labels: ``n`` classes by number; -1 for several.
        width: Number of features.
        order: When the turn of each comes, ``n`` different numbers.
        spare: How many times as many are wanted as there is room for.
    """
    room = int(spare * min(MAX_ROWS, max(1, MAX_BYTES // (2 * width + _THUMBNAIL_BYTES))))
    order = np.argsort(order)
    if len(labels) <= room:
        return np.sort(order)
    # the first of each class before the second of any
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], shuffled[by_class], "left")
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.arange(len(labels)) - starts
    return np.sort(order[np.argsort(turn, kind="stable")[:room]])


def likely(labels: np.ndarray, width: int, order: np.ndarray) -> np.ndarray:
    """Returns images of which nearly all that :func:`choose` takes will be, before it is known what is learned from.

    Args:
        labels: As :func:`choose` takes them, of all images that may be learned from.
        width: Number of features.
        order: As :func:`choose` takes it.
    """
    return choose(labels, width, order, spare=_SPARE)


def make(features: np.ndarray, labels: np.ndarray, images: Sequence[bytes], digests: Sequence[str]) -> References:
    """Returns references to training images.

    Args:
        features: float array ``(n, features)``.
        labels: As :class:`References` has them.
        images: JPEG thumbnails of the ``n`` images.
        digests: SHA-256 of each file in hexadecimal digits, or an empty string.
    """
    return References(
        features=np.asarray(features, np.float16).astype(np.float32),
        labels=np.asarray(labels, np.int64),
        digests=tuple(digest[:16] for digest in digests),
        thumbnails=tuple(images),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length one, float32; a row of zeros stays one."""
    values = np.asarray(rows, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def read_arrays(data: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an ``.npz`` file that may come from anyone: no objects, no more memory than is expected.

    Raises:
        ArtifactError: It is no such file, lacks an array, or would unpack to too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
        if sum(sizes.values()) > _LARGEST or not {f"{name}.npy" for name in names} <= set(sizes):
            raise ArtifactError("a part of the classifier holds too much or lacks an array. Fit it again.")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except ArtifactError:
        raise
    except Exception as error:  # numpy and zipfile raise nearly everything on damaged files
        raise ArtifactError(f"a part of the classifier is damaged ({error}). Fit it again.") from error
