"""Every named detector, one row each. No Keras here."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from typing import Any

from resfit.errors import UnknownNameError, closest
from resfit.networks import arithmetic, catalog
from resfit.networks.detection.anchors import octave_sizes
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.networks.spec import ArchitectureSpec

RETINANET = "Lin et al. 2017, arXiv:1708.02002"
FCOS = "Tian et al. 2019, arXiv:1904.01355"
ATSS = "Zhang et al. 2019, arXiv:1912.02424"
FASTER_RCNN = "Ren et al. 2015, arXiv:1506.01497"
FASTER_RCNN_V2 = "Li et al. 2021, arXiv:2111.11429"
GFL = "Li et al. 2020, arXiv:2006.04388"
DETR = "Carion et al. 2020, arXiv:2005.12872"
DEFORMABLE_DETR = "Zhu et al. 2020, arXiv:2010.04159"
RTDETR = "Zhao et al. 2023, arXiv:2304.08069"
RTDETR_V2 = "Lv et al. 2024, arXiv:2407.17140"

#: torchvision's classes of COCO: 80 with gaps, and the background at 0.
TORCHVISION_CLASSES = 91


@dataclasses.dataclass(frozen=True)
class DetectorRow:
    """One named detector.

    Attributes:
        name: Its name.
        family: The kind of detector, for listings.
        spec: The detector.
        paper: Where it was published.
    """

    name: str
    family: str
    spec: AnyDetectorSpec
    paper: str


def light(backbone: ArchitectureSpec, **changes: Any) -> DetectorSpec:
    """Returns a light detector for processors without an accelerator, on any backbone.

    FCOS with two convolutions of 128 channels in each branch and one level less, points in the middle of their cells,
    a learned factor for each level, and distances by an exponential, which learn from the first step.

    Args:
        backbone: The residual network. Where it ends before stride 32, further levels take the place of those that it
            lacks; where it ends before stride 8 (networks for CIFAR), the levels begin at its last stride.
        **changes: Other fields of the spec.
    """
    strides = arithmetic.count(backbone, include_top=False).taps.values()
    levels = changes.pop("levels", tuple(range(min(3, max(strides).bit_length() - 1), 7)))
    fields: dict[str, Any] = {
        "pyramid_width": 128,
        "head_depth": 2,
        "head_width": 128,
        "head_norm": "group",
        "head_bias": False,
        "anchor_sizes": tuple((2**level,) for level in levels),
        "anchor_rounding": False,
        "anchor_stride": "nominal",
        "anchor_offset": 0.5,
        "distance_activation": "exp",
        "level_scales": True,
        "quality": "centerness",
        "nms_threshold": 0.6,
        "candidates": 250,
        "input_size": (640, 640),
    }
    return DetectorSpec(backbone=backbone, levels=levels, **{**fields, **changes})


@functools.cache
def rows() -> dict[str, DetectorRow]:
    """Returns every row by its name, in the order of the table."""
    # torchvision's resnet50, the stride in the 3x3
    resnet50 = catalog.get("resnet50v1.5").spec
    anchored = DetectorSpec(
        backbone=resnet50,
        anchor_sizes=octave_sizes((32, 64, 128, 256, 512)),
        anchor_ratios=(0.5, 1.0, 2.0),
        box_coding="deltas",
        classes=TORCHVISION_CLASSES,
        max_detections=300,
    )
    fcos = DetectorSpec(
        backbone=resnet50,
        head_norm="group",
        quality="centerness",
        classes=TORCHVISION_CLASSES,
        score_threshold=0.2,
        nms_threshold=0.6,
    )
    small = light(catalog.get("resnet18").spec)
    table = (
        # its weights were trained, and run, with an epsilon of 0
        DetectorRow(
            "retinanet_resnet50", "RetinaNet", anchored.replace(backbone=resnet50.replace(norm_epsilon=0.0)), RETINANET
        ),
        DetectorRow(
            "retinanet_resnet50_v2",
            "RetinaNet",
            anchored.replace(extra_input="c5", head_norm="group", head_bias=False),
            ATSS,
        ),
        DetectorRow("fcos_resnet50", "FCOS", fcos, FCOS),
        DetectorRow("fcos_light_resnet18", "FCOS", small, FCOS),
        *_dense_rows_of_others(resnet50),
        *_faster_rcnn_rows(resnet50),
        *_rtdetr_rows(),
        *_detr_rows(),
    )
    return {row.name: row for row in table}


def _dense_rows_of_others(resnet50: ArchitectureSpec) -> list[DetectorRow]:
    """mmdetection's and detectron2's."""
    resnet101 = catalog.get("resnet101v1.5").spec
    plain = DetectorSpec(backbone=resnet50, anchor_rounding=False, anchor_stride="nominal", extra_activation=False)
    sizes, strides = (32, 64, 128, 256, 512), tuple((2**level,) for level in range(3, 8))
    anchored = plain.replace(
        anchor_sizes=octave_sizes(sizes, truncated=False),
        anchor_ratios=(0.5, 1.0, 2.0),
        box_coding="deltas",
        extra_input="c5",
    )
    normed = plain.replace(head_norm="group", head_bias=False, level_scales=True)
    fcos = normed.replace(
        backbone=_strided_first(resnet50),
        anchor_sizes=((1,),) * 5,
        anchor_offset=0.5,
        distance_activation="exp",
        extra_activation=True,
        quality="centerness",
        quality_branch="class",
        quality_rule="product",
    )
    atss = normed.replace(
        anchor_sizes=tuple((8 * stride,) for (stride,) in strides),
        box_coding="deltas",
        delta_stds=(0.1, 0.1, 0.2, 0.2),
        quality="centerness",
        quality_rule="product",
        nms_threshold=0.6,
    )
    gfl = normed.replace(anchor_sizes=strides, box_coding="distribution", nms_threshold=0.6)
    detectron = anchored.replace(backbone=_strided_first(resnet50), extra_activation=True)
    return [
        DetectorRow("retinanet_resnet50_mmdet", "RetinaNet", anchored, RETINANET),
        DetectorRow("retinanet_resnet101_mmdet", "RetinaNet", anchored.replace(backbone=resnet101), RETINANET),
        DetectorRow("fcos_resnet50_mmdet", "FCOS", fcos, FCOS),
        DetectorRow("atss_resnet50", "ATSS", atss, ATSS),
        DetectorRow("atss_resnet101", "ATSS", atss.replace(backbone=resnet101), ATSS),
        DetectorRow("gfl_resnet50", "GFL", gfl, GFL),
        DetectorRow("gfl_resnet50_2x", "GFL", gfl, GFL),
        DetectorRow("retinanet_resnet50_detectron2", "RetinaNet", detectron, RETINANET),
        DetectorRow("retinanet_resnet50_detectron2_3x", "RetinaNet", detectron, RETINANET),
        DetectorRow(
            "retinanet_resnet101_detectron2_3x",
            "RetinaNet",
            detectron.replace(backbone=_strided_first(resnet101)),
            RETINANET,
        ),
    ]


def _strided_first(backbone: ArchitectureSpec) -> ArchitectureSpec:
    """A network whose blocks carry their stride in the first convolution, as Caffe's do."""
    return backbone.replace(stride_in_block="first")


