"""Residual networks as people write them in Keras: layers under whatever names, everything else by choice."""

from __future__ import annotations

from typing import Any

import numpy as np


def randomize(model: Any) -> Any:
    """Gives a network of Keras 2 or 3 weights and statistics that show every mistake."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        name, shape = variable.name.removesuffix(":0"), tuple(variable.shape)
        if name.endswith(("gamma", "variance")):
            value = generator.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = generator.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        else:
            value = generator.normal(0, 0.1, shape)
        if "count" not in name:
            variable.assign(value.astype("float32"))
    return model


def images(side: int = 16, channels: int = 3, *, first: bool = False) -> np.ndarray:
    """Two images of values around zero."""
    shape = (2, channels, side, side) if first else (2, side, side, channels)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def cifar(
    library: Any, version: int = 1, *, blocks: int = 1, side: int = 16, widths: tuple[int, ...] = (8, 16, 32)
) -> Any:
    """``resnet_v1`` and ``resnet_v2`` of Keras' own example for CIFAR, in few and narrow blocks.

    Args:
        library: ``keras`` or ``tf_keras``.
        version: 1 or 2.
        blocks: In each stage.
        side: Of the images.
        widths: Filters of the stages.
    """
    layers = library.layers

    def layer(x, filters, kernel=3, strides=1, activation="relu", norm=True, conv_first=True):
        conv = layers.Conv2D(filters, kernel, strides=strides, padding="same")
        x = conv(x) if conv_first else x
        x = layers.BatchNormalization()(x) if norm else x
        x = layers.Activation(activation)(x) if activation else x
        return x if conv_first else conv(x)

    inputs = layers.Input((side, side, 3))
    x = layer(inputs, widths[0])
    for stage, width in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            starts = block == 0
            if version == 1:
                y = layer(layer(x, width, strides=strides), width, activation=None)
                x = layer(x, width, 1, strides, None, False) if stage and starts else x
                x = layers.Activation("relu")(layers.add([x, y]))
                continue
            plain = not stage and starts
            y = layer(x, width, 1, strides, None if plain else "relu", not plain, False)
            y = layer(layer(y, width, conv_first=False), 2 * width, 1, conv_first=False)
            x = layer(x, 2 * width, 1, strides, None, False) if starts else x
            x = layers.add([x, y])
    if version == 2:
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D(side // 2 ** (len(widths) - 1))(x))
    return randomize(library.Model(inputs, layers.Dense(5, activation="softmax")(x)))


def small(
    library: Any,
    *,
    side: int | None = 16,
    stem: Any = None,
    act: Any = None,
    norm: Any = None,
    conv: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    before: Any = None,
    head: Any = None,
    first: bool = False,
    pad: str = "same",
) -> Any:
    """A network of two blocks.

    Args:
        library: ``keras`` or ``tf_keras``.
        side: Of the images; None for any.
        stem: What follows the stem's activation, as a function of a tensor.
        act: Makes an activation layer. Default: ReLU.
        norm: Makes a norm layer. Default: batch norm.
        conv: Options of every convolution.
        second: Options of the first convolution of the second block, over its stride of 2.
        before: What images go through first, as a function of a tensor.
        head: What follows the last block, as a function of a tensor. Default: an average and a dense layer.
        first: Whether the channels are the first axis.
        pad: Of convolutions with a stride: ``"same"``, or ``"explicit"`` by a layer.
    """
    layers = library.layers
    act = act or layers.ReLU
    axis = 1 if first else -1
    norm = norm or (lambda: layers.BatchNormalization(axis=axis))
    data = {"data_format": "channels_first"} if first else {}
    general = {"use_bias": False, **data, **(conv or {})}

    def convolved(x, width, kernel, **options):
        options = {"padding": "same", **general, **options}
        if options.get("strides", 1) == 2:
            options["dilation_rate"] = 1
        if pad == "explicit" and options.get("strides", 1) == 2 and kernel > 1:
            x, options["padding"] = layers.ZeroPadding2D(kernel // 2, **data)(x), "valid"
        return norm()(layers.Conv2D(width, kernel, **options)(x))

    inputs = layers.Input((3, side, side) if first else (side, side, 3))
    x = before(inputs) if before else inputs
    x = act()(convolved(x, 8, 3))
    x = stem(x) if stem else x
    y = convolved(act()(convolved(x, 8, 3)), 8, 3)
    x = act()(layers.Add()([x, y]))
    y = convolved(act()(convolved(x, 12, 3, **{"strides": 2, **(second or {})})), 12, 3)
    x = act()(layers.Add()([convolved(x, 12, 1, strides=2), y]))
    if head is None:
        outputs = layers.Dense(4)(layers.GlobalAveragePooling2D(**data)(x))
    else:
        outputs = head(x)
    return randomize(library.Model(inputs, outputs))
