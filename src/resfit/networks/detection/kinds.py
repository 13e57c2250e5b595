"""The kinds of detectors there are, and what is asked of all of them. No Keras here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resfit.networks.detection import (
    anchors,
    arithmetic,
    deformable_detr_plan,
    detr_plan,
    faster_rcnn_plan,
    rtdetr_plan,
)
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec

#: A detector that decodes queries and suppresses nothing, as data. ``isinstance`` takes it.
QueryDetectorSpec = RTDETRSpec | DETRSpec | DeformableDETRSpec
#: A detector of any kind, as data.
AnyDetectorSpec = DetectorSpec | RTDETRSpec | DETRSpec | DeformableDETRSpec | FasterRCNNSpec

# By the value of "kind" in a spec's fields; dense detectors have none.
_KINDS: dict[str, Any] = {kind.KIND: kind for kind in (RTDETRSpec, DETRSpec, DeformableDETRSpec, FasterRCNNSpec)}


def from_dict(fields: Mapping[str, Any]) -> AnyDetectorSpec:
    """Restores what the ``to_dict`` of a detector of any kind returned.

    Args:
        fields: The fields.

    Raises:
        ArgumentError: A field is unknown, ``backbone`` is missing, or the fields contradict each other.
    """
    kind = fields.get("kind")
    return (_KINDS.get(kind, DetectorSpec) if isinstance(kind, str) else DetectorSpec).from_dict(fields)


def count(spec: AnyDetectorSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector of any kind.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    if isinstance(spec, RTDETRSpec):
        return rtdetr_plan.count(spec, input_size=input_size)
    if isinstance(spec, DETRSpec):
        return detr_plan.count(spec, input_size=input_size)
    if isinstance(spec, DeformableDETRSpec):
        return deformable_detr_plan.count(spec, input_size=input_size)
    if isinstance(spec, FasterRCNNSpec):
        return faster_rcnn_plan.count(spec, input_size=input_size)
    return arithmetic.count(spec, input_size=input_size)


def boxes_of_levels(spec: AnyDetectorSpec, image_size: tuple[int, int]) -> tuple[int, ...]:
    """Returns how many boxes each level gives; queries and proposals are of no level, and count as one.

    Args:
        spec: The detector.
        image_size: Height and width of the image in pixels.
    """
    if isinstance(spec, QueryDetectorSpec):
        return (spec.queries,)
    if isinstance(spec, FasterRCNNSpec):
        return (min(spec.candidates, spec.proposals * spec.classes),)
    return tuple(rows * columns * spec.anchors_per_cell for rows, columns in anchors.grid_sizes(spec, image_size))


def class_weights(spec: AnyDetectorSpec) -> tuple[str, ...]:
    """Returns patterns of the canonical names of weights whose shape depends on the number of classes.

    Args:
        spec: The detector.
    """
    if isinstance(spec, RTDETRSpec):
        return ("decoder_*_class/*", "decoder_denoising/*")
    if isinstance(spec, DETRSpec):
        return ("decoder_class/*",)
    if isinstance(spec, DeformableDETRSpec):
        return ("decoder_class/*", "decoder_*_class/*")
    if isinstance(spec, FasterRCNNSpec):
        return ("class_logits_dense/*", "box_codes_dense/*")
    return ("class_logits_conv/*",)


def with_classes(spec: AnyDetectorSpec, classes: int) -> AnyDetectorSpec:
    """Returns a detector for other classes, without outputs that stand for none but the background's.

    Args:
        spec: The detector.
        classes: How many.
    """
    hidden: dict[str, Any] = {}
    if isinstance(spec, DETRSpec | FasterRCNNSpec):
        hidden = {"unreported": () if isinstance(spec, DETRSpec) else (0,)}
    return spec.replace(classes=classes, **hidden)


def takes_best_class(spec: AnyDetectorSpec) -> bool:
    """Whether only the best class of a box counts.

    Args:
        spec: The detector.
    """
    return isinstance(spec, DETRSpec)
