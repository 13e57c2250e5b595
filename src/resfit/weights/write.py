"""A network's weights as a file for Keras, PyTorch's libraries or resfit itself.

What another library's network would compute from the file is checked before anything is written: a detail that it
cannot express is an error, and what can be said in its terms without a change of the outputs (a bias before a batch
norm, a batch norm that was folded away, another epsilon, another order of colours) is rewritten.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit import dependencies
from resfit.errors import ArgumentError, CheckpointError, MissingDependencyError, closest
from resfit.networks import arithmetic, catalog
from resfit.networks.detection import kinds
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.storage.atomic import atomic_open, atomic_path, write_json
from resfit.weights import canonical, identify, load, registry
from resfit.weights.conventions import deformable_detr, detr, faster_rcnn, pytorch, rtdetr, torchvision_detection
from resfit.weights.formats import keras_h5, safetensors
from resfit.weights.formats.base import written_suffixes
from resfit.weights.formats.keras_archive import OWN_MEMBER

#: How the tensors of a ``.safetensors`` or ``.pth`` file may be named.
NAMINGS = ("resfit", "timm", "timm-v2", "torchvision", "transformers", "cifar")

# The epsilon of every batch norm in torchvision, timm and transformers.
_TORCH_EPSILON = 1e-5

# Fields that change nothing at inference.
_OF_TRAINING: dict[str, Any] = {"norm_momentum": 0.9, "zero_init_last": False, "drop_path_rate": 0.0}


@dataclasses.dataclass(frozen=True)
class _Portable:
    """A network in terms that libraries of PyTorch have: RGB, no bias before a batch norm, their epsilon."""

    spec: ArchitectureSpec
    arrays: Mapping[str, np.ndarray]
    input_spec: InputSpec | None


def write(model: Any, target: str | os.PathLike[str], *, naming: str | None = None) -> Path:
    """Writes a network that :func:`resfit.load` or :func:`resfit.networks.build.build` returned.

    Args:
        model: The network. It is not changed.
        target: ``.keras`` (the whole network), ``.weights.h5`` or ``.h5`` (its weights for Keras, new and legacy
            format), ``.safetensors`` or ``.pth`` (its weights under the names of ``naming``), or a name without a
            suffix: a folder with ``config.json`` and ``model.safetensors`` as timm or transformers load it. An
            existing file is replaced whole.
        naming: One of :data:`NAMINGS`. Default: ``"timm"``, or ``"timm-v2"`` with pre-activation; of a
            detector the library's that has it: ``"torchvision"``, or ``"transformers"``
            for RT-DETR and DETR.

    Returns:
        The path that was written.

    Raises:
        ArgumentError: The suffix or the naming is unknown, or this naming cannot express the network; the text says
            in what.
        MissingDependencyError: A ``.pth`` file is asked for and torch is not installed.
        OSError: The disk is full or cannot be written.
    """
    target = Path(target)
    kind = check_target(target)
    if kind in (".keras", ".weights.h5", ".h5"):
        if naming is not None:
            raise ArgumentError(f"a {kind} file has Keras' names. Received: naming={naming!r}.")
        _write_keras(model, target, kind)
        return target
    spec = model.architecture
    if isinstance(spec, AnyDetectorSpec):
        _write_detector(model, target, kind, naming)
        return target
    naming = naming or ("timm-v2" if spec.preactivation else "timm")
    if naming not in NAMINGS:
        raise ArgumentError(f"naming must be one of {NAMINGS}. Received: {naming!r}.{closest(naming, NAMINGS)}")
    if naming == "resfit":
        if kind != ".safetensors":
            raise ArgumentError(f"resfit's own names go into a .safetensors file. Received: {target}.")
        _write_own(model, target)
        return target
    portable = _portable(model)
    config = _config(model, portable, naming)
    _check_expressible(portable, naming, config)
    arrays = pytorch.to_torch(portable.spec, naming, arrays=portable.arrays)
    if kind == ".safetensors":
        about = _about(model, portable.spec, portable.input_spec)
        safetensors.write_arrays(target, arrays, {"format": "pt", "resfit": json.dumps(about)})
    elif kind is not None:
        _write_pickle(target, arrays)
    else:
        _write_folder(target, arrays, config, portable, naming)
    return target


def check_target(target: Path) -> str | None:
    """Makes sure that :func:`write` knows the format of a file and has what it needs, before anything is read.

    Args:
        target: As :func:`write` takes it.

    Returns:
        The suffix that names the format; ``None`` for a folder.

    Raises:
        ArgumentError: The suffix is unknown.
        MissingDependencyError: A ``.pth`` file is asked for and torch is not installed.
    """
    suffixes = written_suffixes()
    kind = next((suffix for suffix in suffixes if target.name.lower().endswith(suffix)), None)
    if kind is None and target.suffix:
        raise ArgumentError(
            f"the target must end in one of {', '.join(suffixes)}, or be a folder. Received: {target}."
            f"{closest(target.suffix, suffixes)}"
        )
    if kind in (".pth", ".pt"):
        dependencies.require(f"writing {target}", "torch")
    return kind


def _write_keras(model: Any, target: Path, kind: str) -> None:
    if kind == ".h5":
        keras_h5.write_layers(target, canonical.to_layers(model))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Keras insists on the whole of the suffix
    with atomic_path(target) as temporary:
        named = temporary.with_name(f"{temporary.name}{kind}")
        try:
            model.save(named) if kind == ".keras" else model.save_weights(named)
            if kind == ".keras":
                with zipfile.ZipFile(named, "a") as archive:  # Keras passes over what it does not know
                    archive.writestr(OWN_MEMBER, json.dumps(_about(model, model.architecture, _contract_of(model))))
            os.replace(named, temporary)
        finally:
            named.unlink(missing_ok=True)


def _write_own(model: Any, target: Path) -> None:
    metadata = {"architecture": json.dumps(model.architecture.to_dict())}
    if contract := _contract_of(model):
        contract = contract.with_channels(model.architecture.in_channels)
        metadata["input_spec"] = json.dumps(contract.to_dict())
    if names := _class_names(model):
        metadata["labels"] = json.dumps(names)
    arrays = canonical.arrays(model)
    spec = model.architecture
    layers = (kinds.count(spec) if isinstance(spec, AnyDetectorSpec) else arithmetic.count(spec)).layers
    counted = {layer.name for layer in layers}
    foreign = sorted({name.partition("/")[0] for name in arrays} - counted)
    if foreign:
        raise ArgumentError(
            f"a .safetensors file holds a network with one classifier. Received: a head of {', '.join(foreign[:5])}. "
            "Write a .keras file, or load the source with include_top=False."
        )
    safetensors.write_arrays(target, arrays, metadata)


def _write_detector(model: Any, target: Path, kind: str | None, naming: str | None) -> None:
    """Writes a detector under the names of the library that has it, or resfit's own."""
    modules: dict[type, tuple[str, Any]] = {
        RTDETRSpec: ("transformers", rtdetr),
        DETRSpec: ("transformers", detr),
        DeformableDETRSpec: ("transformers", deformable_detr),
        FasterRCNNSpec: ("torchvision", faster_rcnn),
    }
    usual, module = modules.get(type(model.architecture), ("torchvision", torchvision_detection))
    naming = naming or usual
    if naming not in (usual, "resfit"):
        raise ArgumentError(f"naming of this detector must be {usual!r} or 'resfit'. Received: {naming!r}.")
    if kind is None:
        raise ArgumentError(f"a detector is written as one file. Received: {target}. Name a .safetensors or .pth file.")
    if naming == "resfit":
        if kind != ".safetensors":
            raise ArgumentError(f"resfit's own names go into a .safetensors file. Received: {target}.")
        _write_own(model, target)
        return
    contract = _contract_of(model)
    if contract is not None and contract.channel_order == "bgr":
        raise ArgumentError(f"{usual}'s detectors take RGB. Received: one that takes BGR. Take naming='resfit'.")
    arrays = module.to_torch(model.architecture, canonical.arrays(model))
    if kind != ".safetensors":
        _write_pickle(target, arrays)
        return
    about = _about(model, model.architecture, contract)
    safetensors.write_arrays(target, arrays, {"format": "pt", "resfit": json.dumps(about)})


