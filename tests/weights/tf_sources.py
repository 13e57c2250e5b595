"""TensorFlow's residual networks, written out in plain operations, and the files that their programs would save.

Names, shapes and the forward pass stand here a second time, apart from what reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
Forward = Callable[[Any, Mapping[str, Any]], Any]


def randomize(model: Any, seed: int = 0) -> Any:
    """Gives every variable numbers of its own, those of norms near 1 or 0."""
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.shape.rank > 1:
            value = random.normal(0, 1 / np.sqrt(np.prod(variable.shape[:-1])), variable.shape)
        else:
            middle = 1.0 if "gamma" in variable.name or "variance" in variable.name else 0.0
            value = middle + random.uniform(-0.3, 0.3, variable.shape)
        variable.assign(value)
    return model


class Weights:
    """Random weights by name, made as a network asks for them."""

    def __init__(self, seed: int = 0) -> None:
        self.arrays: Arrays = {}
        self._random = np.random.default_rng(seed)

    def kernel(self, name: str, *shape: int) -> None:
        scale = 1 / np.sqrt(np.prod(shape[:-1]))
        self.arrays[name] = self._random.normal(0, scale, shape).astype(np.float32)

    def vector(self, name: str, width: int, middle: float = 0.0, spread: float = 0.1) -> None:
        self.arrays[name] = self._random.uniform(middle - spread, middle + spread, width).astype(np.float32)

    def norm(self, scope: str, width: int, *, statistics: bool = True) -> None:
        self.vector(f"{scope}/gamma", width, 1.0, 0.4)
        self.vector(f"{scope}/beta", width)
        if statistics:
            self.vector(f"{scope}/moving_mean", width)
            self.vector(f"{scope}/moving_variance", width, 1.0, 0.4)


# Operations.


def conv(x: Any, kernel: Any, stride: int = 1, *, fixed: bool = True) -> Any:
    """A convolution; with a stride and ``fixed``, padded on both sides alike whatever the size."""
    side = int(kernel.shape[0])
    if fixed and stride > 1 and side > 1:
        before = (side - 1) // 2
        x = tf.pad(x, [[0, 0], [before, side - 1 - before], [before, side - 1 - before], [0, 0]])
        return tf.nn.conv2d(x, kernel, stride, "VALID")
    return tf.nn.conv2d(x, kernel, stride, "SAME")


def batch_norm(x: Any, weights: Mapping[str, Any], scope: str, epsilon: float = 1e-5) -> Any:
    """Batch norm in inference."""
    mean, variance, beta, gamma = (
        weights[f"{scope}/{leaf}"] for leaf in ("moving_mean", "moving_variance", "beta", "gamma")
    )
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)


def group_norm(x: Any, weights: Mapping[str, Any], scope: str, groups: int = 32, epsilon: float = 1e-5) -> Any:
    """Group norm over height, width and the channels of a group."""
    batch, height, width, channels = x.shape
    grouped = tf.reshape(x, (batch, height, width, groups, channels // groups))
    mean, variance = tf.nn.moments(grouped, (1, 2, 4), keepdims=True)
    normal = tf.reshape((grouped - mean) / tf.sqrt(variance + epsilon), x.shape)
    return normal * weights[f"{scope}/gamma"] + weights[f"{scope}/beta"]


# TF-Slim (research/slim/nets of tensorflow/models).


def slim_arrays(
    version: int,
    depths: Sequence[int] = (2, 1, 1, 2),
    inner: Sequence[int] = (16, 24, 32, 48),
    *,
    stem: int = 16,
    channels: int = 3,
    classes: int = 7,
    scope: str = "",
    seed: int = 0,
) -> Arrays:
    """Weights of ``resnet_v1`` or ``resnet_v2`` under their names."""
    make = Weights(seed)
    scope = scope or f"resnet_v{version}_50"
    unit = f"bottleneck_v{version}"

    def layer(name: str, kernel: int, before: int, after: int, *, normalized: bool) -> None:
        make.kernel(f"{name}/weights", kernel, kernel, before, after)
        if normalized:
            make.norm(f"{name}/BatchNorm", after)
        else:
            make.vector(f"{name}/biases", after)

    layer(f"{scope}/conv1", 7, channels, stem, normalized=version == 1)
    width = stem
    for stage, (depth, own) in enumerate(zip(depths, inner, strict=True), start=1):
        for block in range(1, depth + 1):
            name = f"{scope}/block{stage}/unit_{block}/{unit}"
            if version == 2:
                make.norm(f"{name}/preact", width)
            if width != 4 * own:
                layer(f"{name}/shortcut", 1, width, 4 * own, normalized=version == 1)
            layer(f"{name}/conv1", 1, width, own, normalized=True)
            layer(f"{name}/conv2", 3, own, own, normalized=True)
            layer(f"{name}/conv3", 1, own, 4 * own, normalized=version == 1)
            width = 4 * own
    if version == 2:
        make.norm(f"{scope}/postnorm", width)
    if classes:
        make.kernel(f"{scope}/logits/weights", 1, 1, width, classes)
        make.vector(f"{scope}/logits/biases", classes)
    return make.arrays


def slim_forward(images: Any, weights: Mapping[str, Any], *, pooled: bool = False) -> Any:
    """Logits of shape ``(batch, classes)``; pooled features where there is no classifier, or on request."""
    scope = next(iter(weights)).partition("/conv1/")[0]
    version = 2 if f"{scope}/postnorm/gamma" in weights else 1
    stages: dict[int, int] = {}
    for name in weights:
        parts = name.removeprefix(f"{scope}/").split("/")
        if parts[0].startswith("block"):
            stage = int(parts[0].removeprefix("block"))
            stages[stage] = max(stages.get(stage, 0), int(parts[1].removeprefix("unit_")))

    def layer(x: Any, name: str, stride: int = 1, *, normalized: bool = True, active: bool = True) -> Any:
        x = conv(x, weights[f"{name}/weights"], stride)
        x = batch_norm(x, weights, f"{name}/BatchNorm") if normalized else x + weights[f"{name}/biases"]
        return tf.nn.relu(x) if active else x

    x = layer(images, f"{scope}/conv1", 2, normalized=version == 1, active=version == 1)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for stage in sorted(stages):
        for block in range(1, stages[stage] + 1):
            # the last unit of every block but the last strides
            stride = 2 if block == stages[stage] and stage < len(stages) else 1
            name = f"{scope}/block{stage}/unit_{block}/bottleneck_v{version}"
            entering = x
            if version == 2:
                x = tf.nn.relu(batch_norm(x, weights, f"{name}/preact"))
            if f"{name}/shortcut/weights" in weights:
                shortcut = layer(x, f"{name}/shortcut", stride, normalized=version == 1, active=False)
            else:
                shortcut = tf.nn.max_pool2d(entering, 1, stride, "SAME") if stride > 1 else entering
            x = layer(x, f"{name}/conv1")
            x = layer(x, f"{name}/conv2", stride)
            x = shortcut + layer(x, f"{name}/conv3", normalized=version == 1, active=False)
            if version == 1:
                x = tf.nn.relu(x)
    if version == 2:
        x = tf.nn.relu(batch_norm(x, weights, f"{scope}/postnorm"))
    x = tf.reduce_mean(x, (1, 2), keepdims=True)
    if pooled or f"{scope}/logits/weights" not in weights:
        return x[:, 0, 0]
    return layer(x, f"{scope}/logits", normalized=False, active=False)[:, 0, 0]


# BiT (bit_tf2/models.py of google-research/big_transfer).


def bit_arrays(
    depths: Sequence[int] = (2, 1, 1, 2),
    factor: int = 2,
    *,
    filters: Sequence[int] = (),
    channels: int = 3,
    classes: int = 7,
    scope: str = "resnet/",
    head: str = "head/conv2d",
    seed: int = 0,
) -> Arrays:
    """Weights of BiT under their names; widths are multiples of 32, as its group norm has 32 groups."""
    make = Weights(seed)
    filters = tuple(filters) or tuple(32 * factor * 2**stage for stage in range(len(depths)))
    conv2d = "standardized_conv2d/kernel"
    make.kernel(f"{scope}root_block/{conv2d}", 7, 7, channels, filters[0])
    width = filters[0]
    for stage, (depth, own) in enumerate(zip(depths, filters, strict=True), start=1):
        for block in range(1, depth + 1):
            name = f"{scope}block{stage}/unit{block:02d}"
            make.norm(f"{name}/a/group_norm", width, statistics=False)
            if block == 1 and (stage > 1 or width != 4 * own):
                make.kernel(f"{name}/a/proj/{conv2d}", 1, 1, width, 4 * own)
            make.kernel(f"{name}/a/{conv2d}", 1, 1, width, own)
            make.norm(f"{name}/b/group_norm", own, statistics=False)
            make.kernel(f"{name}/b/{conv2d}", 3, 3, own, own)
            make.norm(f"{name}/c/group_norm", own, statistics=False)
            make.kernel(f"{name}/c/{conv2d}", 1, 1, own, 4 * own)
            width = 4 * own
    make.norm(f"{scope}group_norm", width, statistics=False)
    if classes:
        make.kernel(f"{scope}{head}/kernel", *((1, 1) if head.endswith("conv2d") else ()), width, classes)
        make.vector(f"{scope}{head}/bias", classes)
    return make.arrays


def bit_forward(images: Any, weights: Mapping[str, Any]) -> Any:
    """Logits of shape ``(batch, classes)``."""
    scope = next(iter(weights)).partition("root_block/")[0]
    blocks = sorted({tuple(n.removeprefix(scope).split("/")[:2]) for n in weights if n.startswith(f"{scope}block")})

    def standardized(x: Any, name: str, stride: int = 1) -> Any:
        kernel = weights[f"{name}/standardized_conv2d/kernel"]
        mean, variance = tf.nn.moments(tf.convert_to_tensor(kernel), (0, 1, 2), keepdims=True)
        return conv(x, (kernel - mean) / tf.sqrt(variance + 1e-10), stride)

    x = standardized(images, f"{scope}root_block", 2)
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    for block, unit in blocks:
        name = f"{scope}{block}/{unit}"
        stride = 2 if unit == "unit01" and block != "block1" else 1
        entering = x
        x = tf.nn.relu(group_norm(x, weights, f"{name}/a/group_norm"))
        if f"{name}/a/proj/standardized_conv2d/kernel" in weights:
            entering = standardized(x, f"{name}/a/proj", stride)
        x = standardized(x, f"{name}/a")
        x = standardized(tf.nn.relu(group_norm(x, weights, f"{name}/b/group_norm")), f"{name}/b", stride)
        x = standardized(tf.nn.relu(group_norm(x, weights, f"{name}/c/group_norm")), f"{name}/c")
        x = x + entering
    x = tf.reduce_mean(tf.nn.relu(group_norm(x, weights, f"{scope}group_norm")), (1, 2))
    for head in ("head/conv2d", "head/dense"):
        if f"{scope}{head}/kernel" in weights:
            kernel = tf.reshape(weights[f"{scope}{head}/kernel"], (x.shape[-1], -1))
            return x @ kernel + weights[f"{scope}{head}/bias"]
    return x


# The official models for TensorFlow 1 (official/r1/resnet/resnet_model.py of tensorflow/models).


class Numbered:
    """Layers that are numbered as they are made, with random weights, or with the weights given."""

    def __init__(self, weights: Mapping[str, Any] | None = None, scope: str = "resnet_model/") -> None:
        self.make, self.weights, self.scope = Weights(), weights, scope
        self.counts: dict[str, int] = {}

    def name(self, kind: str) -> str:
        count = self.counts[kind] = self.counts.get(kind, -1) + 1
        return f"{self.scope}{kind}" + (f"_{count}" if count else "")

    def conv(self, x: Any, width: int, kernel: int, stride: int = 1) -> Any:
        name = self.name("conv2d")
        if self.weights is None:
            self.make.kernel(f"{name}/kernel", kernel, kernel, int(x.shape[-1]), width)
        return conv(x, (self.weights or self.make.arrays)[f"{name}/kernel"], stride)

    def norm(self, x: Any, *, active: bool = True) -> Any:
        name = self.name("batch_normalization")
        if self.weights is None:
            self.make.norm(name, int(x.shape[-1]))
        x = batch_norm(x, self.weights or self.make.arrays, name)
        return tf.nn.relu(x) if active else x

    def dense(self, x: Any, width: int) -> Any:
        name = self.name("dense")
        if self.weights is None:
            self.make.kernel(f"{name}/kernel", int(x.shape[-1]), width)
            self.make.vector(f"{name}/bias", width)
        found = self.weights or self.make.arrays
        return x @ found[f"{name}/kernel"] + found[f"{name}/bias"]


def official_forward(
    images: Any,
    layers: Numbered,
    version: int,
    *,
    bottleneck: bool = True,
    depths: Sequence[int] = (2, 1, 1, 2),
    filters: int = 16,
    kernel: int = 7,
    classes: int = 7,
) -> Any:
    """Logits of shape ``(batch, classes)``. A small first kernel is CIFAR's: no stride and no pooling."""
    small = kernel == 3
    x = layers.conv(images, filters, kernel, 1 if small else 2)
    if version == 1:
        x = layers.norm(x)
    if not small:
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            width, stride = filters * 2**stage, 2 if stage and not block else 1
            entering = x
            if version == 2:
                x = layers.norm(x)
            if not block:
                entering = layers.conv(x, width * (4 if bottleneck else 1), 1, stride)
                if version == 1:
                    entering = layers.norm(entering, active=False)
            plan = (
                [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
                if bottleneck
                else [(width, 3, stride), (width, 3, 1)]
            )
            for number, (own, side, step) in enumerate(plan):
                x = layers.conv(x, own, side, step)
                last = number == len(plan) - 1
                if version == 1 or not last:
                    x = layers.norm(x, active=not last)
            x = x + entering
            if version == 1:
                x = tf.nn.relu(x)
    if version == 2:
        x = layers.norm(x)
    return layers.dense(tf.reduce_mean(x, (1, 2)), classes)


# Files.


def write_checkpoint(prefix: Path, arrays: Mapping[str, np.ndarray], *, first_format: bool = False) -> Path:
    """Writes variables as a program of TensorFlow 1 does, with its counter of steps; returns what is to be read."""
    prefix.parent.mkdir(exist_ok=True)
    version = tf.compat.v1.train.SaverDef.V1 if first_format else tf.compat.v1.train.SaverDef.V2
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(name, initializer=array) for name, array in arrays.items()]
        variables.append(tf.compat.v1.train.get_or_create_global_step())
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, write_version=version)
        saver.save(session, os.fspath(prefix), write_meta_graph=False)
    return prefix


