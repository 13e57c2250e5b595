"""What lies in a folder that is to be served: classifiers, their versions, names for these."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from resfit import artifact
from resfit.errors import ArtifactError

#: File beside the versions of a model with names for them: ``{"stable": 3}``.
LABELS = "labels.json"
_MOST_LABELS = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """A classifier on disk.

    Attributes:
        folder: Where it stands.
        mark: What changes with its content.
    """

    folder: Path
    mark: tuple[Any, ...]


def preflight(root: Path) -> None:
    """Makes sure that one classifier is whole, before a server is started for it.

    Raises:
        ArtifactError: It is damaged, or there is no such folder.
        OSError: The folder cannot be read.
    """
    if not root.is_dir():
        raise ArtifactError(f"a server needs a folder. Received: {str(root)!r}: no folder.")
    os.listdir(root)  # what may not be read would look empty
    if is_classifier(root):
        artifact.read(root)


def is_classifier(folder: Path) -> bool:
    """Whether a folder is meant to be a classifier; it may be damaged, or on its way."""
    return (folder / artifact.DESCRIPTION).is_file()


def is_empty(folder: Path) -> bool:
    """Whether there is no file in a folder, or in those in it, but hidden ones and those of labels."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(not name.startswith(".") and name != LABELS for name in files):
            return False
    return True


def inside(folder: Path) -> list[Path]:
    """Returns the folders in a folder; none where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def mark_of(folder: Path) -> tuple[Any, ...]:
    """Returns what changes when a classifier is written again; empty while it is being replaced."""
    try:
        status = [(folder / name).stat() for name in (artifact.DESCRIPTION, artifact.MODEL)]
        status += [(folder / name).stat() for name in (artifact.CHECKSUMS,) if (folder / name).exists()]
    except OSError:
        return ()
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in status)


def labels_of(folder: Path) -> dict[str, int]:
    """Returns the versions of a model by the names that its file of labels gives them; nonsense in it is left out."""
    try:
        with open(folder / LABELS, encoding="utf-8") as file:
            value = json.loads(file.read(65536))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    named = {str(label): number for label, number in value.items() if type(number) is int}
    return dict(list(named.items())[:_MOST_LABELS])
