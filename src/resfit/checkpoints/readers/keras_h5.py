"""Keras' legacy ``.h5`` format: layers by name, the weights of each in order.

A file is read as data alone. Nothing in it is followed out of it (external storage, links), nothing is
allocated that the file itself does not hold, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from resfit.checkpoints.readers import hdf5, keras_config
from resfit.checkpoints.readers.base import Tensors
from resfit.errors import CheckpointError
from resfit.files import atomic_path

# HDF5 keeps the attributes of a group in a header of at most 64 KiB; longer lists are cut into numbered
# pieces.
_HEADER_LIMIT = 64_512

# Compressed data may unpack to this many times the size of the file, and no more.
_MOST_EXPANSION = 100


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
    with told(path), hdf5.opened(path) as file:
        root = _child(file, "model_weights", h5py.Group) if "model_weights" in file else file
        return tuple(_layers(root, most_bytes(os.path.getsize(path))))


def recognises(path: Path) -> bool:
    """Whether a path is such a file, by its ending and its attributes.

    Args:
        path: The path.
    """
    return Path(path).suffix.lower() in (".h5", ".hdf5") and Path(path).is_file() and is_legacy(path)


def read(path: Path) -> Tensors:
    """Reads a weights file or a whole model, models inside it too.

    Args:
        path: The file.

    Returns:
        Arrays under ``"<model around it>/<name of the layer>/<variable>"``, such as
        ``"resnet50/conv2_block1_1_conv/kernel"``. Of a whole model, ``config`` has the layers' configurations by name
        under ``"keras_layers"``.

    Raises:
        CheckpointError: As :func:`read_layers`; or two weights have one name.
    """
    path = Path(path)
    arrays: dict[str, np.ndarray] = {}
    for layer in read_layers(path):
        for name, array in zip(layer.weight_names, layer.arrays, strict=True):
            parts = name.removesuffix(":0").split("/")
            inner = parts[-2] if len(parts) > 1 else layer.name
            target = "/".join([*([layer.name] if inner != layer.name else []), inner, parts[-1]])
            if target in arrays:
                raise CheckpointError(f"{path}: every weight must have a name of its own. Received: {target!r} twice.")
            arrays[target] = array
    with told(path), hdf5.opened(path) as file:
        stated = file.attrs.get("model_config")
        layers = keras_config.config_layers(json.loads(text(stated))) if stated is not None else {}
    return Tensors(path, arrays, {"keras_layers": layers} if layers else {})


@contextlib.contextmanager
def told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what goes wrong in a file of HDF5 into an error that names the file.

    Args:
        path: The file.

    Raises:
        CheckpointError: Anything went wrong.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {os.fspath(path)}.") from None
    except (
        *(OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError),
        *(IndexError, RecursionError),
    ) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: the file must be HDF5 as Keras writes it, and whole. Received: {error}."
        ) from error


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
        group = _child(root, name, h5py.Group)
        weight_names = tuple(_names(group, "weight_names"))
        arrays = []
        for weight_name in weight_names:
            array = read_array(group, weight_name, room)
            room -= array.nbytes
            arrays.append(array)
        if arrays:
            yield H5Layer(name, weight_names, tuple(arrays))


def most_bytes(size: int) -> int:
    """Returns how many bytes the weights of a file of so many bytes may take."""
    return _MOST_EXPANSION * size


def text(value: Any) -> str:
    """Returns an attribute as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def read_array(group: Any, name: str, room: int) -> np.ndarray:
    """Reads one array of floating-point numbers that lies in the file itself.

    Args:
        group: Where it stands.
        name: Its name there.
        room: How many bytes it may have.

    Raises:
        CheckpointError: It lies elsewhere, is of another kind, or is larger than the file holds.
    """
    dataset = _child(group, name, h5py.Dataset)
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"weights must lie in the file itself. Received: {name!r} in another file.")
    is_brain = text(dataset.attrs.get("dtype", "")) == "bfloat16" and dataset.dtype.itemsize == 2
    if not np.issubdtype(dataset.dtype, np.floating) and not is_brain:
        raise CheckpointError(f"weights must be floating-point numbers. Received: {name!r} of {dataset.dtype}.")
    if dataset.shape is None or len(dataset.shape) > 8:
        raise CheckpointError(f"weights must have at most 8 axes. Received: {name!r} of {dataset.shape}.")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None and dataset.id.get_storage_size() < size:
        raise CheckpointError(
            f"the file must hold all it declares. Received: {name!r} of {size} bytes, "
            f"{dataset.id.get_storage_size()} of them there."
        )
    if size > room or (size and not dataset.id.get_storage_size()):
        raise CheckpointError(f"the file must hold all it declares. Received: {name!r} of {size} bytes.")
    if is_brain:  # bfloat16, which numpy lacks: its bits are the upper half of a float32's
        raw = np.frombuffer(dataset[()].tobytes(), "<u2").astype(np.uint32) << np.uint32(16)
        return raw.view(np.float32).reshape(dataset.shape)
    return np.asarray(dataset[()])


def _child(parent: Any, path: str, kind: type) -> Any:
    """Walks to a group or dataset, link by link, over links inside the file only."""
    node = parent
    for part in path.split("/"):
        if part in ("", "."):
            continue
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise CheckpointError(f"the file must hold what it names. Received: no {path!r}.")
        if not isinstance(link, h5py.HardLink):
            raise CheckpointError(f"weights must lie in the file itself. Received: a link at {path!r}.")
        node = node[part]
    if not isinstance(node, kind) or node is parent:
        raise CheckpointError(f"{path!r} must be a {kind.__name__.lower()}. Received: {type(node).__name__}.")
    return node


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
