"""What follows the body of a network where a source's graph says it: an activation, or layers of Keras' own.

A head that is more than a global average and one dense layer (hidden layers, two outputs, a global maximum) is kept as
a list of layers that Keras has, with plain arguments and their weights. Nothing is made of a class that is not in the
table, and of its arguments only those that the table names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

#: Layers that a head may have, and their arguments that change what they compute.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "Dense": ("units", "activation", "use_bias"),
    "Conv2D": (*("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "activation", "use_bias"),),
    "BatchNormalization": ("momentum", "epsilon", "center", "scale"),
    "LayerNormalization": ("epsilon", "center", "scale"),
    "GroupNormalization": ("groups", "epsilon", "center", "scale"),
    "UnitNormalization": (),
    "Activation": ("activation",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "LeakyReLU": ("negative_slope",),
    "PReLU": ("shared_axes",),
    "ELU": ("alpha",),
    "Softmax": (),
    "Dropout": ("rate",),
    "SpatialDropout2D": ("rate",),
    "GaussianDropout": ("rate",),
    "AlphaDropout": ("rate",),
    "GaussianNoise": ("stddev",),
    "GlobalAveragePooling2D": ("keepdims",),
    "GlobalMaxPooling2D": ("keepdims",),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "AveragePooling2D": ("pool_size", "strides", "padding"),
    "ZeroPadding2D": ("padding",),
    "Flatten": (),
    "Reshape": ("target_shape",),
    "Permute": ("dims",),
    "Rescaling": ("scale", "offset"),
    "Concatenate": (),
    "Add": (),
    "Average": (),
    "Maximum": (),
    "Minimum": (),
    "Multiply": (),
    "Subtract": (),
    "Identity": (),
}
#: Layers that read a list of values.
JOINS = ("Concatenate", "Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
_BODY = -1


@dataclasses.dataclass(frozen=True)
class HeadLayer:
    """One layer of a head.

    Attributes:
        kind: Its class, a key of :data:`LAYERS`.
        name: Its name.
        options: Arguments of its class.
        inputs: Numbers of the layers that it reads from, -1 for the feature maps of the body.
        arrays: Its weights in its own order.
    """

    kind: str
    name: str
    options: Mapping[str, Any]
    inputs: tuple[int, ...]
    arrays: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class SourceHead:
    """The layers behind a body.

    Attributes:
        layers: The layers, each behind those that it reads from. One that is used twice stands here once for each use.
        outputs: Numbers of the layers whose values are handed out.
    """

    layers: tuple[HeadLayer, ...]
    outputs: tuple[int, ...]

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier, or None where it is no single dense layer's."""
        layer = self.layers[self.outputs[0]] if len(self.outputs) == 1 else None
        while layer is not None and layer.kind != "Dense":
            before = layer.inputs[0] if len(layer.inputs) == 1 else _BODY
            is_last = layer.kind in ("Activation", "Softmax", "Dropout", "Identity")
            layer = self.layers[before] if before != _BODY and is_last else None
        return int(layer.options["units"]) if layer is not None else None

    @property
    def needs_size(self) -> bool:
        """Whether its layers take maps of one size only."""
        return any(layer.kind in ("Flatten", "Reshape", "Permute", "PReLU") for layer in self.layers)

    def __str__(self) -> str:
        """Lists its layers as messages do."""
        return ", ".join(f"{layer.name!r} ({layer.kind})" for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class End:
    """What follows the body of a network, as a source's graph says it.

    Attributes:
        activation: Of the classifier, by Keras' name; ``"linear"`` for none.
        head: The head, where it is not a global average and one dense layer.
        refused: Why the head that the source has cannot be kept; ``""`` where it can.
        takes: The largest value of the images that the source takes where it normalises them itself, 255 or 1; None
            where it takes normalised images.
    """

    activation: str = "softmax"
    head: SourceHead | None = None
    refused: str = ""
    takes: int | None = None


def attach(model: keras.Model, head: SourceHead) -> keras.Model:
    """Puts a head behind a body.

    Args:
        model: The body, whose output is the last feature map.
        head: The head.

    Returns:
        The model of both.

    Raises:
        ValueError: The weights do not fit the layers. (Other errors of Keras' too.)
    """
    import keras

    taken = {layer.name for layer in model.layers}
    made: dict[int, Any] = {_BODY: model.output}
    layers: dict[str, Any] = {}
    for number, one in enumerate(head.layers):
        layer = layers.get(one.name)
        if layer is None:
            name = one.name
            while name in taken:
                name = f"head_{name}"
            taken.add(name)
            layer = layers[one.name] = getattr(keras.layers, one.kind)(name=name, **one.options)
        values = [made[place] for place in one.inputs]
        made[number] = layer(values if one.kind in JOINS else values[0])
        if one.arrays:
            layer.set_weights(one.arrays)
    outputs = [made[place] for place in head.outputs]
    return keras.Model(model.inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
