"""The layers of a whole Keras model as steps on maps of features, read off its configuration.

Nothing is made of the configuration, and no function of it is called: each layer of Keras' own that a residual network
may have is translated by the table at the end. Any other becomes a step of the kind ``"strange"`` with its reason,
which matters only if it stands on the way from the images to the features. What every layer was called with is kept, so
that the layers of a head can be made again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats import keras_config
from resfit.weights.formats.keras_config import Place, SavedModel
from resfit.weights.graph.lift_onnx import Lifted
from resfit.weights.graph.onnx_constants import UnsupportedOperationError
from resfit.weights.graph.steps import Map, Pads, Size, Step, in_order, same_pads, window_size

_MOST_CALLS = 20_000
_MOST_DEPTH = 30
_MOST_CHANNELS = 1_000_000
_MOST_SIDE = 100_000

#: Layers that do nothing when a network is used, by what they are.
INERT: Mapping[str, str] = {
    **dict.fromkeys(("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout"), "dropout"),
    **dict.fromkeys(("GaussianNoise", "ActivityRegularization"), "regularisation"),
    **dict.fromkeys(
        (
            *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness"),
            *("RandomHeight", "RandomWidth", "RandomShear", "RandomHue", "RandomSaturation", "RandomGrayscale"),
            *(
                "RandomColorJitter",
                "RandomColorDegeneration",
                "RandomSharpness",
                "RandomPosterization",
                "RandomErasing",
            ),
            *("RandomGaussianBlur", "RandomPerspective", "RandomElasticTransform", "RandomInvert", "RandAugment"),
            *("AugMix", "CutMix", "MixUp", "Solarization", "AutoContrast", "Equalization"),
        ),
        "augmentation",
    ),
    "Identity": "",
    "InputLayer": "",
}
# Layers that Keras 3 notes the use in training of by itself, and that are told otherwise when a model is used.
_PREPROCESSING = (
    *(name for name, what in INERT.items() if what == "augmentation"),
    *("Resizing", "CenterCrop", "RandomCrop", "Rescaling", "Normalization"),
)
# Augmentations that work in inference too.
_WORKS_ALWAYS = ("Solarization", "AutoContrast", "Equalization")
_MODELS = ("Functional", "Model", "Sequential")
_LAMBDA = "code of the file, which is never run"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer as a configuration describes it.

    Attributes:
        place: The models around it and its own name.
        kind: The name of its class, without the package that registered it.
        config: Its arguments.
        is_own: Whether it is one of Keras' own.
        registered: What it is registered as, where it is not.
        arrays: Its weights by the file's names, in its own order.
        version: Of Keras, 2 or 3.
    """

    place: Place
    kind: str
    config: Mapping[str, Any]
    is_own: bool
    registered: str
    arrays: tuple[tuple[str, np.ndarray], ...]
    version: int

    def __str__(self) -> str:
        """Names it as errors do."""
        return f"layer {'/'.join(self.place)!r} ({self.registered or self.kind})"

    def weights(self, *names: str) -> list[np.ndarray]:
        """Returns its weights.

        Args:
            *names: Keras' names of them, in the layer's own order.

        Raises:
            Unfit: It has more or fewer.
        """
        if len(self.arrays) != len(names):
            raise UnsupportedOperationError(f"it must have {len(names)} weights; the file has {len(self.arrays)}")
        found = dict(self.arrays)
        leaves = {name.rpartition("/")[2]: array for name, array in found.items()}
        if len(leaves) == len(found) and leaves.keys() == {*names}:
            return [leaves[name] for name in names]
        return [array for _, array in self.arrays]


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a layer.

    Attributes:
        layer: The layer.
        inputs: The values that it reads, in order.
        constants: Whether it reads anything else.
        output: What it makes.
    """

    layer: Layer
    inputs: tuple[Map, ...]
    constants: bool
    output: Map


@dataclasses.dataclass(frozen=True)
class LiftedModel:
    """A model as steps.

    Attributes:
        lifted: The steps.
        calls: Every use of a layer that what is handed out depends on, each behind those that it reads from.
        outputs: What is handed out.
        idle: What does nothing when the network is used, one sentence each.
        shared: Layers that are used several times.
    """

    lifted: Lifted
    calls: tuple[Call, ...]
    outputs: tuple[Map, ...]
    idle: tuple[str, ...]
    shared: tuple[str, ...]


def lift(saved: SavedModel, arrays: Mapping[str, np.ndarray], prefix: str | None = None) -> LiftedModel:
    """Brings a model to steps.

    Args:
        saved: Its configuration.
        arrays: Its weights by the names that ``saved.variables`` has.
        prefix: The input or output of the network that is wanted, by the name of its layer, where it has several.

    Raises:
        Unfit: It is no model of one input of images, or its configuration is damaged.
    """
    try:
        return _Lifter(saved, arrays).run(prefix)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, ArithmeticError) as error:
        raise UnsupportedOperationError(
            f"a configuration must be one that Keras writes ({type(error).__name__}: {error})"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Reference:
    """An output of a layer."""

    layer: str
    node: int
    output: int


@dataclasses.dataclass(frozen=True)
class _Node:
    """One use of a layer as a configuration states it."""

    values: tuple[Any, ...]
    options: Mapping[str, Any]


class _Lifter:
    def __init__(self, saved: SavedModel, arrays: Mapping[str, np.ndarray]):
        self.saved, self.arrays = saved, arrays
        self.calls: list[Call] = []
        self.used: dict[Place, int] = {}
        self.names: set[str] = set()
        self.idle: dict[str, None] = {}
        self.images: list[Map] = []

    def run(self, prefix: str | None) -> LiftedModel:
        config = self.saved.config
        if _kind(config) not in _MODELS:
            raise UnsupportedOperationError(f"a model must be one of Keras' own classes. Received: a {_kind(config)!r}")
        letters = "NHWC" if _data_format(config) == "channels_last" else "NCHW"
        inputs, outputs = _choices(config)
        names = [*(inputs if len(inputs) > 1 else ()), *(outputs if len(outputs) > 1 else ())]
        inside = ["/".join(place) for place, one in keras_config.inner_layers(config) if keras_config.layers_of(one)]
        if prefix is not None and prefix not in names:
            raise UnsupportedOperationError(
                f"prefix must be one of {(*inside, *names)}, models inside, inputs and outputs. Received: {prefix!r}"
            )
        if len(inputs) > 1 and prefix not in inputs:
            raise UnsupportedOperationError(
                f"a model must take one input, images. Received: {len(inputs)} inputs. Pass prefix= with one of "
                f"{(*inside, *names)}"
            )
        shape = _shape_of(inputs[str(prefix)]) if len(inputs) > 1 else _input_shape(config)
        if shape is None or len(shape) != 4:
            raise UnsupportedOperationError(f"a model must take one input, images. Received: inputs of shape {shape}")
        sides = dict(zip(letters, shape, strict=True))
        start = Step("input", [], "the images", sides["C"] or 0, (sides["H"], sides["W"]))
        images = Map(start, letters)
        reason = {"reason": "it is made of another input"}
        given = [
            images
            if name == prefix or len(inputs) < 2
            else Map(Step("strange", [], f"input {name!r}", 0, (None, None), reason), letters)
            for name in inputs or [""]
        ]
        found = self.model(config, (), given, 0)
        if len(inputs) > 1:
            found = [self._alone(start)]
        elif prefix is not None:
            found = [value for name, value in zip(outputs, found, strict=True) if name == prefix]
        maps = [value for value in found if isinstance(value, Map)]
        if not maps or len(maps) != len(found):
            raise UnsupportedOperationError("a model must hand out what it makes of its images")
        ends = tuple(value.step for value in maps)
        lifted = Lifted(start, ends, frozenset(self.names), letters == "NHWC")
        shared = tuple("/".join(place) for place, count in self.used.items() if count > 1)
        return LiftedModel(lifted, tuple(self.calls), tuple(maps), tuple(self.idle), shared)

    def _alone(self, start: Step) -> Map:
        """What is made of one input alone, up to where it meets the others."""
        own = [
            call for call in self.calls if call.output.step.kind != "strange" and start in in_order([call.output.step])
        ]
        goes_on = {id(value) for call in own for value in call.inputs}
        last = [call.output for call in own if id(call.output) not in goes_on]
        if len(last) != 1:
            raise UnsupportedOperationError("a network of one input must end in one place before it meets others")
        return last[0]

    # Models.

    def model(self, entry: Mapping[str, Any], place: Place, inputs: list[Any], depth: int) -> list[Any]:
        """Goes through a model."""
        if depth > _MOST_DEPTH:
            raise UnsupportedOperationError("models may lie in each other 30 deep")
        layers = keras_config.layers_of(entry)
        if layers is None:
            raise UnsupportedOperationError("a model must have layers")
        inner = entry["config"]
        if entry.get("class_name") == "Sequential" or isinstance(inner, list):
            return self._sequence(layers, place, inputs, depth)
        return self._graph(inner, layers, place, inputs, depth)

    def _sequence(self, layers: Sequence[Any], place: Place, inputs: list[Any], depth: int) -> list[Any]:
        values = inputs
        for entry in layers:
            if _kind(entry) != "InputLayer":
                values = self.call(entry, place, _Node(tuple(values), {}), depth)
        return values

    def _graph(
        self, config: Mapping[str, Any], layers: Sequence[Any], place: Place, inputs: list[Any], depth: int
    ) -> list[Any]:
        entries = {keras_config.name_of(entry): entry for entry in layers}
        if len(entries) != len(layers):
            raise UnsupportedOperationError("the layers of a model must have names of their own")
        nodes = {name: [_node(node, entries) for node in _listed(entry)] for name, entry in entries.items()}
        starts = _references(config.get("input_layers"), entries)
        ends = _references(config.get("output_layers"), entries)
        if len(starts) != len(inputs) or not ends:
            raise UnsupportedOperationError(
                f"a model must have as many inputs as it is given, and an output; it has {len(starts)}"
            )
        made: dict[tuple[str, int], list[Any]] = {}
        for start, value in zip(starts, inputs, strict=True):
            made[start.layer, start.node] = [value]
        offsets = self._offsets(entries, nodes, ends)
        waiting = [(end.layer, end.node) for end in reversed(ends)]
        pending: set[tuple[str, int]] = set()
        while waiting:
            key = waiting[-1]
            if key in made:
                waiting.pop()
                continue
            name, number = key
            number -= offsets.get(name, 0)
            if name not in nodes or not 0 <= number < len(nodes[name]):
                raise UnsupportedOperationError(
                    f"a layer must be used where another reads from it. Received: {name!r}, use {number}"
                )
            node = nodes[name][number]
            needed = [(one.layer, one.node) for one in _inside(node) if (one.layer, one.node) not in made]
            if needed:
                if key in pending:
                    raise UnsupportedOperationError("layers must not read from each other in a circle")
                pending.add(key)
                waiting += needed
                continue
            filled = _Node(
                tuple(_filled(value, made) for value in node.values),
                {name: _filled(value, made) for name, value in node.options.items()},
            )
            made[key] = self.call(entries[name], place, filled, depth)
            waiting.pop()
        return [_filled(end, made) for end in ends]

    @staticmethod
    def _offsets(
        entries: Mapping[str, Any], nodes: Mapping[str, Sequence[_Node]], ends: Sequence[_Reference]
    ) -> dict[str, int]:
        """Returns which models inside count their own making as their first use, as Keras 2 does."""
        told: dict[str, set[int]] = {}
        for one in (*ends, *(one for uses in nodes.values() for node in uses for one in _inside(node))):
            told.setdefault(one.layer, set()).add(one.node)
        found = {}
        for name, entry in entries.items():
            if keras_config.layers_of(entry) is not None and told.get(name) and 0 not in told[name]:
                is_old = any(isinstance(node, list) for node in _listed(entry))
                found[name] = int(len(nodes[name]) in told[name] or is_old)
        return found

    # Layers.

    def call(self, entry: Mapping[str, Any], place: Place, node: _Node, depth: int) -> list[Any]:
        """Works one use of a layer or model out."""
        if len(self.calls) >= _MOST_CALLS:
            raise UnsupportedOperationError(f"a model may use its layers {_MOST_CALLS} times")
        name = keras_config.name_of(entry)
        own = (*place, name)
        options = {
            key: value
            for key, value in node.options.items()
            if not (key == "mask" and value is None)
            and not (key == "training" and value in (None, False))
            and not (key == "name" and (value is None or isinstance(value, str)))
        }
        maps = [value for value in _flat([*node.values, *options.values()]) if isinstance(value, Map)]
        if keras_config.layers_of(entry) is not None and entry.get("class_name") in _MODELS and not options:
            return self.model(entry, own, maps, depth + 1)
        layer = self._layer(entry, own)
        self.used[own] = self.used.get(own, 0) + 1
        number = self.used[own]
        label = str(layer) if number == 1 else f"{layer}, use {number}"
        strange = next((value for value in maps if value.step.kind == "strange"), None)
        try:
            if strange is not None:
                raise UnsupportedOperationError("it reads what another layer made that does not fit")
            if options.pop("training", None) is not None and layer.kind not in _PREPROCESSING:
                raise UnsupportedOperationError("it is used as in training")
            result = self._made(layer, label, node, options, maps)
        except UnsupportedOperationError as reason:
            text = strange.step.values["reason"] if strange is not None else str(reason)
            result = _strange(label, maps, text, summed=strange is not None and layer.kind == "Add")
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, ArithmeticError) as error:
            result = _strange(label, maps, f"its configuration does not fit it ({error})")
        result = dataclasses.replace(result)  # a value of its own, even where the layer does nothing
        only_maps = len(maps) == len(_flat([*node.values])) and not options
        self.calls.append(Call(layer, tuple(maps), not only_maps, result))
        return [result]

    def _layer(self, entry: Mapping[str, Any], own: Place) -> Layer:
        config = entry.get("config")
        registered, module = entry.get("registered_name"), entry.get("module")
        kind = _kind(entry)
        is_known = registered in (None, "", kind)
        packages = ("keras.", "tf_keras.", "tensorflow.", "tensorflow_core.", "keras_core.")
        is_theirs = module in (None, "", "keras") or str(module).startswith(packages)
        names = self.saved.variables.get(own, ())
        self.names |= set(names)
        return Layer(
            place=own,
            kind=kind,
            config=config if isinstance(config, Mapping) else {},
            is_own=is_known and is_theirs and ">" not in str(entry.get("class_name")),
            registered=str(registered) if registered and registered != kind else str(entry.get("class_name")),
            arrays=tuple((name, self.arrays[name]) for name in names),
            version=self.saved.version,
        )

    def _made(self, layer: Layer, label: str, node: _Node, options: Mapping[str, Any], maps: Sequence[Map]) -> Map:
        if not maps:
            raise UnsupportedOperationError("it reads nothing that is made of the images")
        if not layer.is_own:
            known = _RESFIT.get(layer.registered)
            if known is None:
                raise UnsupportedOperationError(
                    "it is a layer of another package than Keras, which only that package can run"
                )
            return known(layer, label, [*node.values], options)
        if layer.kind in INERT and layer.kind not in _WORKS_ALWAYS:
            if options or len(maps) != 1:
                raise UnsupportedOperationError("it must read one value")
            if INERT[layer.kind]:
                self.idle[f"left out {INERT[layer.kind]}, which does nothing when a network is used: {layer}"] = None
            return maps[0]
        if layer.kind in ("Lambda", "SlicingOpLambda", "TFOpLambda"):
            known = _FUNCTIONS.get(str(layer.config.get("function"))) if layer.kind != "Lambda" else None
            if known is None:
                raise UnsupportedOperationError(
                    _LAMBDA if layer.kind == "Lambda" else "an operation that no residual network has"
                )
            return known(layer, label, [*node.values], options)
        known = _HANDLERS.get(layer.kind)
        if known is None:
            raise UnsupportedOperationError("no residual network has it")
        result = known(layer, label, [*node.values], options)
        if result.step.channels > _MOST_CHANNELS:
            raise UnsupportedOperationError(f"{result.step.channels} channels")
        return result


def _strange(label: str, maps: Sequence[Map], reason: str, *, summed: bool = False) -> Map:
    values = {"reason": reason, "summed": summed}
    step = Step("strange", [value.step for value in maps], label, 0, (None, None), values)
    return Map(step, maps[0].axes if maps else "NHWC")


# Configurations.


def _kind(entry: Mapping[str, Any]) -> str:
    return str(entry.get("class_name", "")).rpartition(">")[2]


def _listed(entry: Mapping[str, Any]) -> list[Any]:
    nodes = entry.get("inbound_nodes")
    return nodes if isinstance(nodes, list) else []


def _data_format(config: Any) -> str:
    """The order of axes that the first layer which states one works on."""
    stated = (
        entry.get("config", {}).get("data_format")
        for _, entry in keras_config.inner_layers(config)
        if isinstance(entry.get("config"), Mapping)
    )
    return next((value for value in stated if value in ("channels_first", "channels_last")), "channels_last")


def _shape_of(config: Any) -> tuple[int | None, ...] | None:
    if not isinstance(config, Mapping):
        return None
    shape = next(
        (config[key] for key in ("batch_shape", "batch_input_shape") if isinstance(config.get(key), (list, tuple))),
        None,
    )
    if shape is None:
        return None
    if not all(side is None or (type(side) is int and 0 < side <= _MOST_SIDE) for side in shape[1:]):
        raise UnsupportedOperationError(f"images must have sides that can be. Received: {shape}")
    return (None, *shape[1:])


def _choices(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The layers of a model that are its inputs, with their configurations, and the names of those that end it."""
    layers, inner = keras_config.layers_of(entry), entry.get("config")
    if not layers or entry.get("class_name") == "Sequential" or not isinstance(inner, Mapping):
        return {}, []
    names = {keras_config.name_of(layer): layer for layer in layers}
    starts, ends = (_references(inner.get(key), names) for key in ("input_layers", "output_layers"))
    return {one.layer: names[one.layer].get("config") for one in starts}, [one.layer for one in ends]


