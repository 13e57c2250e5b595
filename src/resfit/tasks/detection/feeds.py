"""Where a detector's training gets its batches from: stored maps of a frozen body, or freshly changed pictures."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit.data import decode
from resfit.data.box_views import Placement, random_placement
from resfit.data.views import changed_colours
from resfit.tasks.detection.targets import Assigner
from resfit.training import loop

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.engines import Engine
    from resfit.preprocessing import InputSpec

#: Batches that are made ahead of time.
_AHEAD = 4
_IN_MEMORY = 2**25  # bytes of an array of targets above which it is kept on disk


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What a training step takes.

    Attributes:
        inputs: Pictures or rows of maps.
        rows: int16 ``(batch, n)``: what :meth:`Assigner.assign` says of each picture.
        boxes: float32 ``(batch, most, 4)``, xyxy in pixels of the input.
        labels: int32 ``(batch, most)``.
    """

    inputs: np.ndarray
    rows: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures with their boxes, as a training takes them.

    Attributes:
        paths: The files.
        sizes: int ``(n, 2)``: height and width of each in pixels, as displayed.
        boxes: For each picture float32 ``(k, 4)``, xyxy in its pixels.
        labels: For each picture int64 ``(k,)``.
        crowd: For each picture bool ``(k,)``: regions of which nothing is learned.
        digests: For each picture the SHA-256 of its file.
    """

    paths: tuple[Path, ...]
    sizes: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    crowd: tuple[np.ndarray, ...]
    digests: tuple[bytes, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    @property
    def most(self) -> int:
        """The most boxes of one picture, at least 1."""
        return max([1, *(len(some) for some in self.boxes)])

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        return int(self.sizes[position, 0]), int(self.sizes[position, 1])

    def placed(self, position: int, placement: Placement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the boxes of a picture in an input.

        Args:
            position: Of the picture.
            placement: Where it is.

        Returns:
            Boxes to be found ``(k, 4)``, their labels ``(k,)``, and regions of which nothing is learned ``(m, 4)``.
        """
        boxes, shown = placement.visible(self.boxes[position])
        crowd = self.crowd[position]
        found = (shown == 1) & ~crowd
        return boxes[found], self.labels[position][found], boxes[(shown == -1) | (crowd & (shown != 0))]


