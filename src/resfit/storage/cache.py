"""What resfit keeps on this machine: listed, verified and pruned.

Nothing here follows a link, and nothing that a process uses is deleted: those who use an entry hold a shared lock on
it (:func:`resfit.storage.locks.hold`). An entry goes out of sight by one rename before its files are deleted, so that a
kill
leaves it whole or gone; what a kill leaves behind goes with the next pruning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, closest
from resfit.storage.locks import USERS, cache_root, unused

_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """One thing that can be deleted and made or brought again.

    Attributes:
        kind: One of :data:`KINDS`.
        path: A folder or file.
        what: What it is, for people.
        source: Where it came from: a handle or address; ``""`` for what was computed here.
        bytes: What it takes on disk.
        used: When it was last used, in seconds since 1970.
        state: ``""``; ``"partial"``, a download that goes on when it is asked for again; ``"leftover"`` of something
            that was interrupted; or ``"link"``, which is not followed.
        about: What is noted beside it.
    """

    kind: str
    path: Path
    what: str
    source: str
    bytes: int
    used: float
    state: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "path": os.fspath(self.path), "about": dict(self.about)}


@contextlib.contextmanager
def folder_unused(path: Path) -> Iterator[bool]:
    """Whether nobody uses a folder of the cache, or writes into it."""
    locks = [path / USERS, *(lock for lock in (path / "lock", path.with_suffix(".lock")) if lock.is_file())]
    with contextlib.ExitStack() as stack:
        yield all([stack.enter_context(unused(lock)) for lock in locks])


@dataclasses.dataclass(frozen=True)
class CacheKind:
    """One kind of what is kept.

    Attributes:
        name: What it is called.
        describe: From a path there to an item, or to None where it is none of ours.
        faults: What is wrong with an item.
        unused: Whether nobody uses a path, for the length of a ``with`` block.
        beside: Files that go with a path.
        elsewhere: From the cache folder to where its entries lie, or to its one file; the folder of its name.
        shared: Whether other libraries use it too.
    """

    name: str
    describe: Callable[[Path], CacheEntry | None]
    faults: Callable[[CacheEntry], list[str]]
    unused: Callable[[Path], contextlib.AbstractContextManager[bool]] = folder_unused
    beside: Callable[[Path], Sequence[Path]] = lambda path: ()
    elsewhere: Callable[[Path], Path] | None = None
    shared: bool = False

    def folder(self, cache: Path) -> Path:
        """Returns where its entries lie, or its one file.

        Args:
            cache: The cache folder.
        """
        return self.elsewhere(cache) if self.elsewhere else cache / self.name


#: Every kind by its name, as its owner registered it.
KINDS: dict[str, CacheKind] = {}


def register(kind: CacheKind) -> None:
    """Adds a kind of entry to what is listed, verified and pruned.

    Args:
        kind: The kind; one of the same name is replaced.
    """
    KINDS[kind.name] = kind


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        deleted: What went, or would have gone.
        kept: What should have gone and stayed, each with the reason.
    """

    deleted: tuple[CacheEntry, ...]
    kept: tuple[tuple[CacheEntry, str], ...]


def find(cache: Path | None = None, *, kinds: Sequence[str] = ()) -> list[CacheEntry]:
    """Lists what is there, the least recently used first.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
        kinds: Only these of :data:`KINDS`.

    Raises:
        ArgumentError: There is no such kind.

    Example:
        >>> sum(item.bytes for item in find(kinds=["features"]))  # doctest: +SKIP
        73400320
    """
    found: list[CacheEntry] = []
    for kind in _chosen(kinds):
        found += _of_kind(kind, kind.folder(cache or cache_root()))
    return sorted(found, key=lambda item: item.used)


def faults(item: CacheEntry) -> list[str]:
    """Reads an item through and returns what is wrong with it, one sentence each.

    Args:
        item: What :func:`find` returned. Of a partial download, a leftover and a link nothing can be said.
    """
    if item.state:
        return []
    try:
        return KINDS[item.kind].faults(item)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"it cannot be read ({error})"]


