"""What lies in a folder that is to be served: classifiers, their versions, names for these."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from resfit import artifact
from resfit.errors import ArtifactError
from resfit.tasks import dispatch

#: File beside the versions of a model with names for them: ``{"stable": 3}``.
LABELS = "labels.json"
_MOST_LABELS = 100
_MOST_LABEL_BYTES = 65536
_MOST_ENTRIES = 10_000
_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclasses.dataclass(frozen=True)
class FoundModel:
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
        check(root)
        artifact.read(root, dispatch.task_of(root).kind)


def is_classifier(folder: Path) -> bool:
    """Whether a folder is meant to be a classifier; it may be damaged, or on its way."""
    return artifact.description_file(folder) is not None


def check(folder: Path, documents: Collection[str] = ()) -> None:
    """Makes sure that there are only regular files in the folder of a classifier, before any of them is opened.

    A named pipe or a device could keep whoever opens it waiting for ever, and a link could lead to any file of the
    machine. Links within the folder are followed.

    Args:
        folder: The folder.
        documents: Names of files that are not needed, and so may be anything: they are looked at when they are shown.

    Raises:
        ArtifactError: There is something else, or a link that leads out of the folder.
    """
    count = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            if count > _MOST_ENTRIES:
                raise ArtifactError(f"a classifier has at most {_MOST_ENTRIES} files. Received: {str(folder)!r}.")
            path = Path(place) / name
            if not (Path(place) == folder and name in documents):
                resolve(folder, path, may_be_folder=name in folders)


def resolve(folder: Path, path: Path, *, may_be_folder: bool = False) -> Path:
    """Returns where a file of a classifier or model stands, with the links in its path followed.

    Args:
        folder: The folder of the classifier or model.
        path: A path in it.
        may_be_folder: Whether it may be a folder instead.

    Raises:
        ArtifactError: It is no regular file, or stands outside of the folder.
        OSError: There is no such file.
    """
    try:
        found = path.resolve(strict=True)
    except RuntimeError:  # links in a circle
        raise ArtifactError(f"{path} is a link that leads to itself.") from None
    if not found.is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{path} is a link that leads out of its folder, to {found}. Put the file itself in its place."
        )
    mode = os.stat(found).st_mode
    if not (stat.S_ISREG(mode) or (may_be_folder and stat.S_ISDIR(mode))):
        kind = next((kind for is_kind, kind in _OTHER_KINDS if is_kind(mode)), "something else")
        raise ArtifactError(f"{path} must be a regular file. Received: {kind}.")
    return found


def read_file(folder: Path, name: str, most: int) -> bytes:
    """Returns the content of a regular file in the folder of a classifier or model.

    Args:
        folder: The folder.
        name: The file's name.
        most: How many bytes it may have.

    Raises:
        ArtifactError: It is something else, leads out of the folder, or is too large.
        OSError: There is no such file, or it cannot be read.
    """
    # what stands there may have been replaced since it was looked at: the open file is looked at again
    number = os.open(resolve(folder, folder / name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{folder / name} must be a regular file.")
        content = file.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{folder / name} may have at most {most} bytes. Received: {status.st_size}.")
    return content


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
    description = artifact.description_file(folder) or folder / artifact.DESCRIPTION
    try:
        status = [path.stat() for path in (description, folder / artifact.MODEL)]
        status += [(folder / name).stat() for name in (artifact.CHECKSUMS,) if (folder / name).exists()]
    except OSError:
        return ()
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in status)


def labels_of(folder: Path) -> dict[str, int]:
    """Returns the versions of a model by the names that its file of labels gives them; nonsense in it is left out."""
    try:
        value = json.loads(read_file(folder, LABELS, _MOST_LABEL_BYTES))
    except (OSError, ArtifactError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    named = {str(label): number for label, number in value.items() if type(number) is int}
    return dict(list(named.items())[:_MOST_LABELS])
