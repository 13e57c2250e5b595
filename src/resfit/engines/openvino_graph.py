"""The operations of OpenVINO, for :mod:`resfit.engines.lowering`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset14 as ops

from resfit.engines import lowering
from resfit.engines.lowering import Pads

if TYPE_CHECKING:
    import keras


def build(model: keras.Model) -> openvino.Model:
    """Rebuilds a Keras model as an OpenVINO model with a dynamic batch.

    Args:
        model: As :func:`resfit.engines.lowering.lower` takes it.

    Raises:
        resfit.engines.lowering.Unsupported: It has a layer that is not known there.
    """
    shape = [-1 if side is None else int(side) for side in (None, *model.inputs[0].shape[1:])]
    images = ops.parameter(shape, np.float32, name="images")
    images.output(0).set_names({"images"})
    result = ops.result(lowering.lower(model, _Builder(), images), name="outputs")
    return openvino.Model([result], [images], model.name)


class _Builder:
    def convolution(
        self,
        x: Any,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        *,
        strides: tuple[int, int],
        dilations: tuple[int, int],
        pads: Pads | None,
        groups: int,
    ) -> Any:
        begin, end = _ends(pads)
        rule = "EXPLICIT" if pads is not None else "SAME_UPPER"
        if groups == 1:
            result = ops.convolution(x, _constant(kernel), strides, begin, end, dilations, rule)
        else:
            grouped = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
            result = ops.group_convolution(x, _constant(grouped), strides, begin, end, dilations, rule)
        return result if bias is None else ops.add(result, _constant(bias.reshape(1, -1, 1, 1)))

    def pool(self, x: Any, kind: str, size: tuple[int, int], strides: tuple[int, int], pads: Pads | None) -> Any:
        begin, end = _ends(pads)
        rule = "explicit" if pads is not None else "same_upper"
        if kind == "max":
            return ops.max_pool(x, strides, (1, 1), begin, end, size, "floor", rule).output(0)
        return ops.avg_pool(x, strides, begin, end, size, True, "floor", rule)

    def pad(self, x: Any, pads: Sequence[tuple[int, int]], value: float | None) -> Any:
        begin, end = ([int(pad[side]) for pad in pads] for side in (0, 1))
        if value is None:
            return ops.pad(x, begin, end, "reflect")
        return ops.pad(x, begin, end, "constant", np.float32(value))

    def reduce(self, x: Any, kind: str, axes: Sequence[int], keep: bool) -> Any:
        return (ops.reduce_max if kind == "max" else ops.reduce_mean)(x, np.array(axes, np.int64), keep)

    def add(self, x: Any, y: Any) -> Any:
        return ops.add(x, _constant(y) if isinstance(y, np.ndarray) else y)

    def multiply(self, x: Any, y: Any) -> Any:
        return ops.multiply(x, _constant(y) if isinstance(y, np.ndarray) else y)

    def activation(self, x: Any, name: str) -> Any:
        if name == "relu6":
            return ops.clamp(x, 0.0, 6.0)
        if name == "elu":
            return ops.elu(x, 1.0)
        if name == "gelu":
            return ops.gelu(x, "erf")
        names = {"silu": "swish", "exponential": "exp"}
        return getattr(ops, names.get(name, name))(x)

    def softmax(self, x: Any, axis: int) -> Any:
        return ops.softmax(x, axis)

    def matmul(self, x: Any, kernel: np.ndarray) -> Any:
        return ops.matmul(x, _constant(kernel.T), False, True)

    def group_norm(self, x: Any, groups: int, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> Any:
        return ops.group_normalization(x, _constant(gamma), _constant(beta), groups, epsilon)

    def rsqrt(self, x: Any) -> Any:
        return ops.divide(_constant(np.ones(1)), ops.sqrt(x))

    def take(self, x: Any, indices: Sequence[int], axis: int) -> Any:
        return ops.gather(x, np.array(indices, np.int64), np.int64(axis))

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return ops.reshape(x, np.array([0, *shape], np.int64), True)

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        return ops.transpose(x, np.array(order, np.int64))


def _ends(pads: Pads | None) -> tuple[list[int], list[int]]:
    (top, bottom), (left, right) = pads or ((0, 0), (0, 0))
    return [top, left], [bottom, right]


def _constant(values: np.ndarray) -> Any:
    return ops.constant(np.ascontiguousarray(values, np.float32))
