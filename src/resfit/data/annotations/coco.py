"""COCO: one JSON file for all images of a split."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.annotations.files import FileList, UnreadableError, head_and_tail, number, read_json, split_of, whole
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError

_PACKED = struct.Struct("<qqqd4d")  # image, category, id, crowd, x, y, width, height
_FIELDS = np.dtype([("image", "<i8"), ("category", "<i8"), ("id", "<i8"), ("crowd", "<f8"), ("box", "<f8", (4,))])


def find(files: FileList) -> list[Path]:
    """Returns the JSON files that begin and end as COCO's do; of COCO's own, those of instances."""
    found = []
    for path in files.with_suffix(".json"):
        text = head_and_tail(path)
        keys = sum(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))
        if keys >= 2 and text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and b'"caption"' not in text[:65536]:
            found.append(path)
    instances = [path for path in found if path.name.lower().startswith("instances")]
    return instances or found


@annotation_format("coco", "COCO JSON", find, rank=0)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads COCO's JSON. Ids are looked up, whatever gaps they have; several files share classes by name."""
    for source in sources:
        try:
            content = read_json(source, _compact)
        except UnreadableError as error:
            raise DataError(f"{source.name} must be a COCO file. Received: {error}.") from error
        _read_one(files, source, content, table)


def _compact(item: dict[str, Any]) -> Any:
    """What stands for a JSON object while a file is read: a box of numbers becomes 64 bytes."""
    if "image_id" not in item or "category_id" not in item:
        return item
    box = item.get("bbox")
    outline = item.pop("segmentation", None)
    if not box and isinstance(outline, list):
        item["bbox"] = box = _around(outline)
    try:
        crowd = bool(item.get("iscrowd")) or bool(item.get("ignore"))
        ids = [item["image_id"], item["category_id"], item.get("id", -1)]
        if isinstance(box, list) and len(box) == 4 and all(type(value) is int for value in ids):
            return _PACKED.pack(*ids, crowd, *box)
    except (struct.error, TypeError, OverflowError):
        pass
    return {key: item.get(key) for key in ("image_id", "category_id", "id", "bbox", "iscrowd", "ignore")}


def _around(outline: list[Any]) -> list[float] | None:
    """The box ``x, y, width, height`` around an outline of polygons."""
    numbers = [np.array([number(value) for value in part], np.float64) for part in outline if isinstance(part, list)]
    numbers = [part for part in numbers if len(part) >= 4 and len(part) % 2 == 0]
    if not numbers:
        return None
    points = np.concatenate(numbers).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _read_one(files: FileList, source: Path, content: Any, table: AnnotationTable) -> None:
    """Adds the images and boxes of one file."""
    if not isinstance(content, dict):
        raise DataError(f"{source.name} must be a COCO file. Received: {type(content).__name__}, not an object.")
    lists: dict[str, Any] = {
        key: content.get(key, [] if key == "annotations" else None) for key in ("images", "annotations", "categories")
    }
    for field, value in lists.items():
        if not isinstance(value, list):
            raise DataError(f"{source.name} must have a list {field!r}. Received: {type(value).__name__}.")
    table.stated_order = True
    classes = _classes(source, lists["categories"], table)
    images: dict[Any, int] = {}
    for row, item in enumerate(lists["images"]):
        key = _id(item.get("id")) if isinstance(item, dict) else None
        name = item.get("file_name") if isinstance(item, dict) else None
        if key is None or not isinstance(name, str):
            raise DataError(
                f"each image of {source.name} must have 'id' and 'file_name'. Received: image {row} without."
            )
        split = split_of(source.stem)
        path, problem = files.find(name, source.parent, split=split)
        width, height = whole(item.get("width")), whole(item.get("height"))
        number_of = table.add_image(
            StatedImage(
                name=name,
                path=path,
                source=source,
                split=split or files.split_of(path, source),
                width=width,
                height=height,
                problem=problem,
            )
        )
        if images.setdefault(key, number_of) != number_of:
            raise DataError(f"ids of images must be unique. Received: {key!r} twice in {source.name}.")
    _boxes(source, lists["annotations"], images, classes, table)


