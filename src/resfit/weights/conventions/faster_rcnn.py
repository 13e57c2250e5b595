"""Names of torchvision's Faster R-CNN, first and second form, and of detectron2's with a pyramid, and what their
tensors are called here.

Of a Mask R-CNN or Keypoint R-CNN the part that finds boxes is read; the other branch is left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks.detection import catalog
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.spec import is_of_detector
from resfit.preprocessing import InputSpec
from resfit.weights.assumption import sentence
from resfit.weights.completeness import is_of_its_own
from resfit.weights.conventions import detector_names, pytorch
from resfit.weights.conventions.dense_detection import LICENCE, detectron_contract
from resfit.weights.conventions.detector_names import DetectorNames, Naming, backbone_of, built, highest
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = FasterRCNNSpec, False

_BODY = "backbone.body."
_NAMING = Naming(
    "torchvision's Faster R-CNN",
    re.compile(r"(?P<prefix>(?:.*\.)?)roi_heads\.box_predictor\.cls_score\.weight"),
    (_BODY,),
    (
        # where a convolution and its norm share a name here, the second row is the norm's
        ("backbone.fpn.inner_blocks.{i}.0", "p{i+1}_lateral"),
        ("backbone.fpn.inner_blocks.{i}.1", "p{i+1}_lateral"),
        ("backbone.fpn.layer_blocks.{i}.0", "p{i+1}_output"),
        ("backbone.fpn.layer_blocks.{i}.1", "p{i+1}_output"),
        ("rpn.head.conv.{i}.0", "rpn_{i}"),
        ("rpn.head.cls_logits", "rpn_objectness"),
        ("rpn.head.bbox_pred", "rpn_codes"),
        ("roi_heads.box_head.{i}.0", "roi_{i}"),
        ("roi_heads.box_head.{i}.1", "roi_{i}"),
        ("roi_heads.box_head.fc6", "roi_dense_1"),
        ("roi_heads.box_head.fc7", "roi_dense_2"),
        ("roi_heads.box_head.5", "roi_dense_1"),
        ("roi_heads.box_predictor.cls_score", "class_logits_dense"),
        ("roi_heads.box_predictor.bbox_pred", "box_codes_dense"),
        # files from before 2022
        ("backbone.fpn.inner_blocks.{i}", "p{i+1}_lateral"),
        ("backbone.fpn.layer_blocks.{i}", "p{i+1}_output"),
        ("rpn.head.conv", "rpn_1"),
    ),
    constants={
        r"roi_heads\.mask_.*": "the branch of masks",
        r"roi_heads\.keypoint_.*": "the branch of key points",
    },
)
_DETECTRON = Naming(
    "detectron2's Faster R-CNN",
    re.compile(r"(?P<prefix>(?:.*\.)?)proposal_generator\.rpn_head\.objectness_logits\.weight"),
    ("backbone.bottom_up.",),
    (
        ("backbone.fpn_lateral{=i}", "p{=i}_lateral"),
        ("backbone.fpn_output{=i}", "p{=i}_output"),
        ("proposal_generator.rpn_head.conv", "rpn_1"),
        ("proposal_generator.rpn_head.objectness_logits", "rpn_objectness"),
        ("proposal_generator.rpn_head.anchor_deltas", "rpn_codes"),
        ("roi_heads.box_head.fc{=i}", "roi_dense_{=i}"),
        ("roi_heads.box_predictor.cls_score", "class_logits_dense"),
        ("roi_heads.box_predictor.bbox_pred", "box_codes_dense"),
    ),
    constants={
        r"proposal_generator\.anchor_generator\.cell_anchors\.\d+": "constants that are computed anew",
        r"pixel_(?:mean|std)": "the input contract, which is read",
        r"roi_heads\.mask_.*": "the branch of masks",
        r"roi_heads\.keypoint_.*": "the branch of key points",
    },
)
# What detectron2's configurations of Faster R-CNN say, and tensors do not.
_DETECTRON_FIELDS: dict[str, Any] = {
    "anchor_rounding": False,
    "anchor_stride": "nominal",
    "aligned": True,
    "samples": 0,
}
_DETECTRON_BODY: dict[str, Any] = {
    **{"stride_in_block": "first", "activation": "relu", "norm_epsilon": 1e-5, "stem_pool": "max", "antialias": None}
}
_FIELDS = tuple(field.name for field in dataclasses.fields(FasterRCNNSpec))
_SAID = ("anchor_sizes", "anchor_ratios", "score_threshold", "nms_threshold", "max_detections")


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of a Faster R-CNN of torchvision or detectron2, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    detectron = (f"{prefix}backbone.fpn_lateral2.weight" for prefix in _DETECTRON.prefixes(names))
    return any(name in names for name in detectron) or any(
        f"{prefix}rpn.head.cls_logits.weight" in names for prefix in _NAMING.prefixes(names)
    )


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorNames:
    """Brings the tensors of a Faster R-CNN to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    found = detector_names.translate(tensors, (_DETECTRON, _NAMING), prefix=prefix, averaged=averaged)
    arrays = dict(found.arrays)
    arrays |= _pooled(arrays, to_torch=False)
    if found.naming is _DETECTRON:
        found = dataclasses.replace(found, left_out=(*found.left_out, LICENCE))
        arrays |= _with_background(arrays)
    return dataclasses.replace(found, arrays=arrays)


