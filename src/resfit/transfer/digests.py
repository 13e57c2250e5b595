"""SHA-256 of files, remembered by path, size and times, so that an unchanged file is not read again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_FORMAT = 1
_CHUNK = 1 << 20
_BATCH = 2000
#: A file that changed so shortly before it was read might change again without its times showing it.
_UNCERTAIN_NS = 50_000_000


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """What is known of one file.

    Attributes:
        digest: SHA-256 of its bytes, 32 bytes; empty where it could not be read.
        state: Size and times when it was read; another state means that it has changed since.
        reason: Why it could not be read, or an empty string.
    """

    digest: bytes
    state: str
    reason: str = ""


def file_state(path: Path) -> str:
    """Returns the size, times and place of a file as one string that changes when the file does.

    Raises:
        OSError: There is no such file.
    """
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev} {status.st_ino}"


def digest_files(
    paths: Sequence[Path],
    memory: Path | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[FileDigest]:
    """Returns the digest of each file.

    Args:
        paths: The files.
        memory: File in which digests are remembered; ``None`` reads every file. A damaged one is made afresh.
        progress: Called with the number of files done so far.

    Returns:
        One entry a path, in order. A file that cannot be read has a reason in place of a digest.
    """
    results: list[FileDigest] = []
    with _Memory(memory) as known, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = [Path(os.path.abspath(path)) for path in paths[start : start + _BATCH]]
            remembered = known.get(batch)
            fresh = pool.map(_digest_file, batch, remembered)
            found = [old if new is None else new for old, new in zip(remembered, fresh, strict=True)]
            now = time.time_ns()
            known.put(
                (path, entry)
                for path, entry, old in zip(batch, found, remembered, strict=True)
                if entry is not None and entry is not old and not entry.reason and _is_settled(entry, now)
            )
            results.extend(entry for entry in found if entry is not None)
            if progress:
                progress(len(results))
    return results


def _digest_file(path: Path, remembered: FileDigest | None) -> FileDigest | None:
    """Returns what is new about a file; nothing if what is remembered still holds."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return FileDigest(b"", "", "not a regular file")
        state = file_state(path)
        if remembered is not None and remembered.state == state:
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return FileDigest(digest.digest(), state)
    except OSError as error:
        return FileDigest(b"", "", f"cannot be read: {error.strerror or error}")


def _is_settled(entry: FileDigest, now: int) -> bool:
    _, modified, changed, *_ = entry.state.split()
    return now - max(int(modified), int(changed)) > _UNCERTAIN_NS


class _Memory:
    """A table path -> digest on disk. Whatever is wrong with it, the digests are still right: it only saves reading."""

    def __init__(self, path: Path | None):
        self._path = path
        self._table: sqlite3.Connection | None = None

    def __enter__(self) -> _Memory:
        if self._path is not None:
            self._table = self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._table is not None:
            self._table.close()

    def get(self, paths: Sequence[Path]) -> list[FileDigest | None]:
        if self._table is None:
            return [None] * len(paths)
        found: dict[bytes, FileDigest] = {}
        keys = [os.fsencode(path) for path in paths]
        with self._forgiving():
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT path, digest, state FROM files WHERE path IN ({marks})"
                for path, digest, state in self._table.execute(query, some):
                    found[path] = FileDigest(digest, state)
        return [found.get(key) for key in keys]

    def put(self, entries: Iterator[tuple[Path, FileDigest]]) -> None:
        rows = [(os.fsencode(path), entry.digest, entry.state) for path, entry in entries]
        if self._table is None or not rows:
            return
        with self._forgiving(), self._table:
            self._table.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error:
            if self._table is not None:
                self._table.close()
            self._table = None

    def _open(self, path: Path) -> sqlite3.Connection | None:
        for attempt in (1, 2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                table = sqlite3.connect(path, timeout=10)
                table.execute(
                    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, digest BLOB, state TEXT) WITHOUT ROWID"
                )
                if table.execute("PRAGMA user_version").fetchone()[0] != _FORMAT:
                    table.execute("DELETE FROM files")
                    table.execute(f"PRAGMA user_version = {_FORMAT}")
                table.commit()
                return table
            except sqlite3.OperationalError:  # locked or read-only: do without
                return None
            except (sqlite3.Error, OSError):
                if attempt == 1:
                    with contextlib.suppress(OSError):
                        path.unlink()
        return None
