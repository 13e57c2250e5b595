"""The attention pooling at the end of CLIP's visual towers, in place of the average over all places.

Radford et al. 2021, arXiv:2103.00020: the mean of the feature map asks, and it and all places answer; what comes is
the image's vector in the space that CLIP shares with text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    import keras

#: Channels of one head, in every published tower.
HEAD_WIDTH = 64

#: What it is called where it is left out.
REASON = "CLIP's attention pooling"

_PARTS = ("query", "key", "value", "output")
# names of the position's embedding, and of the four projections or of the first three in one and the last
_NAMES = (
    ("attnpool.positional_embedding", ("attnpool.q_proj", "attnpool.k_proj", "attnpool.v_proj", "attnpool.c_proj")),
    ("head.pos_embed", ("head.q", "head.k", "head.v", "head.proj")),
    ("head.pos_embed", ("head.qkv", "head.proj")),
)


def find(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray] | None:
    """Returns the weights of an attention pooling, or None where there is none.

    Args:
        tensors: The tensors of a source, by its names.
        prefix: What stands before the names of the network.

    Returns:
        ``position`` ``(places + 1, channels)``, and for ``query``, ``key``, ``value`` and ``output`` a ``/kernel``
        ``(in, out)`` and a ``/bias`` ``(out,)``.

    Raises:
        CheckpointError: Their shapes do not go together.
    """
    for position, layers in _NAMES:
        names = [f"{prefix}{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
        if f"{prefix}{position}" not in tensors or any(name not in tensors for name in names):
            continue
        place = np.asarray(tensors[prefix + position])
        kernels = [np.asarray(tensors[name]) for name in names[::2]]
        biases = [np.asarray(tensors[name]) for name in names[1::2]]
        if len(layers) == 2 and all(array.ndim and len(array) % 3 == 0 for array in (kernels[0], biases[0])):
            kernels, biases = [*np.split(kernels[0], 3), kernels[1]], [*np.split(biases[0], 3), biases[1]]
        channels = place.shape[-1] if place.ndim == 2 else 0
        outputs = len(biases[-1]) if biases[-1].ndim == 1 else 0
        wanted = [(channels, channels)] * 3 + [(outputs, channels)]
        shapes = [array.shape for array in kernels]
        side = math.isqrt(max(len(place) - 1, 0)) if place.ndim else 0
        fits = shapes == wanted and [array.shape for array in biases] == [shape[:1] for shape in wanted]
        if not fits or not side or side**2 != len(place) - 1 or channels % HEAD_WIDTH or not outputs:
            raise CheckpointError(
                "an attention pooling must have an embedding of a square's places and one more, and projections of its "
                f"width, a multiple of {HEAD_WIDTH}. Received: {place.shape} and {shapes}."
            )
        found = {"position": place}
        for part, kernel, bias in zip(_PARTS, kernels, biases, strict=True):
            found |= {f"{part}/kernel": np.ascontiguousarray(kernel.T), f"{part}/bias": bias}
        return found
    return None


def attach(body: keras.Model, weights: Mapping[str, np.ndarray] | None) -> keras.Model:
    """Returns a network that ends in an attention pooling, ``(batch, outputs)``.

    Args:
        body: A network that gives the last feature map.
        weights: What :func:`find` returned.

    Raises:
        ArgumentError: The source has no attention pooling, or the body's images are of another size than it is for.
    """
    import keras

    from resfit.networks.build import head_dtype
    from resfit.networks.layers import AttentionPooling2D

    if weights is None:
        raise ArgumentError('pooling="attention" is for CLIP\'s visual towers. Received: a source without it.')
    features: Any = body.output
    side = math.isqrt(len(weights["position"]) - 1)
    if tuple(features.shape[1:]) != (side, side, weights["position"].shape[1]):
        raise ArgumentError(
            f"this attention pooling is for feature maps of {(side, side, weights['position'].shape[1])}. "
            f"Received: {tuple(features.shape[1:])}. Leave input_shape out."
        )
    heads = weights["position"].shape[1] // HEAD_WIDTH
    layer = AttentionPooling2D(heads, len(weights["output/bias"]), name="attention_pool", dtype=head_dtype())
    model = keras.Model(body.input, layer(features), name=body.name)
    layer.load(weights)
    return model


def image_size(weights: Mapping[str, np.ndarray] | None, stride: int) -> int | None:
    """Returns the side in pixels of the images that an attention pooling is for, or None without one.

    Args:
        weights: What :func:`find` returned.
        stride: Of the whole network in pixels.
    """
    return None if weights is None else math.isqrt(len(weights["position"]) - 1) * stride