def _faster_rcnn_rows(resnet50: ArchitectureSpec) -> list[DetectorRow]:
    first = FasterRCNNSpec(backbone=resnet50.replace(norm_epsilon=0.0))  # as its weights run
    second = FasterRCNNSpec(
        backbone=resnet50,
        pyramid_norm="batch",
        proposal_depth=2,
        box_convs=(256,) * 4,
        box_norm="batch",
        box_dense=1,
    )
    detectron = FasterRCNNSpec(
        backbone=_strided_first(resnet50),
        anchor_rounding=False,
        anchor_stride="nominal",
        aligned=True,
        samples=0,
        classes=80,
        unreported=(80,),
    )
    return [
        DetectorRow("faster_rcnn_resnet50", "Faster R-CNN", first, FASTER_RCNN),
        DetectorRow("faster_rcnn_resnet50_v2", "Faster R-CNN", second, FASTER_RCNN_V2),
        DetectorRow("faster_rcnn_resnet50_detectron2", "Faster R-CNN", detectron, FASTER_RCNN),
        DetectorRow("faster_rcnn_resnet50_detectron2_3x", "Faster R-CNN", detectron, FASTER_RCNN),
        DetectorRow(
            "faster_rcnn_resnet101_detectron2_3x",
            "Faster R-CNN",
            detectron.replace(backbone=_strided_first(catalog.get("resnet101v1.5").spec)),
            FASTER_RCNN,
        ),
    ]


def _detr_rows() -> list[DetectorRow]:
    rows = []
    for name, body in (("resnet50", "resnet50v1.5"), ("resnet101", "resnet101v1.5")):
        for suffix, stride in (("", 32), ("_dc5", 16)):
            backbone = catalog.get(body).spec.replace(output_stride=stride)
            rows.append(DetectorRow(f"detr_{name}{suffix}", "DETR", DETRSpec(backbone=backbone), DETR))
    resnet50 = catalog.get("resnet50v1.5").spec
    forms: dict[str, dict[str, Any]] = {
        "": {},
        "_refine": {"refines": True},
        "_two_stage": {"refines": True, "proposes": True},
    }
    for suffix, fields in forms.items():
        spec = DeformableDETRSpec(backbone=resnet50, **fields)
        rows.append(DetectorRow(f"deformable_detr_resnet50{suffix}", "Deformable DETR", spec, DEFORMABLE_DETR))
    return rows


def _rtdetr_rows() -> list[DetectorRow]:
    small, deep = {"fusion_width": 128, "decoder_depth": 3}, {"fusion_width": 128, "decoder_depth": 4}
    wide = {"encoder_width": 384, "encoder_hidden": 2048, "fusion_width": 384}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "r18vd": ("resnet_vd_18", small),
        "r34vd": ("resnet_vd_34", deep),
        "r50vd_m": ("resnet50d", {"fusion_width": 128}),
        "r50vd": ("resnet50d", {}),
        "r101vd": ("resnet101d", wide),
    }
    rows = []
    for version, (prefix, paper) in enumerate((("rtdetr", RTDETR), ("rtdetrv2", RTDETR_V2)), start=1):
        family = "RT-DETR" if version == 1 else "RT-DETRv2"
        for name, (body, fields) in bodies.items():
            spec = RTDETRSpec(backbone=catalog.get(body).spec, **{"version": version, **fields})
            rows.append(DetectorRow(f"{prefix}_{name}", family, spec, paper))
            if version == 1 and name in ("r18vd", "r50vd", "r101vd"):  # trained on Objects365 before COCO
                rows.append(DetectorRow(f"{prefix}_{name}_o365", family, spec, paper))
    return rows


def get(name: str) -> DetectorRow:
    """Returns the row of a name.

    Args:
        name: A name of the catalog, such as ``"retinanet_resnet50_v2"``.

    Raises:
        UnknownNameError: No row has this name.
    """
    table = rows()
    if name not in table:
        raise UnknownNameError(
            f"detector must be a name of the catalog: {', '.join(table)}. Received: {name!r}.{closest(name, table)}"
        )
    return table[name]


def names(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern, in the order of the table.

    Args:
        pattern: Shell pattern such as ``"retinanet_*"``.
    """
    return [name for name in rows() if fnmatch.fnmatchcase(name, pattern)]
