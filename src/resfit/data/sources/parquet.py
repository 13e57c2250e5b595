"""Parquet files with images as bytes, as Hugging Face writes them; and tables of file names in Parquet."""

from __future__ import annotations

from pathlib import Path

from resfit.data import members
from resfit.data.sources.base import ImageRecords, Unreadable, register_source
from resfit.data.sources.columnar import Columns
from resfit.errors import DataError

_AT_ONCE = 512


@register_source("parquet", lambda path: path.suffix.lower() in (".parquet", ".pq"))
def read_parquet(path: Path, image: str | None = None) -> ImageRecords:
    """Reads all columns but the images, of which the addresses are noted.

    Args:
        path: The file.
        image: The column with the images; ``None`` finds it.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            return _read(path, file, image)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path.name} must be a whole Parquet file. Received: {type(error).__name__}: {text}."
        ) from error


def _read(path: Path, file, image: str | None) -> ImageRecords:
    size, count = path.stat().st_size, file.metadata.num_rows
    if count > size:
        raise DataError(f"{path.name} must have at least a byte for each row. Received: {count} rows, {size} bytes.")
    schema = file.schema_arrow
    columns = Columns(schema, image, next(file.iter_batches(4), None) if file.num_row_groups else None)
    if not columns.image:
        rows = [
            cells for batch in file.iter_batches(_AT_ONCE, columns=columns.others) for cells in columns.cells(batch)
        ]
        return ImageRecords(tuple(columns.others), rows, "", columns.label, (), tuple(columns.notes))
    leaf = f"{columns.image}.bytes" if columns.is_struct else columns.image
    places = {file.schema.column(index).path: index for index in range(len(file.schema))}
    named = f"{columns.image}.path"
    wanted = [*columns.others, *([named] if named in places else [])]
    header = ("path", *(f"{name} (column)" if name == "path" else name for name in columns.others))
    label = header[1 + columns.others.index(columns.label)] if columns.label else ""
    rows, skipped, number = [], [], 0
    for group in range(file.num_row_groups):
        start = number
        for batch in file.iter_batches(_AT_ONCE, row_groups=[group], columns=wanted) if wanted else ():
            names = [None] * batch.num_rows
            if named in places:
                names = [cell.get("path") if cell else None for cell in batch.column(columns.image).to_pylist()]
            for name, cells in zip(names, columns.cells(batch), strict=True):
                at = (group, number - start, places[leaf])
                shown = str(name).replace("\\", "/").rpartition("/")[2] if name else f"row-{number:07}"
                where = members.address(path, "row", at, shown)
                number += 1
                if columns.label and not cells[columns.others.index(columns.label)]:
                    skipped.append(Unreadable(where, f"no label in column {columns.label!r}"))
                else:
                    rows.append((str(where), *cells))
        for row in range(file.metadata.row_group(group).num_rows if not wanted else 0):
            rows.append((str(members.address(path, "row", (group, row, places[leaf]), f"row-{number:07}")),))
            number += 1
    return ImageRecords(header, rows, "path", label, tuple(skipped), tuple(columns.notes))
