"""What a set of boxes looks like: classes, sizes at a network's input, copies and contradictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.data.box_geometry import letterbox, overlaps
from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError

#: Overlap from which two boxes of one class are taken for the same object.
SAME_OBJECT = 0.9
#: Overlap from which two boxes of different classes contradict each other.
SAME_PLACE = 0.8
#: Length in pixels of the input below which a box is small for a detector whose finest level has stride 8.
SMALL_SIDE = 16.0
#: Most pairs that are listed, and most that are compared.
MOST_PAIRS, MOST_COMPARED = 10_000, 200_000_000


@dataclasses.dataclass(frozen=True)
class BoxPair:
    """Two boxes of an image that cover each other.

    Attributes:
        image: Position of the image.
        first: Position of one box in the set's table.
        second: Position of the other.
        overlap: Intersection over union, 0..1.
    """

    image: int
    first: int
    second: int
    overlap: float


@dataclasses.dataclass(frozen=True, eq=False)
class BoxStatistics:
    """A set of boxes in numbers. Crowd regions are counted apart and nowhere else.

    Attributes:
        images: Number of images.
        boxes: Number of boxes.
        crowds: Number of regions to ignore.
        negatives: Images without boxes (those with crowds alone are not among them).
        boxes_by_class: Boxes of each class.
        images_by_class: Images with at least one box of each class.
        images_by_split: Images of each split; ``""`` stands for those of which the data states none.
        boxes_by_split: For each split the boxes of each class.
        missing_in_training: Classes that the stated training images lack although other images have them.
        most_boxes: Most boxes of an image.
        input_size: Height and width of the network's input that ``sides`` refer to.
        sides: float64 ``(m,)``: for each box the square root of its area in pixels of the input, letterboxed.
        small: Share of the boxes whose side is below :data:`SMALL_SIDE`, 0..1; NaN without boxes.
        duplicates: Pairs of boxes of one class with an overlap of at least :data:`SAME_OBJECT`; at most 10,000.
        duplicate_count: How many there are.
        contradictions: Pairs of boxes of different classes with an overlap of at least :data:`SAME_PLACE`; at most
            10,000.
        contradiction_count: How many there are.
        all_compared: Whether every box was compared with all that it may cover. In a set with very many boxes on top
            of each other it is not, and the two counts are too low.
    """

    images: int
    boxes: int
    crowds: int
    negatives: int
    boxes_by_class: Mapping[str, int]
    images_by_class: Mapping[str, int]
    images_by_split: Mapping[str, int]
    boxes_by_split: Mapping[str, Mapping[str, int]]
    missing_in_training: tuple[str, ...]
    most_boxes: int
    input_size: tuple[int, int]
    sides: np.ndarray
    small: float
    duplicates: tuple[BoxPair, ...]
    duplicate_count: int
    contradictions: tuple[BoxPair, ...]
    contradiction_count: int
    all_compared: bool

    def side_quantiles(self, shares: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> dict[float, float]:
        """Returns the sides, in pixels of the input, below which given shares of the boxes lie; NaN without boxes.

        Args:
            shares: In 0..1.
        """
        if not len(self.sides):
            return dict.fromkeys(shares, math.nan)
        return dict(zip(shares, np.quantile(self.sides, shares).tolist(), strict=True))

    def size_needed(self, share: float = 0.5, step: int = 32) -> tuple[int, int]:
        """Returns the input, in the proportions of this one, at which a share of the boxes is not small.

        Args:
            share: Of the boxes, in (0, 1].
            step: Both sides are rounded up to multiples of it.

        Returns:
            Height and width; the present ones where they are large enough or there are no boxes.
        """
        if not len(self.sides):
            return self.input_size
        factor = max(1.0, SMALL_SIDE / float(np.quantile(self.sides, 1 - share)))
        if factor == 1.0:
            return self.input_size
        height, width = (math.ceil(side * factor / step) * step for side in self.input_size)
        return height, width

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values; quantiles instead of all sides, and numbers of pairs instead of pairs."""
        left_out = ("sides", "duplicates", "contradictions")
        plain = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in left_out
        }
        quantiles = {f"{share:g}": None if math.isnan(side) else side for share, side in self.side_quantiles().items()}
        return {
            **plain,
            "small": None if math.isnan(self.small) else self.small,
            "side_quantiles": quantiles,
            "size_needed": list(self.size_needed()),
        }


