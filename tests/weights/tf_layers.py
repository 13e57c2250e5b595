"""SupCon's network (``supcon/models.py``, ``resnet.py`` and ``blocks.py`` of google-research/google-research).

In the layers of TensorFlow 1 that it is written in, whose scopes name its variables; kept as a module of its Hub.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tf_keras.src.legacy_tf_layers import base, convolutional, core, normalization, pooling


def _norm() -> Any:
    return normalization.BatchNormalization(epsilon=1e-5, fused=False)


class FixedPadding(base.Layer):
    def __init__(self, kernel: int) -> None:
        super().__init__(name="FixedPadding")
        self.sides = ((kernel - 1) // 2, kernel // 2)

    def call(self, x: Any) -> Any:
        return tf.pad(x, [[0, 0], self.sides, self.sides, [0, 0]])


class Conv2DFixedPadding(base.Layer):
    def __init__(self, filters: int, kernel: int, stride: int) -> None:
        super().__init__(name="Conv2DFixedPadding")
        self.fixed_padding = FixedPadding(kernel) if stride > 1 else None
        padding = "valid" if stride > 1 else "same"
        self.conv = convolutional.Conv2D(filters, kernel, stride, padding=padding, use_bias=False)

    def call(self, x: Any) -> Any:
        return self.conv(x if self.fixed_padding is None else self.fixed_padding(x))


class Block(base.Layer):
    """``ResidualBlock`` or ``BottleneckResidualBlock``, which is called ``BottleneckBlock``."""

    def __init__(self, filters: int, stride: int, projects: bool, basic: bool) -> None:
        super().__init__(name="ResidualBlock" if basic else "BottleneckBlock")
        expanded = filters * (1 if basic else 4)
        if projects:
            self.projection_conv, self.projection_bn = Conv2DFixedPadding(expanded, 1, stride), _norm()
        plan = [(filters, 1, 1), (filters, 3, stride), (expanded, 1, 1)]
        plan = [(filters, 3, stride), (filters, 3, 1)] if basic else plan
        self.names = ("first", "second", "third")[: len(plan)]
        self.projects = projects
        for name, sizes in zip(self.names, plan, strict=True):
            setattr(self, f"{name}_conv", Conv2DFixedPadding(*sizes))
            setattr(self, f"{name}_bn", _norm())

    def call(self, x: Any, training: bool) -> Any:
        entering = self.projection_bn(self.projection_conv(x), training) if self.projects else x
        for name in self.names:
            x = getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x), training)
            x = x if name == self.names[-1] else tf.nn.relu(x)
        return tf.nn.relu(x + entering)


class BlockGroup(base.Layer):
    def __init__(self, number: int, filters: int, depth: int, basic: bool) -> None:
        super().__init__(name=f"BlockGroup{number}")
        self.depth = depth
        for block in range(depth):
            first = block == 0
            setattr(self, f"block_{block}", Block(filters, 2 if number and first else 1, first, basic))

    def call(self, x: Any, training: bool) -> Any:
        for block in range(self.depth):
            x = getattr(self, f"block_{block}")(x, training)
        return x


class Encoder(base.Layer):
    def __init__(self, depths: Sequence[int], width: int, basic: bool) -> None:
        super().__init__(name="Encoder")
        self.initial_conv, self.initial_batchnorm = Conv2DFixedPadding(width, 7, 2), _norm()
        self.initial_max_pool = pooling.MaxPooling2D(3, 2, padding="same")
        self.groups = len(depths)
        for number, depth in enumerate(depths):
            setattr(self, f"block_group_{number}", BlockGroup(number, width * 2**number, depth, basic))

    def call(self, x: Any, training: bool) -> Any:
        x = tf.nn.relu(self.initial_batchnorm(self.initial_conv(x), training))
        x = self.initial_max_pool(x)
        for number in range(self.groups):
            x = getattr(self, f"block_group_{number}")(x, training)
        return tf.reduce_mean(x, (1, 2))


class DenseHead(base.Layer):
    def __init__(self, name: str, widths: Sequence[int]) -> None:
        super().__init__(name=name)
        self.dense = [core.Dense(width) for width in widths]

    def call(self, x: Any) -> Any:
        for layer in self.dense:
            x = layer(x)
        return x


class ContrastiveModel(base.Layer):
    def __init__(self, depths: Sequence[int], width: int, basic: bool, classes: int) -> None:
        super().__init__(name="ContrastiveModel")
        self.encoder = Encoder(depths, width, basic)
        self.projection_head = DenseHead("ProjectionHead", (8, 4))
        self.classification_head = DenseHead("ClassificationHead", (classes,))

    def call(self, x: Any, training: bool) -> Any:
        embedding = self.encoder(x, training)
        unit = tf.nn.l2_normalize(embedding, axis=1)
        self.projection_head(unit)
        return embedding, self.classification_head(unit)


def write_supcon(
    folder: Path, images: np.ndarray, *, depths: Sequence[int] = (2, 1), width: int = 16, basic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Writes a module with random weights; returns its unnormalized embeddings and its logits.

    Args:
        folder: Where.
        images: What it is called on, values 0..1, which it brings to -1..1 itself.
        depths: Blocks of each stage.
        width: Of the stem.
        basic: Whether blocks have two convolutions.
    """
    builder = tf.compat.v1.saved_model.Builder(os.fspath(folder))
    build = tf.compat.v1.saved_model.predict_signature_def
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = tf.compat.v1.placeholder(tf.float32, (None, *images.shape[1:]), name="images")
        with tf.compat.v1.variable_scope("module"):
            network = ContrastiveModel(depths, width, basic, 7)
            embedding, logits = network(inputs * 2 - 1, False)
        for variable in tf.compat.v1.global_variables():
            middle = 1.0 if "gamma" in variable.name or "variance" in variable.name else 0.0
            spread = 0.3 if variable.shape.rank == 1 else 1 / np.sqrt(np.prod(variable.shape[:-1]))
            variable.load(middle + random.uniform(-spread, spread, variable.shape), session)
        signature = build({"images": inputs}, {"default": logits, "unnormalized_embeddings": embedding})
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        answers = session.run((embedding, logits), {inputs: images})
    builder.save()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return answers
