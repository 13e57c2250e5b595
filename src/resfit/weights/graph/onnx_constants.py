"""The operations of ONNX on constants, as exporters leave them in graphs: shapes, paddings, standardised kernels.

A length that a file leaves open is None in an array of objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats.onnx import Node

Value = Any
Operation = Callable[[Node, Sequence[Any]], Any]

_FREE_ELEMENTS = 1_000_000
_MOST_AXES = 8
#: numpy's types by ONNX' numbers.
DTYPES = {
    **{1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_},
    **{10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 16: np.float32},
}


class UnsupportedOperationError(Exception):
    """An operation that does not fit into a residual network, or cannot be worked out. Its text is the reason."""


def argument(node: Node, values: Sequence[Value | None], place: int, name: str) -> np.ndarray | None:
    """Returns what newer versions of ONNX pass as an input and older ones as an attribute, or None.

    Args:
        node: The operation.
        values: Its inputs.
        place: Number of the input.
        name: Name of the attribute.

    Raises:
        Unfit: The input is no constant.
    """
    if place < len(values) and values[place] is not None:
        if not isinstance(values[place], np.ndarray):
            raise UnsupportedOperationError(f"{name} must be a constant")
        return values[place]
    stated = node.attributes.get(name)
    return None if stated is None else np.asarray(stated)


def whole(values: np.ndarray | None) -> list[int] | None:
    """Returns numbers as ints.

    Raises:
        Unfit: They are none.
    """
    if values is None:
        return None
    if values.ndim > 1 or values.dtype.kind not in "iuO" or any(value is None for value in values.ravel()):
        raise UnsupportedOperationError("whole numbers must be known")
    return [int(value) for value in values.ravel()]


class Constants:
    """Works operations on constants out.

    Args:
        elements: How many numbers the file holds, which bounds how many may be made of them.
        operations: What works each kind of operation out.
    """

    def __init__(self, elements: int, operations: Mapping[str, Operation]):
        self._operations = operations
        self._room = 24 * elements + _FREE_ELEMENTS

    def more(self, elements: int) -> None:
        """Notes that the file holds more numbers, in constants of its operations.

        Args:
            elements: How many.
        """
        self._room += 24 * elements

    def work_out(self, node: Node, values: Sequence[np.ndarray | None]) -> np.ndarray:
        """Returns the first output of an operation.

        Args:
            node: The operation.
            values: Its inputs.

        Raises:
            Unfit: It is not known here, does not fit its inputs, or would make too much of them.
        """
        known = self._operations.get(node.op)
        if known is None:
            raise UnsupportedOperationError("not known on constants")
        try:
            self._spend(_estimate(node, values))
            with np.errstate(all="ignore"):
                result = np.asarray(known(node, values))
        except UnsupportedOperationError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, MemoryError) as error:
            raise UnsupportedOperationError(f"not to be worked out ({error})") from error
        return result

    def _spend(self, elements: int) -> None:
        self._room -= elements
        if self._room < 0:
            raise UnsupportedOperationError("the graph makes too many numbers")


def _estimate(node: Node, values: Sequence[np.ndarray | None]) -> int:
    """At least as many elements as are worked on; views cost nothing."""
    arrays = [value for value in values if value is not None]
    if node.op in _VIEWS:
        return 0
    if node.op == "ConstantOfShape":
        return math.prod(whole(arrays[0]) or [1])
    if node.op == "Expand":
        return math.prod(np.broadcast_shapes(arrays[0].shape, tuple(whole(arrays[1]) or ())))
    if node.op in _BROADCASTING:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if node.op == "Gather":
        return arrays[0].size * max(arrays[1].size, 1)
    return sum(array.size for array in arrays)


def _constant(node: Node, _: Any) -> np.ndarray:
    kinds = {"value": None, "value_float": np.float32, "value_floats": np.float32}
    for name, value in node.attributes.items():
        if name.startswith("value") and value is not None:
            return value if isinstance(value, np.ndarray) else np.asarray(value, kinds.get(name, np.int64))
    raise UnsupportedOperationError("a constant without a value")


def _of_shape(node: Node, values: Sequence[Any]) -> np.ndarray:
    filling = node.attributes.get("value")
    filling = np.zeros(1, np.float32) if filling is None else filling
    return np.full(whole(values[0]) or (), filling.reshape(-1)[0], filling.dtype)


def _reshape(node: Node, values: Sequence[Any]) -> np.ndarray:
    shape = whole(argument(node, values, 1, "shape")) or []
    if not node.attributes.get("allowzero"):
        shape = [values[0].shape[axis] if side == 0 else side for axis, side in enumerate(shape)]
    return values[0].reshape(shape)


def _squeeze(node: Node, values: Sequence[Any]) -> np.ndarray:
    axes = whole(argument(node, values, 1, "axes"))
    return np.squeeze(values[0], None if axes is None else tuple(axes))


def _unsqueeze(node: Node, values: Sequence[Any]) -> np.ndarray:
    axes = whole(argument(node, values, 1, "axes")) or []
    if values[0].ndim + len(axes) > _MOST_AXES:
        raise UnsupportedOperationError("too many axes")
    return np.expand_dims(values[0], tuple(axes))


def slices(node: Node, values: Sequence[Any], rank: int) -> list[slice]:
    """Returns what ``Slice`` takes of each axis.

    Args:
        node: The operation.
        values: Its inputs.
        rank: Number of axes of the first.

    Raises:
        Unfit: Something is not known.
    """
    starts, ends, axes, steps = (
        whole(argument(node, values, place, name))
        for place, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    )
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    taken = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        backwards_to_the_first = step < 0 and end < -(2**30)
        taken[axis] = slice(start, None if backwards_to_the_first else end, step)
    return taken


def _slice(node: Node, values: Sequence[Any]) -> np.ndarray:
    return values[0][tuple(slices(node, values, values[0].ndim))]


def _cast(node: Node, values: Sequence[Any]) -> np.ndarray:
    if values[0].dtype == object:
        return values[0]
    return values[0].astype(DTYPES[node.attributes["to"]])


def _reduce_mean(node: Node, values: Sequence[Any]) -> np.ndarray:
    axes = whole(argument(node, values, 1, "axes"))
    keep = bool(node.attributes.get("keepdims", 1))
    return np.mean(values[0], None if axes is None else tuple(axes), dtype=np.float64, keepdims=keep).astype(
        values[0].dtype
    )


def _batch_norm(node: Node, values: Sequence[Any]) -> np.ndarray:
    x, gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    if node.attributes.get("training_mode"):
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean, variance = x.mean(axes), x.var(axes)
    scale = gamma / np.sqrt(variance + epsilon)
    lines = (1, -1, *(1,) * (x.ndim - 2))
    return (x * scale.reshape(lines) + (beta - mean * scale).reshape(lines)).astype(values[0].dtype)


def _plain(function: Callable[..., Any]) -> Callable[[Node, Sequence[Any]], Any]:
    return lambda node, values: function(*values)


def _divide(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one // other if one.dtype.kind in "iu" else one / other


_VIEWS = ("Constant", "Identity", "Squeeze", "Unsqueeze", "Slice", "Transpose", "Shape")
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "SquaredDifference")
#: Each takes the operation and its inputs.
OPERATIONS: Mapping[str, Operation] = {
    "Constant": _constant,
    "ConstantOfShape": _of_shape,
    "Identity": lambda node, values: values[0],
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "ReduceMean": _reduce_mean,
    "BatchNormalization": _batch_norm,
    "Transpose": lambda node, values: np.transpose(values[0], node.attributes.get("perm")),
    "Concat": lambda node, values: np.concatenate([v for v in values if v is not None], node.attributes["axis"]),
    "Gather": lambda node, values: np.take(values[0], values[1], node.attributes.get("axis", 0)),
    "Expand": lambda node, values: np.broadcast_to(
        values[0], np.broadcast_shapes(values[0].shape, tuple(whole(values[1]) or ()))
    ),
    "Shape": lambda node, values: np.asarray(values[0].shape, np.int64),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _plain(_divide),
    "Pow": _plain(np.power),
    "Max": _plain(np.maximum),
    "Min": _plain(np.minimum),
    "Sqrt": _plain(np.sqrt),
    "Neg": _plain(np.negative),
    "Reciprocal": _plain(np.reciprocal),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
}
