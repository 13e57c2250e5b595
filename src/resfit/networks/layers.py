"""The few layers that Keras does not have. All are registered under the package name ``resfit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from resfit.errors import ArgumentError

_register = keras.saving.register_keras_serializable(package="resfit")


@_register
class StandardizedConv2D(keras.layers.Conv2D):
    """A convolution whose kernel has zero mean and unit variance for each output channel.

    Weight standardisation (Qiao et al. 2019, arXiv:1903.10520), as BiT uses it (Kolesnikov et al. 2020).

    Args:
        filters: Output channels.
        kernel_size: Side of the kernel in pixels.
        standardization_epsilon: Added to the variance of the kernel.
        **kwargs: As ``keras.layers.Conv2D`` takes them.
    """

    def __init__(self, filters: int, kernel_size: Any, standardization_epsilon: float = 1e-8, **kwargs: Any):
        super().__init__(filters, kernel_size, **kwargs)
        self.standardization_epsilon = standardization_epsilon

    @property
    def standardized_kernel(self) -> Any:
        """The kernel that the convolution uses, shape ``(k, k, in, out)``."""
        kernel = ops.cast(self.kernel, "float32")
        mean, variance = ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        scaled = (kernel - mean) * ops.rsqrt(variance + self.standardization_epsilon)
        return ops.cast(scaled, self.compute_dtype)

    def call(self, inputs: Any) -> Any:
        """Convolves ``(batch, height, width, channels)`` with the standardised kernel."""
        outputs = ops.conv(
            inputs,
            self.standardized_kernel,
            strides=list(self.strides),
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return outputs if self.bias is None else outputs + ops.cast(self.bias, outputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "standardization_epsilon": self.standardization_epsilon}


@_register
class EvoNormS0(keras.layers.Layer):
    """Norm and activation in one: ``x * sigmoid(v * x) / deviation * gamma + beta``.

    The deviation is that of a group of channels over all places of one image, and ``v``, ``gamma`` and ``beta`` are
    learned for each channel. Nothing depends on the batch. Liu et al. 2020, arXiv:2004.02967.

    Args:
        groups: Groups of channels; they divide the channels.
        epsilon: Added to the variance.
        gamma_initializer: What ``gamma`` starts with.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, gamma_initializer: Any = "ones", **kwargs: Any):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon
        self.gamma_initializer = keras.initializers.get(gamma_initializer)

    def build(self, input_shape: Any) -> None:
        """Makes the weights for ``(batch, height, width, channels)``."""
        channels = input_shape[-1]
        if channels % self.groups:
            raise ArgumentError(f"channels must divide by groups={self.groups}. Received: {channels} channels.")
        self.gamma = self.add_weight((channels,), self.gamma_initializer, name="gamma")
        self.beta = self.add_weight((channels,), "zeros", name="beta")
        self.v = self.add_weight((channels,), "ones", name="v")

    def call(self, inputs: Any) -> Any:
        """Normalises and activates ``(batch, height, width, channels)``, in float32 whatever the dtype policy."""
        x = ops.cast(inputs, "float32")
        gamma, beta, v = (ops.cast(weight, "float32") for weight in (self.gamma, self.beta, self.v))
        outputs = x * ops.sigmoid(x * v) * (self.inverse_deviation(x) * gamma) + beta
        return ops.cast(outputs, self.compute_dtype)

    def inverse_deviation(self, x: Any) -> Any:
        """Returns one over the deviation of each channel's group, shape ``(batch, 1, 1, channels)``."""
        channels = x.shape[-1]
        members = channels // self.groups
        mean, variance = (ops.reshape(one, (-1, self.groups, members)) for one in ops.moments(x, (1, 2)))
        # what the channels of a group vary in themselves, and against each other
        variance = ops.mean(variance, -1, keepdims=True) + ops.var(mean, -1, keepdims=True)
        scale = ops.rsqrt(variance + self.epsilon) * ops.ones((1, 1, members))
        return ops.reshape(scale, (-1, 1, 1, channels))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        initializer = keras.initializers.serialize(self.gamma_initializer)
        own = {"groups": self.groups, "epsilon": self.epsilon, "gamma_initializer": initializer}
        return {**super().get_config(), **own}


@_register
class BlurPool2D(keras.layers.Layer):
    """Anti-aliased subsampling: a 3x3 binomial filter over reflected borders, then a stride.

    Zhang 2019, arXiv:1904.11486.

    Args:
        stride: Stride in pixels.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, stride: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs: Any) -> Any:
        """Filters ``(batch, height, width, channels)``."""
        channels = inputs.shape[-1]
        line = ops.array([0.25, 0.5, 0.25], dtype=self.compute_dtype)
        kernel = ops.reshape(line[:, None] * line[None, :], (3, 3, 1, 1))
        kernel = ops.tile(kernel, (1, 1, channels, 1))
        padded = ops.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return ops.depthwise_conv(padded, kernel, strides=self.stride, padding="valid", data_format="channels_last")

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape after the stride."""
        batch, height, width, channels = input_shape
        return (batch, _ceil(height, self.stride), _ceil(width, self.stride), channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "stride": self.stride}


