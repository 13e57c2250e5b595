"""Predictions of a detector in training: its raw outputs as detections, and their AP on validation pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from resfit.data.box_geometry import letterbox
from resfit.data.boxes import BoxSet
from resfit.evaluation.detection import Matching
from resfit.networks.detection import boxes as box_rules
from resfit.networks.detection.spec import DetectorSpec
from resfit.tasks.detection.detections import Detections
from resfit.tasks.detection.evaluation import matched
from resfit.tasks.detection.postprocess import suppress
from resfit.tasks.detection.targets import Places


def scorer(
    model: Callable[..., Any], unpack: Callable[[Any], Any], places: Places, spec: DetectorSpec, size: tuple[int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from inputs to boxes and scores in one array ``(batch, n, 4 + classes)``.

    Args:
        model: From inputs to raw outputs.
        unpack: From a batch's inputs, a tensor, to the model's.
        places: Of the detector.
        spec: The detector.
        size: Height and width of the input.
    """
    import tensorflow as tf

    points = tf.constant(places.points[None])

    @tf.function(reduce_retracing=True)
    def run(inputs: Any) -> Any:
        outputs = model(unpack(inputs), training=False)
        boxes = box_rules.clip_boxes(box_rules.decode_distances(outputs["box_codes"], points), *size)
        scores = tf.sigmoid(outputs["class_logits"])
        if spec.quality is not None:
            scores = scores * tf.sigmoid(outputs["quality"])
            scores = tf.sqrt(scores) if spec.quality_rule == "geometric_mean" else scores
        return tf.concat([boxes, scores], axis=-1)

    return lambda inputs: run(tf.constant(inputs)).numpy()


def predicted(
    score: Callable[[np.ndarray], np.ndarray],
    inputs: Any,
    boxes: BoxSet,
    places: Places,
    spec: DetectorSpec,
    size: tuple[int, int],
    *,
    batch: int = 16,
) -> list[Detections]:
    """Returns the detections in pictures, in their own pixels.

    Args:
        score: As :func:`scorer` returns it.
        inputs: Array or list, an input for each picture.
        boxes: The pictures.
        places: Of the detector.
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
            some, scores, labels, _ = suppress(
                row[:, :4],
                row[:, 4:],
                counts=places.counts,
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