def _input_shape(entry: Mapping[str, Any], depth: int = 0) -> tuple[int | None, ...] | None:
    """The shape of what a model takes, if that is one input."""
    layers = keras_config.layers_of(entry)
    inner = entry.get("config")
    if layers is None or depth > _MOST_DEPTH or not layers:
        return None
    if entry.get("class_name") == "Sequential" or isinstance(inner, list):
        found = _shape_of(layers[0].get("config"))
        if found is None and keras_config.layers_of(layers[0]) is not None:
            found = _input_shape(layers[0], depth + 1)
        stated = inner.get("build_input_shape") if isinstance(inner, Mapping) else None
        return found or _shape_of({"batch_shape": stated})
    names = {keras_config.name_of(layer): layer for layer in layers}
    starts = _references(inner.get("input_layers"), names) if isinstance(inner, Mapping) else []
    if len(starts) != 1:
        raise UnsupportedOperationError(f"a model must take one input, images. Received: {len(starts)} inputs")
    return _shape_of(names[starts[0].layer].get("config"))


def _reference(value: Any, layers: Mapping[str, Any]) -> _Reference | None:
    """A value of a configuration as the output of a layer, in the words of Keras 3 or of Keras 2; None for others."""
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        inner = value.get("config")
        value = inner.get("keras_history") if isinstance(inner, Mapping) else None
    if not isinstance(value, (list, tuple)) or len(value) not in (3, 4) or not isinstance(value[0], str):
        return None
    name, node, output = value[:3]
    if name not in layers or type(node) is not int or type(output) is not int:
        return None
    return _Reference(name, node, output)


