"""Tables that are no text with separators: JSON lines and Parquet with the names of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resfit.data.sources import arrow, parquet
from resfit.errors import DataError
from resfit.storage import bounded_json

JSON_LINES = (".jsonl", ".ndjson")
#: Endings of such tables.
SUFFIXES = (*JSON_LINES, ".parquet", ".arrow")

_MOST_BYTES = 1 << 31
_LONGEST_LINE = 1 << 20


def read(path: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the header and the rows of a table, cells as text.

    Args:
        path: A file with one of :data:`SUFFIXES`.

    Raises:
        DataError: It cannot be read as such, or has no row.
    """
    try:
        if path.suffix.lower() in JSON_LINES:
            header, rows = _json_lines(path)
        else:
            found = (parquet.read_parquet if path.suffix.lower() == ".parquet" else arrow.read_arrow)(path, None)
            header, rows = found.header, found.rows
    except OSError as error:
        raise DataError(f"{path.name} must be a table. Received: {error.strerror or error}.") from error
    if not rows:
        raise DataError(f"{path.name} must have rows. Received: none.")
    return header, rows


def _json_lines(path: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path.name} must have at most {_MOST_BYTES} bytes. Received: {path.stat().st_size}.")
    found: list[dict[str, str]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            try:
                fields = bounded_json.parse(text)
            except ValueError as error:
                raise DataError(f"each line of {path.name} must be JSON. Received: line {number}, {error}.") from error
            if not isinstance(fields, dict):
                raise DataError(
                    f"each line of {path.name} must be a JSON object. Received: another value in line {number}."
                )
            found.append({name: cell for name, value in fields.items() if (cell := _text(value)) is not None})
    header = tuple(dict.fromkeys(name for row in found for name in row))
    return header, [tuple(row.get(name, "") for name in header) for row in found]


def _text(value: Any) -> str | None:
    """Returns a value as a cell; ``None`` for one that is no cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str | int) and not isinstance(one, bool) for one in value):
        return str([str(one) for one in value])
    return None


def of_frame(frame: Any) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the header and the rows of a pandas DataFrame, or of another library's that ``to_pandas`` makes one of.

    Args:
        frame: The table.
    """
    table = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    columns = [str(name) for name in table.columns]
    cells = [["" if value is None or value != value else str(value) for value in table.iloc[:, index]]
             for index in range(len(columns))]  # fmt: skip
    return tuple(columns), list(zip(*cells, strict=True)) if columns else []
