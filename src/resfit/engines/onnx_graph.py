"""The operations of ONNX, for :mod:`resfit.engines.lowering`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resfit.engines import lowering
from resfit.engines.lowering import Pads

if TYPE_CHECKING:
    import keras

OPSET = 21


def build(model: keras.Model, output: str = "outputs") -> onnx.ModelProto:
    """Rebuilds a Keras model as an ONNX model with a dynamic batch and an input ``images``.

    Args:
        model: As :func:`resfit.engines.lowering.lower` takes it.
        output: Name of the output.

    Raises:
        resfit.engines.lowering.Unsupported: It has a layer that is not known there.
    """
    builder = _Builder()
    result = lowering.lower(model, builder, "images")
    builder.operation("Identity", [result], name=output)
    graph = helper.make_graph(
        builder.nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, _shape("", model.inputs[0].shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, _shape("out_", model.outputs[0].shape))],
        builder.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="resfit"
    )


def _shape(prefix: str, shape: Sequence[int | None]) -> list[str | int]:
    named: list[str | int] = ["batch"]
    return named + [f"{prefix}{axis}" if side is None else int(side) for axis, side in enumerate(shape[1:], start=1)]


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def operation(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def convolution(
        self,
        x: str,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        *,
        strides: tuple[int, int],
        dilations: tuple[int, int],
        pads: Pads | None,
        groups: int,
    ) -> str:
        inputs = [x, self.constant(kernel), *([] if bias is None else [self.constant(bias)])]
        return self.operation("Conv", inputs, strides=strides, dilations=dilations, group=groups, **_padding(pads))

    def pool(self, x: str, kind: str, size: tuple[int, int], strides: tuple[int, int], pads: Pads | None) -> str:
        name = "MaxPool" if kind == "max" else "AveragePool"
        return self.operation(name, [x], kernel_shape=size, strides=strides, **_padding(pads))

    def pad(self, x: str, pads: Sequence[tuple[int, int]], value: float | None) -> str:
        widths = self.constant([pad[side] for side in (0, 1) for pad in pads], np.int64)
        if value is None:
            return self.operation("Pad", [x, widths], mode="reflect")
        return self.operation("Pad", [x, widths, self.constant(value)], mode="constant")

    def reduce(self, x: str, kind: str, axes: Sequence[int], keep: bool) -> str:
        name = "ReduceMax" if kind == "max" else "ReduceMean"
        return self.operation(name, [x, self.constant(axes, np.int64)], keepdims=int(keep))

    def add(self, x: str, y: Any) -> str:
        return self.operation("Add", [x, self.constant(y) if isinstance(y, np.ndarray) else y])

    def multiply(self, x: str, y: Any) -> str:
        return self.operation("Mul", [x, self.constant(y) if isinstance(y, np.ndarray) else y])

    def activation(self, x: str, name: str) -> str:
        if name == "relu6":
            return self.operation("Clip", [x, self.constant(0.0), self.constant(6.0)])
        if name == "silu":
            return self.multiply(x, self.operation("Sigmoid", [x]))
        names = {"exponential": "Exp"}
        return self.operation(names.get(name, name.capitalize()), [x])

    def softmax(self, x: str, axis: int) -> str:
        return self.operation("Softmax", [x], axis=axis)

    def matmul(self, x: str, kernel: np.ndarray) -> str:
        return self.operation("MatMul", [x, self.constant(kernel)])

    def group_norm(self, x: str, groups: int, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> str:
        inputs = [x, self.constant(gamma), self.constant(beta)]
        return self.operation("GroupNormalization", inputs, num_groups=groups, epsilon=epsilon)

    def rsqrt(self, x: str) -> str:
        return self.operation("Reciprocal", [self.operation("Sqrt", [x])])

    def take(self, x: str, indices: Sequence[int], axis: int) -> str:
        return self.operation("Gather", [x, self.constant(indices, np.int64)], axis=axis)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.operation("Reshape", [x, self.constant([0, *shape], np.int64)])

    def transpose(self, x: str, order: Sequence[int]) -> str:
        return self.operation("Transpose", [x], perm=list(order))


def _padding(pads: Pads | None) -> dict[str, Any]:
    if pads is None:
        return {"auto_pad": "SAME_UPPER"}
    (top, bottom), (left, right) = pads
    return {"pads": [top, left, bottom, right]}
