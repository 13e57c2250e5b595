"""Registries: tables that are filled by decorators, where the things stand that are in them.

A registry may have a home: a package whose modules are imported when the registry is first read, so that whatever they
register is there. A new format of weights or naming convention is therefore one new file in that package, and nothing
else. Where there is no home, the package imports its modules itself. What is registered from outside resfit is found
in the same way.

Beside ``resfit/__init__.py`` and the table of old names, this is the one place that imports modules by their names.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name.

    Args:
        what: What an entry is, for messages: ``"a format"``.
        home: The package whose modules register entries and are imported when the registry is first read; it is
            imported already. Default: none.
    """

    def __init__(self, what: str, home: str = "") -> None:
        self._what, self._home = what, home
        self._entries: dict[str, Entry] = {}
        self._is_complete = not home
        self._lock = threading.RLock()

    def add(self, name: str, entry: Entry) -> None:
        """Registers an entry.

        Args:
            name: Its name, which no other entry has.
            entry: The entry.

        Raises:
            ValueError: The name is taken.
        """
        with self._lock:
            if name in self._entries:
                raise ValueError(f"{self._what} named {name!r} is registered already. Choose another name.")
            self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Takes an entry out again, such as one that a test has registered.

        Args:
            name: Its name.
        """
        with self._lock:
            del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        """Returns the entry of a name."""
        self._complete()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names in the order of registration."""
        self._complete()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        """Returns the number of entries."""
        self._complete()
        return len(self._entries)

    def _complete(self) -> None:
        """Imports the modules of the home, once."""
        with self._lock:
            if self._is_complete:
                return
            self._is_complete = True  # modules may read the registry while they are imported
            try:
                for module in pkgutil.iter_modules(sys.modules[self._home].__path__, f"{self._home}."):
                    importlib.import_module(module.name)
            except BaseException:
                self._is_complete = False
                raise
