"""What an image tells before any network has seen it, and what follows for a set of them.

One record of fixed size an image (:data:`RECORD`) is measured when the image is decoded anyway. Everything else is
computed from the records of a set, all images at once.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.data.decode import ImageHeader

#: Raised whenever the same file is measured to another record.
FORMAT = 1
SIDE = 16
#: What is kept of one image. ``bytes`` and ``tables`` (the sum of a JPEG's quantisation tables) say how it was
#: compressed, ``exif`` and ``camera`` what its metadata are; ``sharpness`` is the share of the finest detail in its
#: contrast; ``thumbnail`` is RGB, squashed to a square.
RECORD = np.dtype(
    [
        ("width", "<u4"),
        ("height", "<u4"),
        ("bytes", "<u4"),
        ("tables", "<u4"),
        ("exif", "<u4"),
        ("camera", "<u4"),
        ("kind", "<u4"),
        ("sharpness", "<f4"),
        ("thumbnail", "u1", (SIDE, SIDE, 3)),
    ]
)

#: Bits of 63 that the hashes of near duplicates may differ in.
NEAR_BITS = 14
#: Smallest correlation of the thumbnails of near duplicates.
NEAR_CORRELATION = 0.9
#: How far apart they may be, as a share of what is near by chance: by thumbnail and features, and by thumbnail alone.
NEAR_RATIO, NEAR_ALONE = 0.4, 0.2
#: Standard deviation of the thumbnail's brightness, 0..255, below which there is nothing to see.
BLANK = 2.0
DARK, BRIGHT = 25.0, 245.0

_SHARPNESS_SIDE = 128
_MOST_PAIRS = 20_000_000
_SAMPLE = 2000
_DIRECTIONS = 48
_IN_MEMORY = 400_000_000  # bytes
_OUTLIER = 4.0  # robust standard deviations


def measure(header: ImageHeader, image: Image) -> np.ndarray:
    """Returns the record of one image.

    Args:
        header: What its file says.
        image: The upright image of mode RGB or L, a JPEG perhaps at a fraction of its size.

    Returns:
        Array of shape ``(1,)`` and dtype :data:`RECORD`.
    """
    from PIL.Image import Resampling

    record = np.zeros(1, RECORD)
    row = record[0]
    row["width"], row["height"], row["bytes"] = header.width, header.height, min(header.bytes, 2**32 - 1)
    row["tables"], row["exif"], row["camera"] = header.tables, header.exif, header.camera
    row["kind"] = zlib.crc32(header.format.encode()) % 1000
    small = image.resize((SIDE, SIDE), Resampling.BOX, reducing_gap=2.0)
    row["thumbnail"] = np.asarray(small if small.mode == "RGB" else small.convert("RGB"))
    grey = image if image.mode == "L" else image.convert("L")
    if max(grey.size) > _SHARPNESS_SIDE:
        share = _SHARPNESS_SIDE / max(grey.size)
        size = tuple(max(1, round(side * share)) for side in grey.size)
        grey = grey.resize(size, Resampling.BILINEAR, reducing_gap=2.0)  # type: ignore[arg-type]
    row["sharpness"] = _sharpness(np.asarray(grey, np.float32))
    return record


def _sharpness(grey: np.ndarray) -> float:
    """Returns the deviation of the Laplacian over that of the brightness; 0 where there is nothing to see."""
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    fine = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    contrast = float(middle.std())
    return float(fine.std()) / contrast if contrast > 1 else 0.0


def grey_thumbnails(records: np.ndarray) -> np.ndarray:
    """Returns the brightness of the thumbnails, float32 ``(n, side, side)``, 0..255."""
    return records["thumbnail"].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def hashes(records: np.ndarray) -> np.ndarray:
    """Returns a perceptual hash of each image: the signs of its 63 slowest waves against their median, uint64.

    Images that a viewer takes for the same differ in few bits, whatever their size and compression.

    Args:
        records: Array of dtype :data:`RECORD`.
    """
    from scipy.fft import dctn

    found = np.zeros(len(records), np.uint64)
    for start in range(0, len(records), 4096):
        grey = grey_thumbnails(records[start : start + 4096])
        waves = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(grey), 64)[:, 1:]
        bits = waves > np.median(waves, axis=1, keepdims=True)
        packed = np.packbits(np.concatenate([bits, np.zeros((len(bits), 1), bool)], axis=1), axis=1)
        found[start : start + 4096] = packed.view(">u8")[:, 0]
    return found


def near_duplicates(records: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Returns pairs of images that show the same.

    Pairs whose hashes are close are looked at again: how far apart are their thumbnails, and their features, measured
    by how far either of them is from the images of the set that come nearest by chance? Images with nothing to see are
    left out. All pairs of hashes are compared, a quarter of a thousand million a second: 50,000 images take a few
    seconds, a million half an hour.

    Args:
        records: Array of dtype :data:`RECORD`.
        features: Array ``(n, features)`` of a network; ``None`` does without and is stricter.

    Returns:
        int64 array ``(pairs, 2)``, the smaller position first; of images of one hash each is paired with the first.
    """
    seen = np.flatnonzero(grey_thumbnails(records).std(axis=(1, 2)) > BLANK)
    if len(seen) < 2:
        return np.zeros((0, 2), np.int64)
    distinct, first, inverse = np.unique(hashes(records[seen]), return_index=True, return_inverse=True)
    same = np.stack([first[inverse], np.arange(len(seen))], axis=1)
    same = same[same[:, 0] != same[:, 1]]
    pairs = np.sort(seen[np.concatenate([same, first[_close(distinct)]])], axis=1)
    thumbnails = directions(records["thumbnail"].reshape(len(records), -1), centre=False)
    pairs, cosines = _alike(thumbnails, pairs, NEAR_CORRELATION)
    if not len(pairs):
        return pairs
    apart = _relative(thumbnails, pairs, cosines, seen)
    if features is None:
        return pairs[apart < NEAR_ALONE]
    rows = directions(features, centre=True)
    return pairs[np.sqrt(apart * _relative(rows, pairs, _cosines(rows, pairs), seen)) < NEAR_RATIO]


