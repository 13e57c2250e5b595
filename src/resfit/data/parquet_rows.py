"""Single cells of Parquet files, read by row group, of which a few are kept in memory."""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resfit.errors import ImageError

_MOST_KEPT = 256 * 2**20  # bytes of cells that are kept for the next ones
_AT_ONCE = 64  # rows that are decoded at once


class _Column:
    """The cells of one column of one row group, a block of rows at a time, forwards."""

    def __init__(self, path: Path, group: int, column: int):
        self._path, self._group, self._column = path, group, column
        self._coming: Iterator[Any] | None = None
        self._next = 0

    def block(self, number: int) -> list[bytes | None]:
        """Returns the cells of a block. One that comes before the last is read from the beginning of the group."""
        if self._coming is None or number < self._next:
            self._coming, self._next = self._cells(), 0
        found: list[bytes | None] | None = None
        while self._next <= number:
            found = next(self._coming, None)
            self._next += 1
            if found is None:
                self._coming = None
                raise ImageError(f"{self._path.name} has no such row")
        assert found is not None
        return found

    def _cells(self) -> Iterator[list[bytes | None]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as file:
            if not (self._group < file.num_row_groups and self._column < len(file.schema)):
                raise ImageError(f"{self._path.name} has no such row")
            name = file.schema.column(self._column).path
            batches = file.iter_batches(_AT_ONCE, row_groups=[self._group], columns=[name], use_threads=False)
            for batch in batches:
                yield [_leaf(cell) for cell in batch.column(0)]


def _leaf(cell: Any) -> bytes | None:
    value = cell.as_py()
    while isinstance(value, dict):
        value = next(iter(value.values()), None)
    return value if isinstance(value, bytes) else None


class _Kept:
    """Blocks of cells that were decoded last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[Any, ...], list[bytes | None] | str] = OrderedDict()
        self._bytes = 0
        self._columns: OrderedDict[tuple[Any, ...], tuple[threading.Lock, _Column]] = OrderedDict()

    def cell(self, path: Path, group: int, row: int, column: int) -> bytes | None:
        """Returns a cell.

        Raises:
            ImageError: Its block cannot be read.
            OSError: The file cannot be read.
        """
        status = os.stat(path)
        place = (str(path), status.st_mtime_ns, status.st_size, group, column)
        number = row // _AT_ONCE
        with self._lock:
            lock, cells = self._columns.setdefault(place, (threading.Lock(), _Column(path, group, column)))
            self._columns.move_to_end(place)
            while len(self._columns) > 64:
                self._columns.popitem(last=False)
        with lock:
            block = self._get((*place, number))
            if block is None:
                try:
                    block = cells.block(number)
                except Exception as error:  # pyarrow raises several kinds over damaged files
                    block = str(error) if isinstance(error, ImageError) else _reason(path, error)
                self._put((*place, number), block)
        if isinstance(block, str):
            raise ImageError(block)
        if row % _AT_ONCE >= len(block):
            raise ImageError(f"{path.name} has no such row")
        return block[row % _AT_ONCE]

    def _get(self, key: tuple[Any, ...]) -> list[bytes | None] | str | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def _put(self, key: tuple[Any, ...], block: list[bytes | None] | str) -> None:
        with self._lock:
            self._blocks[key] = block
            self._bytes += _weight(block)
            while self._bytes > _MOST_KEPT and len(self._blocks) > 1:
                self._bytes -= _weight(self._blocks.popitem(last=False)[1])


def _weight(block: list[bytes | None] | str) -> int:
    return len(block) if isinstance(block, str) else sum(100 + len(cell or b"") for cell in block)


def _reason(path: Path, error: Exception) -> str:
    return f"its part of {path.name} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:150]})"


@functools.cache
def _kept() -> _Kept:
    return _Kept()


def read(path: Path, group: int, row: int, column: int, *, most: int) -> bytes:
    """Returns the bytes of one cell.

    Args:
        path: The Parquet file.
        group: The row group.
        row: The row in the group.
        column: The column among those that hold values, as ``ParquetFile.schema`` counts them.
        most: Most bytes.

    Raises:
        ImageError: It cannot be read, is empty, or larger than allowed; the text is the reason.
    """
    try:
        found = _kept().cell(path, group, row, column)
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read: {error.strerror or error}") from error
    if not found:
        raise ImageError("no bytes in this row" if found is None else "empty file")
    if len(found) > most:
        raise ImageError(f"{len(found)} bytes, more than the {most} that are allowed")
    return found
