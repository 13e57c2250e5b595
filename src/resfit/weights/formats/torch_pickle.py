"""Files that ``torch.save`` writes, read without torch: its zip format, its older format, and plain pickles.

The pickle is read by :mod:`resfit.weights.formats.restricted_pickle`. Tensors are views of the storages that lie
beside it, so that tensors that share a storage in the file share its memory here too; a storage of bfloat16 or of an
8-bit float is brought to float32 once, however many tensors refer to it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from resfit.errors import CheckpointError
from resfit.weights.formats import restricted_pickle
from resfit.weights.formats.restricted_pickle import NumpyArray, Tensor, TensorStorage

# Of torch's older format: torch/serialization.py of pytorch/pytorch.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_MEMBERS = 200_000
_LOCAL_HEADER = 30

_PLAIN = frozenset(
    ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
)
_EIGHT_BITS = frozenset(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"))
_WAY_OUT = "A program that you trust can save its state_dict alone, best as .safetensors."


def read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads every tensor and array of numpy in a file.

    Args:
        path: The file.

    Returns:
        Arrays by the keys that lead to them, joined by dots, floats of less than 16 bits and bfloat16 as float32, not
        writable; and the names of classes of objects beside them that were not read.

    Raises:
        CheckpointError: The file is missing or damaged, asks for more than data, or holds no arrays.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"weights file must exist. Received: {path}.")
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except CheckpointError as error:
        text = str(error)
        raise (error if str(path) in text else CheckpointError(f"{path}: {text}")) from None
    except (OSError, ValueError, KeyError, EOFError, OverflowError, NotImplementedError, zipfile.BadZipFile) as error:
        received = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(
            f"{path}: the file must be what torch.save writes, and whole. Received: {received}."
        ) from None


def _read_zip(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        members = _members(archive, path.stat().st_size)
        root = next((name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")), None)
        if root is None or root.count("/") != 1:
            raise CheckpointError(
                f"the archive must be one of torch.save, with a data.pkl. Received: {sorted(members)[:5]}."
            )
        order = _stored(file, members[f"{root}byteorder"]) if f"{root}byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"an unknown order of bytes, {order[:20]!r}")
        loaded, _ = restricted_pickle.load(_stored(file, members[f"{root}data.pkl"]), storages={})
        return _collect(loaded, lambda key: _stored(file, members[f"{root}data/{key}"]), order == b"big", path)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Returns the members by name. torch itself stores, never compresses: more than the file holds is a lie."""
    members = archive.infolist()
    names = {member.filename: member for member in members}
    if any(name.partition("/")[2].startswith("code/") for name in names):
        raise CheckpointError(
            "the file must hold tensors, not a program. Received: a TorchScript archive. A program that you "
            "trust can save its tensors: torch.save(torch.jit.load(path).state_dict(), ...)."
        )
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
    if packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(
            "the file must hold all it declares, uncompressed, as torch.save writes it. "
            f"Received: {(packed or ['members larger than the file'])[0]}."
        )
    if len(names) != len(members) or len(members) > _MOST_MEMBERS:
        raise ValueError(f"{len(members)} members of {len(names)} names")
    return names


def _stored(file: Any, member: zipfile.ZipInfo) -> bytes:
    """Returns the content of a member. torch may be told to leave out checksums, which are zero then."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) != _LOCAL_HEADER or header[:4] != b"PK\3\4":
        raise ValueError(f"no header of {member.filename!r}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    file.seek(lengths, io.SEEK_CUR)
    content: bytes = file.read(member.file_size)
    if len(content) != member.file_size or (member.CRC and zlib.crc32(content) != member.CRC):
        raise ValueError(f"{member.filename!r} is damaged")
    return content


def _read_stream(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads torch's older format: five pickles, the third of which is the content, then the storages one by one."""
    data = path.read_bytes()
    if not data:
        raise ValueError("an empty file")
    if data[257:262] == b"ustar":
        raise CheckpointError(f"torch's format of before 2017 (tar) is not read. Received: a tar file. {_WAY_OUT}")
    first, at = restricted_pickle.load(data)
    if first != _MAGIC:  # a pickle as any program writes it: Paddle's, or arrays of numpy
        return _collect(first, _no_storage, False, path)
    protocol, at = restricted_pickle.load(data, at)
    about, at = restricted_pickle.load(data, at)
    if protocol != _PROTOCOL or not isinstance(about, dict):
        raise ValueError(f"an unknown protocol of torch, {protocol!r:.50}")
    storages: dict[str, TensorStorage] = {}
    loaded, at = restricted_pickle.load(data, at, storages=storages)
    keys, at = restricted_pickle.load(data, at)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("storages without keys")
    widths = {storage.key: _width(storage.dtype) for storage in storages.values()}
    big = about.get("little_endian") is False
    places: dict[str, memoryview] = {}
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "big" if big else "little", signed=True)
        at += 8
        end = at + count * widths[key]
        if count < 0 or end > len(data):
            raise ValueError(f"{count} numbers of {widths[key]} bytes at {at} of {len(data)}")
        places[key] = memoryview(data)[at:end]
        at = end
    return _collect(loaded, places.__getitem__, big, path)


