"""DICOMDIR: the list of images on a medium. What it lists is looked for below its own folder, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from resfit.data.medical import dicom
from resfit.errors import DataError, ImageError

NAME = "DICOMDIR"


def is_dicomdir(path: Path) -> bool:
    """Says whether a file is a DICOMDIR, by its name."""
    return path.name.upper() == NAME


def listed(path: Path) -> tuple[list[Path], int]:
    """Returns the files that a DICOMDIR lists.

    Args:
        path: The DICOMDIR.

    Returns:
        The files, there or not; and how many entries were left out because they lead out of its folder.

    Raises:
        DataError: It cannot be read.
        MissingDependencyError: pydicom is not installed.
    """
    try:
        with open(path, "rb") as file:
            names = dicom.read_directory(file)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"a DICOMDIR must be readable. Received one that is not: {reason}.") from error
    found = [_below(path.parent, parts) for parts in names]
    inside = [file for file in found if file is not None]
    return list(dict.fromkeys(inside)), len(found) - len(inside)


def _below(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """Returns a file below a folder, or ``None`` where the parts, or links on the way, lead out of it."""
    if any(part in ("", ".", "..") or any(sign in part for sign in "/\\:\0") for part in parts):
        return None
    target = folder.joinpath(*parts)
    if not target.exists():
        lower = folder.joinpath(*(part.lower() for part in parts))
        target = lower if lower.exists() else target
    root = os.path.realpath(folder)
    return target if os.path.commonpath([root, os.path.realpath(target)]) == root else None
