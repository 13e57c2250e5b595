"""What Keras writes of a model's layers, read as data: nothing in it is made or called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST_LAYERS = 100_000


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
