"""The images that ship with resfit: 2,000 of Fashion-MNIST (MIT licence, Zalando SE), for the demo and the tests."""

from __future__ import annotations

import importlib.resources
import os
import tempfile
import zipfile
from pathlib import Path

from resfit.errors import DataError

NAME = "fashion_mnist.zip"


def unpack(folder: str | os.PathLike[str]) -> Path:
    """Unpacks the sample, unless it is there already.

    Args:
        folder: Where ``train/`` and ``test/`` with ten class folders each are to stand. Made if missing; it appears
            whole or not at all.

    Returns:
        The folder.

    Raises:
        DataError: The folder holds other files.
        OSError: The folder cannot be written.

    Example:
        >>> sorted(path.name for path in unpack("fashion").iterdir())  # doctest: +SKIP
        ['NOTICE.txt', 'test', 'train']
    """
    target = Path(folder)
    source = importlib.resources.files("resfit") / "samples" / NAME
    with source.open("rb") as file, zipfile.ZipFile(file) as archive:
        return _unpack(archive, target)


def _unpack(archive: zipfile.ZipFile, target: Path) -> Path:
    notice = archive.read("NOTICE.txt")
    if _holds(target, notice):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"the sample needs a new or empty folder. Received: {str(target)!r}, which holds other files.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        work = Path(temporary) / "sample"
        archive.extractall(work)
        try:
            os.replace(work, target)
        except OSError:
            if not _holds(target, notice):  # another process may have been faster
                raise
    return target


def _holds(target: Path, notice: bytes) -> bool:
    """Returns whether a folder is the unpacked sample: it appeared whole, so its notice says enough."""
    try:
        return (target / "NOTICE.txt").read_bytes() == notice
    except OSError:
        return False