def box_statistics(found: BoxSet, input_size: tuple[int, int]) -> BoxStatistics:
    """Counts the classes of a set, measures its boxes, and finds boxes that cover each other.

    Args:
        found: The set.
        input_size: Height and width of the network's input, to which images are letterboxed.

    Raises:
        ArgumentError: A side of the input is less than 1.

    Example:
        >>> numbers = box_statistics(scan_boxes("cells/"), (320, 320))  # doctest: +SKIP
        >>> numbers.side_quantiles()[0.5], numbers.size_needed()  # doctest: +SKIP
        (9.1, (576, 576))
    """
    if len(input_size) != 2 or min(input_size) < 1:
        raise ArgumentError(f"input_size must be height and width of at least 1 pixel. Received: {input_size!r}.")
    kept = np.flatnonzero(~found.crowd)
    owners, labels = found.owners[kept], found.labels[kept]
    boxes = found.boxes[kept].astype(np.float64)
    count = len(found.classes)
    shown = np.unique(owners * max(count, 1) + labels) % max(count, 1)
    splits = np.array([split or "" for split in found.splits], dtype=object)
    by_split = {
        name: dict(
            zip(found.classes, np.bincount(labels[splits[owners] == name], minlength=count).tolist(), strict=True)
        )
        for name in sorted(set(splits.tolist()))
    }
    # as a split of images does: where none is stated, an image is for training
    training = np.bincount(labels[np.isin(splits[owners], ("", "train"))], minlength=count)
    everywhere = np.bincount(labels, minlength=count)
    missing = tuple(
        name for name, here, there in zip(found.classes, training, everywhere, strict=True) if there and not here
    )
    scales = {}
    for size in {tuple(size) for size in found.sizes.tolist()}:
        fitted = letterbox(size, input_size)
        scales[size] = math.sqrt(fitted.scale[0] * fitted.scale[1])
    scale = np.array([scales[tuple(size)] for size in found.sizes.tolist()])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) * (scale[owners] if len(owners) else 1.0)
    duplicates, contradictions, all_compared = _pairs(boxes, owners, labels, kept)
    return BoxStatistics(
        images=len(found),
        boxes=len(kept),
        crowds=int(found.crowd.sum()),
        negatives=int((np.diff(found.offsets) == 0).sum()),
        boxes_by_class=dict(zip(found.classes, everywhere.tolist(), strict=True)),
        images_by_class=dict(zip(found.classes, np.bincount(shown, minlength=count).tolist(), strict=True)),
        images_by_split={name: int((splits == name).sum()) for name in by_split},
        boxes_by_split=by_split,
        missing_in_training=missing,
        most_boxes=int(np.bincount(owners, minlength=1).max()),
        input_size=(int(input_size[0]), int(input_size[1])),
        sides=sides,
        small=float((sides < SMALL_SIDE).mean()) if len(sides) else math.nan,
        duplicates=tuple(duplicates[:MOST_PAIRS]),
        duplicate_count=len(duplicates),
        contradictions=tuple(contradictions[:MOST_PAIRS]),
        contradiction_count=len(contradictions),
        all_compared=all_compared,
    )


def _pairs(
    boxes: np.ndarray, owners: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> tuple[list[BoxPair], list[BoxPair], bool]:
    """Pairs of the same class and of different ones, by falling overlap; and whether all were compared."""
    same: list[BoxPair] = []
    other: list[BoxPair] = []
    # two boxes that overlap by a share t begin within (1 - t) of the width of the one further left
    order = np.lexsort((boxes[:, 0], owners))
    boxes, owners, labels, rows = boxes[order], owners[order], labels[order], rows[order]
    span = float(np.ptp(boxes[:, [0, 2]])) + 1 if len(boxes) else 1.0
    begin = owners * (2 * span) + boxes[:, 0]
    reach = begin + (1 - SAME_PLACE) * (boxes[:, 2] - boxes[:, 0]) + 1e-6
    last = np.searchsorted(begin, reach, "right")
    here = np.arange(len(boxes))
    compared = step = 0
    while True:
        step += 1
        here = here[here + step < last[here]]
        compared += len(here)
        if not len(here) or compared > MOST_COMPARED:
            break
        there = here + step
        overlap = overlaps(boxes[here], boxes[there])
        alike = labels[here] == labels[there]
        for target, wanted in ((same, alike & (overlap >= SAME_OBJECT)), (other, ~alike & (overlap >= SAME_PLACE))):
            for i in np.flatnonzero(wanted).tolist():
                first, second = sorted((int(rows[here[i]]), int(rows[there[i]])))
                target.append(BoxPair(int(owners[here[i]]), first, second, float(overlap[i])))
    for pairs in (same, other):
        pairs.sort(key=lambda pair: (-pair.overlap, pair.first, pair.second))
    return same, other, not len(here)
