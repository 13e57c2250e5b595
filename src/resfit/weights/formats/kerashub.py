"""KerasHub's presets: a folder with the configuration of a ResNet or RetinaNet, its weights, and an image converter.

The configurations are read as data: no layer is made from them, and nothing in them is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.preprocessing import InputSpec
from resfit.weights.formats import hdf5, keras_weights, kerashub_retinanet
from resfit.weights.formats.base import Tensors, read_json, register_format
from resfit.weights.formats.keras_config import Layers

BACKBONE = "ResNetBackbone"
HEAD = "predictions"

_CONFIG = "config.json"
_WEIGHTS = ("model.weights.json", "model.weights.h5")
_TASK_WEIGHTS = "task.weights.h5"
_CONVERTERS = ("image_converter.json", "preprocessor.json")
_DIGITS = 9
_MOST_BLOCKS = 10_000


def recognises(path: Path) -> bool:
    """Whether a path is the folder of a preset of a ResNet or RetinaNet, or one of its files.

    Args:
        path: The path.
    """
    folder = _folder(Path(path))
    if folder is None:
        return False
    try:
        return read_json(folder / _CONFIG).get("class_name") in (BACKBONE, kerashub_retinanet.BACKBONE)
    except CheckpointError:
        return False


@register_format(
    "KerasHub",
    recognises=recognises,
    layouts=(("model.weights.json", r"(model|task).*\.weights\.h5"), ("model.weights.h5", r"task\.weights\.h5")),
    order=10,
)
def read(path: Path) -> Tensors:
    """Reads the weights of a preset, its classifier's where there is one, and its input contract.

    Args:
        path: The folder, or a file of weights in it.

    Returns:
        Arrays under ``"<name of the layer>/<variable>"``, such as ``"stack0_block0_1_conv/kernel"``; ``config`` has
        the backbone's configuration under ``"kerashub"``. Those of a RetinaNet come under torchvision's names, as the
        published presets are torchvision's weights.

    Raises:
        CheckpointError: A file is missing, damaged, or refers to something outside itself.
    """
    path = Path(path)
    folder = _folder(path)
    if folder is None:
        raise CheckpointError(f"{path}: a preset must hold {_CONFIG} and {' or '.join(_WEIGHTS)}. Received: none.")
    with hdf5.told(folder):
        about = read_json(folder / _CONFIG)
        detector = about.get("class_name") == kerashub_retinanet.BACKBONE
        if not (detector or about.get("class_name") == BACKBONE) or not isinstance(about.get("config"), dict):
            raise CheckpointError(f"a preset must be that of a {BACKBONE}. Received: {about.get('class_name')!r}.")
        weights = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
        if detector:
            return _retinanet(folder, weights, about["config"])
        sharded = weights.name.endswith(keras_weights.SHARDS_ENDING)
        if sharded:
            arrays, other = keras_weights.read_shards(weights, _groups(about["config"]))
        else:
            arrays, other = keras_weights.read_file(weights)
        arrays = {_bare(name): array for name, array in arrays.items()}
        if (folder / _TASK_WEIGHTS).is_file():
            head, rest = keras_weights.read_file(folder / _TASK_WEIGHTS)
            arrays |= _head(head)
            other += rest
    return Tensors(folder, arrays, {"kerashub": about["config"]}, _stated(folder), graph=Layers(other))


def _stated(folder: Path) -> InputSpec | None:
    """The input contract that a preset states."""
    for name in _CONVERTERS:
        if (folder / name).is_file():
            return _contract(read_json(folder / name))
    return None


def _retinanet(folder: Path, weights: Path, config: Mapping[str, Any]) -> Tensors:
    """The preset of a RetinaNet, under torchvision's names."""
    if weights.name.endswith(keras_weights.SHARDS_ENDING):
        raise CheckpointError("the preset of a RetinaNet must be in one file of weights. Received: shards.")
    task = folder / _TASK_WEIGHTS
    head = keras_weights.read_file(task)[0] if task.is_file() else {}
    arrays = kerashub_retinanet.torch_names(keras_weights.read_file(weights)[0], head, config)
    contract = _stated(folder)
    if contract is not None:  # nothing of a picture is cut off
        contract = dataclasses.replace(contract, resize_mode="letterbox")
    return Tensors(folder, arrays, {}, contract, left_out=(_DIFFERENCES,))


