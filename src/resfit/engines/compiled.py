"""Converted networks on disk, under the content of what they were made from.

One folder a network: the files of its runtime, and ``about.json`` with what it is, and how well it agreed with Keras.
A folder appears whole or not at all, and everything here can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resfit.cache import cache_root, locked
from resfit.files import write_json

_FORMAT = 3
_ABOUT = "about.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One converted network.

    Attributes:
        folder: Where it lives, or will.
        description: What it was made from, in words; decides the folder's name.
    """

    folder: Path
    description: dict[str, Any]

    def exists(self) -> bool:
        """Whether it has been made."""
        return (self.folder / _ABOUT).is_file()

    def facts(self) -> dict[str, Any]:
        """Returns what has been noted about it; nothing if it does not exist or is damaged."""
        try:
            facts = json.loads((self.folder / _ABOUT).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def note(self, **facts: Any) -> None:
        """Adds facts to ``about.json``; where the folder is gone or read-only they are lost, which harms nothing."""
        if self.exists():
            with contextlib.suppress(OSError):
                write_json(self.folder / _ABOUT, {**self.facts(), **facts})

    def make(self, write: Callable[[Path], dict[str, Any]]) -> None:
        """Makes the network, unless another process has meanwhile.

        Args:
            write: Called with an empty folder to write the files to; returns facts to note.

        Raises:
            OSError: The cache cannot be written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder.with_suffix(".lock")):
            if self.exists():
                return
            if self.folder.exists():
                shutil.rmtree(self.folder)
            with tempfile.TemporaryDirectory(prefix=f".{self.folder.name}.", dir=self.folder.parent) as temporary:
                work = Path(temporary) / "entry"
                work.mkdir()
                facts = write(work)
                write_json(work / _ABOUT, {**self.description, **facts})
                os.replace(work, self.folder)

    def used(self) -> None:
        """Notes that it was used now, for :func:`prune`."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / _ABOUT)

    def remove(self) -> None:
        """Deletes it."""
        with locked(self.folder.with_suffix(".lock")):
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A converted network that stands in the cache.

    Attributes:
        folder: Where.
        description: What it is: engine, precision, name and agreement with Keras.
        bytes: What it takes on disk.
        used: When it was last used, in seconds since 1970.
    """

    folder: Path
    description: dict[str, Any]
    bytes: int
    used: float


def root(cache: Path | None = None) -> Path:
    """Returns the folder of converted networks.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
    """
    return (cache or cache_root()) / "engines"


def entry(description: dict[str, Any], packages: tuple[str, ...], cache: Path | None = None) -> Entry:
    """Returns the place of a network.

    Args:
        description: Everything that decides it: JSON-ready.
        packages: Whose versions decide it too.
        cache: A cache folder; ``None`` is resfit's own.
    """
    whole = {"format": _FORMAT, **description, "versions": {name: _version(name) for name in packages}}
    decisive = {key: value for key, value in whole.items() if key != "name"}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return Entry(root(cache) / digest[:32], whole)


def stored(cache: Path | None = None) -> list[Stored]:
    """Lists the converted networks, the least recently used first.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
    """
    found = []
    for about in _abouts(root(cache)):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            found.append(Stored(about.parent, Entry(about.parent, {}).facts(), size, about.stat().st_mtime))
    return sorted(found, key=lambda item: item.used)


def prune(cache: Path | None = None, *, older_than: float = 0.0) -> list[Stored]:
    """Deletes converted networks; they are made again when they are needed.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
        older_than: Days without use after which one goes; 0 deletes all.

    Returns:
        What was deleted.
    """
    limit = time.time() - older_than * 86400
    gone = [item for item in stored(cache) if item.used <= limit]
    for item in gone:
        Entry(item.folder, {}).remove()
        with contextlib.suppress(OSError):
            item.folder.with_suffix(".lock").unlink()
    return gone


def _abouts(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from folder.glob(f"[!.]*/{_ABOUT}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
