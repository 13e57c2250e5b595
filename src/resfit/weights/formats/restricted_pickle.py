"""Pickles of untrusted files, read as data: no name of a pickle is ever imported, and nothing of it is ever called.

A pickle may name any class or function and have it called. Here Python's own ``pickle.Unpickler`` runs with
``find_class`` overridden: whatever is asked for, it gets a fresh, inert class of this module.

- Names in :data:`_KNOWN` (arrays of numpy, tensors of torch, mappings) make plain records, which are turned into arrays
  when the containers are walked, after their sizes were checked against the bytes that are there.
- Names of Python's own library are taken from an allow-list (:data:`_STANDARD`); any other, such as ``os.system`` or
  ``builtins.eval``, refuses the file.
- Any other name (a training configuration, an optimiser, a class of a project) becomes a :class:`Placeholder`, which
  keeps what it was given and does nothing. What is in it is not read, except the entries of mappings and lists.

Before that, the steps of the pickle are looked through (:func:`_check_steps`), so that every length lies inside the
file and no step asks for more memory or time than its own bytes account for.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import pickletools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from resfit.errors import CheckpointError

_MOST_STEPS = 2_000_000
_MOST_VALUES = 500_000
_MOST_CLASSES = 10_000
_DEEPEST = 16
_LONGEST_NAME = 300
_LARGEST_NUMBER = 1 << 128
_HEAVIEST_KEY = 100
_MOST_AXES = 16
# How many times the file's size all arrays of numpy may have, since several may share their numbers.
_MOST_SHARED = 2
_KINDS = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1)")

# Steps that reach beyond the pickle itself.
_REFUSED_STEPS = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


class Placeholder:
    """Stands for an object that is not made: it keeps its arguments and entries, and does nothing."""

    __slots__ = ("arguments", "entries", "items")
    arguments: tuple[Any, ...]
    entries: dict[Any, Any]
    items: list[Any]

    #: The name that the pickle asks for.
    name: ClassVar[str] = ""
    #: Names of the arguments, for named tuples.
    fields: ClassVar[tuple[str, ...] | None] = None
    #: Whether the first mapping or list of pairs among the arguments are entries.
    is_mapping: ClassVar[bool] = False

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        """Keeps the arguments."""
        made = object.__new__(cls)
        made.arguments, made.entries, made.items = arguments, {}, []
        return made

    def __setstate__(self, state: Any) -> None:
        """Drops the state: neither attributes nor code come from it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keeps an entry of a mapping."""
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Keeps an entry of a list."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Keeps entries of a list."""
        self.items.extend(values)

    def add(self, value: Any) -> None:
        """Drops an entry of a set."""


class _Call(Placeholder):
    """A known function: what stands for its result is made by ``make``, which calls nothing of the pickle."""

    __slots__ = ()
    make: ClassVar[Callable[..., Any]]

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        return cls.make(*arguments)


class _Record:
    """What a known call stands for. A state that a pickle gives it is dropped unless the kind of record takes it."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclasses.dataclass(eq=False)
class Kind(_Record):
    """A dtype of numpy."""

    code: str

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.code = f"{state[1]}{self.code.lstrip('<>|=')}"


@dataclasses.dataclass(eq=False)
class Latin(_Record):
    """Text that stands for bytes, each character for one, as protocol 2 writes them."""

    text: str

    def __len__(self) -> int:
        return len(self.text)


@dataclasses.dataclass(eq=False)
class NumpyArray(_Record):
    """An array of numpy; ``raw`` is None until its state was read, and for an array of objects."""

    shape: tuple[int, ...] = ()
    kind: Kind | None = None
    columns_first: bool = False
    raw: bytes | bytearray | Latin | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without a state")
        _, shape, kind, columns_first, raw = state
        self.shape, self.columns_first = _checked_shape(shape), columns_first is True
        if isinstance(raw, list):  # objects
            return
        self.kind, self.raw = _checked_kind(kind), _checked_raw(raw)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return len(self.raw) if self.raw is not None else 0

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers that weights can be."""
        return self.raw is not None and self.kind is not None and bool(_KINDS.fullmatch(self.kind.code))

    def numbers(self) -> np.ndarray:
        """Returns the array, native in its byte order.

        Raises:
            ValueError: The bytes are not those of its shape.
        """
        if self.raw is None or self.kind is None:
            raise ValueError("an array without numbers")
        dtype = np.dtype(self.kind.code)
        content = self.raw.text.encode("latin-1") if isinstance(self.raw, Latin) else self.raw
        if math.prod(self.shape) * dtype.itemsize != len(content):
            raise ValueError(f"shape {self.shape} of {dtype} in {len(content)} bytes")
        flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)
        return flat.reshape(self.shape, order="F" if self.columns_first else "C")