def prune(
    cache: Path | None = None,
    *,
    kinds: Sequence[str] = (),
    older_than: float | None = None,
    max_bytes: float | None = None,
    damaged: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Deletes what can be made or brought again. Without limits, all of it.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
        kinds: Only these of :data:`KINDS`. Default: all that resfit shares with no other library.
        older_than: Days without use after which something goes.
        max_bytes: Bytes that may stay; what was used longest ago goes first.
        damaged: Only what :func:`faults` finds damaged goes.
        dry_run: Delete nothing and say what would go.

    Raises:
        ArgumentError: There is no such kind.
    """
    if not kinds:
        kinds = [kind.name for kind in KINDS.values() if not kind.shared]
    found = find(cache, kinds=kinds)
    going = [item for item in found if older_than is None or item.used <= time.time() - older_than * _DAY]
    if max_bytes is not None:
        going = _over(found, going, max_bytes)
    if damaged:
        going = [item for item in going if item.state == "leftover" or faults(item)]
    going += [item for item in found if item.state == "leftover" and item not in going]
    deleted, kept = [], []
    for item in going:
        if reason := _deleted(item, dry_run):
            kept.append((item, reason))
        else:
            deleted.append(item)
    return Pruned(tuple(deleted), tuple(kept))


def _over(found: Sequence[CacheEntry], going: Sequence[CacheEntry], max_bytes: float) -> list[CacheEntry]:
    """Of what may go, the least recently used until no more than so many bytes stay."""
    total = sum(item.bytes for item in found)
    chosen = []
    for item in going:
        if total <= max_bytes:
            break
        chosen.append(item)
        total -= item.bytes
    return chosen


# ---- deleting


def _deleted(item: CacheEntry, dry_run: bool) -> str:
    """Deletes an item. Returns why it stays, or ``""``."""
    if item.state == "link":
        return "a link, which is not followed"
    if item.state == "leftover" and not item.path.name.endswith(".gone") and time.time() - item.used < _DAY:
        return "it may still be written"
    try:
        with KINDS[item.kind].unused(item.path) as free:
            if not free:
                return "in use"
            if not dry_run:
                _remove(item.path)
                for path in KINDS[item.kind].beside(item.path):
                    path.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        return f"it cannot be deleted ({getattr(error, 'strerror', None) or error})"
    return ""


def _remove(path: Path) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        path.unlink()
        return
    trash = path
    if not path.name.endswith(".gone"):
        trash = path.with_name(f".{path.name.lstrip('.')}.gone")
        if trash.exists():
            shutil.rmtree(trash)
        os.replace(path, trash)
    shutil.rmtree(trash)  # does not follow links


# ---- finding


def _chosen(kinds: Sequence[str]) -> list[CacheKind]:
    for name in kinds:
        if name not in KINDS:
            raise ArgumentError(f"kind must be one of {tuple(KINDS)}. Received: {name!r}.{closest(name, KINDS)}")
    return [kind for kind in KINDS.values() if not kinds or kind.name in kinds]


def _of_kind(kind: CacheKind, folder: Path) -> Iterator[CacheEntry]:
    if folder.is_file() and not folder.is_symlink():  # a kind of one file
        yield from _described(kind, folder)
    if not folder.is_dir():
        return
    if folder.is_symlink():
        yield CacheEntry(kind.name, folder, "a link", "", 0, 0.0, "link")
        return
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # somebody else deletes as well
            yield from _described(kind, path)


def _described(kind: CacheKind, path: Path) -> Iterator[CacheEntry]:
    if path.is_symlink():
        if not kind.shared:
            yield CacheEntry(kind.name, path, "a link", "", 0, 0.0, "link")
        return
    if path.name.startswith(".") and (not kind.shared or path.name.endswith(".gone")):
        size, newest = _measured(path)
        yield CacheEntry(kind.name, path, "what an interrupted command left", "", size, newest, "leftover")
        return
    item = kind.describe(path)
    if item is not None:
        size, newest = _measured(path)
        yield dataclasses.replace(item, bytes=size, used=item.used or newest)


def _measured(path: Path) -> tuple[int, float]:
    """Returns the bytes of a file or folder, and when a file in it changed last. Links count as themselves."""
    files = [os.fspath(path)]
    if path.is_dir():
        files = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names if name != USERS]
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append(os.lstat(file))
    newest = max((about.st_mtime for about in found), default=os.lstat(path).st_mtime)
    return sum(about.st_size for about in found if stat.S_ISREG(about.st_mode)), newest
