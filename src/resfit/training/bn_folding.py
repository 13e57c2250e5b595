"""A training step that costs less: batch norms with fixed statistics become part of the convolution before them.

``conv(x, k) * s + t`` is ``conv(x, k * s) + t``. The second form touches the feature maps once where the first does
three times, forwards and backwards; the gradients of ``gamma`` and ``beta`` come from the small kernel and from the sum
that the bias needs anyway. The mathematics is the same, the variables are the same, only the order of the roundings
differs.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from resfit.networks.layers import StandardizedConv2D
from resfit.training import boundary

if TYPE_CHECKING:
    from collections.abc import Callable


class FoldedConvolution(keras.layers.Layer):
    """A convolution and the batch norm behind it, with fixed statistics, as one operation.

    It lives only while a network is trained; the two layers keep their variables.

    Args:
        convolution: A ``Conv2D`` without an activation.
        norm: The ``BatchNormalization`` that alone reads it.
        relu: Whether a ReLU follows at once.
    """

    def __init__(self, convolution: Any, norm: Any, *, relu: bool = False):
        super().__init__(name=f"{convolution.name}_folded", dtype=convolution.dtype_policy)
        self.convolution, self.norm, self.relu = convolution, norm, relu
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Applies both layers to ``(batch, height, width, channels)``."""
        conv, norm = self.convolution, self.norm
        scale = ops.rsqrt(ops.cast(norm.moving_variance, "float32") + norm.epsilon)
        if norm.scale:
            scale = scale * ops.cast(norm.gamma, "float32")
        shift = -ops.cast(norm.moving_mean, "float32")
        if conv.use_bias:
            shift = shift + ops.cast(conv.bias, "float32")
        shift = shift * scale
        if norm.center:
            shift = shift + ops.cast(norm.beta, "float32")
        kernel = conv.standardized_kernel if isinstance(conv, StandardizedConv2D) else conv.kernel
        kernel = ops.cast(ops.cast(kernel, "float32") * scale, self.compute_dtype)
        shift = ops.cast(shift, self.compute_dtype)
        if keras.backend.backend() == "tensorflow" and conv.groups == 1 and set(conv.dilation_rate) == {1}:
            from resfit.training.convolution import convolve

            return convolve(inputs, kernel, shift, strides=conv.strides, padding=conv.padding, relu=self.relu)
        outputs = ops.conv(
            inputs,
            kernel,
            strides=list(conv.strides),
            padding=conv.padding,
            dilation_rate=conv.dilation_rate,
            data_format=conv.data_format,
        )
        outputs = outputs + shift
        return ops.relu(outputs) if self.relu else outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape after the convolution."""
        return self.convolution.compute_output_shape(input_shape)


def fold(model: keras.Model, fixed: Callable[[Any], bool]) -> keras.Model:
    """Returns a model over the same variables in which batch norms are part of their convolutions.

    Args:
        model: A functional network of which each layer is called once.
        fixed: Whether a batch norm uses its moving statistics.

    Returns:
        A model that computes the same; its layers are those of ``model`` wherever nothing was folded.
    """
    layers = {layer.name: layer for layer in model.layers}
    above = boundary.parents(model)
    readers = Counter(parent for names in above.values() for parent in names)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    pairs: dict[str, str] = {}  # norm -> convolution
    for name, names in above.items():
        norm = layers.get(name)
        if not isinstance(norm, keras.layers.BatchNormalization) or len(names) != 1 or not fixed(norm):
            continue
        source = layers.get(names[0])
        if _is_plain(source) and readers[names[0]] == 1 and names[0] not in ends and norm.axis in (-1, 3):
            pairs[name] = names[0]
    relus: dict[str, str] = {}  # activation -> norm
    for name, names in above.items():
        if len(names) == 1 and names[0] in pairs and readers[names[0]] == 1 and names[0] not in ends:
            layer = layers.get(name)
            if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu:
                relus[name] = names[0]
    absorbed = set(relus.values()) | set(pairs.values())

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        name = operation.name
        if name in absorbed:  # the layer that absorbs it gets its input
            return arguments[0]
        norm = relus.get(name, name)
        if norm in pairs:
            return FoldedConvolution(layers[pairs[norm]], layers[norm], relu=name in relus)(arguments[0])
        return operation(*arguments, **options)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _is_plain(layer: Any) -> bool:
    return (
        type(layer) in (keras.layers.Conv2D, StandardizedConv2D)
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
    )
