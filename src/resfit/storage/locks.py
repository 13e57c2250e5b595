"""Where resfit keeps what it can make again: features, file digests, converted networks.

The cache is no condition: where it cannot be written, or gets full, the work goes on without it. Whoever writes to it
begins with :func:`opened`, and tells :func:`report_unusable` of an error that comes later.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tempfile

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


class Opened(NamedTuple):
    """A folder to work in.

    Attributes:
        folder: The cache, or a folder that is deleted afterwards.
        kept: Whether it is the cache.
    """

    folder: Path
    kept: bool


@contextlib.contextmanager
def opened(cache: bool | str | Path) -> Iterator[Opened]:
    """Yields the cache, or a temporary folder where there is none or it cannot be written.

    Args:
        cache: ``True`` for resfit's own, ``False`` for none, or a folder.
    """
    folder = folder_of(cache)
    if folder is not None and is_writable(folder):
        yield Opened(folder, True)
        return
    with scratch() as temporary:
        yield Opened(temporary, False)


def folder_of(cache: bool | str | Path) -> Path | None:
    """Returns the folder that an argument ``cache=`` names; ``None`` for none. It need not exist yet.

    Args:
        cache: ``True`` for resfit's own, ``False`` for none, or a folder.
    """
    if cache is False:
        return None
    return cache_root() if cache is True else Path(cache)


def is_writable(folder: Path) -> bool:
    """Returns whether files can be written to a folder of the cache; if not, the user is told once.

    Args:
        folder: Made if it is missing.
    """
    try:
        _try(folder)
    except OSError as error:
        report_unusable(folder, error)
        return False
    return True


def report_unusable(folder: Path, error: OSError) -> None:
    """Warns, once for each folder, that the cache cannot be used and what that means.

    Args:
        folder: Of the cache.
        error: What went wrong.
    """
    with _keeping:
        if folder in _reported:
            return
        _reported.add(folder)
    warnings.warn(
        f"the cache {folder} cannot be written ({error.strerror or error}). The work goes on without it, and nothing "
        f"is kept for the next run. Set {VARIABLE} to a folder with room, or pass --no-cache (in Python cache=False).",
        stacklevel=3,
    )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yields an empty folder that is deleted afterwards: where most room is, on disk or, if both are full, in memory.

    Raises:
        OSError: No place for temporary files can be written.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="resfit-", ignore_cleanup_errors=True, dir=_roomiest()) as folder:
        yield Path(folder)


def place(root: Path, name: str) -> Path:
    """Returns where something is kept in a folder: there, or in a temporary one if it cannot be written.

    Args:
        root: The folder. What it holds already is used even where it cannot be written.
        name: Of the file or folder in it.

    Returns:
        A path; in a temporary folder it lasts as long as this process.
    """
    if (root / name).exists() or is_writable(root):
        return root / name
    import tempfile

    with _keeping:
        if not _lasting:
            _lasting.append(tempfile.TemporaryDirectory(prefix="resfit-", ignore_cleanup_errors=True, dir=_roomiest()))
        return Path(_lasting[0].name) / name


def _roomiest() -> str | None:
    """Returns the place for temporary files; that in memory where the usual one cannot be written or is nearly full."""
    import shutil
    import tempfile

    memory = Path("/dev/shm")
    try:
        usual = Path(tempfile.gettempdir())
        _try(usual)
        if shutil.disk_usage(usual).free >= _LEAST_ROOM or not memory.is_dir():
            return None
    except OSError:
        if not memory.is_dir():
            raise
    try:
        _try(memory)
    except OSError:
        return None
    return str(memory)


def _try(folder: Path) -> None:
    """Writes something to a folder.

    Raises:
        OSError: It cannot be made or written.
    """
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_TRIED))


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


_TRIED = 2**16  # bytes; fewer may fit where nothing else does
_LEAST_ROOM = 2**30
_lasting: list[tempfile.TemporaryDirectory[str]] = []
_reported: set[Path] = set()
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