def _classes(source: Path, categories: list[Any], table: AnnotationTable) -> dict[Any, int]:
    """The classes by id, in the order of their ids' list; a heading that Roboflow puts first is none."""
    items = []
    for row, item in enumerate(categories):
        key = _id(item.get("id")) if isinstance(item, dict) else None
        if key is None or not isinstance(item.get("name"), (str, int)):
            raise DataError(
                f"each category of {source.name} must have 'id' and 'name'. Received: category {row} without."
            )
        items.append((key, str(item["name"]), item.get("supercategory")))
    names: dict[Any, str] = {}
    for key, name, _ in items:
        if names.setdefault(key, name) != name:
            raise DataError(
                f"ids of categories must be unique. Received: {key!r} for {names[key]!r} and {name!r} in {source.name}."
            )
    heading = None
    if len(items) > 1 and items[0][2] == "none" and all(above == items[0][1] for _, _, above in items[1:]):
        heading = items[0][0]
        table.notes.append(f"the category {items[0][1]!r}, a heading of the others, is no class unless it has boxes")
    found = {}
    for key, name, _ in items:
        if key != heading:
            found[key] = table.class_number(name)
    if heading is not None:
        found[heading] = _Later(items[0][1])  # type: ignore[assignment]
    return found


class _Later:
    """A class that becomes one with its first box."""

    def __init__(self, name: str):
        self.name = name


def _boxes(
    source: Path, annotations: list[Any], images: dict[Any, int], classes: dict[Any, Any], table: AnnotationTable
) -> None:
    """Adds the boxes of one file, in one go where their ids are numbers."""
    packed = b"".join(item for item in annotations if isinstance(item, bytes))
    rows = np.frombuffer(packed, _FIELDS)
    if len(rows):
        where, unknown_images = _looked_up(rows["image"], images)
        what = np.full(len(rows), -1)
        for key in np.unique(rows["category"]).tolist():
            number_of = classes.get(key)
            if isinstance(number_of, _Later):
                number_of = classes[key] = table.class_number(number_of.name)
            what[rows["category"] == key] = table.unknown_class(f"category {key}") if number_of is None else number_of
        boxes = rows["box"].copy()
        boxes[:, 2:] += boxes[:, :2]
        for key in unknown_images:
            where[rows["image"] == key] = table.add_image(_missing(source, key))
        crowd = rows["crowd"] != 0
        table.add_boxes(where, boxes, what, crowd, rows["id"])
    for row, item in enumerate(annotations):
        if isinstance(item, bytes):
            continue
        if not isinstance(item, dict):
            table.skip(SkippedBox("", "unreadable annotation", f"annotation {row} is no object", str(source)))
            continue
        key = _id(item.get("image_id"))
        image = images.get(key)
        if image is None:
            image = table.add_image(_missing(source, key))
            images[key] = image
        category = _id(item.get("category_id"))
        label = classes.get(category)
        if isinstance(label, _Later):
            label = classes[category] = table.class_number(label.name)
        stated = item.get("bbox")
        values = [number(value) for value in stated] if isinstance(stated, list) and len(stated) == 4 else [np.nan] * 4
        box = (values[0], values[1], values[0] + values[2], values[1] + values[3])
        crowd_flag = bool(item.get("iscrowd")) or bool(item.get("ignore"))
        place: Any = item.get("id") if type(item.get("id")) is int and abs(item["id"]) < 2**62 else row
        table.add_box(
            image,
            box,
            table.unknown_class(f"category {category}") if label is None else label,
            crowd=crowd_flag,
            place=place,
        )


def _looked_up(keys: np.ndarray, images: dict[Any, int]) -> tuple[np.ndarray, list[int]]:
    """The images of ids, and the ids without one."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    found = np.array([images.get(key, -1) for key in distinct.tolist()])
    return found[inverse], distinct[found < 0].tolist()


def _missing(source: Path, key: Any) -> StatedImage:
    return StatedImage(f"image_id {key}", None, source, problem="no image of this id in the file")


def _id(value: Any) -> Any:
    """An id as a key: a whole number or a string; ``None`` for what can be none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value
