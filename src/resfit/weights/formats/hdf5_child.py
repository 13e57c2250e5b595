"""Inspects HDF5 files in a process of its own, where the library may hang, grow or crash; run as a script.

A request is a line ``[path, offset, size, seconds]`` in JSON, an answer one with null or what is wrong. The process
ends with its parent, after ten seconds without a request, and when a request takes more than its seconds of computing.
:mod:`resfit.weights.formats.hdf5` has the parent's side.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import h5py

MOST_MEMORY = 900_000_000
IDLE_SECONDS = 10.0
_MOST_OBJECTS = 200_000
_MOST_DEPTH = 100


class Window(io.RawIOBase):
    """A part of a file as a file of its own, which can be read and sought in.

    Args:
        path: The file.
        offset: Where the part begins.
        size: Its bytes.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 (closed with the window)
        self._offset, self._size, self._place = offset, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place; see :meth:`io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(base + place, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; see :meth:`io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._size - self._place), 0)
        self._file.seek(self._offset + self._place)
        read = self._file.readinto(view[:count])
        self._place += read
        return int(read)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def inspect(file: h5py.File) -> None:
    """Visits every object, attribute and packed piece of data, as a reader of the file may do later.

    Args:
        file: The open file.

    Raises:
        MemoryError: Something asks for more memory than there may be.
        ValueError: The file has more objects than any network.
        OSError: The library finds it damaged. (RuntimeError and others too.)
    """
    waiting, seen = [(file["/"], 0)], set()
    while waiting:
        item, depth = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        if len(seen) > _MOST_OBJECTS or depth > _MOST_DEPTH:
            raise ValueError(f"a file must have at most {_MOST_OBJECTS} objects, {_MOST_DEPTH} deep")
        for name in item.attrs:
            with _excused():
                item.attrs[name]
        if isinstance(item, h5py.Group):
            for name in item:
                with _excused():
                    if isinstance(item.get(name, getlink=True), h5py.HardLink):
                        waiting.append((item[name], depth + 1))
        elif isinstance(item, h5py.Dataset):
            with _excused():
                _unpack(item)


@contextlib.contextmanager
def _excused() -> Any:
    """Passes over what may be no weight: a reader that needs it meets the same error."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # whatever h5py makes of damage
        if "alloc" in str(error):
            raise MemoryError(str(error)) from None


def _unpack(dataset: h5py.Dataset) -> None:
    if dataset.external or dataset.is_virtual or dataset.chunks is None or not dataset.id.get_num_chunks():
        return
    for number in range(dataset.id.get_num_chunks()):
        offset = dataset.id.get_chunk_info(number).chunk_offset
        dataset[tuple(slice(start, start + length) for start, length in zip(offset, dataset.chunks, strict=True))]


def _limit(seconds: float) -> None:
    """Has the system end this process after so many seconds of computing, however busy the machine is; 0 for never."""
    with contextlib.suppress(AttributeError, OSError):  # systems without such a clock
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(path: str, offset: int | None, size: int | None, seconds: float) -> str | None:
    _limit(seconds)
    try:
        if offset is None or size is None:
            with h5py.File(path, "r") as file:
                inspect(file)
        else:
            with Window(path, offset, size) as part, h5py.File(part, "r") as file:
                inspect(file)
    except MemoryError:
        return "it asks for more memory than a network needs"
    except Exception as error:  # the parent makes one error of all
        if "alloc" in str(error):
            return "it asks for more memory than a network needs"
        return str(error) or type(error).__name__
    finally:
        _limit(0)
    return None


def _end_when_idle(since: list[float]) -> None:
    while time.monotonic() - since[0] < IDLE_SECONDS:
        time.sleep(1)
    os._exit(0)


def main() -> None:
    """Answers requests until the parent is gone or asks no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # systems without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    since = [time.monotonic()]
    threading.Thread(target=_end_when_idle, args=(since,), daemon=True).start()
    for line in sys.stdin:
        since[0] = float("inf")
        sys.stdout.write(json.dumps([_answer(*json.loads(line))]) + "\n")
        sys.stdout.flush()
        since[0] = time.monotonic()


if __name__ == "__main__":
    main()
