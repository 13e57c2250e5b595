"""Pickles of plain data and numpy's arrays (``.pkl``), in which programs of JAX keep their states.

A pickle is a program for a small machine that may call any function. Here the machine knows plain values, containers
and the few calls that arrays and mappings are written by, each of which stands in a table and makes inert data; any
other name is refused before anything is done with it. Nothing is imported, nothing of the pickle is called, and an
array's numbers are taken from the file once they are asked for. Only what protocols 2 to 5 write is read
(``Lib/pickletools.py`` of Python describes it).
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.checkpoints.readers.base import Tensors
from resfit.errors import CheckpointError

#: Endings of the files that are read.
SUFFIXES = (".pkl", ".pickle")

_MOST_STEPS = 2_000_000
_MOST_VALUES = 500_000
_DEEPEST = 16
_LONGEST_NAME = 300
# A longer text is the numbers of an array, which protocol 2 writes as text.
_LONGEST_TEXT = 1000
_LONGEST_NUMBER = 16
_MOST_AXES = 8
# How many times the file's size all arrays may have, since several may share their numbers.
_MOST_SHARED = 2
_KINDS = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1)")


def recognises(path: Path) -> bool:
    """Whether a path looks like such a file, by its ending.

    Args:
        path: The path.
    """
    return Path(path).suffix.lower() in SUFFIXES


def read(path: Path) -> Tensors:
    """Reads the arrays of a pickle, each when it is asked for.

    Args:
        path: The file.

    Returns:
        Arrays under the keys of the mappings and the fields of the tuples that lead to them, joined by ``"/"``.

    Raises:
        CheckpointError: The file is missing or damaged, asks for more than data, or holds no arrays.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        arrays = dict(_arrays(_Machine(data).run()))
        size = sum(array.size for array in arrays.values())
        if size > _MOST_SHARED * len(data):
            raise ValueError(f"arrays of {size} bytes in a file of {len(data)}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {path}.") from None
    except (OSError, ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error) as error:
        received = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(
            f"{path}: the file must be a pickle of protocol 2 or newer, and whole. Received: {received}."
        ) from error
    if not arrays:
        raise CheckpointError(f"{path}: the file must hold arrays of numbers. Received: none.")
    return Tensors(path, _Arrays(path, arrays))


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Bytes of the file; as text that stands for bytes, each character for one."""

    view: memoryview
    is_text: bool = False

    def content(self) -> bytes:
        return str(self.view, "utf-8").encode("latin-1") if self.is_text else bytes(self.view)


@dataclasses.dataclass
class _Name:
    """A name of a program, which is never looked up; a class of named tuples has fields."""

    name: str
    fields: tuple[str, ...] = ()


@dataclasses.dataclass
class _Kind:
    """A dtype of numpy."""

    code: str


@dataclasses.dataclass
class _Array:
    """An array; ``raw`` is None until its state was read, and for an array of objects."""

    shape: tuple[int, ...] = ()
    kind: _Kind | None = None
    columns_first: bool = False
    raw: _Raw | None = None

    @property
    def size(self) -> int:
        return len(self.raw.view) if self.raw else 0

    def numbers(self) -> np.ndarray:
        if self.raw is None or self.kind is None:
            raise ValueError("an array without numbers")
        dtype, content = np.dtype(self.kind.code), self.raw.content()
        if math.prod(self.shape) * dtype.itemsize != len(content):
            raise ValueError(f"shape {self.shape} of {dtype} in {len(content)} bytes")
        flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)
        return flat.reshape(self.shape, order="F" if self.columns_first else "C")


@dataclasses.dataclass
class _Record:
    """An instance of a class that is not known: its name and what it was made of."""

    of: _Name
    values: tuple[Any, ...]


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays by their names. A file of an optimiser's state may be five times as large as what is needed of it."""

    def __init__(self, path: Path, arrays: Mapping[str, _Array]) -> None:
        self._path, self._arrays = path, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name].numbers()
        except ValueError as error:
            raise CheckpointError(
                f"{self._path}: an array must have the numbers that it declares. Received: {name!r}, {error}."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _arrays(loaded: Any) -> Iterator[tuple[str, _Array]]:
    """Walks mappings, sequences and records; what is no array of numbers holds no weights."""
    pending: list[tuple[str, Any, int]] = [("", loaded, 0)]
    visited = 0
    while pending:
        prefix, node, depth = pending.pop()
        visited += 1
        if depth > _DEEPEST or visited > _MOST_VALUES or len(prefix) > _LONGEST_NAME * 4:
            raise CheckpointError(
                f"containers must be nested at most {_DEEPEST} deep and hold at most {_MOST_VALUES} values. "
                f"Received: more, at {prefix[:200]!r}."
            )
        if isinstance(node, _Array):
            if node.raw is not None:
                yield prefix, node
            continue
        pending.extend(reversed([(f"{prefix}/{key}".lstrip("/"), item, depth + 1) for key, item in _items(node)]))


def _items(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, _Record):
        fields = node.of.fields if len(node.of.fields) == len(node.values) else range(len(node.values))
        return list(zip(fields, node.values, strict=True))
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else []


# What may be called, and what stands for the result.


def _new_array(*_: Any) -> _Array:
    return _Array()  # its state follows


def _filled_array(_make: Any, _arguments: Any, state: tuple[Any, ...], *_: Any) -> _Array:
    return _with_state(_Array(), state)


def _from_buffer(raw: _Raw, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    return _Array(_checked_shape(shape), _checked_kind(kind), order == "F", _checked_raw(raw))


def _with_state(array: _Array, state: tuple[Any, ...]) -> _Array:
    _, shape, kind, columns_first, raw = state
    array.shape, array.columns_first = _checked_shape(shape), columns_first is True
    if isinstance(raw, list):  # objects
        return array
    array.kind, array.raw = _checked_kind(kind), _checked_raw(raw)
    return array


def _checked_shape(shape: Any) -> tuple[int, ...]:
    axes = isinstance(shape, tuple) and len(shape) <= _MOST_AXES
    if not axes or not all(type(axis) is int and 0 <= axis < 1 << 40 for axis in shape):
        raise ValueError("an array of no shape")
    return shape


def _checked_kind(kind: Any) -> _Kind:
    if not isinstance(kind, _Kind):
        raise ValueError("an array of no dtype")
    if not _KINDS.fullmatch(kind.code):
        raise CheckpointError(f"arrays must hold numbers. Received: one of dtype {kind.code[:50]!r}.")
    return kind


def _checked_raw(raw: Any) -> _Raw:
    if not isinstance(raw, _Raw):
        raise ValueError("an array without bytes")
    return raw


def _kind(code: Any, *_: Any) -> _Kind:
    if not isinstance(code, str):
        raise ValueError("a dtype without a name")
    return _Kind(code)


def _scalar(kind: Any, raw: Any) -> _Array | None:
    known = isinstance(kind, _Kind) and _KINDS.fullmatch(kind.code) and isinstance(raw, _Raw)
    return _Array((), kind, False, raw) if known else None


def _encoded(text: Any, encoding: Any = "utf-8") -> _Raw:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes of an unknown encoding")
    return _Raw(memoryview(text.encode()), is_text=True) if isinstance(text, str) else _checked_raw(text)


def _no_bytes(*arguments: Any) -> _Raw:
    if arguments:
        raise ValueError("bytes of something else")
    return _Raw(memoryview(b""))


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in list(pairs.items()) if isinstance(pairs, dict) else list(pairs):
        found[_key(key)] = value
    return found


def _tuple_class(name: Any, fields: Any, module: Any = "", *_: Any) -> _Name:
    if not all(isinstance(text, str) for text in (name, module, *fields)):
        raise ValueError("a class without a name")
    return _Name(f"{module}.{name}", tuple(fields))


_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _new_array),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _from_buffer),
    "numpy.dtype": _kind,
    "_codecs.encode": _encoded,
    **dict.fromkeys(("__builtin__.bytes", "builtins.bytes"), _no_bytes),
    "collections.OrderedDict": _mapping,
    # haiku/_src/data_structures.py of google-deepmind/dm-haiku
    **{f"haiku._src.data_structures.{name}": _mapping for name in ("FlatMapping", "FlatMap", "frozendict")},
    # dill/_dill.py of uqfoundation/dill
    **{f"dill.{module}._create_namedtuple": _tuple_class for module in ("_dill", "dill")},
    **{f"dill.{module}._create_array": _filled_array for module in ("_dill", "dill")},
    # jax/_src/array.py and device_array.py of jax-ml/jax
    "jax._src.array._reconstruct_array": _filled_array,
    "jax._src.device_array.reconstruct_device_array": _filled_array,
}
# Names that are handed over, but not called.
_HANDED_OVER = ("numpy.ndarray",)
# Classes of named tuples whose instances may stand among the data: those of states and of their optimisers.
_STATES = re.compile(r"(?:byol|optax|haiku)(?:\.\w+)*\.\w+")
# Fields of those that may be named and not written out: byol/byol_experiment.py of google-deepmind/deepmind-research.
_FIELDS = {
    "byol.byol_experiment._ByolExperimentState": (
        *("online_params", "target_params", "online_state", "target_state", "opt_state"),
    ),
}


