"""Arithmetic of boxes: overlap, EXIF rotation, and the letterbox that brings an image of any size to a network's.

A box is ``(x1, y1, x2, y2)`` in pixels: the left, top, right and bottom edges, where 0 is the left or top edge of the
image and its width or height the right or bottom one. A box over the whole of a 640x480 image is ``(0, 0, 640, 480)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from resfit.errors import ArgumentError

_PAIRS_AT_ONCE = 4_000_000

#: What brings a stored image upright, for each value of EXIF's Orientation tag (274): whether its axes are swapped,
#: and then whether it is mirrored from left to right and from top to bottom.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of boxes in square pixels, float64 ``(n,)``.

    Args:
        boxes: Array ``(n, 4)``, xyxy in pixels.
    """
    boxes = np.asarray(boxes, np.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(first: np.ndarray, second: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Returns the overlap of boxes row by row: intersection over union, as COCO computes it.

    Args:
        first: Array ``(n, 4)``, xyxy in pixels: the detections.
        second: Array ``(n, 4)``: the true boxes.
        crowd: Booleans ``(n,)``: where the true box is a crowd, the overlap is the share of the detection's area that
            lies in it.

    Returns:
        float64 array ``(n,)``, 0..1; 0 for boxes that only touch.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0])
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1])
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    own = areas(first)
    union = own + areas(second) - shared
    if crowd is not None:
        union = np.where(crowd, own, union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def overlap_matrix(first: np.ndarray, second: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Returns the overlap of each box with each other one, float64 ``(n, m)``.

    Args:
        first: Array ``(n, 4)``, xyxy in pixels: the detections.
        second: Array ``(m, 4)``: the true boxes.
        crowd: Booleans ``(m,)``, as :func:`overlaps` takes them.
    """
    n, m = len(first), len(second)
    flags = None if crowd is None else np.tile(np.asarray(crowd, bool), n)
    return overlaps(np.repeat(first, m, axis=0), np.tile(second, (n, 1)), flags).reshape(n, m)


def overlapping_pairs(
    first: np.ndarray,
    first_owner: np.ndarray,
    second: np.ndarray,
    second_owner: np.ndarray,
    *,
    least: float,
    crowd: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields pairs of boxes of the same owner that overlap, some millions of candidates at a time.

    Args:
        first: Array ``(n, 4)``, xyxy in pixels.
        first_owner: Integers ``(n,)``: the image (or image and class) of each.
        second: Array ``(m, 4)``.
        second_owner: Integers ``(m,)``, **ascending**.
        least: Smallest overlap, above 0.
        crowd: Booleans ``(m,)``, as :func:`overlaps` takes them.

    Returns:
        Positions in ``first``, positions in ``second`` and the overlaps, ordered by the two positions.
    """
    start = np.searchsorted(second_owner, first_owner, "left")
    count = np.searchsorted(second_owner, first_owner, "right") - start
    ends = np.cumsum(count)
    low = 0
    while low < len(first):
        reached = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, reached + _PAIRS_AT_ONCE, "right")))
        some = np.arange(low, high)
        one = np.repeat(some, count[some])
        within = np.arange(len(one)) - np.repeat(ends[some] - count[some] - reached, count[some])
        two = np.repeat(start[some], count[some]) + within
        found = overlaps(first[one], second[two], None if crowd is None else crowd[two])
        keep = found >= least
        yield one[keep], two[keep], found[keep]
        low = high


def turn_boxes(boxes: np.ndarray, orientation: int, stored_size: tuple[int, int]) -> np.ndarray:
    """Turns boxes with the pixels of an image that EXIF says is to be rotated or mirrored.

    Args:
        boxes: Array ``(n, 4)``, xyxy in pixels of the image as stored.
        orientation: EXIF's tag 274, 1..8; anything else counts as 1, as image libraries take it.
        stored_size: Height and width of the image as stored.

    Returns:
        float64 array ``(n, 4)``, xyxy in pixels of the image as displayed.
    """
    swapped, mirror_x, mirror_y = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
    turned = np.array(boxes, np.float64).reshape(-1, 4)
    height, width = stored_size
    if swapped:
        turned = turned[:, [1, 0, 3, 2]]
        height, width = width, height
    if mirror_x:
        turned[:, [0, 2]] = width - turned[:, [2, 0]]
    if mirror_y:
        turned[:, [1, 3]] = height - turned[:, [3, 1]]
    return turned


