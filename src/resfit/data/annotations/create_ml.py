"""CreateML: a JSON list of images (LabelImg, Roboflow); labelme: a JSON file an image. Both are lists of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resfit.data.annotations.files import FileList, UnreadableError, head_and_tail, number, read_json, whole
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError


def find(files: FileList) -> list[Path]:
    """Returns the JSON files that begin as CreateML's do."""
    found = []
    for path in files.with_suffix(".json"):
        text = head_and_tail(path)
        begins = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        if begins and all(key in text for key in (b'"image"', b'"coordinates"', b'"annotations"')):
            found.append(path)
    return found


def find_labelme(files: FileList) -> list[Path]:
    """Returns the JSON files that begin or end as labelme's do."""
    return [
        path
        for path in files.with_suffix(".json")
        if all(key in head_and_tail(path) for key in (b'"shapes"', b'"imagePath"'))
    ]


@annotation_format("create-ml", "CreateML JSON", find, rank=6)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads CreateML's JSON: boxes by their centres, in pixels."""
    for source in sources:
        try:
            items = read_json(source)
        except UnreadableError as error:
            raise DataError(f"{source.name} must be CreateML's JSON. Received: {error}.") from error
        if not isinstance(items, list):
            raise DataError(f"{source.name} must be a list of images. Received: {type(items).__name__}.")
        for place, item in enumerate(items, 1):
            try:
                name, shapes = str(item["image"]), list(item["annotations"])
                boxes = [_centred(shape["coordinates"]) for shape in shapes]
                labels = [str(shape["label"]) for shape in shapes]
            except (AttributeError, KeyError, TypeError) as error:
                detail = f"image {place}: {type(error).__name__}: {error}"[:200]
                table.skip(SkippedBox("", "unreadable annotation", detail, source.name, place))
                continue
            path, problem = files.find(name, source.parent)
            split = files.split_of(path, source)
            image = table.add_image(StatedImage(name, path, source, split, problem=problem))
            for row, (box, label) in enumerate(zip(boxes, labels, strict=True), 1):
                table.add_box(image, box, table.class_number(label), place=row)


@annotation_format("labelme", "labelme JSON", find_labelme, rank=7)
def read_labelme(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads labelme's JSON: rectangles, and polygons by the boxes around them."""
    polygons = others = 0
    for source in sources:
        try:
            item = read_json(source)
            name, shapes = str(item["imagePath"]), list(item["shapes"])
            kinds = [str(shape.get("shape_type") or "polygon") for shape in shapes]
            points = [[(number(x), number(y)) for x, y in shape["points"]] for shape in shapes]
            labels = [str(shape["label"]) for shape in shapes]
        except (UnreadableError, AttributeError, KeyError, TypeError, ValueError) as error:
            detail = str(error) if isinstance(error, UnreadableError) else f"{type(error).__name__}: {error}"
            table.skip(SkippedBox(source.name, "unreadable annotation", detail[:200], str(source)))
            continue
        path, problem = files.find(name, source.parent)
        if path is None:
            path, why = files.counterpart(source)
            problem = "" if path is not None else (problem if why == "no such file" else why)
        width, height = whole(item.get("imageWidth")), whole(item.get("imageHeight"))
        split = files.split_of(path, source)
        image = table.add_image(StatedImage(name, path, source, split, None, width, height, problem=problem))
        for place, (kind, corners, label) in enumerate(zip(kinds, points, labels, strict=True), 1):
            if kind not in ("rectangle", "polygon") or len(corners) < 2:
                others += 1
                continue
            polygons += kind == "polygon"
            xs, ys = [x for x, _ in corners], [y for _, y in corners]
            box = (min(xs), min(ys), max(xs), max(ys))
            if any(value != value for value in (*xs, *ys)):
                box = (float("nan"),) * 4
            table.add_box(image, box, table.class_number(label), place=place)
    if polygons:
        table.notes.append(f"{polygons} polygons are taken by the boxes around them")
    if others:
        table.notes.append(f"{others} shapes that are neither rectangles nor polygons are left out")


def _centred(stated: dict[str, Any]) -> tuple[float, float, float, float]:
    """The edges of a box that is stated by centre and size."""
    x, y, width, height = (number(stated[key]) for key in ("x", "y", "width", "height"))
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