def _named(name: str) -> _Name:
    if name in _CALLS or name in _HANDED_OVER or _STATES.fullmatch(name):
        return _Name(name, _FIELDS.get(name, ()))
    raise CheckpointError(
        "only data are read, and no code is run. Received: a pickle that asks for "
        f"{name[:_LONGEST_NAME]!r}. Save the arrays alone, as .npz or .safetensors."
    )


def _key(value: Any) -> Any:
    if type(value) not in (str, int, bool):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


class _Machine:
    """Goes through a pickle, step by step.

    Args:
        data: The whole of it.
    """

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Returns what the pickle describes."""
        for _ in range(_MOST_STEPS):
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"the unknown step {code:#04x} at {self._at - 1}")
            step(self)
        raise ValueError(f"more than {_MOST_STEPS} steps")

    def _take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise ValueError(f"{count} bytes at {self._at} of {len(self._data)}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _sized(self, width: int) -> memoryview:
        return self._take(self._number(width))

    def _line(self) -> str:
        end = bytes(self._data[self._at : self._at + _LONGEST_NAME]).find(b"\n")
        if end < 0:
            raise ValueError(f"a name without an end at {self._at}")
        return str(self._take(end + 1)[:end], "utf-8")

    def _marked(self) -> list[Any]:
        values, self._stack = self._stack, self._outer.pop()
        return values

    # Steps.

    def skip_protocol(self) -> None:
        if not 2 <= self._number(1) <= 5:
            raise ValueError("an unknown protocol")

    def skip_frame(self) -> None:
        self._take(8)

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def text(self, width: int) -> None:
        view = self._sized(width)
        self.push(str(view, "utf-8") if len(view) <= _LONGEST_TEXT else _Raw(view, is_text=True))

    def raw(self, width: int) -> None:
        self.push(_Raw(self._sized(width)))

    def signed(self) -> None:
        self.push(int.from_bytes(self._take(4), "little", signed=True))

    def long(self) -> None:
        content = self._sized(1)
        if len(content) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(content)} bytes")
        self.push(int.from_bytes(content, "little", signed=True))

    def real(self) -> None:
        self.push(struct.unpack(">d", self._take(8))[0])

    def mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def drop(self) -> None:
        self._stack.pop()

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[len(self._stack) - count :])
        if len(values) != count:
            raise ValueError(f"{len(values)} values where {count} belong")
        del self._stack[len(self._stack) - count :]
        self.push(values)

    def tuple_of_marked(self) -> None:
        values = tuple(self._marked())
        self.push(values)

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("values for what is no list")
        self._stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("values for what is no mapping")
        target.update((_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True))

    def last(self, count: int) -> list[Any]:
        """Takes the last values off the stack."""
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def remember(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def name(self) -> None:
        module = self._line()
        self.push(_named(f"{module}.{self._line()}"))

    def stacked_name(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self.push(_named(f"{module}.{name}"))

    def call(self) -> None:
        called, arguments = self.last(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple) or called.name not in _CALLS:
            asked = called.name if isinstance(called, _Name) else type(called).__name__
            raise CheckpointError(f"only data are read, and no code is run. Received: a call of {asked[:200]!r}.")
        self.push(_CALLS[called.name](*arguments))

    def instance(self) -> None:
        made, arguments = self.last(2)
        if not isinstance(made, _Name) or not isinstance(arguments, tuple) or made.name in _CALLS:
            raise ValueError("an instance of what is no class")
        self.push(_Record(made, arguments))

    def state(self) -> None:
        (state,) = self.last(1)
        target = self._stack[-1]
        if isinstance(target, _Array) and isinstance(state, tuple):
            _with_state(target, state)
        elif isinstance(target, _Kind) and isinstance(state, tuple) and state[1] in ("<", ">", "|", "="):
            target.code = f"{state[1]}{target.code.lstrip('<>|=')}"
        else:
            raise ValueError("a state of something else")


_Step = Callable[[_Machine], None]
_STEPS: dict[int, _Step] = {
    0x80: _Machine.skip_protocol,
    0x95: _Machine.skip_frame,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): _Machine.signed,
    ord("K"): lambda m: m.push(m._number(1)),
    ord("M"): lambda m: m.push(m._number(2)),
    0x8A: _Machine.long,
    ord("G"): _Machine.real,
    ord("X"): lambda m: m.text(4),
    0x8C: lambda m: m.text(1),
    0x8D: lambda m: m.text(8),
    ord("B"): lambda m: m.raw(4),
    ord("C"): lambda m: m.raw(1),
    0x8E: lambda m: m.raw(8),
    0x96: lambda m: m.raw(8),
    ord("T"): lambda m: m.raw(4),
    ord("U"): lambda m: m.raw(1),
    ord("("): _Machine.mark,
    ord("0"): _Machine.drop,
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _Machine.tuple_of_marked,
    ord("a"): lambda m: m.extend(m.last(1)),
    ord("e"): lambda m: m.extend(m._marked()),
    ord("s"): lambda m: m.update(m.last(2)),
    ord("u"): lambda m: m.update(m._marked()),
    ord("q"): lambda m: m.remember(m._number(1)),
    ord("r"): lambda m: m.remember(m._number(4)),
    0x94: lambda m: m.remember(len(m._memo)),
    ord("h"): lambda m: m.recall(m._number(1)),
    ord("j"): lambda m: m.recall(m._number(4)),
    ord("c"): _Machine.name,
    0x93: _Machine.stacked_name,
    ord("R"): _Machine.call,
    0x81: _Machine.instance,
    ord("b"): _Machine.state,
}
