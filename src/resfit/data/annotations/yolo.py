"""YOLO: a text file an image, with a class number and fractions of the image's size in each line.

Read are the layouts of Ultralytics and Roboflow (``data.yaml``), of Darknet and CVAT (``obj.data``, ``obj.names``,
``train.txt``), and of LabelImg and Label Studio (``classes.txt``; labels beside the images or in ``labels/``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from resfit.data.annotations.files import (
    FileList,
    UnreadableError,
    head_and_tail,
    number,
    read_text,
    read_yaml,
    split_of,
)
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError

_NAMES = ("classes.txt", "obj.names", "predefined_classes.txt")
_LISTS = ("train", "val", "valid", "test", "trainval", "classes", "readme", "notes")
_LINE = re.compile(rb"\s*\d+(\.0+)?(\s+[-+.\deE]+){4,}\s*(\r|\n|$)")


def find(files: FileList) -> list[Path]:
    """Returns the ``data.yaml``, or the files with class names, or, without either, the first label file."""
    tables = [
        path
        for path in files.with_suffix(".yaml", ".yml")
        if re.search(rb"(?m)^\s*['\"]?names['\"]?\s*:", head_and_tail(path))
        and re.search(rb"(?m)^\s*['\"]?(train|val|test)['\"]?\s*:", head_and_tail(path))
    ]
    if tables:
        return tables
    if files.only is not None and files.only.suffix.lower() not in (".names", ".txt"):
        return []  # the user named another file, whatever labels lie beside it
    labels = _label_files(files)
    if not any(_is_labels(path) for path in list(labels.values())[:200]):
        return []
    names = [path for path in files.others if path.name.lower() in _NAMES or path.suffix.lower() == ".names"]
    return names or [next(iter(labels.values()))]


@annotation_format("yolo", "YOLO", find, rank=3)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads YOLO's labels. A number stands for the name that the file of names gives it; an image without labels is a
    negative."""
    if sources[0].suffix.lower() in (".yaml", ".yml"):
        names, chosen = _from_yaml(files, sources, table)
    else:
        names, chosen = _from_names(files, sources, options), None
    if chosen is None:
        chosen = _listed(files)
    table.stated_order = True
    numbers = {index: table.class_number(name) for index, name in sorted(names.items())}
    labels = _label_files(files)
    unlabelled = polygons = 0
    anything = bool(labels)
    for path, split in chosen.items():
        label_file = labels.get(path)
        if label_file is None and options.unlisted == "skip":
            continue
        image = table.add_image(
            StatedImage(
                name=files.relative(path).as_posix(), path=path, source=label_file or path, split=split, fractions=True
            )
        )
        if label_file is None:
            unlabelled += 1
            continue
        polygons += _labels(label_file, image, numbers, table)
    if not anything:
        raise DataError(
            "YOLO's labels must be text files beside the images or in labels/. "
            f"Received: none below {str(files.root)!r}."
        )
    _without_images(files, set(labels.values()), table)
    if unlabelled:
        table.notes.append(f"{unlabelled} images without a label file are taken as negatives, as YOLO does")
    if polygons:
        table.notes.append(f"{polygons} outlines are taken by the boxes around them")


def _label_files(files: FileList) -> dict[Path, Path]:
    """For each image the text file with its labels: in ``labels/`` where the image is in ``images/``, or beside it."""
    paths = files.with_suffix(".txt")
    if files.only is not None:  # a file was named: the labels are those beside the images
        paths = [path for path in sorted(files.root.rglob("*.txt")) if path.is_file()]
    texts = {path for path in paths if path.stem.lower() not in _LISTS or _is_labels(path)}
    found = {}
    for image in files.images:
        parts = list(image.parts)
        places = [image.with_suffix(".txt")]
        for row in range(len(parts) - 2, -1, -1):
            if parts[row].lower() == "images":
                places.insert(0, Path(*parts[:row], "labels", *parts[row + 1 :]).with_suffix(".txt"))
                break
        places += [image.parent / "labels" / f"{image.stem}.txt", image.parent.parent / "labels" / f"{image.stem}.txt"]
        label = next((place for place in places if place in texts), None)
        if label is not None:
            found[image] = label
    return found


