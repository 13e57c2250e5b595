"""What stands in the place of file names where patients are behind the images: names of files are often theirs.

``sha256-9f86d081884c7d65`` is the file whose content has a SHA-256 that begins so. Whoever has the images finds it
(:func:`find`, or ``sha256sum``); nobody else learns anything from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from resfit.data import members
from resfit.data.dataset import ImageSet, Skipped, scan_images
from resfit.data.medical import frames
from resfit.errors import ImageError

_LENGTH = 16


def shown(images: ImageSet, path: Path) -> Path:
    """Returns what is written and printed for a file of a set: itself, or its pseudonym in a medical one.

    Args:
        images: The set.
        path: The file, or one frame of it.
    """
    return pseudonym(path) if images.medical else path


def shown_skipped(images: ImageSet, skipped: Iterable[Skipped]) -> tuple[Skipped, ...]:
    """Returns skipped files as they are written and printed; see :func:`shown`."""
    return tuple(dataclasses.replace(item, path=shown(images, item.path)) for item in skipped)


def pseudonym(path: Path) -> Path:
    """Returns what stands for a file, by its content; one that cannot be read goes by a digest of its path."""
    file_path, frame = frames.parted(path)
    try:
        member = members.member_of(file_path)
        if member is not None:
            digest = hashlib.sha256(members.read(member))
        elif file_path.is_file():
            with open(file_path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        else:
            raise OSError
        name = f"sha256-{digest.hexdigest()[:_LENGTH]}"
    except (OSError, ImageError):
        name = f"unreadable-{hashlib.sha256(os.fsencode(os.path.abspath(file_path))).hexdigest()[:_LENGTH]}"
    return Path(name) if frame is None else frames.address(Path(name), frame)


def find(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path | None:
    """Returns the file that a pseudonym stands for.

    Args:
        folder: Where the images are.
        name: The pseudonym, as it stands in a table.

    Returns:
        The file, or ``None`` if it is not among the images there.
    """
    wanted, _ = frames.parted(name)
    images = scan_images([folder])
    everything = (*images.paths, *(item.path for item in images.skipped))
    return next((path for path in everything if pseudonym(path) == wanted), None)
