"""Opens and reads untrusted HDF5 files.

The HDF5 library itself can hang, take all memory or crash on a damaged file. So a process of its own, with limits,
looks through the file first (:mod:`resfit.weights.formats.hdf5_child`); what it gets through is then opened here.
Nothing is followed out of the file, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import hdf5_child

#: Seconds of computing that looking through a file may take.
SECONDS = 3.0
# A busy machine may take so many times as long for them.
_PATIENCE = 6
# A larger file may take longer: so many bytes in each further second.
_BYTES_A_SECOND = 30_000_000
_MOST_REMEMBERED = 1000
# What ends a process of its own that has computed for too long, where there is such a signal.
_OUT_OF_TIME = getattr(signal, "SIGPROF", 0)

# Compressed data may unpack to this many times the size of the file, and no more.
_MOST_EXPANSION = 100

# The kind of error that a file deserves, or None, and its text.
_Verdict = tuple[type[Exception] | None, str]

_lock = threading.Lock()
_worker: subprocess.Popen[str] | None = None
_owner = 0  # the process that started it
_seen: dict[tuple[Any, ...], _Verdict] = {}


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], offset: int | None = None, size: int | None = None) -> Iterator[h5py.File]:
    """Opens a file, or a part of one, that was looked through in a process of its own.

    Args:
        path: The file.
        offset: Where the HDF5 begins in it, if it is a part.
        size: The bytes of the part.

    Raises:
        CheckpointError: The library does not get through the file in ``SECONDS`` of computing (more for files above
            30 MB) and 900 MB, or crashes on it.
        OSError: It is missing, no HDF5, or damaged.
    """
    _inspect(os.path.abspath(path), offset, size)
    if offset is None or size is None:
        with h5py.File(path, "r") as file:
            yield file
    else:
        with hdf5_child.Window(path, offset, size) as part, h5py.File(part, "r") as file:
            yield file


@contextlib.contextmanager
def told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what goes wrong in a file of HDF5 into an error that names the file.

    Args:
        path: The file.

    Raises:
        CheckpointError: Anything went wrong.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {os.fspath(path)}.") from None
    except (
        *(OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError),
        *(IndexError, RecursionError),
    ) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: the file must be HDF5 as Keras writes it, and whole. Received: {error}."
        ) from error


def most_bytes(size: int) -> int:
    """Returns how many bytes the weights of a file of so many bytes may take."""
    return _MOST_EXPANSION * size


def text(value: Any) -> str:
    """Returns an attribute as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def read_array(group: Any, name: str, room: int) -> np.ndarray:
    """Reads one array of floating-point numbers that lies in the file itself.

    Args:
        group: Where it stands.
        name: Its name there.
        room: How many bytes it may have.

    Raises:
        CheckpointError: It lies elsewhere, is of another kind, or is larger than the file holds.
    """
    dataset = child(group, name, h5py.Dataset)
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"weights must lie in the file itself. Received: {name!r} in another file.")
    is_brain = text(dataset.attrs.get("dtype", "")) == "bfloat16" and dataset.dtype.itemsize == 2
    if not np.issubdtype(dataset.dtype, np.floating) and not is_brain:
        raise CheckpointError(f"weights must be floating-point numbers. Received: {name!r} of {dataset.dtype}.")
    if dataset.shape is None or len(dataset.shape) > 8:
        raise CheckpointError(f"weights must have at most 8 axes. Received: {name!r} of {dataset.shape}.")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None and dataset.id.get_storage_size() < size:
        raise CheckpointError(
            f"the file must hold all it declares. Received: {name!r} of {size} bytes, "
            f"{dataset.id.get_storage_size()} of them there."
        )
    if size > room or (size and not dataset.id.get_storage_size()):
        raise CheckpointError(f"the file must hold all it declares. Received: {name!r} of {size} bytes.")
    if is_brain:  # bfloat16, which numpy lacks: its bits are the upper half of a float32's
        raw = np.frombuffer(dataset[()].tobytes(), "<u2").astype(np.uint32) << np.uint32(16)
        return raw.view(np.float32).reshape(dataset.shape)
    return np.asarray(dataset[()])


