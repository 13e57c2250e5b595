"""Non-maximum suppression, exactly the greedy one, from operations that every runtime has.

Boxes are sorted by score. Whether one stays depends on the better ones alone: it goes if a better one of its class,
which stays itself, overlaps it by more than the threshold. Starting with all boxes, this rule is applied to all of them
at once until nothing changes. After ``n`` rounds every box is decided that ends a chain of at most ``n`` suppressions.
So the rounds come to an end, and what is left is what the loop over the boxes leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from resfit.errors import ArgumentError
from resfit.networks.detection.boxes import iou_matrix
from resfit.numerics import float32_below

_register = keras.saving.register_keras_serializable(package="resfit")


def keep_greedily(boxes: Any, classes: Any, threshold: float, *, alive: Any = None, rounds: int | None = None) -> Any:
    """Returns which boxes greedy suppression keeps, class by class.

    Args:
        boxes: Shape ``(batch, n, 4)``, xyxy, the best first.
        classes: Shape ``(batch, n)``. Boxes suppress only those of their class.
        threshold: Boxes go that overlap a better one by more than this intersection over union.
        alive: Float32 of shape ``(batch, n)``: 0 for boxes that are gone from the start. Default: none is.
        rounds: Number of rounds to unroll, for runtimes without loops: chains of more suppressions than this are then
            not decided exactly. Default: as many as it takes, in a loop.

    Returns:
        Float32 of shape ``(batch, n)``, 1 for what stays, 0 for what goes.
    """
    order = ops.arange(ops.shape(boxes)[1], dtype="int32")
    better = ops.expand_dims(order, 1) < ops.expand_dims(order, 0)  # [i, j]: i comes before j
    over = ops.logical_and(_overlapping(boxes, classes, boxes, classes, threshold), ops.expand_dims(better, 0))
    over = ops.cast(over, "float32")
    start = ops.ones_like(boxes[..., 0], dtype="float32") if alive is None else alive

    def step(keep: Any) -> Any:
        hits = ops.matmul(ops.expand_dims(keep, 1), over)[:, 0]
        return ops.cast(hits < 0.5, "float32") * start

    if rounds is not None:
        keep = start
        for _ in range(rounds):
            keep = step(keep)
        return keep

    def unsettled(keep: Any, before: Any) -> Any:
        return ops.any(ops.not_equal(keep, before))

    keep, _ = ops.while_loop(unsettled, lambda keep, before: (step(keep), keep), (step(start), start))
    return keep


def best_pairs(boxes: Any, scores: Any, candidates: int) -> tuple[Any, Any, Any]:
    """Returns the pairs of box and class with the highest scores, the best first.

    Of equal scores the earlier box comes first, and of one box the earlier class.

    Args:
        boxes: Shape ``(batch, n, 4)``.
        scores: Shape ``(batch, n, classes)``, not negative.
        candidates: How many pairs.

    Returns:
        Boxes ``(batch, candidates, 4)``, scores ``(batch, candidates)`` and classes ``(batch, candidates)``, int32.
        Where there are fewer, the rest are empty boxes of score -1.
    """
    count, classes = scores.shape[1], scores.shape[2]
    missing = candidates if count is None else max(candidates - count, 0)
    if missing:
        boxes = ops.pad(boxes, ((0, 0), (0, missing), (0, 0)))
        scores = ops.pad(scores, ((0, 0), (0, missing), (0, 0)), constant_values=-1.0)
    # the best pairs are among the boxes with the best classes
    _, chosen = ops.top_k(ops.max(scores, axis=2, initial=-1.0), candidates)  # without it, Keras refuses no images
    chosen = ops.expand_dims(ops.sort(ops.cast(chosen, "int32"), axis=1), 2)
    boxes, scores = ops.take_along_axis(boxes, chosen, axis=1), ops.take_along_axis(scores, chosen, axis=1)
    scores, pairs = ops.top_k(ops.reshape(scores, (-1, candidates * classes)), candidates)
    pairs = ops.cast(pairs, "int32")
    boxes = ops.take_along_axis(boxes, ops.expand_dims(pairs // classes, 2), axis=1)
    return boxes, scores, pairs % classes


def best_pairs_by_level(boxes: Any, scores: Any, counts: Sequence[Any], candidates: int) -> tuple[Any, Any, Any]:
    """Returns the best pairs of box and class of each level, the best of all first, as torchvision chooses them.

    Args:
        boxes: As in :func:`best_pairs`, level by level.
        scores: Likewise.
        counts: Boxes of each level, numbers or scalar tensors.
        candidates: How many pairs of each level.

    Returns:
        As :func:`best_pairs`, ``len(counts) * candidates`` of them.
    """
    found, start = [], 0
    for count in counts:
        end = start + count
        found.append(best_pairs(boxes[:, start:end], scores[:, start:end], candidates))
        start = end
    boxes, scores, classes = (ops.concatenate(list(parts), axis=1) for parts in zip(*found, strict=True))
    scores, order = ops.top_k(scores, len(counts) * candidates)
    order = ops.cast(order, "int32")
    boxes = ops.take_along_axis(boxes, ops.expand_dims(order, 2), axis=1)
    return boxes, scores, ops.take_along_axis(classes, order, axis=1)


@_register
class NonMaxSuppression(keras.layers.Layer):
    """Class-wise greedy non-maximum suppression of a detector's boxes.

    Args:
        score_threshold: Detections have more than this score.
        nms_threshold: Of two boxes of one class that overlap by more than this intersection over union, the better
            stays.
        candidates: Pairs of box and class that enter, the best of each level, where the input tells of levels, else of
            each image.
        max_detections: Detections of an image.
        anchors_per_cell: Boxes at each place of a level's map.
        rounds: As in :func:`keep_greedily`.
        block: Pairs that are compared with each other at a time, which bounds the memory: a matrix of this squared for
            each image. The result does not depend on it.
        **kwargs: As ``keras.layers.Layer`` takes them.

    Raises:
        ArgumentError: A count is not above 0.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates: int = 1000,
        max_detections: int = 100,
        anchors_per_cell: int = 1,
        rounds: int | None = None,
        block: int = 1000,
        **kwargs: Any,
    ):
        super().__init__(**{"dtype": "float32", **kwargs})
        if min(candidates, max_detections, anchors_per_cell, block) < 1:
            raise ArgumentError(
                "candidates, max_detections, anchors_per_cell and block must be at least 1. Received: "
                f"{candidates}, {max_detections}, {anchors_per_cell} and {block}."
            )
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates = candidates
        self.max_detections = max_detections
        self.anchors_per_cell = anchors_per_cell
        self.rounds = rounds
        self.block = block

    def call(self, inputs: Any) -> dict[str, Any]:
        """Suppresses boxes.

        Args:
            inputs: ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}``, and, for candidates level by level,
                ``"maps"``, a list of tensors ``(batch, height, width, any)`` of which only height and width matter.

        Returns:
            ``"boxes"`` ``(batch, max_detections, 4)``, ``"scores"`` ``(batch, max_detections)``, ``"classes"`` likewise
            and int32, the best first, and ``"count"`` ``(batch,)``, int32. Behind the count stand boxes and scores of 0
            and classes of -1.
        """
        boxes, scores = inputs["boxes"], inputs["scores"]
        maps = inputs.get("maps")
        if maps:
            sides = [ops.shape(one) for one in maps]
            counts = [shape[1] * shape[2] * self.anchors_per_cell for shape in sides]
            boxes, scores, classes = best_pairs_by_level(boxes, scores, counts, self.candidates)
        else:
            boxes, scores, classes = best_pairs(boxes, scores, self.candidates)
        total = self.candidates * max(len(maps or ()), 1)
        # as many empty places as detections, to which each block adds
        kept = _Kept(
            ops.zeros_like(boxes[:, :1]) * ops.ones((1, self.max_detections, 1)),
            ops.zeros_like(scores[:, :1]) * ops.ones((1, self.max_detections)),
            ops.zeros_like(classes[:, :1]) - ops.ones((1, self.max_detections), dtype="int32"),
            ops.zeros_like(scores[:, :1]) * ops.ones((1, self.max_detections)),
        )
        for start in range(0, total, self.block):
            part = slice(start, min(start + self.block, total))
            kept = self._added(kept, boxes[:, part], scores[:, part], classes[:, part], first=start == 0)
        there = ops.cast(kept.flags, "int32")
        return {
            "boxes": kept.boxes * ops.expand_dims(kept.flags, 2),
            "scores": kept.scores * kept.flags,
            "classes": (kept.classes + 1) * there - 1,
            "count": ops.sum(there, axis=1),
        }

    def _added(self, kept: _Kept, boxes: Any, scores: Any, classes: Any, *, first: bool) -> _Kept:
        """What is kept once the next block of boxes is decided, none of which is better than what is kept."""
        alive = ops.cast(scores > float32_below(self.score_threshold), "float32")
        if not first:
            over = _overlapping(kept.boxes, kept.classes, boxes, classes, self.nms_threshold)
            hits = ops.matmul(ops.expand_dims(kept.flags, 1), ops.cast(over, "float32"))[:, 0]
            alive = alive * ops.cast(hits < 0.5, "float32")
        keep = keep_greedily(boxes, classes, self.nms_threshold, alive=alive, rounds=self.rounds)
        parts = ((kept.boxes, boxes), (kept.scores, scores), (kept.classes, classes), (kept.flags, keep))
        boxes, scores, classes, flags = (ops.concatenate(list(pair), axis=1) for pair in parts)
        # what stays comes first, in its order; the keys differ, so that no runtime's way with ties matters
        count = self.max_detections + keep.shape[1]
        _, chosen = ops.top_k(-(ops.arange(count, dtype="float32") + count * (1.0 - flags)), self.max_detections)
        chosen = ops.cast(chosen, "int32")
        taken = (ops.take_along_axis(one, chosen, axis=1) for one in (scores, classes, flags))
        return _Kept(ops.take_along_axis(boxes, ops.expand_dims(chosen, 2), axis=1), *taken)

    def compute_output_spec(self, inputs: Any) -> dict[str, Any]:
        """Returns shapes and dtypes of the outputs."""
        batch, most = inputs["boxes"].shape[0], self.max_detections
        return {
            "boxes": keras.KerasTensor((batch, most, 4), "float32"),
            "scores": keras.KerasTensor((batch, most), "float32"),
            "classes": keras.KerasTensor((batch, most), "int32"),
            "count": keras.KerasTensor((batch,), "int32"),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = (
            "score_threshold",
            "nms_threshold",
            "candidates",
            "max_detections",
            "anchors_per_cell",
            "rounds",
            "block",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Detections so far, the best first: ``max_detections`` places, of which ``flags`` tells those that are taken."""

    boxes: Any
    scores: Any
    classes: Any
    flags: Any


def _overlapping(first: Any, classes: Any, second: Any, others: Any, threshold: float) -> Any:
    """Whether each box of the one set overlaps each of the other too much, and is of its class."""
    same = ops.equal(ops.expand_dims(classes, 2), ops.expand_dims(others, 1))
    return ops.logical_and(iou_matrix(first, second) > float32_below(threshold), same)
