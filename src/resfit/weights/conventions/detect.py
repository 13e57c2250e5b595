"""Which program named the arrays of a file, where its format does not tell: ``.npz``, ``.pkl``, ``.msgpack``, torch's.

A container says little of what is in it: names of torch occur in ``.npz`` and ``.pkl``, names of JAX in ``.pth``. The
names themselves decide which table of names translates them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resfit.errors import CheckpointError
from resfit.weights.conventions import haiku, pytorch, tensorflow
from resfit.weights.conventions.pytorch import Translation
from resfit.weights.formats.base import Tensors


def translate(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Brings named arrays to canonical names.

    Args:
        tensors: What a reader returned. Not changed.
        prefix: What stands before the names of the network, if the source holds several.
        averaged: Take the running average (EMA) rather than the network itself.
        ignore: Patterns of names to leave out.

    Raises:
        CheckpointError: No known residual network is there, or several are and none is the likeliest.
    """
    plain = [name.removesuffix(":0") for name in tensors.arrays]  # as variables of TensorFlow's graphs are called
    if len(set(plain)) == len(plain) and any(name.endswith(":0") for name in tensors.arrays):
        tensors = dataclasses.replace(tensors, arrays=dict(zip(plain, tensors.arrays.values(), strict=True)))
    options = {"prefix": prefix, "averaged": averaged, "ignore": ignore}
    if haiku.is_network(tensors.arrays):
        return haiku.translate(tensors, **options)  # type: ignore[arg-type]
    if tensorflow.is_network(tensors.arrays):
        return tensorflow.translate(tensors, **options)  # type: ignore[arg-type]
    dotted = {name: name.replace("/", ".") for name in tensors.arrays}
    if len(set(dotted.values())) == len(dotted) and pytorch.locate(pytorch.unwrapped(dict.fromkeys(dotted.values()))):
        arrays = {dotted[name]: array for name, array in tensors.arrays.items()}
        return pytorch.translate(dataclasses.replace(tensors, arrays=arrays), **options)  # type: ignore[arg-type]
    if prefix is None and not any(
        "." in name for name in tensors.arrays
    ):  # numbered layers, and what names its way out
        return tensorflow.translate(tensors, **options)  # type: ignore[arg-type]
    raise CheckpointError(
        "the arrays must be named as in torchvision, timm (resnet or resnetv2), transformers, detectron2, CIFAR's "
        "ResNets, TF-Slim, BiT, keras.applications, tensorpack or Haiku, under any prefix. Received: "
        f"{pytorch.described(tensors.arrays)}."
    )
