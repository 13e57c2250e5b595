"""Weights for PyTorch under timm's names, as safetensors, with a module that builds timm's network and loads them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, ExportError, MissingDependencyError
from resfit.export.base import ExportJob, Written, usage
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec

PRECISIONS = ("float32",)
MODULES = ("torch", "timm")
INT8_MODULES = ()
RUNTIME = "timm"

_FILE = "model.safetensors"
_LOADER = "load.py"

# what timm's ResNet and ResNetV2 do whatever they are told, where the shapes of weights do not show it
_FIXED: dict[str, Any] = {
    "output_stride": 32,
    "stride_in_stage": "first",
    "padding": "symmetric",
    "antialias": None,
    "stage_strides": (1, 2, 2, 2),
    "stem_pool": "max",
    "block_widths": None,
    "activation": "relu",
    "norm_epsilon": 1e-5,
    "norm_groups": 32,
}
_MOST_BASE_WIDTH = 4096


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.safetensors`` and ``load.py``."""
    from resfit.weights import write as checkpoints

    subject = job.subject
    model, moved = _headed(job)
    try:
        checkpoints.write(model, folder / _FILE)
        spec, contract = _in_torch_terms(folder / _FILE)
        (folder / _LOADER).write_text(_loader(job, contract, _construction(spec, moved)), "utf-8")
        _run_loader(folder)["network"]()
    except (ArgumentError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition(" Take naming=")[0].rstrip(".")
        raise ExportError(f"timm has no network like this one: {reason}. Take format='onnx'.") from error
    return Written(
        files=(_FILE, _LOADER),
        input={
            "name": "images",
            "dtype": "float32",
            "layout": "NCHW",
            "axes": ["batch", "channels", "height", "width"],
            "shape": [None, contract.channels, *contract.size],
            "channels": {1: "grey", 3: "RGB"}.get(contract.channels, f"{contract.channels} channels"),
            "normalisation": "outside the network: (x * scale - mean) / std of values x 0..255",
            "scale": contract.scale,
            "mean": list(contract.mean),
            "std": list(contract.std),
        },
        outputs=(
            {"name": "logits", "dtype": "float32", "axes": ["batch", "label"], "shape": [None, len(subject.labels)]},
        ),
        usage=usage(job, head="import load\n", load="network = load.network()\n", run="load.scores(network, images)"),
        temperature_applied=False,
        notes=(
            f"`{_LOADER}` needs torch, timm, safetensors and numpy, nothing else.",
            "Its network gives logits of normalised images; its `scores` normalises, divides by the temperature and "
            "applies the activation.",
            "Batch norms are kept; `torch.compile` and TorchScript's freezing fold them.",
        ),
    )


def _run_loader(folder: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(folder / _LOADER))
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch breaks timm
        raise MissingDependencyError(
            f'format="torch" is checked with torch and timm, which cannot be imported: {error}. '
            'Install with: pip install "resfit[timm]"'
        ) from error


def _headed(job: ExportJob) -> tuple[Any, bool]:
    """Returns the network with its head in its architecture, and whether strides were moved to the 3x3 convolutions.

    Where the stride stands changes no weight, so that the names and shapes are those of the network with it moved;
    ``load.py`` moves it back.
    """
    import keras

    from resfit.networks import build

    logits = job.subject.raw_logits
    spec: ArchitectureSpec | None = getattr(job.subject.network, "architecture", None)
    last = logits.layers[-1]
    if spec is None or not isinstance(last, keras.layers.Dense) or last.name != "predictions":
        raise ExportError(
            "timm's names are for a residual network of resfit's with a linear head. Received: "
            f"{'a network of unknown architecture' if spec is None else f'a head that ends in {last.name!r}'}. "
            "Take format='onnx'."
        )
    moved = "bottleneck" in spec.kinds and spec.stride_in_block == "first" and not spec.preactivation
    spec = spec.replace(classes=len(job.subject.labels), stride_in_block="spatial" if moved else spec.stride_in_block)
    model = keras.Model(logits.inputs, logits.outputs, name=logits.name)
    return build.attach(model, spec, job.subject.input_spec), moved


def _in_torch_terms(path: Path) -> tuple[ArchitectureSpec, InputSpec]:
    """Returns what the writer made of architecture and contract: it says so in the file's header."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["resfit"])
    return ArchitectureSpec.from_dict(about["spec"]), InputSpec.from_dict(about["input_spec"])


def _construction(spec: ArchitectureSpec, moved: bool) -> str:
    """Returns statements that leave timm's network in ``model``.

    Raises:
        ArgumentError: timm's classes cannot be told to build it.
    """
    from resfit.weights.write import timm_name

    common = f"num_classes={spec.classes}, in_chans={spec.in_channels}"
    name = timm_name(spec)
    if name is not None:
        lines = [f'model = timm.create_model("{name}", {common})']
    else:
        fixed = {**_FIXED, **({"activation": "linear"} if spec.norm == "evo" else {})}
        for field, value in fixed.items():
            if getattr(spec, field) != value:
                raise ArgumentError(f"its networks have {field}={value!r}. Received: {getattr(spec, field)!r}")
        lines = _resnet_v2(spec, common) if spec.preactivation else _resnet(spec, common)
    if moved:
        lines += [
            "for block in model.modules():  # the first convolution of a block has its stride here",
            "    if isinstance(block, timm.models.resnet.Bottleneck):",
            "        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)",
        ]
    return "".join(f"    {line}\n" for line in lines)


def _resnet(spec: ArchitectureSpec, common: str) -> list[str]:
    blocks = {"basic": ("resnet.BasicBlock", 1), "bottleneck": ("resnet.Bottleneck", 4)}
    kinds, expansions = zip(*(blocks[kind] for kind in spec.kinds), strict=True)
    channels = [width // expansion for width, expansion in zip(spec.widths, expansions, strict=True)]
    arguments: dict[str, Any] = {"layers": list(spec.depths), "channels": channels, **_stem(spec)}
    arguments |= {"avg_down": spec.shortcut == "avgpool", "down_kernel_size": spec.shortcut_kernel}
    if "basic" not in spec.kinds:
        arguments |= {"cardinality": spec.groups, "base_width": _base_width(spec, channels)}
    if spec.attention == "se":
        arguments["block_args"] = {"attn_layer": "se"}
    told = "".join(f", {key}={value!r}" for key, value in arguments.items())
    block = kinds[0] if spec.stage_blocks is None else f"[{', '.join(kinds)}]"
    return ["resnet = timm.models.resnet", f"model = resnet.ResNet({block}{told}, {common})"]


def _stem(spec: ArchitectureSpec) -> dict[str, Any]:
    if len(spec.stem) == 1:
        return {}
    width = spec.stem[-1].width // 2
    return {"stem_type": "deep_tiered" if spec.stem[0].width != spec.stem[1].width else "deep", "stem_width": width}


def _base_width(spec: ArchitectureSpec, channels: list[int]) -> int:
    """Finds timm's argument: 3x3 convolutions have ``int(channels * base_width / 64) * groups`` channels."""
    wanted = list(spec.inner_widths)
    for base in range(1, _MOST_BASE_WIDTH + 1):
        if [int(planes * (base / 64)) * spec.groups for planes in channels] == wanted:
            return base
    raise ArgumentError(f"its 3x3 convolutions cannot have widths {wanted} in {spec.groups} groups")


def _resnet_v2(spec: ArchitectureSpec, common: str) -> list[str]:
    norm = {
        "batch": "layers.BatchNormAct2d",
        "group": f"functools.partial(layers.GroupNormAct, num_groups={spec.norm_groups})",
        "evo": f"functools.partial(layers.EvoNorm2dS0, groups={spec.norm_groups})",
    }[spec.norm]
    conv = "layers.create_conv2d"
    if spec.weight_standardization:
        conv = f"functools.partial(layers.StdConv2d, eps={spec.weight_standardization_epsilon!r})"
    arguments = {
        "layers": list(spec.depths),
        "channels": list(spec.widths),
        "stem_chs": spec.stem[0].width,
        "stem_type": "fixed" if spec.stem_pool_padding == "zero" else "",
        "avg_down": spec.shortcut == "avgpool",
    }
    told = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return [
        "layers = timm.layers",
        f"model = timm.models.resnetv2.ResNetV2(norm_layer={norm}, conv_layer={conv}{told}, {common})",
    ]


def _loader(job: ExportJob, contract: InputSpec, construction: str) -> str:
    height, width = contract.size
    turned = "torch.sigmoid(logits)" if job.subject.multilabel else "torch.softmax(logits, -1)"
    checked = ""
    if contract.resize_mode != "none":
        sides = (height, width, contract.channels)
        checked = (
            f"    if np.shape(images)[1:] != {sides}:  # other sizes give other scores\n"
            f'        raise ValueError(f"images must be (batch, {height}, {width}, {contract.channels}). "\n'
            '                         f"Received: {np.shape(images)}.")\n'
        )
    functools = "import functools\n" if "functools." in construction else ""
    return f'''\
"""Builds timm's network in PyTorch and loads the weights beside this file."""

{functools}from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file

TEMPERATURE = {job.subject.temperature!r}
SCALE, MEAN, STD = {contract.scale!r}, {list(contract.mean)!r}, {list(contract.std)!r}


def network():
    """Returns timm's network: normalised images (batch, {contract.channels}, {height}, {width}) in, logits out."""
{construction}\
    model.load_state_dict(load_file(Path(__file__).with_name("{_FILE}")))
    return model.eval()


def normalized(images):
    """Returns images (batch, {height}, {width}, {contract.channels}) of values 0..255 as the network takes them."""
{checked}    values = (np.asarray(images, np.float32) * SCALE - np.asarray(MEAN)) / np.asarray(STD)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32))


@torch.inference_mode()
def scores(network, images):
    """Returns the score of each label for images as normalized() takes them, (batch, labels)."""
    logits = network(normalized(images)) / TEMPERATURE
    return {turned}.numpy()
'''
