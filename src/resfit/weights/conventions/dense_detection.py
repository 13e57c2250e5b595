"""Names of dense detectors of mmdetection (RetinaNet, FCOS, ATSS, GFL) and detectron2 (RetinaNet), and what their
tensors are called here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.networks.detection.anchors import octave_sizes
from resfit.networks.detection.spec import DetectorSpec
from resfit.preprocessing import TORCH, InputSpec
from resfit.weights.assumption import sentence
from resfit.weights.conventions import detector_names
from resfit.weights.conventions.detector_names import DetectorNames, Naming, backbone_of, built, highest
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = DetectorSpec, False

_BRANCHES = {"cls": "class", "reg": "box"}


def _mmdet() -> tuple[tuple[str, str], ...]:
    rules: list[tuple[str, str]] = [
        ("neck.lateral_convs.{i}.conv", "p{i+2}_lateral"),
        ("neck.fpn_convs.{i}.conv", "p{i+2}_output"),
    ]
    for source, own in _BRANCHES.items():
        rules += [(f"bbox_head.{source}_convs.{{i}}.{part}", f"{own}_{{i}}") for part in ("conv", "gn", "bn")]
    for kind, source in (("class_logits", "cls"), ("box_codes", "reg"), ("quality", "centerness")):
        rules += [(f"bbox_head.{name}_{source}", kind) for name in ("retina", "conv", "atss", "gfl")]
    return (*rules, ("bbox_head.scales.{i}", "p{i+2}_scale"))


#: The tables: mmdetection's, and detectron2's.
NAMINGS = (
    Naming(
        "mmdetection's dense detectors",
        re.compile(r"(?P<prefix>(?:.*\.)?)neck\.lateral_convs\.0\.conv\.weight"),
        ("backbone.",),
        _mmdet(),
        constants={r"bbox_head\.integral\.project": "constants that are computed anew"},
        groups=True,
    ),
    Naming(
        "detectron2's RetinaNet",
        re.compile(r"(?P<prefix>(?:.*\.)?)backbone\.fpn_lateral3\.weight"),
        ("backbone.bottom_up.",),
        (
            ("backbone.fpn_lateral{=i}", "p{=i}_lateral"),
            ("backbone.fpn_output{=i}", "p{=i}_output"),
            ("backbone.top_block.p{=i}", "p{=i}"),
            ("head.cls_subnet.{i*2}", "class_{i}"),
            ("head.bbox_subnet.{i*2}", "box_{i}"),
            ("head.cls_score", "class_logits"),
            ("head.bbox_pred", "box_codes"),
        ),
        constants={
            r"anchor_generator\.cell_anchors\.\d+": "constants that are computed anew",
            r"pixel_(?:mean|std)": "the input contract, which is read",
        },
    ),
)
_MMDET, _DETECTRON = NAMINGS
_SIZES = (32, 64, 128, 256, 512)
_STRIDES = tuple((2**level,) for level in range(3, 8))

# What tensors do not tell, by the last layer of the head: mmdetection's configurations of its own name.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "retina_cls": (
        "RetinaNet",
        {
            "anchor_sizes": octave_sizes(_SIZES, truncated=False),
            "anchor_ratios": (0.5, 1.0, 2.0),
            "box_coding": "deltas",
            "extra_activation": False,
            "extra_input": "c5",
        },
    ),
    "conv_cls": (
        "FCOS",
        {
            "anchor_sizes": ((1,),) * 5,  # distances are in pixels
            "anchor_offset": 0.5,
            "box_coding": "distances",
            "distance_activation": "exp",
            "quality_branch": "class",
            "quality_rule": "product",
        },
    ),
    "atss_cls": (
        "ATSS",
        {
            "anchor_sizes": tuple((8 * stride,) for (stride,) in _STRIDES),
            "box_coding": "deltas",
            "delta_stds": (0.1, 0.1, 0.2, 0.2),
            "extra_activation": False,
            "quality_rule": "product",
            "nms_threshold": 0.6,
        },
    ),
    "gfl_cls": (
        "GFL",
        {
            "anchor_sizes": _STRIDES,
            "box_coding": "distribution",
            "extra_activation": False,
            "nms_threshold": 0.6,
        },
    ),
}
_SAID = ("anchor_sizes", "anchor_ratios", "score_threshold", "nms_threshold", "extra_activation")
_SAID_OF_FCOS = ("quality_branch", "distance_activation")

#: mmdetection's contracts: of networks from torchvision's weights, and of those from Caffe's, as its FCOS is.
_RGB = dataclasses.replace(TORCH, size=(800, 1333), resize_mode="fit", crop_fraction=1.0)
_CAFFE = InputSpec(
    size=(800, 1333),
    channel_order="bgr",
    mean=(102.9801, 115.9465, 122.7717),
    resize_mode="fit",
    crop_fraction=1.0,
)
_BGR = dataclasses.replace(_CAFFE, mean=(103.53, 116.28, 123.675))
LICENCE = "detectron2 publishes its weights under CC BY-SA 3.0: what is made of them is under it too"


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of one of these detectors, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    heads = [f"bbox_head.{kind}.weight" for kind in _KINDS]
    return any(f"{prefix}{head}" in names for prefix in _MMDET.prefixes(names) for head in heads) or any(
        f"{prefix}head.cls_subnet.0.weight" in names for prefix in _DETECTRON.prefixes(names)
    )


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorNames:
    """Brings the tensors of a dense detector to canonical names, and its extra levels and anchors to their order here.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    found = detector_names.translate(tensors, NAMINGS, prefix=prefix, averaged=averaged)
    arrays = dict(found.arrays)
    if found.naming is _MMDET:
        levels = [int(match[1]) for match in map(re.compile(r"p(\d+)_lateral_conv/kernel").fullmatch, arrays) if match]
        for name in list(arrays):  # the extra levels stand behind those of stages
            match = re.fullmatch(r"p(\d+)_output_conv/(kernel|bias)", name)
            if match is not None and levels and int(match[1]) > max(levels):
                arrays[f"p{match[1]}_conv/{match[2]}"] = arrays.pop(name)
    else:
        _reorder(arrays)
        found = dataclasses.replace(found, left_out=(*found.left_out, LICENCE))
    names = tensors.arrays if isinstance(tensors, Tensors) else tensors
    kind = next((kind for kind in _KINDS if any(name.endswith(f"bbox_head.{kind}.weight") for name in names)), None)
    return dataclasses.replace(found, arrays=arrays, kind=kind or "retina_cls")


