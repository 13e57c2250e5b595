"""The operations of ONNX that turn, cut and join maps of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats.onnx import Node
from resfit.weights.graph.onnx_constants import UnsupportedOperationError, argument, slices, whole
from resfit.weights.graph.onnx_features import Handler, subsample
from resfit.weights.graph.steps import Map, Step, after


def _pad(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    amounts = whole(argument(node, values, 1, "pads" if opset > 1 else "paddings")) or []
    filling = argument(node, values, 2, "value")
    axes = whole(argument(node, values, 3, "axes"))
    mode, rank = node.attributes.get("mode") or "constant", len(x.axes)
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if len(amounts) != 2 * len(axes) or min(amounts, default=0) < 0:
        raise UnsupportedOperationError("amounts must be two for each axis, none negative")
    sides = {x.axes[axis]: (amounts[at], amounts[at + len(axes)]) for at, axis in enumerate(axes)}
    padded = {letter for letter, (before, after) in sides.items() if before or after}
    value = 0.0 if filling is None else float(filling.reshape(-1)[0])
    if not padded:
        return x
    if padded == {"C"} and mode == "constant" and value == 0:
        before, after = sides["C"]
        made = Step("widen", [x.step], str(node), x.step.channels + before + after, x.step.size, {"before": before})
        return Map(made, x.axes)
    if not padded <= {"H", "W"} or mode not in ("constant", "reflect"):
        raise UnsupportedOperationError(f"padding of {sorted(padded)} in mode {mode!r}")
    (top, bottom), (left, right) = sides.get("H", (0, 0)), sides.get("W", (0, 0))
    height, width = x.step.size
    size = (None if height is None else height + top + bottom, None if width is None else width + left + right)
    values_of_it = {"pads": (top, left, bottom, right), "mode": mode, "value": value}
    return Map(Step("pad", [x.step], str(node), x.step.channels, size, values_of_it), x.axes)


def _slice(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    taken = dict(zip(x.axes, slices(node, values, len(x.axes)), strict=True))
    sizes = {"C": x.step.channels or None, "H": x.step.size[0], "W": x.step.size[1]}
    steps = {"H": 1, "W": 1}
    for letter, part in taken.items():
        size = sizes.get(letter)
        whole_axis = part.start in (0, None) and (part.stop is None or part.stop >= 2**30 or part.stop == size)
        reversed_axis = part.step == -1 and part.start in (-1, size and size - 1) and part.stop is None
        if letter == "C" and reversed_axis:
            return after(x, node, "flip")
        if letter == "1" and range(1)[part] == range(1):
            continue
        if not whole_axis or (part.step or 1) < 1 or (letter not in "HW" and part.step not in (None, 1)):
            raise UnsupportedOperationError("it must take every n-th pixel of all")
        steps[letter] = part.step or 1
    return subsample(x, node, (steps["H"], steps["W"]))


def _gather(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, indices = values[0], whole(values[1])
    axis = node.attributes.get("axis", 0)
    if not isinstance(x, Map) or x.axes[axis] != "C" or indices != list(range(x.step.channels))[::-1]:
        raise UnsupportedOperationError("it must turn the order of the channels")
    return after(x, node, "flip")


def _transpose(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    order = node.attributes.get("perm") or tuple(range(len(x.axes)))[::-1]
    return dataclasses.replace(x, axes="".join(x.axes[axis] for axis in order))


def _shape(opset: int, node: Node, values: Sequence[Any]) -> np.ndarray:
    x = values[0]
    known = {"C": x.step.channels or None, "H": x.step.size[0], "W": x.step.size[1], "1": 1}
    sides = [known.get(letter) for letter in x.axes]
    return np.array(sides, object)[node.attributes.get("start", 0) : node.attributes.get("end", len(sides))]


def _reshape(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    target = argument(node, values, 1, "shape")
    if target is None:
        raise UnsupportedOperationError("its shape must be a constant")
    shape = [None if side is None else int(side) for side in target.ravel()]
    groups = shape[1] if len(shape) == 3 else None
    if x.axes == "NCHW" and groups and shape[2] == -1 and x.step.channels % max(groups, 1) == 0 and groups > 0:
        grouped = Step("groups", [x.step], str(node), x.step.channels, x.step.size, {"groups": groups})
        return Map(grouped, "NG*")
    if x.axes in ("NG*", "NCHW"):
        height, width = x.step.size
        fits = len(shape) == 4 and shape[1] in (None, 0, x.step.channels)
        if not fits or shape[2] not in (None, height) or shape[3] not in (None, width):
            raise UnsupportedOperationError(
                "maps of features may only be reshaped where they are one pixel large; it is no global average"
            )
        return dataclasses.replace(x, axes="NCHW")
    return dataclasses.replace(x, axes=letters(x, shape))


def letters(x: Map, shape: Sequence[int | None]) -> str:
    """Returns the letters of vectors of features under another shape.

    Args:
        x: The vectors.
        shape: Of what is made of them.

    Raises:
        Unfit: They do not stay vectors.
    """
    if {"H", "W", "G"} & set(x.axes) or len(shape) < 2:
        raise UnsupportedOperationError("only vectors of features may be reshaped")
    sides = [x.axes[axis] if side == 0 and axis < len(x.axes) else side for axis, side in enumerate(shape)]
    places = [axis for axis, side in enumerate(sides[1:], start=1) if side in ("C", x.step.channels, -1, None)]
    if len(places) > 1:  # a length of one may be that of the channels
        places = [axis for axis in places if sides[axis] != 1][:1] or places[:1]
    rest = [side for axis, side in enumerate(sides) if axis not in (0, *places)]
    if not places or any(side not in (1, "1") for side in rest):
        raise UnsupportedOperationError("the channels must stay one axis")
    return "".join("N" if axis == 0 else "C" if axis in places else "1" for axis in range(len(sides)))


def _flatten(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    if x.axes[:1] != "N" or {"H", "W", "G"} & set(x.axes) or node.attributes.get("axis", 1) != 1:
        raise UnsupportedOperationError("only maps of one pixel may be flattened; it is no global average")
    return dataclasses.replace(x, axes="NC")


def _squeeze(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    axes = whole(argument(node, values, 1, "axes"))
    rank = len(x.axes)
    gone = [axis for axis, letter in enumerate(x.axes) if letter == "1"] if axes is None else [a % rank for a in axes]
    if any(x.axes[axis] != "1" for axis in gone):
        raise UnsupportedOperationError("it may only take axes of length one away")
    return dataclasses.replace(x, axes="".join(letter for axis, letter in enumerate(x.axes) if axis not in gone))


def _unsqueeze(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    axes = whole(argument(node, values, 1, "axes")) or []
    rank = len(x.axes) + len(axes)
    letters = list(x.axes)
    for axis in sorted(axis % rank for axis in axes):
        letters.insert(axis, "1")
    return dataclasses.replace(x, axes="".join(letters))


def _same(opset: int, node: Node, values: Sequence[Any]) -> Map:
    return values[0]


def _cast(opset: int, node: Node, values: Sequence[Any]) -> Map:
    if node.attributes.get("to") not in (1, 10, 11, 16):
        raise UnsupportedOperationError("features must stay floating-point numbers")
    return values[0]


def _expand(opset: int, node: Node, values: Sequence[Any]) -> Map:
    if {"H", "W"} & set(values[0].axes):
        raise UnsupportedOperationError("it may only spread vectors over maps")
    return values[0]


def _vector(constant: np.ndarray, x: Map) -> np.ndarray:
    """A constant beside a map as one number a channel, or one for all."""
    if constant.dtype.kind not in "fiu" or constant.ndim > len(x.axes):
        raise UnsupportedOperationError("a constant must be one number a channel")
    shape = (1,) * (len(x.axes) - constant.ndim) + constant.shape
    if any(side > 1 and letter != "C" for side, letter in zip(shape, x.axes, strict=True)) or not constant.size:
        raise UnsupportedOperationError(f"a constant must be one number a channel; it is of shape {constant.shape}")
    if x.step.channels and constant.size not in (1, x.step.channels):
        raise UnsupportedOperationError(f"{constant.size} numbers for {x.step.channels} channels")
    return constant.astype(np.float64).reshape(-1)


def _arithmetic(opset: int, node: Node, values: Sequence[Any]) -> Map:
    """Addition, subtraction, multiplication and division, of a map and a constant or of two maps."""
    maps = [value for value in values if isinstance(value, Map)]
    operation = {"Sum": "Add"}.get(node.op, node.op)
    if len(values) != 2 and not (node.op == "Sum" and len(values) == 1):
        raise UnsupportedOperationError("it must join two")
    if len(values) == 1:
        return maps[0]
    if len(maps) == 2:
        return _join(node, operation, *maps)
    x, constant = maps[0], next(value for value in values if not isinstance(value, Map))
    if not isinstance(constant, np.ndarray):
        raise UnsupportedOperationError("an input is missing")
    with np.errstate(all="ignore"):
        number, first = _vector(constant, x), isinstance(values[0], Map)
        one, zero = np.ones(1), np.zeros(1)
        terms = {
            "Add": (one, number),
            "Mul": (number, zero),
            "Sub": (one, -number) if first else (-one, number),
            "Div": (1 / number, zero) if first else None,
        }[operation]
    if terms is None:
        raise UnsupportedOperationError("a constant over features")
    step = after(x, node, "affine", values={"scale": terms[0], "shift": terms[1]})
    step.step.channels = x.step.channels or (number.size if number.size > 1 else 0)
    return step


def _join(node: Node, operation: str, one: Map, other: Map) -> Map:
    if operation not in ("Add", "Mul"):
        raise UnsupportedOperationError("it must be a sum or a product")
    if len(one.axes) < len(other.axes) or (one.axes != other.axes and "1" in one.axes and "1" not in other.axes):
        one, other = other, one
    padded = other.axes.rjust(len(one.axes), "1")
    if any(theirs not in ("1", ours) for ours, theirs in zip(one.axes, padded, strict=True) if ours != "N"):
        raise UnsupportedOperationError(f"two values of different axes, {one.axes} and {other.axes}")
    if one.step.channels != other.step.channels:
        raise UnsupportedOperationError(f"{one.step.channels} and {other.step.channels} channels")
    if operation == "Add" and one.axes != other.axes:
        raise UnsupportedOperationError("a sum must be one of maps alike")
    if operation == "Add" and one.step.size != other.step.size and None not in (*one.step.size, *other.step.size):
        raise UnsupportedOperationError(f"maps of {one.step.size} and {other.step.size}")
    kind = {"Add": "add", "Mul": "multiply"}[operation]
    step = Step(kind, [one.step, other.step], str(node), one.step.channels, one.step.size)
    return Map(step, one.axes)


#: Each takes the version of ONNX' operations, the operation, and its inputs.
HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic),
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
    "Transpose": _transpose,
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Expand": _expand,
}