def _with_background(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The codes of all class outputs: of the background, the last one, detectron2 has none, and nothing reads them."""
    shapes = {name: np.shape(arrays.get(f"box_codes_dense/{name}", ())) for name in ("kernel", "bias")}
    outputs = np.shape(arrays.get("class_logits_dense/kernel", ()))[-1:]
    if not outputs or any(shape[-1:] != (4 * (outputs[0] - 1),) for shape in shapes.values()):
        return {}  # refused later
    return {
        f"box_codes_dense/{name}": np.concatenate(
            [arrays[f"box_codes_dense/{name}"], np.zeros((*shape[:-1], 4), np.float32)], axis=-1
        )
        for name, shape in shapes.items()
    }


def usual_contract(translation: DetectorNames) -> tuple[InputSpec, str] | None:
    """Returns the input contract where the source states none, and whose it is; ``None`` for torchvision's.

    Args:
        translation: As :func:`translate` returned it.
    """
    return detectron_contract(translation) if translation.naming is _DETECTRON else None


def _pooled(arrays: Mapping[str, np.ndarray], *, to_torch: bool) -> dict[str, np.ndarray]:
    """The first dense layer with the values of a pooled map in another order: channels come last here."""
    name = "roi_dense_1/kernel"
    kernel = arrays.get(name)
    channels, side = _pool(arrays)
    if kernel is None or not side or not is_of_its_own(kernel):  # such weights are refused later, uncopied
        return {}
    before = (side, side, channels) if to_torch else (channels, side, side)
    order = (2, 0, 1, 3) if to_torch else (1, 2, 0, 3)
    apart = np.asarray(kernel).reshape(*before, kernel.shape[-1])
    return {name: np.ascontiguousarray(apart.transpose(order)).reshape(kernel.shape)}


def _pool(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Channels and side of what the first dense layer takes; a side of 0 where they do not fit."""
    last = highest(arrays, r"roi_(\d+)_conv/kernel")
    layer = arrays.get(f"roi_{last}_conv/kernel" if last else "p3_output_conv/kernel")
    kernel = arrays.get("roi_dense_1/kernel")
    if layer is None or kernel is None or np.ndim(layer) != 4 or np.ndim(kernel) != 2:
        return 0, 0
    channels = np.shape(layer)[-1]
    side = math.isqrt(np.shape(kernel)[0] // max(channels, 1))
    return channels, side if side * side * channels == np.shape(kernel)[0] else 0


def identify(
    translation: DetectorNames,
    *,
    architecture: str | None = None,
    body: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[FasterRCNNSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Args:
        translation: As :func:`translate` returned it.
        architecture: A name of the catalog of detectors that stands for what tensors do not tell.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        **overrides: Fields of :class:`FasterRCNNSpec`; they win over everything.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override is no field, or does not fit.
    """
    for name in overrides:
        if name not in _FIELDS:
            raise ArgumentError(
                f"an override must be a field of FasterRCNNSpec. Received: {name!r}.{closest(name, _FIELDS)}"
            )
    shapes = {name: tuple(np.shape(array)) for name, array in translation.arrays.items()}
    second = "roi_1_conv/kernel" in shapes
    row = catalog.get(architecture or ("faster_rcnn_resnet50_v2" if second else "faster_rcnn_resnet50"))
    if not isinstance(row.spec, FasterRCNNSpec):
        raise CheckpointError(f"the tensors must be those of {row.name!r} ({row.family}). Received: a Faster R-CNN's.")
    detectron = translation.naming is _DETECTRON
    own = {**(_DETECTRON_BODY if detectron else {}), **(body or {})}
    backbone, assumptions = backbone_of(translation.body, **own)
    if detectron and backbone.block == "bottleneck" and "stride_in_block" not in (body or {}):
        why, name = "as detectron2's Faster R-CNN has it; the tensors do not tell", "backbone.stride_in_block"
        assumptions.append(sentence(f"{name}={own['stride_in_block']!r}", why, name))
    if "norm_epsilon" not in own and not translation.body.counts_batches:  # frozen norms, as the published ones are
        epsilon = row.spec.backbone.norm_epsilon
        backbone = backbone.replace(norm_epsilon=epsilon)
        assumptions = [text for text in assumptions if not text.startswith("backbone: norm_epsilon=")]
        why = f"as the weights of {row.name} run"
        assumptions.append(sentence(f"backbone: norm_epsilon={epsilon:g}", why, "backbone.norm_epsilon"))
    told = _told(translation.arrays, shapes, row.spec, overrides)
    whose = f"torchvision's {row.name}"
    if detectron:
        whose = "detectron2's Faster R-CNN"
        told |= {**_DETECTRON_FIELDS, "unreported": (told["classes"],)}  # the background comes last
    usual = row.spec.replace(**(_DETECTRON_FIELDS if detectron else {}))
    assumptions += [
        sentence(f"{field}={getattr(usual, field)}", f"{whose}; the tensors do not tell", field)
        for field in (*_SAID, *(_DETECTRON_FIELDS if detectron else ()))
        if field not in overrides
    ]
    fields = {"backbone": backbone, **told, **overrides}
    return built(row.spec.replace, fields, overrides), tuple(assumptions)


def _told(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    spec: FasterRCNNSpec,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    ranks = {"class_logits_dense/kernel": 2, "box_codes_dense/kernel": 2, "rpn_objectness_conv/kernel": 4}
    ranks |= {"rpn_codes_conv/kernel": 4, "p3_lateral_conv/kernel": 4, "p3_output_conv/kernel": 4}
    for name, rank in ranks.items():
        if len(shapes.get(name, ())) != rank:
            raise CheckpointError(f"a detector must have a layer {name!r}. Received: {shapes.get(name)}.")
    sizes, ratios = (overrides.get(field, getattr(spec, field)) for field in ("anchor_sizes", "anchor_ratios"))
    anchors, outputs = shapes["rpn_objectness_conv/kernel"][-1], shapes["class_logits_dense/kernel"][-1]
    if anchors != len(sizes[0]) * len(ratios) or shapes["rpn_codes_conv/kernel"][-1] != 4 * anchors:
        raise CheckpointError(
            f"the network must propose boxes for {len(sizes[0]) * len(ratios)} anchors at each place. Received: "
            f"{anchors} and {shapes['rpn_codes_conv/kernel'][-1]} channels. Pass anchor_sizes= and anchor_ratios=."
        )
    if outputs < 2 or shapes["box_codes_dense/kernel"][-1] != 4 * outputs:
        raise CheckpointError(
            "the head must have four codes for each class output, the background among them. Received: "
            f"{outputs} class outputs and {shapes['box_codes_dense/kernel'][-1]} codes."
        )
    convs = range(1, highest(shapes, r"roi_(\d+)_conv/kernel") + 1)
    names = [f"roi_{number}_conv/kernel" for number in convs]
    if len(convs) > 100 or any(len(shapes.get(name, ())) != 4 for name in names):
        raise CheckpointError(f"the head's convolutions must be numbered without gaps. Received: {len(convs)} of them.")
    _, side = _pool(arrays)
    levels = sorted(
        int(match[1]) for match in (re.fullmatch(r"p(\d+)_lateral_conv/kernel", name) for name in shapes) if match
    )
    dense = highest(shapes, r"roi_dense_(\d+)/kernel")
    if dense and not side:
        raise CheckpointError(
            "the first dense layer must take a square map. Received: a kernel of "
            f"{shapes.get('roi_dense_1/kernel')} behind {shapes['p3_output_conv/kernel'][-1]} channels."
        )
    return {
        "levels": (*levels, levels[-1] + 1),
        "pyramid_width": shapes["p3_lateral_conv/kernel"][-1],
        "pyramid_norm": "batch" if "p3_lateral_bn/gamma" in shapes else "none",
        "proposal_depth": highest(shapes, r"rpn_(\d+)_conv/kernel"),
        "box_convs": tuple(shapes[name][-1] for name in names),
        "box_norm": "batch" if "roi_1_bn/gamma" in shapes else "none",
        "box_dense": dense,
        "box_width": shapes.get("roi_dense_1/kernel", (0, spec.box_width))[-1],
        "pool_size": side or spec.pool_size,
        "classes": outputs - 1,
        "unreported": (0,),
    }


def to_torch(spec: FasterRCNNSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of a detector under torchvision's names and axes.

    Args:
        spec: The detector.
        arrays: Weights by canonical name, as :func:`resfit.weights.canonical.arrays` returns them.

    Returns:
        Contiguous arrays, as torchvision's Faster R-CNN of today names them.

    Raises:
        ArgumentError: torchvision has no name for a layer of this detector, or runs it in another way.
    """
    if spec.background or spec.aligned:
        raise ArgumentError(
            "torchvision's Faster R-CNN has the background first and pixels at their corners. Received: a detector of "
            f"detectron2's kind, with the background at {spec.background}. Take naming='resfit'."
        )
    if spec.box_convs and (len(spec.box_convs) != 4 or spec.box_dense != 1):
        raise ArgumentError(
            "torchvision's second Faster R-CNN has four convolutions and a dense layer in its head. Received: "
            f"{len(spec.box_convs)} and {spec.box_dense}."
        )
    own = {name: array for name, array in arrays.items() if is_of_detector(name)}
    own |= _pooled(own, to_torch=True)
    body = {name: array for name, array in arrays.items() if name not in own}
    inside = detector_names.frozen(spec.backbone, pytorch.to_torch(spec.backbone, "torchvision", arrays=body))
    written = detector_names.to_torch(_NAMING, own)
    if spec.box_convs:
        written = {re.sub(r"box_head\.fc6\.", "box_head.5.", name): array for name, array in written.items()}
    return {**{f"{_BODY}{name}": array for name, array in inside.items()}, **written}
