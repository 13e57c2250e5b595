"""The folder of a run, on a disk or in an object store. Files appear in it whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from resfit import dependencies
from resfit.data import remote
from resfit.storage import bounded_json
from resfit.storage.atomic import atomic_open


class RunFolder:
    """Files under names relative to the folder.

    On a disk a file is written under a temporary name and renamed; in an object store it is one upload, which shows
    when it has ended.

    Args:
        url: A path, or such as ``"s3://bucket/run"``.

    Raises:
        MissingDependencyError: The store needs a package that is not installed.
    """

    def __init__(self, url: str | os.PathLike[str]):
        handle = remote.handle_of(url)
        self.url = handle.rstrip("/") or str(Path(url).absolute())
        self._system: Any = None
        self._place = self.url
        if handle:
            dependencies.require(handle, "fsspec")
            self._system, self._place = remote.file_system(self.url)

    def read(self, name: str) -> bytes:
        """Returns a file.

        Raises:
            OSError: There is none.
        """
        with self.open(name) as file:
            return file.read()

    def json(self, name: str) -> Any:
        """Returns the value of a JSON file; ``None`` where there is none.

        Raises:
            ValueError: It is damaged.
        """
        try:
            return bounded_json.parse(self.read(name), allow_nan=True)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> IO[bytes]:
        """Opens a file to read at any place.

        Raises:
            OSError: There is none.
        """
        return open(self._at(name), "rb") if self._system is None else self._system.open(self._at(name), "rb")

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, over an earlier one.

        Raises:
            OSError: It cannot be written.
        """
        if self._system is not None:
            self._system.pipe_file(self._at(name), data)
            return
        with atomic_open(self._at(name)) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as JSON."""
        self.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def put(self, name: str, path: Path) -> None:
        """Copies a file into the folder.

        Args:
            name: Under which it will be there.
            path: The file.
        """
        if self._system is not None:
            self._system.put_file(os.fspath(path), self._at(name))
            return
        with open(path, "rb") as source, atomic_open(self._at(name)) as file:
            while chunk := source.read(1 << 20):
                file.write(chunk)

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files in a folder of it, without the folder; none where it is not there."""
        if self._system is None:
            with contextlib.suppress(FileNotFoundError), os.scandir(self._at(folder)) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".")]
            return []
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return [name for path in found if (name := str(path).rstrip("/").rpartition("/")[2])]

    def files(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yields the files below a folder of it, at any depth: their names in it, and in the run's folder."""
        if self._system is None:
            root = Path(self._at(folder))
            found = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        else:
            place = self._at(folder)
            found = [str(path).removeprefix(place).lstrip("/") for path in self._system.find(place)]
        for name in found:
            yield name, f"{folder}/{name}"

    def has(self, name: str) -> bool:
        """Says whether a file is there."""
        if self._system is None:
            return os.path.isfile(self._at(name))
        self._system.invalidate_cache()
        return bool(self._system.isfile(self._at(name)))

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name)) if self._system is None else self._system.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._place.rstrip('/')}/{name}"
