"""Predictions of a detector in training: its raw outputs as detections, and their AP on validation pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resfit.data.box_geometry import letterbox
from resfit.data.boxes import BoxSet
from resfit.evaluation.detection import Matching
from resfit.networks.detection.kinds import AnyDetectorSpec, takes_best_class
from resfit.tasks.detection.detections import Detections
from resfit.tasks.detection.evaluation import matched
from resfit.tasks.detection.objectives import DetectionObjective
from resfit.tasks.detection.postprocess import best_classes, suppress


def scorer(
    model: Callable[..., Any], unpack: Callable[[Any], Any], objective: DetectionObjective
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from inputs to boxes and scores in one array ``(batch, n, 4 + classes)``.

    Args:
        model: From inputs to raw outputs.
        unpack: From a batch's inputs, a tensor, to the model's.
        objective: Of the detector.
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def run(inputs: Any) -> Any:
        return tf.concat(objective.decode(model(unpack(inputs))), axis=-1)

    return lambda inputs: run(tf.constant(inputs)).numpy()


def predicted(
    score: Callable[[np.ndarray], np.ndarray],
    inputs: Any,
    boxes: BoxSet,
    counts: Sequence[int],
    spec: AnyDetectorSpec,
    size: tuple[int, int],
    *,
    batch: int = 16,
) -> list[Detections]:
    """Returns the detections in pictures, in their own pixels.

    Args:
        score: As :func:`scorer` returns it.
        inputs: Array or list, an input for each picture.
        boxes: The pictures.
        counts: Boxes of each level.
        spec: The detector, whose thresholds hold.
        size: Height and width of the input.
        batch: Pictures at once.
    """
    found = []
    for start in range(0, len(boxes), batch):
        rows = np.stack([inputs[position] for position in range(start, min(start + batch, len(boxes)))])
        for offset, row in enumerate(score(rows)):
            position = start + offset
            own = (int(boxes.sizes[position, 0]), int(boxes.sizes[position, 1]))
            own_scores = best_classes(row[:, 4:]) if takes_best_class(spec) else row[:, 4:]
            some, scores, labels, _ = suppress(
                row[:, :4],
                own_scores,
                counts=counts,
                score_threshold=spec.score_threshold,
                nms_threshold=spec.nms_threshold,
                candidates=spec.candidates,
                max_detections=spec.max_detections,
            )
            placed = letterbox(own, size).to_image(some, clip=True).astype(np.float32)
            found.append(Detections(boxes.paths[position], placed, scores, labels, boxes.classes, own))
    return found


def matching_of(boxes: BoxSet, found: list[Detections]) -> Matching:
    """Matches detections with the true boxes of their pictures."""
    return matched(boxes, found)
