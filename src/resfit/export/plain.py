"""A network of Keras' own layers alone, batch norms folded: what runtimes without resfit can load and run fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from resfit.networks import layers as own
from resfit.preprocessing import InputSpec
from resfit.training import bn_folding


def plain(model: keras.Model, *, fold: bool) -> keras.Model:
    """Returns a network that computes the same in inference, of layers that Keras has without resfit.

    Weight standardisation becomes part of the kernels, stochastic depth and dropout go away. What stays as it is
    shares its variables with ``model``, which is not changed.

    Args:
        model: A functional network of which each layer is called once.
        fold: Whether batch norms become part of the convolution before them. TensorFlow and Keras do not do that on
            their own; OpenVINO and ONNX networks are built without them anyway.
    """
    source = bn_folding.fold(model, lambda norm: True) if fold else model

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        replace = _REPLACEMENTS.get(type(operation))
        if replace is not None and (fold or type(operation).__module__.startswith("resfit.")):
            return replace(operation, *arguments)
        return operation(*arguments, **options)

    return keras.models.clone_model(source, clone_function=lambda layer: layer, call_function=call)


def fixed(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Returns a network over the same layers for images of one size.

    Args:
        model: A functional model of one input.
        size: Height and width in pixels.
    """
    if tuple(model.input_shape[1:3]) == tuple(size):
        return model
    images = keras.Input((*size, model.input_shape[-1]), dtype="float32", name="images")
    return keras.models.clone_model(model, input_tensors=images, clone_function=lambda layer: layer)


def sized(model: keras.Model, contract: InputSpec) -> keras.Model:
    """Returns a network over the same layers that refuses images of another size than its contract has.

    A residual network gives scores for any size, and other ones than it was measured with.

    Args:
        model: A functional model of one input.
        contract: Its contract; one that resizes nothing leaves the network as it is.
    """
    return model if contract.resize_mode == "none" else fixed(model, contract.size)


def own_layers(model: keras.Model) -> list[str]:
    """Returns the names of the layers that a program without resfit does not know."""
    return [layer.name for layer in model.layers if type(layer).__module__.startswith("resfit.")]


def _array(weight: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(weight), np.float32)


def _convolved(layer: Any, kernel: np.ndarray, bias: np.ndarray | None, activation: Any, x: Any) -> Any:
    made = keras.layers.Conv2D(
        layer.filters,
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        groups=layer.groups,
        use_bias=bias is not None,
        activation=activation,
        name=layer.name,
    )
    result = made(x)
    made.set_weights([kernel] if bias is None else [kernel, bias])
    return result


def _kernel(layer: Any) -> np.ndarray:
    return _array(layer.standardized_kernel if isinstance(layer, own.StandardizedConv2D) else layer.kernel)


def _folded(layer: Any, x: Any) -> Any:
    conv, norm = layer.convolution, layer.norm
    scale = 1 / np.sqrt(_array(norm.moving_variance).astype(np.float64) + norm.epsilon)
    if norm.scale:
        scale = scale * _array(norm.gamma)
    shift = (_array(conv.bias) if conv.use_bias else 0.0) - _array(norm.moving_mean).astype(np.float64)
    shift = shift * scale
    if norm.center:
        shift = shift + _array(norm.beta)
    kernel = (_kernel(conv) * scale).astype(np.float32)
    return _convolved(conv, kernel, shift.astype(np.float32), "relu" if layer.relu else None, x)


def _standardized(layer: Any, x: Any) -> Any:
    return _convolved(layer, _kernel(layer), _array(layer.bias) if layer.use_bias else None, layer.activation, x)


def _blurred(layer: Any, x: Any) -> Any:
    line = np.asarray([0.25, 0.5, 0.25], np.float32)
    kernel = np.tile((line[:, None] * line[None, :])[:, :, None, None], (1, 1, x.shape[-1], 1))
    padded = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    made = keras.layers.DepthwiseConv2D(3, strides=layer.stride, use_bias=False, trainable=False, name=layer.name)
    result = made(padded)
    made.set_weights([kernel])
    return result


def _evo_norm(layer: Any, x: Any) -> Any:
    gate = ops.sigmoid(_by_channel(f"{layer.name}_v", x, layer.v))
    return _by_channel(layer.name, x * gate * layer.inverse_deviation(x), layer.gamma, layer.beta)


def _by_channel(name: str, x: Any, scale: Any, shift: Any = None) -> Any:
    """Multiplies each channel, and adds to it, by a depthwise convolution of one place."""
    made = keras.layers.DepthwiseConv2D(1, use_bias=shift is not None, name=name)
    result = made(x)
    kernel = _array(scale).reshape(1, 1, -1, 1)
    made.set_weights([kernel] if shift is None else [kernel, _array(shift)])
    return result


def _lowest(layer: Any, x: Any) -> Any:
    width = (layer.padding, layer.padding)
    return ops.pad(x, ((0, 0), width, width, (0, 0)), constant_values=-3e38)


def _padded_shortcut(layer: Any, x: Any) -> Any:
    missing = layer.channels - x.shape[-1]
    if layer.stride > 1:  # every n-th pixel
        x = keras.layers.MaxPooling2D(1, strides=layer.stride, name=layer.name)(x)
    if not missing:
        return x
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def _nothing(layer: Any, x: Any) -> Any:
    return x


_REPLACEMENTS: dict[type, Callable[..., Any]] = {
    bn_folding.FoldedConvolution: _folded,
    own.StandardizedConv2D: _standardized,
    own.BlurPool2D: _blurred,
    own.EvoNormS0: _evo_norm,
    own.LowestPadding2D: _lowest,
    own.PaddedShortcut: _padded_shortcut,
    own.StochasticDepth: _nothing,
    keras.layers.Dropout: _nothing,
    keras.layers.SpatialDropout2D: _nothing,
}
