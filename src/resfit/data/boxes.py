"""Finding images with boxes: COCO, Pascal VOC, YOLO, CSV files, DataFrames, and what labelling tools export.

The formats are read by :mod:`resfit.data.annotations`; here it is decided which boxes can be used, and all become
pixels of the image as it is displayed, that is, after the rotation that its EXIF data asks for.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resfit.data import containers, decode, members
from resfit.data.annotations import coco, create_ml, cvat, label_studio, tabular, via, voc, yolo
from resfit.data.annotations.files import FileList
from resfit.data.annotations.table import (
    FORMATS,
    MOST_LISTED,
    AnnotationTable,
    ReadOptions,
    SkippedBox,
    StatedImage,
    formats,
)
from resfit.data.box_geometry import turn_boxes
from resfit.data.dataset import ImageSet
from resfit.data.image_dimensions import ImageDimensions, read_dimensions
from resfit.errors import ArgumentError, DataError, ImageError, closest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REASONS", "BoxSet", "SkippedBox", "SkippedBoxesError", "find_box_formats", "format_title", "scan_boxes"]

_READERS = (coco, voc, cvat, yolo, label_studio, tabular, create_ml, via)  # imported, they are registered

#: Why a box or an image is left out.
REASONS = {
    "image missing": "no image file belongs to the annotation, or several files could",
    "image unreadable": "the image file cannot be opened",
    "size differs": "the annotation states another image size than the file has, with and without EXIF rotation",
    "unreadable annotation": "the annotation file, or one entry of it, does not follow its format",
    "not finite": "a coordinate is missing, no number, or beyond a thousand million",
    "unknown class": "the class is empty, or none of the stated classes",
    "degenerate": "the right edge is not right of the left one, or the bottom edge not below the top, by 0.1 pixels",
    "outside": "less than half of the box lies in the image",
    "doubled": "another box of the same image has the same class and the same edges, to 0.01 pixels",
    "no usable box": "all boxes of the image were left out, which does not make it an image without objects",
}
# endings of annotation files
_ANNOTATIONS = containers.TABLES | {".json", ".xml", ".yaml", ".yml", ".names", ".data"}
#: Largest share of boxes, and of images, that may be left out.
MAX_SKIPPED = 0.1
#: Shortest side of a box in pixels.
MIN_SIDE = 0.1
#: Smallest share of a box's area that must lie in the image.
MIN_VISIBLE = 0.5
_LARGEST = 1e9
_ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "ann", "labels"})


class SkippedBoxesError(DataError):
    """Too many boxes or images cannot be used.

    Attributes:
        skipped: All of them, up to the first 100,000.
    """

    def __init__(self, text: str, skipped: Sequence[SkippedBox]):
        super().__init__(text)
        self.skipped = tuple(skipped)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxSet:
    """Image files with the boxes in them. Nothing but the images' headers has been read.

    Attributes:
        root: The folder that was searched.
        paths: The images, sorted; ``n`` of them.
        splits: For each image ``"train"``, ``"val"``, ``"test"``, or None where the data does not say.
        groups: For each image the group that must stay together (a patient, a scene), or None.
        sizes: int32 array ``(n, 2)``: height and width of each image in pixels, as displayed.
        offsets: int64 array ``(n + 1,)``: the boxes of image ``i`` are those from ``offsets[i]`` to ``offsets[i + 1]``.
        boxes: float32 array ``(m, 4)``: left, top, right and bottom edge in pixels of the image as displayed,
            ``0 <= x1 < x2 <= width`` and ``0 <= y1 < y2 <= height``.
        labels: int64 array ``(m,)``: index into ``classes``.
        crowd: bool array ``(m,)``: regions to ignore, in which there may be many objects.
        classes: Names of the classes: in the order of the file that lists them (COCO, YOLO, CVAT), otherwise sorted.
        format: Name of the format that was read.
        skipped: What was left out; at most 100,000 rows.
        skipped_counts: By reason how many rows, the ones beyond 100,000 included.
        warnings: What was assumed or looks odd; the argument that changes it is named.
        fingerprint: SHA-256 over names, sizes, boxes, classes, splits and groups, in hexadecimal digits.
    """

    root: Path
    paths: tuple[Path, ...]
    splits: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    classes: tuple[str, ...]
    format: str = ""
    skipped: tuple[SkippedBox, ...] = ()
    skipped_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def owners(self) -> np.ndarray:
        """int64 array ``(m,)``: the image of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def boxes_of(self, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes ``(k, 4)``, labels ``(k,)`` and crowd flags ``(k,)`` of one image.

        Args:
            image: Its position in ``paths``.
        """
        some = slice(int(self.offsets[image]), int(self.offsets[image + 1]))
        return self.boxes[some], self.labels[some], self.crowd[some]

    def counts(self) -> dict[str, int]:
        """Number of boxes of each class; crowds are not counted."""
        found = np.bincount(self.labels[~self.crowd], minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))

    def subset(self, indices: Sequence[int] | np.ndarray) -> BoxSet:
        """Returns some of the images with their boxes, and the same classes.

        Args:
            indices: Positions in ``paths``.
        """
        chosen = np.asarray(indices, np.int64).reshape(-1)
        numbers = np.diff(self.offsets)[chosen]
        ends = np.cumsum(numbers)
        rows = np.arange(int(numbers.sum())) + np.repeat(self.offsets[chosen] - (ends - numbers), numbers)
        fingerprint = self.fingerprint
        if chosen.tolist() != list(range(len(self))):
            fingerprint = hashlib.sha256(f"{self.fingerprint}{chosen.tolist()}".encode()).hexdigest()
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            splits=tuple(self.splits[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            sizes=self.sizes[chosen],
            offsets=np.append(0, ends),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            skipped=(),
            skipped_counts={},
            fingerprint=fingerprint,
        )

    def image_set(self) -> ImageSet:
        """Returns the images with one label each, for what works on images: splits, duplicates and leaks.

        The label of an image is the rarest class among its boxes; images without boxes have a class of their own, so
        that a split by class spreads rare classes and negatives.
        """
        counts = np.bincount(self.labels, minlength=len(self.classes))
        rarity = np.empty(len(self.classes) + 1, np.int64)
        rarity[np.argsort(counts, kind="stable")] = np.arange(len(self.classes)) if len(self.classes) else []
        labels = np.full(len(self), len(self.classes))
        for image in np.flatnonzero(np.diff(self.offsets)).tolist():
            own = self.boxes_of(image)[1]
            labels[image] = own[rarity[own].argmin()]
        return ImageSet(
            root=self.root,
            paths=self.paths,
            labels=labels.astype(np.int64),
            classes=(*self.classes, "(no boxes)"),
            splits=self.splits,
            groups=self.groups,
            fingerprint=self.fingerprint,
        )

    def skipped_csv(self) -> str:
        """Returns what was left out as a CSV file, one box or image a row."""
        return skipped_table(self.skipped, self.skipped_counts)


def find_box_formats(source: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the formats whose annotations a folder or file holds; empty where there are no boxes.

    Args:
        source: A folder or file. Files are told by how they begin and end; none is read as a whole.

    Raises:
        DataError: The folder cannot be read.
    """
    path = Path(source)
    if not path.exists():
        return []
    try:
        with _as_files(path) as (place, _):
            files = _files(place, None)
            return [kind.name for kind in formats() if kind.find(files)]
    except DataError:
        if path.is_dir():
            raise
        return []  # a damaged archive


def format_title(name: str) -> str:
    """Returns what people call a format.

    Args:
        name: As :func:`find_box_formats` returns it.
    """
    return FORMATS[name].title


def scan_boxes(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    format: str = "auto",
    images: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    orientation: Literal["auto", "displayed", "stored"] = "auto",
    first_pixel: int | None = None,
    difficult: Literal["ignore", "box"] = "ignore",
    coordinates: Literal["auto", "pixels", "fractions"] = "auto",
    unlisted: Literal["auto", "negative", "skip"] = "auto",
    columns: Mapping[str, str] | None = None,
    max_skipped: float = MAX_SKIPPED,
) -> BoxSet:
    """Finds images and the boxes in them.

    Args:
        source: A folder as a labelling tool exports it, or a zip or tar file of one; or its annotation file (COCO or
            Label Studio JSON, CVAT XML, ``data.yaml``, CSV); or a pandas DataFrame with the columns of the CSV file.
        format: ``"coco"``, ``"voc"``, ``"cvat"``, ``"yolo"``, ``"label-studio"``, ``"csv"``, ``"create-ml"``,
            ``"labelme"`` or ``"via"``; ``"auto"`` takes the first of these that the folder holds, and warns of others.
        images: Folder in which the images are looked for. Default: the source, or the folder around the file.
        classes: Names of the classes in the order to use, such as those of a detector that is to be measured. Boxes of
            others are left out. Default: all classes, in the order of
            the file that lists them (COCO, YOLO, CVAT), otherwise sorted. Where YOLO's numbers come without
            names, these are taken as the names, in their order.
        orientation: What boxes refer to in images that EXIF data rotates: to the image as ``"displayed"`` or as
            ``"stored"``. ``"auto"`` compares the stated size with the file's; where that does not decide (none is
            stated, the sides are equal, a half turn), boxes are taken as the other images' are, or else as displayed.
        first_pixel: For Pascal VOC: 1 where pixels are counted from 1 and both ends belong to the box, 0 where
            coordinates are edges. Default: 1 for files that name a VOC data set as their database, otherwise 0.
        difficult: What a box marked difficult in Pascal VOC is: a region to ``"ignore"``, as VOC's evaluation does, or
            a ``"box"`` like others.
        coordinates: For tables: ``"pixels"``, or ``"fractions"`` of width and height. ``"auto"`` takes them as
            fractions where all lie between 0 and 1 and are not whole.
        unlisted: What images are that no annotation mentions: ``"negative"``, images without objects, or ``"skip"``,
            not part of the set. ``"auto"`` skips them but for YOLO, whose rule is that they are negatives.
        columns: For tables: names of columns by role: ``path``, ``label``, ``xmin``, ``ymin``, ``xmax``, ``ymax``,
            ``width``, ``height`` (of the image), ``split``, ``group``, ``crowd``.
        max_skipped: Largest share of boxes, and of images, that may be left out, 0..1.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: The source does not exist, holds no boxes that are read, or contradicts itself.
        SkippedBoxesError: More than ``max_skipped`` of the boxes or images cannot be used.

    Example:
        >>> found = scan_boxes("cells/")  # doctest: +SKIP
        >>> found.counts(), len(found), found.skipped_counts  # doctest: +SKIP
        ({'red': 4155, 'white': 372}, 364, {'degenerate': 1})
    """
    options = _options(
        classes=classes,
        first_pixel=first_pixel,
        difficult=difficult,
        coordinates=coordinates,
        unlisted=unlisted,
        columns=columns,
    )
    _one_of("orientation", orientation, ("auto", "displayed", "stored"))
    if not 0 <= max_skipped <= 1:
        raise ArgumentError(f"max_skipped must lie in 0..1. Received: {max_skipped}.")
    if format != "auto":
        _one_of("format", format, tuple(kind.name for kind in formats()))
    table = AnnotationTable()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        with _as_files(path) as (place, held):
            try:
                files, name = _read(place, format, None if images is None else Path(images), table, options)
            except DataError as error:
                if held is None:
                    raise
                text = str(error).replace(str(place), str(path)).replace(place.name, path.name)
                raise DataError(text) from None
            _add_unlisted(files, table, name, options)
            if held is not None:
                table.images[:] = [
                    dataclasses.replace(image, path=image.path and held.real(image.path)) for image in table.images
                ]
                table.notes[:] = [*(note.replace(str(place), str(path)) for note in table.notes), *held.notes]
                if held.skipped:
                    first = held.skipped[0]
                    table.notes.append(
                        f"{len(held.skipped)} files in {path.name} cannot be read, such as {first.path.name} "
                        f"({first.reason})"
                    )
                files.root = path.parent
        return _box_set(files, table, name, options, orientation, max_skipped)
    else:
        files, name = FileList(Path(images) if images is not None else Path.cwd()), "dataframe"
        tabular.read_frame(files, source, Path(files.root, "DataFrame"), table, options)
    _add_unlisted(files, table, name, options)
    return _box_set(files, table, name, options, orientation, max_skipped)


def skipped_table(skipped: Sequence[SkippedBox], counts: Mapping[str, int] | None = None) -> str:
    """Returns a CSV file of what was left out.

    Args:
        skipped: The rows.
        counts: By reason how many there were; where the rows are fewer, a last row says so.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "reason", "detail", "annotation", "place", "class", "x1", "y1", "x2", "y2"])
    for item in skipped:
        place = "" if item.place < 0 else item.place
        box = [""] * 4 if item.box is None else [f"{value:.6g}" for value in item.box]
        names = [_cell(value) for value in (item.image, item.reason, item.detail, item.source)]
        writer.writerow([*names, place, _cell(item.label), *box])
    rest = sum((counts or {}).values()) - len(skipped)
    if rest > 0:
        writer.writerow(["", "", f"{rest} more that are counted but not listed"])
    return text.getvalue()


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula, on one line."""
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def _options(**given: Any) -> ReadOptions:
    """The options of the readers, checked."""
    _one_of("difficult", given["difficult"], ("ignore", "box"))
    _one_of("coordinates", given["coordinates"], ("auto", "pixels", "fractions"))
    _one_of("unlisted", given["unlisted"], ("auto", "negative", "skip"))
    if given["first_pixel"] not in (None, 0, 1):
        raise ArgumentError(f"first_pixel must be 0, 1 or None. Received: {given['first_pixel']!r}.")
    names = given["classes"]
    if names is not None:
        if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
            raise ArgumentError(f"classes must be a list of names. Received: {names!r}.")
        names = tuple(" ".join(name.split()) for name in names)
        if len(set(names)) < len(names):
            double = next(name for name, count in Counter(names).items() if count > 1)
            raise ArgumentError(f"classes must differ. Received: {double!r} more than once.")
    columns = dict(given["columns"] or {})
    for role in columns:
        _one_of("a key of columns", role, tuple(tabular.COLUMNS))
    return ReadOptions(**{**given, "classes": names, "columns": columns})


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ArgumentError(
            f"{name} must be one of {', '.join(map(repr, known))}. Received: {value!r}.{closest(str(value), known)}"
        )


@contextlib.contextmanager
def _as_files(source: Path) -> Iterator[tuple[Path, containers.OpenedSource | None]]:
    """A source as a folder or file; an archive as a temporary folder with its names and whole annotation files."""
    if not source.is_file():
        yield source, None
        return
    with containers.unfolded(source, _ANNOTATIONS) as held:
        yield source if held is None or held.folder is None else held.folder, held


def _files(source: Path, images: Path | None) -> FileList:
    """The files of a source, which may be an annotation file."""
    if source.is_dir():
        return FileList(source) if images is None else _with_images(source, images)
    root = images
    if root is None:
        root = source.parent.parent if source.parent.name.lower() in _ANNOTATION_FOLDERS else source.parent
    return FileList(root, only=source)


def _with_images(source: Path, images: Path) -> FileList:
    """The annotation files of one folder with the images of another."""
    files = FileList(images)
    if not source.resolve().is_relative_to(images.resolve()):
        files.others, files.annotations = FileList(source).others, source
    return files


def _read(
    source: Path, format: str, images: Path | None, table: AnnotationTable, options: ReadOptions
) -> tuple[FileList, str]:
    """Reads a folder or file into a table; returns its files and the name of the format."""
    if not source.exists():
        raise DataError(
            f"source must be a folder or a file with boxes. Received: {str(source)!r}, which does not exist."
        )
    files = _files(source, images)
    found = {kind.name: kind.find(files) for kind in formats()}
    found = {name: paths for name, paths in found.items() if paths}
    if format == "auto" and not found:
        raise DataError(
            f"source must hold boxes: {', '.join(kind.title for kind in formats())}. Received: {str(source)!r} with "
            f"{len(files.images)} images and {len(files.others)} other files, none of which is such an annotation."
            + (tabular.columns_hint(source) if source.suffix.lower() in (".csv", ".tsv") else "")
        )
    name = next(iter(found)) if format == "auto" else format
    if name not in found:
        known = f" It holds {', '.join(FORMATS[each].title for each in found)}." if found else ""
        raise DataError(f"source must hold {FORMATS[name].title}. Received: none in {str(source)!r}.{known}")
    others = [each for each in found if each != name]
    if others and format == "auto":
        shown = ", ".join(f"{FORMATS[each].title} ({found[each][0].name})" for each in others)
        table.notes.append(
            f"{FORMATS[name].title} is read; the folder also holds {shown} (format={others[0]!r} reads that instead)"
        )
    FORMATS[name].read(files, found[name], table, options)
    if not table.images and not table.skipped_counts:
        raise DataError(f"source must hold images with boxes. Received: none in {str(source)!r}.")
    return files, name


def _add_unlisted(files: FileList, table: AnnotationTable, name: str, options: ReadOptions) -> None:
    """Adds, or counts, the images that no annotation mentions."""
    known = {image.path for image in table.images}
    rest = [path for path in files.images if path not in known]
    if not rest:
        return
    if options.unlisted == "negative":
        for path in rest:
            table.add_image(StatedImage(path.name, path, path, split=files.split_of(path, path.parent)))
        table.notes.append(f"{len(rest)} images that no annotation mentions are taken as images without objects")
    else:
        table.notes.append(
            f"{len(rest)} images that no annotation mentions are left out, such as "
            f"{files.relative(rest[0]).as_posix()} (unlisted='negative' takes them as images without objects)"
        )


def _box_set(
    files: FileList, table: AnnotationTable, name: str, options: ReadOptions, orientation: str, max_skipped: float
) -> BoxSet:
    """Checks images and boxes, and makes the set of what can be used."""
    images, stated, labels, crowd, places = table.arrays()
    total_boxes, total_images = len(stated), len(table.images)
    headers = _headers(table)
    stored_frame, problems = _frames(table, headers, orientation)
    pixels = _displayed(table, headers, stored_frame, images, stated)
    classes, labels = _classes(table, options, labels)
    sizes = np.array(
        [(0, 0) if not isinstance(header, ImageDimensions) else (header.height, header.width) for header in headers],
        np.int64,
    ).reshape(-1, 2)
    reason = np.full(len(stated), "", dtype=object)
    bad_images = np.array([bool(problem) for problem in problems], bool)
    bad = bad_images[images]
    reason[bad] = np.array([problem[0] if problem else "" for problem in problems], dtype=object)[images[bad]]
    clipped, found = _unusable(pixels, sizes[images], labels, images, crowd, ~bad)
    for code, text in enumerate(("not finite", "unknown class", "degenerate", "outside", "doubled"), 1):
        reason[found == code] = text
    wrong = reason != ""
    _list_skipped(table, problems, images, stated, labels, places, reason, classes)
    emptied = _emptied(images, reason, bad_images, total_images, options)
    for image in np.flatnonzero(emptied):
        stated_image = table.images[image]
        table.skip(SkippedBox(stated_image.name, "no usable box", "", stated_image.source.name))
    unreadable = sum(item.place < 0 and item.reason == "unreadable annotation" for item in table.skipped)
    lost_rows = table.skipped_counts.get("unreadable annotation", 0) + int(wrong.sum())
    _check_share(
        table,
        (lost_rows, total_boxes + table.skipped_counts.get("unreadable annotation", 0)),
        (int(bad_images.sum()) + int(emptied.sum()) + unreadable, total_images + unreadable),
        max_skipped,
    )
    kept_images = np.flatnonzero(~bad_images & ~emptied)
    if not len(kept_images):
        raise SkippedBoxesError(
            f"source must hold images that can be used. Received: none.{_counted(table)}", table.skipped
        )
    order = sorted(kept_images.tolist(), key=lambda image: str(members.unfolded(table.images[image].path or "")))
    position = np.full(total_images, -1)
    position[order] = np.arange(len(order))
    rows = np.flatnonzero(~wrong & (position[images] >= 0))
    rows = rows[np.argsort(position[images[rows]], kind="stable")]
    offsets = np.append(0, np.cumsum(np.bincount(position[images[rows]], minlength=len(order))))
    kept = [table.images[image] for image in order]
    _note(table, classes, labels[rows], clipped[rows])
    result = BoxSet(
        root=files.root,
        paths=tuple(image.path for image in kept if image.path is not None),
        splits=tuple(image.split for image in kept),
        groups=tuple(image.group for image in kept),
        sizes=sizes[order].astype(np.int32),
        offsets=offsets.astype(np.int64),
        boxes=pixels[rows].astype(np.float32),
        labels=labels[rows],
        crowd=crowd[rows],
        classes=classes,
        format=name,
        skipped=tuple(table.skipped),
        skipped_counts=dict(sorted(table.skipped_counts.items())),
        warnings=tuple(dict.fromkeys(table.notes)),  # files of several parts say the same
    )
    return dataclasses.replace(result, fingerprint=_fingerprint(result))


def _headers(table: AnnotationTable) -> list[ImageDimensions | str]:
    """The header of each image, or why there is none."""

    def look(image: StatedImage) -> ImageDimensions | str:
        if image.path is None:
            return image.problem
        try:
            return read_dimensions(image.path)
        except ImageError as error:
            return str(error)

    return list(decode.in_order(look, table.images, ahead=256))


def _frames(
    table: AnnotationTable, headers: Sequence[ImageDimensions | str], orientation: str
) -> tuple[np.ndarray, list[tuple[str, str] | None]]:
    """For each image whether its boxes refer to the image as stored, and what is wrong with it: reason and detail."""
    stored = np.zeros(len(headers), bool)
    problems: list[tuple[str, str] | None] = [None] * len(headers)
    open_cases, decided = [], set()
    for row, (image, header) in enumerate(zip(table.images, headers, strict=True)):
        if image.path is None:
            problems[row] = ("image missing", image.problem)
            continue
        if isinstance(header, str):
            problems[row] = ("image unreadable", header)
            continue
        if image.problem:
            problems[row] = ("size differs", image.problem)
            continue
        size = (image.height, image.width)
        shown, plain = (header.height, header.width), (header.stored_height, header.stored_width)
        choices = {"displayed": shown, "stored": plain}
        if orientation != "auto":
            choices = {orientation: choices[orientation]}
        fits = [frame for frame, known in choices.items() if not all(size) or size == known]
        if not fits:
            turned = f", {plain[1]}x{plain[0]} as stored" if plain != shown else ""
            detail = f"stated {size[1]}x{size[0]}, the file has {shown[1]}x{shown[0]}{turned}"
            problems[row] = ("size differs", detail)
        elif header.orientation != 1 and len(fits) > 1:
            open_cases.append(row)
        else:
            stored[row] = fits[0] == "stored"
            if header.orientation != 1:
                decided.add(fits[0])
    if stored.any() and orientation == "auto":
        table.notes.append(
            f"{int(stored.sum())} images were annotated before EXIF data rotated them, as their stated sizes show; "
            "their boxes are turned with them (orientation='displayed' does not)"
        )
    if open_cases:
        frame = decided.pop() if len(decided) == 1 else "displayed"
        stored[open_cases] = frame == "stored"
        other = "displayed" if frame == "stored" else "stored"
        table.notes.append(
            f"{len(open_cases)} images are rotated by EXIF data, and nothing says whether they were annotated before "
            f"or after; boxes are taken as on the image as {frame} (orientation={other!r} takes the other)"
        )
    return stored, problems


def _displayed(
    table: AnnotationTable,
    headers: Sequence[ImageDimensions | str],
    stored: np.ndarray,
    images: np.ndarray,
    boxes: np.ndarray,
) -> np.ndarray:
    """Boxes in pixels of the images as displayed, float64."""
    pixels = boxes.copy()
    fractions = np.array([image.fractions for image in table.images], bool)
    if fractions.any():
        factors = np.ones((len(table.images), 2))
        for row in np.flatnonzero(fractions).tolist():
            header = headers[row]
            if isinstance(header, ImageDimensions):
                sides = (header.stored_width, header.stored_height) if stored[row] else (header.width, header.height)
                factors[row] = sides
        with np.errstate(over="ignore", invalid="ignore"):
            pixels *= factors[images][:, [0, 1, 0, 1]]
    starts = np.searchsorted(images, np.arange(len(table.images) + 1))
    for row in np.flatnonzero(stored).tolist():
        header = headers[row]
        if isinstance(header, ImageDimensions) and header.orientation != 1:
            some = slice(starts[row], starts[row + 1])
            pixels[some] = turn_boxes(pixels[some], header.orientation, (header.stored_height, header.stored_width))
    return pixels


def _classes(table: AnnotationTable, options: ReadOptions, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes and the labels as numbers in them; negative for unknown ones."""
    for name in table.classes:
        bad = next((mark for mark in name if unicodedata.category(mark) in ("Cc", "Cs", "Cf")), None)
        if bad is not None:
            raise DataError(f"names of classes must be plain text. Received: {name!r} with the character {bad!r}.")
    if options.classes is None:
        names = tuple(table.classes if table.stated_order else sorted(table.classes))
        known: dict[str, str] = {}
        for name in table.classes:
            plain = unicodedata.normalize("NFKC", name).casefold()
            if known.setdefault(plain, name) != name:
                raise DataError(
                    f"classes must differ by more than case. Received: {known[plain]!r} and {name!r}. Rename one."
                )
    else:
        names = options.classes
    numbers = {name: number for number, name in enumerate(names)}
    # a class that is not wanted keeps its name in the list of skipped boxes
    change = [numbers[name] if name in numbers else table.unknown_class(name) for name in table.classes]
    lookup = np.array([*change, 0], np.int64)
    return names, np.where(labels >= 0, lookup[np.clip(labels, 0, len(lookup) - 1)], labels)


def _unusable(
    boxes: np.ndarray, sizes: np.ndarray, labels: np.ndarray, images: np.ndarray, crowd: np.ndarray, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes in place; returns which were, by more than a pixel, and a number of the reason for bad ones.

    Args:
        boxes: float64 ``(m, 4)``, in pixels as displayed.
        sizes: ``(m, 2)``: height and width of the image of each.
        labels: ``(m,)``: negative for unknown classes.
        images: ``(m,)``: the image of each, ascending.
        crowd: ``(m,)``.
        usable: ``(m,)``: those whose image can be used; others are not looked at.
    """
    found = np.zeros(len(boxes), np.int8)
    finite = np.isfinite(boxes).all(axis=1) & (np.abs(np.where(np.isfinite(boxes), boxes, 0)) <= _LARGEST).all(axis=1)
    found[~finite] = 1
    found[finite & (labels < 0)] = 2
    good = np.flatnonzero(usable & (found == 0))
    stated = boxes[good]
    limits = sizes[good][:, [1, 0, 1, 0]]
    inside = np.clip(stated, 0, limits)
    sides, kept = stated[:, 2:] - stated[:, :2], inside[:, 2:] - inside[:, :2]
    thin = (sides < MIN_SIDE).any(axis=1)
    outside = ~thin & (kept.prod(axis=1) < MIN_VISIBLE * sides.prod(axis=1))
    found[good[thin]] = 3
    found[good[outside | (~thin & (kept < MIN_SIDE).any(axis=1))]] = 4
    clipped = np.zeros(len(boxes), bool)
    clipped[good] = (np.abs(stated - inside) > 1.0).any(axis=1)
    boxes[good] = inside
    good = good[found[good] == 0]
    found[good[_repeated(boxes[good], labels[good], images[good], crowd[good])]] = 5
    found[~usable] = 0
    return clipped, found


def _repeated(boxes: np.ndarray, labels: np.ndarray, images: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Positions of boxes that repeat an earlier one of their image."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    table = np.column_stack([images, labels, crowd, np.round(boxes * 100).astype(np.int64)]).astype(np.int64)
    mixed = np.zeros(len(table), np.uint64)
    for column in table.T.astype(np.uint64):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    same = (table[order[1:]] == table[order[:-1]]).all(axis=1)
    return order[1:][same]


def _emptied(
    images: np.ndarray, reason: np.ndarray, bad_images: np.ndarray, total: int, options: ReadOptions
) -> np.ndarray:
    """Images of which every box was left out although there is something: no negatives.

    Where the user names the classes, an image with other ones alone is a negative.
    """
    harmless = ("doubled", "unknown class") if options.classes is not None else ("doubled",)
    kept = np.bincount(images[reason == ""], minlength=total)
    lost = np.bincount(images[(reason != "") & ~np.isin(reason, harmless)], minlength=total)
    return (kept == 0) & (lost > 0) & ~bad_images


def _list_skipped(
    table: AnnotationTable,
    problems: Sequence[tuple[str, str] | None],
    images: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    places: np.ndarray,
    reason: np.ndarray,
    names: Sequence[str],
) -> None:
    """Adds rows for boxes that were left out, and for images without boxes that were."""
    rows = np.flatnonzero(reason != "")
    listed = max(0, MOST_LISTED - len(table.skipped))
    table.skipped_counts = dict(Counter(table.skipped_counts) + Counter(reason[rows[listed:]].tolist()))
    for row in rows[:listed].tolist():
        image = table.images[images[row]]
        problem = problems[images[row]]
        label = int(labels[row])
        table.skip(
            SkippedBox(
                image=image.name if image.path is None else str(image.path),
                reason=str(reason[row]),
                detail=problem[1] if problem else "",
                source=image.source.name,
                place=int(places[row]),
                label=names[label] if label >= 0 else table.stated_labels.get(label, ""),
                box=tuple(boxes[row].tolist()),
            )
        )
    with_boxes = np.bincount(images, minlength=len(table.images)) > 0
    for number, problem in enumerate(problems):
        if problem and not with_boxes[number]:
            image = table.images[number]
            shown = image.name if image.path is None else str(image.path)
            table.skip(SkippedBox(shown, problem[0], problem[1], image.source.name))


def _check_share(table: AnnotationTable, boxes: tuple[int, int], images: tuple[int, int], max_skipped: float) -> None:
    """Stops where too much cannot be used."""
    for (lost, total), what in ((boxes, "boxes"), (images, "images")):
        if lost and lost > max_skipped * total:
            raise SkippedBoxesError(
                f"at most {max_skipped:.0%} of the {what} may be unusable (max_skipped). Received: {lost} of {total}."
                f"{_counted(table)}",
                table.skipped,
            )


def _counted(table: AnnotationTable) -> str:
    """What was left out, by reason, with an example."""
    parts = []
    for reason, count in sorted(table.skipped_counts.items(), key=lambda item: -item[1]):
        first = next((item for item in table.skipped if item.reason == reason), None)
        shown = ""
        if first is not None:
            where = ", ".join(text for text in (Path(first.image).name, first.detail or first.label) if text)
            shown = f" (such as {where})" if where else ""
        parts.append(f"{reason}: {count}{shown}")
    return f" {'; '.join(parts)}." if parts else ""


def _note(table: AnnotationTable, classes: Sequence[str], labels: np.ndarray, clipped: np.ndarray) -> None:
    """Adds what looks odd in the boxes that are used."""
    if clipped.any():
        table.notes.append(f"{int(clipped.sum())} boxes reach over the edge of their image and are cut off there")
    empty = [
        name for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if not count
    ]
    if empty:
        shown = ", ".join(map(repr, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        table.notes.append(f"classes without boxes: {shown}")
    if not len(labels):
        table.notes.append("no image has a box")


def _fingerprint(found: BoxSet) -> str:
    """SHA-256 over all that the set says."""
    digest = hashlib.sha256()
    for row, path in enumerate(found.paths):
        try:
            size = members.size(path)
        except OSError:
            size = -1
        fields = (os.path.relpath(path, found.root), str(size), found.splits[row] or "", found.groups[row] or "")
        digest.update(("\0".join(fields) + "\n").encode("utf-8", "surrogateescape"))
    for array in (found.sizes, found.offsets, found.boxes, found.labels, found.crowd):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\0".join(found.classes).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
