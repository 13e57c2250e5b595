"""SHA-256 of files, remembered by path, size and times, so that an unchanged file is not read again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resfit import processors
from resfit.data import members
from resfit.data.medical import frames
from resfit.errors import ImageError

_FORMAT = 2
_CHUNK = 1 << 20
_BATCH = 2000
_AT_ONCE = 64  # files that a thread looks up before it comes back
#: A file that changed so shortly before it was read might change again without its times showing it.
_UNCERTAIN_NS = 50_000_000
_SECONDS_UNWRITTEN = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
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
    status = os.stat(members.container(path))
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
    with DigestMemory(memory) as known, concurrent.futures.ThreadPoolExecutor(processors.available()) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            remembered = known.recall(batch)
            fresh = pool.map(_digest, [path for path, old in zip(batch, remembered, strict=True) if old is None])
            for path, old in zip(batch, remembered, strict=True):
                entry = old
                if entry is None:
                    entry = next(fresh)
                    known.note(path, entry)
                results.append(entry)
            if progress:
                progress(len(results))
    return results


def digest_bytes(data: bytes, state: str) -> FileDigest:
    """Returns the digest of a file that has been read.

    Args:
        data: All of its bytes; of one frame of a file, with the mark before them.
        state: What :func:`file_state` said before it was read.
    """
    return FileDigest(hashlib.sha256(data).digest(), state)


def _digest(path: Path) -> FileDigest:
    try:
        state = file_state(path)
        member = members.member_of(path)
        if member is not None:
            return digest_bytes(members.read(member), state)
        file_path, frame = frames.parted(path)
        digest = hashlib.sha256(frames.mark(frame))
        with open(file_path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return FileDigest(digest.digest(), state)
    except ImageError as error:
        return FileDigest(b"", "", str(error))
    except OSError as error:
        return unreadable(error)


def unreadable(error: OSError) -> FileDigest:
    """Returns what is known of a file that cannot be read."""
    return FileDigest(b"", "", f"cannot be read: {error.strerror or error}")


def _is_settled(entry: FileDigest, now: int) -> bool:
    _, modified, changed, *_ = entry.state.split()
    return now - max(int(modified), int(changed)) > _UNCERTAIN_NS


class DigestMemory:
    """A table path -> digest on disk. Whatever is wrong with it, the digests are still right: it only saves reading.

    Args:
        path: The file; ``None`` remembers nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._table: sqlite3.Connection | None = None
        self._noted: list[tuple[bytes, bytes, str]] = []
        self._written = time.monotonic()

    def __enter__(self) -> DigestMemory:
        """Opens the table."""
        if self._path is not None:
            self._table = self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what was noted."""
        self.flush()
        if self._table is not None:
            self._table.close()

    def recall(self, paths: Sequence[Path]) -> list[FileDigest | None]:
        """Returns what is known of files without reading them: looks at their size and times only.

        Args:
            paths: The files.

        Returns:
            For each file its digest, or the reason why it cannot be read; ``None`` where it must be read.
        """
        found: list[FileDigest | None] = []
        with concurrent.futures.ThreadPoolExecutor(processors.available()) as pool:
            for start in range(0, len(paths), _BATCH):  # the pool holds something for each file it is given
                some = paths[start : start + _BATCH]
                parts = [some[first : first + _AT_ONCE] for first in range(0, len(some), _AT_ONCE)]
                states = itertools.chain.from_iterable(pool.map(_states_or_reasons, parts))
                for state, old in zip(states, self._get(some), strict=True):
                    known = old if old is not None and old.state == state else None
                    found.append(state if isinstance(state, FileDigest) else known)
        return found

    def note(self, path: Path, entry: FileDigest) -> None:
        """Remembers a file that was read just now.

        Args:
            path: The file.
            entry: Its digest; one with a reason, or of a file that changed a moment ago, is not remembered.
        """
        if self._table is None or entry.reason or not _is_settled(entry, time.time_ns()):
            return
        self._noted.append((_key(path), entry.digest, entry.state))
        # a commit for each would cost more than reading the file again
        if len(self._noted) >= _BATCH or time.monotonic() - self._written > _SECONDS_UNWRITTEN:
            self.flush()

    def flush(self) -> None:
        """Writes what was noted."""
        self._written = time.monotonic()
        rows, self._noted = self._noted, []
        if self._table is None or not rows:
            return
        with self._forgiving(), self._table:
            self._table.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def _get(self, paths: Sequence[Path]) -> list[FileDigest | None]:
        if self._table is None:
            return [None] * len(paths)
        found: dict[bytes, FileDigest] = {}
        keys = [_key(path) for path in paths]
        with self._forgiving():
            for start in range(0, len(keys), 500):
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT path, digest, state FROM files WHERE path IN ({marks})"
                for path, digest, state in self._table.execute(query, some):
                    if isinstance(digest, bytes) and len(digest) == 32:
                        found[path] = FileDigest(digest, state)
        return [found.get(key) for key in keys]

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


def _key(path: Path) -> bytes:
    # the name itself has no place in a cache: it may be a patient's
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).digest()


def _states_or_reasons(paths: Sequence[Path]) -> list[str | FileDigest]:
    return [_state_or_reason(path) for path in paths]


def _state_or_reason(path: Path) -> str | FileDigest:
    try:
        if not stat.S_ISREG(os.stat(members.container(path)).st_mode):  # opening a pipe would wait for ever
            return FileDigest(b"", "", "not a regular file")
        return file_state(path)
    except OSError as error:
        return unreadable(error)
