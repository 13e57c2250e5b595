"""VGG Image Annotator (VIA): its project and annotation files in JSON, and its CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.annotations.files import FileList, UnreadableError, head_and_tail, number, read_json, read_text
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError

#: What a region is called where nobody has named it.
_NAMELESS = "object"
_USUAL = ("class", "label", "name", "type", "category", "object")
_Region = tuple[str, int, Any, Any]  # image, number, shape, attributes


def find(files: FileList) -> list[Path]:
    """Returns the JSON and CSV files whose beginning or end has VIA's fields."""
    tables = [path for path in files.with_suffix(".csv") if b"region_shape_attributes" in head_and_tail(path, 4096)]
    return tables or [
        path
        for path in files.with_suffix(".json")
        if all(key in head_and_tail(path) for key in (b'"filename"', b'"regions"'))
    ]


@annotation_format("via", "VGG Image Annotator", find, rank=8)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads VIA's regions: rectangles, and other shapes by the boxes around them."""
    for source in sources:
        regions = list(_of_table(source) if source.suffix.lower() == ".csv" else _of_json(source, table))
        attribute = _attribute(source, regions, options, table)
        outlines = nameless = 0
        images: dict[str, int] = {}
        for name, place, shape, attributes in regions:
            if name not in images:
                path, problem = files.find(name, source.parent)
                split = files.split_of(path, source)
                images[name] = table.add_image(StatedImage(name, path, source, split, problem=problem))
            if shape is None:
                continue
            try:
                kind, box = _around(shape)
            except (KeyError, TypeError, ValueError) as error:
                detail = f"region {place}: {type(error).__name__}: {error}"[:200]
                table.skip(SkippedBox(name, "unreadable annotation", detail, source.name, place))
                continue
            outlines += kind != "rect"
            label = _label(attributes.get(attribute)) if isinstance(attributes, Mapping) else ""
            nameless += not label
            table.add_box(images[name], box, table.class_number(label or _NAMELESS), place=place)
        if outlines:
            table.notes.append(f"{outlines} outlines are taken by the boxes around them")
        if nameless:
            table.notes.append(f"{nameless} regions of {source.name} have no class and are taken as {_NAMELESS!r}")


def _of_table(source: Path) -> Iterator[_Region]:
    """The regions of a CSV file; an image without one comes once, without a shape."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(source))))
    except (UnreadableError, csv.Error) as error:
        raise DataError(f"{source.name} must be VIA's CSV. Received: {error}.") from error
    for place, row in enumerate(rows, 2):
        name = str(row.get("filename") or row.get("#filename") or "")
        shape = _parsed(row.get("region_shape_attributes"))
        if name:
            yield name, place, shape or None, _parsed(row.get("region_attributes"))


def _of_json(source: Path, table: AnnotationTable) -> Iterator[_Region]:
    """The regions of a project or of exported annotations."""
    try:
        content = read_json(source)
    except UnreadableError as error:
        raise DataError(f"{source.name} must be VIA's JSON. Received: {error}.") from error
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    if not isinstance(content, dict):
        raise DataError(f"{source.name} must be VIA's JSON. Received: {type(content).__name__}.")
    for place, item in enumerate(content.values(), 1):
        try:
            name, regions = str(item["filename"]), item.get("regions") or []
            regions = list(regions.values() if isinstance(regions, dict) else regions)
            shapes = [(region["shape_attributes"], region.get("region_attributes")) for region in regions]
        except (AttributeError, KeyError, TypeError) as error:
            detail = f"image {place}: {type(error).__name__}: {error}"[:200]
            table.skip(SkippedBox("", "unreadable annotation", detail, source.name, place))
            continue
        if not shapes:
            yield name, place, None, None
        for row, (shape, attributes) in enumerate(shapes, 1):
            yield name, row, shape, attributes


def _parsed(text: str | None) -> Any:
    """What a cell of JSON holds; what is none stays text, and is no shape."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _attribute(source: Path, regions: list[_Region], options: ReadOptions, table: AnnotationTable) -> str:
    """The attribute of regions that is their class."""
    counts: dict[str, int] = {}
    for _, _, shape, attributes in regions:
        if shape is not None and isinstance(attributes, Mapping):
            for name, value in attributes.items():
                counts[name] = counts.get(name, 0) + bool(_label(value))
    if (stated := options.columns.get("label")) is not None:
        return stated
    used = [name for name, count in counts.items() if count]
    usual = next((name for word in _USUAL for name in used if name.strip().lower() == word), None)
    chosen = usual or max(used, key=lambda name: counts[name], default="")
    if len(used) > 1:
        others = ", ".join(repr(name) for name in used if name != chosen)
        table.notes.append(
            f"the attribute {chosen!r} of {source.name} is taken as the class, not {others} "
            "(columns={'label': 'NAME'} takes another)"
        )
    return chosen


def _label(value: Any) -> str:
    """A class: a text, or of check boxes the one that is ticked."""
    if isinstance(value, Mapping):
        ticked = [str(name) for name, on in value.items() if on]
        return ticked[0].strip() if len(ticked) == 1 else ""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _around(shape: Mapping[str, Any]) -> tuple[str, tuple[float, float, float, float]]:
    """The kind of a shape, and the box around it in pixels.

    Raises:
        ValueError: It has no extent, as a point.
    """
    kind = str(shape["name"])
    if kind == "rect":
        x, y, across, down = (number(shape[key]) for key in ("x", "y", "width", "height"))
        return kind, (x, y, x + across, y + down)
    if kind in ("circle", "ellipse"):
        x, y = number(shape["cx"]), number(shape["cy"])
        across, down = (number(shape[key]) for key in (("r", "r") if kind == "circle" else ("rx", "ry")))
        if kind == "ellipse" and (turn := number(shape.get("theta") or 0)):
            cos, sin = np.cos(turn), np.sin(turn)
            across, down = float(np.hypot(across * cos, down * sin)), float(np.hypot(across * sin, down * cos))
        return kind, (x - across, y - down, x + across, y + down)
    if kind in ("polygon", "polyline"):
        xs, ys = ([number(value) for value in shape[f"all_points_{axis}"]] for axis in "xy")
        if not xs or not ys or any(value != value for value in (*xs, *ys)):
            raise ValueError("an outline without points")
        return kind, (min(xs), min(ys), max(xs), max(ys))
    raise ValueError(f"a {kind[:40]!r} has no extent")
