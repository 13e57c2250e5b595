"""Pascal VOC: one XML file an image, beside it (LabelImg, Roboflow) or in a folder of its own (VOC, CVAT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resfit.data.annotations.files import (
    Element,
    FileList,
    UnreadableError,
    head_and_tail,
    number,
    read_text,
    read_xml,
    whole,
)
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError


def find(files: FileList) -> list[Path]:
    """Returns the XML files, where some of the first ones are annotations of VOC."""
    found = files.with_suffix(".xml")
    return found if any(_is_voc(head_and_tail(path, 4096)) for path in found[:50]) else []


@annotation_format("voc", "Pascal VOC", find, rank=1)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads Pascal VOC.

    An image is the one that is named as its XML file is, since people rename images but not what stands in the XML;
    otherwise the one that the XML names.
    """
    splits = _stated_splits(files)
    one_based = difficult = renamed = others = boxes = 0
    seen: set[int] = set()
    several: set[int] = set()
    for source in sources:
        try:
            root = read_xml(source)
        except UnreadableError as error:
            table.skip(SkippedBox(source.name, "unreadable annotation", str(error), str(source)))
            continue
        if root.name != "annotation":
            others += 1
            continue
        stated = root.text("filename") or source.stem
        path, problem = files.counterpart(source)
        if path is None:
            path, why = files.find(stated, source.parent)
            problem = why if problem == "no such file" else problem
        elif Path(stated.replace("\\", "/")).stem.lower() != path.stem.lower():
            renamed += 1
        image = table.add_image(
            StatedImage(
                name=stated,
                path=path,
                source=source,
                split=splits.get(source.stem) or files.split_of(path, source),
                width=whole(root.text("size", "width")),
                height=whole(root.text("size", "height")),
                problem=problem if path is None else "",
            )
        )
        if image in seen:
            several.add(image)
        seen.add(image)
        first = options.first_pixel
        if first is None:
            first = int(root.text("source", "database").lower().startswith("the voc"))
        one_based += first
        objects = [child for child in root.children if child.name == "object"]
        for place, item in enumerate(objects, 1):
            boxes += 1
            box = _box(item, first)
            hard = item.text("difficult").strip() in ("1", "true", "True")
            difficult += hard
            label = table.class_number(item.text("name"))
            table.add_box(image, box, label, crowd=hard and options.difficult == "ignore", place=place)
    if others:
        table.notes.append(f"{others} XML files that are no VOC annotations are left out")
    if several:
        table.notes.append(
            f"{len(several)} images have several XML files, whose boxes are taken together, such as "
            f"{table.images[min(several)].name}"
        )
    if renamed:
        table.notes.append(f"{renamed} XML files name another image than the one of their own name, which is taken")
    if one_based:
        table.notes.append(
            f"{one_based} files count pixels from 1, as VOC's own do (first_pixel=0 takes them as they are)"
        )
    if difficult:
        what = "ignored regions (difficult='box' makes them" if options.difficult == "ignore" else "boxes like others ("
        rest = (
            " boxes like others)" if options.difficult == "ignore" else "difficult='ignore' makes them ignored regions)"
        )
        table.notes.append(f"{difficult} of {boxes} boxes are marked difficult and taken as {what}{rest}")


def _is_voc(begin: bytes) -> bool:
    return b"<annotation>" in begin or b"<annotation " in begin


def _box(item: Element, first_pixel: int) -> tuple[float, float, float, float]:
    """The box of an object, not of its parts. Counted from 1, both ends belong to it."""
    values = [number(item.text("bndbox", name)) for name in ("xmin", "ymin", "xmax", "ymax")]
    return values[0] - first_pixel, values[1] - first_pixel, values[2], values[3]


def _stated_splits(files: FileList) -> dict[str, str]:
    """The splits of VOC's ``ImageSets/Main/``: ``train.txt``, ``val.txt``, ``test.txt``, ``trainval.txt``."""
    found: dict[str, str] = {}
    lists = [path for path in files.with_suffix(".txt") if "ImageSets" in path.parts]
    for name in ("train", "val", "test", "trainval"):
        split = "train" if name == "trainval" else name
        for path in (path for path in lists if path.stem == name):
            try:
                lines = read_text(path).splitlines()
            except UnreadableError as error:
                raise DataError(f"{path.name} must list images, one a line. Received: {error}.") from error
            for line in lines:
                stem = line.split()[0] if line.split() else ""
                if found.get(stem, split) != split and name != "trainval":
                    raise DataError(
                        f"an image must belong to one split. Received: {stem!r} in {found[stem]} and {split}."
                    )
                found.setdefault(stem, split)
    return found
