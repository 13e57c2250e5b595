"""The feature store: rows on disk under the digest of the image they come from, safe against a kill at any moment.

A store is a folder of two files that only ever grow::

    rows.f32     one row of float32 (or rows.f16: float16) after the other
    index.bin    a record of 40 bytes for each row: SHA-256 of the image's bytes, CRC-32 of the row and of the record

A row is on the disk before its record is written. Opening the store cuts whatever a kill left behind the last good
record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from resfit.errors import ArgumentError, DataError
from resfit.storage.atomic import write_json
from resfit.storage.locks import USERS, hold, locked, report_unusable

#: Number formats of rows: name of the file, and of the numbers in it.
DTYPES = {"float32": ("rows.f32", "<f4"), "float16": ("rows.f16", "<f2")}
#: Rows that are no numbers of a network: records of bytes.
BYTES = "uint8"

_FILES = {**DTYPES, BYTES: ("rows.u8", "u1")}

#: In the folder of a store: what it is for.
ABOUT = "about.json"

_RECORD = np.dtype([("digest", "V32"), ("row_crc", "<u4"), ("record_crc", "<u4")])
_HELD = 2**62  # positions from here on are of rows in memory
_MOST_RECENT = 8192  # rows that are looked up in a dictionary, at ten times the memory of a sorted one
_CHECKED_AT_ONCE = 8 * 2**20  # bytes of rows


@dataclasses.dataclass(frozen=True)
class StoreKey:
    """What a store is for. Two keys that differ never share a row.

    Attributes:
        digest: SHA-256 over network, input contract, precision and view, in hexadecimal digits.
        description: The same in words, written beside the rows for people to read.
    """

    digest: str
    description: dict[str, object]

    @classmethod
    def of(cls, decisive: Mapping[str, object], **told: object) -> StoreKey:
        """Returns the key of what is described.

        Args:
            decisive: What decides whether two rows are the same but for the image; JSON.
            **told: What is written beside it and decides nothing.
        """
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return cls(digest, {**decisive, **told})


class FeatureStore:
    """Rows of one network, found by the digest of an image.

    Several processes may read and append at once. What is held in memory is some 16 bytes a row.

    Args:
        folder: Where the store lives; made if it is missing.
        key: What it is for.
        width: Numbers in a row.
        dtype: ``"float32"``; ``"float16"``, which takes half the room and keeps three digits; or ``"uint8"``.

    Raises:
        ArgumentError: ``dtype`` is unknown.
    """

    def __init__(self, folder: Path, key: StoreKey, width: int, dtype: str = "float32"):
        if dtype != BYTES:
            check_dtype(dtype)
        name, self._dtype = _FILES[dtype]
        self.folder = folder / key.digest[:32]
        self.width = width
        self._rows = self.folder / name
        self._index = self.folder / "index.bin"
        self._count = 0
        self._sorted = _SortedDigests(np.zeros(0, _RECORD))
        self._recent: dict[bytes, int] = {}  # newer than what is sorted
        self._dropped: set[int] = set()
        self._cache = folder.parent
        self._in_memory: OSError | None = None
        self._held: dict[bytes, int] = {}  # in memory, since the disk took no more
        self._held_rows: list[np.ndarray] = []
        try:
            self._open(key, dtype)
        except OSError as error:
            self._hold_from_now_on(error)

    def _open(self, key: StoreKey, dtype: str) -> None:
        """Makes or reads the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if held := hold(self.folder / USERS):
            weakref.finalize(self, held.close)
        with locked(self.folder / "lock"):
            about = self.folder / ABOUT
            if about.exists():
                with contextlib.suppress(OSError):
                    os.utime(about)
            else:
                write_json(about, {**key.description, "width": self.width, "dtype": dtype})
            self._rows.touch()
            self._index.touch()
            records = self._new_records()
            self._count = len(records)
            self._sorted = _SortedDigests(records)
            self._truncate(self._count)

    def __len__(self) -> int:
        """Number of rows, of which some may be of the same image."""
        return self._count + len(self._held_rows)

    def __contains__(self, digest: bytes) -> bool:
        """Whether there is a row for the image with this digest."""
        return int(self.find([digest])[0]) >= 0

    def find(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns for each digest the position of its row, int64 of shape ``(n,)``; -1 where there is none."""
        positions = self._sorted.find(digests)
        if self._recent:
            for place, digest in enumerate(digests):
                positions[place] = self._recent.get(digest, positions[place])
        if self._dropped:
            positions[np.isin(positions, list(self._dropped))] = -1
        if self._held:
            for place, digest in enumerate(digests):
                positions[place] = self._held.get(digest, positions[place])
        return positions

    def append(self, digests: Sequence[bytes], rows: np.ndarray) -> None:
        """Adds rows, on disk when this returns; where the disk takes no more, in memory from then on.

        Args:
            digests: 32 bytes for each row.
            rows: Array of shape ``(n, width)``.

        Raises:
            DataError: A number does not fit the format.
        """
        rows = np.asarray(rows)
        if rows.shape != (len(digests), self.width):
            raise ValueError(f"rows must have shape {(len(digests), self.width)}. Received: {rows.shape}.")
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(rows, self._dtype)
        if self._dtype == "<f2" and not np.isfinite(kept).all():
            largest = float(np.abs(np.asarray(rows, np.float32)).max())
            raise DataError(f"float16 holds numbers up to 65504. Received: features of {largest:.3g}. Use float32.")
        records = np.zeros(len(digests), _RECORD)
        records["digest"] = np.frombuffer(b"".join(digests), "V32")
        records["row_crc"] = [zlib.crc32(row) for row in kept]
        records["record_crc"] = _record_crcs(records)
        try:
            self._append(kept, records)
        except OSError as error:
            self._hold_from_now_on(error)
            for digest, row in zip(digests, kept, strict=True):
                self._held[digest] = _HELD + len(self._held_rows)
                self._held_rows.append(row)

    def _append(self, kept: np.ndarray, records: np.ndarray) -> None:
        """Writes rows, then their records."""
        if self._in_memory is not None:
            raise self._in_memory
        with locked(self.folder / "lock"):
            self._take_in_new()
            self._truncate(self._count)
            _write(self._rows, kept.tobytes())
            _write(self._index, records.tobytes())
            self._take_in_new()

    def _hold_from_now_on(self, error: OSError) -> None:
        """Goes on in memory; what is on disk already stays in use."""
        if self._in_memory is None:
            self._in_memory = error
            report_unusable(self._cache, error)

    def drop_damaged(self, digests: Sequence[bytes]) -> int:
        """Forgets the rows of these images whose checksum is wrong, so that they are computed again.

        Args:
            digests: Images that are in the store.

        Returns:
            How many were damaged.
        """
        positions = np.unique(self.find(digests))
        positions = positions[(positions >= 0) & (positions < _HELD)]
        if len(positions) == 0:
            return 0
        expected = np.memmap(self._index, _RECORD, mode="r", shape=(self._count,))["row_crc"]
        bad = set()
        with open(self._rows, "rb") as file:
            for run in _runs(positions, max(1, _CHECKED_AT_ONCE // self._row_bytes)):
                file.seek(int(run[0]) * self._row_bytes)
                content = memoryview(file.read(len(run) * self._row_bytes))
                for place, position in enumerate(run.tolist()):
                    row = content[place * self._row_bytes : (place + 1) * self._row_bytes]
                    if zlib.crc32(row) != expected[position]:
                        bad.add(position)
        self._dropped |= bad
        return len(bad)

    def rows(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns the rows of these images, in this order, without holding more than a little in memory.

        Args:
            digests: Images that are in the store.

        Returns:
            A read-only array of shape ``(n, width)``: a window of the file where the rows lie one after the other,
            a copy in a file of its own otherwise.

        Raises:
            KeyError: An image is not in the store.
        """
        positions = self.find(digests)
        if len(positions) == 0:
            return np.zeros((0, self.width), self._dtype)
        if positions.min() < 0:
            raise KeyError(f"no row for {int((positions < 0).sum())} of the images")
        if positions.max() >= _HELD:
            return self._together(positions)
        everything = np.memmap(self._rows, self._dtype, mode="r", shape=(self._count, self.width))
        if np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
            return everything[positions[0] : positions[0] + len(positions)]
        return _gathered(everything, positions, self.folder)

    def _together(self, positions: np.ndarray) -> np.ndarray:
        """Returns rows of which some are in memory alone."""
        found = np.empty((len(positions), self.width), self._dtype)
        written = np.flatnonzero(positions < _HELD)
        if len(written):
            everything = np.memmap(self._rows, self._dtype, mode="r", shape=(self._count, self.width))
            found[written] = everything[positions[written]]
        for place in np.flatnonzero(positions >= _HELD):
            found[place] = self._held_rows[positions[place] - _HELD]
        found.setflags(write=False)
        return found

    def _new_records(self) -> np.ndarray:
        """Returns the good records on disk behind those that are known."""
        with open(self._index, "rb") as file:
            file.seek(self._count * _RECORD.itemsize)
            raw = file.read()
        complete = min(len(raw) // _RECORD.itemsize, self._rows.stat().st_size // self._row_bytes - self._count)
        records = np.frombuffer(raw, _RECORD, count=max(complete, 0))
        wrong = np.flatnonzero(_record_crcs(records) != records["record_crc"])
        return records[: wrong[0]] if len(wrong) else records

    def _take_in_new(self) -> None:
        for digest in self._new_records()["digest"]:
            self._recent[digest.tobytes()] = self._count
            self._count += 1
        if len(self._recent) > _MOST_RECENT:
            records = np.fromfile(self._index, _RECORD, count=self._count)
            self._sorted, self._recent = _SortedDigests(records), {}

    def _truncate(self, count: int) -> None:
        for path, length in ((self._rows, count * self._row_bytes), (self._index, count * _RECORD.itemsize)):
            if path.stat().st_size > length:
                os.truncate(path, length)

    @property
    def _row_bytes(self) -> int:
        return np.dtype(self._dtype).itemsize * self.width


def faults(folder: Path) -> list[str]:
    """Reads a feature store through and returns what is wrong with it, one sentence each.

    Rows that a kill left half are no fault: they are cut when the store is opened.

    Args:
        folder: Of the store.
    """
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        name, dtype = _FILES[about["dtype"]]
        row_bytes = int(about["width"]) * np.dtype(dtype).itemsize
        records = np.fromfile(folder / "index.bin", _RECORD)
        expected, size = records["row_crc"], (folder / name).stat().st_size
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [f"{ABOUT}, rows and index must be there: {error}"]
    found = []
    if damaged := int((_record_crcs(records) != records["record_crc"]).sum()):
        found.append(f"{damaged} of {len(records)} records of index.bin have another checksum")
    if size < len(records) * row_bytes:
        found.append(f"{name} has {size} bytes, not {len(records) * row_bytes}")
    with open(folder / name, "rb") as file:
        damaged = sum(zlib.crc32(file.read(row_bytes)) != crc for crc in expected[: size // max(row_bytes, 1)])
    if damaged:
        found.append(f"{damaged} of {len(records)} rows have another checksum")
    return found


def check_dtype(dtype: str) -> None:
    """Makes sure that rows can be kept in this format.

    Raises:
        ArgumentError: They cannot.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype must be one of {tuple(DTYPES)}. Received: {dtype!r}.")


class _SortedDigests:
    """Where each digest stands, by binary search in 16 bytes a row."""

    def __init__(self, records: np.ndarray):
        self._digests = np.ascontiguousarray(records["digest"])
        heads = self._digests.view("<u8").reshape(-1, 4)[:, 0]
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    def find(self, digests: Sequence[bytes]) -> np.ndarray:
        wanted = np.frombuffer(b"".join(digests), "V32")
        if len(self._heads) == 0 or len(wanted) == 0:
            return np.full(len(wanted), -1, np.int64)
        # of several rows for one image the last one counts
        places = np.searchsorted(self._heads, wanted.view("<u8").reshape(-1, 4)[:, 0], side="right") - 1
        positions = np.where(places >= 0, self._order[places], -1)
        differ = self._digests[positions] != wanted
        for place in np.flatnonzero(differ | (positions < 0)):
            positions[place] = self._before(int(places[place]), wanted[place])
        return positions.astype(np.int64)

    def _before(self, place: int, digest: np.void) -> int:
        """Goes back over digests that begin with the same 64 bits."""
        head = np.frombuffer(digest.tobytes()[:8], "<u8")[0]
        while place >= 0 and self._heads[place] == head:
            if self._digests[self._order[place]] == digest:
                return int(self._order[place])
            place -= 1
        return -1


@functools.cache
def _crc_tables() -> np.ndarray:
    """Returns the four tables of a CRC-32 that takes in four bytes a step, uint32 ``(4, 256)``."""
    tables = np.zeros((4, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, np.uint32(0xEDB88320) ^ (values >> 1), values >> 1)
    tables[0] = values
    for number in range(1, 4):
        tables[number] = tables[0][tables[number - 1] & 0xFF] ^ (tables[number - 1] >> 8)
    return tables


def _record_crcs(records: np.ndarray) -> np.ndarray:
    """Returns the CRC-32 of the first 36 bytes of each record: what ``zlib.crc32`` gives, all at once."""
    words = np.ascontiguousarray(records).view("<u4").reshape(-1, 10)
    tables = _crc_tables()
    result = np.empty(len(words), np.uint32)
    for start in range(0, len(words), 65536):
        part = words[start : start + 65536]
        crc = np.full(len(part), 0xFFFFFFFF, np.uint32)
        for column in range(9):
            x = crc ^ part[:, column]
            crc = tables[3][x & 0xFF] ^ tables[2][(x >> 8) & 0xFF] ^ tables[1][(x >> 16) & 0xFF] ^ tables[0][x >> 24]
        result[start : start + 65536] = ~crc
    return result


def _runs(positions: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """Cuts ascending positions into stretches without a gap."""
    for stretch in np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1):
        for start in range(0, len(stretch), longest):
            yield stretch[start : start + longest]


def _write(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _gathered(everything: np.ndarray, positions: np.ndarray, folder: Path) -> np.ndarray:
    import tempfile

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            step = max(1, _CHECKED_AT_ONCE // max(1, everything.shape[1] * everything.itemsize))
            for start in range(0, len(positions), step):
                file.write(np.ascontiguousarray(everything[positions[start : start + step]]).tobytes())
            file.flush()
        except OSError as error:
            report_unusable(folder.parent, error)
            return np.asarray(everything[positions])
        try:
            return np.memmap(file, everything.dtype, mode="r", shape=(len(positions), everything.shape[1]))
        except OSError as error:
            raise DataError(f"the feature cache cannot be read back: {error}") from error