def _is_labels(path: Path) -> bool:
    """Whether a text file that may be another list begins as labels do."""
    return _LINE.match(head_and_tail(path, 4096)) is not None


def _labels(path: Path, image: int, numbers: dict[int, int], table: AnnotationTable) -> int:
    """Adds the boxes of one file, as fractions; returns how many of them are outlines."""
    try:
        lines = read_text(path).splitlines()
    except UnreadableError as error:
        table.skip(SkippedBox(path.stem, "unreadable annotation", str(error), str(path)))
        return 0
    outlines = 0
    for place, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        values = [number(word) for word in words]
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            detail = f"{len(words)} numbers in a line; a box has 5, an outline an odd number from 7 up"
            table.skip(SkippedBox(path.stem, "unreadable annotation", detail, str(path), place))
            continue
        if len(words) == 5:
            _, across, down, width, height = values
            box = (across - width / 2, down - height / 2, across + width / 2, down + height / 2)
        else:
            outlines += 1
            xs, ys = np.array(values[1::2]), np.array(values[2::2])
            box = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
        known = numbers.get(int(values[0])) if values[0] == values[0] // 1 and abs(values[0]) < 1e9 else None
        label = table.unknown_class(f"class {words[0]}") if known is None else known
        table.add_box(image, box, label, place=place)
    return outlines


def _from_yaml(
    files: FileList, sources: Sequence[Path], table: AnnotationTable
) -> tuple[dict[int, str], dict[Path, str | None]]:
    """The names and the images with their splits of a ``data.yaml``."""
    if len(sources) > 1:
        shown = ", ".join(files.relative(path).as_posix() for path in sources[:5])
        raise DataError(f"a YOLO folder must have one data.yaml. Received: {shown}. Name the one that is meant.")
    source = sources[0]
    try:
        content = read_yaml(source)
    except UnreadableError as error:
        raise DataError(f"{source.name} must be a YOLO data.yaml. Received: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{source.name} must be a YOLO data.yaml. Received: no mapping.")
    names = _names(content.get("names"), source)
    stated = content.get("nc")
    if stated is not None and number(stated) != len(names):
        raise DataError(
            f"nc must be the number of names ({len(names)}). Received: nc: {str(stated)[:40]} in {source.name}."
        )
    parts: dict[Path, list[str]] = {}
    for key, split in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test")):
        places = content.get(key)
        for place in places if isinstance(places, list) else [places]:
            if not place:
                continue
            if not isinstance(place, str):
                raise DataError(
                    f"{key} of {source.name} must be a folder or a list of folders. Received: {type(place).__name__}."
                )
            for path in _images_at(files, source, content.get("path"), place):
                parts.setdefault(path, []).append(split)
    train, val = ({path for path, own in parts.items() if split in own} for split in ("train", "val"))
    if train and train == val:  # as the smallest sets for trying things out have it
        table.notes.append(f"train and val of {source.name} name the same images: the split is drawn anew")
        parts = {path: [split for split in own if split not in ("train", "val")] for path, own in parts.items()}
    chosen: dict[Path, str | None] = {}
    for path, own in parts.items():
        if len(set(own)) > 1:
            raise DataError(
                f"an image must belong to one split. Received: {files.relative(path).as_posix()!r} in {own[0]!r} and "
                f"{own[1]!r} of {source.name}. Take it out of one of them."
            )
        chosen[path] = own[0] if own else None
    if not chosen:
        raise DataError(
            f"{source.name} must name folders with images as train, val or test. Received: none with images."
        )
    return names, chosen


def _images_at(files: FileList, source: Path, base: object, place: str) -> list[Path]:
    """The images in a folder, or in a text file that lists images, that a ``data.yaml`` names."""
    text = place.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    inner = [part for part in parts if part != ".."]
    starts = [source.parent / base] if isinstance(base, str) and "\0" not in base else []
    starts += [source.parent, files.root]
    tried = [Path(_normal(start.joinpath(*parts))) for start in starts]
    tried += [start.joinpath(*inner[skip:]) for skip in range(len(inner)) for start in (source.parent, files.root)]
    for folder in tried:
        if folder.suffix.lower() == ".txt":
            if folder.is_file() and folder.is_relative_to(files.root):
                return _images_listed(files, folder)
            continue
        found = [image for image in files.images if image.is_relative_to(folder)]
        if found and folder.is_relative_to(files.root):
            return found
    raise DataError(
        f"{source.name} must name folders with images below {str(files.root)!r}. Received: {place!r}. "
        "Put the images there, or name the folder that holds both."
    )


