"""Opens HDF5 files that nobody vouches for.

The HDF5 library itself can hang, take all memory or crash on a damaged file. So a process of its own, with limits,
looks through the file first (:mod:`resfit.checkpoints.readers.hdf5_child`); what it gets through is then opened here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from resfit.checkpoints.readers import hdf5_child
from resfit.errors import CheckpointError

SECONDS = 8.0
# A larger file may take longer: so many bytes in each further second.
_BYTES_A_SECOND = 30_000_000
_MOST_REMEMBERED = 1000

_lock = threading.Lock()
_worker: subprocess.Popen[str] | None = None
_seen: dict[tuple[Any, ...], str | None] = {}


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], offset: int | None = None, size: int | None = None) -> Iterator[h5py.File]:
    """Opens a file, or a part of one, that was looked through in a process of its own.

    Args:
        path: The file.
        offset: Where the HDF5 begins in it, if it is a part.
        size: The bytes of the part.

    Raises:
        CheckpointError: The library does not get through the file in ``SECONDS`` (more for files above 30 MB) and
            900 MB, or crashes on it.
        OSError: It is missing, no HDF5, or damaged.
    """
    if wrong := _inspected(os.path.abspath(path), offset, size):
        raise OSError(wrong)
    if offset is None or size is None:
        with h5py.File(path, "r") as file:
            yield file
    else:
        with hdf5_child.Window(path, offset, size) as part, h5py.File(part, "r") as file:
            yield file


def _inspected(path: str, offset: int | None, size: int | None) -> str | None:
    """Returns what is wrong with a file, once for each state of it."""
    about = os.stat(path)
    key = (path, offset, size, about.st_ino, about.st_size, about.st_mtime_ns)
    with _lock:
        if key not in _seen:
            if len(_seen) >= _MOST_REMEMBERED:
                _seen.clear()
            try:
                _seen[key] = _asked(json.dumps([path, offset, size]), SECONDS + about.st_size / _BYTES_A_SECOND)
            except CheckpointError as error:
                _seen[key] = f"!{error}"
        wrong = _seen[key]
    if wrong and wrong.startswith("!"):
        raise CheckpointError(wrong[1:])
    return wrong


def _asked(request: str, seconds: float) -> str | None:
    global _worker
    line = ""
    for _ in range(2):  # the one that is there may have gone in this moment, for want of work
        fresh = _worker is None or _worker.poll() is not None
        if fresh:
            _worker = _started()
        worker: Any = _worker
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            worker.stdin.write(request + "\n")
            worker.stdin.flush()
            threading.Thread(target=lambda answers=answers, out=worker.stdout: answers.put(out.readline())).start()
            line = answers.get(timeout=seconds)
        except queue.Empty:
            _stop(worker)
            raise CheckpointError(
                f"the file must be read within {seconds:.0f} seconds. Received: one that HDF5 does not get through."
            ) from None
        except OSError:
            line = ""
        if line or fresh:
            break
    if not line:
        _stop(worker)
        raise CheckpointError("the file must be whole. Received: one on which the HDF5 library crashes.")
    answer = json.loads(line)[0]
    return None if answer is None else str(answer)


def _started() -> subprocess.Popen[str]:
    if not sys.executable:
        raise CheckpointError("HDF5 files are looked through by another Python. Received: none in sys.executable.")
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(hdf5_child.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_USE_FILE_LOCKING": "FALSE"},
    )


def _stop(worker: subprocess.Popen[str]) -> None:
    global _worker
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError, ValueError):
            if pipe:
                pipe.close()
    _worker = None
