"""Keras 3's ``.weights.h5``: a tree of layers, each with its variables by number.

The names of the layers stand beside the variables, but for the files of the first versions. A file is read as data
alone, under the rules of :mod:`resfit.weights.formats.hdf5`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import hdf5, keras_h5
from resfit.weights.formats.base import Tensors, read_json, register_format
from resfit.weights.formats.keras_config import Layers

ENDING = ".weights.h5"
SHARDS_ENDING = ".weights.json"

_VARIABLES = "vars"
_CONTAINER = "layers"
_MOST_DEPTH = 40
_MOST_GROUPS = 100_000
_MOST_SHARDS = 1000
# What is no weight of a layer: who keeps it, and what it is called.
_STATE = re.compile(r"(?:^|/)(?:optimizer|seed_generator(?:_\d+)?|_?metrics?\w*)(?:/|$)")
# The variables of a layer in the order in which it makes them, by its class in snake case.
_LEAVES: dict[str, tuple[str, ...]] = {
    "conv2d": ("kernel", "bias"),
    "conv1d": ("kernel", "bias"),
    "standardized_conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("depthwise_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "group_normalization": ("gamma", "beta"),
    "evo_norm_s0": ("gamma", "beta", "v"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def recognises(path: Path) -> bool:
    """Whether a path is such a file, by its ending and its attributes; or a list of shards.

    Args:
        path: The path.
    """
    path = Path(path)
    if path.name.endswith(SHARDS_ENDING):
        return path.is_file()
    return path.name.endswith(ENDING) and path.is_file() and not keras_h5.is_legacy(path)


@register_format(
    "Keras 3's weights",
    suffixes=(ENDING, SHARDS_ENDING),
    recognises=recognises,
    order=21,
    runner="keras",
    written=(ENDING,),
)
def read(path: Path) -> Tensors:
    """Reads the variables of a file, or of all shards of a ``.weights.json``.

    Args:
        path: The file.

    Returns:
        Arrays under ``"<models around it>/<name of the layer>/<variable>"``, such as
        ``"functional/conv2_block1_1_conv/kernel"``. ``graph`` is a :class:`resfit.weights.formats.keras_config.Layers`.

    Raises:
        CheckpointError: The file is missing, damaged, refers to something outside itself, or does not name its layers.
    """
    path = Path(path)
    with hdf5.told(path):
        arrays, other = read_shards(path) if path.name.endswith(SHARDS_ENDING) else read_file(path)
        return Tensors(path, arrays, graph=Layers(other))


def read_groups(
    path: Path, offset: int | None, size: int | None, places: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Reads one file whose layers a configuration names.

    Args:
        path: The file, or one that it is a part of.
        offset: Where it begins, if it is a part.
        size: Its bytes, if it is a part.
        places: For each group the names of the models around its layer and its own.

    Returns:
        As :func:`read_file`, and the names of the arrays of each group, in the layer's own order.

    Raises:
        CheckpointError: As :func:`read_file`; or the file names a layer otherwise than the configuration.
    """
    groups: dict[str, tuple[str, ...]] = {}
    arrays, other = read_file(path, offset, size, {key: place[-1] for key, place in places.items()}, groups)
    return arrays, other, groups


