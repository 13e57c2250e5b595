"""What every format is read into, and the register of formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.annotations.files import FileList
from resfit.errors import DataError

#: Most rows that the list of skipped boxes keeps; the counts go on.
MOST_LISTED = 100_000


@dataclasses.dataclass(frozen=True)
class SkippedBox:
    """A box, or a whole image, that cannot be used.

    Attributes:
        image: The image, as its file or as the annotation states it.
        reason: One of :data:`resfit.data.boxes.REASONS`.
        detail: What exactly, in one line.
        source: The annotation file.
        place: Its line, its object's number from 1, or COCO's id; -1 where the whole image or file is meant.
        label: The class, as stated; ``""`` where it is not known.
        box: The four numbers, as stated, or ``None``.
    """

    image: str
    reason: str
    detail: str = ""
    source: str = ""
    place: int = -1
    label: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class StatedImage:
    """An image as an annotation states it.

    Attributes:
        name: As stated.
        path: The file that was found for it, or ``None``.
        source: The annotation file.
        split: ``"train"``, ``"val"``, ``"test"`` or ``None``.
        group: What must stay together, or ``None``.
        width: In pixels, as stated; 0 where it is not.
        height: In pixels, as stated; 0 where it is not.
        fractions: Whether boxes are fractions of width and height rather than pixels.
        problem: Why no file was found.
    """

    name: str
    path: Path | None
    source: Path
    split: str | None = None
    group: str | None = None
    width: int = 0
    height: int = 0
    fractions: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How formats are read; :func:`resfit.data.boxes.scan_boxes` explains the fields."""

    classes: tuple[str, ...] | None = None
    first_pixel: int | None = None
    difficult: str = "ignore"
    coordinates: str = "auto"
    unlisted: str = "auto"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AnnotationFormat:
    """One format.

    Attributes:
        name: What ``format=`` takes.
        title: What messages call it.
        find: Takes the files below a folder, returns those that are annotations of this format.
        read: Takes these files, the annotation files, the table to fill and the options.
        rank: Where a folder holds several formats, that of the lowest rank is read.
    """

    name: str
    title: str
    find: Callable[[FileList], list[Path]]
    read: Callable[[FileList, Sequence[Path], AnnotationTable, ReadOptions], None]
    rank: int


#: The formats by name.
FORMATS: dict[str, AnnotationFormat] = {}


def annotation_format(
    name: str, title: str, find: Callable[[FileList], list[Path]], *, rank: int
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers the function that reads a format.

    Args:
        name: What ``format=`` takes.
        title: What messages call it.
        find: As :attr:`AnnotationFormat.find`.
        rank: As :attr:`AnnotationFormat.rank`.
    """

    def register(read: Callable[..., None]) -> Callable[..., None]:
        FORMATS[name] = AnnotationFormat(name, title, find, read, rank)
        return read

    return register


def formats() -> list[AnnotationFormat]:
    """Returns the registered formats by rank."""
    return sorted(FORMATS.values(), key=lambda kind: kind.rank)


class AnnotationTable:
    """Collects images and boxes as a format states them. Boxes are in one table, so that ten million of them fit."""

    def __init__(self) -> None:
        self.images: list[StatedImage] = []
        self.classes: list[str] = []
        self.skipped: list[SkippedBox] = []
        self.skipped_counts: dict[str, int] = {}
        self.notes: list[str] = []
        self.stated_order = False  # whether a file lists the classes in an order of its own
        self._numbers: dict[str, int] = {}
        self._by_path: dict[Path, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._small: list[tuple[int, tuple[float, ...], int, bool, int]] = []
        self.stated_labels: dict[int, str] = {}

    def add_image(self, image: StatedImage) -> int:
        """Adds an image and returns its number; an image that is known already gets its old one.

        Raises:
            DataError: It is stated with two splits.
        """
        if image.path is not None and image.path in self._by_path:
            number = self._by_path[image.path]
            known = self.images[number]
            if image.split != known.split and image.split and known.split:
                raise DataError(
                    f"an image must belong to one split. Received: {str(image.path)!r} in {known.split!r} "
                    f"({known.source.name}) and {image.split!r} ({image.source.name})."
                )
            sizes = {(each.width, each.height) for each in (known, image) if each.width and each.height}
            width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
            problem = known.problem
            if sizes:  # there were two
                problem = "stated with two sizes"
            self.images[number] = dataclasses.replace(
                known,
                split=known.split or image.split,
                group=known.group or image.group,
                width=width,
                height=height,
                problem=problem,
            )
            return number
        self.images.append(image)
        if image.path is not None:
            self._by_path[image.path] = len(self.images) - 1
        return len(self.images) - 1

    def class_number(self, name: Any) -> int:
        """Returns the number of a class, which is added where it is new; -1 for an empty name."""
        text = " ".join(str(name).split())
        if not text:
            return -1
        if text not in self._numbers:
            self._numbers[text] = len(self.classes)
            self.classes.append(text)
        return self._numbers[text]

    def unknown_class(self, name: Any) -> int:
        """Returns a negative number for what is not among the stated classes, so that it can be listed by name."""
        number = -2 - len(self.stated_labels)
        if len(self.stated_labels) < MOST_LISTED:
            self.stated_labels[number] = str(name)[:200]
            return number
        return -1

    def add_box(self, image: int, box: Sequence[float], label: int, *, crowd: bool = False, place: int = -1) -> None:
        """Adds one box: xyxy, as stated; label as :meth:`class_number` returns it."""
        self._small.append((image, (box[0], box[1], box[2], box[3]), label, crowd, place))
        if len(self._small) >= 50_000:
            self._flush()

    def add_boxes(
        self, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, places: np.ndarray
    ) -> None:
        """Adds many boxes; arrays of the same length."""
        self._flush()
        self._parts.append(
            (
                np.asarray(images, np.int64),
                np.asarray(boxes, np.float64).reshape(-1, 4),
                np.asarray(labels, np.int64),
                np.asarray(crowd, bool),
                np.asarray(places, np.int64),
            )
        )

    def skip(self, skipped: SkippedBox) -> None:
        """Notes what cannot be used."""
        self.skipped_counts[skipped.reason] = self.skipped_counts.get(skipped.reason, 0) + 1
        if len(self.skipped) < MOST_LISTED:
            self.skipped.append(skipped)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns images, boxes, labels, crowd flags and places of all boxes, ordered by image."""
        self._flush()
        if not self._parts:
            self.add_boxes(*(np.zeros(0) for _ in range(5)))
        images, boxes, labels, crowd, places = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        self._parts.clear()
        if (np.diff(images) < 0).any():
            order = np.argsort(images, kind="stable")
            return images[order], boxes[order], labels[order], crowd[order], places[order]
        return images, boxes, labels, crowd, places

    def _flush(self) -> None:
        if self._small:
            images, boxes, labels, crowd, places = zip(*self._small, strict=True)
            self._small = []
            self.add_boxes(
                np.array(images), np.array(boxes, np.float64), np.array(labels), np.array(crowd), np.array(places)
            )
