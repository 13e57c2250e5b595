"""The frozen network of a fit: a name, a source or a Keras model, as images in and one vector an image out."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from resfit.errors import ArgumentError, UnknownNameError
from resfit.preprocessing import Reading

if TYPE_CHECKING:
    import keras

    from resfit.networks.spec import ArchitectureSpec

#: What images are seen with where nothing else is asked for.
DEFAULT_MODEL = "resnet10_tiny"


def body_of(
    model: str | os.PathLike[str] | keras.Model, channels: int | None = None, reading: Reading | None = None
) -> tuple[keras.Model, str]:
    """Returns a network that gives one vector an image, and its name.

    Args:
        model: As :func:`resfit.fit` takes it.
        channels: 1 or 3; ``None`` is what the network was trained on.
        reading: How scans become pictures; ``None`` is what the network's contract says.

    Raises:
        ArgumentError: There are no such channels, or not in this network.
    """
    if channels not in (None, 1, 3):
        raise ArgumentError(f"channels must be 1 or 3. Received: {channels!r}.")
    if isinstance(model, str | os.PathLike):
        from resfit import zoo

        body = zoo.load(model, include_top=False, pooling="avg", preprocess=True, in_channels=channels)
        name = str(model)
    else:
        body, name = model, model.name
        if channels not in (None, body.inputs[0].shape[-1]):
            raise ArgumentError(
                f"the network has {body.inputs[0].shape[-1]} input channels. Received: channels={channels}."
            )
    if reading is not None:
        body = _with_reading(body, reading)
    return body, name


def untrained(spec: ArchitectureSpec, size: tuple[int, int]) -> keras.Model:
    """Returns a network that gives one vector an image with fresh weights, which cost as much time as any.

    Args:
        spec: The architecture.
        size: Height and width of its input in pixels.
    """
    from resfit.networks.build import build

    return build(spec, input_shape=(*size, spec.in_channels), include_top=False, pooling="avg")


def has_statistics(body: keras.Model) -> bool:
    """Says whether the batch norms of a network have seen images; those of a new one stand at 0 and 1.

    Args:
        body: The network. One without batch norms counts as if it had.
    """
    means = [np.asarray(weight) for weight in body.non_trainable_weights if weight.name == "moving_mean"]
    return not means or any(mean.any() for mean in means)


def described(model: str | os.PathLike[str] | keras.Model) -> tuple[ArchitectureSpec | None, tuple[int, int]]:
    """Returns architecture and input size of a network, without loading one that has a name.

    Args:
        model: As :func:`resfit.fit` takes it.
    """
    from resfit import zoo

    if isinstance(model, str | os.PathLike):
        try:
            found = zoo.describe(str(model))
            return found.spec, found.input_spec.size
        except UnknownNameError:
            model, _ = body_of(model)
    return getattr(model, "architecture", None), model.input_spec.size


def _with_reading(body: keras.Model, reading: Reading) -> keras.Model:
    """Returns a network of the same layers whose contract says how scans are read."""
    import keras

    other = keras.Model(body.inputs, body.outputs, name=body.name)
    for attribute in ("architecture", "class_names"):
        if hasattr(body, attribute):
            setattr(other, attribute, getattr(body, attribute))
    other.input_spec = dataclasses.replace(body.input_spec, reading=reading)
    return other
