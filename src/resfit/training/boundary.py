"""The frozen boundary: where a network is cut so that what is frozen runs once an image, whatever the epochs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError, closest
from resfit.networks.model_graph import copy as copy
from resfit.networks.model_graph import parents as parents

if TYPE_CHECKING:
    import keras

_STAGE = "stage"


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Which layers learn, and the last tensor before them that every path crosses.

    Attributes:
        index: Position of the first layer that may learn, in keras.applications' own numbers: ``layers[index:]``
            learn.
        first: Its name; empty where no layer of the network learns.
        learning: Names of the layers with weights that learn, in order.
        frozen: Names of the layers with weights that do not, in order.
        cut: Name of the layer whose output is the last tensor that all paths cross and nothing that learns comes
            before. Empty where that is the input: then there is nothing to compute ahead.
        between: Names of the frozen layers with weights behind the cut, which run in every step.
    """

    index: int
    first: str
    learning: tuple[str, ...]
    frozen: tuple[str, ...]
    cut: str
    between: tuple[str, ...]


def numbered_layers(model: keras.Model) -> list[Any]:
    """Returns the layers that ``trainable_from`` counts: those of keras.applications, in its order.

    The layers of the input contract, which keras.applications leaves to the user, do not count.

    Args:
        model: A functional network.
    """
    import keras

    layers = list(model.layers)
    bare = next((position for position, layer in enumerate(layers) if layer.weights), len(layers))
    contract = [layer for layer in layers[:bare] if isinstance(layer, keras.layers.Rescaling)]
    return [layer for layer in layers if layer not in contract]


def resolve(model: keras.Model, trainable_from: int | float | str) -> int:
    """Returns the position of the first layer that learns, in keras.applications' own numbers.

    Args:
        model: A functional network without a head of the user's.
        trainable_from: One of

            - an index, as in ``layers[index:]``; a negative one counts from the end;
            - the name of a layer, such as ``"conv5_block1_1_conv"``;
            - a stage, ``"stage1"`` (the stem) to ``"stage5"``;
            - a share in [0.0, 1.0]: how much of the layers stays frozen, counted from the input. 0.0 trains everything,
              1.0 the head alone.

            Numbers may be given as text.

    Raises:
        ArgumentError: It is out of range, or no such layer or stage exists.

    Example:
        >>> body = resfit.load("resnet50", weights=None, include_top=False)
        >>> resolve(body, "stage5"), resolve(body, 140)
        (143, 140)
    """
    layers = numbered_layers(model)
    value = _number(trainable_from)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ArgumentError(
            "trainable_from must be a layer's name or index, a stage or a share. "
            f"Received: {trainable_from!r} of type {type(trainable_from).__name__}."
        )
    if isinstance(value, float):
        if not 0 <= value <= 1:
            raise ArgumentError(f"trainable_from as a share must lie in [0, 1]. Received: {value}.")
        return round(value * len(layers))
    if isinstance(value, int):
        if not -len(layers) <= value <= len(layers):
            raise ArgumentError(
                f"trainable_from as an index must lie in {-len(layers)}..{len(layers)}, the layers of {model.name}. "
                f"Received: {value}."
            )
        return value + len(layers) if value < 0 else value
    names = [layer.name for layer in layers]
    if value in names:
        return names.index(value)
    stages = _stages(names)
    if value in stages:
        return stages[value]
    raise ArgumentError(
        f"trainable_from must be a layer of {model.name}, one of {', '.join(stages)}, an index or a share. "
        f"Received: {value!r}.{closest(value, [*stages, *names])}"
    )


