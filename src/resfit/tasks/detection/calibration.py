"""Scores that are probabilities, and the score from which boxes are shown; both from validation pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.boxes import BoxSet
from resfit.evaluation.detection import Matching
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.tasks.detection.evaluation import matched

if TYPE_CHECKING:
    from resfit.tasks.detection.detections import Detections
    from resfit.tasks.detection.detector import Detector

_LEAST = 50  # detections, and of them hits and others each a fifth
_PRIOR_STRENGTH = 1.0


def calibrate(detector: Detector, boxes: BoxSet, found: Sequence[Detections]) -> Matching:
    """Makes scores probabilities of a box being right (at an overlap of 0.5), and chooses thresholds.

    A scale and a shift of the classes' logits become part of the network's weights, so that every runtime gives the
    same scores. Their order stays, and with it AP.

    Args:
        detector: Not calibrated yet; its weights, thresholds and recipe are changed.
        boxes: Validation pictures.
        found: For each all detections.

    Returns:
        Its detections matched with the true boxes, scores calibrated.
    """
    matching = matched(boxes, list(found))
    counted = ~matching.ignored[:, 0, 0]
    right = matching.hit[counted, 0, 0]
    scale, shift = 1.0, 0.0
    enough = counted.sum() >= _LEAST and _LEAST / 5 <= right.sum() <= counted.sum() - _LEAST / 5
    if (
        enough
        and isinstance(detector.spec, DetectorSpec | RTDETRSpec)
        and getattr(detector.spec, "quality", None) is None
    ):
        scale, shift = fitted(matching.score[counted], right)
        _fold(detector, scale, shift)
        found = [dataclasses.replace(one, scores=rescaled(one.scores, scale, shift)) for one in found]
        matching = matched(boxes, list(found))
    detector.recipe = dataclasses.replace(detector.recipe, score_scale=scale, score_shift=shift)
    points = matching.operating_points()
    known = [point.threshold for point in points.values() if point is not None]
    usual = float(np.median(known)) if known else 0.5
    # halfway to the next lower score, so that the last bit of a runtime's arithmetic decides nothing
    detector.thresholds = {
        name: usual if point is None else _between(matching, name, point.threshold) for name, point in points.items()
    }
    return matching


def fitted(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Returns scale (above 0) and shift of logits with the least cross-entropy (Platt 1999), pulled weakly to 1 and 0.

    Args:
        scores: Array ``(n,)``, in (0, 1).
        right: bool ``(n,)``.
    """
    from scipy import optimize

    logits = _logits(scores)
    targets = right.astype(np.float64)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scale = np.exp(values[0])
        outputs = scale * logits + values[1]
        each = np.logaddexp(0, outputs) - targets * outputs
        wrong = 1 / (1 + np.exp(-outputs)) - targets
        gradient = np.array([(wrong * logits * scale).sum(), wrong.sum()]) + 2 * _PRIOR_STRENGTH * values
        return float(each.sum() + _PRIOR_STRENGTH * (values**2).sum()), gradient

    best = optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=((-2.0, 2.0), (-8.0, 8.0)))
    return float(np.exp(best.x[0])), float(best.x[1])


def rescaled(scores: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Returns scores whose logits are scaled and shifted, float32.

    Args:
        scores: Array in (0, 1).
        scale: Factor of the logits.
        shift: Added then.
    """
    return (1 / (1 + np.exp(-(scale * _logits(scores) + shift)))).astype(np.float32)


def _logits(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    return np.log(clipped) - np.log1p(-clipped)


def _fold(detector: Detector, scale: float, shift: float) -> None:
    """Makes scale and shift part of the last layer of the classes."""
    spec = detector.spec
    name = f"decoder_{spec.decoder_depth}_class" if isinstance(spec, RTDETRSpec) else "class_logits_conv"
    layer: Any = detector.model.get_layer(name)
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * np.float32(scale), bias * np.float32(scale) + np.float32(shift)])
    for name in ("joined",):
        detector.__dict__.pop(name, None)
    detector._engines.clear()


def _between(matching: Matching, name: str, threshold: float) -> float:
    """A score between a threshold and the next lower score of its class."""
    own = matching.score[matching.label == matching.classes.index(name)]
    lower = own[own < threshold]
    return float((threshold + lower.max()) / 2) if len(lower) else float(threshold) * 0.999
