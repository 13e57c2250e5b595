"""What PyTorch's world publishes: pickled checkpoints, ``.safetensors``, sharded ones, and folders with a config.

Pickles are read as data, without torch (:mod:`resfit.weights.formats.torch_pickle`). Arrays keep the names of the
source; nested containers are joined by dots.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.detection import kinds
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.weights.formats import safetensors as safetensors_reader
from resfit.weights.formats import torch_pickle
from resfit.weights.formats.base import Tensors, read_json, register_format

_TENSORS = ".safetensors"
_SHARDS = ".index.json"
_PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".pdparams")
_SUFFIXES = (*_PICKLES, _TENSORS)

_TENSOR_LAYOUTS = (("model.safetensors.index.json", r"model.*\.safetensors"), ("model.safetensors", ""))
_PICKLE_LAYOUTS = (("pytorch_model.bin.index.json", r"pytorch_model.*\.bin"), ("pytorch_model.bin", ""))
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")


def _ends_in(*suffixes: str) -> Callable[[Path], bool]:
    """Whether a path is a file with one of these endings, or a folder with such a file; the content is not checked."""

    def recognises(path: Path) -> bool:
        files = path.iterdir() if path.is_dir() else (path,)
        return any(file.name.lower().endswith(suffixes) for file in files)

    return recognises


@register_format(
    "safetensors",
    suffixes=(_TENSORS, _SHARDS),
    recognises=_ends_in(_TENSORS, _SHARDS),
    layouts=_TENSOR_LAYOUTS,
    order=5,
    written=(_TENSORS,),
)
@register_format(
    "torch",
    suffixes=_PICKLES,
    recognises=_ends_in(*_PICKLES),
    layouts=_PICKLE_LAYOUTS,
    avoided=True,
    written=(".pth", ".pt"),
)
def read(path: Path) -> Tensors:
    """Reads a checkpoint.

    Args:
        path: A ``.pth``, ``.pt``, ``.th``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, an ``.index.json`` of
            shards, or a folder that holds one of them, and perhaps ``config.json`` and
            ``preprocessor_config.json``.

    Raises:
        CheckpointError: It is missing, damaged, of another format, or asks for more than tensors.
    """
    path = Path(path)
    if not path.is_dir():
        arrays, left_out = _read_file(path)
        return _with_metadata(Tensors(path, arrays, left_out=left_out))
    config, preprocessor = (
        read_json(path / name) if (path / name).is_file() else {}
        for name in ("config.json", "preprocessor_config.json")
    )
    try:
        contract, names = input_contract(config, preprocessor), class_names(config)
    except (ArgumentError, TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: the input contract of config.json or preprocessor_config.json must be as timm or transformers "
            f"write it. Received: {error}."
        ) from error
    arrays, left_out = _read_file(_weights_in(path))
    return Tensors(path, arrays, config, contract, names, left_out=left_out)


def input_contract(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> InputSpec | None:
    """Returns the input contract that timm's or transformers' configuration states, or None if neither does.

    Args:
        config: ``config.json``; timm's holds ``pretrained_cfg``.
        preprocessor: ``preprocessor_config.json`` of transformers.

    Raises:
        ArgumentError: A value is outside its range. Others raise the usual errors of values of wrong types.
    """
    if preprocessor:
        return _transformers_contract(preprocessor)
    stated = config.get("pretrained_cfg") or {}
    if "mean" not in stated:
        return None
    channels, height, width = stated.get("input_size", (len(stated["mean"]), 224, 224))
    interpolation = stated.get("interpolation", "bilinear")
    squash = stated.get("crop_mode", "center") == "squash"
    spec = InputSpec(
        size=(int(height), int(width)),
        channels=len(stated["mean"]),
        scale=1 / 255,
        mean=tuple(map(float, stated["mean"])),
        std=tuple(map(float, stated["std"])),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bilinear",
        resize_mode="squash" if squash else "shorter",
        crop_fraction=float(stated.get("crop_pct") or 0.875),
    )
    return spec.with_channels(int(channels))


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the labels that a configuration states, or None; ``LABEL_0`` and the like are none.

    Args:
        config: ``config.json`` of transformers (``id2label``) or timm (``label_names``, ``label_descriptions``).
    """
    stated = config.get("id2label")
    if isinstance(stated, Mapping) and stated:
        ordered = tuple(str(stated[key]) for key in sorted(stated, key=int))
        return None if all(name == f"LABEL_{number}" for number, name in enumerate(ordered)) else ordered
    names = config.get("label_names")
    if not isinstance(names, list) or not names:
        return None
    described = config.get("label_descriptions")
    if isinstance(described, Mapping):
        return tuple(str(described.get(name, name)) for name in names)
    if isinstance(described, list) and len(described) == len(names):
        return tuple(map(str, described))
    return tuple(map(str, names))


