"""Names of Keras' own networks and of KerasHub's, and what their configurations tell of the architecture.

Layers are called as in keras.applications (``conv2_block1_1_conv``), as before 2019 (``res2a_branch2a``), or as in
KerasHub (``stack0_block0_1_conv``), in whatever models around them. The first two are translated by
:mod:`resfit.weights.conventions.tensorflow`, since TensorFlow's checkpoints have these names too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.spec import StemConv
from resfit.preprocessing import InputSpec
from resfit.weights.assumption import sentence
from resfit.weights.conventions import tensorflow
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.keras_config import Layers, SavedModel
from resfit.weights.formats.saved_model import Objects

_STACK = re.compile(r"stack(\d{1,4})_block(\d{1,6})_(?:(pre_activation)_bn|([0-3])_(conv|bn))")
_STEM = re.compile(r"conv(\d)_(conv|bn)")
_BLOCK_CONV = re.compile(r"conv(\d{1,6})_block(\d{1,6})_([123])_conv")
_NORMS = ("BatchNormalization", "SyncBatchNormalization", "GroupNormalization", "EvoNormS0")
_ACTIVATIONS = {"ReLU": "relu", "LeakyReLU": "leaky_relu"}


@register_convention("keras", recognises=lambda tensors: isinstance(tensors.graph, Layers | SavedModel), order=15)
def translate(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Brings the weights of a Keras model or of a preset to canonical names.

    Args:
        tensors: What a reader of Keras' files or of presets returned. Not changed.
        prefix: What stands before the names of the network's layers, if the source holds several.
        averaged: Take the running averages that the source holds beside the weights.
        ignore: Patterns of names to leave out.

    Raises:
        CheckpointError: No known residual network is there, or several are.
    """
    other = tensors.graph.other if isinstance(tensors.graph, Layers | SavedModel) else ()
    graph = Objects({}, False, other)
    options: dict[str, Any] = {"prefix": prefix, "averaged": averaged, "ignore": ignore}
    hub = tensors.config.get("kerashub")
    if isinstance(hub, Mapping):
        renamed = _renamed(tensors.arrays, hub)
        found = tensorflow.translate(dataclasses.replace(tensors, arrays=renamed, graph=graph), **options)
        facts = _hub_facts(hub)
        return dataclasses.replace(
            found, convention="kerashub", facts=facts, remarks=(), input_spec=None, assumed=(), program=""
        )
    found = tensorflow.translate(dataclasses.replace(tensors, graph=graph), **options, by_keras=True)
    layers = tensors.config.get("keras_layers")
    if not isinstance(layers, Mapping):
        return found
    contract, remarks = _rescaled(layers, found.arrays)
    told = _facts(layers, found.arrays)
    return dataclasses.replace(
        found,
        facts={**found.facts, **told},
        assumed=tuple(field for field in found.assumed if field not in told),
        input_spec=contract or found.input_spec,
        # what was assumed of the contract is stated after all
        remarks=(*(text for text in found.remarks if not (contract and text.startswith("images "))), *remarks),
    )


# KerasHub.


def _renamed(arrays: Mapping[str, np.ndarray], hub: Mapping[str, Any]) -> dict[str, np.ndarray]:
    deep = len(_list(hub, "input_conv_filters")) > 1
    return {f"{_hub_layer(layer, deep)}/{leaf}": arrays[name] for name in arrays for layer, leaf in [_split(name)]}


def _split(name: str) -> tuple[str, str]:
    layer, _, leaf = name.rpartition("/")
    return layer, leaf


def _hub_layer(layer: str, deep: bool) -> str:
    if match := _STEM.fullmatch(layer):
        return f"conv1_{match[1]}_{match[2]}" if deep else layer
    match = _STACK.fullmatch(layer)
    if match is None:
        return layer
    base = f"conv{int(match[1]) + 2}_block{int(match[2]) + 1}"
    return f"{base}_preact_bn" if match[3] else f"{base}_{match[4]}_{match[5]}"


def _hub_facts(hub: Mapping[str, Any]) -> dict[str, Any]:
    """``keras_hub/src/models/resnet/resnet_backbone.py`` of KerasHub 0.32, by its configuration."""
    filters, kernels = _list(hub, "input_conv_filters"), _list(hub, "input_conv_kernel_sizes")
    try:
        pairs = zip(filters, kernels, strict=True)
        stem = tuple(StemConv(width, kernel, 1 if n else 2) for n, (width, kernel) in enumerate(pairs))
    except (ArgumentError, ValueError, TypeError) as error:
        received = f"{filters}, {kernels}"
        raise CheckpointError(f"the stem must be told by widths and kernels. Received: {received}.") from error
    return {
        "stem": stem,
        "stem_pool": "max",
        "stem_pool_padding": "lowest",
        "stage_strides": tuple(_list(hub, "stackwise_num_strides")),
        "stride_in_stage": "first",
        "stride_in_block": "spatial",
        "shortcut": "avgpool" if str(hub.get("block_type")).endswith("_vd") else "projection",
        "norm_epsilon": 1e-5,
        "norm_momentum": 0.9,
        "activation": "relu",
        "padding": "symmetric",
        "antialias": None,
    }


def _list(hub: Mapping[str, Any], key: str) -> list[int]:
    value = hub.get(key)
    if not isinstance(value, list) or not 0 < len(value) < 100 or not all(type(item) is int for item in value):
        raise CheckpointError(f"a preset's configuration must have a list {key!r}. Received: {value!r}.")
    return value


