"""The one naming of weights: layer name, a slash, and the variable's name (``"conv2_block1_1_conv/kernel"``).

Every reader's arrays are translated to these names, and a network is filled from them, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.networks import arithmetic
from resfit.networks.spec import ArchitectureSpec
from resfit.weights.formats import keras_h5
from resfit.weights.formats.base import find_format
from resfit.weights.formats.keras_h5 import H5Layer, grouped_kernel

#: Weights of the classifier, as a pattern of canonical names.
HEAD = "predictions/*"

_LISTED = 8
_FIRST_KERNELS = ("conv1_conv/kernel", "conv1_1_conv/kernel")


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A weights file that was read, not yet matched to a network.

    Attributes:
        path: The file.
        layers: Its layers, if it is of Keras' legacy format.
        arrays: Its arrays by canonical name, if it is safetensors.
        groups: The weights of each layer by its place (``"layers/conv2d_7"``), if it is Keras' newer format, whose
            layers have no names, or ones that mean nothing.

    A file that has none of them is read by Keras itself.
    """

    path: Path
    layers: tuple[H5Layer, ...] | None = None
    arrays: Mapping[str, np.ndarray] | None = None
    groups: Mapping[str, tuple[np.ndarray, ...]] | None = None

    @property
    def tells(self) -> bool:
        """Whether its layers are known before a network is there to be filled."""
        return self.layers is not None or self.arrays is not None or self.groups is not None

    @property
    def classes(self) -> int | None:
        """Outputs of the file's classifier, or None where it has none or does not tell."""
        dense = (self.arrays or {}).get("predictions/kernel")
        if self.layers and is_dense(self.layers[-1]):
            dense = self.layers[-1].arrays[0]
        if self.groups:
            found = [arrays[0] for place, arrays in self.groups.items() if _class_of(place)[0] == "dense" and arrays]
            dense = found[0] if len(found) == 1 and found[0].ndim == 2 else None
        return None if dense is None else int(dense.shape[-1])

    @property
    def channels(self) -> int | None:
        """Input channels of the file's first convolution, or None where it does not tell."""
        arrays = self.arrays or {}
        kernel = next((arrays[name] for name in _FIRST_KERNELS if name in arrays), None)
        if self.layers:
            kernel = self.layers[0].arrays[0]
        if self.groups:
            first = [arrays[0] for place, arrays in self.groups.items() if _class_of(place) == ("conv2d", 0) and arrays]
            kernel = first[0] if len(first) == 1 else None
        return int(kernel.shape[2]) if kernel is not None and kernel.ndim == 4 else None


def weights(model: Any) -> dict[str, Any]:
    """Returns the variables of a network by canonical name, in the order of its layers.

    Args:
        model: A Keras model whose layers are no models themselves.
    """
    return {f"{layer.name}/{variable.name}": variable for layer in model.layers for variable in layer.weights}


def arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns copies of a network's weights by canonical name.

    Args:
        model: A Keras model whose layers are no models themselves.
    """
    return {name: np.array(variable) for name, variable in weights(model).items()}


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a file of Keras, whatever its layers are called.

    Args:
        path: A ``.h5`` file of Keras' legacy format, a ``.weights.h5`` or a ``.keras`` file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = Path(path)
    kind = find_format(path)
    is_new = kind is not None and kind.read is not keras_h5.read
    return WeightsFile(path) if is_new else WeightsFile(path, layers=keras_h5.read_layers(path))


def fill_from_file(
    model: Any, file: WeightsFile, *, channel_order: str = "rgb", keeps_head: bool = True, to_rgb: bool = False
) -> None:
    """Fills a network that :func:`resfit.networks.build.build` made from a weights file.

    Args:
        model: The network; its attribute ``architecture`` says what it is.
        file: The file. It may hold more of the network than the model, such as stages behind its last tap.
        channel_order: Order in which the file's first convolution takes the colours, should it be adapted to
            another number of channels.
        keeps_head: Whether the classifier comes from the file too. Otherwise it stays as it is.
        to_rgb: Whether the first convolution of a network that takes BGR is brought to RGB.

    Raises:
        CheckpointError: The file is damaged or does not fit the network.
    """
    if not file.tells:
        _fill_by_keras(model, file.path)
        return
    try:
        _fill_from_arrays(model, file, channel_order, keeps_head, to_rgb)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _fill_from_arrays(model: Any, file: WeightsFile, channel_order: str, keeps_head: bool, to_rgb: bool) -> None:
    spec = model.architecture
    if file.groups is not None:
        values = from_groups(file.groups, model)
    else:
        values = dict(file.arrays or {}) if file.layers is None else from_layers(file.layers, model)
    values = adapted_to(values, spec.in_channels, channel_order, to_rgb=to_rgb)
    present = {layer.name for layer in model.layers}
    # what lies behind the last tap is part of the network, though not of this model
    counted = arithmetic.count(spec).layers if isinstance(spec, ArchitectureSpec) else ()
    beyond = [f"{layer.name}/*" for layer in counted if layer.name not in present]
    fill(model, values, ignore=beyond, fresh=() if keeps_head else (HEAD,))


def _fill_by_keras(model: Any, path: Path) -> None:
    try:
        model.load_weights(path)
    except Exception as error:  # Keras raises many kinds for a file that does not fit
        raise CheckpointError(
            f"{path}: a {path.suffix} file must hold exactly the layers of {model.name!r}, classifier "
            "included. "
            f"Received: {error}. Files of .safetensors or of Keras' legacy .h5 format may differ in the "
            "classifier."
        ) from error


def fill(
    model: Any,
    values: Mapping[str, np.ndarray],
    *,
    ignore: Iterable[str] = (),
    fresh: Iterable[str] = (),
) -> None:
    """Fills a network from arrays. Nothing is changed unless everything fits.

    Args:
        model: The network.
        values: Arrays by canonical name; cast to the dtype of the weights.
        ignore: Patterns of names that may stay unused, such as ``"predictions/*"``.
        fresh: Patterns of weights that stay as they are even if there is an array for them.

    Raises:
        CheckpointError: A weight has no array, an array no weight, or two shapes differ. The text lists them.
    """
    ignored, kept = tuple(ignore), tuple(fresh)
    targets = {name: v for name, v in weights(model).items() if not _matches(name, kept)}
    missing = [f"{name} {tuple(variable.shape)}" for name, variable in targets.items() if name not in values]
    unused = [
        f"{name} {np.shape(array)}"
        for name, array in values.items()
        if name not in targets and not _matches(name, (*ignored, *kept))
    ]
    different = [
        f"{name}: network {tuple(variable.shape)}, file {np.shape(values[name])}"
        for name, variable in targets.items()
        if name in values and tuple(variable.shape) != np.shape(values[name])
    ]
    if missing or unused or different:
        told = (
            (missing, "weights without an array"),
            (unused, "arrays left over"),
            (different, "other shapes"),
        )
        received = ". ".join(f"{len(found)} {what}: {_listed(found)}" for found, what in told if found)
        raise CheckpointError(f"the arrays must fit the network {model.name!r} weight by weight. Received: {received}.")
    for name, variable in targets.items():
        variable.assign(np.asarray(values[name]).astype(variable.dtype, copy=False))


def from_layers(layers: Sequence[H5Layer], model: Any) -> dict[str, np.ndarray]:
    """Translates the layers of a Keras file to canonical names.

    Layers are matched by name where the file has every layer of the network, otherwise by their order, as
    Keras itself does. Layers that the network lacks keep their own names; the last one, if it is a dense one,
    is taken to be the classifier. The depthwise kernels of keras.applications' ResNeXt become grouped ones.

    Args:
        layers: The layers of the file that have weights, in its order.
        model: The network that they are meant for.

    Returns:
        Arrays by canonical name, not yet checked against the network.

    Raises:
        CheckpointError: A layer has another number of weights than its counterpart.
    """
    own = {layer.name: layer for layer in model.layers if layer.weights}
    by_name = {layer.name for layer in layers} >= {name for name in own if name != "predictions"}
    names = [layer.name for layer in layers]
    if not by_name:
        names[: len(own)] = list(own)[: len(names)]
        body = sum(name != "predictions" for name in own)
        if len(layers) == body + 1 and is_dense(layers[-1]):
            names[-1] = "predictions"
    translated: dict[str, np.ndarray] = {}
    for name, layer in zip(names, layers, strict=True):
        if name not in own:
            endings = [weight.rsplit("/", 1)[-1].partition(":")[0] for weight in layer.weight_names]
            if name == "predictions":
                endings = ["kernel", "bias"][: len(layer.arrays)]
            translated |= {f"{name}/{end}": array for end, array in zip(endings, layer.arrays, strict=True)}
            continue
        variables = own[name].weights
        if len(variables) != len(layer.arrays):
            raise CheckpointError(
                f"layer {name!r} must have {len(variables)} weights. Received: {len(layer.arrays)} in {layer.name!r}."
            )
        for variable, weight, array in zip(variables, layer.weight_names, layer.arrays, strict=True):
            if "depthwise_kernel" in weight and array.ndim == 4 and hasattr(own[name], "groups"):
                array = grouped_kernel(array, own[name].groups)
            translated[f"{name}/{variable.name}"] = array
    return translated


def from_groups(groups: Mapping[str, tuple[np.ndarray, ...]], model: Any) -> dict[str, np.ndarray]:
    """Finds a network in a file of Keras' newer format by the order of its layers within each class, as Keras does.

    Args:
        groups: The weights of each layer by its place. The network may be a model inside another one.
        model: The network that they are meant for.

    Returns:
        Arrays by canonical name, not yet checked against the network but for its body.

    Raises:
        CheckpointError: No model of the file has the layers of the network.
    """
    containers: dict[str, dict[str, dict[int, tuple[np.ndarray, ...]]]] = {}
    for place, arrays in groups.items():
        outer = place.rpartition("/")[0]
        kind, number = _class_of(place)
        containers.setdefault(outer, {}).setdefault(kind, {})[number] = arrays
    body: dict[str, list[Any]] = {}
    for layer in model.layers:
        if layer.weights and layer.name != "predictions":
            body.setdefault(_CLASSES.get(type(layer).__name__, type(layer).__name__), []).append(layer)
    fits = [outer for outer, found in containers.items() if all(_fits(found.get(k, {}), body[k]) for k in body)]
    if len(fits) != 1:
        counted = {outer: {kind: len(found) for kind, found in kinds.items()} for outer, kinds in containers.items()}
        raise CheckpointError(
            f"one model of the file must have the layers of {model.name!r}: "
            f"{ {kind: len(found) for kind, found in body.items()} }. Received: {counted}."
        )
    values: dict[str, np.ndarray] = {}
    inside = containers[fits[0]]
    for kind, layers in body.items():
        for (_, arrays), layer in zip(sorted(inside[kind].items()), layers, strict=True):
            values |= {f"{layer.name}/{v.name}": a for v, a in zip(layer.weights, arrays, strict=True)}
    dense = [arrays for kinds in containers.values() for arrays in kinds.get("dense", {}).values()]
    if len(dense) == 1 and len(dense[0]) in (1, 2):
        values |= {f"predictions/{name}": array for name, array in zip(("kernel", "bias"), dense[0], strict=False)}
        values.setdefault("predictions/bias", np.zeros(dense[0][0].shape[-1], np.float32))
    elif dense:
        values |= {f"dense_{number}/kernel": arrays[0] for number, arrays in enumerate(dense)}
    return values


_CLASSES = {
    **{"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Conv1D": "conv1d"},
    **{"StandardizedConv2D": "standardized_conv2d", "GroupNormalization": "group_normalization"},
    "EvoNormS0": "evo_norm_s0",
}


def _class_of(place: str) -> tuple[str, int]:
    """The class of a layer and its number among those, by its place."""
    match = re.fullmatch(r"(.*?)(?:_(\d{1,6}))?", place.rpartition("/")[2])
    assert match is not None
    return match[1], int(match[2] or 0)


def _fits(found: Mapping[int, tuple[np.ndarray, ...]], layers: Sequence[Any]) -> bool:
    """Whether layers of a file have the shapes of those of a network, but for the channels of images."""
    if len(found) != len(layers):
        return False
    for (number, arrays), layer in zip(sorted(found.items()), layers, strict=True):
        shapes, own = [array.shape for array in arrays], [tuple(v.shape) for v in layer.weights]
        if shapes != own and not (number == 0 and [s[-1:] for s in shapes] == [s[-1:] for s in own]):
            return False
    return True


def to_layers(model: Any) -> list[H5Layer]:
    """Returns the layers of a network as Keras' legacy format has them.

    Args:
        model: A Keras model whose layers are no models themselves.
    """
    found = []
    for layer in model.layers:
        variables = layer.weights
        names = tuple(f"{layer.name}/{variable.name}:0" for variable in variables)
        found.append(H5Layer(layer.name, names, tuple(np.array(variable) for variable in variables)))
    return found


def is_dense(layer: H5Layer) -> bool:
    """Whether a layer of a file is a fully connected one."""
    return bool(layer.arrays) and layer.arrays[0].ndim == 2


def adapt_input(kernel: np.ndarray, channels: int, channel_order: str = "rgb") -> np.ndarray:
    """Returns the first kernel of an RGB network for another number of input channels.

    The rule is timm's: one channel gets the sum of the three filters; more get red, green, blue in turn,
    scaled by ``3 / channels`` so that the sums stay alike. A kernel that takes BGR is brought to RGB first.

    Args:
        kernel: Shape ``(k, k, 3, filters)``. Not changed.
        channels: New number of input channels, at least 1.
        channel_order: Order in which the kernel takes the colours.

    Returns:
        Shape ``(k, k, channels, filters)``; for three channels the kernel as it is.

    Raises:
        CheckpointError: The kernel does not take three channels.
    """
    if kernel.shape[2] == channels:
        return kernel
    if kernel.shape[2] != 3:
        raise CheckpointError(
            f"only a kernel of 3 input channels can be adapted to {channels}. Received: {kernel.shape[2]} channels."
        )
    if channel_order == "bgr":
        kernel = kernel[:, :, ::-1]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True, dtype=np.float32)
    repeated = np.tile(kernel.astype(np.float32), (1, 1, math.ceil(channels / 3), 1))
    return repeated[:, :, :channels] * np.float32(3 / channels)


def adapted_to(
    values: Mapping[str, np.ndarray], channels: int, channel_order: str = "rgb", *, to_rgb: bool = False
) -> dict[str, np.ndarray]:
    """Returns a network's weights for another number of input channels, where its first kernel takes colours.

    Args:
        values: Arrays by canonical name.
        channels: New number of input channels.
        channel_order: Order in which the first kernel takes the colours.
        to_rgb: Whether a kernel that takes BGR is brought to RGB.
    """
    found = dict(values)
    for name in _FIRST_KERNELS:
        if name in found and found[name].ndim == 4 and found[name].shape[2] == 3:
            found[name] = adapt_input(found[name], channels, channel_order)
            if to_rgb and channel_order == "bgr":
                found[name] = found[name][:, :, ::-1]
            break
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