class _Module(tf.Module):
    """What TensorFlow Hub publishes: an object with lists of variables that can be called."""

    def __init__(self, arrays: Mapping[str, np.ndarray], forward: Forward, scale: float, shift: float) -> None:
        super().__init__()
        self._order = [tf.Variable(array, name=name, trainable="moving_" not in name) for name, array in arrays.items()]
        self._names, self._forward = list(arrays), forward
        self._scale, self._shift = scale, shift

    @property
    def weights(self) -> dict[str, Any]:
        return dict(zip(self._names, self._order, strict=True))

    @tf.function(autograph=False)
    def __call__(self, images: Any) -> Any:
        return self._forward(images * self._scale + self._shift, self.weights)


def write_saved_model(
    folder: Path, arrays: Mapping[str, np.ndarray], forward: Forward, images: Any, *, unit_range: bool = False
) -> np.ndarray:
    """Writes a SavedModel of TensorFlow 2 and returns its own answer.

    Args:
        folder: Where to write.
        arrays: Its variables, by their names in the program.
        forward: The network.
        images: What it is called on. With ``unit_range``, values 0..1, which the SavedModel brings to -1..1 itself.
        unit_range: As TensorFlow Hub's modules are.
    """
    module = _Module(arrays, forward, *((2.0, -1.0) if unit_range else (1.0, 0.0)))
    module(tf.constant(images))
    signature = tf.TensorSpec(images.shape, tf.float32, name="inputs")
    published = tf.train.Checkpoint(variables=module._order)
    published.trainable_variables = [variable for variable in module._order if variable.trainable]
    published.__call__ = module.__call__
    serve = module.__call__.get_concrete_function(signature)
    tf.saved_model.save(published, os.fspath(folder), signatures={"serving_default": serve})
    loaded = tf.saved_model.load(os.fspath(folder))
    return np.asarray(loaded(tf.constant(images)))