def _transformers_contract(stated: Mapping[str, Any]) -> InputSpec:
    normalizes = stated.get("do_normalize", True)
    mean = tuple(map(float, stated["image_mean"])) if normalizes else (0.0,) * 3
    std = tuple(map(float, stated["image_std"])) if normalizes else (1.0,) * 3
    scale = float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0
    # a factor that was written as 1/255 in decimals stays exactly that
    scale = 1 / 255 if math.isclose(scale, 1 / 255, rel_tol=1e-6) else scale
    size = stated.get("size", 224)
    if stated.get("max_size") and not isinstance(size, Mapping):  # how processors of 2021 write it
        size = {"shortest_edge": size, "longest_edge": stated["max_size"]}
    kind = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    fraction, mode = 1.0, "squash"
    if isinstance(size, Mapping) and shortest is None:
        target = (int(size["height"]), int(size["width"]))
    else:
        side = int(shortest if shortest is not None else size)
        target = (side, side)
        if kind.startswith("ConvNext"):
            if side < 384:  # larger images are squeezed to the square whole
                fraction, mode = float(stated.get("crop_pct") or 224 / 256), "shorter"
        elif shortest is not None:
            longest = size.get("longest_edge") if isinstance(size, Mapping) else None
            # as large as fits, with the image's own proportions (DETR)
            mode, target = ("fit", (side, int(longest))) if longest else ("shorter", target)
    if stated.get("do_center_crop"):
        crop = stated.get("crop_size", target[0])
        cropped = (int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else (int(crop), int(crop))
        if mode == "shorter" or cropped[0] < target[0]:
            fraction, mode = min(cropped[0] / target[0], 1.0), "shorter"
        target = cropped
    return InputSpec(
        size=target,
        channels=len(mean),
        scale=scale,
        mean=mean,
        std=std,
        interpolation=_RESAMPLE.get(stated.get("resample", 2), "bilinear"),  # type: ignore[arg-type]
        resize_mode=mode if stated.get("do_resize", True) else "none",  # type: ignore[arg-type]
        crop_fraction=fraction,
    )


def _with_metadata(read: Tensors) -> Tensors:
    """Adds what resfit writes beside the tensors of a ``.safetensors`` file under the names of PyTorch's world."""
    if read.path.suffix.lower() != _TENSORS:
        return read
    text = safetensors_reader.read_metadata(read.path).get("resfit")
    if text is None:
        return read
    about = safetensors_reader.metadata_value(text)
    try:
        contract, names = about["input_spec"], about["class_names"]
        return dataclasses.replace(
            read,
            config={
                "resfit": (kinds if "backbone" in about["spec"] else ArchitectureSpec).from_dict(about["spec"]),
            },
            input_spec=InputSpec.from_dict(contract) if contract else None,
            class_names=tuple(map(str, names)) if names else None,
        )
    except (ArgumentError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{read.path}: the metadata must be what resfit writes. Received: {error}.") from error


def _weights_in(folder: Path) -> Path:
    for name, _ in (*_TENSOR_LAYOUTS, *_PICKLE_LAYOUTS):
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    preferred = [file for file in found if file.suffix.lower() == _TENSORS] or found
    if len(preferred) != 1:
        received = ", ".join(file.name for file in preferred[:5]) or "none"
        raise CheckpointError(
            f"{folder}: a folder must hold one file of weights ({', '.join(_SUFFIXES)}). Received: {received}. "
            "Pass the path of the file itself."
        )
    return preferred[0]


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the arrays of a file, or of the shards that it lists, and what was left out, one sentence each."""
    if not path.is_file():
        raise CheckpointError(f"weights file must exist. Received: {path}.")
    if path.name.endswith(_SHARDS):
        return _read_shards(path)
    suffix = path.suffix.lower()
    if suffix == _TENSORS:
        return _read_safetensors(path), ()
    if suffix in _PICKLES:
        read = read_pickle(path)
        return dict(read.arrays), read.left_out
    raise CheckpointError(f"weights must be a file of {', '.join(_SUFFIXES)}. Received: {path}.")


def read_pickle(path: Path) -> Tensors:
    """Reads a file of ``torch.save`` or a plain pickle, whatever its ending.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is missing or damaged, asks for more than data, or holds no arrays.
    """
    arrays, unread = torch_pickle.read(path)
    return Tensors(path, arrays, left_out=unread_objects(unread))


def unread_objects(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the sentence on objects of a pickle that were not made, if there are any.

    Args:
        names: Their classes.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"left out objects of other programs, which are never made: {', '.join(names[:3])}{more}",) if names else ()


def _read_shards(index: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: the index must hold a mapping 'weight_map'. Received: none.")
    arrays: dict[str, np.ndarray] = {}
    left_out: dict[str, None] = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(_SUFFIXES):
            raise CheckpointError(f"{index}: a shard must be a file of the same folder. Received: {shard!r}.")
        read, sentences = _read_file(index.parent / shard)
        left_out |= dict.fromkeys(sentences)
        strangers = [name for name in read if shards.get(name) != shard]
        if strangers:
            raise CheckpointError(f"{index}: the index must name all that {shard!r} holds. Received: {strangers[:5]}.")
        arrays |= read
    missing = [name for name in shards if name not in arrays]
    if missing:
        raise CheckpointError(f"{index}: the shards must hold all that the index names. Received: no {missing[:5]}.")
    return arrays, tuple(left_out)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor, bfloat16 too, which numpy lacks: its bits are the upper half of a float32's."""
    from safetensors import SafetensorError, safe_open

    safetensors_reader.read_metadata(path)  # refuses a header that is none
    arrays: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, framework="np") as file:  # checks that offsets, shapes and size agree
            halves: list[str] = []
            for name in file.keys():  # noqa: SIM118  # no mapping
                if file.get_slice(name).get_dtype() == "BF16":
                    halves.append(name)
                else:
                    arrays[name] = file.get_tensor(name)
        if halves:
            arrays |= _read_bfloat16(path, halves)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: the file must be safetensors, and whole. Received: {error}.") from error
    return arrays


def _read_bfloat16(path: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + length + begin)
            bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32) << 16
            yield name, bits.view(np.float32).reshape(header[name]["shape"])