@dataclasses.dataclass(eq=False)
class TensorStorage(_Record):
    """Where a tensor of torch lies: the key of its bytes, the name of its dtype, its first element and their number."""

    key: str
    dtype: str
    start: int
    count: int


@dataclasses.dataclass(eq=False)
class Tensor(_Record):
    """A tensor of torch, whose numbers lie in a storage beside the pickle."""

    storage: TensorStorage
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool = False


@dataclasses.dataclass(eq=False)
class Unread(_Record):
    """A tensor of a kind that no weights are: sparse, quantised and the like."""

    what: str


def load(data: bytes, start: int = 0, *, storages: dict[str, TensorStorage] | None = None) -> tuple[Any, int]:
    """Reads one pickle.

    Args:
        data: Bytes that hold it.
        start: Where it begins.
        storages: Where the storages of torch that it refers to, outside the pickle, are put by their keys. Default:
            it may refer to none.

    Returns:
        Plain values, containers and the records of this module; and where the pickle ends.

    Raises:
        CheckpointError: It asks for what no data are made of, or is damaged, or asks for more than it is.
    """
    end = _check_steps(data, start)
    try:
        return _Unpickler(io.BytesIO(data[start:end]), storages).load(), end
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises many kinds over damaged data
        raise _damaged(error) from None


def arrays(loaded: Any, separator: str) -> tuple[dict[str, NumpyArray | Tensor], tuple[str, ...]]:
    """Walks mappings, sequences and named tuples, and collects the arrays in them.

    Args:
        loaded: What :func:`load` returned.
        separator: What joins the keys that lead to an array.

    Returns:
        Arrays by name; and the names of the classes of objects whose content was not read.

    Raises:
        CheckpointError: The containers are nested too deep or hold too much, or a tensor is of a kind that is not read.
    """
    found: dict[str, NumpyArray | Tensor] = {}
    unread: dict[str, None] = {}
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
        if isinstance(node, Unread):
            raise CheckpointError(f"weights must be plain dense tensors. Received: {prefix!r}, {node.what}.")
        if isinstance(node, (NumpyArray, Tensor)):
            if isinstance(node, Tensor) or node.is_numeric:
                if prefix in found:
                    raise CheckpointError(f"every array must have a name of its own. Received: {prefix!r} twice.")
                found[prefix] = node
            continue
        if isinstance(node, Placeholder) and not (node.is_mapping or node.fields or node.entries or node.items):
            if node.name.partition(".")[0] not in (*sys.stdlib_module_names, "numpy", "torch"):
                unread.setdefault(node.name)
            continue
        pending.extend(
            (f"{prefix}{separator if prefix else ''}{key}", item, depth + 1)
            for key, item in reversed(list(_entries(node)))
            if isinstance(key, (str, int))
        )
    return found, tuple(unread)


def check_shared(found: Mapping[str, NumpyArray | Tensor], size: int) -> None:
    """Refuses arrays of numpy that are many times larger together than the file that they are in.

    Args:
        found: Arrays by name.
        size: Bytes of the file.

    Raises:
        CheckpointError: They are.
    """
    total = sum(array.size for array in found.values() if isinstance(array, NumpyArray))
    if total > _MOST_SHARED * size:
        raise CheckpointError(
            f"arrays must not be larger than the file that holds them. Received: arrays of {total} bytes in a file of "
            f"{size}."
        )


def class_name(node: Any) -> str:
    """Returns what a value is, for an error: the class that its placeholder stands for, or its own type.

    Args:
        node: Part of what :func:`load` returned.
    """
    return node.name if isinstance(node, Placeholder) else type(node).__name__


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)
    elif isinstance(node, Placeholder):
        if node.fields is not None:
            known = len(node.fields) == len(node.arguments)
            yield from zip(node.fields if known else range(len(node.arguments)), node.arguments, strict=True)
        if node.is_mapping:
            given = next((value for value in node.arguments if isinstance(value, (dict, list, Placeholder))), ())
            pairs = given.items() if isinstance(given, dict) else given if isinstance(given, list) else _entries(given)
            yield from (tuple(pair) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2)
        yield from node.entries.items()
        yield from enumerate(node.items)


def _damaged(error: Exception) -> CheckpointError:
    received = f"{type(error).__name__}: {str(error)[:200]}"
    return CheckpointError(f"the file must hold a whole pickle. Received: {received}.")


# The steps, before any is taken.