def count_numbers(path: str | os.PathLike[str], offset: int | None = None, size: int | None = None) -> int:
    """Returns how many numbers a file, or a part of one, holds; none of them is read.

    Args:
        path: The file.
        offset: Where the HDF5 begins in it, if it is a part.
        size: The bytes of the part.

    Raises:
        CheckpointError: Something lies in another file, or is larger than the file holds.
        OSError: It is no HDF5, or damaged. (Other errors of h5py too; see :func:`told`.)
    """
    room = most_bytes(os.path.getsize(path) if size is None else size)
    numbers = 0
    with opened(path, offset, size) as file:
        waiting, seen = [("", file)], set()
        while waiting:
            place, group = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:  # a group that holds itself
                raise CheckpointError(f"each group must stand in one place. Received: {place!r} in two.")
            seen.add(address)
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise CheckpointError(f"weights must lie in the file itself. Received: a link at {place}/{name}.")
                item = group[name]
                if isinstance(item, h5py.Group):
                    waiting.append((f"{place}/{name}", item))
                    continue
                dataset = child(group, name, h5py.Dataset)
                count = math.prod(dataset.shape or ())
                stored = dataset.id.get_storage_size()
                is_whole = bool(stored) or not count
                if dataset.chunks is None:
                    is_whole = stored >= count * dataset.dtype.itemsize
                room -= count * dataset.dtype.itemsize
                if dataset.external or dataset.is_virtual or not is_whole or room < 0:
                    raise CheckpointError(f"the file must hold all it declares. Received: {place}/{name}.")
                numbers += count
    return numbers


def child(parent: Any, path: str, kind: type) -> Any:
    """Walks to a group or dataset, link by link, over links inside the file only.

    Args:
        parent: Where the way begins.
        path: The way, with slashes.
        kind: ``h5py.Group`` or ``h5py.Dataset``.

    Raises:
        CheckpointError: Nothing of that kind is there, or the way leads out of the file.
    """
    node = parent
    for part in path.split("/"):
        if part in ("", "."):
            continue
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise CheckpointError(f"the file must hold what it names. Received: no {path!r}.")
        if not isinstance(link, h5py.HardLink):
            raise CheckpointError(f"weights must lie in the file itself. Received: a link at {path!r}.")
        node = node[part]
    if not isinstance(node, kind) or node is parent:
        raise CheckpointError(f"{path!r} must be a {kind.__name__.lower()}. Received: {type(node).__name__}.")
    return node


def _inspect(path: str, offset: int | None, size: int | None) -> None:
    """Raises what is wrong with a file; each state of it is looked at once."""
    about = os.stat(path)
    key = (path, offset, size, about.st_ino, about.st_size, about.st_mtime_ns)
    with _lock:
        if key not in _seen:
            if len(_seen) >= _MOST_REMEMBERED:
                _seen.clear()
            _seen[key] = _asked([path, offset, size], SECONDS + about.st_size / _BYTES_A_SECOND)
        kind, wrong = _seen[key]
    if kind is not None:
        raise kind(wrong)


def _asked(request: list[Any], seconds: float) -> _Verdict:
    global _worker, _owner
    line = ""
    late = (
        CheckpointError,
        (f"the file must be read within {seconds:.0f} seconds. Received: one that HDF5 does not get through."),
    )
    for _ in range(2):  # the one that is there may have gone in this moment, for want of work
        fresh = _worker is None or _owner != os.getpid() or _worker.poll() is not None  # a fork has one of its own
        if fresh:
            _end()  # the pipes of one that has gone
            _worker, _owner = _started(), os.getpid()
        worker: Any = _worker
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            worker.stdin.write(json.dumps([*request, seconds]) + "\n")
            worker.stdin.flush()
            threading.Thread(target=lambda answers=answers, out=worker.stdout: answers.put(out.readline())).start()
            line = answers.get(timeout=_PATIENCE * seconds)
        except queue.Empty:
            _stop(worker)
            return late
        except OSError:
            line = ""
        if not line and _OUT_OF_TIME and worker.wait() == -_OUT_OF_TIME:
            _stop(worker)
            return late
        if line or fresh:
            break
    if not line:
        _stop(worker)
        return CheckpointError, "the file must be whole. Received: one on which the HDF5 library crashes."
    answer = json.loads(line)[0]
    return (None, "") if answer is None else (OSError, str(answer))


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


@atexit.register
def _end() -> None:
    """Ends the worker with the process that started it, and closes its pipes."""
    if _worker is not None and _owner == os.getpid():
        _stop(_worker)


def _stop(worker: subprocess.Popen[str]) -> None:
    global _worker
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError, ValueError):
            if pipe:
                pipe.close()
    _worker = None
