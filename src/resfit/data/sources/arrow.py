"""Arrow files with images as bytes, as ``datasets.save_to_disk`` writes them: each image is a range of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resfit.data import members
from resfit.data.sources.base import ImageRecords, Unreadable, register_source
from resfit.data.sources.columnar import Columns
from resfit.errors import DataError


@register_source("arrow", lambda path: path.suffix.lower() in (".arrow", ".feather", ".ipc"))
def read_arrow(path: Path, image: str | None = None) -> ImageRecords:
    """Reads all columns but the images, of which the addresses are noted.

    Args:
        path: A stream or a file of Arrow's IPC format, whose buffers are not compressed.
        image: The column with the images; ``None`` finds it.

    Raises:
        DataError: It is damaged or compressed.
        OSError: It cannot be read.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            return _read(path, file, image)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{path.name} must be a whole Arrow file. Received: {type(error).__name__}: {text}.") from error


def _batches(file: Any) -> tuple[Any, Iterator[Any]]:
    """Returns the schema of an Arrow file, and its batches."""
    import pyarrow as pa

    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    file.seek(0)
    stream = pa.ipc.open_stream(file)
    return stream.schema, iter(stream)


def _read(path: Path, file: Any, image: str | None) -> ImageRecords:
    size = file.size()
    if not size:
        raise DataError(f"{path.name} must be a whole Arrow file. Received: an empty file.")
    base = file.read_buffer(1).address
    file.seek(0)
    schema, batches = _batches(file)
    columns: Columns | None = None
    rows: list[tuple[str, ...]] = []
    skipped: list[Unreadable] = []
    header: tuple[str, ...] = ()
    number = 0
    for batch in batches:
        batch.validate(full=True)
        if columns is None:
            columns = Columns(schema, image, batch)
            taken = ["path"] if columns.image else []
            header = (*taken, *(f"{name} (column)" if name in taken else name for name in columns.others))
        if not columns.image:
            rows += columns.cells(batch)
            continue
        found = batch.column(columns.image)
        names, data = [None] * len(found), found
        if columns.is_struct:
            names = found.field("path").to_pylist() if found.type.get_field_index("path") >= 0 else names
            data = found.field("bytes")
        for name, place, cells in zip(names, _places(data, base, size, path), columns.cells(batch), strict=True):
            shown = str(name).replace("\\", "/").rpartition("/")[2] if name else f"row-{number:07}"
            where = members.address(path, "bytes", place or (0, 0), shown)
            number += 1
            if place is None and name:
                rows.append((str(name), *cells))  # a file beside it
            elif place is None:
                skipped.append(Unreadable(where, "no bytes in this row"))
            elif columns.label and not cells[columns.others.index(columns.label)]:
                skipped.append(Unreadable(where, f"no label in column {columns.label!r}"))
            else:
                rows.append((str(where), *cells))
    if columns is None:
        return ImageRecords((), [])
    label = header[columns.others.index(columns.label) + bool(columns.image)] if columns.label else ""
    return ImageRecords(header, rows, "path" if columns.image else "", label, tuple(skipped), tuple(columns.notes))


def _places(data: Any, base: int, size: int, path: Path) -> list[tuple[int, int] | None]:
    """Returns where in a mapped file each value of a column of bytes lies; ``None`` for one that is not there."""
    import numpy as np
    import pyarrow as pa

    _, offsets, values = data.buffers()
    if values is None or offsets is None:
        return [None] * len(data)
    start = values.address - base
    if not 0 <= start <= size - values.size:
        raise DataError(
            f"{path.name} must not be compressed. Received: an Arrow file with compressed buffers. Write it without "
            "compression, or as Parquet."
        )
    kind = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    ends = np.frombuffer(offsets, kind)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    present = data.is_valid().to_pylist()
    return [
        (start + int(low), int(high - low)) if there else None
        for low, high, there in zip(ends[:-1], ends[1:], present, strict=True)
    ]