def _check_steps(data: bytes, start: int) -> int:
    """Looks through the steps of a pickle and returns where it ends.

    Lengths are checked against the file as each step is decoded. The unpickler's memo is as long as its largest place,
    so places are bounded by the steps before them. A key of nested tuples is hashed in the time that all of its parts
    take, shared ones over and over: the weight of a tuple (how many parts it has) is followed from step to step.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    stack: list[int | None] = []  # weights; None for a mark
    memo: dict[int, int] = {}
    count = 0
    try:
        for step, argument, _ in pickletools.genops(stream):
            count += 1
            name = step.name
            if count > _MOST_STEPS:
                raise ValueError(f"more than {_MOST_STEPS} steps")
            if name in _REFUSED_STEPS:
                raise ValueError(f"the step {name}, which reaches beyond the file")
            if type(argument) is int and not -_LARGEST_NUMBER < argument < _LARGEST_NUMBER:
                raise ValueError("a number of more than 128 bits")
            if name in _PUTS or name == "MEMOIZE":
                place = len(memo) if name == "MEMOIZE" else int(argument or 0)
                if not 0 <= place <= count:
                    raise ValueError(f"place {place} of the memo at step {count}")
                memo[place] = _top(stack)
            elif name in _GETS:
                stack.append(memo[int(argument or 0)])
            else:
                _follow(step, stack)
    except (ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise _damaged(error) from None
    return stream.tell()


def _follow(step: Any, stack: list[int | None]) -> None:
    """Does to the weights what a step does to the values."""
    name, before = step.name, step.stack_before
    if name == "DUP":
        stack.append(_top(stack))
        return
    if name == "POP" and stack and stack[-1] is None:
        stack.pop()
        return
    popped: list[int] = []
    if pickletools.markobject in before:
        while (weight := stack.pop()) is not None:
            popped.append(weight)
        popped.reverse()
        fixed = before.index(pickletools.markobject)
    else:
        fixed = len(before)
    under = [_popped(stack) for _ in range(fixed)][::-1]
    keys = {"SETITEM": under[1:2], "SETITEMS": popped[::2], "ADDITEMS": popped, "FROZENSET": popped}.get(name, [])
    if max(keys, default=0) > _HEAVIEST_KEY:
        raise ValueError("a tuple of many parts as a key")
    for kind in step.stack_after:
        if kind is pickletools.markobject:
            stack.append(None)
        else:
            stack.append(min(1 + sum(popped) + sum(under), 1 << 30) if name in _TUPLES else 1)


def _top(stack: list[int | None]) -> int:
    weight = stack[-1]
    if weight is None:
        raise ValueError("a mark where a value belongs")
    return weight


def _popped(stack: list[int | None]) -> int:
    weight = _top(stack)
    stack.pop()
    return weight


# What names stand for.


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: dict[str, TensorStorage] | None) -> None:
        super().__init__(file, encoding="latin-1")
        self._storages = storages
        self._classes: dict[str, type[Placeholder]] = {}
        self._made = 0

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self._classes:
            if len(full) > _LONGEST_NAME:
                raise ValueError("a name of more than 300 characters")
            self._classes[full] = self._named(full)
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        if self._storages is None or not isinstance(pid, tuple) or len(pid) < 2:
            raise ValueError("a reference to something outside the pickle")
        if pid[0] == "module":  # a class with its source beside it
            return pid[1]
        if pid[0] != "storage" or len(pid) not in (5, 6):
            raise ValueError("a reference to no storage")
        _, kind, key, _, count = pid[:5]
        start = 0
        view = pid[5] if len(pid) == 6 else None
        if view is not None:
            _, start, count = view
        dtype = storage_dtype(getattr(kind, "name", ""))
        if not isinstance(key, str) or not _is_count(count) or not _is_count(start):
            raise ValueError("a storage without a key or a size")
        return (
            self._storages.setdefault(key, TensorStorage(key, dtype, 0, count))
            if view is None
            else TensorStorage(key, dtype, start, count)
        )

    def _named(self, full: str) -> type[Placeholder]:
        if full in _KNOWN:
            return self._new(_Call, name=full, make=staticmethod(_KNOWN[full]))
        if _NAMED_TUPLE.fullmatch(full):
            return self._new(_Call, name=full, make=self._named_tuple)
        if _MAPPINGS.fullmatch(full):
            return self._new(Placeholder, name=full, is_mapping=True)
        top = full.partition(".")[0]
        if top in sys.stdlib_module_names and not _STANDARD.fullmatch(full):
            raise CheckpointError(
                f"only data are read, and no code is run. Received: a pickle that asks for {full[:_LONGEST_NAME]!r}. "
                "Have its publisher, or a program that you trust, save the arrays alone, best as .safetensors."
            )
        fields = _FIELDS.get(full, ()) if _STATES.fullmatch(full) else None
        return self._new(Placeholder, name=full, fields=fields)

    def _named_tuple(self, name: Any, fields: Any, module: Any = "", *_: Any) -> type[Placeholder]:
        listed = isinstance(fields, (list, tuple)) and len(fields) <= _LONGEST_NAME
        if not listed or not all(isinstance(text, str) for text in (name, module, *fields)):
            raise ValueError("a class without a name")
        return self._new(Placeholder, name=f"{module}.{name}"[:_LONGEST_NAME], fields=tuple(fields))

    def _new(self, base: type[Placeholder], **attributes: Any) -> type[Placeholder]:
        """Returns a class of this pickle's own, so that nothing that a pickle does to a class outlives it."""
        self._made += 1
        if self._made > _MOST_CLASSES:
            raise ValueError(f"more than {_MOST_CLASSES} classes")
        return type(base.__name__, (base,), {"__slots__": (), **attributes})


