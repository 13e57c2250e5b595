"""The operations of a TensorFlow graph as steps on maps of features.

They are brought to those of ONNX where both mean the same (:data:`_RENAMED`), so that one table serves both. What
differs stands here: the order of axes, paddings, and what ONNX passes as an attribute and TensorFlow as a value. A
batch norm that a program writes out in plain operations is found again, and stays one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats.onnx import Node, OnnxGraph
from resfit.weights.graph import onnx_features, onnx_layout
from resfit.weights.graph.lift_onnx import Lifted, Lifter, choose, lift_with
from resfit.weights.graph.onnx_constants import OPERATIONS, Operation, UnsupportedOperationError, whole
from resfit.weights.graph.onnx_features import Handler, subsample
from resfit.weights.graph.steps import Map, Pads, Size, Step, after, same_pads, window_size

_NORM = "BatchNorm"
_RENAMED = {
    **{"Const": "Constant", "AddV2": "Add", "RealDiv": "Div", "Maximum": "Max", "Minimum": "Min", "Mean": "ReduceMean"},
    **{"Max": "ReduceMax", "Sum": "ReduceSum", "AddN": "Sum", "FusedBatchNorm": "FusedBatchNormV3", "PadV2": "Pad"},
    **{"FusedBatchNormV2": "FusedBatchNormV3", "ConcatV2": "Concat", "GatherV2": "Gather", "BroadcastTo": "Expand"},
    **dict.fromkeys(
        (
            *("ReadVariableOp", "StopGradient", "PreventGradient", "CheckNumerics", "EnsureShape", "Snapshot"),
            *("PlaceholderWithDefault", "IdentityN"),
        ),
        "Identity",
    ),
}
_FLOATS = (1, 2, 14, 19)


def lift(graph: OnnxGraph, arrays: Mapping[str, np.ndarray], prefix: str | None = None) -> Lifted:
    """Brings a program to steps.

    Args:
        graph: Its operations.
        arrays: The values of its variables, by what they are called in it.
        prefix: The input or output of the network that is wanted, where a graph has several.

    Raises:
        Unfit: It has not one input of images, or no output.
    """
    name, outputs = choose(graph, prefix)
    nodes = tuple(_renamed(node) for node in graph.nodes if node.name not in (*graph.inputs, *arrays))
    graph = dataclasses.replace(graph, nodes=_with_norms(nodes), outputs=outputs)
    held = [node.attributes.get("value") for node in graph.nodes if node.op == "Constant"]
    constants = sum(value.size for value in held if isinstance(value, np.ndarray))
    lifter = Lifter(arrays, graph, _HANDLERS, _WHY, _OPERATIONS)
    lifter.constants.more(constants)
    return lift_with(lifter, graph, name, channels_last=_takes_channels_last(graph, name))


def _renamed(node: Node) -> Node:
    attributes = dict(node.attributes)
    if node.op == "Squeeze":
        attributes["axes"] = attributes.get("squeeze_dims") or None
    elif node.op in ("Mean", "Max", "Sum"):
        attributes["keepdims"] = attributes.get("keep_dims", 0)
    elif node.op == "LeakyRelu":
        attributes.setdefault("alpha", 0.2)
    elif node.op in ("Softmax", "LogSoftmax"):
        attributes["axis"] = -1
    elif node.op == "PlaceholderWithDefault":
        return dataclasses.replace(node, op="Identity", inputs=node.inputs[:1])
    return dataclasses.replace(node, op=_RENAMED.get(node.op, node.op), attributes=attributes)


def _with_norms(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Puts one operation in the place of those that ``tf.nn.batch_normalization`` is made of.

    ``x * inv + (beta - mean * inv)`` with ``inv = rsqrt(variance + epsilon) * gamma``; gamma and beta may be missing.
    """
    makers = {node.outputs[0]: node for node in nodes}

    def made(name: str, op: str) -> Node | None:
        node = makers.get(name)
        for _ in range(8):
            if node is None or node.op != "Identity" or not node.inputs:
                break
            node = makers.get(node.inputs[0])
        return (
            node
            if node is not None and node.op == op and len(node.inputs) == (1 if op in ("Rsqrt", "Neg") else 2)
            else None
        )

    def inverse(name: str) -> tuple[str, str, str] | None:
        """Variance, epsilon and gamma."""
        scaled = made(name, "Mul")
        for root, gamma in (scaled.inputs, scaled.inputs[::-1]) if scaled else ((name, ""),):
            rsqrt = made(root, "Rsqrt")
            total = made(rsqrt.inputs[0], "Add") if rsqrt else None
            if total is not None:
                return total.inputs[0], total.inputs[1], gamma
        return None

    def found(node: Node) -> tuple[str, ...] | None:
        for first, second in (node.inputs, node.inputs[::-1]):
            scaled, shift = made(first, "Mul"), made(second, "Sub")
            moved = made(shift.inputs[1] if shift else second, "Mul")
            if scaled is None or moved is None:
                continue
            for x, inv in (scaled.inputs, scaled.inputs[::-1]):
                told = inverse(inv) if inv in moved.inputs else None
                mean = moved.inputs[0] if moved.inputs[1] == inv else moved.inputs[1]
                if told is not None and shift is None:  # without beta it is x * inv + -mean * inv
                    turned = made(mean, "Neg")
                    mean = turned.inputs[0] if turned else ""
                if told is not None and mean:
                    return x, told[2], shift.inputs[0] if shift else "", mean, told[0], told[1]
        return None

    result = []
    for node in nodes:
        inputs = found(node) if node.op == "Add" and len(node.inputs) == 2 else None
        result.append(node if inputs is None else dataclasses.replace(node, op=_NORM, inputs=inputs))
    return tuple(result)


