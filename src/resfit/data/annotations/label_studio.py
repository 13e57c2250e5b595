"""Label Studio's own JSON: a list of tasks. (Its COCO, YOLO and VOC exports are read as these.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from resfit.data.annotations.cvat import around_turned
from resfit.data.annotations.files import FileList, UnreadableError, head_and_tail, number, read_json, whole
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError


def find(files: FileList) -> list[Path]:
    """Returns the JSON files that begin as lists of tasks."""
    found = []
    for path in files.with_suffix(".json"):
        text = head_and_tail(path)
        begins = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        if begins and b'"data"' in text and b'"annotations"' in text and b"rectanglelabels" in text:
            found.append(path)
    return found


@annotation_format("label-studio", "Label Studio JSON", find, rank=4)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads Label Studio's tasks: boxes in percent of the image's size; a task that nobody annotated is left out."""
    counts = {"waiting": 0, "several": 0, "turned": 0}
    for source in sources:
        try:
            tasks = read_json(source)
        except UnreadableError as error:
            raise DataError(f"{source.name} must be Label Studio's JSON. Received: {error}.") from error
        if not isinstance(tasks, list):
            raise DataError(f"{source.name} must be a list of tasks. Received: {type(tasks).__name__}.")
        for place, task in enumerate(tasks, 1):
            try:
                _task(files, source, task, table, counts)
            except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
                detail = f"task {place}: {type(error).__name__}: {error}"[:200]
                table.skip(SkippedBox("", "unreadable annotation", detail, source.name, place))
    for key, text in (
        ("waiting", "tasks without annotation are left out"),
        ("several", "tasks have several annotations; the first is taken"),
        ("turned", "turned boxes are taken by the upright boxes around them"),
    ):
        if counts[key]:
            table.notes.append(f"{counts[key]} {text}")


def _task(files: FileList, source: Path, task: dict[str, Any], table: AnnotationTable, counts: dict[str, int]) -> None:
    """Adds the image and the boxes of one task."""
    done = [item for item in task.get("annotations") or [] if not item.get("was_cancelled")]
    if not done:
        counts["waiting"] += 1
        return
    counts["several"] += len(done) > 1
    results = [item for item in done[0].get("result") or [] if item.get("type") == "rectanglelabels"]
    data = task["data"]
    keys = [item.get("to_name") for item in results] + ["image", "img"]
    name = next((data[key] for key in keys if isinstance(data.get(key), str)), None)
    if name is None:
        name = next(value for value in data.values() if isinstance(value, str))
    name = unquote(name.split("?d=")[-1] if "?d=" in name else name.split("?")[0])
    path, problem = files.find(name, source.parent)
    if path is None:  # an upload has a prefix of its own
        path, problem = files.find(re.sub(r"^[0-9a-f]{8}-", "", name.rsplit("/", 1)[-1]), source.parent)
    width = next((whole(item.get("original_width")) for item in results), 0)
    height = next((whole(item.get("original_height")) for item in results), 0)
    image = table.add_image(
        StatedImage(
            name=name,
            path=path,
            source=source,
            split=files.split_of(path, source),
            width=width,
            height=height,
            fractions=True,
            problem=problem,
        )
    )
    for place, item in enumerate(results, 1):
        value = item["value"]
        x, y, across, down = (number(value.get(key)) / 100 for key in ("x", "y", "width", "height"))
        turn = number(value.get("rotation") or 0)
        if turn:
            counts["turned"] += 1
            x, y, across, down = _around(x, y, across, down, turn, width or 1, height or 1)
        labels = value.get("rectanglelabels") or [""]
        table.add_box(image, (x, y, x + across, y + down), table.class_number(labels[0]), place=place)


def _around(
    x: float, y: float, across: float, down: float, degrees: float, width: int, height: int
) -> tuple[float, float, float, float]:
    """Left, top, width and height of the upright box around one that is turned about its top left corner."""
    import math

    if not math.isfinite(degrees):
        return (math.nan,) * 4
    x, y, across, down = x * width, y * height, across * width, down * height
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # the centre turns with the box, about its corner
    middle_x, middle_y = x + (across * cos - down * sin) / 2, y + (across * sin + down * cos) / 2
    left, top, right, bottom = around_turned(
        middle_x - across / 2, middle_y - down / 2, middle_x + across / 2, middle_y + down / 2, degrees
    )
    return left / width, top / height, (right - left) / width, (bottom - top) / height
