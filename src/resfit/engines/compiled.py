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
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resfit.storage.atomic import write_json
from resfit.storage.locks import USERS, cache_root, hold, locked
from resfit.weights.download import digest

_FORMAT = 3

#: In the folder of a network: what it is.
ABOUT = "about.json"


@dataclasses.dataclass(frozen=True)
class CompiledEntry:
    """One converted network.

    Attributes:
        folder: Where it lives, or will.
        description: What it was made from, in words; decides the folder's name.
    """

    folder: Path
    description: dict[str, Any]

    def exists(self) -> bool:
        """Whether it has been made."""
        return (self.folder / ABOUT).is_file()

    def facts(self) -> dict[str, Any]:
        """Returns what has been noted about it; nothing if it does not exist or is damaged."""
        try:
            facts = json.loads((self.folder / ABOUT).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def note(self, **facts: Any) -> None:
        """Adds facts to ``about.json``; where the folder is gone or read-only they are lost, which harms nothing."""
        if self.exists():
            with contextlib.suppress(OSError):
                write_json(self.folder / ABOUT, {**self.facts(), **facts})

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
                files = {
                    path.relative_to(work).as_posix(): digest(path)
                    for path in sorted(work.rglob("*"))
                    if path.is_file()
                }
                write_json(work / ABOUT, {**self.description, **facts, "files": files})
                os.replace(work, self.folder)

    def used(self, owner: object) -> None:
        """Notes that it was used now, and keeps it from being pruned for as long as something lives.

        Args:
            owner: What uses it.
        """
        with contextlib.suppress(OSError):
            os.utime(self.folder / ABOUT)
        if held := hold(self.folder / USERS):
            weakref.finalize(owner, held.close)

    def remove(self) -> None:
        """Deletes it."""
        with locked(self.folder.with_suffix(".lock")):
            shutil.rmtree(self.folder, ignore_errors=True)


def root(cache: Path | None = None) -> Path:
    """Returns the folder of converted networks.

    Args:
        cache: A cache folder; ``None`` is resfit's own.
    """
    return (cache or cache_root()) / "engines"


def entry(description: dict[str, Any], packages: tuple[str, ...], cache: Path | None = None) -> CompiledEntry:
    """Returns the place of a network.

    Args:
        description: Everything that decides it: JSON-ready.
        packages: Whose versions decide it too.
        cache: A cache folder; ``None`` is resfit's own.
    """
    whole = {"format": _FORMAT, **description, "versions": {name: _version(name) for name in packages}}
    decisive = {key: value for key, value in whole.items() if key != "name"}
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return CompiledEntry(root(cache) / key[:32], whole)


def faults(folder: Path) -> list[str]:
    """Compares a converted network with what was noted when it was made; returns what differs, one sentence each.

    Args:
        folder: Of the network.
    """
    facts = CompiledEntry(folder, {}).facts()
    noted = facts.get("files", {})  # those of earlier versions are not listed
    if not facts or not isinstance(noted, dict):
        return [f"{ABOUT} must say what it is"]
    found = []
    for name, expected in noted.items():
        try:
            if ".." in Path(name).parts or digest(folder / name) != expected:
                found.append(f"{name} has other content than when it was made")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