def padded(parts: Sequence[tuple[np.ndarray, np.ndarray]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes and labels of several pictures as two arrays ``(batch, most, 4)`` and ``(batch, most)``."""
    boxes = np.zeros((len(parts), most, 4), np.float32)
    boxes[..., 2:] = 1.0
    labels = np.zeros((len(parts), most), np.int32)
    for row, (some, kinds) in enumerate(parts):
        boxes[row, : len(some)] = some[:most]
        labels[row, : len(some)] = kinds[:most]
    return boxes, labels


class BatchSource(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def batches(self, order: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            order: int ``(batches, batch)``: positions of the pictures.
            epoch: From 0.
        """
        ...


class StoredMapFeed:
    """Stored maps of a frozen body, with targets that are computed once.

    Args:
        maps: For each view an array ``(n, width)``; memory-mapped will do.
        targets: For each view the targets of its pictures.
    """

    def __init__(self, maps: Sequence[np.ndarray], targets: Sequence[ViewTargets]):
        self._maps, self._targets = list(maps), list(targets)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._maps[0])

    def batches(self, order: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Yields batches, of each picture the view whose turn it is; see :class:`BatchSource`."""

        def make() -> Iterator[Batch]:
            for rows in order:
                views = (rows + epoch) % len(self._maps)
                inputs = np.stack([self._maps[view][row] for view, row in zip(views, rows, strict=True)])
                parts = [self._targets[view] for view in views]
                yield Batch(
                    inputs,
                    np.stack([part.rows[row] for part, row in zip(parts, rows, strict=True)]),
                    np.stack([part.boxes[row] for part, row in zip(parts, rows, strict=True)]),
                    np.stack([part.labels[row] for part, row in zip(parts, rows, strict=True)]),
                )

        with loop.prefetch(make(), _AHEAD) as made:
            yield from made


@dataclasses.dataclass(frozen=True, eq=False)
class ViewTargets:
    """What is to be learned from one view of all pictures.

    Attributes:
        rows: int16 ``(n, width)``.
        boxes: float32 ``(n, most, 4)``.
        labels: int32 ``(n, most)``.
    """

    rows: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(
        cls,
        pictures: LabelledPictures,
        places: Assigner,
        placement: Callable[[int], Placement],
        most: int,
        *,
        folder: Path | None = None,
    ) -> ViewTargets:
        """Computes the targets of one view. Large ones lie in a nameless file on disk, not in memory.

        Args:
            pictures: The pictures.
            places: What its outputs learn.
            placement: For the position of a picture where it is in the input.
            most: The most boxes of one picture.
            folder: Where large ones are kept; ``None`` is the folder for temporary files.
        """
        count = len(pictures)
        rows = _array((count, places.width), np.int16, folder)
        all_boxes = _array((count, most, 4), np.float32, folder)
        all_labels = _array((count, most), np.int32, folder)
        for position in range(count):
            boxes, labels, ignored = pictures.placed(position, placement(position))
            rows[position] = places.assign(boxes, ignored)
            all_boxes[position : position + 1], all_labels[position : position + 1] = padded([(boxes, labels)], most)
        return cls(rows, all_boxes, all_labels)


def _array(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> np.ndarray:
    """An array to be filled: in memory, or where it is large in a file that nobody else sees and that goes with it."""
    if math.prod(shape) * np.dtype(dtype).itemsize < _IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder if folder is not None and folder.is_dir() else None) as file:
        return np.memmap(file, dtype, mode="w+", shape=shape)


@dataclasses.dataclass(frozen=True)
class PictureChanges:
    """How pictures are changed afresh in each epoch.

    Attributes:
        zoom: Smallest and largest scale against the letterbox's.
        flip: Whether half of the pictures are mirrored.
        colour: How far brightness, contrast and saturation are changed, in [0, 1).
        mosaic: Share of the inputs that are put together of four pictures.
    """

    zoom: tuple[float, float] = (0.6, 1.7)
    flip: bool = True
    colour: float = 0.3
    mosaic: float = 0.0


class PictureFeed:
    """Pictures that are decoded and changed afresh in each epoch, in parallel threads, a few batches ahead.

    Args:
        pictures: The pictures.
        contract: The input contract.
        places: What its outputs learn.
        changes: How pictures are changed.
        most: The most boxes of one input.
        seed: Of the changes; with the epoch and the place in the order it decides them.
        frozen: Runs a frozen body, whose maps are the inputs then.
        workers: Threads; ``None`` is one a core.
    """

    def __init__(
        self,
        pictures: LabelledPictures,
        contract: InputSpec,
        places: Assigner,
        changes: PictureChanges,
        most: int,
        *,
        seed: int = 0,
        frozen: Engine | None = None,
        workers: int | None = None,
    ):
        self._pictures, self._contract, self._places = pictures, contract, places
        self._changes, self._most, self._seed = changes, most, seed
        self._frozen, self._workers = frozen, workers

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def batches(self, order: np.ndarray, epoch: int) -> Iterator[Batch]:
        """Yields batches; see :class:`BatchSource`."""
        size = order.shape[1]
        items = list(enumerate(order.reshape(-1).tolist()))

        def work(item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            place, position = item
            random = np.random.default_rng([self._seed, epoch, place])
            return self._made(position, random)

        made = decode.in_order(work, items, workers=self._workers, ahead=_AHEAD * size)

        def make() -> Iterator[Batch]:
            some: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
            try:
                for one in made:
                    some.append(one)
                    if len(some) == size:
                        inputs = np.stack([part[0] for part in some])
                        if self._frozen is not None:
                            inputs = self._frozen.run(inputs)
                        boxes, labels = padded([(part[2], part[3]) for part in some], self._most)
                        yield Batch(inputs, np.stack([part[1] for part in some]), boxes, labels)
                        some = []
            finally:
                made.close()

        with loop.prefetch(make(), 1) as batches:
            yield from batches

    def _made(
        self, position: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One input, the boxes that its places learn, its boxes and labels."""
        if random.random() < self._changes.mosaic:
            image, boxes, labels, ignored = self._mosaic(position, random)
        else:
            image, boxes, labels, ignored = self._drawn(position, self._contract, random)
        if len(boxes) > self._most:
            ignored = np.concatenate([ignored, boxes[self._most :]])
            boxes, labels = boxes[: self._most], labels[: self._most]
        return image, self._places.assign(boxes, ignored), boxes, labels

    def _drawn(
        self, position: int, contract: InputSpec, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One changed picture at the size of a contract, with its boxes."""
        changes, pictures = self._changes, self._pictures
        placement = random_placement(pictures.size(position), contract.size, random, changes.zoom, changes.flip)
        seed = int(random.integers(2**62))

        def render(image: Image) -> Image:  # called for each plane of a picture of more than eight bits
            own = np.random.default_rng(seed)
            return placement.draw(image, contract, lambda part: changed_colours(part, own, changes.colour))

        (array,) = decode.decode_renderings(pictures.paths[position], contract, [render])
        return (array, *pictures.placed(position, placement))

    def _mosaic(
        self, position: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Four pictures, the given one among them, around a point in the middle part of the input."""
        height, width = self._contract.size
        row, column = (max(1, min(side - 1, round(side * random.uniform(0.35, 0.65)))) for side in (height, width))
        others = random.integers(len(self._pictures), size=3).tolist()
        corners = ((0, 0, row, column), (0, column, row, width), (row, 0, height, column), (row, column, height, width))
        parts = []
        for some, (top, left, bottom, right) in zip((position, *others), corners, strict=True):
            contract = dataclasses.replace(self._contract, size=(bottom - top, right - left))
            image, boxes, labels, ignored = self._drawn(some, contract, random)
            shift = np.array([left, top, left, top], np.float32)
            parts.append((image, boxes + shift, labels, ignored + shift))
        upper, lower = (np.concatenate([parts[i][0], parts[i + 1][0]], axis=1) for i in (0, 2))
        boxes, labels, ignored = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
        return np.concatenate([upper, lower]), boxes, labels, ignored


def epoch_order(count: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the pictures of an epoch in batches of one size, int ``(batches, batch)``.

    Args:
        count: Number of pictures; where they do not fill the last batch, some come twice.
        batch: Pictures a batch.
        seed: Of the order.
        epoch: From 0.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(count)
    wanted = math.ceil(count / batch) * batch
    while len(order) < wanted:
        order = np.concatenate([order, random.permutation(count)])
    return order[:wanted].reshape(-1, batch)
