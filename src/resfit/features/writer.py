"""Rows on their way to the disk: in a thread of its own, together about once a second."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# a store syncs each time it is written: this often, unless so many bytes are waiting
_SECONDS, _MOST_BYTES = 1.0, 64 << 20
# batches that may wait before whoever adds them does
_DEPTH = 8

#: Owners of rows, and the rows ``(n, width)``.
Write = Callable[[list[Any], np.ndarray], None]


class RowWriter:
    """Collects rows and has them written about once a second, so that the network need not wait for the disk.

    Within ``with`` rows are added; at its end all of them are written, also where it ends with an exception.

    Args:
        write: Writes owners and their rows; called in the writer's thread.
        seconds: Time between two calls.

    Raises:
        OSError: Whatever ``write`` raised is raised by the next :meth:`add`, or at the end.
    """

    def __init__(self, write: Write, seconds: float = _SECONDS):
        self._write, self._seconds = write, seconds
        self._line: queue.Queue[tuple[list[Any], np.ndarray] | None] = queue.Queue(_DEPTH)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="rows", daemon=True)

    def __enter__(self) -> RowWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._line.put(None)
        self._thread.join()
        if self._failed is not None and kind is None:
            raise self._failed

    def add(self, owners: list[Any], rows: np.ndarray) -> None:
        """Adds rows, which must not be changed afterwards.

        Args:
            owners: Whose they are, one for each row.
            rows: Array ``(n, width)``.
        """
        if self._failed is not None:
            raise self._failed
        self._line.put((owners, rows))

    def _work(self) -> None:
        owners: list[Any] = []
        rows: list[np.ndarray] = []
        size, due, open_ = 0, time.monotonic() + self._seconds, True
        while open_:
            try:
                item = self._line.get(timeout=max(0.0, due - time.monotonic()) if rows else None)
            except queue.Empty:
                pass
            else:
                open_ = item is not None
                if item is not None:
                    if not rows:
                        due = time.monotonic() + self._seconds
                    owners += item[0]
                    rows.append(item[1])
                    size += item[1].nbytes
            if rows and (not open_ or size >= _MOST_BYTES or time.monotonic() >= due):
                self._flush(owners, rows)
                owners, rows, size = [], [], 0

    def _flush(self, owners: list[Any], rows: list[np.ndarray]) -> None:
        if self._failed is None:
            try:
                self._write(owners, rows[0] if len(rows) == 1 else np.concatenate(rows))
            except BaseException as error:
                self._failed = error