def _write_pickle(target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            f"writing a {target.suffix} file needs PyTorch, which is not installed. Received: {target}. "
            'pip install "resfit[torch]", or write .safetensors, which PyTorch reads too.'
        ) from None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with atomic_open(target) as file:
        torch.save(tensors, file)


def _write_folder(
    target: Path,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    portable: _Portable,
    naming: str,
) -> None:
    """Writes the folder beside its place, then puts it there; an existing folder must be one of this kind."""
    if target.exists() and not (target.is_dir() and (target / "model.safetensors").is_file()):
        raise ArgumentError(
            f"the target must be a new folder, or one that holds model.safetensors. Received: {target}."
        )
    if not config:
        raise ArgumentError(
            f"a folder needs a configuration, which {naming!r} has not for this network. Received: {target}. "
            "Write a .safetensors file instead."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
        folder = Path(name) / "new"
        folder.mkdir()
        safetensors.write_arrays(folder / "model.safetensors", arrays, {"format": "pt"})
        write_json(folder / "config.json", config)
        if naming == "transformers" and portable.input_spec:
            write_json(folder / "preprocessor_config.json", _preprocessor(portable.input_spec))
        if target.exists():
            os.replace(target, Path(name) / "old")
        os.replace(folder, target)


def _portable(model: Any) -> _Portable:
    spec: ArchitectureSpec = model.architecture
    arrays = canonical.arrays(model)
    contract = _contract_of(model)
    if contract is not None and contract.repeats_grey:
        contract = contract.with_channels(model.architecture.in_channels)
    if contract and contract.channel_order == "bgr":
        for name in ("conv1_conv/kernel", "conv1_1_conv/kernel"):
            if name in arrays:
                arrays[name] = arrays[name][:, :, ::-1]
        contract = dataclasses.replace(contract, channel_order="rgb", mean=contract.mean[::-1], std=contract.std[::-1])
    if spec.stem_pool_padding == "zero" and spec.activation == "relu" and not spec.preactivation:
        spec = spec.replace(stem_pool_padding="lowest")  # nothing is below zero there
    if spec.norm == "none" or spec.folded:
        spec, arrays = _unfolded(spec, arrays)
    if not spec.shortcut_norm and spec.norm == "batch":
        spec, arrays = _unfolded(spec, arrays)  # a norm that adds the bias, or nothing, behind projections too
    if spec.norm == "batch":
        if spec.conv_bias in ("all", "shortcut") and not spec.preactivation:
            for name in [name for name in arrays if name.endswith("_conv/bias")]:
                mean = f"{name.removesuffix('_conv/bias')}_bn/moving_mean"
                if mean in arrays:  # squeeze-excite keeps its own
                    arrays[mean] = arrays[mean] - arrays.pop(name)
            spec = spec.replace(conv_bias="none")
        if spec.norm_epsilon != _TORCH_EPSILON:
            for name in arrays:
                if name.endswith("/moving_variance"):
                    more = np.float64(spec.norm_epsilon) - _TORCH_EPSILON
                    arrays[name] = (arrays[name].astype(np.float64) + more).astype(np.float32)
            spec = spec.replace(norm_epsilon=_TORCH_EPSILON)
    return _Portable(spec, arrays, contract)


def _unfolded(
    spec: ArchitectureSpec, arrays: Mapping[str, np.ndarray]
) -> tuple[ArchitectureSpec, dict[str, np.ndarray]]:
    """Gives every convolution into which a batch norm was folded one of mean 0 and variance 1 that adds its bias."""
    bias = spec.conv_bias if spec.preactivation else "none"
    if not spec.shortcut_norm:
        bias = spec.conv_bias
    whole = spec.replace(norm="batch", folded=False, shortcut_norm=True, conv_bias=bias)
    found = dict(arrays)
    for layer in arithmetic.count(whole).layers:
        if layer.kind != "norm" or f"{layer.name}/gamma" in found:
            continue
        width = layer.shape[-1]
        moved = found.pop(f"{layer.name.removesuffix('_bn')}_conv/bias", np.zeros(width, np.float32))
        if whole.conv_bias == "all":
            found[f"{layer.name.removesuffix('_bn')}_conv/bias"] = np.zeros(width, np.float32)
        found |= {
            f"{layer.name}/gamma": np.full(width, np.sqrt(1 + spec.norm_epsilon), np.float32),
            f"{layer.name}/beta": moved,
            f"{layer.name}/moving_mean": np.zeros(width, np.float32),
            f"{layer.name}/moving_variance": np.ones(width, np.float32),
        }
    return whole, found


def _check_expressible(portable: _Portable, naming: str, config: Mapping[str, Any]) -> None:
    """Reads the network as the library would, from names, shapes and configuration alone, and compares.

    Raises:
        ArgumentError: It would be another network.
    """
    spec = portable.spec.replace(**_OF_TRAINING)
    try:
        arrays = pytorch.to_torch(portable.spec, naming, arrays=portable.arrays)
        translation = pytorch.translate(arrays)
        found = identify.identify(
            translation.arrays, convention=translation.convention, facts=translation.facts, config=config
        ).spec.replace(**_OF_TRAINING)
    except CheckpointError as error:
        raise ArgumentError(f"{naming!r} must be able to express the network. Received: {error}") from error
    sized: dict[str, Any] = {"input_size": spec.input_size}
    if "predictions/kernel" not in translation.arrays:  # a body has no classes
        sized["classes"] = spec.classes
    told = identify.differences(spec, found.replace(**sized))
    if told:
        raise ArgumentError(
            f"{naming!r} must be able to express the network. Received: {'; '.join(told)}. "
            "Take naming='resfit', another naming, or a .keras file."
        )


def _config(model: Any, portable: _Portable, naming: str) -> dict[str, Any]:
    """Returns ``config.json`` as the library writes it; nothing where it has no name for the network."""
    spec, names = portable.spec, _class_names(model)
    if naming == "transformers":
        return _transformers_config(spec, names)
    if naming not in ("timm", "timm-v2"):
        return {}
    name = timm_name(spec)
    if name is None:
        return {}
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": spec.classes,
        "num_features": spec.feature_width,
        "pretrained_cfg": {
            "num_classes": spec.classes,
            "first_conv": "conv1" if len(spec.stem) == 1 else "conv1.0",
            "classifier": "head.fc" if naming == "timm-v2" else "fc",
            **_timm_contract(portable.input_spec, spec),
        },
    }
    if names:
        config["label_names"] = names
    return config


