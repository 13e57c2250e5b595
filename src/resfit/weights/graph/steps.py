"""One operation on maps of features, and a value of the graph that is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from resfit.weights.formats.onnx import Node
from resfit.weights.graph.onnx_constants import UnsupportedOperationError

Size = tuple[int | None, int | None]
Pads = tuple[int, int, int, int]


@dataclasses.dataclass(eq=False)
class Step:
    """One operation on maps of features.

    Attributes:
        kind: What it does: ``"conv"``, ``"dense"``, ``"line"`` (a convolution along the channels), ``"norm"``,
            ``"affine"``, ``"act"``, ``"max"``, ``"avg"``, ``"mean"`` (of each map), ``"pad"``, ``"widen"`` (channels of
            zeros), ``"subsample"``, ``"flip"`` (of channels), ``"add"``, ``"multiply"``, ``"end"`` (an activation that
            only a classifier has), ``"input"`` or ``"strange"``, whose value ``"summed"`` says whether what is
            made of it is added to another map.
        inputs: The steps that it reads.
        node: How errors name it.
        channels: Of what it makes; 0 where it is not known.
        size: Height and width of what it makes; ones of a vector.
        values: Its arrays and numbers.
    """

    kind: str
    inputs: list[Step] = dataclasses.field(repr=False)  # a graph that is printed whole repeats each branch
    node: str
    channels: int
    size: Size
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Map:
    """A value of the graph that is no constant.

    Attributes:
        step: What makes it.
        axes: A letter for each axis. Channels in groups are ``"NG*"``.
    """

    step: Step
    axes: str


def same_pads(size: Size, extents: Sequence[int], strides: Sequence[int]) -> Pads | None:
    """TensorFlow's SAME for maps of a size, or None where the size is not known.

    Args:
        size: Height and width.
        extents: Of the window in pixels, dilation included.
        strides: Of the window.
    """
    before, after = [], []
    for side, extent, stride in zip(size, extents, strides, strict=True):
        if side is None:
            return None
        total = max((-(-side // stride) - 1) * stride + extent - side, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (before[0], before[1], after[0], after[1])


def window_size(
    size: Size, extents: Sequence[int], strides: Sequence[int], pads: Pads | None, *, up: bool = False
) -> Size:
    """Returns height and width of the maps that a window makes, None where those of its input are not known.

    Args:
        size: Height and width of its input.
        extents: Of the window in pixels, dilation included.
        strides: Of the window.
        pads: What stands around the input; None for TensorFlow's SAME.
        up: Whether a window that begins inside and ends outside counts.

    Raises:
        UnsupportedOperationError: The maps are smaller than the window.
    """
    made: list[int | None] = []
    for axis, side in enumerate(size):
        if side is None:
            made.append(None)
        elif pads is None:
            made.append(-(-side // strides[axis]))
        else:
            rest = side + pads[axis] + pads[axis + 2] - extents[axis]
            if rest < 0:
                raise UnsupportedOperationError("the maps are smaller than its window")
            made.append((-(-rest // strides[axis]) if up else rest // strides[axis]) + 1)
    return made[0], made[1]


def after(x: Map, node: Node, kind: str, axes: str | None = None, values: dict[str, Any] | None = None) -> Map:
    """Returns a step that keeps channels and size.

    Args:
        x: What it reads.
        node: What it stands for.
        kind: What it does.
        axes: A letter for each axis of what it makes. Default: those of ``x``.
        values: Its arrays and numbers.
    """
    step = Step(kind, [x.step], str(node), x.step.channels, x.step.size, values or {})
    return Map(step, x.axes if axes is None else axes)


def in_order(ends: Sequence[Step]) -> list[Step]:
    """Returns every step that others depend on, each behind those that it reads.

    Args:
        ends: The last ones.
    """
    ordered: list[Step] = []
    seen: set[int] = set()
    waiting = [(end, False) for end in reversed(ends)]
    while waiting:
        step, done = waiting.pop()
        if done:
            ordered.append(step)
        elif id(step) not in seen:
            seen.add(id(step))
            waiting.append((step, True))
            waiting += [(one, False) for one in reversed(step.inputs)]
    return ordered