def _references(value: Any, layers: Mapping[str, Any]) -> list[_Reference]:
    """Inputs or outputs of a model, which may be one, a list, or a mapping."""
    single = _reference(value, layers)
    if single is not None:
        return [single]
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str)]
    if not isinstance(value, list):
        raise UnsupportedOperationError("a model must name its inputs and outputs")
    found = [_reference(one, layers) for one in value]
    if any(one is None for one in found):
        raise UnsupportedOperationError("inputs and outputs of a model must be those of its layers")
    return [one for one in found if one is not None]


def _node(node: Any, layers: Mapping[str, Any]) -> _Node:
    """One use of a layer, in the words of Keras 3 or of Keras 2."""
    if isinstance(node, Mapping):
        values, options = node.get("args", []), node.get("kwargs", {})
        return _Node(
            tuple(_parsed(value, layers) for value in values),
            {str(name): _parsed(value, layers) for name, value in options.items()},
        )
    if not isinstance(node, list):
        raise UnsupportedOperationError("a use of a layer must say what it reads")
    entries = [node] if node and isinstance(node[0], str) else node
    values, options = [], {}
    for entry in entries:
        if not isinstance(entry, list) or not entry:
            raise UnsupportedOperationError("a use of a layer must say what it reads")
        if entry[0] == "_CONSTANT_VALUE":
            values.append(_parsed(entry[2], layers))
        else:
            values.append(_parsed(entry[:3], layers))
            if not isinstance(values[-1], _Reference):
                raise UnsupportedOperationError("a use of a layer must read from layers of its model")
        if len(entry) > 3 and isinstance(entry[3], Mapping):
            options |= {str(name): _parsed(value, layers) for name, value in entry[3].items()}
    return _Node(tuple(values), options)


