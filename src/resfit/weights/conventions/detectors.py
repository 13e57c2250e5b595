"""Detectors: what their tensors are read as, whoever names them."""

from __future__ import annotations

from typing import Any

from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.weights import detectors
from resfit.weights.conventions import (
    deformable_detr,
    dense_detection,
    detr,
    faster_rcnn,
    rtdetr,
    torchvision_detection,
)
from resfit.weights.conventions.base import register_convention
from resfit.weights.detectors import DetectorSource
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.resfit import CanonicalNames


def _is_own(tensors: Tensors) -> bool:
    return isinstance(tensors.graph, CanonicalNames) and isinstance(tensors.config.get("resfit"), AnyDetectorSpec)


@register_convention("resfit's detectors", recognises=_is_own, order=-1, is_larger=True)
def _own(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Hands on the arrays of a detector that resfit wrote."""
    return detectors.read_own(tensors, **reading)


@register_convention(
    "torchvision's detectors",
    recognises=lambda tensors: torchvision_detection.is_detector(tensors.arrays),
    order=30,
    is_larger=True,
)
def _torchvision(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of a detector of torchvision."""
    return detectors.read(tensors, torchvision_detection, **reading)


@register_convention(
    "torchvision's Faster R-CNN",
    recognises=lambda tensors: faster_rcnn.is_detector(tensors.arrays),
    order=30,
    is_larger=True,
)
def _faster_rcnn(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of a Faster R-CNN of torchvision."""
    return detectors.read(tensors, faster_rcnn, **reading)


@register_convention("RT-DETR", recognises=lambda tensors: rtdetr.is_detector(tensors.arrays), order=30, is_larger=True)
def _rtdetr(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of an RT-DETR."""
    return detectors.read(tensors, rtdetr, **reading)


@register_convention(
    "Deformable DETR", recognises=lambda tensors: deformable_detr.is_detector(tensors.arrays), order=30, is_larger=True
)
def _deformable_detr(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of a Deformable DETR."""
    return detectors.read(tensors, deformable_detr, **reading)


@register_convention("DETR", recognises=lambda tensors: detr.is_detector(tensors.arrays), order=30, is_larger=True)
def _detr(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of a DETR."""
    return detectors.read(tensors, detr, **reading)


@register_convention(
    "mmdetection's and detectron2's dense detectors",
    recognises=lambda tensors: dense_detection.is_detector(tensors.arrays),
    order=30,
    is_larger=True,
)
def _dense(tensors: Tensors, **reading: Any) -> DetectorSource:
    """Translates the tensors of a dense detector of mmdetection or detectron2."""
    return detectors.read(tensors, dense_detection, **reading)
