"""Timings of a fit: how long each step took, and notes of what was decided."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from resfit.errors import ResfitWarning


class Timings:
    """Seconds from lap to lap, and notes.

    Attributes:
        laps: Seconds of each step.
        notes: What was decided, one sentence each.
    """

    def __init__(self, say: Callable[[str], None] | None = None):
        self.laps: dict[str, float] = {}
        self.notes: list[str] = []
        self._say = say
        self._first = self._last = time.perf_counter()

    @property
    def minutes(self) -> float:
        """Minutes since the beginning."""
        return (time.perf_counter() - self._first) / 60

    def lap(self, name: str) -> None:
        """Ends a step.

        Args:
            name: Of the step.
        """
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now

    def note(self, text: str) -> None:
        """Keeps a sentence, and says it where someone listens."""
        self.notes.append(text)
        if self._say is not None:
            self._say(text)

    def warn(self, text: str) -> None:
        """Keeps a sentence that must not go unheard: where nobody listens, it is a warning."""
        self.note(text)
        if self._say is None:
            warnings.warn(text, ResfitWarning, stacklevel=5)