def _normal(path: Path) -> str:
    import os

    return os.path.normpath(path)


def _images_listed(files: FileList, listing: Path) -> list[Path]:
    """The images that a text file lists, one a line."""
    try:
        lines = read_text(listing, 512 * 2**20).splitlines()
    except UnreadableError as error:
        raise DataError(f"{listing.name} must list images, one a line. Received: {error}.") from error
    found = [files.find(line.strip(), listing.parent) for line in lines if line.strip()]
    images = [path for path, _ in found if path is not None]
    if len(images) < 0.9 * len(found):
        raise DataError(
            f"the images that {listing.name} lists must exist. Received: {len(found) - len(images)} that do not."
        )
    return images


def _listed(files: FileList) -> dict[Path, str | None]:
    """All images with the splits that Darknet's lists (``train.txt``) or folders state."""
    splits: dict[Path, str | None] = {path: files.split_of(path, files.root) for path in files.images}
    lists = [path for path in files.with_suffix(".txt") if path.stem.lower() in ("train", "val", "valid", "test")]
    for listing in lists:
        text = head_and_tail(listing, 4096)
        if not re.search(rb"\.(jpe?g|png|bmp|tiff?|webp)\s*$", text, re.I | re.M):
            continue
        for image in _images_listed(files, listing):
            splits[image] = split_of(listing.stem)
    return splits


def _from_names(files: FileList, sources: Sequence[Path], options: ReadOptions) -> dict[int, str]:
    """The names of ``classes.txt`` or ``obj.names``, one a line; all such files must agree."""
    found: dict[Path, list[str]] = {}
    for source in sources:
        if source.name.lower() in _NAMES or source.suffix.lower() == ".names":
            try:
                found[source] = [line.strip() for line in read_text(source).splitlines() if line.strip()]
            except UnreadableError as error:
                raise DataError(
                    f"{source.name} must have the name of a class in each line. Received: {error}."
                ) from error
    if not found and options.classes:
        return dict(enumerate(options.classes))
    if not found:
        raise DataError(
            "YOLO's labels are numbers, and their names are needed: a data.yaml with names:, or classes.txt with a "
            f"name in each line. Received: neither below {str(files.root)!r}. classes=[...] gives them in the order of "
            "the numbers."
        )
    if len({tuple(names) for names in found.values()}) > 1:
        shown = " and ".join(files.relative(path).as_posix() for path in list(found)[:4])
        raise DataError(f"files of class names must agree. Received: different ones in {shown}.")
    return dict(enumerate(next(iter(found.values()))))


def _names(stated: object, source: Path) -> dict[int, str]:
    """Names by number, from a list or from a mapping with whatever gaps."""
    if isinstance(stated, list) and stated and all(isinstance(name, str) for name in stated):
        return dict(enumerate(stated))
    if isinstance(stated, dict) and stated and all(isinstance(name, str) for name in stated.values()):
        keys = [number(key) for key in stated]
        if all(key == key // 1 and 0 <= key < 1e9 for key in keys) and len(set(keys)) == len(keys):
            return {int(key): name for key, name in zip(keys, stated.values(), strict=True)}
    raise DataError(f"names of {source.name} must be a list, or numbers with names. Received: {str(stated)[:100]!r}.")


def _without_images(files: FileList, used: set[Path], table: AnnotationTable) -> None:
    """Lists label files that belong to no image."""
    for path in files.with_suffix(".txt"):
        if path in used or (path.parent.name.lower() != "labels" and "labels" not in files.relative(path).parts):
            continue
        if _is_labels(path):
            table.skip(
                SkippedBox(PurePosixPath(path.stem).name, "image missing", "a label file without image", str(path))
            )
