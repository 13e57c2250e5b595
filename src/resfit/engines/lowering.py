"""A Keras network as a few primitive operations: what the fast engines are built from, without tracing.

:func:`lower` walks the graph of a functional model and hands each step to a :class:`Builder`, which makes the operation
of one runtime. On the way batch norms are folded into the convolutions before them, and zero paddings into the
operation behind them. It knows the layers that residual networks are made of, and refuses every other with
:class:`Unsupported`; the caller then falls back to the runtime's own converter.

Walking ResNet-50 takes a quarter of a second, where tracing it through TensorFlow takes six to eleven seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import keras
import numpy as np

from resfit.engines.base import Unsupported
from resfit.networks import layers as own

#: What :meth:`Builder.activation` must know, by Keras' names.
ACTIVATIONS = ("relu", "relu6", "sigmoid", "tanh", "silu", "elu", "gelu", "softplus", "exponential")

#: Pairs ``(before, after)`` for height and width, or TensorFlow's rule, by which the odd pixel comes after.
Pads = tuple[tuple[int, int], tuple[int, int]]
_NO_PADS: Pads = ((0, 0), (0, 0))


class Builder(Protocol):
    """Makes the operations of one runtime. Tensors are opaque; images are ``(batch, channels, height, width)``."""

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
        """Convolves with a kernel ``(out, in / groups, height, width)``; ``pads=None`` is TensorFlow's "same"."""
        ...

    def pool(self, x: Any, kind: str, size: tuple[int, int], strides: tuple[int, int], pads: Pads | None) -> Any:
        """Takes the ``"max"`` or ``"avg"`` of windows; what is padded counts for nothing."""
        ...

    def pad(self, x: Any, pads: Sequence[tuple[int, int]], value: float | None) -> Any:
        """Pads every axis with a value, or by reflection for ``None``."""
        ...

    def reduce(self, x: Any, kind: str, axes: Sequence[int], keep: bool) -> Any:
        """Takes the ``"max"`` or ``"avg"`` over axes."""
        ...

    def add(self, x: Any, y: Any) -> Any:
        """Adds two tensors, or a tensor and an array."""
        ...

    def multiply(self, x: Any, y: Any) -> Any:
        """Multiplies two tensors, or a tensor and an array."""
        ...

    def activation(self, x: Any, name: str) -> Any:
        """Applies one of :data:`ACTIVATIONS`."""
        ...

    def softmax(self, x: Any, axis: int) -> Any:
        """Applies the softmax along an axis."""
        ...

    def matmul(self, x: Any, kernel: np.ndarray) -> Any:
        """Multiplies ``(batch, in)`` by ``(in, out)``."""
        ...

    def group_norm(self, x: Any, groups: int, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> Any:
        """Normalises groups of channels."""
        ...

    def rsqrt(self, x: Any) -> Any:
        """Takes one over the square root."""
        ...

    def take(self, x: Any, indices: Sequence[int], axis: int) -> Any:
        """Picks entries along an axis."""
        ...

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """Reshapes; the first axis, the batch, stays and is left out of ``shape``."""
        ...

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        """Reorders the axes."""
        ...


class _Value:
    """A tensor of the new graph, and what is known about it.

    Attributes:
        node: The builder's tensor; images have their channels second.
        rank: Number of axes, the batch included.
        never_negative: Whether no value can lie under zero.
    """

    def __init__(self, node: Any, rank: int, never_negative: bool = False):
        self.node = node
        self.rank = rank
        self.never_negative = never_negative


class _Padded(_Value):
    """Zero padding that waits for an operation to take it in."""

    def __init__(self, builder: Builder, source: _Value, pads: Pads):
        self.source, self.pads, self.rank = source, pads, 4
        self.never_negative = source.never_negative
        self._builder = builder

    @functools.cached_property
    def node(self) -> Any:
        return self._builder.pad(self.source.node, ((0, 0), (0, 0), *self.pads), 0.0)


class _Convolved(_Value):
    """A convolution that waits for a batch norm to be folded in; each of its readers may fold another one."""

    def __init__(
        self, builder: Builder, source: Any, kernel: np.ndarray, bias: np.ndarray | None, options: dict[str, Any]
    ):
        self.rank, self.never_negative = 4, False
        self._parts = (builder, source, kernel, bias, options)

    @functools.cached_property
    def node(self) -> Any:
        builder, source, kernel, bias, options = self._parts
        return builder.convolution(source, kernel, bias, **options)

    def scaled(self, scale: np.ndarray, shift: np.ndarray) -> _Convolved:
        """Returns the convolution with an affine map of its output channels folded in."""
        builder, source, kernel, bias, options = self._parts
        moved = shift if bias is None else bias * scale + shift
        return _Convolved(builder, source, kernel * scale[:, None, None, None], moved, options)


def lower(model: keras.Model, builder: Builder, images: Any) -> Any:
    """Rebuilds a functional model, in inference mode and float32.

    Args:
        model: A functional model with one input ``(batch, height, width, channels)`` and one output.
        builder: Makes the operations.
        images: The builder's tensor for the input, of the model's shape.

    Returns:
        The builder's tensor for the output, of the model's shape.

    Raises:
        Unsupported: The model is no functional one, or has a layer or option that is not known here.
    """
    rank = len(model.inputs[0].shape)
    value = _channels_second(builder, images) if rank == 4 else _Value(images, rank)
    result = _walk(model, builder, value)
    return builder.transpose(result.node, (0, 2, 3, 1)) if result.rank == 4 else result.node


def _walk(model: Any, builder: Builder, value: _Value) -> Any:
    if type(model) is keras.Sequential:
        model = model._functional
    # by name, since the class of functional models is not public; a subclass may compute something else
    if type(model).__name__ != "Functional" or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise Unsupported(f"a {type(model).__name__} other than a functional model of one input and one output")
    # the walk of `keras.Function`, by which every functional model computes its outputs
    return model._run_through_graph([value], operation_fn=lambda operation: _step(operation, builder))


def _step(operation: Any, builder: Builder) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if isinstance(operation, keras.Model):
            return _walk(operation, builder, args[0])
        translate = _TRANSLATORS.get(type(operation)) or _OPERATIONS.get(type(operation).__name__)
        if translate is None or getattr(operation, "data_format", "channels_last") != "channels_last":
            raise Unsupported(f"{type(operation).__name__} {operation.name!r}")
        if any(not isinstance(x, _Value) for x in _flat(args)) or any(
            value is not None for key, value in kwargs.items() if key not in ("training", "mask")
        ):
            raise Unsupported(f"{type(operation).__name__} {operation.name!r} with arguments")
        return translate(operation, builder, *args)

    return call


def _flat(args: Sequence[Any]) -> list[Any]:
    return [inner for item in args for inner in (item if isinstance(item, list | tuple) else [item])]


def _channels_second(builder: Builder, images: Any) -> _Value:
    return _Value(builder.transpose(images, (0, 3, 1, 2)), 4)


def _array(weight: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float32)


def _along_channels(values: np.ndarray, rank: int) -> np.ndarray:
    """Shapes one value a channel so that it meets a tensor of this rank: second axis of images, last of others."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return flat.reshape(1, -1, 1, 1) if rank == 4 else flat.reshape((1,) * (rank - 1) + (-1,))


def _affine(builder: Builder, x: _Value, scale: np.ndarray, shift: np.ndarray) -> _Value:
    if isinstance(x, _Convolved):
        return x.scaled(scale, shift)
    scaled = builder.multiply(x.node, _along_channels(scale, x.rank))
    return _Value(builder.add(scaled, _along_channels(shift, x.rank)), x.rank)


def _activated(builder: Builder, x: _Value, function: Any) -> _Value:
    name = getattr(function, "__name__", str(function))
    if name == "linear":
        return x
    if name == "softmax":
        return _Value(builder.softmax(x.node, 1 if x.rank == 4 else x.rank - 1), x.rank, never_negative=True)
    # only Keras' own function of that name is known to compute it
    if name not in ACTIVATIONS or getattr(keras.activations, name, None) is not function:
        raise Unsupported(f"activation {name!r}")
    positive = name in ("relu", "relu6", "sigmoid", "exponential")
    return _Value(builder.activation(x.node, name), x.rank, never_negative=positive)


def _source_and_pads(
    x: _Value, padding: str, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Any, Pads | None]:
    if padding == "valid":
        return (x.source.node, x.pads) if isinstance(x, _Padded) else (x.node, _NO_PADS)
    if padding != "same":
        raise Unsupported(f"padding {padding!r}")
    if tuple(strides) == (1, 1):
        totals = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
        return x.node, cast(Pads, pads)
    return x.node, None


def _convolution(layer: Any, builder: Builder, x: _Value) -> _Value:
    kernel = layer.standardized_kernel if isinstance(layer, own.StandardizedConv2D) else layer.kernel
    strides, dilations = tuple(layer.strides), tuple(layer.dilation_rate)
    source, pads = _source_and_pads(x, layer.padding, layer.kernel_size, strides, dilations)
    options = {"strides": strides, "dilations": dilations, "pads": pads, "groups": layer.groups}
    bias = _array(layer.bias) if layer.use_bias else None
    convolved = _Convolved(builder, source, _array(kernel).transpose(3, 2, 0, 1), bias, options)
    return _activated(builder, convolved, layer.activation)


def _line_convolution(layer: Any, builder: Builder, x: _Value) -> _Value:
    """A one-dimensional convolution, as a two-dimensional one of width 1."""
    if layer.padding != "same" or layer.strides != (1,) or layer.groups != 1:
        raise Unsupported("Conv1D other than with padding 'same' and stride 1")
    total = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    image = builder.reshape(builder.transpose(x.node, (0, 2, 1)), (int(layer.input.shape[-1]), -1, 1))
    result = builder.convolution(
        image,
        _array(layer.kernel).transpose(2, 1, 0)[..., None],
        _array(layer.bias) if layer.use_bias else None,
        strides=(1, 1),
        dilations=(layer.dilation_rate[0], 1),
        pads=((total // 2, total - total // 2), (0, 0)),
        groups=1,
    )
    line = builder.transpose(builder.reshape(result, (layer.filters, -1)), (0, 2, 1))
    return _activated(builder, _Value(line, 3), layer.activation)


def _batch_norm(layer: Any, builder: Builder, x: _Value) -> _Value:
    if layer.axis not in (-1, x.rank - 1):
        raise Unsupported("BatchNormalization over another axis than the last")
    scale = 1.0 / np.sqrt(_array(layer.moving_variance) + np.float32(layer.epsilon))
    if layer.scale:
        scale = scale * _array(layer.gamma)
    shift = -_array(layer.moving_mean) * scale
    if layer.center:
        shift = shift + _array(layer.beta)
    return _affine(builder, x, scale, shift)


def _group_norm(layer: Any, builder: Builder, x: _Value) -> _Value:
    if layer.axis not in (-1, 3) or x.rank != 4:
        raise Unsupported("GroupNormalization over another axis than the last of images")
    channels = int(layer.input.shape[-1])
    gamma = _array(layer.gamma) if layer.scale else np.ones(channels, np.float32)
    beta = _array(layer.beta) if layer.center else np.zeros(channels, np.float32)
    return _Value(builder.group_norm(x.node, layer.groups, gamma, beta, layer.epsilon), 4)


def _evo_norm(layer: Any, builder: Builder, x: _Value) -> _Value:
    groups, channels = int(layer.groups), int(layer.input.shape[-1])
    grouped = builder.reshape(x.node, (groups, -1))
    mean = builder.reduce(grouped, "avg", (2,), True)
    away = builder.add(grouped, builder.multiply(mean, np.full(1, -1, np.float32)))
    variance = builder.reduce(builder.multiply(away, away), "avg", (2,), True)
    scale = builder.rsqrt(builder.add(variance, np.full(1, layer.epsilon, np.float32)))
    # from one value of a group to one of a channel
    scale = builder.multiply(scale, _array(layer.gamma).reshape(1, groups, -1))
    scale = builder.reshape(scale, (channels, 1, 1))
    gate = builder.activation(builder.multiply(x.node, _along_channels(_array(layer.v), 4)), "sigmoid")
    scaled = builder.multiply(builder.multiply(x.node, gate), scale)
    return _Value(builder.add(scaled, _along_channels(_array(layer.beta), 4)), 4)


def _rescaling(layer: Any, builder: Builder, x: _Value) -> _Value:
    scale, shift = (np.asarray(value, np.float32).reshape(-1) for value in (layer.scale, layer.offset))
    return _affine(builder, _Value(x.node, x.rank), scale, shift)


def _normalization(layer: Any, builder: Builder, x: _Value) -> _Value:
    mean, variance = _array(layer.mean).reshape(-1), _array(layer.variance).reshape(-1)
    if layer.invert or len(mean) not in (1, int(layer.input.shape[-1])):
        raise Unsupported("Normalization other than of channels")
    deviation = np.maximum(np.sqrt(variance), np.float32(keras.backend.epsilon()))
    return _affine(builder, x, 1 / deviation, -mean / deviation)


def _zero_padding(layer: Any, builder: Builder, x: _Value) -> _Value:
    pads = tuple((int(before), int(after)) for before, after in layer.padding)
    return _Padded(builder, x, cast(Pads, pads))


def _pooling(kind: str) -> Callable[..., _Value]:
    def translate(layer: Any, builder: Builder, x: _Value) -> _Value:
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        source, pads = x.node if not isinstance(x, _Padded) else None, cast("Pads | None", _NO_PADS)
        if layer.padding == "same":
            source, pads = _source_and_pads(x, "same", size, strides, (1, 1))
        elif isinstance(x, _Padded):
            fits = all(before < width and after < width for (before, after), width in zip(x.pads, size, strict=True))
            # a maximum over windows of values that are not negative does not see the zeros
            absorbed = kind == "max" and x.never_negative and fits
            source, pads = (x.source.node, x.pads) if absorbed else (x.node, _NO_PADS)
        return _Value(builder.pool(source, kind, size, strides, pads), 4, x.never_negative)

    return translate


def _global_pooling(kind: str) -> Callable[..., _Value]:
    def translate(layer: Any, builder: Builder, x: _Value) -> _Value:
        keep = bool(layer.keepdims)
        return _Value(builder.reduce(x.node, kind, (2, 3), keep), 4 if keep else 2, x.never_negative)

    return translate


def _add(layer: Any, builder: Builder, items: Sequence[_Value]) -> _Value:
    first, *others = items
    node = first.node
    for other in others:
        node = builder.add(node, other.node)
    return _Value(node, first.rank, all(item.never_negative for item in items))


def _multiply(layer: Any, builder: Builder, items: Sequence[_Value]) -> _Value:
    first, *others = items
    node = first.node
    for other in others:
        node = builder.multiply(node, other.node)
    return _Value(node, first.rank, all(item.never_negative for item in items))


def _dense(layer: Any, builder: Builder, x: _Value) -> _Value:
    if x.rank != 2:
        raise Unsupported("Dense on other than vectors")
    node = builder.matmul(x.node, _array(layer.kernel))
    if layer.use_bias:
        node = builder.add(node, _array(layer.bias).reshape(1, -1))
    return _activated(builder, _Value(node, 2), layer.activation)


def _activation(layer: Any, builder: Builder, x: _Value) -> _Value:
    return _activated(builder, x, layer.activation)


def _relu(layer: Any, builder: Builder, x: _Value) -> _Value:
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6, 6.0):
        raise Unsupported("ReLU with a slope, a threshold or a maximum other than 6")
    return _activated(builder, x, keras.activations.relu6 if layer.max_value else keras.activations.relu)


def _softmax(layer: Any, builder: Builder, x: _Value) -> _Value:
    if layer.axis not in (-1, x.rank - 1):
        raise Unsupported("Softmax over another axis than the last")
    return _activated(builder, x, keras.activations.softmax)


def _reshape(layer: Any, builder: Builder, x: _Value) -> _Value:
    shape = [-1 if side is None else int(side) for side in layer.target_shape]
    node = builder.transpose(x.node, (0, 2, 3, 1)) if x.rank == 4 else x.node
    node = builder.reshape(node, shape)
    if len(shape) == 3:
        return _channels_second(builder, node)
    return _Value(node, len(shape) + 1, x.never_negative)


def _flatten(layer: Any, builder: Builder, x: _Value) -> _Value:
    node = builder.transpose(x.node, (0, 2, 3, 1)) if x.rank == 4 else x.node
    return _Value(builder.reshape(node, (-1,)), 2, x.never_negative)


def _identity(layer: Any, builder: Builder, x: _Value) -> _Value:
    return x


def _lowest_padding(layer: Any, builder: Builder, x: _Value) -> _Value:
    side = (layer.padding, layer.padding)
    return _Value(builder.pad(x.node, ((0, 0), (0, 0), side, side), -3e38), 4)


def _blur(layer: Any, builder: Builder, x: _Value) -> _Value:
    line = np.asarray([0.25, 0.5, 0.25], np.float32)
    channels = int(layer.input.shape[-1])
    kernel = np.tile((line[:, None] * line[None, :])[None, None], (channels, 1, 1, 1))
    padded = builder.pad(x.node, ((0, 0), (0, 0), (1, 1), (1, 1)), None)
    stride = (layer.stride, layer.stride)
    options: dict[str, Any] = {"strides": stride, "dilations": (1, 1), "pads": _NO_PADS, "groups": channels}
    return _Value(builder.convolution(padded, kernel, None, **options), 4, x.never_negative)


def _padded_shortcut(layer: Any, builder: Builder, x: _Value) -> _Value:
    node = x.node
    if layer.stride > 1:  # every n-th pixel
        node = builder.pool(node, "max", (1, 1), (layer.stride, layer.stride), _NO_PADS)
    missing = layer.channels - int(layer.input.shape[-1])
    if missing:
        node = builder.pad(node, ((0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0)), 0.0)
    return _Value(node, 4, x.never_negative)


def _flip(operation: Any, builder: Builder, x: _Value) -> _Value:
    axis, channels = operation.axis, operation.output.shape[-1]
    if axis not in (-1, x.rank - 1) or channels is None:
        raise Unsupported("a flip of another axis than the channels")
    return _Value(builder.take(x.node, list(range(channels))[::-1], 1 if x.rank == 4 else x.rank - 1), x.rank)


def _repeat(operation: Any, builder: Builder, x: _Value) -> _Value:
    axis, channels = operation.axis, operation.output.shape[-1]
    if axis not in (-1, x.rank - 1) or channels is None or type(operation.repeats) is not int:
        raise Unsupported("a repetition along another axis than the channels")
    indices = [place // operation.repeats for place in range(channels)]
    return _Value(builder.take(x.node, indices, 1 if x.rank == 4 else x.rank - 1), x.rank)


_L = keras.layers
#: By exact type: a subclass may compute something else.
_TRANSLATORS: dict[type, Callable[..., Any]] = {
    _L.Conv2D: _convolution,
    own.StandardizedConv2D: _convolution,
    _L.Conv1D: _line_convolution,
    _L.BatchNormalization: _batch_norm,
    _L.GroupNormalization: _group_norm,
    _L.Rescaling: _rescaling,
    _L.Normalization: _normalization,
    _L.ZeroPadding2D: _zero_padding,
    own.LowestPadding2D: _lowest_padding,
    _L.MaxPooling2D: _pooling("max"),
    _L.AveragePooling2D: _pooling("avg"),
    _L.GlobalMaxPooling2D: _global_pooling("max"),
    _L.GlobalAveragePooling2D: _global_pooling("avg"),
    _L.Add: _add,
    _L.Multiply: _multiply,
    _L.Dense: _dense,
    _L.Activation: _activation,
    _L.ReLU: _relu,
    _L.Softmax: _softmax,
    _L.Reshape: _reshape,
    _L.Flatten: _flatten,
    _L.Dropout: _identity,
    _L.SpatialDropout2D: _identity,
    _L.GaussianNoise: _identity,
    _L.GaussianDropout: _identity,
    _L.Identity: _identity,
    own.StochasticDepth: _identity,
    own.BlurPool2D: _blur,
    own.EvoNormS0: _evo_norm,
    own.PaddedShortcut: _padded_shortcut,
}
#: Operations of ``keras.ops``, which have no public class.
_OPERATIONS: dict[str, Callable[..., Any]] = {"Flip": _flip, "Repeat": _repeat}