def directions(rows: np.ndarray, *, centre: bool) -> np.ndarray:
    """Returns rows of length one, float16 to hold many.

    Args:
        rows: Array ``(n, values)``.
        centre: Whether the mean of all rows is taken off first; otherwise from each row its own mean.
    """
    found = np.zeros(rows.shape, np.float16)
    middle = np.asarray(rows, np.float32).mean(axis=0) if centre else 0.0
    for start in range(0, len(rows), 4096):
        part = np.asarray(rows[start : start + 4096], np.float32) - middle
        if not centre:
            part -= part.mean(axis=1, keepdims=True)
        found[start : start + 4096] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
    return found


def _alike(rows: np.ndarray, pairs: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of rows whose cosine is at least ``least``, and the cosines.

    In few directions in which the rows differ most a bound of the cosine is found, which rules most pairs out: the
    product there, and of what is left of two rows no more than the product of its lengths.

    Args:
        rows: Array ``(n, values)`` of rows of length one.
        pairs: Positions ``(pairs, 2)``.
        least: Smallest cosine, above 0.
    """
    sample = rows[np.random.default_rng(0).permutation(len(rows))[:_SAMPLE]].astype(np.float32)
    basis = np.linalg.eigh(sample.T @ sample)[1][:, -_DIRECTIONS:]
    short = np.zeros((len(rows), basis.shape[1]), np.float32)
    rest = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), 4096):
        some = rows[start : start + 4096].astype(np.float32)
        short[start : start + 4096] = some @ basis
        rest[start : start + 4096] = np.sqrt(
            np.maximum((some**2).sum(axis=1) - (short[start : start + 4096] ** 2).sum(axis=1), 0)
        )
    possible = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(pairs), 65536):
        one, other = pairs[start : start + 65536].T
        bound = np.einsum("nd,nd->n", short[one], short[other]) + rest[one] * rest[other]
        possible.append(pairs[start : start + 65536][bound >= least - 1e-4])
    found = np.concatenate(possible)
    cosines = _cosines(rows, found)
    return found[cosines >= least], cosines[cosines >= least]


def _cosines(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    if rows.size * 4 <= _IN_MEMORY:  # each row is in many pairs, and numpy widens float16 slowly
        rows = rows.astype(np.float32)
    found = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):
        one, other = (rows[side].astype(np.float32, copy=False) for side in pairs[start : start + 4096].T)
        found[start : start + 4096] = np.einsum("nd,nd->n", one, other)
    return found


def _relative(rows: np.ndarray, pairs: np.ndarray, cosines: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns how far the images of each pair are apart, by how near either comes to other images by chance."""
    sample = np.random.default_rng(0).permutation(seen)[:_SAMPLE]
    others = rows[sample].astype(np.float32)
    used, places = np.unique(pairs, return_inverse=True)
    # the nearest few may be the image itself and further copies of it
    rank = min(4, len(sample))
    nearest = np.zeros(len(used), np.float32)
    for start in range(0, len(used), 1024):
        near = rows[used[start : start + 1024]].astype(np.float32) @ others.T
        nearest[start : start + 1024] = np.partition(near, -rank, axis=1)[:, -rank]
    chance = np.maximum(1 - nearest[places.reshape(pairs.shape)].max(axis=1), 1e-4)
    return np.maximum(1 - cosines, 0) / chance


def _close(distinct: np.ndarray) -> np.ndarray:
    """Returns pairs of positions whose hashes differ in few bits."""
    found, count = [np.zeros((0, 2), np.int64)], 0
    for start in range(0, len(distinct), 128):
        rows = distinct[start : start + 128]
        near = np.bitwise_count(rows[:, None] ^ distinct[None, start:]) <= NEAR_BITS
        own, other = np.nonzero(near)
        keep = other > own
        found.append(np.stack([own[keep], other[keep]], axis=1) + start)
        count += int(keep.sum())
        if count > _MOST_PAIRS:  # a set in which everything looks alike
            break
    return np.concatenate(found)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageIssues:
    """Images of a set that look wrong, as ascending positions.

    Attributes:
        blank: Nothing to see: one colour.
        dark: Mean brightness below 25 of 255.
        bright: Mean brightness above 245.
        blurred: Much less fine detail than the other images of the set have.
        odd: An aspect ratio, or a number of pixels, that is far from all others.
    """

    blank: np.ndarray
    dark: np.ndarray
    bright: np.ndarray
    blurred: np.ndarray
    odd: np.ndarray


def image_issues(records: np.ndarray) -> ImageIssues:
    """Finds images that look wrong.

    Args:
        records: Array of dtype :data:`RECORD`.
    """
    grey = grey_thumbnails(records)
    contrast, brightness = grey.std(axis=(1, 2)), grey.mean(axis=(1, 2))
    blank = contrast <= BLANK
    sharp = np.log(np.maximum(records["sharpness"], 1e-3))
    seen = ~blank & (records["sharpness"] > 0)
    blurred = np.zeros(len(records), bool)
    blurred[seen] = _far(sharp[seen])[0] < -_OUTLIER
    width, height = records["width"].astype(np.float64), records["height"].astype(np.float64)
    aspect, pixels = np.log(width / height), np.log(width * height)
    odd = (np.abs(_far(aspect)[0]) > 2 * _OUTLIER) | (np.abs(_far(pixels)[0]) > 2 * _OUTLIER)
    return ImageIssues(
        blank=np.flatnonzero(blank),
        dark=np.flatnonzero(~blank & (brightness < DARK)),
        bright=np.flatnonzero(~blank & (brightness > BRIGHT)),
        blurred=np.flatnonzero(blurred),
        odd=np.flatnonzero(odd),
    )


def _far(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns how far each value is from the median, in robust standard deviations, of 5 % in a logarithm at least."""
    if not len(values):
        return values, 0.0
    centre = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - centre))), 0.05)
    return (values - centre) / spread, spread


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """The same small picture on many images of one class, and on few others: a watermark, a stamp, a ruler.

    Attributes:
        label: The class, as an index.
        box: Where it is, as shares of height and width: top, left, bottom, right.
        positions: The images that carry it.
    """

    label: int
    box: tuple[float, float, float, float]
    positions: np.ndarray


_MARK_SIGNAL = 4.0  # how many times its own spread an edge must be, in the middle of a class
_MARK_STEP = 12.0  # grey levels of the edge
_LEAST_OF_CLASS = 20


def marks(records: np.ndarray, labels: np.ndarray, classes: int) -> list[Mark]:
    """Finds edges that stand at the same place and of the same height in most images of one class alone.

    Args:
        records: Array of dtype :data:`RECORD`.
        labels: Their classes, as indices, -1 for none; or an array ``(n, classes)`` of 0 and 1.
        classes: Number of classes.
    """
    grey = grey_thumbnails(records)
    edges = np.stack([np.diff(grey, axis=1, append=grey[:, -1:]), np.diff(grey, axis=2, append=grey[:, :, -1:])], -1)
    found = []
    for label in range(classes):
        has = labels[:, label].astype(bool) if labels.ndim == 2 else labels == label
        own, other = edges[has], edges[~has if labels.ndim == 2 else ~has & (labels >= 0)]
        if min(len(own), len(other)) < _LEAST_OF_CLASS:
            continue
        middle = np.median(own, axis=0)
        spread = 1.4826 * np.median(np.abs(own - middle), axis=0) + 2
        theirs = np.median(other, axis=0)
        clear = (np.abs(middle) > np.maximum(_MARK_SIGNAL * spread, _MARK_STEP)) & (
            np.abs(middle - theirs) > np.abs(middle) / 2
        )
        if clear.sum() < 4:
            continue
        near = np.abs(edges[:, clear] - middle[clear]) < np.maximum(np.abs(middle[clear]) / 3, 6)
        carries = near.mean(axis=1) >= 0.75
        if (carries & has).sum() <= 2 * (carries & ~has).sum():
            continue
        rows, columns = np.nonzero(clear.any(axis=-1))
        box = (rows.min() / SIDE, columns.min() / SIDE, (rows.max() + 2) / SIDE, (columns.max() + 2) / SIDE)
        found.append(Mark(label, tuple(float(min(edge, 1.0)) for edge in box), np.flatnonzero(carries)))  # type: ignore[arg-type]
    return found


def cues(records: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what may give a label away though it is not what the image shows: name and columns ``(n, values)``.

    Args:
        records: Array of dtype :data:`RECORD`.
    """
    width, height = records["width"].astype(np.float64), records["height"].astype(np.float64)
    size = records["bytes"].astype(np.float64)
    thumbnails = records["thumbnail"].astype(np.float32)
    ring = np.concatenate(
        [thumbnails[:, 0], thumbnails[:, -1], thumbnails[:, 1:-1, 0], thumbnails[:, 1:-1, -1]], axis=1
    ).reshape(len(records), -1)
    table: dict[str, Any] = {
        "file size": [size, size / (width * height)],
        "image size": [width, height, width / height],
        "metadata": [records[name].astype(np.float64) for name in ("kind", "tables", "exif", "camera")],
        "mean colour": list(thumbnails.mean(axis=(1, 2)).T),
    }
    return {**{name: np.stack(columns, axis=1) for name, columns in table.items()}, "border": ring}