def write_v1_module(folder: Path, arrays: Mapping[str, np.ndarray], forward: Forward, images: Any) -> np.ndarray:
    """Writes a module of TensorFlow 1's Hub, whose variables stand under ``module/``, and returns its own answer."""
    builder = tf.compat.v1.saved_model.Builder(os.fspath(folder))
    build = tf.compat.v1.saved_model.predict_signature_def
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = tf.compat.v1.placeholder(tf.float32, images.shape, name="images")
        with tf.compat.v1.variable_scope("module"):
            variables = {n: tf.compat.v1.get_variable(n, initializer=a, use_resource=False) for n, a in arrays.items()}
        outputs = forward(inputs, variables)
        session.run(tf.compat.v1.global_variables_initializer())
        builder.add_meta_graph_and_variables(session, [], {"default": build({"images": inputs}, {"default": outputs})})
        answer = session.run(outputs, {inputs: images})
    builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return answer


# Keras' own networks, in other sizes.


def keras_network(version: int, depths: Sequence[int] = (2, 3, 2, 2), *, width: int = 64, channels: int = 3) -> Any:
    """keras.applications' ResNet or ResNetV2 with fewer and narrower blocks, by its own builder."""
    from keras.src.applications import resnet

    stack = resnet.stack_residual_blocks_v1 if version == 1 else resnet.stack_residual_blocks_v2

    def stacks(x: Any) -> Any:
        for stage, depth in enumerate(depths):
            last = 1 if version == 1 and stage == 0 else 2
            stride = last if version == 1 else 1 if stage == len(depths) - 1 else 2
            x = stack(x, 16 + 8 * stage, depth, stride1=stride, name=f"conv{stage + 2}")
        return x

    return resnet.ResNet(
        stacks,
        version == 2,
        True,
        weights=None,
        input_shape=(64, width, channels),
        classes=7,
        classifier_activation=None,
        weights_name="none",
    )


