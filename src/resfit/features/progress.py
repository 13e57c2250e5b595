"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done, how many images are done and how many there are.
Progress = Callable[[str, int, int], None]