def _takes_channels_last(graph: OnnxGraph, name: str) -> bool:
    """Whether images come with the channels last: what they go through first says so, or turns them."""
    readers: dict[str, Node] = {}
    for node in graph.nodes:
        for value in node.inputs if node.op != "Shape" else ():
            readers.setdefault(value, node)
    for _ in range(30):
        reader = readers.get(name)
        if reader is None or reader.op == "Transpose":
            return True
        if "data_format" in reader.attributes and reader.op in ("Conv2D", "FusedBatchNormV3", "MaxPool"):
            return reader.attributes["data_format"] != "NCHW"
        name = reader.outputs[0]
    return True


# What operations do.


def _maps(node: Node, value: Any) -> Map:
    """Maps of features in the order of axes that an operation takes them in."""
    wanted = node.attributes.get("data_format") or "NHWC"
    if not isinstance(value, Map) or value.axes != wanted:
        raise UnsupportedOperationError("it must read maps of features, with the channels where it takes them")
    return value


def _weights(values: Sequence[Any], place: int) -> np.ndarray:
    value = values[place] if place < len(values) else None
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise UnsupportedOperationError("its weights must be constants, floating-point numbers")
    return value


def _sides(node: Node, key: str) -> tuple[int, int]:
    """Two of the four numbers that TensorFlow has for each axis."""
    stated = node.attributes.get(key) or (1, 1, 1, 1)
    layout = node.attributes.get("data_format") or "NHWC"
    numbers = dict(zip(layout, stated, strict=True))
    if min(stated) < 1 or max(stated) > 10_000 or numbers["N"] != 1 or numbers["C"] != 1:
        raise UnsupportedOperationError(f"{key} must be positive, and one for batch and channels")
    return numbers["H"], numbers["W"]


def _window(
    node: Node, size: Size, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[dict[str, Any], Size]:
    padding = node.attributes.get("padding")
    if padding not in ("SAME", "VALID", "EXPLICIT"):
        raise UnsupportedOperationError(f"padding {padding!r}")
    extents = [(side - 1) * by + 1 for side, by in zip(kernel, dilations, strict=True)]
    same = padding == "SAME"
    pads: Pads | None = same_pads(size, extents, strides) if same else (0, 0, 0, 0)
    if padding == "EXPLICIT":
        stated = node.attributes.get("explicit_paddings") or ()
        layout = node.attributes.get("data_format") or "NHWC"
        pairs = dict(zip(layout, zip(stated[::2], stated[1::2], strict=True), strict=True))
        if min(stated) < 0 or any((*pairs["N"], *pairs["C"])):
            raise UnsupportedOperationError("it must pad height and width")
        pads = (pairs["H"][0], pairs["W"][0], pairs["H"][1], pairs["W"][1])
    values = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "same": same}
    return {**values, "up": False}, window_size(size, extents, strides, None if same else pads)


