"""Files that are still being copied to this machine: whoever opens one waits for it, while the next ones are copied.

A copy begins with an empty file under each name, so that a folder can be listed at once. Readers call :func:`wait`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable

from resfit.errors import DataError

_ENDED = "the copy of {} was stopped before it was whole. Read it again."


class CopyError(DataError):
    """A file could not be copied to this machine; unlike a broken image it is not skipped."""


class Arrivals:
    """Copies files in the background, in the order in which they are named.

    Args:
        files: Absolute paths of the files, each with its size in bytes; 0 where that is not known.
        bring: Copies one of them, whole or not at all; called in one of the threads, or by who waits for the file.
        workers: Threads, which is how many files are copied at once.

    Attributes:
        missing: Files that are not here yet.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, int]],
        bring: Callable[[str], None],
        *,
        workers: int,
    ):
        self._sizes = dict(files)
        self._bring = bring
        self._todo = deque(self._sizes)
        self._under_way: set[str] = set()
        self.missing = set(self._sizes)
        self._failure: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()
        with _registering:
            _coming.update(dict.fromkeys(self._sizes, self))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def size(self, path: str) -> int:
        """Returns the size that a file will have; 0 where it is not known."""
        return self._sizes[path]

    def wait(self, path: str) -> None:
        """Returns when a file is here; one that nobody has begun to copy is copied at once.

        Args:
            path: One of the files.

        Raises:
            CopyError: It, or another one, could not be copied.
        """
        with self._changed:
            mine = path in self.missing and path not in self._under_way and self._failure is None and not self._stopped
            if mine:
                self._todo.remove(path)
                self._under_way.add(path)
        if mine:
            self._copy(path)
        with self._changed:
            while path in self.missing and self._failure is None and (path in self._under_way or not self._stopped):
                self._changed.wait()
            if path in self.missing:
                raise CopyError(str(self._failure or _ENDED.format(path))) from self._failure

    def join(self) -> None:
        """Returns when all files are here, or the copy was stopped, or one could not be copied."""
        for thread in self._threads:
            thread.join()
        with self._changed:
            while self._under_way:  # readers copy what they wait for themselves
                self._changed.wait()

    def stop(self) -> None:
        """Ends the copy once the files that are under way are here."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._todo or self._stopped or self._failure is not None:
                    return
                path = self._todo.popleft()
                self._under_way.add(path)
            self._copy(path)

    def _copy(self, path: str) -> None:
        failure: BaseException | None = None
        try:
            self._bring(path)
        except BaseException as error:
            failure = error
        with self._changed:
            self._under_way.discard(path)
            if failure is None:
                self.missing.discard(path)
                _coming.pop(path, None)
            else:
                self._failure = self._failure or failure
            self._changed.notify_all()


_coming: dict[str, Arrivals] = {}
_registering = threading.Lock()


def _copied_by(path: str | os.PathLike[str]) -> tuple[Arrivals | None, str]:
    """What copies a file, if it is not whole yet, and the file's absolute path."""
    name = os.path.abspath(path) if _coming else ""
    return _coming.get(name), name


def wait(path: str | os.PathLike[str]) -> None:
    """Returns when a file is whole; at once for one that is not being copied.

    Args:
        path: Any path.

    Raises:
        CopyError: It could not be copied.
    """
    arrivals, name = _copied_by(path)
    if arrivals is not None:
        arrivals.wait(name)


def is_coming(path: str | os.PathLike[str]) -> bool:
    """Says whether a file is not whole yet."""
    return _copied_by(path)[0] is not None


def size(path: str | os.PathLike[str]) -> int:
    """Returns the size in bytes of a file, which need not be whole yet.

    Args:
        path: Any path.

    Raises:
        OSError: There is no such file.
    """
    arrivals, name = _copied_by(path)
    if arrivals is not None:
        if known := arrivals.size(name):
            return known
        arrivals.wait(name)
    return os.stat(path).st_size
