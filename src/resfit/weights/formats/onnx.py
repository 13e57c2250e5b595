"""ONNX files: constants and graph, read from the bytes as they lie there.

Nothing is run and no library of ONNX is needed: a file is a protocol buffer whose few messages are walked through, and
arrays are views of the file, which is mapped into memory. The format is ``onnx.proto`` of ONNX 1.20 (IR version 13).
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import wire
from resfit.weights.formats.base import Tensors, register_format

# The library of protocol buffers takes no larger message.
_MOST_BYTES = 1 << 31
# A network of a thousand blocks has some 100,000 fields.
_MOST_FIELDS = 1_000_000
_MOST_AXES = 8
_MOST_VARINTS = 20_000_000
_DOMAINS = ("", "ai.onnx")

#: Types of numbers: the format's number, its name, numpy's type. bfloat16 is read as the upper half of a float32.
_TYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "<f4"),
    2: ("uint8", "u1"),
    3: ("int8", "i1"),
    4: ("uint16", "<u2"),
    5: ("int16", "<i2"),
    6: ("int32", "<i4"),
    7: ("int64", "<i8"),
    9: ("bool", "?"),
    10: ("float16", "<f2"),
    11: ("float64", "<f8"),
    12: ("uint32", "<u4"),
    13: ("uint64", "<u8"),
    16: ("bfloat16", "<u2"),
}
_BFLOAT16 = 16
_EXTERNAL = 1


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        op: Its kind, with its domain where that is not ONNX's own (``"Conv"``, ``"com.microsoft.FusedConv"``).
        name: What the file calls it.
        inputs: Names of the values that it reads; ``""`` for one that is left out.
        outputs: Names of the values that it makes.
        attributes: Numbers, texts, arrays and lists of them by name. A graph inside is None.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        """Names it as errors do."""
        return f"{self.op} {self.name or ', '.join(self.outputs)!r}"


@dataclasses.dataclass(frozen=True)
class OnnxGraph:
    """How the arrays of a file are used; the ``graph`` of the tensors.

    Attributes:
        nodes: The operations in the order of the file, each behind those that it reads from.
        inputs: Shape of each input that is no constant, None for what is left open, and None for an unknown shape.
        outputs: Names of the values that are handed out.
        opset: Version of ONNX' own operations.
        producer: The program that wrote the file, as it calls itself.
        left_out: What else the file holds, one sentence each.
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[str, tuple[int | None, ...] | None]
    outputs: tuple[str, ...]
    opset: int
    producer: str
    left_out: tuple[str, ...]


def recognises(path: Path) -> bool:
    """Whether a path is such a file, by its ending, or a folder with one of them.

    Args:
        path: The path.
    """
    return _file(Path(path)) is not None


def _file(path: Path) -> Path | None:
    if not path.is_dir():
        return path if path.suffix.lower() == ".onnx" else None
    found = [entry for entry in path.iterdir() if entry.suffix.lower() == ".onnx"]
    return found[0] if len(found) == 1 else None