# Model Garden (official/vision of tensorflow/models), in the Keras that it uses.


def garden_block(**options: Any) -> Any:
    """A block as ``official/vision/modeling/layers/nn_blocks.py`` makes it, with the same objects in the same order."""
    from tf_keras import layers

    class SqueezeExcitation(layers.Layer):
        def __init__(self, width: int, reduced: int) -> None:
            super().__init__()
            self._se_reduce = layers.Conv2D(reduced, 1)
            self._se_expand = layers.Conv2D(width, 1)

        def call(self, x: Any) -> Any:
            weights = tf.nn.relu(self._se_reduce(tf.reduce_mean(x, (1, 2), keepdims=True)))
            return x * tf.sigmoid(self._se_expand(weights))

    class Block(layers.Layer):
        def __init__(
            self,
            filters: int,
            stride: int,
            projects: bool,
            *,
            bottleneck: bool,
            pooled: bool,
            squeezes: bool,
            activation: str,
        ) -> None:
            super().__init__(name=None)
            self._width = 4 * filters if bottleneck else filters
            self._activation_fn = layers.Activation(activation)
            self._projects = projects
            self._pooled = pooled
            if projects:
                if pooled:
                    self._shortcut0 = layers.AveragePooling2D(2, strides=stride, padding="same")
                    self._shortcut1 = layers.Conv2D(self._width, 1, use_bias=False)
                else:
                    self._shortcut = layers.Conv2D(self._width, 1, strides=stride, use_bias=False)
                self._norm0 = layers.BatchNormalization(epsilon=1e-5)
            plan = (
                [(filters, 1, 1), (filters, 3, stride), (self._width, 1, 1)]
                if bottleneck
                else [(filters, 3, stride), (filters, 3, 1)]
            )
            self._count = len(plan)
            for number, (width, side, step) in enumerate(plan, start=1):
                own = layers.Conv2D(width, side, strides=step, padding="same", use_bias=False)
                setattr(self, f"_conv{number}", own)
                setattr(self, f"_norm{number}", layers.BatchNormalization(epsilon=1e-5))
            self._squeeze_excitation = SqueezeExcitation(self._width, self._width // 4) if squeezes else None

        def call(self, x: Any) -> Any:
            entering = x
            if self._projects:
                entering = self._shortcut1(self._shortcut0(x)) if self._pooled else self._shortcut(x)
                entering = self._norm0(entering)
            for number in range(1, self._count + 1):
                x = getattr(self, f"_norm{number}")(getattr(self, f"_conv{number}")(x))
                if number < self._count:
                    x = self._activation_fn(x)
            if self._squeeze_excitation is not None:
                x = self._squeeze_excitation(x)
            return self._activation_fn(x + entering)

    Block.__name__ = "BottleneckBlock" if options["bottleneck"] else "ResidualBlock"
    return Block(**options)


def garden_network(
    depths: Sequence[int] = (2, 1, 1, 2),
    filters: Sequence[int] = (16, 24, 32, 48),
    *,
    bottleneck: bool = True,
    rs: bool = False,
    pooled: bool = False,
    first_projects: bool = True,
    channels: int = 3,
    classes: int = 7,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Model Garden's backbone and its classifier, with random weights.

    Args:
        depths: Blocks of each stage.
        filters: Their width.
        bottleneck: Whether blocks have three convolutions.
        rs: ResNet-RS: three convolutions in the stem, another in place of its pooling, squeeze-excite, swish.
        pooled: Shortcuts average before they project (ResNet-D).
        first_projects: Whether the first stage projects where it need not.
        channels: Input channels.
        classes: Outputs.
        seed: Of the weights.
    """
    import tf_keras
    from tf_keras import layers

    activation = "swish" if rs else "relu"

    def convolved(x: Any, width: int, side: int, stride: int) -> Any:
        x = layers.Conv2D(width, side, strides=stride, padding="same", use_bias=False)(x)
        return layers.Activation(activation)(layers.BatchNormalization(epsilon=1e-5)(x))

    inputs = tf_keras.Input((None, None, channels))
    if rs:
        x = convolved(convolved(convolved(inputs, 8, 3, 2), 8, 3, 1), 16, 3, 1)
        x = convolved(x, 16, 3, 2)
    else:
        x = layers.MaxPool2D(3, 2, padding="same")(convolved(inputs, 16, 7, 2))
    for stage, (depth, own) in enumerate(zip(depths, filters, strict=True)):
        for number in range(depth):
            projects = number == 0 and (stage > 0 or first_projects)
            stride = 2 if stage and not number else 1
            options = {"bottleneck": bottleneck, "pooled": pooled, "squeezes": rs, "activation": activation}
            x = garden_block(filters=own, stride=stride, projects=projects, **options)(x)
        x = layers.Activation("linear", name=f"block_group_l{stage + 2}")(x)
    backbone = tf_keras.Model(inputs, {"5": x})
    outer = tf_keras.Input((None, None, channels))
    pooled_features = layers.GlobalAveragePooling2D()(backbone(outer)["5"])
    model = tf_keras.Model(outer, layers.Dense(classes)(pooled_features))
    return backbone, randomize(model, seed)


def legacy_forward(images: Any, weights: Mapping[str, Any], *, garden: bool) -> Any:
    """The network of ``res2a_branch2a``: keras.applications' before 2019, or Model Garden's first.

    Returns:
        Logits of shape ``(batch, classes)``.
    """
    epsilon = 1e-5 if garden else 1e-3

    def layer(x: Any, base: str, stride: int = 1, *, active: bool = True) -> Any:
        name = f"res{base}" if base != "conv1" else base
        norm = f"bn{base}" if base != "conv1" else "bn_conv1"
        x = conv(x, weights[f"{name}/kernel"], stride, fixed=base == "conv1" or not garden)
        if f"{name}/bias" in weights:
            x = x + weights[f"{name}/bias"]
        x = batch_norm(x, weights, norm, epsilon)
        return tf.nn.relu(x) if active else x

    x = layer(images, "conv1", 2)
    if garden:
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    else:
        x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    blocks = sorted({name[3:].partition("_")[0] for name in weights if name.startswith("res")})
    for block in blocks:
        stride = 2 if block.endswith("a") and block != "2a" else 1
        entering = layer(x, f"{block}_branch1", stride, active=False) if f"res{block}_branch1/kernel" in weights else x
        x = layer(x, f"{block}_branch2a", 1 if garden else stride)
        x = layer(x, f"{block}_branch2b", stride if garden else 1)
        x = tf.nn.relu(layer(x, f"{block}_branch2c", active=False) + entering)
    return tf.reduce_mean(x, (1, 2)) @ weights["fc1000/kernel"] + weights["fc1000/bias"]


def legacy_arrays(*, garden: bool, classes: int = 7) -> Arrays:
    """Weights of a small network of ``res2a_branch2a``; with biases where it is not Model Garden's."""
    make = Weights()

    def layer(base: str, kernel: int, before: int, after: int) -> None:
        name = f"res{base}" if base != "conv1" else base
        make.kernel(f"{name}/kernel", kernel, kernel, before, after)
        if not garden:
            make.vector(f"{name}/bias", after)
        make.norm(f"bn{base}" if base != "conv1" else "bn_conv1", after)

    layer("conv1", 7, 3, 16)
    width = 16
    for stage, blocks, own in ((2, "ab", 16), (3, "a", 24), (4, "ab", 32), (5, "a", 48)):
        for block in blocks:
            layer(f"{stage}{block}_branch2a", 1, width, own)
            layer(f"{stage}{block}_branch2b", 3, own, own)
            layer(f"{stage}{block}_branch2c", 1, own, 4 * own)
            if block == "a":
                layer(f"{stage}{block}_branch1", 1, width, 4 * own)
            width = 4 * own
    make.kernel("fc1000/kernel", width, classes)
    make.vector("fc1000/bias", classes)
    return make.arrays