def storage_dtype(name: str) -> str:
    """Returns the dtype of a class of torch's storages, by its name (``"torch.FloatStorage"``).

    Raises:
        ValueError: It is no such class.
    """
    kind = name.rpartition(".")[2].removesuffix("Storage")
    if not name.startswith("torch.") or kind not in _STORAGES:
        raise ValueError(f"a storage of class {name[:_LONGEST_NAME]!r}")
    return _STORAGES[kind]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES or not all(_is_count(axis) for axis in shape):
        raise ValueError("an array of no shape")
    return shape


def _checked_kind(kind: Any) -> Kind:
    if not isinstance(kind, Kind):
        raise ValueError("an array of no dtype")
    return kind


def _checked_raw(raw: Any) -> bytes | bytearray | Latin:
    if isinstance(raw, str):  # bytes of Python 2
        return Latin(raw)
    if not isinstance(raw, (bytes, bytearray, Latin)):
        raise ValueError("an array without bytes")
    return raw


def _new_array(*_: Any) -> NumpyArray:
    return NumpyArray()  # its state follows


def _filled_array(_make: Any, _arguments: Any, state: Any, *_: Any) -> NumpyArray:
    array = NumpyArray()
    array.__setstate__(state)
    return array


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any, *_: Any) -> NumpyArray:
    return NumpyArray(_checked_shape(shape), _checked_kind(kind), order == "F", _checked_raw(raw))


def _kind(code: Any, *_: Any) -> Kind:
    name = getattr(code, "name", None)  # a class, such as numpy.float32
    text = _SCALARS.get(name, name) if isinstance(name, str) else code
    if not isinstance(text, str):
        raise ValueError("a dtype without a name")
    return Kind(text[:50])


def _scalar(*_: Any) -> None:
    """A number of numpy holds no weights, as one of Python does not."""


def _encoded(text: Any, encoding: Any = "utf-8", *_: Any) -> Any:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return Latin(text)
    if isinstance(text, (bytes, Latin)):
        return text
    raise ValueError("bytes of an unknown encoding")


def _bytes(*arguments: Any) -> Any:
    if not arguments:
        return b""
    if isinstance(arguments[0], (bytes, bytearray, Latin)):
        return arguments[0]
    return _encoded(*arguments)


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    axes = all(isinstance(axes, tuple) and len(axes) <= _MOST_AXES for axes in (shape, strides))
    if not isinstance(storage, TensorStorage) or not _is_count(start) or not axes or len(shape) != len(strides):
        raise ValueError("a tensor without a storage or a shape")
    if not all(map(_is_count, (*shape, *strides))):
        raise ValueError("a tensor of no shape")
    about = more[2] if len(more) > 2 else None
    negated = isinstance(about, dict) and about.get("neg") is True
    return Tensor(storage, storage.dtype, start, shape, strides, negated)


