"""Keras' legacy ``.h5`` format: layers by name, the weights of each in order.

A file is read as data alone. Nothing in it is followed out of it (external storage, links), nothing is
allocated that the file itself does not hold, and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from resfit.errors import CheckpointError
from resfit.storage.atomic import atomic_path
from resfit.weights.formats import hdf5, keras_config
from resfit.weights.formats.base import Tensors, register_format

_SUFFIXES = (".h5", ".hdf5")
# HDF5 keeps the attributes of a group in a header of at most 64 KiB; longer lists are cut into numbered
# pieces.
_HEADER_LIMIT = 64_512


@dataclasses.dataclass(frozen=True)
class H5Layer:
    """The weights of one layer.

    Attributes:
        name: The layer's name.
        weight_names: What the file calls its weights, such as ``"conv1_conv/kernel:0"``.
        arrays: The weights, in the same order.
    """

    name: str
    weight_names: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]


def read_layers(path: str | os.PathLike[str]) -> tuple[H5Layer, ...]:
    """Reads a weights file, or the weights of a whole model that was saved as ``.h5``.

    Args:
        path: The file.

    Returns:
        The layers that have weights, in the order of the file, which is the topological order of the network.

    Raises:
        CheckpointError: The file is missing, damaged, not of this format, or refers to something outside
            itself.
    """
    with hdf5.told(path), hdf5.opened(path) as file:
        return _all_layers(file, os.path.getsize(path))


def recognises(path: Path) -> bool:
    """Whether a path is such a file, by its ending and its attributes.

    Args:
        path: The path.
    """
    return Path(path).suffix.lower() in _SUFFIXES and Path(path).is_file() and is_legacy(path)


@register_format(
    "Keras' legacy HDF5", suffixes=_SUFFIXES, recognises=recognises, order=22, runner="keras", written=(".h5",)
)
def read(path: Path) -> Tensors:
    """Reads a weights file or a whole model, models inside it too.

    Args:
        path: The file.

    Returns:
        Arrays under ``"<model around it>/<name of the layer>/<variable>"``, such as
        ``"resnet50/conv2_block1_1_conv/kernel"``. Of a whole model, ``config`` has the layers' configurations by name
        under ``"keras_layers"``, and ``graph`` is a :class:`resfit.weights.formats.keras_config.SavedModel`.

    Raises:
        CheckpointError: As :func:`read_layers`; or two weights have one name.
    """
    path = Path(path)
    arrays: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    held: dict[str, dict[str, tuple[str, ...]]] = {}
    graph, count = None, 0
    with hdf5.told(path), hdf5.opened(path) as file:
        for layer in _all_layers(file, path.stat().st_size):
            for name, array in zip(layer.weight_names, layer.arrays, strict=True):
                parts = name.removesuffix(":0").split("/")
                inner = parts[-2] if len(parts) > 1 else layer.name
                target = "/".join([*([layer.name] if inner != layer.name else []), inner, parts[-1]])
                count += 1
                arrays[target] = whole["/".join(parts)] = array
                inside = held.setdefault(layer.name, {})
                inside[inner] = (*inside.get(inner, ()), target)
        has_own_names = len(arrays) == count
        if not has_own_names and count <= len(whole):  # a subclassed model: names are unique with their scopes
            arrays = whole
        elif not has_own_names:
            raise CheckpointError(f"{path}: every weight must have a name of its own. Received: one twice.")
        stated = file.attrs.get("model_config")
        config = None if stated is None else json.loads(hdf5.text(stated))
        layers = keras_config.config_layers(config)
        if config is not None and has_own_names and keras_config.layers_of(config) is not None:
            version = 2 if hdf5.text(file.attrs.get("keras_version", "2.")).startswith(("1.", "2.")) else 3
            graph = keras_config.SavedModel(config, _variables(config, held), version)
    return Tensors(path, arrays, {"keras_layers": layers} if layers else {}, graph=graph or keras_config.Layers())


def _variables(
    config: Any, held: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> dict[keras_config.Place, tuple[str, ...]]:
    """Finds the arrays of each layer: those of a model inside stand under its name, by the names of its layers."""
    found: dict[keras_config.Place, tuple[str, ...]] = {}
    taken: set[tuple[str, str]] = set()
    for place, entry in keras_config.inner_layers(config):
        inside = held.get(place[0])
        if inside is None or keras_config.layers_of(entry) is not None:
            continue
        if len(place) == 1:
            found[place] = tuple(name for names in inside.values() for name in names)
        elif place[-1] in inside:
            if (place[0], place[-1]) in taken:
                raise CheckpointError(
                    f"layers of models inside a model must have names of their own. Received: {place[-1]!r} twice in "
                    f"{place[0]!r}."
                )
            taken.add((place[0], place[-1]))
            found[place] = inside[place[-1]]
    return found


def is_legacy(path: str | os.PathLike[str]) -> bool:
    """Whether a file is of this format, rather than Keras 3's ``.weights.h5`` (or none at all).

    Args:
        path: The file; it need not be HDF5.
    """
    try:
        with hdf5.opened(path) as file:
            return "model_weights" in file or any(key.startswith("layer_names") for key in file.attrs)
    except (OSError, RuntimeError, CheckpointError):
        return False


def write_layers(path: str | os.PathLike[str], layers: Iterable[H5Layer]) -> None:
    """Writes a weights file that ``keras.Model.load_weights`` reads, in order or by name.

    Args:
        path: The file; replaced whole.
        layers: The layers, in topological order. Layers without weights may be among them.
    """
    written = list(layers)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _write_names(file, "layer_names", [layer.name for layer in written])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"3"
        # sorted, so that no group is made inside one whose name is the beginning of its own
        for layer in sorted(written, key=lambda layer: layer.name):
            group = file.create_group(layer.name)
            _write_names(group, "weight_names", layer.weight_names)
            for name, array in zip(layer.weight_names, layer.arrays, strict=True):
                group.create_dataset(name, data=array)


def grouped_kernel(depthwise: np.ndarray, groups: int) -> np.ndarray:
    """Returns the grouped kernel that equals the depthwise one of keras.applications' published ResNeXt.

    There a grouped convolution is written as a depthwise one with a multiplier, whose outputs are then summed
    over the input channels of each group.

    Args:
        depthwise: Shape ``(k, k, channels, channels / groups)``.
        groups: Number of groups.

    Returns:
        Shape ``(k, k, channels / groups, channels)``.

    Raises:
        CheckpointError: The shape does not fit the number of groups.
    """
    height, width, channels, multiplier = depthwise.shape
    if channels != groups * multiplier:
        raise CheckpointError(
            f"a depthwise kernel of {groups} groups must have {channels // groups} outputs for each input. "
            f"Received: shape {depthwise.shape}."
        )
    by_group = depthwise.reshape(height, width, groups, multiplier, multiplier)
    return np.ascontiguousarray(by_group.transpose(0, 1, 3, 2, 4)).reshape(height, width, multiplier, channels)


def _all_layers(file: Any, size: int) -> tuple[H5Layer, ...]:
    root = hdf5.child(file, "model_weights", h5py.Group) if "model_weights" in file else file
    return tuple(_layers(root, hdf5.most_bytes(size)))


def _layers(root: Any, limit: int) -> Iterator[H5Layer]:
    names = _names(root, "layer_names")
    if not names:
        raise CheckpointError(
            "the file must name its layers in an attribute 'layer_names', as Keras' legacy format does. "
            f"Received: groups {sorted(root)[:5]}."
        )
    if len(set(names)) != len(names):
        raise CheckpointError("every layer must stand in 'layer_names' once. Received: a name twice.")
    room = limit
    for name in names:
        group = hdf5.child(root, name, h5py.Group)
        weight_names = tuple(_names(group, "weight_names"))
        arrays = []
        for weight_name in weight_names:
            array = hdf5.read_array(group, weight_name, room)
            room -= array.nbytes
            arrays.append(array)
        if arrays:
            yield H5Layer(name, weight_names, tuple(arrays))


def _names(group: Any, attribute: str) -> list[str]:
    if attribute in group.attrs:
        pieces = [group.attrs[attribute]]
    else:
        pieces = []
        while f"{attribute}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{attribute}{len(pieces)}"])
    return [item.decode() if isinstance(item, bytes) else str(item) for piece in pieces for item in piece]


def _write_names(group: Any, attribute: str, names: Iterable[str]) -> None:
    encoded = np.asarray([name.encode() for name in names], dtype="S")
    pieces = -(-encoded.nbytes // _HEADER_LIMIT) or 1
    if pieces == 1:
        group.attrs[attribute] = encoded
        return
    for number, piece in enumerate(np.array_split(encoded, pieces + 1)):
        group.attrs[f"{attribute}{number}"] = piece
