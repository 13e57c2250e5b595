"""What Keras writes of a model's layers, read as data: nothing in it is made or called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MOST_LAYERS = 100_000
_MOST_DEPTH = 40

#: The names of models and layers from the outermost model's layer to the layer itself.
Place = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A whole model: its graph, and which arrays belong to which layer. The ``graph`` of the tensors.

    Attributes:
        config: The configuration of the outermost model, ``{"class_name": …, "config": …}``.
        variables: For each layer the names of its arrays, in the layer's own order.
        version: Of Keras, 2 or 3.
        other: Paths of what is no weight of a layer, and was not read.
        own: Whether resfit wrote the file and says beside it what network it is.
    """

    config: Mapping[str, Any]
    variables: Mapping[Place, tuple[str, ...]]
    version: int
    other: tuple[str, ...] = ()
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Layers:
    """Weights of layers, without what connects them. The ``graph`` of the tensors.

    Attributes:
        other: Paths of what is no weight of a layer, and was not read: optimisers, random generators, counters.
    """

    other: tuple[str, ...] = ()


def config_layers(config: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the configuration of every layer of a Keras model by the layer's name, those of models inside it too.

    Args:
        config: What Keras writes as ``config.json`` or into a whole ``.h5`` file.

    Returns:
        For each layer ``{"class": its class's name, **its configuration}``.
    """
    found: dict[str, Mapping[str, Any]] = {}
    waiting = [config]
    while waiting and len(found) < _MOST_LAYERS:
        item = waiting.pop()
        if not isinstance(item, dict):
            continue
        inner = item.get("config")
        if not isinstance(inner, dict):
            continue
        layers = inner.get("layers")
        if isinstance(layers, list):
            waiting += layers
        else:
            waiting += [value for value in inner.values() if isinstance(value, dict) and "class_name" in value]
        if isinstance(inner.get("name"), str):
            found[inner["name"]] = {"class": item.get("class_name"), **inner}
    return found


def layers_of(config: Any) -> list[Mapping[str, Any]] | None:
    """Returns the entries of a model's layers, or None where a configuration is that of no model.

    Args:
        config: One entry, ``{"class_name": …, "config": …}``.
    """
    inner = config.get("config") if isinstance(config, Mapping) else None
    layers = inner if isinstance(inner, list) else inner.get("layers") if isinstance(inner, Mapping) else None
    if not isinstance(layers, list):
        return None
    return [layer for layer in layers if isinstance(layer, Mapping)]


def name_of(entry: Mapping[str, Any]) -> str:
    """Returns what an entry calls its layer, ``""`` where it does not.

    Args:
        entry: The entry.
    """
    inner = entry.get("config")
    name = inner.get("name") if isinstance(inner, Mapping) else None
    name = name if name is not None else entry.get("name")
    return name if isinstance(name, str) else ""


def places(config: Any) -> dict[str, Place]:
    """Returns where the variables of each layer stand in Keras' ``.weights.h5``: layers are counted by their class.

    Args:
        config: As :func:`config_layers` takes it.

    Returns:
        For each group (``"layers/conv2d_7"``) the layer that it belongs to.
    """
    found: dict[str, Place] = {}
    waiting: list[tuple[str, Place, Any, int]] = [("", (), config, 0)]
    while waiting and len(found) < _MOST_LAYERS:
        where, place, item, depth = waiting.pop()
        counts: dict[str, int] = {}
        for layer in (layers_of(item) or ()) if depth < _MOST_DEPTH else ():
            if ".ops." in str(layer.get("module")):
                continue
            key = _snake_case(str(layer.get("class_name", "")).rpartition(">")[2])
            counts[key] = counts.get(key, -1) + 1
            group = f"{where}layers/{key}{f'_{counts[key]}' if counts[key] else ''}"
            own = (*place, name_of(layer))
            found[group] = own
            waiting.append((f"{group}/", own, layer, depth + 1))
    return found


def _snake_case(name: str) -> str:
    """Keras' ``to_snake_case``."""
    name = re.sub(r"\W+", "", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def inner_layers(config: Any) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yields every layer of a model with its place, those of models inside it too.

    Args:
        config: As :func:`config_layers` takes it.
    """
    waiting: list[tuple[Place, Any]] = [((), config)]
    count = 0
    while waiting:
        place, item = waiting.pop()
        for layer in reversed(layers_of(item) or ()) if len(place) < _MOST_DEPTH else ():
            count += 1
            if count > _MOST_LAYERS:
                return
            own = (*place, name_of(layer))
            yield own, layer
            waiting.append((own, layer))
