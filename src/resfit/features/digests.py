"""SHA-256 of files, remembered by path, size and times, so that an unchanged file is not read again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from resfit import processors
from resfit.data import arriving, members
from resfit.data.medical import frames
from resfit.errors import ImageError
from resfit.features.store import BYTES, FeatureStore, StoreKey

_KEY = StoreKey.of({"format": 3, "name": "digests of image files", "kind": "digests"})
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
    arriving.wait(file := members.container(path))
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev} {status.st_ino}"


def digest_files(
    paths: Sequence[Path],
    root: Path | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[FileDigest]:
    """Returns the digest of each file.

    Args:
        paths: The files.
        root: The cache folder, in which digests are remembered; ``None`` reads every file.
        progress: Called with the number of files done so far.

    Returns:
        One entry a path, in order. A file that cannot be read has a reason in place of a digest.
    """
    results: list[FileDigest] = []
    with DigestMemory(root) as known, concurrent.futures.ThreadPoolExecutor(processors.available()) as pool:
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
    """Digests by path, size and times, in a store on disk. Whatever is wrong with it, it only saves reading.

    Args:
        root: The cache folder; ``None`` remembers nothing.
    """

    def __init__(self, root: Path | None):
        self._store = None
        if root is not None:
            with contextlib.suppress(OSError):
                (root / "digests.sqlite").unlink()  # what earlier versions kept
            self._store = FeatureStore(root / "digests", _KEY, 32, BYTES)
        self._noted: dict[bytes, bytes] = {}
        self._written = time.monotonic()

    def __enter__(self) -> DigestMemory:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Writes what was noted."""
        self.flush()

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
                states = list(itertools.chain.from_iterable(pool.map(_states_or_reasons, parts)))
                keys = [_key(path, state) for path, state in zip(some, states, strict=True) if isinstance(state, str)]
                known = self._get(keys)
                for path, state in zip(some, states, strict=True):
                    if isinstance(state, FileDigest):
                        found.append(state)
                    else:
                        digest = known.get(_key(path, state))
                        found.append(None if digest is None else FileDigest(digest, state))
        return found

    def note(self, path: Path, entry: FileDigest) -> None:
        """Remembers a file that was read just now.

        Args:
            path: The file.
            entry: Its digest; one with a reason, or of a file that changed a moment ago, is not remembered.
        """
        if self._store is None or entry.reason or not _is_settled(entry, time.time_ns()):
            return
        self._noted[_key(path, entry.state)] = entry.digest
        # a write for each would cost more than reading the file again
        if len(self._noted) >= _BATCH or time.monotonic() - self._written > _SECONDS_UNWRITTEN:
            self.flush()

    def flush(self) -> None:
        """Writes what was noted."""
        self._written = time.monotonic()
        noted, self._noted = self._noted, {}
        if self._store is not None and noted:
            rows = np.frombuffer(b"".join(noted.values()), np.uint8).reshape(len(noted), 32)
            self._store.append(list(noted), rows)

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Returns the digests that are known, by key."""
        if self._store is None:
            return {}
        self._store.drop_damaged(keys)
        known = [key for key, place in zip(keys, self._store.find(keys), strict=True) if place >= 0]
        return {key: row.tobytes() for key, row in zip(known, self._store.rows(known), strict=True)}


def _key(path: Path, state: str) -> bytes:
    # the name itself has no place in a cache: it may be a patient's
    return hashlib.sha256(os.fsencode(os.path.abspath(path)) + b"\0" + state.encode()).digest()


def _states_or_reasons(paths: Sequence[Path]) -> list[str | FileDigest]:
    return [_state_or_reason(path) for path in paths]


def _state_or_reason(path: Path) -> str | FileDigest:
    try:
        if not stat.S_ISREG(os.stat(members.container(path)).st_mode):  # opening a pipe would wait for ever
            return FileDigest(b"", "", "not a regular file")
        return "" if arriving.is_coming(path) else file_state(path)  # of a copy that is under way nothing is known
    except OSError as error:
        return unreadable(error)
