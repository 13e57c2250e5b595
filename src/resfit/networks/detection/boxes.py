"""Boxes: their codes against anchors and points, and how much they overlap. Keras ops, so that gradients pass.

A box is xyxy: left, top, right and bottom edge in pixels. Anchors and points are boxes too; a point is the centre of
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

#: Upper bound of the logarithm of a box's size against its anchor's, as torchvision has it: 62.5 times the anchor.
LARGEST_LOG_SIZE = math.log(1000 / 16)
# Distances of the kind "exp" end at a thousand units: far beyond any image, far below what float16 holds.
_LARGEST_LOG_DISTANCE = math.log(1000)


def decode_deltas(codes: Any, anchors: Any, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Any:
    """Returns the boxes of codes against anchors (Ren et al. 2015, arXiv:1506.01497).

    Args:
        codes: Shape ``(..., 4)``: shift of the centre in anchor widths and heights, logarithms of width and height in
            anchor's, the latter cut at :data:`LARGEST_LOG_SIZE`.
        anchors: Shape ``(..., 4)``, xyxy in pixels.
        stds: What the codes are multiplied by first.

    Returns:
        Boxes of shape ``(..., 4)``, xyxy in pixels.
    """
    if tuple(stds) != (1.0, 1.0, 1.0, 1.0):
        codes = codes * ops.convert_to_tensor(list(stds), dtype=codes.dtype)
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * size
    centre = codes[..., :2] * size + centre
    half = 0.5 * (ops.exp(ops.minimum(codes[..., 2:], LARGEST_LOG_SIZE)) * size)
    return ops.concatenate([centre - half, centre + half], axis=-1)


def encode_deltas(boxes: Any, anchors: Any, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Any:
    """Returns the codes that :func:`decode_deltas` brings back to the boxes.

    Args:
        boxes: Shape ``(..., 4)``, xyxy in pixels, of positive width and height.
        anchors: Shape ``(..., 4)``, likewise.
        stds: As in :func:`decode_deltas`.
    """
    size, own = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * own - (anchors[..., :2] + 0.5 * size)) / size
    codes = ops.concatenate([shift, ops.log(own / size)], axis=-1)
    return codes / ops.convert_to_tensor(list(stds), dtype=codes.dtype)


def decode_distances(distances: Any, points: Any) -> Any:
    """Returns the boxes of distances from points (Tian et al. 2019, arXiv:1904.01355).

    Args:
        distances: Shape ``(..., 4)``: left, top, right, bottom, in widths and heights of the point's box.
        points: Shape ``(..., 4)``: boxes around the points, xyxy in pixels.

    Returns:
        Boxes of shape ``(..., 4)``, xyxy in pixels.
    """
    size = points[..., 2:] - points[..., :2]
    centre = 0.5 * (points[..., :2] + points[..., 2:])
    return ops.concatenate([centre - distances[..., :2] * size, centre + distances[..., 2:] * size], axis=-1)


def encode_distances(boxes: Any, points: Any) -> Any:
    """Returns the distances that :func:`decode_distances` brings back to the boxes; negative outside a box.

    Args:
        boxes: Shape ``(..., 4)``, xyxy in pixels.
        points: Shape ``(..., 4)``, likewise.
    """
    size = points[..., 2:] - points[..., :2]
    centre = 0.5 * (points[..., :2] + points[..., 2:])
    return ops.concatenate([(centre - boxes[..., :2]) / size, (boxes[..., 2:] - centre) / size], axis=-1)


def activate_distances(codes: Any, activation: str) -> Any:
    """Returns positive distances.

    Args:
        codes: Any shape.
        activation: ``"relu"`` or ``"exp"``, which ends at a thousand.
    """
    if activation == "relu":
        return ops.relu(codes)
    return ops.exp(ops.minimum(codes, _LARGEST_LOG_DISTANCE))


def expected_distances(logits: Any, bins: int) -> Any:
    """Returns the means of distributions over the distances 0 to ``bins - 1`` (Li et al. 2020, arXiv:2006.04388).

    Args:
        logits: Shape ``(batch, n, 4 * bins)``; the bins of one side stand together.
        bins: Distances of a distribution.

    Returns:
        Shape ``(batch, n, 4)``.
    """
    shares = ops.softmax(ops.reshape(logits, (ops.shape(logits)[0], -1, 4, bins)), axis=-1)
    return ops.sum(shares * ops.arange(bins, dtype=shares.dtype), axis=-1)


def decode(codes: Any, anchors: Any, coding: str, stds: Sequence[float], bins: int) -> Any:
    """Returns the boxes of codes of any kind.

    Args:
        codes: What a head says, distances already positive.
        anchors: Shape ``(..., 4)``, xyxy in pixels: anchors, or boxes around points.
        coding: ``"deltas"``, ``"distances"`` or ``"distribution"``.
        stds: As in :func:`decode_deltas`.
        bins: As in :func:`expected_distances`.
    """
    if coding == "deltas":
        return decode_deltas(codes, anchors, stds)
    return decode_distances(expected_distances(codes, bins) if coding == "distribution" else codes, anchors)


def clip_boxes(boxes: Any, height: Any, width: Any) -> Any:
    """Returns the part of boxes that lies in an image.

    Args:
        boxes: Shape ``(..., 4)``, xyxy in pixels.
        height: Of the image in pixels, a number or a scalar tensor.
        width: Likewise.
    """
    limits = ops.stack([ops.cast(side, boxes.dtype) for side in (width, height, width, height)])
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def areas(boxes: Any) -> Any:
    """Returns the areas of boxes in square pixels, 0 for those turned inside out.

    Args:
        boxes: Shape ``(..., 4)``, xyxy in pixels.
    """
    size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def iou_matrix(first: Any, second: Any) -> Any:
    """Returns the intersection over union of each box with each.

    Args:
        first: Shape ``(..., n, 4)``, xyxy in pixels.
        second: Shape ``(..., m, 4)``.

    Returns:
        Shape ``(..., n, m)``, in [0, 1]; 0 where both areas are 0.
    """
    first, second = ops.expand_dims(first, -2), ops.expand_dims(second, -3)
    inter = _intersection(first, second)
    return _ratio(inter, areas(first) + areas(second) - inter)


def iou(first: Any, second: Any) -> Any:
    """Returns the intersection over union of boxes in pairs, in [0, 1].

    Args:
        first: Shape ``(..., 4)``, xyxy in pixels.
        second: The same shape.
    """
    inter = _intersection(first, second)
    return _ratio(inter, areas(first) + areas(second) - inter)


def giou(first: Any, second: Any) -> Any:
    """Returns the generalised intersection over union of boxes in pairs (Rezatofighi et al. 2019, arXiv:1902.09630).

    Args:
        first: Shape ``(..., 4)``, xyxy in pixels.
        second: The same shape.

    Returns:
        Shape ``(...)``, in [-1, 1]; finite, gradients too, for boxes without area.
    """
    inter = _intersection(first, second)
    union = areas(first) + areas(second) - inter
    low = ops.minimum(first[..., :2], second[..., :2])
    size = ops.maximum(ops.maximum(first[..., 2:], second[..., 2:]) - low, 0.0)
    hull = size[..., 0] * size[..., 1]
    return _ratio(inter, union) - _ratio(hull - union, hull)


def _intersection(first: Any, second: Any) -> Any:
    low = ops.maximum(first[..., :2], second[..., :2])
    size = ops.maximum(ops.minimum(first[..., 2:], second[..., 2:]) - low, 0.0)
    return size[..., 0] * size[..., 1]


def _ratio(part: Any, whole: Any) -> Any:
    """A quotient that is 0, with a gradient of 0, where the divisor is 0."""
    positive = whole > 0
    return ops.where(positive, part, 0.0) / ops.where(positive, whole, 1.0)
