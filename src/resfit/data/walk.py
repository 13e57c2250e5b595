"""The files below a folder: which are images, which cannot be read, and which are left out by what rule."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from resfit.data import decode, members
from resfit.data.medical import cohort
from resfit.errors import DataError

#: File name endings that are taken for images without a look at the content; other files are recognised by it.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".heic", ".heif", ".avif"}
)
#: Rules by which a file is left out, as they are printed.
HIDDEN, SYSTEM, NO_IMAGE = "hidden", "system file", "no image by its content"
OUTSIDE, TABLE = "outside the folders that were read", "table of labels"

_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini", "dicomdir"})
# raw files of cameras are TIFF files whose first picture is a small preview
_RAW = frozenset({".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".orf", ".pef", ".raw"})
_RAW_REASON = "raw file of a camera; convert it to JPEG or PNG"
_BEGINNING = 1024


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that cannot be used.

    Attributes:
        path: The file.
        reason: Why, in one line.
    """

    path: Path
    reason: str


@dataclasses.dataclass
class Walk:
    """One way through the folders of a source, and what was left out on it.

    Attributes:
        ignored: Files and hidden folders that are left out, with the rule. A hidden folder counts as one.
        circles: Links to folders that are searched anyway, and so not followed.
        visited: Folders all of whose files are accounted for.
        looked_into: How many files without an ending of images are opened at most; ``None`` is all.
    """

    ignored: dict[Path, str] = dataclasses.field(default_factory=dict)
    circles: list[Path] = dataclasses.field(default_factory=list)
    visited: set[Path] = dataclasses.field(default_factory=set)
    looked_into: int | None = None

    def images(self, folder: Path, above: Iterable[Path] = ()) -> Iterator[Path | Skipped]:
        """Yields image files at any depth in a fixed order, and what cannot be read.

        Each folder is entered once, by its own path before any link to it, so that links neither lead in circles nor
        bring an image in twice.

        Args:
            folder: Where to start.
            above: Folders that are not entered.
        """
        entered = {identity(path) for path in above}
        own, links = [folder], deque[Path]()
        while own or links:
            here = own.pop() if own else links.popleft()
            try:
                known = identity(here)
                if known in entered:
                    self.circles.append(here)
                    continue
                entered.add(known)
                files, folders, hidden = contents(here)
            except OSError as error:
                yield Skipped(here, f"cannot be read: {error.strerror or error}")
                continue
            self.visited.add(here)
            self.ignored.update(hidden)
            for path in files:
                if self.looked_into is not None and not is_image_name(path):
                    self.looked_into -= 1
                    if self.looked_into < 0:
                        continue
                found = image_or_reason(path)
                if found is not None:
                    yield found
                else:
                    self.ignored[path] = NO_IMAGE
            for child in folders:
                if child.is_symlink():
                    links.append(child)
                elif child.suffix.lower() in SUFFIXES:
                    yield child  # a folder that is named like an image: listed as no regular file
            own.extend(child for child in reversed(folders) if not child.is_symlink())

    def sweep(self, root: Path, used: Iterable[Path]) -> None:
        """Accounts for every file below a folder that was neither used nor left out so far.

        Args:
            root: The folder.
            used: Files that are images of the set, or listed as skipped.
        """
        known = {members.container(path) for path in used}
        pending = [root]
        while pending:
            here = pending.pop()
            if here in self.visited:
                continue
            try:
                files, folders, hidden = contents(here)
            except OSError:  # nothing is known of what is in it
                self.ignored.setdefault(here, OUTSIDE)
                continue
            self.ignored.update(hidden)
            for path in files:
                if path not in known:
                    self.ignored.setdefault(path, OUTSIDE)
            pending.extend(child for child in folders if not child.is_symlink())

    def counts(self) -> dict[str, int]:
        """Returns how many files each rule left out."""
        return dict(Counter(self.ignored.values()))


def contents(folder: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Returns the files and the folders in a folder, sorted, and what is hidden or the system's, with the rule.

    Raises:
        OSError: The folder cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    hidden: dict[Path, str] = {}
    with os.scandir(folder) as found:
        for item in found:
            if _is_hidden(item.name):
                hidden[folder / item.name] = HIDDEN if item.name.startswith(".") else SYSTEM
            else:
                (folders if _is_folder(item) else files).append(item.name)
    return [folder / name for name in sorted(files)], [folder / name for name in sorted(folders)], hidden


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads to itself
        return False


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            names = [item.name for item in found if _is_folder(item) and not _is_hidden(item.name)]
    except OSError as error:
        raise DataError(f"the folder {str(folder)!r} cannot be read: {error.strerror or error}.") from error
    return [folder / name for name in sorted(names)]


def has_images(folder: Path) -> bool:
    """Says whether a file with an ending of images is in a folder, not below it."""
    try:
        with os.scandir(folder) as found:
            return any(not _is_hidden(item.name) and _has_ending(item.name) and not _is_folder(item) for item in found)
    except OSError:
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _has_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES or cohort.is_scan_name(Path(name))


def files_of(folder: Path) -> list[Path]:
    """Returns the files in a folder, sorted; none where it cannot be read."""
    try:
        return contents(folder)[0]
    except OSError:
        return []


def is_image_name(path: Path) -> bool:
    """Says whether a file's name has an ending of images or scans."""
    return path.suffix.lower() in SUFFIXES or cohort.is_scan_name(path)


def image_or_reason(path: Path) -> Path | Skipped | None:
    """Returns a file if it is an image, why it cannot be used, or ``None`` for what is no image.

    Files with an ending of images are not opened.

    Args:
        path: The file.
    """
    if is_image_name(path):
        return path
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            return Skipped(path, "not a regular file" if path.exists() else "no such file")
        if suffix in _RAW:
            return Skipped(path, _RAW_REASON)
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING)
    except OSError as error:
        return Skipped(path, f"cannot be read: {error.strerror or error}")
    is_scan = beginning[128:132] == b"DICM" and (not suffix or suffix[1:].isdigit())
    return path if is_scan or decode.is_picture(beginning) else None


def unusable(path: Path) -> str:
    """Returns why a file cannot be opened, or an empty string. Nothing is opened here."""
    path = members.container(path)
    try:
        if path.is_file():
            return "" if os.access(path, os.R_OK) else "cannot be read: permission denied"
        return "not a regular file" if path.exists() else "no such file"
    except OSError as error:  # a link that leads to itself
        return f"cannot be read: {error.strerror or error}"


def identity(folder: Path) -> tuple[int, int]:
    """Returns what tells a folder from all others, by whatever path.

    Raises:
        OSError: It is not there.
    """
    status = folder.stat()
    return status.st_dev, status.st_ino
