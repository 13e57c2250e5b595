"""The table of kinds of files that hold images, and what each reader returns: rows of a table, or a tree of files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from resfit.registries import Registry


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A part of a file that cannot be used.

    Attributes:
        path: The address of an image, or the file.
        reason: Why, in one line.
    """

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class ImageRecords:
    """Images with what a file says of each.

    Attributes:
        header: Names of the columns, all different.
        rows: The cells of each image as text.
        path: The column with the addresses of the images, or their files.
        label: The column with the classes where the file states it; empty where that is to be found out.
        skipped: What cannot be used.
        notes: What was assumed.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    path: str = ""
    label: str = ""
    skipped: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tree:
    """Files in folders, as they stand in an archive.

    Attributes:
        files: The address of each file by its name in the archive, with ``/`` between folders.
        skipped: What cannot be used.
    """

    files: Mapping[str, Path]
    skipped: tuple[Unreadable, ...] = ()


@dataclasses.dataclass(frozen=True)
class SourceFormat:
    """A kind of file that holds images.

    Attributes:
        name: What it is called.
        recognises: Whether a file is of this kind, by its name; few bytes of it are read at most.
        read: Reads what it holds. The second argument is the column with the images, ``None`` where it is to be found.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, str | None], ImageRecords | Tree]


_FORMATS: Registry[SourceFormat] = Registry("a kind of source", __name__.rpartition(".")[0])
_Reader = TypeVar("_Reader", bound=Callable[[Path, str | None], Any])


def register_source(name: str, recognises: Callable[[Path], bool]) -> Callable[[_Reader], _Reader]:
    """Registers the function that reads a kind of file, as a decorator.

    Args:
        name: As in :class:`SourceFormat`.
        recognises: As in :class:`SourceFormat`.
    """

    def register(read: _Reader) -> _Reader:
        _FORMATS.add(name, SourceFormat(name, recognises, read))
        return read

    return register


def format_of(path: Path) -> SourceFormat | None:
    """Returns the kind of a file; ``None`` for one that is no source of images.

    Args:
        path: A regular file.
    """
    return next((kind for kind in _FORMATS.values() if kind.recognises(path)), None)
