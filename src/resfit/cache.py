"""Where resfit keeps what it can make again: features, file digests, converted networks."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Environment variable that moves the cache elsewhere.
VARIABLE = "RESFIT_CACHE"

#: In a folder of the cache: the lock that those hold who use it.
USERS = "users.lock"


def cache_root() -> Path:
    """Returns the folder of resfit's cache. It need not exist yet.

    ``$RESFIT_CACHE`` where it is set, otherwise the platform's folder for caches: ``$XDG_CACHE_HOME/resfit`` or
    ``~/.cache/resfit``, ``~/Library/Caches/resfit`` on macOS, ``%LOCALAPPDATA%\\resfit`` on Windows. Everything in it
    can be deleted at any time.

    Returns:
        An absolute path.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "resfit"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "resfit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resfit"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes for the length of a ``with`` block.

    Where the platform has no ``fcntl``, it does nothing.

    Args:
        path: The lock file; made if it is missing, with its folder.
    """
    with _flocked(path, "LOCK_EX"):
        yield


def hold(path: Path) -> IO[bytes] | None:
    """Says that this process uses something of the cache: what holds this lock is not pruned.

    Args:
        path: The lock file; made if it is missing, with its folder. Many may hold it at once.

    Returns:
        What holds the lock until it is closed, or None where the cache cannot be written or the platform has no
        ``fcntl``.
    """
    try:
        return _flocked(path, "LOCK_SH")
    except OSError:
        return None


def keep(path: Path) -> None:
    """As :func:`hold`, until the process ends.

    Args:
        path: The lock file.
    """
    with _keeping:
        held = _kept.get(path)
        if held is None or not _is_same(held, path):
            if held is not None:  # of an entry that was deleted since
                held.close()
            _kept[path] = hold(path)


@contextlib.contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yields whether nobody holds a lock; nobody gets to hold it inside the ``with`` block.

    Args:
        path: The lock file; made if its folder exists.
    """
    try:
        file = _flocked(path, "LOCK_EX", wait=False) if path.parent.is_dir() else None
    except BlockingIOError:
        yield False
        return
    with file or contextlib.nullcontext():
        yield True


_kept: dict[Path, IO[bytes] | None] = {}
_keeping = threading.Lock()


@atexit.register
def _let_go() -> None:
    """Closes what was kept until the process ends."""
    for held in _kept.values():
        if held is not None:
            held.close()
    _kept.clear()


def _flocked(path: Path, kind: str, *, wait: bool = True) -> IO[bytes]:
    """Opens a file and locks it until it is closed.

    Raises:
        BlockingIOError: Others hold it, and it is not to be waited for.
        OSError: It cannot be opened.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115  the lock lives as long as it is open
        try:
            import fcntl

            fcntl.flock(file, getattr(fcntl, kind) | (0 if wait else fcntl.LOCK_NB))
        except ImportError:
            return file
        except OSError:
            file.close()
            raise
        if _is_same(file, path):
            return file
        file.close()  # whoever had it has deleted it: what is there now is another one


def _is_same(file: IO[bytes] | None, path: Path) -> bool:
    try:
        return file is not None and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
