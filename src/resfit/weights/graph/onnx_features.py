"""The operations of ONNX that compute features: convolutions, norms, activations, poolings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats.onnx import Node
from resfit.weights.graph.onnx_constants import UnsupportedOperationError, argument, whole
from resfit.weights.graph.steps import Map, Pads, Size, Step, after, same_pads, window_size

Handler = Callable[[int, Node, Sequence[Any]], Any]


def _image(value: Any) -> Map:
    if not isinstance(value, Map) or value.axes != "NCHW":
        raise UnsupportedOperationError("it must read maps of features with the channels second")
    return value


def _array(values: Sequence[Any], place: int) -> np.ndarray | None:
    value = values[place] if place < len(values) else None
    if value is not None and (not isinstance(value, np.ndarray) or value.dtype.kind != "f"):
        raise UnsupportedOperationError("its weights must be constants, floating-point numbers")
    return value


def _needed(values: Sequence[Any], place: int) -> np.ndarray:
    value = _array(values, place)
    if value is None:
        raise UnsupportedOperationError("its weights are missing")
    return value


def _pair(node: Node, name: str, default: int = 1) -> tuple[int, int]:
    value = node.attributes.get(name) or (default, default)
    if len(value) != 2 or min(value) < 1:
        raise UnsupportedOperationError(f"{name} must be two positive numbers")
    return int(value[0]), int(value[1])


def _window(node: Node, size: Size, kernel: tuple[int, int]) -> tuple[dict[str, Any], Size]:
    """Strides, dilations and paddings of a convolution or pooling, and the size of what it makes."""
    strides, dilations = _pair(node, "strides"), _pair(node, "dilations")
    extents = [(side - 1) * step + 1 for side, step in zip(kernel, dilations, strict=True)]
    auto = node.attributes.get("auto_pad") or "NOTSET"
    if auto not in ("NOTSET", "VALID", "SAME_UPPER"):
        raise UnsupportedOperationError(f"auto_pad {auto}")
    same = auto == "SAME_UPPER"
    stated = tuple(node.attributes.get("pads") or (0,) * 4)
    if len(stated) != 4 or min(stated) < 0:
        raise UnsupportedOperationError("pads must be four numbers, none negative")
    pads: Pads | None = stated if auto == "NOTSET" else (0, 0, 0, 0)
    if same:
        pads = same_pads(size, extents, strides)
    up = bool(node.attributes.get("ceil_mode"))
    values = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "same": same, "up": up}
    return values, window_size(size, extents, strides, None if same else pads, up=up)


def _conv(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, kernel, bias = values[0], _needed(values, 1), _array(values, 2)
    if not isinstance(x, Map):
        raise UnsupportedOperationError("its images must be no constants")
    groups = int(node.attributes.get("group", 1))
    if bias is not None and bias.shape != kernel.shape[:1]:
        raise UnsupportedOperationError(f"a bias of shape {bias.shape}")
    if not {"H", "W"} & set(x.axes):
        return _conv_of_vectors(x, node, kernel, bias)
    x = _image(x)
    if kernel.ndim != 4 or 0 in kernel.shape or groups < 1 or kernel.shape[0] % groups:
        raise UnsupportedOperationError(f"a kernel of shape {kernel.shape} in {groups} groups")
    if x.step.channels not in (0, kernel.shape[1] * groups):
        raise UnsupportedOperationError(
            f"a kernel of shape {kernel.shape} in {groups} groups on {x.step.channels} channels"
        )
    if x.step.kind in ("input", "affine", "flip"):  # which may not have said how many there are
        x.step.channels = kernel.shape[1] * groups
    window, size = _window(node, x.step.size, (kernel.shape[2], kernel.shape[3]))
    made = {**window, "kernel": kernel.transpose(2, 3, 1, 0), "bias": bias, "groups": groups}
    return Map(Step("conv", [x.step], str(node), kernel.shape[0], size, made), "NCHW")


def _conv_of_vectors(x: Map, node: Node, kernel: np.ndarray, bias: np.ndarray | None) -> Map:
    """A convolution of maps of one pixel, which is a dense layer, or one along the channels."""
    if x.axes[:2] == "NC" and set(x.axes[2:]) <= {"1"} and math.prod(kernel.shape[2:]) == 1:
        return _dense_step(x, node, kernel.reshape(kernel.shape[:2]).T, bias, x.axes)
    place = x.axes.find("C")
    long = [side for axis, side in enumerate(kernel.shape) if axis != place]
    if x.axes[:2] != "N1" or place < 2 or math.prod(long) != 1 or bias is not None or kernel.ndim != len(x.axes):
        raise UnsupportedOperationError("a convolution of vectors must be a dense layer, or run along the channels")
    side, half = kernel.shape[place], kernel.shape[place] // 2
    pads = node.attributes.get("pads") or (0,) * 2 * (kernel.ndim - 2)
    at = place - 2
    given = (pads[at], pads[at + kernel.ndim - 2]) if node.attributes.get("auto_pad") != "SAME_UPPER" else (half, half)
    if given != (half, half) or side % 2 == 0 or sum(pads) > 2 * half or set(node.attributes.get("strides", ())) - {1}:
        raise UnsupportedOperationError("a convolution along the channels must keep their number")
    return after(x, node, "line", values={"kernel": kernel.reshape(side, 1, 1)})


def _dense_step(x: Map, node: Node, kernel: np.ndarray, bias: np.ndarray | None, axes: str) -> Map:
    if x.step.channels != kernel.shape[0] or 0 in kernel.shape:
        raise UnsupportedOperationError(f"weights of shape {kernel.shape} on {x.step.channels} channels")
    step = Step("dense", [x.step], str(node), kernel.shape[1], (1, 1), {"kernel": kernel, "bias": bias})
    return Map(step, axes)


def _matmul(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, kernel = values[0], _needed(values, 1)
    if not isinstance(x, Map) or x.axes[-1] != "C" or {"H", "W"} & set(x.axes) or kernel.ndim != 2:
        raise UnsupportedOperationError("it must multiply vectors of features with a matrix")
    return _dense_step(x, node, kernel, None, x.axes)


def _gemm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, kernel, bias = values[0], _needed(values, 1), _array(values, 2)
    told = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if not isinstance(x, Map) or x.axes != "NC" or kernel.ndim != 2:
        raise UnsupportedOperationError("it must multiply vectors of features with a matrix")
    if any(node.attributes.get(name, value) != value for name, value in told.items()):
        raise UnsupportedOperationError("alpha and beta must be one, and the features not transposed")
    kernel = kernel.T if node.attributes.get("transB") else kernel
    if bias is not None:
        bias = np.broadcast_to(bias, (1, kernel.shape[1])).reshape(-1)
    return _dense_step(x, node, kernel, bias, "NC")


def _batch_norm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    arrays = [_needed(values, place) for place in (1, 2, 3, 4)]
    trains = node.attributes.get("training_mode") or (opset < 7 and not node.attributes.get("is_test"))
    if trains or not node.attributes.get("spatial", 1):
        raise UnsupportedOperationError(
            "a batch norm of training, or one of each pixel; export the network in evaluation mode"
        )
    if not isinstance(x, Map) or x.axes[1:2] != "C" or any(a.shape != (x.step.channels,) for a in arrays):
        raise UnsupportedOperationError("its statistics must be one a channel, and the channels second")
    names = ("gamma", "beta", "mean", "variance")
    given = {"epsilon": float(node.attributes.get("epsilon", 1e-5)), "momentum": node.attributes.get("momentum", 0.9)}
    return after(x, node, "norm", values={**dict(zip(names, arrays, strict=True)), **given})


def _group_norm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, gamma, beta = _image(values[0]), _needed(values, 1), _needed(values, 2)
    groups, channels = int(node.attributes.get("num_groups", 0)), x.step.channels
    if groups < 1 or channels % groups:
        raise UnsupportedOperationError(f"{groups} groups of {channels} channels")
    if opset < 21:  # one a group, before
        gamma, beta = (np.repeat(array, channels // groups) for array in (gamma, beta))
    if gamma.shape != (channels,) or beta.shape != (channels,):
        raise UnsupportedOperationError("its weights must be one a channel")
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    return after(x, node, "norm", values={"gamma": gamma, "beta": beta, "groups": groups, "epsilon": epsilon})


def _instance_norm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, gamma, beta = values[0], _needed(values, 1), _needed(values, 2)
    if not isinstance(x, Map) or x.axes != "NG*" or np.any(gamma != 1) or np.any(beta != 0):
        raise UnsupportedOperationError("no residual network normalises each image and channel for itself")
    groups, channels = gamma.size, x.step.channels
    if groups != x.step.values["groups"]:
        raise UnsupportedOperationError("its weights must be one a group")
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    made = {"gamma": gamma, "beta": beta, "groups": groups, "epsilon": float(node.attributes.get("epsilon", 1e-5))}
    step = Step("norm", x.step.inputs, str(node), channels, x.step.size, made)
    return Map(step, x.axes)


def _activation(opset: int, node: Node, values: Sequence[Any]) -> Map:
    name, expected = _ACTIVATIONS[node.op]
    for key, value in expected.items():
        if not np.isclose(node.attributes.get(key, value), value):
            raise UnsupportedOperationError(f"{key} must be {value}")
    return after(values[0], node, "act", values={"name": name})


def _leaky(opset: int, node: Node, values: Sequence[Any]) -> Map:
    return _leaky_step(values[0], node, float(node.attributes.get("alpha", 0.01)))


def _leaky_step(x: Map, node: Node, slope: float) -> Map:
    if not math.isfinite(slope):
        raise UnsupportedOperationError("its slope must be a number")
    slope = float(f"{slope:.6g}")  # as it was before it became a number of 32 bits
    if slope == 0:
        return after(x, node, "act", values={"name": "relu"})
    return after(x, node, "act", values={"name": "leaky_relu", **({} if slope == 0.2 else {"slope": slope})})


def _fused(operation: Handler, params: str = "activation_params") -> Handler:
    """An operation of ONNX Runtime's optimiser: one of ONNX, perhaps a sum, and an activation behind it."""

    def take(opset: int, node: Node, values: Sequence[Any]) -> Map:
        result = operation(opset, node, values[:3])
        if len(values) > 3 and values[3] is not None:
            other = values[3]
            if not isinstance(other, Map) or other.axes != result.axes or other.step.channels != result.step.channels:
                raise UnsupportedOperationError("it must add maps like its own")
            step = Step("add", [result.step, other.step], str(node), result.step.channels, result.step.size)
            result = Map(step, result.axes)
        name = node.attributes.get("activation") or ""
        if not name:
            return result
        given = [float(value) for value in node.attributes.get(params) or ()]
        if params != "activation_params":
            given = [float(node.attributes[key]) for key in (params, "activation_beta") if key in node.attributes]
        if name == "LeakyRelu":
            return _leaky_step(result, node, given[0] if given else 0.01)
        if name == "Clip":
            if given not in ([0.0, 6.0],):
                raise UnsupportedOperationError("it must cut at 0 and 6")
            return after(result, node, "act", values={"name": "relu6"})
        if name not in _ACTIVATIONS:
            raise UnsupportedOperationError(f"activation {name!r}")
        keras, expected = _ACTIVATIONS[name]
        if given and not np.allclose(given, list(expected.values())[: len(given)] or given):
            raise UnsupportedOperationError(f"activation {name!r} of {given}")
        return after(result, node, "act", values={"name": keras})

    return take