_DIFFERENCES = (
    "the weights run as torchvision's do, whose weights KerasHub's presets are: group norms with an epsilon of 1e-5, "
    "not 1e-3, and extra levels padded on both sides, not behind (norm_epsilon= changes the former)"
)


def _folder(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    beside = path.is_dir() or path.name in _WEIGHTS
    whole = (folder / _CONFIG).is_file() and any((folder / name).is_file() for name in _WEIGHTS)
    return folder if beside and whole else None


def _groups(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the layer that stands in each group of a file: they are counted by kind in the order of the network.

    (``keras_hub/src/models/resnet/resnet_backbone.py`` of KerasHub 0.32. At the end of a block that changes its width,
    the shortcut comes before the last convolution.)
    """
    stem, blocks, kind = (config.get(key) for key in ("input_conv_filters", "stackwise_num_blocks", "block_type"))
    if not (isinstance(stem, list) and isinstance(blocks, list) and isinstance(kind, str)):
        raise CheckpointError(f"a preset's configuration must have stem, blocks and their kind. Received: {config}.")
    if not all(type(count) is int and count > 0 for count in blocks) or sum(blocks) + len(stem) > _MOST_BLOCKS:
        raise CheckpointError(f"a preset's network must have 1 to {_MOST_BLOCKS} blocks. Received: {blocks}.")
    before = bool(config.get("use_pre_activation"))
    last = 2 if kind.startswith("basic") else 3
    convs = [f"conv{number + 1}_conv" for number in range(len(stem))]
    norms = [f"conv{number + 1}_bn" for number in range(len(stem) - before)]
    for stack, count in enumerate(blocks):
        for number in range(count):
            block = f"stack{stack}_block{number}"
            widens = number == 0 and (kind != "basic_block" or stack > 0)
            path = [*range(1, last), *([0] if widens else []), last]
            convs += [f"{block}_{step}_conv" for step in path]
            if before:
                norms.append(f"{block}_pre_activation_bn")
                path = [step for step in path if step not in (0, last)]
            norms += [f"{block}_{step}_bn" for step in path]
    norms += ["post_bn"] if before else []
    return {
        f"{group}_{place}" if place else group: name
        for group, names in (("conv2d", convs), ("batch_normalization", norms))
        for place, name in enumerate(names)
    }


def _bare(name: str) -> str:
    """A backbone of its own has no model around it; one inside a task's file has."""
    return "/".join(name.split("/")[-2:])


def _head(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what a task adds to the backbone, whose weights its file may hold too."""
    return {_bare(name): array for name, array in arrays.items() if name.split("/")[-2] == HEAD or name.count("/") == 1}


def _contract(about: Mapping[str, Any]) -> InputSpec | None:
    """Reads how images are prepared: resized, and scaled and shifted channel by channel."""
    config: Any = about.get("config")
    if isinstance(config, dict) and isinstance(config.get("image_converter"), dict):
        config = config["image_converter"].get("config")
    if not isinstance(config, dict) or not config.get("image_size"):
        return None
    size = tuple(config["image_size"])
    scale, offset = (np.atleast_1d(np.asarray(config.get(key) or usual, "float64")) for key, usual in _SCALING)
    if len(size) != 2 or scale.ndim != 1 or offset.ndim != 1 or not np.all(scale > 0):
        raise CheckpointError(f"an image converter must scale channel by channel. Received: {config}.")
    channels = max(scale.size, offset.size, 3)
    scale, offset = np.broadcast_to(scale, channels), np.broadcast_to(offset, channels)
    try:
        return InputSpec(
            size=(int(size[0]), int(size[1])),
            channels=channels,
            scale=1 / 255,
            mean=tuple(round(float(value), _DIGITS) for value in -offset / scale / 255),
            std=tuple(round(float(value), _DIGITS) for value in 1 / (255 * scale)),
            interpolation=config.get("interpolation", "bilinear"),
            resize_mode="shorter" if config.get("crop_to_aspect_ratio", True) else "squash",
            crop_fraction=1.0,
        )
    except ArgumentError as error:
        raise CheckpointError(f"the image converter must be one that is known here. Received: {error}") from error


_SCALING = (("scale", 1.0), ("offset", 0.0))
