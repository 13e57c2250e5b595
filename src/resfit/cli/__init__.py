"""The command line: thin entry points over the library. A module is imported when one of its commands is called."""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"resfit.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"resfit.cli.{name}":
            raise
        raise AttributeError(f"module 'resfit.cli' has no attribute {name!r}") from None