def _tensor_of_dtype(storage: Any, start: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    tensor = _tensor(storage, start, shape, strides, *more[:2], *more[3:])
    name = getattr(more[2], "name", "") if len(more) > 2 else ""
    if not name.startswith("torch."):
        raise ValueError("a tensor without a dtype")
    tensor.dtype = name.removeprefix("torch.")
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    return data if isinstance(data, (Tensor, Unread)) else None


def _subclassed(make: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a subclass, or one with attributes: how it is made, and with what."""
    known = isinstance(make, type) and issubclass(make, _Call) and make.name in (*_TENSORS, *_UNREAD)
    if not known or not isinstance(arguments, tuple):
        return Unread("of a subclass that is not known")
    return make(*arguments)


def _shape(axes: Any = (), *_: Any) -> tuple[int, ...]:
    return _checked_shape(axes)


def _mapped_class(made: Any, *_: Any) -> Any:
    """``copyreg``'s way to make an instance of a class."""
    return Placeholder.__new__(made) if isinstance(made, type) and issubclass(made, Placeholder) else Placeholder()


def _returning(what: str) -> Callable[..., Unread]:
    return lambda *_: Unread(what)


# names of Python 2, which torch's protocol writes
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"},
    **{"ComplexDouble": "complex128", "ComplexFloat": "complex64"},
    **{f"{kind}": kind.lower() for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")},
    "Untyped": "uint8",
}
_SCALARS = {
    **{f"numpy.{name}": np.dtype(name).str for name in ("float16", "float32", "float64", "int8", "uint8", "int16")},
    **{f"numpy.{name}": np.dtype(name).str for name in ("uint16", "int32", "uint32", "int64", "uint64", "bool")},
}
_TENSORS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
}
_UNREAD = {
    **dict.fromkeys(
        (
            *(f"torch._utils._rebuild_{name}" for name in ("sparse_tensor", "sparse_csr_tensor")),
            *("torch.sparse._rebuild_sparse_tensor", "torch._utils._sparse_tensors_to_validate"),
        ),
        _returning("a sparse one"),
    ),
    "torch._utils._rebuild_qtensor": _returning("a quantised one"),
    "torch._utils._rebuild_nested_tensor": _returning("a nested one"),
    "torch._utils._rebuild_meta_tensor_no_storage": _returning("one without numbers (on the device 'meta')"),
    "torch._utils._rebuild_wrapper_subclass": _returning("one of a subclass"),
}
_KNOWN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _new_array),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _from_buffer),
    "numpy.dtype": _kind,
    "_codecs.encode": _encoded,
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray"), _bytes),
    "copyreg._reconstructor": _mapped_class,
    # dill/_dill.py of uqfoundation/dill
    **{f"dill.{module}._create_array": _filled_array for module in ("_dill", "dill")},
    # jax/_src/array.py and device_array.py of jax-ml/jax
    "jax._src.array._reconstruct_array": _filled_array,
    "jax._src.device_array.reconstruct_device_array": _filled_array,
    # torch/_utils.py and torch/_tensor.py of pytorch/pytorch
    **_TENSORS,
    **_UNREAD,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclassed,
    "torch._tensor._rebuild_from_type": _subclassed,
    "torch.Size": _shape,
}
# Classes whose arguments are entries: of Python, and of libraries that programs of training keep their options in.
_MAPPINGS = re.compile(
    r"collections\.(?:OrderedDict|defaultdict|Counter)"
    # haiku/_src/data_structures.py of google-deepmind/dm-haiku; flax/core/frozen_dict.py of google/flax
    r"|haiku\._src\.data_structures\.(?:FlatMapping|FlatMap|frozendict)|flax\.core\.frozen_dict\.FrozenDict"
    # lightning/fabric/utilities/data.py of Lightning-AI; mmengine/config/config.py of open-mmlab
    r"|(?:\w+\.)*(?:AttributeDict|ConfigDict|EasyDict|AttrDict|CfgNode|immutabledict)"
)
# Data of Python's own library that stand beside weights: each is a placeholder, none is made.
_STANDARD = re.compile(
    r"pathlib\.\w*Path|pathlib\._local\.\w*Path|datetime\.\w+|zoneinfo\.ZoneInfo\._unpickle|argparse\.Namespace"
    r"|types\.SimpleNamespace|collections\.deque|decimal\.Decimal|fractions\.Fraction|uuid\.(?:UUID|SafeUUID)"
    r"|functools\.partial|builtins\.(?:set|frozenset|list|dict|tuple|str|int|float|bool|complex|x?range|slice|object"
    r"|Ellipsis|NoneType|type)|copyreg\.__newobj__|copyreg\.__newobj_ex__|re\._compile"
    r"|enum\.\w+|logging\.(?:getLogger|Logger|RootLogger)|random\.Random|array\._array_reconstructor"
)
_NAMED_TUPLE = re.compile(r"dill\.(?:_dill|dill)\._create_namedtuple")
# Classes of named tuples whose instances may stand among the data: those of states and of their optimisers.
_STATES = re.compile(r"(?:byol|optax|haiku)(?:\.\w+)*\.\w+")
# Fields of those that may be named and not written out: byol/byol_experiment.py of google-deepmind/deepmind-research.
_FIELDS = {
    "byol.byol_experiment._ByolExperimentState": (
        *("online_params", "target_params", "online_state", "target_state", "opt_state"),
    ),
}