def _parsed(value: Any, layers: Mapping[str, Any], depth: int = 0) -> Any:
    """A value of a configuration with references, arrays and slices in place of what stands for them."""
    if depth > _MOST_DEPTH:
        raise UnsupportedOperationError("values may lie in each other 30 deep")
    reference = _reference(value, layers)
    if reference is not None:
        return reference
    if isinstance(value, Mapping):
        kind, inner = value.get("class_name"), value.get("config")
        if kind in ("__numpy__", "__tensor__") and isinstance(inner, Mapping):
            return np.asarray(inner.get("value"), np.float64)
        if kind == "__slice__" and isinstance(inner, Mapping):
            return slice(inner.get("start"), inner.get("stop"), inner.get("step"))
        if kind == "__ellipsis__":
            return Ellipsis
        if value.keys() == {"start", "stop", "step"}:
            return slice(value["start"], value["stop"], value["step"])
        return {str(key): _parsed(one, layers, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_parsed(one, layers, depth + 1) for one in value]
    return value


def _flat(value: Any) -> list[Any]:
    """What lies in lists and mappings, in order."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            waiting += reversed(one)
        elif isinstance(one, Mapping):
            waiting += reversed(list(one.values()))
        else:
            found.append(one)
    return found


def _inside(node: _Node) -> list[_Reference]:
    return [one for one in _flat([node.values, dict(node.options)]) if isinstance(one, _Reference)]


def _filled(value: Any, made: Mapping[tuple[str, int], list[Any]]) -> Any:
    if isinstance(value, _Reference):
        outputs = made[value.layer, value.node]
        if not 0 <= value.output < len(outputs):
            raise UnsupportedOperationError(f"layer {value.layer!r} has no output {value.output}")
        return outputs[value.output]
    if isinstance(value, list):
        return [_filled(one, made) for one in value]
    if isinstance(value, Mapping):
        return {key: _filled(one, made) for key, one in value.items()}
    return value


# What layers do.

Handler = Callable[[Layer, str, list[Any], Mapping[str, Any]], Map]


def _one(values: Sequence[Any], options: Mapping[str, Any]) -> Map:
    flat = _flat(list(values))
    if len(flat) != 1 or not isinstance(flat[0], Map) or options:
        raise UnsupportedOperationError("it must read one value")
    return flat[0]


def _is_maps(x: Map) -> bool:
    return x.axes in ("NHWC", "NCHW")


def _maps(layer: Layer, values: Sequence[Any], options: Mapping[str, Any]) -> Map:
    """The maps that a layer reads, in the order of axes that it works on."""
    x = _one(values, options)
    wanted = {"channels_first": "NCHW", "channels_last": "NHWC", None: x.axes}.get(layer.config.get("data_format"))
    if wanted is None or not _is_maps(x) or x.axes != wanted:
        raise UnsupportedOperationError("it must read maps of features, with the channels where it takes them")
    return x


def _next(x: Map, label: str, kind: str, values: dict[str, Any] | None = None, axes: str | None = None) -> Map:
    step = Step(kind, [x.step], label, x.step.channels, x.step.size, values or {})
    return Map(step, x.axes if axes is None else axes)


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if type(value) is int else tuple(value)
    if len(pair) != 2 or any(type(side) is not int or not 0 < side <= 10_000 for side in pair):
        raise UnsupportedOperationError(f"two positive numbers must stand where {value!r} does")
    return pair[0], pair[1]


def _window(
    layer: Layer, size: Size, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[dict[str, Any], Size]:
    padding = layer.config.get("padding", "valid")
    if padding not in ("same", "valid"):
        raise UnsupportedOperationError(f"padding {padding!r}")
    extents = [(side - 1) * by + 1 for side, by in zip(kernel, dilations, strict=True)]
    same = padding == "same"
    pads: Pads | None = same_pads(size, extents, strides) if same else (0, 0, 0, 0)
    values = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "same": same}
    return {**values, "up": False}, window_size(size, extents, strides, None if same else pads)


def _is_pooled(step: Step) -> bool:
    """Whether a step gives one value a channel because the map was pooled, and not because the image is small."""
    while step.kind in ("dense", "act", "affine") and len(step.inputs) == 1:
        step = step.inputs[0]
    return step.kind == "mean"


def _conv(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, config = _one(values, options), layer.config
    if x.axes not in ("N11C", "NC11"):  # vectors of squeeze-excite
        x = _maps(layer, values, options)
    biased = config.get("use_bias", True)
    kernel, *rest = layer.weights("kernel", "bias") if biased else layer.weights("kernel")
    groups = config.get("groups", 1) or 1
    sides = _pair(config["kernel_size"])
    if kernel.ndim != 4 or 0 in kernel.shape or type(groups) is not int or groups < 1 or kernel.shape[3] % groups:
        raise UnsupportedOperationError(f"a kernel of shape {kernel.shape} in {groups} groups")
    if kernel.shape[:2] != sides or kernel.shape[3] != config["filters"]:
        raise UnsupportedOperationError(
            f"a kernel of shape {kernel.shape}, where {config['filters']} of {sides} are stated"
        )
    if x.step.channels not in (0, kernel.shape[2] * groups):
        raise UnsupportedOperationError(
            f"a kernel of shape {kernel.shape} in {groups} groups on {x.step.channels} channels"
        )
    if rest and rest[0].shape != kernel.shape[3:]:
        raise UnsupportedOperationError(f"a bias of shape {rest[0].shape}")
    if x.step.kind in ("input", "affine", "flip"):
        x.step.channels = kernel.shape[2] * groups
    strides, dilations = _pair(config.get("strides", 1)), _pair(config.get("dilation_rate", 1))
    bias = rest[0] if rest else None
    if _is_pooled(x.step) and sides == (1, 1) and groups == 1:  # of squeeze-excite
        made = {"kernel": kernel[0, 0], "bias": bias}
        result = Map(Step("dense", [x.step], label, kernel.shape[3], (1, 1), made), x.axes)
    else:
        window, size = _window(layer, x.step.size, sides, strides, dilations)
        made = {**window, "kernel": kernel, "bias": bias, "groups": groups}
        result = Map(Step("conv", [x.step], label, kernel.shape[3], size, made), x.axes)
    return _activated(layer, label, result, config.get("activation"))


def _standardized(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    """A convolution whose kernel is standardised: it is taken as it is used."""
    result = _conv(layer, label, values, options)
    step = next(step for step in (result.step, *result.step.inputs) if step.kind in ("conv", "dense"))
    kernel = step.values["kernel"].astype(np.float64)
    axes, epsilon = tuple(range(kernel.ndim - 1)), float(layer.config.get("standardization_epsilon", 1e-8))
    scale = 1 / np.sqrt(kernel.var(axes, keepdims=True) + epsilon)
    step.values["kernel"] = ((kernel - kernel.mean(axes, keepdims=True)) * scale).astype(np.float32)
    return result


def _dense(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _one(values, options)
    kernel, *rest = layer.weights("kernel", "bias") if layer.config.get("use_bias", True) else layer.weights("kernel")
    if x.axes[-1] != "C" or "H" in x.axes:
        raise UnsupportedOperationError("it must read vectors of features")
    if kernel.ndim != 2 or 0 in kernel.shape or kernel.shape[0] != x.step.channels:
        raise UnsupportedOperationError(f"weights of shape {kernel.shape} on {x.step.channels} channels")
    if rest and rest[0].shape != kernel.shape[1:]:
        raise UnsupportedOperationError(f"a bias of shape {rest[0].shape}")
    made = {"kernel": kernel, "bias": rest[0] if rest else None}
    result = Map(Step("dense", [x.step], label, kernel.shape[1], (1, 1), made), x.axes)
    return _activated(layer, label, result, layer.config.get("activation"))


def _channel_axis(layer: Layer, x: Map) -> None:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or not -len(x.axes) <= axis < len(x.axes) or x.axes[axis] != "C":
        raise UnsupportedOperationError(f"it must normalise the channels; it normalises axis {axis}")


def _batch_norm(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, config = _one(values, options), layer.config
    _channel_axis(layer, x)
    if config.get("renorm") or config.get("virtual_batch_size"):
        raise UnsupportedOperationError("a norm of renormalised or virtual batches")
    scales, centers = config.get("scale", True), config.get("center", True)
    names = [*(["gamma"] if scales else []), *(["beta"] if centers else []), "moving_mean", "moving_variance"]
    found = dict(zip(names, layer.weights(*names), strict=True))
    width = found["moving_mean"].shape
    if any(array.shape != width for array in found.values()) or width != (x.step.channels,):
        raise UnsupportedOperationError(
            f"its statistics must be one a channel; there are {width} for {x.step.channels}"
        )
    made: dict[str, Any] = {
        "gamma": found.get("gamma", np.ones(width, np.float32)),
        "beta": found.get("beta", np.zeros(width, np.float32)),
        "mean": found["moving_mean"],
        "variance": found["moving_variance"],
        "epsilon": float(config.get("epsilon", 1e-3)),
        "momentum": float(config.get("momentum", 0.99)),
    }
    return _next(x, label, "norm", made)


def _group_norm(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, config = _one(values, options), layer.config
    _channel_axis(layer, x)
    groups, channels = config.get("groups", 32), x.step.channels
    groups = channels if groups == -1 else groups
    if type(groups) is not int or groups < 1 or channels % groups or not _is_maps(x):
        raise UnsupportedOperationError(f"{groups} groups of {channels} channels")
    names = [*(["gamma"] if config.get("scale", True) else []), *(["beta"] if config.get("center", True) else [])]
    found = dict(zip(names, layer.weights(*names), strict=True))
    made: dict[str, Any] = {
        "gamma": found.get("gamma", np.ones(channels, np.float32)),
        "beta": found.get("beta", np.zeros(channels, np.float32)),
        "groups": groups,
        "epsilon": float(config.get("epsilon", 1e-3)),
    }
    if made["gamma"].shape != (channels,) or made["beta"].shape != (channels,):
        raise UnsupportedOperationError("its weights must be one a channel")
    return _next(x, label, "norm", made)


_ACTIVATIONS = {
    **{name: name for name in ("relu", "relu6", "silu", "gelu", "elu", "selu", "tanh", "sigmoid", "mish", "softplus")},
    **{name: name for name in ("softsign", "celu", "leaky_relu", "hard_silu", "hard_sigmoid")},
    **{"swish": "silu", "hard_swish": "hard_silu"},
}


def activation_name(value: Any) -> str | None:
    """Returns the name of an activation function of Keras' own, or None for any other.

    Args:
        value: What a configuration has for it.
    """
    if isinstance(value, Mapping):
        modules = (None, "builtins", "keras.activations", "keras.src.activations", "keras")
        is_own = value.get("module") in modules and value.get("registered_name") in (None, "function")
        inner = value.get("config")
        if value.get("class_name") != "function" or not is_own:
            return None
        value = inner if isinstance(inner, str) else None
    if value is None:
        return "linear"
    name = str(value).lower()
    return name if name in _ACTIVATIONS or name in ("linear", "softmax", "log_softmax") else None


def _activated(layer: Layer, label: str, x: Map, stated: Any) -> Map:
    if stated is None:
        return x
    name = activation_name(stated)
    if name is None:
        raise UnsupportedOperationError(f"an activation that Keras does not have: {str(stated)[:100]}")
    if name == "linear":
        return x
    if name in ("softmax", "log_softmax"):
        if "H" in x.axes or x.axes[-1] != "C":
            raise UnsupportedOperationError("it must go over the classes")
        return _next(x, label, "end", {"name": name})
    if name == "hard_sigmoid" and layer.version == 2:
        raise UnsupportedOperationError("hard_sigmoid, which is another function in Keras 2 than in Keras 3")
    return _next(x, label, "act", {"name": _ACTIVATIONS[name]})


def _activation(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    return _activated(layer, label, _one(values, options), layer.config.get("activation"))


def _number(layer: Layer, key: str, default: float) -> float:
    value = layer.config.get(key, default)
    if isinstance(value, Mapping):  # an array, as Keras 2 writes it
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, Mapping) else value.get("value")
    return default if value is None else float(value)


def _relu(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, config = _one(values, options), layer.config
    slope = _number(layer, "negative_slope", 0.0)
    most = config.get("max_value")
    if _number(layer, "threshold", 0.0) != 0 or (most is not None and (float(most) != 6 or slope)):
        raise UnsupportedOperationError("it must cut at 0, or at 0 and 6")
    if slope:
        return _leaky_step(x, label, slope)
    return _next(x, label, "act", {"name": "relu" if most is None else "relu6"})


def _leaky_step(x: Map, label: str, slope: float) -> Map:
    if not math.isfinite(slope):
        raise UnsupportedOperationError("its slope must be a number")
    if slope == 0:
        return _next(x, label, "act", {"name": "relu"})
    slope = float(f"{slope:.6g}")  # as it was before it became a number of 32 bits
    return _next(x, label, "act", {"name": "leaky_relu", **({} if slope == 0.2 else {"slope": slope})})


def _leaky(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"
    return _leaky_step(_one(values, options), label, _number(layer, key, 0.3))


def _elu(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    if _number(layer, "alpha", 1.0) != 1:
        raise UnsupportedOperationError("alpha must be 1")
    return _next(_one(values, options), label, "act", {"name": "elu"})


def _softmax(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _one(values, options)
    if x.axes != "NC" or layer.config.get("axis", -1) not in (-1, 1):
        raise UnsupportedOperationError("it must go over the classes")
    return _next(x, label, "end", {"name": "softmax"})


def _pool(kind: str) -> Handler:
    def take(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
        x, config = _maps(layer, values, options), layer.config
        extent = _pair(config.get("pool_size", 2))
        strides = _pair(config.get("strides") or extent)
        window, size = _window(layer, x.step.size, extent, strides, (1, 1))
        if kind == "avg" and x.step.size == extent and not window["same"]:
            return Map(Step("mean", [x.step], label, x.step.channels, (1, 1)), x.axes)
        if extent == (1, 1):
            if strides == (1, 1):
                return x
            return Map(Step("subsample", [x.step], label, x.step.channels, size, {"strides": strides}), x.axes)
        window["counts_border"] = False
        return Map(Step(kind, [x.step], label, x.step.channels, size, window), x.axes)

    return take


def _global(kind: str) -> Handler:
    def take(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
        x = _maps(layer, values, options)
        kept = {"NHWC": "N11C", "NCHW": "NC11"}[x.axes]
        axes = kept if layer.config.get("keepdims") else "NC"
        if kind == "max":
            raise UnsupportedOperationError("a global maximum, where residual networks have a global average")
        return Map(Step("mean", [x.step], label, x.step.channels, (1, 1)), axes)

    return take


def _zero_padding(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _maps(layer, values, options)
    value = layer.config.get("padding", 1)
    if type(value) is int:
        value = ((value, value), (value, value))
    (top, bottom), (left, right) = ((one, one) if type(one) is int else tuple(one) for one in value)
    if any(type(side) is not int or not 0 <= side <= 1000 for side in (top, bottom, left, right)):
        raise UnsupportedOperationError(f"padding {value!r}")
    if not (top or bottom or left or right):
        return x
    return _padded(x, label, (top, left, bottom, right), 0.0)


def _padded(x: Map, label: str, pads: Pads, value: float) -> Map:
    top, left, bottom, right = pads
    height, width = x.step.size
    size = (None if height is None else height + top + bottom, None if width is None else width + left + right)
    made = {"pads": pads, "mode": "constant", "value": value}
    return Map(Step("pad", [x.step], label, x.step.channels, size, made), x.axes)


def _lowest_padding(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    side = layer.config["padding"]
    if type(side) is not int or not 0 < side < 1000:
        raise UnsupportedOperationError(f"padding {side!r}")
    return _padded(_one(values, options), label, (side,) * 4, -math.inf)


def _blur(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, stride = _one(values, options), layer.config["stride"]
    height, width = x.step.size
    size = (None if height is None else -(-height // stride), None if width is None else -(-width // stride))
    return Map(Step("blur", [x.step], label, x.step.channels, size, {"strides": (stride, stride)}), x.axes)


def _widened(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, width, stride = _one(values, options), layer.config["channels"], layer.config.get("stride", 1)
    if stride > 1:
        height, across = x.step.size
        size = (None if height is None else -(-height // stride), None if across is None else -(-across // stride))
        x = Map(Step("subsample", [x.step], label, x.step.channels, size, {"strides": (stride, stride)}), x.axes)
    if width == x.step.channels:
        return x
    before = (width - x.step.channels) // 2
    return Map(Step("widen", [x.step], label, width, x.step.size, {"before": before}), x.axes)


def _flatten(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _one(values, options)
    if "H" in x.axes and x.step.size != (1, 1):
        raise UnsupportedOperationError("only maps of one pixel may be flattened; it is no global average")
    return dataclasses.replace(x, axes="NC")


def _reshape(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, target = _one(values, options), layer.config["target_shape"]
    if ("H" in x.axes and x.step.size != (1, 1)) or not isinstance(target, list):
        raise UnsupportedOperationError("only vectors of features may be reshaped")
    places = [at for at, side in enumerate(target) if side in (x.step.channels, -1)]
    if len(places) > 1:
        places = [at for at in places if target[at] != 1][:1] or places[-1:]
    if len(places) != 1 or any(side != 1 for at, side in enumerate(target) if at != places[0]):
        raise UnsupportedOperationError("the channels must stay one axis")
    return dataclasses.replace(x, axes="N" + "".join("C" if at == places[0] else "1" for at in range(len(target))))


def _permute(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, order = _one(values, options), layer.config["dims"]
    return dataclasses.replace(x, axes="N" + "".join(x.axes[axis] for axis in order))


def _conv_of_line(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    """ECA's convolution along the channels."""
    x, config = _one(values, options), layer.config
    side = config["kernel_size"]
    side = side[0] if isinstance(side, list) else side
    plain = all(config.get(key, usual) in (usual, [usual]) for key, usual in (("strides", 1), ("dilation_rate", 1)))
    if x.axes != "NC1" or config.get("use_bias", True) or config.get("filters") != 1 or not plain or side % 2 == 0:
        raise UnsupportedOperationError("a convolution along the channels must keep their number")
    if config.get("padding") != "same" or config.get("groups", 1) != 1:
        raise UnsupportedOperationError("a convolution along the channels must keep their number")
    (kernel,) = layer.weights("kernel")
    if kernel.shape != (side, 1, 1):
        raise UnsupportedOperationError(f"a kernel of shape {kernel.shape}")
    return _activated(layer, label, _next(x, label, "line", {"kernel": kernel}), config.get("activation"))


def _joined(kind: str, label: str, one: Map, other: Map) -> Map:
    if _is_maps(other) and not _is_maps(one):
        one, other = other, one
    alike = one.axes == other.axes and one.step.size == other.step.size
    if one.step.channels != other.step.channels or (one.axes != other.axes and kind == "add"):
        raise UnsupportedOperationError(
            f"{one.step.channels} and {other.step.channels} channels, of axes {one.axes} and {other.axes}"
        )
    if kind == "add" and not alike:
        raise UnsupportedOperationError(f"maps of {one.step.size} and {other.step.size}")
    spread = {"NHWC": ("N11C", "NHWC"), "NCHW": ("NC11", "NCHW")}.get(one.axes, ())
    if not alike and (other.axes not in spread or other.step.size != (1, 1)):
        raise UnsupportedOperationError(
            f"maps of {one.step.size} and {other.step.size}, of axes {one.axes} and {other.axes}"
        )
    step = Step(kind, [one.step, other.step], label, one.step.channels, one.step.size)
    return Map(step, one.axes)


def _vector(value: Any, x: Map) -> np.ndarray:
    """A constant beside a value as one number a channel, or one for all."""
    array = np.asarray(value, np.float64)
    if array.size == 1:
        return array.reshape(-1)
    shape = (1,) * (len(x.axes) - array.ndim) + array.shape
    if array.ndim > len(x.axes) or any(side > 1 and letter != "C" for side, letter in zip(shape, x.axes, strict=True)):
        raise UnsupportedOperationError("a constant must be one number a channel")
    if x.step.channels and array.size != x.step.channels:
        raise UnsupportedOperationError(f"{array.size} numbers for {x.step.channels} channels")
    return array.reshape(-1)


def _affine(x: Map, label: str, scale: np.ndarray, shift: np.ndarray) -> Map:
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        raise UnsupportedOperationError("scales and shifts must be numbers")
    result = _next(x, label, "affine", {"scale": scale, "shift": shift})
    size = max(scale.size, shift.size)
    result.step.channels = x.step.channels or (size if size > 1 else 0)
    return result


def _arithmetic(operation: str) -> Handler:
    """An operation of a value and a constant, or of two values."""

    def take(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
        terms = [*values, *options.values()]
        if len(terms) == 1 and isinstance(terms[0], list):  # a layer that joins a list
            terms = terms[0]
        if set(options) - {"x1", "x2", "x", "y", "bias", "value"} or len(terms) != 2:
            raise UnsupportedOperationError("it must join two values")
        maps = [value for value in terms if isinstance(value, Map)]
        if len(maps) == 2:
            if operation not in ("add", "multiply"):
                raise UnsupportedOperationError("it must be a sum or a product")
            return _joined(operation, label, *maps)
        x, first = maps[0], isinstance(terms[0], Map)
        number = _vector(terms[1] if first else terms[0], x)
        one, zero = np.ones(1), np.zeros(1)
        with np.errstate(all="ignore"):
            found = {
                "add": (one, number),
                "multiply": (number, zero),
                "subtract": (one, -number) if first else (-one, number),
                "divide": (1 / number, zero) if first else None,
            }[operation]
        if found is None:
            raise UnsupportedOperationError("a constant over features")
        return _affine(x, label, *found)

    return take


def _rescaling(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _one(values, options)
    scale, shift = (
        _vector(_plain(layer.config.get(key, usual)), x) for key, usual in (("scale", 1.0), ("offset", 0.0))
    )
    return _affine(x, label, scale, shift)


def _plain(value: Any) -> Any:
    """A number or array of a configuration."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        return inner.get("value") if isinstance(inner, Mapping) else value.get("value")
    return value


def _normalization(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, config = _one(values, options), layer.config
    axis = config.get("axis", -1)
    axis = [axis] if type(axis) is int else axis
    if axis is not None and (len(axis) > 1 or (axis and x.axes[axis[0]] != "C")):
        raise UnsupportedOperationError("it must normalise the channels")
    if config.get("mean") is not None:
        mean, variance = (np.asarray(_plain(config[key]), np.float64) for key in ("mean", "variance"))
    else:
        found = [array for _, array in layer.arrays]
        if len(found) not in (2, 3):
            raise UnsupportedOperationError("its mean and variance must be there")
        mean, variance = (array.astype(np.float64) for array in found[:2])
    mean, variance = (
        _vector(value.reshape(-1) if value.size > 1 else value, Map(x.step, "NHWC")) for value in (mean, variance)
    )
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if config.get("invert"):
        return _affine(x, label, deviation, mean)
    return _affine(x, label, 1 / deviation, -mean / deviation)


def _resizing(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x = _one(values, options)
    target = (layer.config.get("height"), layer.config.get("width"))
    if x.step.size != target:
        raise UnsupportedOperationError(
            f"it makes images of {target[0]}x{target[1]}, which a network here leaves to whoever decodes them; save "
            "the model without it"
        )
    return x


def _flip(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, axis = _one(values, options), layer.config.get("axis")
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or x.axes[axis] != "C":
        raise UnsupportedOperationError("it must turn the order of the channels")
    return _next(x, label, "flip")


def _get_item(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    x, *rest = values
    key = (rest or [options.get("slice_spec", options.get("key"))])[0]
    key = list(key) if isinstance(key, (list, tuple)) else [key]
    key = [slice(None) if one == {"class_name": "__ellipsis__"} else one for one in key]
    if not isinstance(x, Map) or set(options) - {"slice_spec", "key"}:
        raise UnsupportedOperationError("it must read one value")
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (len(x.axes) - len(key) + 1)
    if (
        len(key) == len(x.axes)
        and type(key[-1]) is int
        and all(one == slice(None) for one in key[:-1])
        and x.axes[-1] == "C"
    ):
        made = Step("channel", [x.step], label, 1, x.step.size, {"index": key[-1], "letters": x.axes})
        return Map(made, x.axes[:-1])
    if len(key) > len(x.axes) or not all(isinstance(one, slice) for one in key):
        raise UnsupportedOperationError("it must take every axis whole, or turn the order of the channels")
    turned = [letter for letter, one in zip(x.axes, key, strict=False) if one == slice(None, None, -1)]
    rest = [one for one in key if one not in (slice(None), slice(None, None, -1), slice(None, None, 1))]
    if rest or turned not in ([], ["C"]):
        raise UnsupportedOperationError("it must take every axis whole, or turn the order of the channels")
    return _next(x, label, "flip") if turned else x


def _stack(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    """Channels that were taken one by one, in their order or turned."""
    maps = _flat(values)
    steps = [value.step for value in maps if isinstance(value, Map) and value.step.kind == "channel"]
    if len(steps) != len(maps) or not steps or layer.config.get("axis") not in (-1, 3) or options:
        raise UnsupportedOperationError("it must turn the order of the channels")
    source, order = steps[0].inputs[0], [step.values["index"] for step in steps]
    if any(step.inputs[0] is not source for step in steps) or source.channels not in (0, len(order)):
        raise UnsupportedOperationError("it must turn the order of the channels")
    x, count = Map(source, steps[0].values["letters"]), len(order)
    if order == list(range(count)):
        return x
    if order != list(range(count))[::-1]:
        raise UnsupportedOperationError("it must turn the order of the channels")
    return _next(x, label, "flip")


def _mean(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    stated = {**layer.config, **options}
    x = _one(values, {})
    axes, keep = stated.get("axis"), stated.get("keepdims", False)
    places = [axis % len(x.axes) for axis in axes] if isinstance(axes, list) else []
    if sorted(x.axes[axis] for axis in places) != ["H", "W"]:
        raise UnsupportedOperationError("it must go over height and width")
    letters = ["1" if at in places else letter for at, letter in enumerate(x.axes) if keep or at not in places]
    return Map(Step("mean", [x.step], label, x.step.channels, (1, 1)), "".join(letters))


def _function(name: str) -> Handler:
    def take(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
        return _activated(layer, label, _one(values, options), name)

    return take


def _cast(layer: Layer, label: str, values: list[Any], options: Mapping[str, Any]) -> Map:
    dtype = {**layer.config, **options}.get("dtype")
    if dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise UnsupportedOperationError("features must stay floating-point numbers")
    return _one(values, {key: value for key, value in options.items() if key != "dtype"})


#: By the class of the layer or, of operations, of the operation.
_HANDLERS: Mapping[str, Handler] = {
    "Conv2D": _conv,
    "Convolution2D": _conv,
    "Conv1D": _conv_of_line,
    "Dense": _dense,
    **dict.fromkeys(
        ("BatchNormalization", "SyncBatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2"), _batch_norm
    ),
    "GroupNormalization": _group_norm,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky,
    "ELU": _elu,
    "Softmax": _softmax,
    **dict.fromkeys(("MaxPooling2D", "MaxPool2D"), _pool("max")),
    **dict.fromkeys(("AveragePooling2D", "AvgPool2D"), _pool("avg")),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalAvgPool2D"), _global("avg")),
    **dict.fromkeys(("GlobalMaxPooling2D", "GlobalMaxPool2D"), _global("max")),
    "ZeroPadding2D": _zero_padding,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Add": _arithmetic("add"),
    "Multiply": _arithmetic("multiply"),
    "Subtract": _arithmetic("subtract"),
    **dict.fromkeys(("Divide", "TrueDivide"), _arithmetic("divide")),
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    **dict.fromkeys(("Resizing", "CenterCrop", "RandomCrop"), _resizing),
    "Flip": _flip,
    "GetItem": _get_item,
    "Stack": _stack,
    "Mean": _mean,
    "Cast": _cast,
    **{name.title().replace("_", ""): _function(name) for name in ("relu", "relu6", "silu", "sigmoid")},
}
#: Operations of Keras 2 by the name of TensorFlow's function.
_FUNCTIONS: Mapping[str, Handler] = {
    "__operators__.getitem": _get_item,
    **dict.fromkeys(("math.add", "__operators__.add", "nn.bias_add"), _arithmetic("add")),
    "math.subtract": _arithmetic("subtract"),
    "math.multiply": _arithmetic("multiply"),
    **dict.fromkeys(("math.truediv", "math.divide"), _arithmetic("divide")),
    "math.reduce_mean": _mean,
    "cast": _cast,
    "nn.relu": _function("relu"),
    "nn.relu6": _function("relu6"),
    "nn.silu": _function("silu"),
    "nn.sigmoid": _function("sigmoid"),
    "math.sigmoid": _function("sigmoid"),
}
#: Layers of resfit's own.
_RESFIT: Mapping[str, Handler] = {
    "resfit>StandardizedConv2D": _standardized,
    "resfit>LowestPadding2D": _lowest_padding,
    "resfit>BlurPool2D": _blur,
    "resfit>PaddedShortcut": _widened,
    "resfit>StochasticDepth": lambda layer, label, values, options: _one(values, options),
}
