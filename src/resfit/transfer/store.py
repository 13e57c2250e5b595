"""The feature store: rows on disk under the digest of the image they come from, safe against a kill at any moment.

A store is a folder of two files that only ever grow::

    rows.f32     one row of float32 after the other
    index.bin    a record of 40 bytes for each row: SHA-256 of the image's bytes, CRC-32 of the row and of the record

A row is on the disk before its record is written. Opening the store cuts whatever a kill left behind the last good
record.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit.cache import locked
from resfit.errors import DataError
from resfit.files import write_json

_RECORD = np.dtype([("digest", "V32"), ("row_crc", "<u4"), ("record_crc", "<u4")])


@dataclasses.dataclass(frozen=True)
class StoreKey:
    """What a store is for. Two keys that differ never share a row.

    Attributes:
        digest: SHA-256 over network, input contract, precision and tap, in hexadecimal digits.
        description: The same in words, written beside the rows for people to read.
    """

    digest: str
    description: dict[str, object]


class FeatureStore:
    """Rows of one network, found by the digest of an image.

    Several processes may read and append at once.

    Args:
        folder: Where the store lives; made if it is missing.
        key: What it is for.
        width: Numbers in a row.
    """

    def __init__(self, folder: Path, key: StoreKey, width: int):
        self.folder = folder / key.digest[:32]
        self.width = width
        self._rows = self.folder / "rows.f32"
        self._index = self.folder / "index.bin"
        self._positions: dict[bytes, int] = {}
        self._checksums: list[int] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            if not (self.folder / "about.json").exists():
                write_json(self.folder / "about.json", {**key.description, "width": width})
            self._rows.touch()
            self._index.touch()
            self._load_new()
            self._truncate(len(self))

    def __len__(self) -> int:
        """Number of rows, of which some may be of the same image."""
        return len(self._checksums)

    def __contains__(self, digest: bytes) -> bool:
        """Whether there is a row for the image with this digest."""
        return digest in self._positions

    def append(self, digests: Sequence[bytes], rows: np.ndarray) -> None:
        """Adds rows, on disk when this returns.

        Args:
            digests: 32 bytes for each row.
            rows: Array of shape ``(n, width)``.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        rows = np.ascontiguousarray(rows, "<f4")
        if rows.shape != (len(digests), self.width):
            raise ValueError(f"rows must have shape {(len(digests), self.width)}. Received: {rows.shape}.")
        records = np.zeros(len(digests), _RECORD)
        for position, (digest, row) in enumerate(zip(digests, rows, strict=True)):
            checksum = zlib.crc32(row.tobytes())
            head = digest + checksum.to_bytes(4, "little")
            records[position] = (digest, checksum, zlib.crc32(head))
        with locked(self.folder / "lock"):
            self._load_new()
            self._truncate(len(self))
            _write(self._rows, rows.tobytes())
            _write(self._index, records.tobytes())
            self._load_new()

    def drop_damaged(self, digests: Sequence[bytes]) -> int:
        """Forgets the rows of these images whose checksum is wrong, so that they are computed again.

        Args:
            digests: Images that are in the store.

        Returns:
            How many were damaged.
        """
        bad = set()
        with open(self._rows, "rb") as file:
            for position in sorted({self._positions[digest] for digest in digests}):
                file.seek(position * self._row_bytes)
                if zlib.crc32(file.read(self._row_bytes)) != self._checksums[position]:
                    bad.add(position)
        if bad:
            self._positions = {digest: at for digest, at in self._positions.items() if at not in bad}
        return len(bad)

    def rows(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns the rows of these images, in this order, without holding more than a little in memory.

        Args:
            digests: Images that are in the store.

        Returns:
            A read-only array of shape ``(n, width)``: a window of the file where the rows lie one after the other,
            a copy in a file of its own otherwise.
        """
        positions = np.asarray([self._positions[digest] for digest in digests], np.int64)
        if len(positions) == 0:
            return np.zeros((0, self.width), np.float32)
        everything = self._memmap()
        if np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
            return everything[positions[0] : positions[0] + len(positions)]
        return _gathered(everything, positions, self.folder)

    def _memmap(self) -> np.memmap:
        return np.memmap(self._rows, "<f4", mode="r", shape=(len(self), self.width))

    def _load_new(self) -> None:
        """Takes in the records that this or another process has added since the last look."""
        known = len(self)
        with open(self._index, "rb") as file:
            file.seek(known * _RECORD.itemsize)
            raw = file.read()
        complete = min(len(raw) // _RECORD.itemsize, self._rows.stat().st_size // self._row_bytes - known)
        for offset in range(0, max(complete, 0) * _RECORD.itemsize, _RECORD.itemsize):
            record = raw[offset : offset + _RECORD.itemsize]
            if zlib.crc32(record[:36]) != int.from_bytes(record[36:], "little"):
                break
            self._positions[record[:32]] = len(self._checksums)
            self._checksums.append(int.from_bytes(record[32:36], "little"))

    def _truncate(self, count: int) -> None:
        for path, length in ((self._rows, count * self._row_bytes), (self._index, count * _RECORD.itemsize)):
            if path.stat().st_size > length:
                os.truncate(path, length)

    @property
    def _row_bytes(self) -> int:
        return 4 * self.width


def _write(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _gathered(everything: np.ndarray, positions: np.ndarray, folder: Path) -> np.ndarray:
    import tempfile

    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, len(positions), 4096):
            file.write(np.ascontiguousarray(everything[positions[start : start + 4096]]).tobytes())
        file.flush()
        try:
            return np.memmap(file, "<f4", mode="r", shape=(len(positions), everything.shape[1]))
        except OSError as error:
            raise DataError(f"the feature cache cannot be read back: {error}") from error
