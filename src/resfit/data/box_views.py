"""Views of pictures with boxes: mirrored, scaled, moved and in other colours, and where the boxes are in each.

A picture is never stretched: a view is a letterbox that is larger or smaller than the one which fits, and stands
elsewhere. It is the picture that is mirrored, before it is put into the input; the padding stays where it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.box_geometry import areas, letterbox
from resfit.data.decode import Rendering, full_size, placed
from resfit.data.views import changed_colours
from resfit.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.preprocessing import InputSpec

#: Share of a box's area that must be in a view; of what shows less, the view says nothing.
MIN_VISIBLE = 0.3
#: Sides of a box in pixels of the input under which it is taken for invisible.
MIN_SIDE = 2.0


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a picture is in a network's input.

    Attributes:
        image_size: Height and width of the picture in pixels.
        size: Height and width of the input.
        scale: Factors along height and width.
        offset: Rows and columns from the input's corner to the picture's, which may lie outside.
        mirrored: Whether the picture is mirrored left to right first.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    mirrored: bool = False

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Brings boxes from pixels of the picture to pixels of the input, beyond whose edges they may reach.

        Args:
            boxes: Array ``(n, 4)``, xyxy.

        Returns:
            float64 array ``(n, 4)``.
        """
        found = np.asarray(boxes, np.float64).reshape(-1, 4).copy()
        if self.mirrored:
            found[:, [0, 2]] = self.image_size[1] - found[:, [2, 0]]
        (down, across), (top, left) = self.scale, self.offset
        return found * [across, down, across, down] + [left, top, left, top]

    def visible(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Brings boxes to the input, and cuts them off where it ends.

        Args:
            boxes: Array ``(n, 4)``, xyxy in pixels of the picture.

        Returns:
            float32 array ``(n, 4)`` in pixels of the input; and int8 ``(n,)``: 1 for a box that is to be found, -1 for
            one of which too little shows (neither object nor background), 0 for one that is not in the view.
        """
        whole = self.to_input(boxes)
        cut = np.clip(whole, 0, [self.size[1], self.size[0]] * 2)
        sides = cut[:, 2:] - cut[:, :2]
        share = areas(cut) / np.maximum(areas(whole), 1e-9)
        shown = np.where((share >= MIN_VISIBLE) & (sides.min(axis=1, initial=np.inf) >= MIN_SIDE), 1, -1)
        return cut.astype(np.float32), np.where(areas(cut) > 0, shown, 0).astype(np.int8)

    def draw(self, image: Image, spec: InputSpec, change: Callable[[Image], Image] | None = None) -> Image:
        """Returns the input.

        Args:
            image: The picture, of a JPEG perhaps at a fraction of its size.
            spec: The contract.
            change: What becomes of the picture, and not of the padding.
        """
        from PIL import Image as Images

        if self.mirrored:
            image = image.transpose(Images.Transpose.FLIP_LEFT_RIGHT)
        (height, width), (down, across), (top, left) = self.image_size, self.scale, self.offset
        # the whole pixels of the input that the picture covers, and what of the picture is there
        rows = max(0, round(top)), min(self.size[0], round(top + height * down))
        columns = max(0, round(left)), min(self.size[1], round(left + width * across))
        reduced = image.height / height, image.width / width
        part = (
            max(0.0, (columns[0] - left) / across) * reduced[1],
            max(0.0, (rows[0] - top) / down) * reduced[0],
            min(width, (columns[1] - left) / across) * reduced[1],
            min(height, (rows[1] - top) / down) * reduced[0],
        )
        return placed(image, spec, part, (columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0]), change)


def plain_placement(image_size: tuple[int, int], size: tuple[int, int]) -> Placement:
    """Returns where a picture is as it is evaluated: the letterbox.

    Args:
        image_size: Height and width of the picture in pixels.
        size: Height and width of the input.
    """
    fitted = letterbox(image_size, size)
    return Placement(fitted.image_size, fitted.size, fitted.scale, (float(fitted.offset[0]), float(fitted.offset[1])))


def random_placement(
    image_size: tuple[int, int],
    size: tuple[int, int],
    random: np.random.Generator,
    zoom: tuple[float, float],
    flip: bool,
) -> Placement:
    """Draws where a picture is in a view: with its own proportions, at another scale, at another place.

    Args:
        image_size: Height and width of the picture in pixels.
        size: Height and width of the input.
        random: What draws.
        zoom: Smallest and largest scale, against that of the letterbox.
        flip: Whether half of the pictures are mirrored.
    """
    fitted = letterbox(image_size, size)
    factor = math.exp(random.uniform(math.log(zoom[0]), math.log(zoom[1])))
    shares = random.random(2)
    scale, offset = [], []
    for side, full, limit, share in zip(image_size, fitted.resized, size, shares.tolist(), strict=True):
        length = max(1.0, full * factor)
        scale.append(length / side)
        # a picture that is larger covers the input, one that is smaller lies within it
        offset.append(share * (limit - length))
    mirrored = bool(random.random() < 0.5) and flip
    return Placement(fitted.image_size, fitted.size, (scale[0], scale[1]), (offset[0], offset[1]), mirrored)


@dataclasses.dataclass(frozen=True)
class BoxViews:
    """Which views of pictures with boxes there are, as :class:`resfit.data.views.Views` says it for classes.

    View ``k`` of a picture follows from the seed, ``k``, its size and its bytes alone.

    Attributes:
        count: Number of views of each picture, beside the letterbox; at least 1.
        seed: Seed of all random choices.
        flip: Whether half of the views are mirrored left to right.
        zoom: Smallest and largest scale against the letterbox's, above 0.
        colour: How far brightness, contrast and saturation are changed, in [0, 1).
    """

    count: int = 4
    seed: int = 0
    flip: bool = True
    zoom: tuple[float, float] = (0.6, 1.7)
    colour: float = 0.3

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ArgumentError: A field is outside its range.
        """
        if self.count < 1:
            raise ArgumentError(f"count must be at least 1. Received: {self.count!r}.")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ArgumentError(f"zoom must be two ascending factors above 0. Received: {self.zoom!r}.")
        if not 0 <= self.colour < 1:
            raise ArgumentError(f"colour must lie in [0, 1). Received: {self.colour!r}.")

    def describe(self, number: int) -> dict[str, Any]:
        """Returns what decides view ``number`` (from 0) of a picture, JSON-ready."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key != "count"}
        return {"kind": "boxes", **fields, "zoom": list(self.zoom), "number": number}

    def placement(self, number: int, digest: bytes, image_size: tuple[int, int], size: tuple[int, int]) -> Placement:
        """Returns where the picture is in view ``number`` (from 0).

        Args:
            number: Which view.
            digest: SHA-256 of the picture's bytes.
            image_size: Its height and width in pixels.
            size: Height and width of the input.
        """
        return random_placement(image_size, size, self._random(number, digest), self.zoom, self.flip)

    def rendering(self, number: int, digest: bytes, spec: InputSpec) -> Rendering:
        """Returns what makes view ``number`` (from 0) of the picture with this digest.

        Args:
            number: Which view.
            digest: SHA-256 of the picture's bytes.
            spec: The contract.
        """

        def render(image: Image) -> Image:
            random = self._random(number, digest)
            placement = random_placement(full_size(image), spec.size, random, self.zoom, self.flip)
            return placement.draw(image, spec, lambda part: changed_colours(part, random, self.colour))

        return render

    def _random(self, number: int, digest: bytes) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, *np.frombuffer(digest, "<u4").tolist()])
