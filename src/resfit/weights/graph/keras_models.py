"""A residual network in a whole Keras model, whatever its layers are called, under canonical names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.preprocessing import InputSpec
from resfit.weights import heads
from resfit.weights.assumption import sentence
from resfit.weights.conventions import tensorflow
from resfit.weights.conventions.base import Translation
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.keras_config import SavedModel, inner_layers, layers_of
from resfit.weights.graph import lift_keras
from resfit.weights.graph import translate as graphs
from resfit.weights.graph.lift_keras import Call, Layer, LiftedModel
from resfit.weights.graph.onnx_constants import UnsupportedOperationError
from resfit.weights.graph.steps import Step
from resfit.weights.heads import End, HeadLayer, SourceHead

CONVENTION = "keras-graph"

#: Names of a layer's weights by its class, and the argument that says whether each is there.
_WEIGHTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Dense": (("kernel", ""), ("bias", "use_bias")),
    "Conv2D": (("kernel", ""), ("bias", "use_bias")),
    "BatchNormalization": (("gamma", "scale"), ("beta", "center"), ("moving_mean", ""), ("moving_variance", "")),
    "LayerNormalization": (("gamma", "scale"), ("beta", "center")),
    "GroupNormalization": (("gamma", "scale"), ("beta", "center")),
    "PReLU": (("alpha", ""),),
}
_SAME_CLASS = {
    **{"GlobalAvgPool2D": "GlobalAveragePooling2D", "GlobalMaxPool2D": "GlobalMaxPooling2D"},
    **{"MaxPool2D": "MaxPooling2D", "AvgPool2D": "AveragePooling2D", "SyncBatchNormalization": "BatchNormalization"},
}


def translate(tensors: Tensors, *, prefix: str | None = None, ignore: Sequence[str] = ()) -> Translation:
    """Reads a network off the configuration of a model.

    Args:
        tensors: What a reader of Keras' files returned; its ``graph`` is a
            :class:`resfit.weights.formats.keras_config.SavedModel`.
        prefix: The network that is wanted, where the model holds several: a model inside it (``"towers/rgb"``), or one
            of its inputs or outputs by the name of the layer.
        ignore: Patterns of names of layers of the head to leave out; the head is then left out whole.

    Raises:
        CheckpointError: The model is not a residual network. The text names the first layer that does not fit.
    """
    saved: SavedModel = tensors.graph
    remarks: list[str] = []
    inner = _inner(saved, prefix) if prefix is not None else None
    with graphs.told_plainly():
        model = lift_keras.lift(inner or saved, tensors.arrays, None if inner else prefix)
    found = graphs.assemble(model.lifted, remarks)
    end, told = _end(model, found), dict(found.stated)
    leftover = {name: array for name, array in tensors.arrays.items() if name not in model.lifted.names}
    left_out = list(model.idle)
    if prefix is not None:
        remarks.append(sentence(f"the network is that of {prefix!r}", "by the model's names", "prefix"))
        left_out += [f"left out what belongs to other networks: {_few(list(leftover))}"] if leftover else []
        leftover = {}
    kept, reasons = _without_state(leftover, ignore)
    left_out += reasons
    if ignore and (end.head or found.head is not None):
        dropped = _ignored(model, found, ignore)
        if dropped:
            left_out.append(f"left out the head, as asked: {', '.join(dropped)}")
            end = dataclasses.replace(end, head=None, refused="")
            found = dataclasses.replace(
                found, arrays={name: a for name, a in found.arrays.items() if not name.startswith("predictions/")}
            )
            found.network.head = None
    if end.head is not None:
        remarks.append(f"the head is kept as it is: {end.head}")
        if end.head.classes is not None:
            told["classes"] = end.head.classes
    if model.shared:
        remarks.append(f"layers that the model uses several times have a copy for each use: {_few(model.shared)}")
    contract = found.contract
    if contract is not None and len(set(contract.std)) == 1:  # as a layer that rescales states it
        std = contract.std[0]
        means = tuple(mean / std for mean in contract.mean)
        contract = dataclasses.replace(contract, scale=contract.scale / std, mean=means, std=(1.0,) * len(means))
    if not model.lifted.channels_last:
        remarks.append("the model takes images with the channels first, the network here with the channels last")
    if contract is None:
        contract, more = _habit(tensors, found.size)
        remarks += more
    if saved.other:
        left_out.append(f"left out what is no weight of a layer: {_few(saved.other)}")
    return Translation(
        CONVENTION,
        "",
        found.arrays,
        told,
        kept,
        tuple(left_out),
        tuple(dict.fromkeys(remarks)),
        contract,
        end=end,
    )


def _inner(saved: SavedModel, prefix: str) -> SavedModel | None:
    """A model inside another as one of its own, or None where no model has this name."""
    place = tuple(prefix.strip("/").split("/"))
    entry = next((one for own, one in inner_layers(saved.config) if own == place and layers_of(one) is not None), None)
    if entry is None:
        return None
    own = {at[len(place) :]: names for at, names in saved.variables.items() if at[: len(place)] == place}
    return dataclasses.replace(saved, config=entry, variables=own)


def _end(model: LiftedModel, found: graphs.Assembled) -> End:
    network = found.network
    if network.beyond is None:
        return End(found.activation or "linear", None, "", found.takes)
    assert network.last is not None
    try:
        return End("linear", _head(model, network.last), "", found.takes)
    except UnsupportedOperationError as reason:
        return End("linear", None, f"the head must be of layers that Keras itself has. Received: {reason}", found.takes)


def _head(model: LiftedModel, last: Step) -> SourceHead:
    """Returns the layers behind the last step of the body.

    Raises:
        Unfit: One is not Keras' own, or reads something else than the body.
    """
    at = next((place for place, call in enumerate(model.calls) if call.output.step.node == last.node), None)
    if at is None or model.calls[at].output.step.kind != last.kind:
        raise UnsupportedOperationError(f"{last.node} is no layer of its own")
    body = model.calls[at].output
    numbers = {id(body): -1}
    layers: list[HeadLayer] = []
    for call in model.calls[at + 1 :]:
        read = [id(value) in numbers for value in call.inputs]
        if not any(read):
            continue
        if not all(read) or call.constants:
            raise UnsupportedOperationError(f"{call.layer} reads something else than the layers before it")
        layers.append(_head_layer(call, tuple(numbers[id(value)] for value in call.inputs), body.axes == "NCHW"))
        numbers[id(call.output)] = len(layers) - 1
    outputs = tuple(numbers.get(id(value), -2) for value in model.outputs)
    if any(place < 0 for place in outputs):
        raise UnsupportedOperationError("an output that is made before the last block has ended")
    return SourceHead(tuple(layers), outputs)


def _head_layer(call: Call, inputs: tuple[int, ...], channels_first: bool) -> HeadLayer:
    layer = call.layer
    kind = _SAME_CLASS.get(layer.kind, layer.kind)
    if not layer.is_own or kind not in heads.LAYERS:
        raise UnsupportedOperationError(f"{layer}")
    if (len(inputs) == 1) == (kind in heads.JOINS):
        raise UnsupportedOperationError(f"{layer} reads {len(inputs)} values")
    if channels_first and any("H" in value.axes for value in call.inputs):
        plain = ("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Dropout", "Activation", "ReLU", "Identity")
        if kind not in plain:
            raise UnsupportedOperationError(f"{layer} on maps that have the channels first")
    options = _options(layer, kind)
    names = [name for name, argument in _WEIGHTS.get(kind, ()) if not argument or options.get(argument, True)]
    return HeadLayer(kind, "/".join(layer.place).replace("/", "_"), options, inputs, tuple(layer.weights(*names)))


def _options(layer: Layer, kind: str) -> dict[str, Any]:
    """The arguments of a layer that change what it computes, checked to be plain values.

    Raises:
        Unfit: One is not, or the layer works along another axis than the last.
    """
    config = dict(layer.config)
    if kind == "LeakyReLU" and "negative_slope" not in config:
        config["negative_slope"] = config.get("alpha", 0.3)
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, None) and kind not in ("BatchNormalization", "LayerNormalization", "Concatenate", "Softmax"):
        raise UnsupportedOperationError(f"{layer} works along axis {axis}")
    if axis not in (-1, 1, 3):
        raise UnsupportedOperationError(f"{layer} works along axis {axis}")
    if config.get("renorm") or config.get("rms_scaling") or config.get("virtual_batch_size"):
        raise UnsupportedOperationError(f"{layer} normalises otherwise than by mean and deviation")
    options: dict[str, Any] = {}
    for name in heads.LAYERS[kind]:
        if name not in config:
            continue
        value = config[name]
        if name == "activation":
            value = lift_keras.activation_name(value)
            if value is None or (value == "hard_sigmoid" and layer.version == 2):
                raise UnsupportedOperationError(
                    f"{layer} with an activation that Keras 3 does not have: {str(config[name])[:80]}"
                )
        options[name] = _plain(value, layer)
    return options


def _plain(value: Any, layer: Layer, depth: int = 0) -> Any:
    if isinstance(value, Mapping):
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, Mapping) else value.get("value")
    if isinstance(value, list) and depth < 3 and len(value) <= 10_000:
        return tuple(_plain(one, layer, depth + 1) for one in value)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1e9:
        return value
    raise UnsupportedOperationError(f"{layer} with an argument that is no plain value")


def _ignored(model: LiftedModel, found: graphs.Assembled, ignore: Sequence[str]) -> list[str]:
    """Names of layers with weights behind the body that patterns of names to leave out name."""
    last = found.network.last
    at = next((n for n, call in enumerate(model.calls) if last is not None and call.output.step.node == last.node), 0)
    names = [name for call in model.calls[at + 1 :] for name, _ in call.layer.arrays]
    return [name for name in names if tensorflow.is_left_out(name, ignore)]


def _without_state(arrays: Mapping[str, np.ndarray], ignore: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays that no layer of the graph has: those that are to be left out, and the rest."""
    kept = {name: array for name, array in arrays.items() if not tensorflow.is_left_out(name, ignore)}
    gone = [name for name in arrays if name not in kept]
    return kept, [f"left out what belongs to no layer of the graph: {_few(gone)}"] if gone else []


def _habit(tensors: Tensors, size: tuple[int, int]) -> tuple[InputSpec | None, list[str]]:
    """What the networks of Keras take whose names the layers have, since a graph does not say it."""
    try:
        named = tensorflow.translate(dataclasses.replace(tensors, graph=None))
    except CheckpointError:
        return None, []
    if named.input_spec is None or named.convention not in ("keras", "keras-legacy"):
        return None, []
    remarks = [text for text in named.remarks if text.startswith("images ")]
    return dataclasses.replace(named.input_spec, size=size), remarks


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
