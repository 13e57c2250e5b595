"""Large pictures in overlapping tiles: which tiles there are, training on them, and detections of tiles put together.

A tile is a part of the picture at its own scale, so that objects keep the pixels that a letterbox of the whole picture
would take from them. Detections of all tiles, and of the picture as a whole, are put together by suppression over
intersection over the smaller box: a box that an edge of a tile cut lies in the whole one that the next tile shows.

Source:
    Akyon et al. 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection", arXiv:2202.06934.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.box_geometry import areas
from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError, DataError, ImageError
from resfit.tasks.detection.detections import Detections

#: Share of a tile's side that it has in common with the next one.
OVERLAP = 0.2
#: Overlap, against the smaller box, from which boxes of two tiles are one object.
SAME = 0.5
#: Most tiles of a picture: bounds time and memory.
MOST_TILES = 2500
# Share of a box that must be in a tile for the tile to learn it; of less, it says nothing.
_VISIBLE = 0.4


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        side: Height and width of a tile in pixels of the picture.
        overlap: Share of the side that neighbours have in common, in [0, 0.9].
        whole: Whether the picture as a whole is looked at too, for objects that are larger than a tile.
    """

    side: tuple[int, int]
    overlap: float = OVERLAP
    whole: bool = True

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ArgumentError: One is out of its range.
        """
        if len(self.side) != 2 or min(self.side) < 32:
            raise ArgumentError(f"tiles must have sides of at least 32 pixels. Received: {self.side!r}.")
        if not 0 <= self.overlap <= 0.9:
            raise ArgumentError(f"the overlap of tiles must lie in [0, 0.9]. Received: {self.overlap!r}.")

    def of(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Returns the tiles of a picture: left, top, right, bottom in its pixels.

        All have the full side but where the picture is smaller; the last ones end at its edge.

        Args:
            size: Height and width of the picture.

        Raises:
            ArgumentError: There would be more than :data:`MOST_TILES`.
        """
        starts = [_starts(length, side, self.overlap) for length, side in zip(size, self.side, strict=True)]
        if len(starts[0]) * len(starts[1]) > MOST_TILES:
            raise ArgumentError(
                f"a picture may have at most {MOST_TILES} tiles. Received: {len(starts[0]) * len(starts[1])} for "
                f"{size[1]}x{size[0]} pixels; use larger tiles."
            )
        return [
            (left, top, min(left + self.side[1], size[1]), min(top + self.side[0], size[0]))
            for top in starts[0]
            for left in starts[1]
        ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin along one side, evenly spread."""
    if length <= side:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(number * (length - side) / (count - 1)) for number in range(count)]


def cut_set(boxes: BoxSet, tiling: Tiling, folder: Path) -> tuple[BoxSet, np.ndarray]:
    """Cuts pictures into tiles, as PNG files, for training.

    Tiles of one picture are a group, so that none of them is in another part of a split. A box of which a tile shows
    too little is a region to ignore there.

    Args:
        boxes: The pictures.
        tiling: How they are cut.
        folder: Where the tiles are written.

    Returns:
        The tiles as pictures, and for each the position of the picture that it is of.

    Raises:
        DataError: No picture can be read.
    """
    from resfit.data import decode
    from resfit.preprocessing import InputSpec

    paths: list[Path] = []
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    sizes, owners = [], []
    folder.mkdir(parents=True, exist_ok=True)
    whole = InputSpec(resize_mode="none")
    for position in range(len(boxes)):
        try:
            image = np.asarray(decode.decode_image(boxes.paths[position], whole))
        except ImageError:
            continue
        own, labels, crowd = boxes.boxes_of(position)
        for number, tile in enumerate(tiling.of(image.shape[:2])):
            left, top, right, bottom = tile
            path = folder / f"{position:06}-{number:04}.png"
            _write(path, image[top:bottom, left:right])
            shifted = own - np.array([left, top, left, top], np.float32)
            cut = np.clip(shifted, 0, [right - left, bottom - top] * 2)
            shares = areas(cut) / np.maximum(areas(shifted), 1e-9)
            there = areas(cut) > 1
            paths.append(path)
            sizes.append((bottom - top, right - left))
            owners.append(position)
            rows.append((cut[there], labels[there], (crowd | (shares < _VISIBLE))[there]))
    if not paths:
        raise DataError(f"at least one picture must be readable. Received: {len(boxes)}, of which none is.")
    groups = [boxes.groups[owner] or f"picture {owner}" for owner in owners]
    tiles = dataclasses.replace(
        boxes,
        paths=tuple(paths),
        splits=tuple(boxes.splits[owner] for owner in owners),
        groups=tuple(groups),
        sizes=np.asarray(sizes, np.int32),
        offsets=np.append(0, np.cumsum([len(row[0]) for row in rows])),
        boxes=np.concatenate([row[0] for row in rows]).astype(np.float32),
        labels=np.concatenate([row[1] for row in rows]),
        crowd=np.concatenate([row[2] for row in rows]),
        fingerprint=f"{boxes.fingerprint} in tiles of {tiling.side} with {tiling.overlap}",
    )
    return tiles, np.asarray(owners)


def _write(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    from resfit.storage.atomic import atomic_path

    if not path.exists():
        with atomic_path(path) as temporary:
            Image.fromarray(image.round().astype(np.uint8)).save(temporary, "PNG", compress_level=1)


def predict_in_tiles(detector: Any, item: Any, path: Path | None, tiling: Tiling, **options: Any) -> Detections:
    """Finds objects in one picture by its tiles.

    Args:
        detector: A :class:`resfit.Detector`.
        item: The picture, in a form that :func:`resfit.data.decode.decode_image` takes.
        path: Its file, if it has one.
        tiling: How it is cut.
        **options: Of :meth:`resfit.Detector.predict`.
    """
    from resfit.data import decode
    from resfit.preprocessing import InputSpec

    try:
        image = np.asarray(decode.decode_image(item, InputSpec(resize_mode="none")))
        if image.dtype != np.uint8:
            image = image.round().astype(np.uint8)
        tiles = tiling.of(image.shape[:2])
    except (ImageError, ArgumentError) as error:
        return Detections.failed(path, detector.classes, str(error))
    size = (int(image.shape[0]), int(image.shape[1]))
    parts = [image[top:bottom, left:right] for left, top, right, bottom in tiles]
    shifts = [(left, top) for left, top, *_ in tiles]
    if tiling.whole and len(tiles) > 1:
        parts.append(image)
        shifts.append((0, 0))
    found = []
    step = 64
    for start in range(0, len(parts), step):
        found += detector.predict(parts[start : start + step], **options)
    moved = [one.boxes + np.array([x, y, x, y], np.float32) for one, (x, y) in zip(found, shifts, strict=True)]
    boxes, scores, classes = (
        np.concatenate(some) for some in (moved, [one.scores for one in found], [one.classes for one in found])
    )
    corners = [*tiles, *[(0, 0, size[1], size[0])] * (len(parts) - len(tiles))]
    cut = np.concatenate([_is_cut(some, tile, size) for some, tile in zip(moved, corners, strict=True)])
    kept = merged(boxes, scores, classes, cut, most=detector.spec.max_detections * max(1, len(tiles)))
    return Detections(path, boxes[kept], scores[kept], classes[kept], detector.classes, size, "", item)


def _is_cut(boxes: np.ndarray, tile: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Whether boxes reach an edge of their tile that is none of the picture's."""
    left, top, right, bottom = tile
    reaches = [boxes[:, 0] < left + 2, boxes[:, 1] < top + 2, boxes[:, 2] > right - 2, boxes[:, 3] > bottom - 2]
    inner = [left > 0, top > 0, right < size[1], bottom < size[0]]
    return np.logical_or.reduce([reach & edge for reach, edge in zip(reaches, inner, strict=True)])


def merged(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, cut: np.ndarray, *, most: int) -> np.ndarray:
    """Returns the positions of boxes that stay once those of one object are one.

    Boxes that an edge of a tile cut go before all others that cover them, whatever the scores.

    Args:
        boxes: Array ``(n, 4)``.
        scores: Array ``(n,)``.
        classes: Array ``(n,)``.
        cut: bool ``(n,)``.
        most: How many stay at most.

    Returns:
        int64 array, by falling score.
    """
    sizes = areas(boxes)
    order = np.lexsort((-scores, cut))
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for place in range(len(order)):
        if not alive[place]:
            continue
        row = order[place]
        kept.append(int(row))
        if len(kept) == most:
            break
        rest = place + 1 + np.flatnonzero(alive[place + 1 :] & (classes[order[place + 1 :]] == classes[row]))
        if len(rest):
            others = boxes[order[rest]]
            smaller = np.minimum(sizes[row], sizes[order[rest]])
            common = _common(boxes[row], others) / np.maximum(smaller, 1e-9)
            alive[rest[common > SAME]] = False
    found = np.asarray(kept, np.int64)
    return found[np.argsort(-scores[found], kind="stable")]


def _common(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas of intersections."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.prod(np.maximum(high - low, 0.0), axis=1)


def sides_of(tiles: int | Sequence[int]) -> tuple[int, int]:
    """Returns height and width of tiles from what a caller states."""
    return (int(tiles), int(tiles)) if isinstance(tiles, int) else (int(tiles[0]), int(tiles[1]))