def find(model: keras.Model, trainable_from: int | float | str) -> Boundary:
    """Finds where a network can be cut.

    Args:
        model: A functional network with one input and one output.
        trainable_from: As :func:`resolve` takes it.

    Raises:
        ArgumentError: ``trainable_from`` breaks its rule.
    """
    index = resolve(model, trainable_from)
    layers = numbered_layers(model)
    names = [layer.name for layer in layers]
    weighted = [layer.name for layer in model.layers if layer.weights]
    tail = set(names[index:])
    learning = tuple(name for name in weighted if name in tail)
    frozen = tuple(name for name in weighted if name not in tail)
    cut, before = "", 0
    for name, count in _crossings(model, set(learning)):
        cut, before = name, count
    if not before:  # nothing but the input contract comes before it
        return Boundary(index, _at(names, index), learning, frozen, "", frozen)
    return Boundary(index, _at(names, index), learning, frozen, cut, frozen[before:])


def split(model: keras.Model, boundary: Boundary) -> tuple[keras.Model | None, keras.Model]:
    """Returns the part before the cut and the part behind it, which share their layers with the network.

    What is learned in the second part is learned in the network: together the parts are one model all the time.

    Args:
        model: A network of which each layer is called once; :func:`copy` makes one.
        boundary: What :func:`find` found in it.

    Returns:
        The first part, images to feature maps, ``None`` where the cut is at the input; and the second part.
    """
    import keras

    if not boundary.cut:
        return None, model
    tensor = _operation(model, boundary.cut).output
    first = keras.Model(model.inputs[0], tensor, name=f"{model.name}_frozen")
    second = keras.Model(tensor, model.outputs[0], name=f"{model.name}_learning")
    return first, second


def set_trainable(model: keras.Model, boundary: Boundary) -> None:
    """Marks the layers of a network as learning or frozen, as a boundary says.

    Args:
        model: The network, perhaps with further layers behind it, which are left as they are.
        boundary: The boundary.
    """
    learning, frozen = set(boundary.learning), set(boundary.frozen)
    for layer in model.layers:
        if layer.name in learning:
            layer.trainable = True
        elif layer.name in frozen:
            layer.trainable = False


def groups(names: Sequence[str]) -> list[int]:
    """Returns the depth of each layer, counted in residual blocks from the output.

    Args:
        names: Names of layers, from input to output.

    Returns:
        One number a layer: 0 for the last block, stem or head, 1 for the one before it, and so on.

    Example:
        >>> groups(["conv1_conv", "conv2_block1_1_conv", "conv2_block1_1_bn", "predictions"])
        [2, 1, 1, 0]
    """
    found: dict[str, int] = {}
    order = [found.setdefault(_block(name), len(found)) for name in names]
    return [len(found) - 1 - number for number in order]


def _crossings(model: keras.Model, learning: set[str]) -> Iterator[tuple[str, int]]:
    """Yields each operation whose output all paths cross, with the number of layers with weights up to it.

    It ends before the first layer that learns. An operation that every path crosses splits all others into those before
    and those behind it. So in any order that runs, exactly its output is waited for once it is done.
    """
    above = parents(model)
    readers = Counter(parent for names in above.values() for parent in names)
    readers.update(tensor._keras_history.operation.name for tensor in model.outputs)
    weighted = {layer.name for layer in model.layers if layer.weights}
    waiting: dict[str, int] = {}
    count = 0
    for name, names in above.items():
        if name in learning:
            return
        for parent in names:
            waiting[parent] -= 1
            if not waiting[parent]:
                del waiting[parent]
        waiting[name] = readers[name]
        count += name in weighted
        if len(waiting) == 1:
            yield name, count


def _operation(model: keras.Model, name: str) -> Any:
    return next(operation for operation in model.operations if operation.name == name)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else ""


def _stages(names: Sequence[str]) -> dict[str, int]:
    """Returns the first layer of each stage; a stem starts with its padding, behind the input."""
    found: dict[str, int] = {}
    for position, name in enumerate(names):
        digits = name.removeprefix("conv").split("_")[0]
        if name.startswith("conv") and digits.isdigit():
            found.setdefault(f"{_STAGE}{digits}", position)
    return dict(sorted(found.items()))


def _block(name: str) -> str:
    parts = name.split("_")
    return "_".join(parts[:2]) if len(parts) > 1 and parts[1].startswith("block") else parts[0]