def _no_storage(key: str) -> bytes:
    raise KeyError(key)


def _collect(
    loaded: Any, content: Callable[[str], bytes | memoryview], big: bool, path: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    found, unread = restricted_pickle.arrays(loaded, ".")
    if not found:
        what = restricted_pickle.class_name(loaded)
        inside = f", with objects of {', '.join(unread[:3])}" if unread and unread != (what,) else ""
        raise CheckpointError(f"the file must hold named tensors. Received: {what}{inside}. {_WAY_OUT}")
    restricted_pickle.check_shared(found, path.stat().st_size)
    values: dict[tuple[str, str], np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, array in found.items():
        if isinstance(array, NumpyArray):
            arrays[name] = array.numbers()
            continue
        place = (array.storage.key, array.dtype)
        if place not in values:
            _check_dtype(name, array)
            values[place] = _numbers(content(array.storage.key), array.dtype, big)
        arrays[name] = _view(name, array, values[place])
    return arrays, unread


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _PLAIN and tensor.dtype not in _EIGHT_BITS and tensor.dtype != "bfloat16":
        kind = "quantised" if tensor.dtype.startswith(("qint", "quint")) else tensor.dtype
        raise CheckpointError(f"weights must be plain dense tensors. Received: {name!r} of {kind}.")


def _width(dtype: str) -> int:
    """Bytes of one number."""
    known = {"bfloat16": 2, "complex64": 8, "complex128": 16, "qint32": 4}
    return known.get(dtype) or (np.dtype(dtype).itemsize if dtype in _PLAIN else 1)


def _numbers(content: bytes | memoryview, dtype: str, big: bool) -> np.ndarray:
    """Returns all of a storage as one axis, in a dtype of numpy."""
    order: Literal[">", "<"] = ">" if big else "<"
    if len(content) % _width(dtype):
        raise ValueError(f"{len(content)} bytes of {dtype}")
    if dtype == "bfloat16":  # the upper half of a float32
        values = np.frombuffer(content, f"{order}u2").astype(np.uint32)
        values <<= 16
        values = values.view(np.float32)
    elif dtype == "bool":
        values = np.frombuffer(content, np.uint8) != 0
    elif dtype in _EIGHT_BITS:
        import ml_dtypes

        values = np.frombuffer(content, getattr(ml_dtypes, dtype)).astype(np.float32)
    else:
        stored = np.dtype(dtype).newbyteorder(order)
        values = np.frombuffer(content, stored).astype(np.dtype(dtype), copy=False)
    values.flags.writeable = False
    return values


def _view(name: str, tensor: Tensor, values: np.ndarray) -> np.ndarray:
    count, start = math.prod(tensor.shape), tensor.storage.start + tensor.start
    if count > tensor.storage.count or count > values.size:
        raise CheckpointError(
            f"a tensor must be no larger than what is stored of it. Received: {name!r} of shape {tensor.shape}, "
            f"{min(tensor.storage.count, values.size)} numbers of {count}."
        )
    last = start + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    if count and last >= values.size:
        raise ValueError(f"{name!r} ends behind its storage")
    if not count:
        return np.zeros(tensor.shape, values.dtype)
    strides = tuple(stride * values.itemsize for stride in tensor.strides)
    view = as_strided(values[start:], tensor.shape, strides, writeable=False)
    return np.negative(view) if tensor.negated else view
