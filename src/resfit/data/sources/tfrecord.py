"""TFRecord files of ``tf.train.Example``, under the feature names of TensorFlow's own scripts and of tfds.

Read without TensorFlow: lengths and checksums are compared, and no record larger than an image may be is read.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from resfit.data import decode, members
from resfit.data.sources.base import ImageRecords, Unreadable, register_source
from resfit.errors import DataError, closest
from resfit.weights.formats import wire

_NAME = re.compile(r"\.(tfrecords?|tfrec|records?)(\.gz)?(-\d+-of-\d+)?(\.gz)?$", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-\d+$")
#: Features that hold the image, the best first; otherwise the only one that begins as a picture does.
_IMAGES = ("image/encoded", "image", "image_raw", "image/raw", "img", "encoded", "jpeg", "jpg", "png", "picture")
_NAMES = ("image/filename", "image/file_name", "filename", "file_name", "image/id", "image/source_id", "image_id", "id")
#: Features with the class, words first.
_LABELS = (
    *("image/class/text", "class/text", "label/text", "label_name", "class_name", "image/class/label", "image/label"),
    *("label", "class", "target", "category", "class/label", "label/label", "image/object/class/label"),
)
_MOST_VALUES = 1000
_LONGEST_CELL = 4096
_MASK = 0xA282EAD8


def _is_tfrecord(path: Path) -> bool:
    if _NAME.search(path.name):
        return True
    if not _SHARD.search(path.name):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return len(head) == 12 and _checksum(head[:8]) == int.from_bytes(head[8:], "little")


@register_source("tfrecord", _is_tfrecord)
def read_tfrecord(path: Path, image: str | None = None) -> ImageRecords:
    """Reads all features but the images, of which the addresses are noted.

    Args:
        path: The file, also compressed by gzip.
        image: The feature with the images; ``None`` finds it.

    Raises:
        DataError: Its first record is none.
        OSError: It cannot be read.
    """
    plain = members.unpacked(path)
    size = plain.stat().st_size
    skipped: list[Unreadable] = []
    found: list[dict[str, str]] = []
    numbered = _class_names(path)
    with open(plain, "rb") as file:
        for number, (offset, record) in enumerate(_records(path, file, size, skipped)):
            where = members.address(path, "bytes", (offset, len(record)), f"record-{number:07}")
            try:
                row = _row(path, offset, record, number, image, numbered)
            except ValueError as error:
                skipped.append(Unreadable(where, f"no tf.train.Example ({error})"))
                continue
            if "path" in row:
                found.append(row)
            else:
                skipped.append(Unreadable(where, "a record without an image"))
    if found and image is not None and not any(image == row.get("\0image") for row in found):
        known = sorted({name for row in found for name in row} - {"\0image", "path"})
        raise DataError(f"{path.name} must have a feature {image!r}. Received: {known}.{closest(image, known)}")
    chosen = next((name for name in _LABELS if any(row.get(name) for row in found)), "")
    left = {name for name in _LABELS if name != chosen} | {"\0image"}
    names = dict.fromkeys(name for row in found for name in row if name not in left)
    rows = []
    for row in found:
        if chosen and not row.get(chosen):
            skipped.append(Unreadable(Path(row["path"]), f"no label in feature {chosen!r}"))
        else:
            rows.append(tuple(row.get(name, "") for name in names))
    return ImageRecords(tuple(names), rows, "path", chosen, tuple(skipped))


def _checksum(data: bytes) -> int:
    import google_crc32c

    value: int = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + _MASK) & 0xFFFF_FFFF


def _records(path: Path, file: BinaryIO, size: int, skipped: list[Unreadable]) -> Iterator[tuple[int, bytes]]:
    """Yields offset and content of each record; one that is damaged is listed, and the rest where its length is."""
    at = number = 0
    while at < size:
        head = file.read(12)
        length = int.from_bytes(head[:8], "little")
        where = members.address(path, "bytes", (at, size - at), f"record-{number:07}")
        if len(head) < 12 or _checksum(head[:8]) != int.from_bytes(head[8:], "little"):
            if not number:
                raise DataError(f"{path.name} must be a TFRecord file. Received: one that does not begin like that.")
            skipped.append(Unreadable(where, f"{path.name} is damaged here, and what follows is lost"))
            return
        if at + 16 + length > size:
            skipped.append(Unreadable(where, f"{path.name} ends within this record"))
            return
        if length > members.MAX_BYTES:
            skipped.append(Unreadable(where, f"{length} bytes, more than the {members.MAX_BYTES} that are allowed"))
            file.seek(length + 4, os.SEEK_CUR)
        else:
            data, checksum = file.read(length), file.read(4)
            if _checksum(data) == int.from_bytes(checksum, "little"):
                yield at + 12, data
            else:
                skipped.append(Unreadable(where, f"damaged in {path.name} (its checksum is another)"))
        at += 16 + length
        number += 1


def _row(
    path: Path, offset: int, record: bytes, number: int, image: str | None, numbered: dict[str, list[str]]
) -> dict[str, str]:
    """Returns what a record says, with the address of its image as ``path``.

    Raises:
        ValueError: It is no Example.
    """
    cells: dict[str, str] = {}
    pictures: dict[str, tuple[int, int]] = {}
    for name, values in _features(memoryview(record)):
        if len(values) > _MOST_VALUES:
            continue
        if len(values) == 1 and isinstance(values[0], tuple):
            start, end = values[0]
            data = record[start:end]
            if name == image or decode.is_picture(data[:1024]) or (image is None and name in _IMAGES[:2]):
                pictures[name] = (offset + start, end - start)
                continue
        texts = [_text(record, value) for value in values]
        if any(text is None for text in texts) or not texts:
            continue
        words = numbered.get(name, [])
        shown = [
            words[int(text)] if words and text and text.isdigit() and int(text) < len(words) else text or ""
            for text in texts
        ]
        cells[name] = shown[0] if len(shown) == 1 else str(shown)
    ranked = sorted(pictures, key=lambda name: _IMAGES.index(name) if name in _IMAGES else len(_IMAGES))
    chosen = image if image in pictures else ranked[0] if ranked and image is None else ""
    if chosen:
        title = next((cells[name] for name in _NAMES if cells.get(name)), "")
        shown_name = title.replace("\\", "/").rpartition("/")[2] or f"record-{number:07}"
        cells["path"] = str(members.address(path, "bytes", pictures[chosen], shown_name))
        cells["\0image"] = chosen
    return cells


def _text(record: bytes, value: object) -> str | None:
    if not isinstance(value, tuple):
        return str(value)
    start, end = value
    if end - start > _LONGEST_CELL:
        return None
    try:
        return record[start:end].decode()
    except UnicodeDecodeError:
        return None


def _features(record: memoryview) -> Iterator[tuple[str, list[object]]]:
    """Yields name and values of each feature: numbers, or the places of bytes in the record."""
    for number, features in _fields(record, 0, len(record)):
        if number != 1:
            continue
        for kind, entry in _fields(record, *_range(features)):
            if kind == 1:
                yield from _entry(record, *_range(entry))


def _entry(record: memoryview, start: int, end: int) -> Iterator[tuple[str, list[object]]]:
    name, values = "", list[object]()
    for number, value in _fields(record, start, end):
        if number == 1:
            low, high = _range(value)
            name = str(record[low:high], "utf-8")
        elif number == 2:
            for kind, listed in _fields(record, *_range(value)):
                values += _values(record, kind, *_range(listed))
    yield name, values


def _values(record: memoryview, kind: int, start: int, end: int) -> Iterator[object]:
    """Yields the values of a list of bytes (1), floats (2) or whole numbers (3)."""
    for number, value in _fields(record, start, end):
        if number != 1:
            continue
        if kind == 1:
            yield _range(value)
        elif kind == 2:
            low, high = value if isinstance(value, tuple) else (0, 0)
            if (high - low) % 4:
                raise ValueError("floats of odd length")
            yield from (found for (found,) in struct.iter_unpack("<f", record[low:high]))
            if not isinstance(value, tuple):
                yield struct.unpack("<f", value.to_bytes(4, "little"))[0]
        elif isinstance(value, tuple):
            at, high = value
            while at < high:
                found, at = wire.varint(record[:high], at)
                yield found - (1 << 64) if found >> 63 else found
        else:
            yield value - (1 << 64) if value >> 63 else value


def _fields(record: memoryview, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Yields number and value of the fields in a part of a record: a number, or where the bytes lie."""
    part = record[:end]
    while at < end:
        tag, at = wire.varint(part, at)
        kind = tag & 7
        if kind == 0:
            value, at = wire.varint(part, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = wire.varint(part, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if length > end - at:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, int.from_bytes(part[at : at + length], "little") if kind != 2 else (at, at + length)
        at += length


def _range(value: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise ValueError("a number in place of a message")
    return value


def _class_names(path: Path) -> dict[str, list[str]]:
    """Returns the names of classes that tfds writes beside its files, by feature."""
    found: dict[str, list[str]] = {}
    for file in sorted(path.parent.glob("*.labels.txt"))[:100]:
        try:
            if file.stat().st_size < 1 << 24:
                found[file.name.removesuffix(".labels.txt")] = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
    return found