@_register
class LowestPadding2D(keras.layers.Layer):
    """Pads both sides with the lowest number of the dtype, so that a max pooling never picks the border.

    Args:
        padding: Pixels on each side.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, padding: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, inputs: Any) -> Any:
        """Pads ``(batch, height, width, channels)``."""
        lowest = -65504.0 if self.compute_dtype == "float16" else -3e38
        width = (self.padding, self.padding)
        return ops.pad(inputs, ((0, 0), width, width, (0, 0)), constant_values=lowest)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the padded shape."""
        batch, height, width, channels = input_shape
        more = 2 * self.padding
        return (batch, height and height + more, width and width + more, channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "padding": self.padding}


@_register
class PaddedShortcut(keras.layers.Layer):
    """The parameter-free shortcut (type A): every n-th pixel, and new channels of zeros on both sides.

    He et al. 2015, arXiv:1512.03385, section 3.3.

    Args:
        channels: Output channels, at least the input's.
        stride: Stride in pixels.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, channels: int, stride: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.stride = stride

    def call(self, inputs: Any) -> Any:
        """Subsamples and pads ``(batch, height, width, channels)``."""
        missing = self.channels - inputs.shape[-1]
        sampled = inputs[:, :: self.stride, :: self.stride, :]
        return ops.pad(sampled, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape with the new channels."""
        batch, height, width, _ = input_shape
        return (batch, _ceil(height, self.stride), _ceil(width, self.stride), self.channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "channels": self.channels, "stride": self.stride}


@_register
class StochasticDepth(keras.layers.Layer):
    """Drops the whole residual branch of an image in training.

    Huang et al. 2016, arXiv:1603.09382. The branches that stay are scaled up by ``1 / (1 - rate)``.

    Args:
        rate: Share of images whose branch is dropped, in [0, 1).
        seed: Seed of the random choice.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Drops images of ``(batch, height, width, channels)`` if ``training``."""
        if not training or self.rate == 0:
            return inputs
        shape = (ops.shape(inputs)[0], 1, 1, 1)
        draw = keras.random.uniform(shape, dtype=inputs.dtype, seed=self.seed_generator)
        kept = ops.cast(draw >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@_register
class AttentionPooling2D(keras.layers.Layer):
    """The pooling of CLIP's visual towers: what the mean of a feature map finds by attention in it and all its places.

    Radford et al. 2021, arXiv:2103.00020.

    Args:
        heads: Heads of the attention; they divide the channels.
        outputs: Length of the vectors that come out.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, heads: int, outputs: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.outputs = outputs

    def build(self, input_shape: Any) -> None:
        """Makes the weights for ``(batch, height, width, channels)``, all but the batch fixed."""
        _, height, width, channels = input_shape
        self.position = self.add_weight((height * width + 1, channels), "random_normal", name="position")
        self.attention = keras.layers.MultiHeadAttention(
            self.heads, channels // self.heads, output_shape=self.outputs, name="attention", dtype=self.dtype_policy
        )
        self.attention.build((None, 1, channels), (None, height * width + 1, channels))

    def call(self, inputs: Any) -> Any:
        """Pools ``(batch, height, width, channels)`` to ``(batch, outputs)``."""
        _, height, width, channels = inputs.shape
        places = ops.reshape(inputs, (-1, height * width, channels))
        tokens = ops.concatenate([ops.mean(places, axis=1, keepdims=True), places], axis=1)
        tokens = tokens + ops.cast(self.position, tokens.dtype)
        return self.attention(tokens[:, :1], tokens)[:, 0]

    def load(self, weights: Mapping[str, Any]) -> None:
        """Sets the weights.

        Args:
            weights: As :func:`resfit.weights.attention.find` returns them.
        """
        self.position.assign(weights["position"])
        for part in ("query", "key", "value", "output"):
            for own, name in zip(getattr(self.attention, f"{part}_dense").weights, ("kernel", "bias"), strict=True):
                own.assign(weights[f"{part}/{name}"].reshape(own.shape))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the vectors."""
        return (input_shape[0], self.outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "heads": self.heads, "outputs": self.outputs}


def _ceil(length: int | None, stride: int) -> int | None:
    return None if length is None else -(-length // stride)
