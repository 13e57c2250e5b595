"""The weights of KerasHub's RetinaNet presets under torchvision's names, whose weights the published ones are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import CheckpointError

BACKBONE = "RetinaNetBackbone"
ENCODER = "ResNetBackbone"

_STACK = re.compile(r"stack(\d{1,4})_block(\d{1,4})_([0-3])_(conv|bn)")
_STEM = {"conv1_conv": "conv1", "conv1_bn": "bn1"}
_PYRAMID = re.compile(r"(lateral_conv|output_conv|lateral_norm|output_norm|coarser)_P(\d{1,2})")
# In the order in which KerasHub builds them.
_HEADS = {
    "prediction_head": ("head.regression_head", "bbox_reg"),
    "prediction_head_1": ("head.classification_head", "cls_logits"),
}
_LEAVES = {
    **{"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "0": "weight", "1": "bias"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
}


def torch_names(
    arrays: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the weights of a preset under torchvision's names, in torch's axes.

    Args:
        arrays: Those of the backbone, with the pyramid in it, by the names of layers and their groups.
        head: Those of the task's file.
        config: The configuration of the backbone.

    Raises:
        CheckpointError: The residual network is no plain ResNet, or there is no head.
    """
    encoder: Any = config.get("image_encoder")
    body = encoder.get("config") if isinstance(encoder, Mapping) else None
    if not isinstance(body, Mapping) or encoder.get("class_name") != ENCODER:
        raise CheckpointError(f"a RetinaNet preset must be on a {ENCODER}. Received: {encoder!r}.")
    kind, before, levels = body.get("block_type"), body.get("use_pre_activation"), config.get("min_level")
    if kind not in ("basic_block", "bottleneck_block") or before or levels != 3:
        raise CheckpointError(
            "a RetinaNet preset must be on a ResNet of basic or bottleneck blocks, from level 3 on. Received: "
            f"block_type={kind!r}, use_pre_activation={before!r}, min_level={levels!r}."
        )
    if not head:
        raise CheckpointError("a RetinaNet preset must hold its heads (task.weights.h5). Received: its backbone alone.")
    found: dict[str, np.ndarray] = {}
    for name, array in {**arrays, **head}.items():
        layer, _, leaf = name.rpartition("/")
        target, ending = _target(layer), _LEAVES.get(leaf)
        value = np.transpose(array, (3, 2, 0, 1)) if np.ndim(array) == 4 else array
        found[name if target is None or ending is None else f"{target}.{ending}"] = value
    return found


def _target(path: str) -> str | None:
    """torchvision's name of a layer; None where it has none."""
    group, layer = path.partition("/")[0], path.rpartition("/")[2]
    if group in _HEADS:
        head, output = _HEADS[group]
        if layer == "logits_layer":
            return f"{head}.{output}"
        match = re.fullmatch(r"(conv2d|group_norm)_(\d{1,3})", layer)
        return match and f"{head}.conv.{match[2]}.{0 if match[1] == 'conv2d' else 1}"
    if match := _PYRAMID.fullmatch(layer):
        kind, level = match[1], int(match[2])
        if kind == "coarser":
            return f"backbone.fpn.extra_blocks.p{level}"
        blocks = "inner_blocks" if kind.startswith("lateral") else "layer_blocks"
        return f"backbone.fpn.{blocks}.{level - 3}.{0 if kind.endswith('conv') else 1}"
    if layer in _STEM:
        return f"backbone.body.{_STEM[layer]}"
    if match := _STACK.fullmatch(layer):
        block = f"backbone.body.layer{int(match[1]) + 1}.{int(match[2])}"
        if match[3] == "0":
            return f"{block}.downsample.{0 if match[4] == 'conv' else 1}"
        return f"{block}.{match[4]}{match[3]}"
    return None