# Configurations of Keras' layers.


def _facts(layers: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what the configuration tells: strides, activation, and the constants of norms."""
    own = _canonical(layers)
    facts: dict[str, Any] = {}
    present = {name.partition("/")[0] for name in arrays}
    norms = [config for name, config in own.items() if name in present and config.get("class") in _NORMS]
    for field, key in (("norm_epsilon", "epsilon"), ("norm_momentum", "momentum")):
        values = {config[key] for config in norms if isinstance(config.get(key), float)}
        if len(values) == 1:
            facts[field] = values.pop()
    activations = {
        _ACTIVATIONS.get(str(config.get("class")), config.get("activation"))
        for name, config in own.items()
        if re.fullmatch(r"conv\d+(?:_block\d+)?_(?:preact_|[0-3]_)?(?:relu|act)", name)
    }
    if len(activations) == 1 and isinstance(activation := next(iter(activations)), str):
        facts["activation"] = activation
    return facts | _stem(own, arrays) | _strides(own, present)


def _stem(own: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the convolutions before the first block, and what follows them, where all of them are configured."""
    names = [name for name in ("conv1_conv", *(f"conv1_{n}_conv" for n in (1, 2, 3))) if f"{name}/kernel" in arrays]
    stem = []
    for name in names:
        stride, shape = _stride(own.get(name, {})), arrays[f"{name}/kernel"].shape
        if stride is None or len(shape) != 4 or 0 in shape:
            return {}
        stem.append(StemConv(shape[3], shape[0], stride))
    facts: dict[str, Any] = {"stem": tuple(stem)} if stem else {}
    pool = own.get("pool1_pool", {})
    if not any(name.startswith("pool1") for name in own):
        facts["stem_pool"] = "none"
    elif pool.get("class") == "MaxPooling2D" and _stride(pool) == 2:
        facts["stem_pool"] = "max"
    return facts


def _strides(own: Mapping[str, Mapping[str, Any]], present: set[str]) -> dict[str, Any]:
    """Returns where the stages stride, if every convolution on the way is configured."""
    stages: dict[int, dict[int, dict[int, int]]] = {}
    for name in present:
        match = _BLOCK_CONV.fullmatch(name)
        stride = _stride(own.get(name, {})) if match else None
        if match and stride is None:
            return {}
        if match and stride is not None:
            blocks = stages.setdefault(int(match[1]) - 2, {})
            blocks.setdefault(int(match[2]) - 1, {})[int(match[3])] = stride
    totals, first, spatial, places = [], False, False, set()
    for stage in sorted(stages):
        total = 1
        for block, strides in stages[stage].items():
            for number, stride in strides.items():
                total *= stride
                if stride > 1:
                    first, spatial = first or number == 1, spatial or number > 1
                    places.add(("first",) if block == 0 else ("last",) if block == len(stages[stage]) - 1 else ())
        totals.append(total)
    basic = not any(3 in strides for blocks in stages.values() for strides in blocks.values())
    facts: dict[str, Any] = {"stage_strides": tuple(totals)}
    if len(places) == 1 and (place := places.pop()):
        facts["stride_in_stage"] = place[0]
    if first != spatial and not basic:
        facts["stride_in_block"] = "first" if first else "spatial"
    return facts


def _stride(config: Mapping[str, Any]) -> int | None:
    strides = config.get("strides")
    if isinstance(strides, (list, tuple)) and len(set(strides)) == 1:
        strides = strides[0]
    return strides if type(strides) is int and 0 < strides < 100 else None


def _image_shape(config: Mapping[str, Any]) -> list[int] | None:
    shape = config.get("batch_shape") if config.get("class") == "InputLayer" else None
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(side) is int and side > 0 for side in shape[1:]):
        return None
    return shape


def _canonical(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for name, config in layers.items():
        with contextlib.suppress(IndexError, ValueError):
            found[tensorflow.canonical_layer(name) or name] = config
    return found


def _rescaled(
    layers: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]
) -> tuple[InputSpec | None, tuple[str, ...]]:
    """Returns the contract that a layer of Keras in front of the network states, where there is one such layer."""
    found = [config for config in layers.values() if config.get("class") == "Rescaling"]
    stem = next((arrays[name] for name in ("conv1_conv/kernel", "conv1_1_conv/kernel") if name in arrays), None)
    if len(found) != 1 or stem is None or stem.ndim != 4:
        return None, ()
    channels = int(stem.shape[2])
    try:
        scale, offset = float(found[0]["scale"]), np.asarray(found[0].get("offset", 0.0), "float64").ravel()
        offsets = np.broadcast_to(offset, channels)
        contract = InputSpec(
            channels=channels,
            scale=scale,
            mean=tuple(float(-value) for value in offsets),
            std=(1.0,) * channels,
        )
    except (ArgumentError, TypeError, ValueError, KeyError):
        return None, ()
    sizes = {(shape[1], shape[2]) for config in layers.values() if (shape := _image_shape(config))}
    if len(sizes) == 1:
        contract = dataclasses.replace(contract, size=sizes.pop())
    name = found[0].get("name")
    told = f"images as the layer {name!r} in front of the network scales them"
    return contract, (sentence(told, "in RGB, which it does not say", "input_spec"),)
