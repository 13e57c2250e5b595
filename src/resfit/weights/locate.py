"""What a user names as a source, as a path on this machine: a path, a handle, or a name that is neither."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resfit.networks import catalog
from resfit.networks.detection import catalog as detectors
from resfit.weights import registry
from resfit.weights.formats import base as formats


def is_handle(source: object) -> bool:
    """Whether something is a handle, and no name or path.

    Args:
        source: What a user gave.
    """
    return isinstance(source, str) and "://" in source


def locate(source: str | os.PathLike[str]) -> Path:
    """Returns the files of a handle, or a path as it is; an archive that no format reads is unpacked.

    Args:
        source: A handle or a path. A path need not exist: the reader says what is missing.

    Raises:
        ResfitError: As :func:`resfit.weights.resolve.resolve`.
    """
    if not is_handle(source):
        path = Path(source)
        if not path.is_file() or formats.find_format(path) is not None:
            return path
    from resfit.weights import resolve

    return resolve.resolve(source)


def as_path(source: Any) -> Path | None:
    """Returns a source as a local path if it is one by its type, its ending or a folder of this name, or a handle.

    Args:
        source: What a user gave. A handle is brought.
    """
    if isinstance(source, os.PathLike):
        return Path(source)
    if not isinstance(source, str):
        return None
    if is_handle(source):
        return locate(source)
    if source in ("default", "imagenet") or any(
        source in table for table in (catalog.rows(), registry.rows(), detectors.rows())
    ):
        return None  # before the table of formats, whose readers take a moment to import
    is_file = source.lower().endswith(formats.suffixes()) or os.sep in source or Path(source).exists()
    return Path(source) if is_file else None
