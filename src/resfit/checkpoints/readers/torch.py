"""What PyTorch's world publishes: pickled checkpoints, ``.safetensors``, sharded ones, and folders with a config.

A pickle is only ever read by torch's own restricted reader (``weights_only=True``), which loads tensors and
plain containers and runs no code. Arrays keep the names of the source; nested containers are joined by dots.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.architecture.spec import ArchitectureSpec
from resfit.checkpoints.readers import safetensors as safetensors_reader
from resfit.checkpoints.readers.base import Tensors, read_json
from resfit.errors import ArgumentError, CheckpointError, MissingDependencyError
from resfit.preprocessing import InputSpec

#: Suffixes of files that torch pickles.
PICKLE_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")

#: Suffixes of every file that :func:`read` takes.
SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")

# The restricted reader of older releases could be tricked into running code (CVE-2025-32434) and more.
_OLDEST_TORCH = (2, 10)

_DEEPEST = 16
_MOST_NODES = 200_000
_DOUBTLESS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")


def recognises(path: Path) -> bool:
    """Whether a path looks like a source of PyTorch's world. Its content is not checked.

    Args:
        path: A file or folder.
    """
    if path.is_dir():
        return any(file.name.endswith((*SUFFIXES, ".index.json")) for file in path.iterdir())
    return path.name.lower().endswith((*SUFFIXES, ".index.json"))


def read(path: str | os.PathLike[str]) -> Tensors:
    """Reads a checkpoint.

    Args:
        path: A ``.pth``, ``.pt``, ``.th``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, an ``.index.json`` of
            shards, or a folder that holds one of them, and perhaps ``config.json`` and
            ``preprocessor_config.json``.

    Raises:
        CheckpointError: It is missing, damaged, of another format, or asks for more than tensors.
        MissingDependencyError: The file is a pickle and torch is not installed, or too old.
    """
    path = Path(path)
    if not path.is_dir():
        return _with_metadata(Tensors(path, _read_file(path)))
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
    return Tensors(path, _read_file(_weights_in(path)), config, contract, names)


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
            mode = "shorter"
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
    if read.path.suffix.lower() != ".safetensors":
        return read
    text = safetensors_reader.read_metadata(read.path).get("resfit")
    if text is None:
        return read
    about = safetensors_reader.metadata_value(text)
    try:
        contract, names = about["input_spec"], about["class_names"]
        return dataclasses.replace(
            read,
            config={"resfit": ArchitectureSpec.from_dict(about["spec"])},
            input_spec=InputSpec.from_dict(contract) if contract else None,
            class_names=tuple(map(str, names)) if names else None,
        )
    except (ArgumentError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{read.path}: the metadata must be what resfit writes. Received: {error}.") from error


def _weights_in(folder: Path) -> Path:
    for name in _DOUBTLESS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    preferred = [file for file in found if file.suffix.lower() == ".safetensors"] or found
    if len(preferred) != 1:
        received = ", ".join(file.name for file in preferred[:5]) or "none"
        raise CheckpointError(
            f"{folder}: a folder must hold one file of weights ({', '.join(SUFFIXES)}). Received: {received}. "
            "Pass the path of the file itself."
        )
    return preferred[0]


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CheckpointError(f"weights file must exist. Received: {path}.")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix in PICKLE_SUFFIXES:
        return _read_pickle(path)
    raise CheckpointError(f"weights must be a file of {', '.join(SUFFIXES)}. Received: {path}.")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: the index must hold a mapping 'weight_map'. Received: none.")
    arrays: dict[str, np.ndarray] = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(SUFFIXES):
            raise CheckpointError(f"{index}: a shard must be a file of the same folder. Received: {shard!r}.")
        read = _read_file(index.parent / shard)
        strangers = [name for name in read if shards.get(name) != shard]
        if strangers:
            raise CheckpointError(f"{index}: the index must name all that {shard!r} holds. Received: {strangers[:5]}.")
        arrays |= read
    missing = [name for name in shards if name not in arrays]
    if missing:
        raise CheckpointError(f"{index}: the shards must hold all that the index names. Received: no {missing[:5]}.")
    return arrays


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


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    torch = import_torch(path)
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options, as many programs keep them beside
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is damaged or asks for code
        reason = str(error).strip()
        if "weights_only" in reason or "Unsupported" in reason:
            found = next((part for part in reason.split("\n") if "GLOBAL" in part or "Unsupported" in part), reason)
            found = found.partition(" was not an allowed")[0].strip()[:200]
            raise CheckpointError(
                f"{path}: only tensors in plain containers are loaded, and no code is run. Received: "
                f"{found}. Have its publisher, or a program that you trust, save the state_dict alone, "
                "best as .safetensors."
            ) from None
        raise CheckpointError(
            f"{path}: the file must be what torch.save writes, and whole. Received: {type(error).__name__}: "
            f"{reason[:200]}."
        ) from None
    try:
        arrays = {name: _to_numpy(torch, name, tensor) for name, tensor in _tensors(torch, loaded)}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not arrays:
        raise CheckpointError(f"{path}: the file must hold named tensors. Received: {type(loaded).__name__}.")
    return arrays


def import_torch(path: Path) -> Any:
    """Returns the module ``torch``.

    Args:
        path: The file that needs it, for the error.

    Raises:
        MissingDependencyError: It is not installed, or too old to be safe.
    """
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            f'a {path.suffix} file needs PyTorch: pip install "resfit[torch]". Received: {path}. '
            "A .safetensors file of the same weights needs no PyTorch."
        ) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        raise MissingDependencyError(
            f"a {path.suffix} file is read by PyTorch {_OLDEST_TORCH[0]}.{_OLDEST_TORCH[1]} or newer, since older ones "
            f'could be made to run code. Received: PyTorch {torch.__version__}. pip install "resfit[torch]", or use '
            ".safetensors."
        )
    return torch


def _check_archive(path: Path) -> None:
    """Refuses an archive whose members declare more than the file holds; torch itself stores, never compresses."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path}: the file must be what torch.save writes. Received: {error}.") from error
    if any(member.filename.partition("/")[2].startswith("code/") for member in members):
        raise CheckpointError(
            f"{path}: the file must hold tensors, not a program. Received: a TorchScript archive. A program that you "
            "trust can save its tensors: torch.save(torch.jit.load(path).state_dict(), ...)."
        )
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise CheckpointError(
            f"{path}: the file must hold all it declares, uncompressed, as torch.save writes it. "
            f"Received: {(packed or ['members larger than the file'])[0]}."
        )


