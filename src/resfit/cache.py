"""Where resfit keeps what it can make again: features, file digests, converted networks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

#: Environment variable that moves the cache elsewhere.
VARIABLE = "RESFIT_CACHE"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
