"""Programs whose networks are found by their objects, with the same attributes and nesting, in the Keras they used.

SimCLR: ``tf2/resnet.py``, ``tf2/model.py`` and ``build_saved_model`` of ``tf2/run.py`` in google-research/simclr.
BiT: ``bit_tf2/models.py`` and ``normalization.py`` in google-research/big_transfer, which sayakpaul/BiT-jax2tf saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.weights.tf_sources import randomize

# SimCLR.


class BatchNormRelu(layers.Layer):
    def __init__(self, active: bool = True, center: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.active = active
        self.bn = layers.BatchNormalization(epsilon=1e-5, center=center)

    def call(self, x: Any, training: bool) -> Any:
        x = self.bn(x, training=training)
        return tf.nn.relu(x) if self.active else x


class FixedPadding(layers.Layer):
    def __init__(self, kernel: int, **options: Any) -> None:
        super().__init__(**options)
        self.sides = ((kernel - 1) // 2, kernel // 2)

    def call(self, x: Any, training: bool) -> Any:
        return tf.pad(x, [[0, 0], self.sides, self.sides, [0, 0]])


class Conv2dFixedPadding(layers.Layer):
    def __init__(self, filters: int, kernel: int, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.fixed_padding = FixedPadding(kernel) if stride > 1 else None
        padding = "valid" if stride > 1 else "same"
        self.conv2d = layers.Conv2D(filters, kernel, stride, padding=padding, use_bias=False)

    def call(self, x: Any, training: bool) -> Any:
        if self.fixed_padding:
            x = self.fixed_padding(x, training=training)
        return self.conv2d(x)


class Passing(layers.Layer):
    def call(self, x: Any, training: bool) -> Any:
        return tf.identity(x)


class ResidualBlock(layers.Layer):
    def __init__(self, filters: int, stride: int, projects: bool, **options: Any) -> None:
        super().__init__(**options)
        self.conv2d_bn_layers, self.shortcut_layers = [], []
        if projects:
            self.shortcut_layers.append(Conv2dFixedPadding(filters, 1, stride))
            self.shortcut_layers.append(BatchNormRelu(False))
        self.conv2d_bn_layers.append(Conv2dFixedPadding(filters, 3, stride))
        self.conv2d_bn_layers.append(BatchNormRelu())
        self.conv2d_bn_layers.append(Conv2dFixedPadding(filters, 3, 1))
        self.conv2d_bn_layers.append(BatchNormRelu(False))

    def call(self, x: Any, training: bool) -> Any:
        entering = x
        for layer in self.shortcut_layers:
            entering = layer(entering, training=training)
        for layer in self.conv2d_bn_layers:
            x = layer(x, training=training)
        return tf.nn.relu(x + entering)


class BottleneckBlock(layers.Layer):
    def __init__(self, filters: int, stride: int, projects: bool, **options: Any) -> None:
        super().__init__(**options)
        self.projection_layers = []
        if projects:
            self.projection_layers.append(Conv2dFixedPadding(4 * filters, 1, stride))
            self.projection_layers.append(BatchNormRelu(False))
        self.shortcut_dropblock = Passing()
        self.conv_relu_dropblock_layers = []
        for width, kernel, step in ((filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1)):
            self.conv_relu_dropblock_layers.append(Conv2dFixedPadding(width, kernel, step))
            self.conv_relu_dropblock_layers.append(BatchNormRelu(width == filters))
            self.conv_relu_dropblock_layers.append(Passing())

    def call(self, x: Any, training: bool) -> Any:
        entering = x
        for layer in self.projection_layers:
            entering = layer(entering, training=training)
        entering = self.shortcut_dropblock(entering, training=training)
        for layer in self.conv_relu_dropblock_layers:
            x = layer(x, training=training)
        return tf.nn.relu(x + entering)


class BlockGroup(layers.Layer):
    def __init__(self, block: Any, filters: int, depth: int, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.layers = []
        for number in range(depth):
            self.layers.append(block(filters, 1 if number else stride, projects=number == 0))

    def call(self, x: Any, training: bool) -> Any:
        for layer in self.layers:
            x = layer(x, training=training)
        return tf.identity(x, self.name)


class Resnet(layers.Layer):
    def __init__(self, block: Any, depths: Sequence[int], width: int, small: bool) -> None:
        super().__init__(name="resnet")
        self.initial_conv_relu_max_pool = []
        self.initial_conv_relu_max_pool.append(Conv2dFixedPadding(width, 3 if small else 7, 1 if small else 2))
        self.initial_conv_relu_max_pool.append(Passing(name="initial_conv"))
        self.initial_conv_relu_max_pool.append(BatchNormRelu())
        if not small:
            self.initial_conv_relu_max_pool.append(layers.MaxPooling2D(3, 2, padding="same"))
        self.initial_conv_relu_max_pool.append(Passing(name="initial_max_pool"))
        self.block_groups = []
        for number, depth in enumerate(depths):
            name = f"block_group{number + 1}"
            group = BlockGroup(block, width * 2**number, depth, 2 if number else 1, name=name)
            self.block_groups.append(group)

    def call(self, x: Any, training: bool) -> Any:
        for layer in self.initial_conv_relu_max_pool:
            x = layer(x) if isinstance(layer, layers.MaxPooling2D) else layer(x, training=training)
        for group in self.block_groups:
            x = group(x, training=training)
        return tf.identity(tf.reduce_mean(x, [1, 2]), "final_avg_pool")


class LinearLayer(layers.Layer):
    def __init__(self, width: int, name: str = "linear_layer", normalized: bool = False) -> None:
        super().__init__(name=name)
        self.dense = layers.Dense(width, use_bias=not normalized)
        self.bn_relu = BatchNormRelu(False) if normalized else None

    def call(self, x: Any, training: bool) -> Any:
        x = self.dense(x)
        return self.bn_relu(x, training=training) if self.bn_relu else x


class ProjectionHead(layers.Layer):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(name="projection_head")
        self.linear_layers = [LinearLayer(width, f"nl_{number}", True) for number, width in enumerate(widths)]

    def call(self, x: Any, training: bool) -> list[Any]:
        hiddens = [tf.identity(x, "proj_head_input")]
        for layer in self.linear_layers:
            hiddens.append(tf.nn.relu(layer(hiddens[-1], training=training)))
        return hiddens


class SupervisedHead(layers.Layer):
    def __init__(self, classes: int) -> None:
        super().__init__(name="head_supervised")
        self.linear_layer = LinearLayer(classes)

    def call(self, x: Any, training: bool) -> Any:
        return tf.identity(self.linear_layer(x, training=training), name="logits_sup")


class SimclrModel(tf_keras.Model):
    def __init__(self, options: dict[str, Any], projections: int, selector: int, classes: int) -> None:
        super().__init__()
        self.resnet_model = Resnet(**options)
        expansion = 4 if options["block"] is BottleneckBlock else 1
        features = options["width"] * 2 ** (len(options["depths"]) - 1) * expansion
        self._projection_head = ProjectionHead([features] * projections)
        self.supervised_head = SupervisedHead(classes) if classes else None
        self._selector = selector

    def __call__(self, inputs: Any, training: bool) -> tuple[Any, Any]:
        features = self.resnet_model(inputs, training=training)
        chosen = self._projection_head(features, training=training)[self._selector]
        return features, self.supervised_head(chosen, training=training) if self.supervised_head else None


class Exported(tf.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.trainable_variables_list = model.trainable_variables

    @tf.function
    def __call__(self, inputs: Any, trainable: bool) -> dict[str, Any]:
        features, logits = self.model(inputs, training=trainable)
        return {"final_avg_pool": features} | ({} if logits is None else {"logits_sup": logits})


def simclr(
    *,
    depths: Sequence[int] = (2, 1),
    width: int = 16,
    basic: bool = False,
    small: bool = False,
    projections: int = 0,
    selector: int = 0,
    classes: int = 7,
    seed: int = 0,
) -> Any:
    """SimCLR's ``Model`` with random weights, whose call returns features and logits.

    Args:
        depths: Blocks of each stage.
        width: Of the stem.
        basic: Whether blocks have two convolutions.
        small: A stem for CIFAR.
        projections: Layers of the projection head.
        selector: After how many of them the classifier stands.
        classes: Outputs; 0 for no classifier.
        seed: Of the weights.
    """
    block = ResidualBlock if basic else BottleneckBlock
    options = {"block": block, "depths": depths, "width": width, "small": small}
    model = SimclrModel(options, projections, selector, classes)
    model(tf.zeros((1, 32, 32, 3)), training=False)
    return randomize(model, seed)


def save_simclr(model: Any, folder: Any) -> None:
    """Writes the SavedModel of ``build_saved_model``."""
    module = Exported(model)
    spec = tf.TensorSpec((None, None, None, 3))
    module.__call__.get_concrete_function(spec, trainable=True)
    module.__call__.get_concrete_function(spec, trainable=False)
    tf.saved_model.save(module, str(folder))


# BiT.


class GroupNormalization(layers.Layer):
    def build(self, shape: Any) -> None:
        self._gamma = self.add_weight(name="gamma", shape=(shape[-1],), initializer="ones")
        self._beta = self.add_weight(name="beta", shape=(shape[-1],), initializer="zeros")
        super().build(shape)

    def call(self, x: Any) -> Any:
        entering = tf.shape(x)
        grouped = tf.reshape(x, tf.concat([entering[:-1], [32, x.shape[-1] // 32]], axis=0))
        mean, variance = tf.nn.moments(grouped, (1, 2, 4), keepdims=True)
        normal = tf.reshape((grouped - mean) / tf.sqrt(variance + 1e-5), entering)
        return normal * self._gamma + self._beta

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class PaddingFromKernelSize(layers.Layer):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.side = (kernel - 1) // 2

    def call(self, x: Any) -> Any:
        return tf.pad(x, [[0, 0], [self.side] * 2, [self.side] * 2, [0, 0]])


class StandardizedConv2D(layers.Conv2D):
    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        mean, variance = tf.nn.moments(kernel, (0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, (kernel - mean) / tf.sqrt(variance + 1e-10))


class BottleneckV2Unit(layers.Layer):
    def __init__(self, filters: int, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self._filters, self._stride, self._proj = filters, stride, None
        self._unit_a = tf_keras.Sequential([GroupNormalization(name="group_norm"), layers.ReLU()], name="a")
        self._unit_a_conv = StandardizedConv2D(filters, 1, use_bias=False, name="a/standardized_conv2d")
        middle = [PaddingFromKernelSize(3), self._convolution(filters, 3, stride)]
        self._unit_b = tf_keras.Sequential([GroupNormalization(name="group_norm"), layers.ReLU(), *middle], name="b")
        last = self._convolution(4 * filters, 1, 1)
        self._unit_c = tf_keras.Sequential([GroupNormalization(name="group_norm"), layers.ReLU(), last], name="c")

    @staticmethod
    def _convolution(filters: int, kernel: int, stride: int) -> Any:
        return StandardizedConv2D(filters, kernel, stride, use_bias=False, name="standardized_conv2d")

    def build(self, shape: Any) -> None:
        if self._stride > 1 or 4 * self._filters != shape[-1]:
            self._proj = StandardizedConv2D(
                4 * self._filters, 1, self._stride, use_bias=False, name="a/proj/standardized_conv2d"
            )
        self.built = True

    def call(self, x: Any) -> Any:
        entering = x
        x = self._unit_a(x)
        if self._proj is not None:
            entering = self._proj(x)
        return self._unit_c(self._unit_b(self._unit_a_conv(x))) + entering


class ResnetV2(tf_keras.Model):
    def __init__(self, depths: Sequence[int], width: int, classes: int) -> None:
        super().__init__(name="resnet")
        convolution = StandardizedConv2D(width, 7, 2, use_bias=False, name="standardized_conv2d")
        stem = [PaddingFromKernelSize(7), convolution, PaddingFromKernelSize(3), layers.MaxPool2D(3, 2)]
        self._root = tf_keras.Sequential(stem, name="root_block")
        self._blocks = []
        for stage, depth in enumerate(depths):
            units = [
                BottleneckV2Unit(width * 2**stage, 2 if stage and not unit else 1, name=f"unit{unit + 1:02d}")
                for unit in range(depth)
            ]
            self._blocks.append(tf_keras.Sequential(units, name=f"block{stage + 1}"))
        self._pre_head = [GroupNormalization(name="group_norm"), layers.ReLU(), layers.GlobalAveragePooling2D()]
        self._head = layers.Dense(classes, name="head/dense") if classes else None

    def call(self, x: Any) -> Any:
        for layer in (self._root, *self._blocks, *self._pre_head):
            x = layer(x)
        return x if self._head is None else self._head(x)


def bit(*, depths: Sequence[int] = (2, 1), width: int = 32, classes: int = 7, seed: int = 0) -> Any:
    """BiT's ``ResnetV2`` with random weights."""
    model = ResnetV2(depths, width, classes)
    model.build((None, 64, 64, 3))
    return randomize(model, seed)


def wrapped(model: Any, how: str) -> Any:
    """The same network as it is, inside a functional model, or its layers but for the last in a ``Sequential``."""
    if how == "inside":
        inputs = tf_keras.Input((64, 64, 3))
        return tf_keras.Model(inputs, model(inputs))
    if how == "features":
        body = tf_keras.Sequential(model.layers[:-1])
        body.build((None, 64, 64, 3))
        return body
    return model