def _tensors(torch: Any, loaded: Any) -> Iterator[tuple[str, Any]]:
    """Walks mappings and sequences; what is neither these nor a tensor (a number, a text) holds no weights."""
    pending = [("", loaded, 0)]
    visited = 0
    while pending:
        prefix, node, depth = pending.pop()
        visited += 1
        if depth > _DEEPEST or visited > _MOST_NODES:
            raise CheckpointError(
                f"containers must be nested at most {_DEEPEST} deep and hold at most {_MOST_NODES} values. "
                f"Received: more, at {prefix[:200]!r}."
            )
        if isinstance(node, torch.Tensor):
            yield prefix, node
            continue
        if isinstance(node, Mapping):
            items: Any = node.items()
        elif isinstance(node, (list, tuple)):
            items = enumerate(node)
        else:
            continue
        found = [(f"{prefix}.{key}" if prefix else str(key), value, depth + 1) for key, value in items]
        pending.extend(reversed(found))


def _to_numpy(torch: Any, name: str, tensor: Any) -> np.ndarray:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        raise CheckpointError(f"weights must be plain dense tensors. Received: {name!r} of {tensor.dtype}.")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"a tensor must be no larger than what is stored of it. Received: {name!r} of shape {tuple(tensor.shape)}, "
            f"{tensor.untyped_storage().nbytes()} bytes of {size}."
        )
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor.resolve_neg().numpy()
