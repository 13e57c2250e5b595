"""Losses of dense detectors. All are finite for pictures, and batches, without boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from resfit.networks.detection import boxes as box_rules

#: Of the focal loss (Lin et al. 2017, arXiv:1708.02002): weight of objects against background, and exponent.
ALPHA, GAMMA = 0.25, 2.0


def focal(logits: Any, targets: Any, *, alpha: float = ALPHA, gamma: float = GAMMA) -> Any:
    """Returns the focal loss of each logit.

    Args:
        logits: Any shape.
        targets: The same shape, 0 or 1.
        alpha: Weight of 1 against 0.
        gamma: Exponent; 0 is cross-entropy.
    """
    wrong = ops.abs(targets - ops.sigmoid(logits))
    weight = targets * alpha + (1 - targets) * (1 - alpha)
    return weight * ops.power(wrong, gamma) * _entropy(logits, targets)


def quality_focal(logits: Any, targets: Any, *, beta: float = 2.0) -> Any:
    """Returns the quality focal loss of each logit (Li et al. 2020, arXiv:2006.04388, equation 6).

    Args:
        logits: Any shape.
        targets: The same shape, in [0, 1]: how well the predicted box overlaps the true one; 0 for background.
        beta: Exponent.
    """
    wrong = ops.abs(targets - ops.sigmoid(logits))
    return ops.power(wrong, beta) * _entropy(logits, targets)


def centerness(distances: Any) -> Any:
    """Returns how central places are in their boxes, in [0, 1] (Tian et al. 2019, arXiv:1904.01355, equation 3).

    Args:
        distances: Shape ``(..., 4)``: left, top, right, bottom; what is negative counts as 0.
    """
    distances = ops.maximum(distances, 0.0)
    across, down = distances[..., 0::2], distances[..., 1::2]
    product = 1.0
    for pair in (across, down):
        product = product * ops.min(pair, axis=-1) / ops.maximum(ops.max(pair, axis=-1), 1e-6)
    return ops.sqrt(ops.maximum(product, 1e-12))


def binary(logits: Any, targets: Any) -> Any:
    """Returns the binary cross-entropy of each logit.

    Args:
        logits: Any shape.
        targets: The same shape, in [0, 1].
    """
    return _entropy(logits, targets)


def detection_loss(
    outputs: dict[str, Any],
    points: Any,
    rows: Any,
    boxes: Any,
    labels: Any,
    *,
    kind: str = "quality_focal",
    box_weight: float = 2.0,
    decode: Callable[[Any, Any], Any] = box_rules.decode_distances,
    divisors: tuple[Any, Any] | None = None,
) -> dict[str, Any]:
    """Returns the loss of a batch by part.

    Args:
        outputs: Raw outputs of a dense detector.
        points: Shape ``(n, 4)``, the anchors, or the unit boxes of the points.
        rows: int32 ``(batch, n)``: the box that each place learns, -1 for background, -2 for what does not count.
        boxes: Shape ``(batch, most, 4)``, xyxy in pixels of the input, padded with anything.
        labels: int32 ``(batch, most)``.
        kind: Of the classes' loss: ``"focal"`` or ``"quality_focal"``.
        box_weight: Of the boxes' loss.
        decode: From codes and ``points`` to boxes.
        divisors: What the losses are divided by, as :func:`divisors_of` returns it for the batch of which this is a
            part; ``None`` takes those of these pictures.

    Returns:
        Scalars ``class``, ``box``, with a quality output ``quality``, and ``total``, their sum.
    """
    logits, codes = outputs["class_logits"], outputs["box_codes"]
    positive, central, true = _learned(points, rows, boxes)
    points = ops.expand_dims(points, 0)
    counted = ops.cast(rows >= -1, "float32")
    predicted = decode(codes, points)
    kinds = ops.one_hot(
        ops.take_along_axis(labels, ops.maximum(rows, 0), axis=1), logits.shape[-1], dtype="float32"
    ) * ops.expand_dims(positive, -1)
    found: dict[str, Any] = {}
    if kind == "quality_focal":
        overlap = ops.stop_gradient(box_rules.iou(predicted, true))
        each = quality_focal(logits, kinds * ops.expand_dims(overlap, -1))
        # by its own sum, which is small as long as scores are: boxes learn from the first step
        weight = score_weight(logits, rows)
    else:
        each = focal(logits, kinds)
        weight = central
    total, divisor = divisors or _divisors(positive, ops.sum(weight), kind)
    found["class"] = ops.sum(ops.sum(each, axis=-1) * counted) / total
    found["box"] = box_weight * ops.sum((1 - box_rules.giou(predicted, true)) * weight) / divisor
    if "quality" in outputs:
        found["quality"] = ops.sum(binary(outputs["quality"][..., 0], central) * positive) / total
    found["total"] = sum(found.values())
    return found


def score_weight(logits: Any, rows: Any) -> Any:
    """Returns what the boxes of places count in the quality focal loss: their highest score, 0 for background.

    Args:
        logits: Shape ``(batch, n, classes)``.
        rows: int32 ``(batch, n)``, as :func:`detection_loss` takes them.
    """
    return ops.cast(rows >= 0, "float32") * ops.stop_gradient(ops.max(ops.sigmoid(logits), axis=-1))


def divisors_of(points: Any, rows: Any, boxes: Any, *, kind: str, weight: Any) -> tuple[Any, Any]:
    """Returns what the losses of a batch are divided by: that of classes and quality, and that of boxes.

    Args:
        points: As :func:`detection_loss` takes it, like all that follow.
        rows: Of the whole batch.
        boxes: Of the whole batch.
        kind: Of the classes' loss.
        weight: The sum of :func:`score_weight` over the whole batch; read for ``"quality_focal"`` alone.
    """
    positive, central, _ = _learned(points, rows, boxes)
    return _divisors(positive, weight if kind == "quality_focal" else ops.sum(central), kind)


def _divisors(positive: Any, weight: Any, kind: str) -> tuple[Any, Any]:
    return ops.maximum(ops.sum(positive), 1.0), ops.maximum(weight, 1e-6 if kind == "quality_focal" else 1.0)


def _learned(points: Any, rows: Any, boxes: Any) -> tuple[Any, Any, Any]:
    """Returns which places learn a box, how central they are in it, and the box."""
    points = ops.expand_dims(points, 0)
    positive = ops.cast(rows >= 0, "float32")
    true = ops.take_along_axis(boxes, ops.expand_dims(ops.maximum(rows, 0), -1), axis=1)
    # places without a box are given their own unit box, so that no loss of theirs is undefined
    true = ops.where(ops.expand_dims(positive, -1) > 0, true, points)
    return positive, centerness(box_rules.encode_distances(true, points)) * positive, true


def _entropy(logits: Any, targets: Any) -> Any:
    """The binary cross-entropy, finite for any logit."""
    return ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))