def displayed_size(orientation: int, stored_size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of an image as displayed.

    Args:
        orientation: As :func:`turn_boxes` takes it.
        stored_size: Height and width as stored.
    """
    height, width = stored_size
    return (width, height) if ORIENTATIONS.get(orientation, ORIENTATIONS[1])[0] else (height, width)


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How an image is scaled, without distortion, and padded to a network's input.

    Attributes:
        image_size: Height and width of the image as displayed, in pixels.
        size: Height and width of the network's input.
        resized: Height and width of the image in the input: rounded to whole pixels, at least 1.
        offset: Rows above and columns to the left of the image that are padding.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Factors along height and width; they differ by what rounding to whole pixels changes."""
        return self.resized[0] / self.image_size[0], self.resized[1] / self.image_size[1]

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels of padding at the top, bottom, left and right."""
        top, left = self.offset
        return top, self.size[0] - self.resized[0] - top, left, self.size[1] - self.resized[1] - left

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Brings boxes from pixels of the image to pixels of the input.

        Args:
            boxes: Array ``(n, 4)``, xyxy.

        Returns:
            float64 array ``(n, 4)``; computed in float64, since float32 is coarser than 1e-4 pixels above 1,024.
        """
        factors, shifts = self._factors()
        return np.asarray(boxes, np.float64).reshape(-1, 4) * factors + shifts

    def to_image(self, boxes: np.ndarray, *, clip: bool = False) -> np.ndarray:
        """Brings boxes from pixels of the input to pixels of the image.

        Args:
            boxes: Array ``(n, 4)``, xyxy.
            clip: Cuts boxes off at the edges of the image.

        Returns:
            float64 array ``(n, 4)``.
        """
        factors, shifts = self._factors()
        found = (np.asarray(boxes, np.float64).reshape(-1, 4) - shifts) / factors
        if clip:
            height, width = self.image_size
            found = np.clip(found, 0, [width, height, width, height])
        return found

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors and shifts of x1, y1, x2, y2."""
        (down, across), (top, left) = self.scale, self.offset
        return np.array([across, down, across, down]), np.array([left, top, left, top], np.float64)


def letterbox(
    image_size: tuple[int, int], size: tuple[int, int], *, enlarge: bool = True, centred: bool = True
) -> Letterbox:
    """Fits an image into a network's input: as large as possible with its own proportions, the rest is padding.

    Args:
        image_size: Height and width of the image, in pixels.
        size: Height and width of the input.
        enlarge: Whether images smaller than the input are enlarged; otherwise they are only padded.
        centred: Whether padding is on both sides (an odd pixel at the bottom or right); otherwise all of it is there.

    Raises:
        ArgumentError: A side is less than 1 pixel.

    Example:
        >>> fitted = letterbox((480, 640), (320, 320))
        >>> fitted.resized, fitted.padding
        ((240, 320), (40, 40, 0, 0))
        >>> fitted.to_input([[0, 0, 640, 480]]).tolist()
        [[0.0, 40.0, 320.0, 280.0]]
    """
    for name, sides in (("image_size", image_size), ("size", size)):
        if len(sides) != 2 or not all(int(side) == side and side >= 1 for side in sides):
            raise ArgumentError(f"{name} must be height and width, whole numbers of at least 1. Received: {sides!r}.")
    (height, width), (rows, columns) = map(int, image_size), map(int, size)
    # in whole numbers: the side that fills the input does so to the pixel
    if rows * width <= columns * height:
        resized = (rows, max(1, _rounded(width * rows, height)))
    else:
        resized = (max(1, _rounded(height * columns, width)), columns)
    if not enlarge and resized[0] >= height and resized[1] >= width:
        resized = (height, width)
    top, left = ((rows - resized[0]) // 2, (columns - resized[1]) // 2) if centred else (0, 0)
    return Letterbox((height, width), (rows, columns), resized, (top, left))


def placement(image_size: tuple[int, int], size: tuple[int, int], resize_mode: str) -> Letterbox:
    """Returns how an image lies in a network's input, by the input contract.

    Args:
        image_size: Height and width of the image, in pixels.
        size: Height and width of the input.
        resize_mode: ``"squash"`` stretches the image over the whole input; anything else is a letterbox.
    """
    return Letterbox(image_size, size, size, (0, 0)) if resize_mode == "squash" else letterbox(image_size, size)


def _rounded(numerator: int, denominator: int) -> int:
    """Nearest whole number of a fraction, halves upwards."""
    return (2 * numerator + denominator) // (2 * denominator)