def _clip(opset: int, node: Node, values: Sequence[Any]) -> Map:
    low, high = (argument(node, values, place, name) for place, name in ((1, "min"), (2, "max")))
    bounds = [None if bound is None or abs(float(bound)) > 1e38 else float(bound) for bound in (low, high)]
    if bounds not in ([0.0, 6.0], [0.0, None]):
        raise UnsupportedOperationError("it must cut at 0, or at 0 and 6")
    return after(values[0], node, "act", values={"name": "relu" if bounds[1] is None else "relu6"})


def _end(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    default = 1 if opset < 13 else -1
    axis = node.attributes.get("axis", default)
    if len(x.axes) != 2 or axis not in (1, -1):
        raise UnsupportedOperationError("it must go over the classes")
    return after(x, node, "end", values={"name": {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[node.op]})


def _pool(kind: str) -> Callable[..., Map]:
    def take(opset: int, node: Node, values: Sequence[Any]) -> Map:
        x = _image(values[0])
        window, size = _window(node, x.step.size, _pair(node, "kernel_shape"))
        if window["dilations"] != (1, 1):
            raise UnsupportedOperationError("a pooling with dilation")
        pads, extent = window["pads"], window["kernel_shape"]
        if kind == "avg" and x.step.size == extent and pads == (0, 0, 0, 0):
            return _mean_step(x, node, "NC11")
        window["counts_border"] = bool(node.attributes.get("count_include_pad", 0)) and any(pads or (1,))
        if extent == (1, 1) and pads == (0, 0, 0, 0):
            return subsample(x, node, window["strides"])
        return Map(Step(kind, [x.step], str(node), x.step.channels, size, window), "NCHW")

    return take


def subsample(x: Map, node: Node, strides: tuple[int, int]) -> Map:
    """Returns a step that takes every n-th pixel. Some exporters take one axis after the other.

    Args:
        x: Maps.
        node: What takes them.
        strides: In height and width.
    """
    if strides == (1, 1):
        return x
    before = x.step
    if before.kind == "subsample":  # ceil(ceil(n / a) / b) is ceil(n / ab)
        strides = (before.values["strides"][0] * strides[0], before.values["strides"][1] * strides[1])
        before = before.inputs[0]
    sides = [None if side is None else -(-side // by) for side, by in zip(before.size, strides, strict=True)]
    made = Step("subsample", [before], str(node), before.channels, (sides[0], sides[1]), {"strides": strides})
    return Map(made, x.axes)


def _mean_step(x: Map, node: Node, axes: str) -> Map:
    return Map(Step("mean", [x.step], str(node), x.step.channels, (1, 1)), axes)


def _global_mean(opset: int, node: Node, values: Sequence[Any]) -> Map:
    return _mean_step(_image(values[0]), node, "NC11")


def _reduce_mean(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    axes = [axis % len(x.axes) for axis in whole(argument(node, values, 1, "axes")) or []]
    if sorted(x.axes[axis] for axis in axes) != ["H", "W"]:
        raise UnsupportedOperationError("it must go over height and width")
    keep = node.attributes.get("keepdims", 1)
    letters = [("1" if axis in axes else letter) for axis, letter in enumerate(x.axes) if keep or axis not in axes]
    return _mean_step(x, node, "".join(letters))


#: Activations: Keras' name, and the attributes that it has there.
_ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "Relu": ("relu", {}),
    "Sigmoid": ("sigmoid", {}),
    "Tanh": ("tanh", {}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": 1.6732632, "gamma": 1.0507010}),
    "Celu": ("celu", {"alpha": 1.0}),
    "Gelu": ("gelu", {}),
    "Mish": ("mish", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": ("hard_silu", {}),
    "Swish": ("silu", {"alpha": 1.0}),
}


#: Each takes the version of ONNX' operations, the operation, and its inputs.
HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _end),
    "Conv": _conv,
    "com.microsoft.FusedConv": _fused(_conv),
    "com.microsoft.FusedGemm": _fused(_gemm, "activation_alpha"),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LeakyRelu": _leaky,
    "Clip": _clip,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("avg"),
    "GlobalAveragePool": _global_mean,
    "ReduceMean": _reduce_mean,
}