def timm_name(spec: ArchitectureSpec) -> str | None:
    """Returns timm's name of an architecture, or None where timm has none.

    Args:
        spec: The architecture, in PyTorch's terms.
    """
    published = {info.architecture for info in registry.rows().values() if info.source == registry.TIMM}
    plain = spec.replace(**_OF_TRAINING)
    for name in sorted(published & set(catalog.rows())):
        if load.is_like(plain, catalog.get(name).spec.replace(**_OF_TRAINING)):
            return name.removesuffix("v1.5")
    return None


def _timm_contract(contract: InputSpec | None, spec: ArchitectureSpec) -> dict[str, Any]:
    if contract is None:
        return {"input_size": [spec.in_channels, *spec.input_size]}
    unit = 255 * contract.scale
    return {
        "input_size": [contract.channels, *contract.size],
        "mean": [_clean(mean / unit) for mean in contract.mean],
        "std": [_clean(std / unit) for std in contract.std],
        "interpolation": contract.interpolation,
        "crop_pct": contract.crop_fraction,
        "crop_mode": "squash" if contract.resize_mode == "squash" else "center",
    }


def _transformers_config(spec: ArchitectureSpec, names: list[str] | None) -> dict[str, Any]:
    reduction = 4 if spec.block == "bottleneck" else 1
    inner = tuple(width // reduction for width in spec.widths)
    alike = {"inner_widths": inner, "groups": 1, **dict.fromkeys(("reduce_widths", "stage_blocks", "block_widths"))}
    if told := identify.differences(spec, spec.replace(**alike)):
        raise ArgumentError(f"'transformers' must be able to express the network. Received: {'; '.join(told)}.")
    labels = names or [f"LABEL_{number}" for number in range(spec.classes)]
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_channels": spec.in_channels,
        "embedding_size": spec.stem[-1].width,
        "hidden_sizes": list(spec.widths),
        "depths": list(spec.depths),
        "layer_type": spec.block,
        "hidden_act": spec.activation,
        "downsample_in_first_stage": spec.stage_strides[0] == 2,
        "downsample_in_bottleneck": spec.block == "bottleneck" and spec.stride_in_block == "first",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _preprocessor(contract: InputSpec) -> dict[str, Any]:
    unit = 255 * contract.scale
    height, width = contract.size
    resized = contract.resize_size
    squash = contract.resize_mode == "squash"
    return {
        "image_processor_type": "ViTImageProcessor" if squash else "CLIPImageProcessor",
        "do_resize": contract.resize_mode != "none",
        "size": {"height": height, "width": width} if squash else {"shortest_edge": min(resized)},
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "resample": {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4}[contract.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_clean(mean / unit) for mean in contract.mean],
        "image_std": [_clean(std / unit) for std in contract.std],
    }


def _clean(value: float) -> float:
    """Returns a figure without the noise of its last bits, such as 0.485 for 0.48499999999999993."""
    rounded = round(value, 9)
    return rounded if math.isclose(rounded, value, rel_tol=1e-9) else value


def _about(model: Any, spec: ArchitectureSpec | AnyDetectorSpec, contract: InputSpec | None) -> dict[str, Any]:
    """Returns what is written beside tensors so that nothing has to be guessed from them."""
    return {
        "spec": spec.to_dict(),
        "input_spec": contract.to_dict() if contract else None,
        "class_names": _class_names(model),
    }


def _contract_of(model: Any) -> InputSpec | None:
    found = getattr(model, "input_spec", None)
    return found if isinstance(found, InputSpec) else None


def _class_names(model: Any) -> list[str] | None:
    names = getattr(model, "class_names", None)
    return list(names) if names else None