def _conv(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, kernel = values[0], _weights(values, 1)
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise UnsupportedOperationError(f"a kernel of shape {kernel.shape}")
    if node.op == "DepthwiseConv2dNative":
        height, width, channels, times = kernel.shape
        kernel = kernel.reshape(height, width, 1, channels * times)
    if isinstance(x, Map) and set(x.axes) <= set("NC1") and kernel.shape[:2] == (1, 1):  # of squeeze-excite
        return _dense(x, node, kernel[0, 0], x.axes)
    x = _maps(node, x)
    strides, dilations = _sides(node, "strides"), _sides(node, "dilations")
    held = x.step.channels
    if x.step.kind == "spread":  # which dilates, and pads
        return _dilated(x, node, kernel, strides)
    groups = held // kernel.shape[2] if held else 1
    if held and (held % kernel.shape[2] or kernel.shape[3] % groups):
        raise UnsupportedOperationError(f"a kernel of shape {kernel.shape} on {held} channels")
    if x.step.kind in ("input", "affine", "flip"):  # which may not have said how many there are
        x.step.channels = kernel.shape[2] * groups
    window, size = _window(node, x.step.size, (kernel.shape[0], kernel.shape[1]), strides, dilations)
    made = {**window, "kernel": kernel, "bias": None, "groups": groups}
    return Map(Step("conv", [x.step], str(node), kernel.shape[3], size, made), x.axes)


def _spread(opset: int, node: Node, values: Sequence[Any]) -> Map:
    """The first of three operations that a dilated convolution is made of."""
    x, block, pads = values[0], whole(values[1]), values[2]
    if not isinstance(x, Map) or x.axes != "NHWC" or block is None or len(block) != 2 or min(block) < 2:
        raise UnsupportedOperationError("it must dilate a convolution of maps with the channels last")
    return after(x, node, "spread", values={"block": tuple(block), "pads": np.asarray(pads, np.int64)})


def _dilated(x: Map, node: Node, kernel: np.ndarray, strides: tuple[int, int]) -> Map:
    if strides != (1, 1) or node.attributes.get("padding") != "VALID" or x.step.channels % kernel.shape[2]:
        raise UnsupportedOperationError("a dilated convolution must not stride")
    made = {**x.step.values, "kernel": kernel, "groups": x.step.channels // kernel.shape[2]}
    return Map(Step("spread", list(x.step.inputs), str(node), kernel.shape[3], x.step.size, made), x.axes)


def _gathered(opset: int, node: Node, values: Sequence[Any]) -> Map:
    """The last of them."""
    x, block, crops = values[0], whole(values[1]), np.asarray(values[2], np.int64)
    if not isinstance(x, Map) or x.step.kind != "spread" or "kernel" not in x.step.values:
        raise UnsupportedOperationError("it must stand behind a dilated convolution")
    told = x.step.values
    net = told["pads"] - crops
    if tuple(block or ()) != told["block"] or net.shape != (2, 2) or net.min() < 0:
        raise UnsupportedOperationError("it must take back what was put together")
    pads = (int(net[0, 0]), int(net[1, 0]), int(net[0, 1]), int(net[1, 1]))
    kernel, dilations = told["kernel"], told["block"]
    size = tuple(
        None if side is None else side + pads[axis] + pads[axis + 2] - (kernel.shape[axis] - 1) * dilations[axis]
        for axis, side in enumerate(x.step.size)
    )
    made = {
        "kernel_shape": kernel.shape[:2],
        "strides": (1, 1),
        "dilations": dilations,
        "pads": pads,
        "same": False,
        "up": False,
        "kernel": kernel,
        "bias": None,
        "groups": told["groups"],
    }
    return Map(Step("conv", x.step.inputs, x.step.node, kernel.shape[3], (size[0], size[1]), made), x.axes)


def _dense(x: Map, node: Node, kernel: np.ndarray, axes: str) -> Map:
    if x.step.channels != kernel.shape[0] or 0 in kernel.shape:
        raise UnsupportedOperationError(f"weights of shape {kernel.shape} on {x.step.channels} channels")
    return Map(Step("dense", [x.step], str(node), kernel.shape[1], (1, 1), {"kernel": kernel, "bias": None}), axes)


def _matmul(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, kernel = values[0], _weights(values, 1)
    if not isinstance(x, Map) or x.axes[-1] != "C" or {"H", "W"} & set(x.axes) or kernel.ndim != 2:
        raise UnsupportedOperationError("it must multiply vectors of features with a matrix")
    if node.attributes.get("transpose_a") or node.attributes.get("adj_x"):
        raise UnsupportedOperationError("the features must not be transposed")
    turned = node.attributes.get("transpose_b") or node.attributes.get("adj_y")
    return _dense(x, node, kernel.T if turned else kernel, x.axes)


def _fused_norm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    if node.attributes.get("is_training", 1):
        raise UnsupportedOperationError("a batch norm of training; save the network as it is used")
    x = _maps(node, values[0])
    return _norm_step(
        x, node, [_weights(values, place) for place in (1, 2, 3, 4)], node.attributes.get("epsilon", 1e-4)
    )


def _plain_norm(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    if not isinstance(x, Map) or any(isinstance(value, Map) for value in values[1:]):
        raise UnsupportedOperationError("its statistics must be constants; save the network as it is used")
    mean = np.asarray(values[3], np.float32)
    gamma = np.ones_like(mean) if values[1] is None else values[1]
    beta = np.zeros_like(mean) if values[2] is None else values[2]
    if x.axes[-1] != "C":
        raise UnsupportedOperationError("it must normalise the channels")
    return _norm_step(x, node, [gamma, beta, mean, values[4]], float(np.asarray(values[5]).reshape(-1)[0]))


def _norm_step(x: Map, node: Node, arrays: Sequence[np.ndarray], epsilon: float) -> Map:
    arrays = [np.asarray(array).reshape(-1) for array in arrays]
    if any(array.shape != (x.step.channels,) for array in arrays):
        raise UnsupportedOperationError(f"its statistics must be one a channel; there are {x.step.channels} channels")
    names = ("gamma", "beta", "mean", "variance")
    return after(x, node, "norm", values={**dict(zip(names, arrays, strict=True)), "epsilon": float(epsilon)})


def _bias(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, bias = values[0], _weights(values, 1)
    if not isinstance(x, Map) or "C" not in x.axes or bias.shape != (x.step.channels,):
        raise UnsupportedOperationError("it must add one number a channel")
    if ("NCHW" if node.attributes.get("data_format") == "NCHW" else x.axes) != x.axes:
        raise UnsupportedOperationError("it must read maps of features, with the channels where it takes them")
    return after(x, node, "affine", values={"scale": np.ones(1), "shift": bias.astype(np.float64)})


def _arithmetic(opset: int, node: Node, values: Sequence[Any]) -> Map:
    result = onnx_layout.HANDLERS[node.op](opset, node, values)
    told = result.step.values
    if result.step.kind == "affine" and np.all(told["scale"] == 1) and np.all(told["shift"] == 0):
        return next(value for value in values if isinstance(value, Map))
    return result


def _pool(kind: str) -> Handler:
    def take(opset: int, node: Node, values: Sequence[Any]) -> Map:
        x, extent, strides = _maps(node, values[0]), _sides(node, "ksize"), _sides(node, "strides")
        window, size = _window(node, x.step.size, extent, strides, (1, 1))
        if kind == "avg" and x.step.size == extent and window["pads"] == (0, 0, 0, 0):
            return Map(
                Step("mean", [x.step], str(node), x.step.channels, (1, 1)), x.axes.replace("H", "1").replace("W", "1")
            )
        if extent == (1, 1):
            return subsample(x, node, strides)
        return Map(Step(kind, [x.step], str(node), x.step.channels, size, {**window, "counts_border": False}), x.axes)

    return take


def _pad(opset: int, node: Node, values: Sequence[Any]) -> Map:
    """TensorFlow has a pair for each axis, ONNX all that come before and then all that come behind."""
    pairs = np.asarray(values[1])
    mode = (node.attributes.get("mode") or "CONSTANT").lower()
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise UnsupportedOperationError("amounts must be two for each axis")
    as_onnx = Node("Pad", node.name, node.inputs, node.outputs, {"mode": mode})
    filling = values[2] if len(values) > 2 else None
    return onnx_layout.HANDLERS["Pad"](opset, as_onnx, [values[0], pairs.T.reshape(-1), filling])


def _global_max(opset: int, node: Node, values: Sequence[Any]) -> Map:
    raise UnsupportedOperationError("a global maximum, where residual networks have a global average")


def _reshape(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, target = values[0], values[1]
    if not isinstance(x, Map) or not isinstance(target, np.ndarray):
        raise UnsupportedOperationError("its shape must be known")
    shape = [None if side is None else int(side) for side in target.ravel()]
    if {"H", "W"} & set(x.axes):
        kept = {"C": x.step.channels, "H": x.step.size[0], "W": x.step.size[1]}
        if len(shape) == 4 and all(shape[at] in (None, -1, kept[one]) for at, one in enumerate(x.axes) if one != "N"):
            return x
        if x.step.size != (1, 1):
            raise UnsupportedOperationError("only maps of one pixel may be reshaped; it is no global average")
        x = dataclasses.replace(x, axes=x.axes.replace("H", "1").replace("W", "1"))
    return dataclasses.replace(x, axes=onnx_layout.letters(x, shape))


def _transpose(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, order = values[0], whole(values[1])
    if not isinstance(x, Map) or order is None or sorted(order) != list(range(len(x.axes))):
        raise UnsupportedOperationError("it must turn axes in an order that is known")
    return dataclasses.replace(x, axes="".join(x.axes[axis] for axis in order))


def _expand_dims(opset: int, node: Node, values: Sequence[Any]) -> Map:
    as_onnx = Node("Unsqueeze", node.name, node.inputs, node.outputs, {})
    return onnx_layout.HANDLERS["Unsqueeze"](13, as_onnx, [values[0], np.asarray(values[1]).reshape(-1)])


def _slices(node: Node, values: Sequence[Any], rank: int) -> list[Any]:
    """What is taken of each axis: a slice, a number, or None for a new axis."""
    starts, ends, steps = (whole(value) or [] for value in values[1:4])
    masks = {
        key: node.attributes.get(f"{key}_mask") or 0 for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    taken: list[Any] = []
    for place, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True)):
        bit = 1 << place
        if masks["ellipsis"] & bit:
            new = sum(bool(masks["new_axis"] & (1 << later)) for later in range(len(starts)))
            taken += [slice(None)] * max(rank - (len(starts) - 1 - new), 0)
        elif masks["new_axis"] & bit:
            taken.append(None)
        elif masks["shrink_axis"] & bit:
            taken.append(start)
        else:
            taken.append(slice(None if masks["begin"] & bit else start, None if masks["end"] & bit else end, step))
    return taken + [slice(None)] * max(rank - sum(one is not None for one in taken), 0)


def _strided_slice(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x = values[0]
    if not isinstance(x, Map):
        raise UnsupportedOperationError("it must cut maps of features")
    taken = _slices(node, values, len(x.axes))
    if len(taken) != len(x.axes) or any(one is None or isinstance(one, int) for one in taken):
        gone = [at for at, one in enumerate(taken) if one == 0 and x.axes[at : at + 1] == "1"]
        rest = [one for at, one in enumerate(taken) if at not in gone]
        if len(taken) == len(x.axes) and all(one == slice(None, None, 1) or one == slice(None) for one in rest):
            return dataclasses.replace(x, axes="".join(one for at, one in enumerate(x.axes) if at not in gone))
        raise UnsupportedOperationError("it must take every axis whole, every n-th pixel, or turn the channels")
    sizes = {"C": x.step.channels or None, "H": x.step.size[0], "W": x.step.size[1]}
    steps = {"H": 1, "W": 1}
    turned = False
    for letter, part in zip(x.axes, taken, strict=True):
        backwards = part.step == -1 and part.start is None and part.stop is None
        is_whole = part.start in (0, None) and (
            part.stop is None or part.stop >= 2**30 or part.stop == sizes.get(letter)
        )
        if letter == "C" and backwards:
            turned = True
        elif not is_whole or (part.step or 1) < 1 or (letter not in "HW" and part.step not in (None, 1)):
            raise UnsupportedOperationError("it must take every axis whole, every n-th pixel, or turn the channels")
        elif letter in "HW":
            steps[letter] = part.step or 1
    if turned:
        return after(x, node, "flip")
    return subsample(x, node, (steps["H"], steps["W"]))


def _reverse(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, axes = values[0], whole(values[1]) or []
    if not isinstance(x, Map) or [x.axes[axis] for axis in axes] != ["C"]:
        raise UnsupportedOperationError("it must turn the order of the channels")
    return after(x, node, "flip")


def _cast(opset: int, node: Node, values: Sequence[Any]) -> Map:
    if node.attributes.get("DstT") not in _FLOATS:
        raise UnsupportedOperationError("features must stay floating-point numbers")
    return values[0]


def _resize(opset: int, node: Node, values: Sequence[Any]) -> Map:
    x, size = values[0], whole(values[1])
    if not isinstance(x, Map) or x.step.size != tuple(size or ()):
        raise UnsupportedOperationError("it resizes images, which a network here leaves to whoever decodes them")
    return x


def _plain(name: str) -> Handler:
    return lambda opset, node, values: after(values[0], node, "act", values={"name": name})


_STATE = "a program that changes as it runs; save the network as it is used"
_WHY = {
    **dict.fromkeys(
        ("If", "StatelessIf", "While", "StatelessWhile", "Switch", "Merge"), "a residual network has no branches"
    ),
    **dict.fromkeys(("AssignVariableOp", "AssignSubVariableOp", "AssignAddVariableOp"), _STATE),
}
_SHARED = ("Identity", "Squeeze", "Shape", "Gather", "Expand")
_HANDLERS: Mapping[str, Handler] = {
    **{name: onnx_layout.HANDLERS[name] for name in _SHARED},
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _arithmetic),
    **{
        name: onnx_features.HANDLERS[name]
        for name in ("Relu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign")
    },
    **{name: onnx_features.HANDLERS[name] for name in ("Softmax", "LogSoftmax", "LeakyRelu", "ReduceMean")},
    "Relu6": _plain("relu6"),
    **dict.fromkeys(("Conv2D", "DepthwiseConv2dNative"), _conv),
    "SpaceToBatchND": _spread,
    "BatchToSpaceND": _gathered,
    "FusedBatchNormV3": _fused_norm,
    _NORM: _plain_norm,
    "BiasAdd": _bias,
    "MaxPool": _pool("max"),
    "AvgPool": _pool("avg"),
    **dict.fromkeys(("Pad", "MirrorPad"), _pad),
    **dict.fromkeys(("MatMul", "BatchMatMulV2"), _matmul),
    "ReduceMax": _global_max,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ExpandDims": _expand_dims,
    "StridedSlice": _strided_slice,
    "ReverseV2": _reverse,
    "Cast": _cast,
    **dict.fromkeys(("ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor"), _resize),
}


# Operations on constants.


def _constant_cast(node: Node, values: Sequence[Any]) -> np.ndarray:
    kinds = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_, 14: np.float32, 19: np.float16}
    return values[0] if values[0].dtype == object else values[0].astype(kinds[node.attributes["DstT"]])


def _constant_slice(node: Node, values: Sequence[Any]) -> np.ndarray:
    return values[0][tuple(np.newaxis if one is None else one for one in _slices(node, values, values[0].ndim))]


def _packed(node: Node, values: Sequence[Any]) -> np.ndarray:
    return np.stack(values, node.attributes.get("axis") or 0)


def _reduced(function: Any) -> Operation:
    def work(node: Node, values: Sequence[Any]) -> np.ndarray:
        return function(
            values[0], axis=tuple(whole(values[1].reshape(-1)) or ()), keepdims=bool(node.attributes["keepdims"])
        )

    return work


_OPERATIONS: Mapping[str, Operation] = {
    **{
        name: OPERATIONS[name]
        for name in ("Constant", "Identity", "Reshape", "Squeeze", "ReduceMean", "Shape", "Expand")
    },
    **{
        name: OPERATIONS[name]
        for name in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sqrt", "Neg", "Reciprocal")
    },
    "Rsqrt": lambda node, values: 1 / np.sqrt(values[0]),
    "Square": lambda node, values: np.square(values[0]),
    "SquaredDifference": lambda node, values: np.square(values[0] - values[1]),
    "ReduceSum": _reduced(np.sum),
    "Cast": _constant_cast,
    "StridedSlice": _constant_slice,
    "Pack": _packed,
    "Concat": lambda node, values: np.concatenate(values[:-1], int(values[-1])),
    "Gather": lambda node, values: np.take(values[0], values[1], int(values[2]) if len(values) > 2 else 0),
    "Transpose": lambda node, values: np.transpose(values[0], whole(values[1])),
    "ExpandDims": lambda node, values: np.expand_dims(values[0], int(values[1])),
}