@register_format("ONNX", suffixes=(".onnx",), recognises=recognises, order=60, runner="onnx")
def read(path: Path) -> Tensors:
    """Reads the constants of a file by name, and its graph.

    Args:
        path: The file, or a folder with one. Arrays outside it must lie in files of its folder, or of folders in that.

    Returns:
        Arrays in ONNX' axes; ``graph`` is a :class:`OnnxGraph`.

    Raises:
        CheckpointError: A file is missing, damaged, lies outside the folder, is a link, declares more than it holds, or
            holds what is no number.
    """
    path = _file(Path(path)) or Path(path)
    try:
        return _Reader(path).model(_mapped(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {path}.") from None
    except (OSError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: the file must be ONNX, and whole. Received: {error}.") from error


def _mapped(path: Path) -> memoryview:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size < _MOST_BYTES:
            raise ValueError(f"{size} bytes")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Reader:
    """Walks through the messages of one file. Holds how many fields may still come."""

    def __init__(self, path: Path):
        self.path = path
        self.room = _MOST_FIELDS
        self.outside: dict[str, memoryview] = {}

    def fields(self, message: wire.Field) -> Iterator[tuple[int, wire.Field]]:
        for field in wire.fields(wire.view(message)):
            self.room -= 1
            if self.room < 0:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            yield field

    def grouped(self, message: wire.Field) -> dict[int, list[wire.Field]]:
        found: dict[int, list[wire.Field]] = {}
        for number, value in self.fields(message):
            found.setdefault(number, []).append(value)
        return found

    def model(self, content: memoryview) -> Tensors:
        found = self.grouped(content)
        if 7 not in found:
            raise ValueError("no graph")
        if 25 in found:
            names = [_text(self.grouped(function), 1) for function in found[25][:5]]
            raise CheckpointError(
                "the graph must be made of ONNX' own operations. Received: functions "
                f"{names}. Bring them into the graph with onnx.inliner.inline_local_functions."
            )
        opset = 0
        for item in found.get(8, []):
            stated = self.grouped(item)
            if _text(stated, 1) in _DOMAINS:
                opset = max(opset, _number(stated, 2))
        left_out = ["left out: a graph of training"] if 20 in found else []
        graph = self.grouped(found[7][-1])
        if 15 in graph:
            raise CheckpointError("the weights must be dense. Received: sparse ones.")
        arrays: dict[str, np.ndarray] = {}
        for tensor in graph.get(5, []):
            name, array = self.tensor(tensor)
            if name in arrays or not name:
                raise CheckpointError(f"a name must stand for one array. Received: {name!r} again.")
            arrays[name] = array
        inputs = dict(map(self.value, graph.get(11, [])))
        return Tensors(
            path=self.path,
            arrays=arrays,
            graph=OnnxGraph(
                nodes=tuple(map(self.node, graph.get(1, []))),
                inputs={name: shape for name, shape in inputs.items() if name not in arrays},
                outputs=tuple(self.value(item)[0] for item in graph.get(12, [])),
                opset=opset,
                producer=f"{_text(found, 2)} {_text(found, 3)}".strip(),
                left_out=tuple(left_out),
            ),
        )

    def value(self, message: wire.Field) -> tuple[str, tuple[int | None, ...] | None]:
        """Name and shape of an input or output."""
        found = self.grouped(message)
        name = _text(found, 1)
        kind = self.grouped(found[2][-1]) if 2 in found else {}
        tensor = self.grouped(kind[1][-1]) if 1 in kind else {}
        if 2 not in tensor:
            return name, None
        shape: list[int | None] = []
        for dimension in self.grouped(tensor[2][-1]).get(1, []):
            stated = self.grouped(dimension)
            length = _number(stated, 1)
            shape.append(length if length > 0 else None)
        return name, tuple(shape)

    def node(self, message: wire.Field) -> Node:
        found = self.grouped(message)
        domain, kind = _text(found, 7), _text(found, 4)
        return Node(
            op=kind if domain in _DOMAINS else f"{domain}.{kind}",
            name=_text(found, 3),
            inputs=tuple(map(wire.text, found.get(1, []))),
            outputs=tuple(map(wire.text, found.get(2, []))),
            attributes=dict(map(self.attribute, found.get(5, []))),
        )

    def attribute(self, message: wire.Field) -> tuple[str, Any]:
        found = self.grouped(message)
        readers: dict[int, Callable[[list[wire.Field]], Any]] = {
            2: lambda values: _float(values[-1]),
            3: lambda values: wire.number(values[-1]),
            4: lambda values: _lenient(values[-1]),
            5: lambda values: self.tensor(values[-1])[1],
            7: lambda values: tuple(_floats(values).tolist()),
            8: lambda values: tuple(_integers(values).tolist()),
            9: lambda values: tuple(map(_lenient, values)),
        }
        # the type says which of them holds (3 is FLOAT of old files without one)
        kinds = {1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8, 8: 9}
        stated = _number(found, 20)
        number = kinds.get(stated) if stated else next((number for number in readers if number in found), None)
        value = readers[number](found[number]) if number in found and number is not None else None
        if value is None and number in (7, 8, 9):
            value = ()
        elif value is None and number in (2, 3, 4):
            value = {2: 0.0, 3: 0, 4: ""}[number]
        return _text(found, 1), value

    def tensor(self, message: wire.Field) -> tuple[str, np.ndarray]:
        """Name and array of a tensor, wherever its numbers lie."""
        found = self.grouped(message)
        name = _text(found, 8)
        kind = _number(found, 2)
        shape = tuple(_integers(found.get(1, [])).tolist())
        if kind not in _TYPES:
            known = ", ".join(name for name, _ in _TYPES.values())
            raise CheckpointError(f"arrays must be of {known}. Received: {name!r} of type {kind}.")
        if len(shape) > _MOST_AXES or min(shape, default=0) < 0 or 3 in found:
            raise ValueError(f"{name!r} of shape {shape[:_MOST_AXES]}")
        dtype = np.dtype(_TYPES[kind][1])
        count = math.prod(shape)
        if _number(found, 14) == _EXTERNAL:
            flat = np.frombuffer(self.external(name, found, count * dtype.itemsize), dtype)
        elif 9 in found:
            raw = wire.view(found[9][-1])
            if len(raw) != count * dtype.itemsize:
                raise CheckpointError(_too_little(name, shape, _TYPES[kind][0], len(raw)))
            flat = np.frombuffer(raw, dtype)
        else:
            flat = _typed(found, kind, dtype)
            if flat.size != count:
                raise CheckpointError(_too_little(name, shape, _TYPES[kind][0], flat.nbytes))
        if kind == _BFLOAT16:
            flat = (flat.astype("<u4") << 16).view("<f4")
        return name, flat.reshape(shape)

    def external(self, name: str, found: Mapping[int, list[wire.Field]], size: int) -> memoryview:
        """The bytes of an array in another file."""
        stated = {}
        for entry in found.get(13, []):
            pair = self.grouped(entry)
            stated[_text(pair, 1)] = _text(pair, 2)
        place = stated.get("location", "")
        if place not in self.outside:
            self.outside[place] = _mapped_beside(self.path.parent, place)
        whole = self.outside[place]
        offset, length = (stated.get(key) or default for key, default in (("offset", "0"), ("length", str(size))))
        if not re.fullmatch(r"\d{1,15}", offset) or not re.fullmatch(r"\d{1,15}", length):
            raise CheckpointError(f"{name!r}: offset and length must be numbers. Received: {offset!r}, {length!r}.")
        if int(length) != size or int(offset) + size > len(whole):
            raise CheckpointError(
                f"{place}: the file must hold all that is declared. Received: {name!r} of {size} bytes, {length} "
                f"stated, at {offset} of {len(whole)}."
            )
        return whole[int(offset) : int(offset) + size]


def _mapped_beside(folder: Path, place: str) -> memoryview:
    """Maps a file with arrays into memory.

    Raises:
        CheckpointError: It is not a plain file in the folder, reached without links.
    """
    parts = place.split("/")
    if not place or "\0" in place or "\\" in place or ":" in place or any(part in ("", "..") for part in parts):
        raise CheckpointError(f"arrays outside the file must lie in its folder. Received: {place!r}.")
    path = folder
    for part in parts:
        path = path / part
        try:
            kind = os.lstat(path).st_mode
        except OSError:
            raise CheckpointError(f"the file with the arrays must lie beside it. Received: no {path}.") from None
        if stat.S_ISLNK(kind) or not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            raise CheckpointError(f"the file with the arrays must be a plain file, no link. Received: {path}.")
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _too_little(name: str, shape: tuple[int, ...], kind: str, size: int) -> str:
    return f"the file must hold all it declares. Received: {name!r} of shape {shape} and {kind} in {size} bytes."


def _typed(found: Mapping[int, list[wire.Field]], kind: int, dtype: np.dtype) -> np.ndarray:
    """Numbers that lie in the field of their type: 4 float, 5 32-bit and smaller, 7 int64, 10 double, 11 unsigned."""
    if kind == 1:
        return _floats(found.get(4, []))
    if kind == 11:
        return np.concatenate([np.zeros(0, "<f8"), *(np.frombuffer(_packed(v, 8), "<f8") for v in found.get(10, []))])
    integers = _integers(found.get({7: 7, 12: 11, 13: 11}.get(kind, 5), []))
    if kind in (10, _BFLOAT16):  # the bits of halves
        return integers.astype("<u2").view(dtype)
    return integers.astype(dtype)


def _packed(value: wire.Field, size: int) -> bytes | memoryview:
    return value.to_bytes(size, "little") if isinstance(value, int) else value


def _floats(values: list[wire.Field]) -> np.ndarray:
    return np.concatenate([np.zeros(0, "<f4"), *(np.frombuffer(_packed(value, 4), "<f4") for value in values)])


def _integers(values: list[wire.Field]) -> np.ndarray:
    """Numbers of variable length, one a field or all in one."""
    parts = [
        np.array([wire.number(value)], "<i8") if isinstance(value, int) else _unpacked(np.frombuffer(value, np.uint8))
        for value in values
    ]
    return np.concatenate([np.zeros(0, "<i8"), *parts])


def _unpacked(raw: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(raw < 0x80)
    if not raw.size:
        return np.zeros(0, "<i8")
    if not ends.size or ends[-1] != raw.size - 1 or ends.size > _MOST_VARINTS:
        raise ValueError("numbers of variable length that do not end, or too many")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        raise ValueError("a number of variable length that does not end")
    values = np.zeros(ends.size, "<u8")
    for place in range(longest):
        there = lengths > place
        values[there] |= (raw[starts[there] + place].astype("<u8") & np.uint64(0x7F)) << np.uint64(7 * place)
    return values.view("<i8")


def _float(value: wire.Field) -> float:
    return float(np.frombuffer(_packed(value, 4), "<f4", count=1)[0])


def _lenient(value: wire.Field) -> str:
    return str(wire.view(value), "utf-8", "replace")


def _text(found: Mapping[int, list[wire.Field]], number: int) -> str:
    return wire.text(found[number][-1]) if number in found else ""


def _number(found: Mapping[int, list[wire.Field]], number: int) -> int:
    return wire.number(found[number][-1]) if number in found else 0