def _reorder(arrays: dict[str, np.ndarray]) -> None:
    """Brings anchors to the order of this package: detectron2 has the ratios of a size together."""
    sizes = ratios = 3
    values = {"class_logits": None, "box_codes": 4}
    for layer, each in values.items():
        for part in ("kernel", "bias"):
            array = arrays.get(f"{layer}_conv/{part}")
            last = 0 if array is None or not array.ndim else array.shape[-1]
            if array is None or not last or last % (sizes * ratios) or (each and last != 9 * each):
                continue
            apart = array.reshape(*array.shape[:-1], sizes, ratios, last // (sizes * ratios))
            arrays[f"{layer}_conv/{part}"] = np.swapaxes(apart, -3, -2).reshape(array.shape)


def usual_contract(translation: DetectorNames) -> tuple[InputSpec, str]:
    """Returns the input contract of such detectors where the source states none, and whose it is.

    Args:
        translation: As :func:`translate` returned it.
    """
    if translation.naming is _MMDET:
        return (_CAFFE, "mmdetection's for FCOS") if _kind(translation) == "FCOS" else (_RGB, "mmdetection's")
    return detectron_contract(translation)


def detectron_contract(translation: DetectorNames) -> tuple[InputSpec, str]:
    """Returns the input contract of detectors of detectron2, and whose it is: the file's own means where it has some.

    Args:
        translation: As :func:`translate` returned it.
    """
    mean, std = (translation.constants.get(f"pixel_{part}") for part in ("mean", "std"))
    if mean is None or std is None or np.size(mean) != 3 or np.size(std) != 3 or not np.all(np.asarray(std) > 0):
        return _BGR, "detectron2's"
    values = [tuple(float(value) for value in np.ravel(one)) for one in (mean, std)]
    order = "bgr" if values[0][0] < values[0][2] else "rgb"
    told = dataclasses.replace(_BGR, mean=values[0], std=values[1], channel_order=order)  # type: ignore[arg-type]
    return told, "the file's pixel_mean and pixel_std"


def _kind(translation: DetectorNames) -> str:
    """Which of mmdetection's detectors it is."""
    return _KINDS[translation.kind][0]


def identify(
    translation: DetectorNames,
    *,
    architecture: str | None = None,
    body: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[DetectorSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Args:
        translation: As :func:`translate` returned it.
        architecture: Not used: the catalog holds none of these.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        **overrides: Fields of :class:`DetectorSpec`; they win over everything.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override does not fit.
    """
    is_mmdet = translation.naming is _MMDET
    family = _kind(translation) if is_mmdet else "RetinaNet"
    usual = next(fields for name, fields in _KINDS.values() if name == family)
    if not is_mmdet:
        usual = {**usual, "extra_activation": True}
    caffe = not is_mmdet or family == "FCOS"
    own: dict[str, Any] = {"stride_in_block": "first" if caffe else "spatial", "activation": "relu"}
    own |= {"norm_epsilon": 1e-5, "stem_pool": "max", "antialias": None}
    backbone, assumptions = backbone_of(translation.body, **{**own, **(body or {})})
    shapes = {name: tuple(np.shape(array)) for name, array in translation.arrays.items()}
    fields = {"anchor_rounding": False, "anchor_stride": "nominal", **usual, **overrides}
    told = _told(shapes, fields)
    program = "mmdetection" if is_mmdet else "detectron2"
    if "stride_in_block" not in (body or {}) and backbone.block == "bottleneck":
        why = f"as {program}'s {family} has it; the tensors do not tell"
        name = "backbone.stride_in_block"
        assumptions.append(sentence(f"{name}={own['stride_in_block']!r}", why, name))
    fields = {"backbone": backbone, "classes": 80, "max_detections": 100, **told, **fields}
    spec = built(DetectorSpec, fields, overrides)
    assumptions += [
        sentence(f"{name}={getattr(spec, name)}", f"{program}'s {family}; the tensors do not tell", name)
        for name in (*_SAID, *(_SAID_OF_FCOS if family == "FCOS" else ()))
        if name not in overrides
    ]
    del architecture
    return spec, tuple(assumptions)


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    for name in ("class_logits_conv/kernel", "box_codes_conv/kernel", "p3_lateral_conv/kernel"):
        if len(shapes.get(name, ())) != 4:
            raise CheckpointError(f"a detector must have a convolution {name!r}. Received: {shapes.get(name)}.")
    anchors = len(fields["anchor_sizes"][0]) * len(fields.get("anchor_ratios", (1.0,)))
    classes, rest = divmod(shapes["class_logits_conv/kernel"][-1], anchors)
    values, more = divmod(shapes["box_codes_conv/kernel"][-1], 4 * anchors)
    distribution = fields["box_coding"] == "distribution"
    if rest or more or (values != 1) != distribution:
        raise CheckpointError(
            f"the head must have {anchors} anchors at each place. Received: box outputs of "
            f"{shapes['box_codes_conv/kernel'][-1]} and class outputs of {shapes['class_logits_conv/kernel'][-1]} "
            "channels. Pass anchor_sizes= and anchor_ratios=."
        )
    levels = sorted(
        int(match[1])
        for match in (re.fullmatch(r"p(\d+)(?:_lateral)?_conv/kernel", name) for name in shapes)
        if match is not None
    )
    width = shapes["p3_lateral_conv/kernel"][-1]
    extra = shapes.get("p6_conv/kernel", (0, 0, width, 0))
    told = {
        "levels": tuple(levels),
        "pyramid_width": width,
        "extra_input": "p5" if extra[2] == width else "c5",
        "head_depth": highest(shapes, r"class_(\d+)_conv/kernel"),
        "head_width": shapes["class_logits_conv/kernel"][2],
        "head_norm": "group" if "class_1_gn/gamma" in shapes else "batch" if "class_1_bn/gamma" in shapes else "none",
        "head_bias": "class_1_conv/bias" in shapes,
        "level_scales": "p3_scale/scale" in shapes,
        "quality": "centerness" if "quality_conv/kernel" in shapes else None,
        "classes": classes,
    }
    return told | ({"distribution_bins": values} if distribution else {})
