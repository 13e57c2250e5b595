"""The ``.npz`` format of numpy, in which BiT is published: a zip of arrays. Nothing is unpickled."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats.base import Tensors, register_format

# What an archive may unpack to: so many times its size, and a head of zeros, which weighs nothing.
_MOST_EXPANSION = 4
_FREE_BYTES = 400_000_000
_MOST_ARRAYS = 20_000
_MOST_AXES = 8
_MOST_HEADER = 10_000
_ENDING = ".npy"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@register_format("npz", suffixes=(".npz",))
def read(path: Path) -> Tensors:
    """Reads every array, under the name of the file.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, damaged, declares more than it holds, or holds objects. Arrays of whole
            numbers and of text, such as counters, are listed and not read.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays, others = _arrays(archive, os.path.getsize(path))
            left_out = f"left out what is no floating-point number: {len(others)} arrays such as {others[:1]}"
            return Tensors(path, arrays, left_out=(left_out,) if others else ())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {path}.") from None
    except (
        *(OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, RuntimeError, RecursionError, MemoryError),
        *(NotImplementedError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise CheckpointError(f"{path}: the file must be .npz as numpy writes it, and whole. Received: {error}.") from (
            error
        )


def _arrays(archive: zipfile.ZipFile, size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if not 1 <= len(names) <= _MOST_ARRAYS or len(set(names)) != len(names):
        raise CheckpointError(
            f"the archive must hold 1 to {_MOST_ARRAYS} arrays, each once. Received: {len(names)} members, "
            f"{len(set(names))} names."
        )
    room = min(_MOST_EXPANSION * size + _FREE_BYTES, 1100 * size)
    arrays: dict[str, np.ndarray] = {}
    others: list[str] = []
    for member in members:
        room -= member.file_size
        if member.compress_type not in _COMPRESSIONS or room < 0:
            raise CheckpointError(
                f"the archive must hold all it declares. Received: {member.filename!r} of {member.file_size} bytes in "
                f"{member.compress_size}, an archive of {size}."
            )
        if not member.filename.endswith(_ENDING):
            raise CheckpointError(f"every member must be an array (.npy). Received: {member.filename!r}.")
        name, array = member.filename.removesuffix(_ENDING), _array(archive, member)
        if array is None:
            others.append(name)
        else:
            arrays[name] = array
    return arrays, others


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Reads one array, or nothing where it is of whole numbers or text."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, column_major, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MOST_HEADER)
        elif version == (2, 0):
            shape, column_major, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=_MOST_HEADER)
        else:
            raise ValueError(f"{member.filename!r} of format version {version}")
        if dtype.kind in "iubSU":
            return None
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise CheckpointError(
                f"weights must be floating-point numbers. Received: {member.filename!r} of {dtype}, which is not read."
            )
        if len(shape) > _MOST_AXES or any(axis < 0 for axis in shape):
            raise ValueError(f"{member.filename!r} of shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise CheckpointError(
                f"the archive must hold all it declares. Received: {member.filename!r} of shape {shape} in "
                f"{member.file_size} bytes."
            )
        content = file.read(size)
        if len(content) != size or file.read(1):  # at the end, the checksum is compared
            raise ValueError(f"{member.filename!r} of {len(content)} bytes where {size} belong")
    flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(shape, order="F" if column_major else "C")