def read_unnamed(path: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """Reads the variables of a file by group (``"layers/conv2d_7"``), whatever the layers are called.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, damaged, or refers to something outside itself.
    """
    groups: dict[str, tuple[str, ...]] = {}
    with hdf5.told(path):
        arrays, _ = read_file(path, names=_Anything(), groups=groups)
    return {place: tuple(arrays[name] for name in names) for place, names in groups.items()}


class _Anything(dict[str, str]):
    """Names every layer by its place."""

    def get(self, key: str, default: Any = None) -> Any:
        return key


def read_file(
    path: Path,
    offset: int | None = None,
    size: int | None = None,
    names: Mapping[str, str] | None = None,
    groups: dict[str, tuple[str, ...]] | None = None,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads one file.

    Args:
        path: The file, or one that it is a part of.
        offset: Where it begins, if it is a part.
        size: Its bytes, if it is a part.
        names: Names of layers by group, such as ``{"conv2d_1": "conv2_conv"}`` or
            ``{"layers/conv2d_1": "conv2_conv"}``, for files that do not have them.
        groups: To which the names of the arrays of every group are added.

    Returns:
        Its arrays by name, and what was not read.

    Raises:
        CheckpointError: It refers to something outside itself, declares more than it holds, or names no layers.
        OSError: It is no HDF5. (Other errors of h5py too; see :func:`resfit.weights.formats.hdf5.told`.)
    """
    room = hdf5.most_bytes(os.path.getsize(path) if size is None else size)
    arrays: dict[str, np.ndarray] = {}
    other: list[str] = []
    with hdf5.opened(path, offset, size) as file:
        for place, group in _groups(file):
            present = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
            if len(present) != len(group):
                raise CheckpointError(f"weights must lie in the file itself. Received: a link in {place!r}.")
            if not present:
                continue
            if _STATE.search(place):
                other.append(place)
                continue
            for number, name in enumerate(sorted(present, key=_number)):
                array = hdf5.read_array(group, name, room)
                room -= array.nbytes
                target = _target(place, group, number, len(present), name, {} if names is None else names)
                if target in arrays:
                    raise CheckpointError(f"every layer must have a name of its own. Received: {target!r} twice.")
                arrays[target] = array
                if groups is not None:
                    groups[place] = (*groups.get(place, ()), target)
    if not arrays:
        raise CheckpointError("the file must hold weights of layers. Received: none.")
    return arrays, tuple(other)


def read_shards(path: Path, names: Mapping[str, str] | None = None) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads all files that a list of shards names; they lie beside it.

    Args:
        path: A ``.weights.json``.
        names: As :func:`read_file` takes them: Keras leaves the names of layers out of shards.
    """
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError("the list of shards must have a mapping 'weight_map'. Received: none.")
    files = sorted(
        {name for value in table.values() for name in (value if isinstance(value, list) else [value])}, key=str
    )
    if len(files) > _MOST_SHARDS:
        raise CheckpointError(f"there must be at most {_MOST_SHARDS} shards. Received: {len(files)}.")
    arrays: dict[str, np.ndarray] = {}
    other: list[str] = []
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(ENDING):
            raise CheckpointError(f"a shard must be a file of the same folder. Received: {name!r}.")
        found, rest = read_file(path.with_name(name), names=names)
        if twice := sorted(arrays.keys() & found.keys()):
            raise CheckpointError(f"every layer must stand in one shard. Received: {twice[:3]} in two.")
        arrays |= found
        other += rest
    return arrays, tuple(other)


def _groups(file: Any) -> Iterator[tuple[str, Any]]:
    """Yields every group ``vars`` with the place it stands at, over links inside the file only."""
    waiting, seen = [("", file, 0)], 0
    while waiting:
        place, group, depth = waiting.pop()
        seen += 1
        if depth > _MOST_DEPTH or seen > _MOST_GROUPS:
            raise CheckpointError(f"a file must have at most {_MOST_GROUPS} groups. Received: more, or a cycle.")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"weights must lie in the file itself. Received: a link at {place}/{name}.")
            child = group[name]
            if not isinstance(child, h5py.Group):
                raise CheckpointError(f"a group must hold groups. Received: {place}/{name}, which is none.")
            if name == _VARIABLES:
                yield place, child
            else:
                waiting.append((f"{place}/{name}" if place else name, child, depth + 1))


def _target(place: str, group: Any, number: int, count: int, name: str, names: Mapping[str, str]) -> str:
    """Returns the name of a variable: the models around its layer, the layer's own name, the variable's."""
    parts = [part for part in place.split("/") if part != _CONTAINER]
    kind = re.sub(r"_\d+$", "", parts[-1]) if parts else ""
    known = names.get(place) or (names.get(parts[-1]) if parts else None)
    stated = known if isinstance(names, _Anything) else group.attrs.get("name", known)
    if place in names and stated is not None and hdf5.text(stated) != names[place]:
        raise CheckpointError(
            "configuration and weights must be those of one model. Received: a layer that the configuration calls "
            f"{names[place]!r}, and the weights {hdf5.text(stated)!r}."
        )
    if stated is None:
        raise CheckpointError(
            "the file must name its layers, as Keras does but for its first versions. Received: none. Name the "
            'network, as in load("resnet50", weights="the file").'
        )
    leaves = _LEAVES.get(kind, ())
    fits = count == len(leaves) or (len(leaves) == 2 and count == 1)
    return "/".join([*parts[:-1], hdf5.text(stated), leaves[number] if fits else name])


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if re.fullmatch(r"\d{1,6}", name) else (1 << 30, name)
