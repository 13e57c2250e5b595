"""TensorFlow's checkpoints, read as data and without TensorFlow.

Both formats are sorted tables of bytes (those of LevelDB):

- the second one (``X.index`` and ``X.data-00000-of-00001``): the table says where each tensor lies in the data files;
- the first one (a single file): the table holds the tensors themselves.

Everything is checked before it is believed: sizes against the files, checksums of the table and of every tensor. No
more memory is taken than the files are long. Formats: ``tensorflow/core/lib/io/format.cc``,
``tensorflow/core/protobuf/tensor_bundle.proto`` and ``saved_tensor_slice.proto`` of tensorflow/tensorflow.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import wire

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_MASK_DELTA = 0xA282EAD8
_SLICE = b"\0"
_TRAILER = 5  # of a block: its compression, and a checksum
_STORED, _SNAPPY = 0, 1

# The largest networks of this family have some 3,000 tensors, with an optimiser's slots four times as many.
_MOST_TENSORS = 50_000
_LONGEST_NAME = 1_000
_MOST_SHARDS = 1_000
# A table of names alone; a compressed one may unpack to so much.
_MOST_INDEX = 32_000_000
_MOST_UNPACKED = 4_000_000
_MOST_AXES = 8
_LONGEST_TEXT = 16_000_000

_IN_SLICES = (
    "a tensor must be saved as one piece. Received: {!r} in slices, as partitioned variables are. Save it again "
    "without partitioning."
)

# TensorFlow's numbers of dtypes; numpy's types by them. bfloat16 is the upper half of a float32.
_FLOAT, _DOUBLE, _TEXT, _BFLOAT16 = 1, 2, 7, 14
DTYPES = {
    _FLOAT: "<f4",
    _DOUBLE: "<f8",
    3: "<i4",
    4: "<u1",
    5: "<i2",
    6: "<i1",
    9: "<i8",
    10: "|b1",
    _BFLOAT16: "<u2",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
# The field of a TensorProto that lists the numbers of a dtype. Whole numbers are read one by one, and so are few.
_LISTS = {_FLOAT: 5, _DOUBLE: 6, 3: 7, 9: 10}
_MOST_COUNTERS = 10_000


@dataclasses.dataclass(frozen=True)
class BundleCheckpoint:
    """What a checkpoint holds.

    Attributes:
        arrays: Arrays by the name of the checkpoint; bfloat16 as float32. They may be read-only.
        texts: Scalars that are texts, by name.
        other: Names of tensors of other kinds, which were not read.
    """

    arrays: dict[str, np.ndarray]
    texts: dict[str, bytes]
    other: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where a tensor of the second format lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int | None


def masked_checksum(content: bytes) -> int:
    """Returns the CRC-32C of bytes as TensorFlow stores it: rotated, and moved by a constant.

    Args:
        content: The bytes.
    """
    import google_crc32c

    checksum = google_crc32c.value(content)
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends as a table of TensorFlow's does.

    Args:
        path: The file; it may be missing.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-len(_MAGIC), os.SEEK_END)
            return file.read() == _MAGIC
    except OSError:
        return False


def read_bundle(index: Path) -> BundleCheckpoint:
    """Reads a checkpoint of the second format.

    Args:
        index: The file that ends in ``.index``; the data files stand beside it.

    Raises:
        CheckpointError: A file is missing or damaged, or the checkpoint is of a kind that is not read.
    """
    return _reading(index, _read_bundle)


def read_single_file(path: Path) -> BundleCheckpoint:
    """Reads a checkpoint of the first format.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing or damaged, or the checkpoint is of a kind that is not read.
    """
    return _reading(path, _read_single_file)


def lost(index: Path) -> list[str]:
    """Returns the files of a checkpoint of the second format that are not there, or shorter than its index says.

    Args:
        index: The file that ends in ``.index``; it is among them if it is missing or damaged.
    """
    ends: dict[int, int] = {}
    shards = 0
    try:
        with open(index, "rb") as file:
            for key, value in _table(file):
                told = {number: field for number, field in wire.fields(value) if isinstance(field, int)}
                if not key:
                    shards = told.get(1, 0)
                elif size := told.get(5, 0):
                    shard = told.get(3, 0)
                    ends[shard] = max(ends.get(shard, 0), told.get(4, 0) + size)
    except (OSError, ValueError):
        return [index.name]
    names = {index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}"): end for shard, end in ends.items()}
    return sorted(path.name for path, end in names.items() if not path.is_file() or path.stat().st_size < end)


def _reading(path: Path, read: Callable[[Path, BinaryIO], BundleCheckpoint]) -> BundleCheckpoint:
    try:
        with open(path, "rb") as file:
            return read(path, file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError as error:
        raise CheckpointError(f"a checkpoint's files must all exist. Received: no {error.filename}.") from None
    except (OSError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: the file must be a checkpoint of TensorFlow, and whole. Received: {error}."
        ) from (error)


# The second format.


def _read_bundle(path: Path, file: BinaryIO) -> BundleCheckpoint:
    if os.fstat(file.fileno()).st_size > _MOST_INDEX:
        raise CheckpointError(f"an index must have at most {_MOST_INDEX} bytes. Received: more.")
    entries: dict[str, _Entry] = {}
    shards = 0
    for key, value in _table(file):
        if not key:
            shards = _header(value)
            continue
        if key.startswith(_SLICE):  # the tensor itself follows, and says that it is in slices
            continue
        name = str(key, "utf-8")
        entry = _entry(name, value)
        if entry is not None:
            entries[name] = entry
    if not shards:
        raise ValueError("no header")
    prefix = path.name.removesuffix(".index")
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, bytes] = {}
    other = []
    for shard in range(shards):
        own = {name: entry for name, entry in entries.items() if entry.shard == shard}
        # a shard without tensors may be missing
        if not own:
            continue
        with open(path.with_name(f"{prefix}.data-{shard:05d}-of-{shards:05d}"), "rb") as data:
            room = os.fstat(data.fileno()).st_size
            for name, entry in sorted(own.items(), key=lambda item: item[1].offset):
                room -= entry.size
                if room < 0:
                    raise CheckpointError(
                        f"the data must hold all that the index declares. Received: {name!r} of {entry.size} bytes at "
                        f"{entry.offset}, which is more than is there."
                    )
                if entry.dtype == _TEXT and entry.shape == () and entry.size <= _LONGEST_TEXT:
                    texts[name] = _text(_bytes(data, entry.offset, entry.size))
                elif entry.dtype in DTYPES:
                    arrays[name] = _tensor(data, name, entry)
                else:
                    other.append(name)
    strays = [name for name, entry in entries.items() if not 0 <= entry.shard < shards]
    if strays:
        raise ValueError(f"{strays[0]!r} in a data file that is not there")
    return BundleCheckpoint(arrays, texts, tuple(other))


def _header(value: memoryview) -> int:
    shards = endianness = 0
    for number, field in wire.fields(value):
        if number == 1:
            shards = wire.number(field)
        elif number == 2:
            endianness = wire.number(field)
    if endianness != 0:
        raise CheckpointError("numbers must be written in little-endian order. Received: big-endian.")
    if not 1 <= shards <= _MOST_SHARDS:
        raise ValueError(f"{shards} data files")
    return shards


def _entry(name: str, value: memoryview) -> _Entry | None:
    dtype = shard = offset = size = 0
    shape: tuple[int, ...] = ()
    checksum = None
    for number, field in wire.fields(value):
        if number == 1:
            dtype = wire.number(field)
        elif number == 2:
            shape = _shape(wire.view(field))
        elif number == 3:
            shard = wire.number(field)
        elif number == 4:
            offset = wire.number(field)
        elif number == 5:
            size = wire.number(field)
        elif number == 6:
            checksum = wire.number(field)
        elif number == 7:
            raise CheckpointError(_IN_SLICES.format(name))
    if min(offset, size) < 0:
        raise ValueError(f"{name!r} at {offset}, of {size} bytes")
    return _Entry(dtype, shape, shard, offset, size, checksum)


def _tensor(data: BinaryIO, name: str, entry: _Entry) -> np.ndarray:
    dtype = np.dtype(DTYPES[entry.dtype])
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise ValueError(f"{name!r} of shape {entry.shape} in {entry.size} bytes")
    content = _bytes(data, entry.offset, entry.size)
    if entry.checksum is not None and masked_checksum(content) != entry.checksum:
        raise ValueError(f"{name!r} with a checksum that does not fit its content")
    return _widened(np.frombuffer(content, dtype).reshape(entry.shape), entry.dtype)


def _widened(array: np.ndarray, dtype: int) -> np.ndarray:
    if dtype != _BFLOAT16:
        return array
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _text(content: bytes) -> bytes:
    """A scalar text: its length, a checksum of that, and the text."""
    length, at = wire.varint(memoryview(content), 0)
    if length != len(content) - at - 4:
        raise ValueError(f"a text of {length} bytes in {len(content)}")
    return content[at + 4 :]


# The first format.


def _read_single_file(path: Path, file: BinaryIO) -> BundleCheckpoint:
    declared: dict[str, tuple[int, tuple[int, ...]]] = {}
    arrays: dict[str, np.ndarray] = {}
    other: list[str] = []
    for key, value in _table(file):
        for number, field in wire.fields(value):
            if number == 1 and not key:
                declared = dict(_declared(wire.view(field)))
            elif number == 2 and key:
                name, array = _slice(wire.view(field), declared)
                if name in arrays or name in other:
                    raise ValueError(f"{name!r} twice")
                if array is None:
                    other.append(name)
                else:
                    arrays[name] = array
    missing = [name for name in declared if name not in arrays and name not in other]
    if missing or not declared:
        raise ValueError(f"no data of {missing[:3]}" if missing else "no tensors")
    return BundleCheckpoint(arrays, {}, tuple(other))


def _declared(meta: memoryview) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    """Yields name, dtype and shape of each tensor."""
    for number, field in wire.fields(meta):
        if number != 1:
            continue
        name, dtype = "", 0
        shape: tuple[int, ...] = ()
        for inner, value in wire.fields(wire.view(field)):
            if inner == 1:
                name = wire.text(value)
            elif inner == 2:
                shape = _shape(wire.view(value))
            elif inner == 3:
                dtype = wire.number(value)
        if len(name) > _LONGEST_NAME:
            raise ValueError("a name that is too long")
        yield name, (dtype, shape)


def _slice(message: memoryview, declared: Mapping[str, tuple[int, tuple[int, ...]]]) -> tuple[str, np.ndarray | None]:
    """Returns name and content of a tensor; no content where it is of a kind that weights are not."""
    name, data, extents = "", memoryview(b""), memoryview(b"")
    for number, field in wire.fields(message):
        if number == 1:
            name = wire.text(field)
        elif number == 2:
            extents = wire.view(field)
        elif number == 3:
            data = wire.view(field)
    if name not in declared:
        raise ValueError(f"data of {name!r}, which was not declared")
    dtype, shape = declared[name]
    if not _is_whole(extents, shape):
        raise CheckpointError(_IN_SLICES.format(name))
    found = _listed_numbers(data, dtype)
    if found is not None and found.size != math.prod(shape):
        raise ValueError(f"{found.size} numbers for {name!r} of shape {shape}")
    return name, None if found is None else found.reshape(shape)


def _is_whole(pieces: memoryview, shape: tuple[int, ...]) -> bool:
    extents = [wire.view(field) for number, field in wire.fields(pieces) if number == 1]
    for axis, extent in enumerate(extents):
        given = dict(wire.fields(extent))
        if 2 in given and (axis >= len(shape) or given.get(1, 0) != 0 or given[2] != shape[axis]):
            return False
    return True


def _listed_numbers(tensor: memoryview, dtype: int) -> np.ndarray | None:
    """The numbers of a TensorProto, which lists them by kind; None for kinds that weights and counters are not of."""
    lists: dict[int, memoryview] = {}
    for number, field in wire.fields(tensor):
        if isinstance(field, memoryview):
            if number in lists:
                raise ValueError("numbers in several lists")
            lists[number] = field
    packed = lists.get(_LISTS.get(dtype, 0), memoryview(b""))
    if dtype in (_FLOAT, _DOUBLE):
        return _numbers(packed, DTYPES[dtype])
    if dtype not in _LISTS:
        return None
    values: list[int] = []
    at = 0
    while at < len(packed) and len(values) < _MOST_COUNTERS:
        value, at = wire.varint(packed, at)
        values.append(wire.number(value))
    return np.array(values, np.int64) if at == len(packed) else None


def _numbers(packed: memoryview, dtype: str) -> np.ndarray:
    if len(packed) % np.dtype(dtype).itemsize:
        raise ValueError("half a number")
    return np.frombuffer(packed, dtype)


# Tables.


def _table(file: BinaryIO) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the keys and values of a table, in order."""
    size = os.fstat(file.fileno()).st_size
    if size < _FOOTER:
        raise ValueError(f"a file of {size} bytes")
    footer = memoryview(_bytes(file, size - _FOOTER, _FOOTER))
    if footer[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("a file that does not end as a table does")
    at = 0
    for _ in range(2):  # that of the block of properties, which is empty, and that of the index
        at = _handle(footer, at)[2]
    offset, length, _ = _handle(footer, _handle(footer, 0)[2])
    room, count, before = size, 0, b""
    for _, place in _entries(_block(file, offset, length)):
        offset, length, _ = _handle(place, 0)
        room -= length
        if room < 0:
            raise ValueError("blocks that are longer than the file")
        for key, value in _entries(_block(file, offset, length)):
            count += 1
            if count > _MOST_TENSORS:
                raise ValueError(f"more than {_MOST_TENSORS} tensors")
            if count > 1 and key <= before:
                raise ValueError("names out of order")
            before = key
            yield key, value


def _handle(data: memoryview, at: int) -> tuple[int, int, int]:
    offset, at = wire.varint(data, at)
    length, at = wire.varint(data, at)
    return offset, length, at


def _block(file: BinaryIO, offset: int, length: int) -> memoryview:
    raw = memoryview(_bytes(file, offset, length + _TRAILER))
    if masked_checksum(bytes(raw[: length + 1])) != int.from_bytes(raw[length + 1 :], "little"):
        raise ValueError(f"a block at {offset} with a checksum that does not fit its content")
    if raw[length] == _STORED:
        return raw[:length]
    if raw[length] == _SNAPPY:
        return memoryview(_unpacked(raw[:length]))
    raise ValueError(f"a block of the unknown compression {raw[length]}")


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields keys and values of a block. A key is told by what it shares with the one before."""
    if len(block) < 4:
        raise ValueError(f"a block of {len(block)} bytes")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise ValueError("a block that is shorter than its list of restarts")
    at, key = 0, b""
    while at < end:
        shared, at = wire.varint(block, at)
        own, at = wire.varint(block, at)
        length, at = wire.varint(block, at)
        if shared > len(key) or own > end - at or length > end - at - own or shared + own > _LONGEST_NAME:
            raise ValueError("an entry that is longer than its block")
        key = key[:shared] + bytes(block[at : at + own])
        at += own
        yield key, block[at : at + length]
        at += length


def _unpacked(packed: memoryview) -> bytes:
    """Snappy's compression (https://github.com/google/snappy, format_description.txt)."""
    length, at = wire.varint(packed, 0)
    if length > _MOST_UNPACKED:
        raise ValueError(f"a compressed block of {length} bytes")
    out = bytearray()
    while at < len(packed):
        tag = packed[at]
        at += 1
        kind, size = tag & 3, (tag >> 2) + 1
        if kind == 0:
            if size > 60:
                more = size - 60
                size = int.from_bytes(packed[at : at + more], "little") + 1
                at += more
            if size > len(packed) - at:
                raise ValueError("compressed data that end too early")
            out += packed[at : at + size]
            at += size
        else:
            if kind == 1:
                size = (tag >> 2 & 7) + 4
                back, width = tag >> 5 << 8, 1
            else:
                back, width = 0, 2 if kind == 2 else 4
            back |= int.from_bytes(packed[at : at + width], "little")
            at += width
            if not 0 < back <= len(out):
                raise ValueError("compressed data that refer to what is not there")
            piece = bytes(out[-back:][:size])
            out += (piece * (size // len(piece) + 1))[:size]
        if len(out) > length:
            break
    if len(out) != length:
        raise ValueError(f"{len(out)} bytes in a compressed block of {length}")
    return bytes(out)


# Small parts.


def _shape(message: memoryview) -> tuple[int, ...]:
    sizes = []
    for number, field in wire.fields(message):
        if number == 2:
            size = sum(wire.number(value) for inner, value in wire.fields(wire.view(field)) if inner == 1)
            if not 0 <= size < 1 << 40:
                raise ValueError(f"an axis of length {size}")
            sizes.append(size)
    if len(sizes) > _MOST_AXES:
        raise ValueError(f"a tensor of {len(sizes)} axes")
    return tuple(sizes)


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes at {offset} of a file of {size}")
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise ValueError(f"{len(content)} bytes at {offset} where {length} belong")
    return content
