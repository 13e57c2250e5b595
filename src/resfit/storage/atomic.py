"""Writing files so that a kill at any moment leaves the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` that replaces it on a clean exit.

    For libraries that insist on opening the file themselves. The suffix of the target is kept.

    Args:
        target: The file to be written. Its folder is made if it is missing.

    Raises:
        OSError: The folder cannot be written.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disks_named(target, temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disks_named(target: Path, work: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that says which file or folder it was for, and what there is room for.

    Args:
        target: What is to be written.
        work: The file or folder in which it is written first.

    Raises:
        OSError: The disk is full; its ``filename`` is the target.
    """
    try:
        yield
    except OSError as error:
        # HDF5 and others have a text alone
        if error.errno not in _FULL and "no space left" not in str(error).lower():
            raise
        written = sum(path.stat().st_size for path in [work, *work.rglob("*")] if path.is_file())
        free = shutil.disk_usage(target.parent).free
        text = f"the disk is full: more than {megabytes(written)} are needed, and {megabytes(free + written)} were free"
        raise OSError(errno.ENOSPC, text, str(target)) from error


def megabytes(count: int) -> str:
    """Returns a number of bytes as text."""
    return f"{count / 2**20:.1f} MB"


@contextlib.contextmanager
def atomic_open(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a binary file whose content replaces ``target`` on a clean exit."""
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Writes text atomically as UTF-8."""
    with atomic_open(target) as file:
        file.write(text.encode("utf-8"))


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Writes a value atomically as indented JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Puts a file or folder on the disk, as far as the file system can.

    Args:
        path: What exists.
    """
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def umask() -> int:
    """Returns the permission bits that new files of this process are denied."""
    current = os.umask(0o022)
    os.umask(current)
    return current
