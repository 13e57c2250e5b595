"""CVAT for images 1.1: one XML file for all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from resfit.data.annotations.files import (
    MOST_BYTES_ALL,
    Element,
    FileList,
    UnreadableError,
    head_and_tail,
    number,
    read_xml,
    split_of,
    whole,
)
from resfit.data.annotations.table import AnnotationTable, ReadOptions, StatedImage, annotation_format
from resfit.errors import DataError


def find(files: FileList) -> list[Path]:
    """Returns the XML files that begin as CVAT's do."""
    return [path for path in files.with_suffix(".xml") if b"<annotations>" in head_and_tail(path, 4096)]


@annotation_format("cvat", "CVAT for images", find, rank=2)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads CVAT's own XML: boxes, and polygons by the boxes around them."""
    others: dict[str, int] = {}
    for source in sources:

        def take(element: Element, depth: int, source: Path = source) -> bool:
            if depth == 1 and element.name == "track":
                raise DataError(
                    f"annotations must be of images. Received: tracks of a video in {source.name}. "
                    "Export the task as 'CVAT for images'."
                )
            if element.name == "label" and depth >= 3 and element.text("name"):
                table.class_number(element.text("name"))  # in the order of the task
                table.stated_order = True
            if depth == 1 and element.name == "image":
                _image(files, source, table, element, others)
            return depth == 1

        try:
            read_xml(source, MOST_BYTES_ALL, take)
        except UnreadableError as error:
            raise DataError(f"{source.name} must be CVAT's XML. Received: {error}.") from error
    for kind, count in others.items():
        table.notes.append(f"{count} {kind}")


def _image(files: FileList, source: Path, table: AnnotationTable, element: Element, others: dict[str, int]) -> None:
    """Adds one image with its boxes."""
    name = element.attributes.get("name", "")
    split = split_of(element.attributes.get("subset", ""))
    path, problem = files.find(name, source.parent, split=split)
    image = table.add_image(
        StatedImage(
            name=name,
            path=path,
            source=source,
            split=split or files.split_of(path, source),
            width=whole(element.attributes.get("width")),
            height=whole(element.attributes.get("height")),
            problem=problem,
        )
    )
    for place, shape in enumerate(element.children, 1):
        values = shape.attributes
        if shape.name == "box":
            x1, y1, x2, y2 = (number(values.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
            turn = number(values.get("rotation", 0))
            if turn:
                x1, y1, x2, y2 = around_turned(x1, y1, x2, y2, turn)
                others["turned boxes are taken by the upright boxes around them"] = (
                    others.get("turned boxes are taken by the upright boxes around them", 0) + 1
                )
        elif shape.name in ("polygon", "mask") and values.get("points"):
            points = [pair.split(",") for pair in values["points"].split(";")]
            xs, ys = [number(pair[0]) for pair in points], [number(pair[-1]) for pair in points]
            x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
            others["polygons are taken by the boxes around them"] = (
                others.get("polygons are taken by the boxes around them", 0) + 1
            )
        elif shape.name in ("tag", "attribute"):
            continue
        else:
            key = f"shapes of the kind {shape.name[:40]!r} are left out"
            others[key] = others.get(key, 0) + 1
            continue
        table.add_box(image, (x1, y1, x2, y2), table.class_number(values.get("label", "")), place=place)


def around_turned(x1: float, y1: float, x2: float, y2: float, degrees: float) -> tuple[float, float, float, float]:
    """Returns the upright box around one that is turned about its centre.

    Args:
        x1: Left edge before it is turned; likewise ``y1``, ``x2``, ``y2``.
        y1: Top edge.
        x2: Right edge.
        y2: Bottom edge.
        degrees: By how much it is turned.
    """
    if not math.isfinite(degrees):
        return (math.nan,) * 4
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = (x2 - x1) * cos + (y2 - y1) * sin, (x2 - x1) * sin + (y2 - y1) * cos
    across, down = (x1 + x2) / 2, (y1 + y2) / 2
    return across - width / 2, down - height / 2, across + width / 2, down + height / 2
