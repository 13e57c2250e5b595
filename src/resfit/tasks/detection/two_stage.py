"""What a Faster R-CNN learns: where objects are, and of a sample of proposals what they are (Ren et al. 2015).

Both samples are drawn anew in each step, from the seed and the number of the step: no random state outlives it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from resfit.networks.detection import boxes as box_rules
from resfit.networks.detection import kinds
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.roi_layers import BoxesOfClasses, drawn
from resfit.tasks.detection import losses
from resfit.tasks.detection.phases import StepTargets
from resfit.tasks.detection.targets import BACKGROUND, Places

#: Anchors of an image that learn in a step, at most, and the share of them that may have a box.
ANCHORS, POSITIVE_SHARE = 256, 0.5
# Where the loss of codes turns from a square into a distance.
_BEND = 1 / 9


class PlacesAndCount:
    """The anchors of a Faster R-CNN, and how many boxes a picture has, in one row.

    Args:
        places: The anchors.
    """

    def __init__(self, places: Places):
        self.places = places

    @property
    def width(self) -> int:
        """Anchors of all levels, and one."""
        return self.places.width + 1

    def assign(self, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        """Returns which box each anchor learns, and behind it the number of boxes."""
        return np.append(self.places.assign(boxes, ignored), np.int16(len(boxes)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Sample:
    """What each anchor learns, keys that draw, how many are drawn in the batch, and what the model draws by."""

    learned: Any
    keys: Any
    total: Any
    given: list[Any]


class TwoStageObjective:
    """Anchors learn whether an object is near and where; proposals learn which, and its box for this class.

    Args:
        spec: The detector.
        size: Height and width of the input in pixels.
    """

    clip = 10.0

    def __init__(self, spec: FasterRCNNSpec, size: tuple[int, int]):
        self.spec, self.size = spec, size
        self._anchors = Places.of(spec, size)
        self.places = PlacesAndCount(self._anchors)
        self.counts = kinds.boxes_of_levels(spec, size)
        self._boxes = BoxesOfClasses(spec.reported, spec.candidates, spec.delta_stds)

    def loss(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the loss; see :class:`resfit.tasks.detection.objectives.DetectionObjective`."""
        import tensorflow as tf

        sample = self._sampled(targets)
        found = model(inputs, sample.given)
        proposed = proposal_loss(
            *(found["objectness"], found["proposal_codes"], self._anchors.points),
            *(sample.learned, sample.given[0], sample.keys),
            total=sample.total,
        )
        said = head_loss(
            *(found[name] for name in ("class_logits", "box_codes", "proposals", "true", "true_class")),
            background=self.spec.background,
            delta_stds=self.spec.delta_stds,
            total=None if targets.edges is None else targets.weight,
        )
        return tf.add_n([*proposed.values(), *said.values()])

    def weight(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the number of proposals that learn; see :class:`DetectionObjective`."""
        sample = self._sampled(targets)
        return ops.sum(ops.cast(model(inputs, sample.given)["true_class"] >= 0, "float32"))

    def _sampled(self, targets: StepTargets) -> _Sample:
        """What a step draws of its anchors, and gives the model to draw proposals by; always of the whole batch."""
        import tensorflow as tf

        rows, boxes, labels = tf.cast(targets.rows, tf.int32), targets.boxes, targets.labels
        learned, counts = rows[:, :-1], rows[:, -1:]
        there = tf.range(tf.shape(labels)[1])[None] < counts
        outputs = tf.gather(tf.constant(self.spec.reported, tf.int32), tf.where(there, labels, 0))
        shape, seed, number = tf.shape(boxes), targets.settings.seed, tf.cast(targets.number, tf.int32)
        noise = [
            tf.random.stateless_uniform((shape[0], count), [2 * seed + part, number])
            for part, count in enumerate((self._anchors.width, self.spec.proposals + shape[1]))
        ]
        keys = anchor_keys(learned, noise[0])
        total = ops.sum(ops.minimum(ops.sum(ops.cast(keys >= 0, "float32"), axis=1), float(ANCHORS)))
        own = targets.own
        given = [value[own] for value in (boxes, tf.where(there, outputs, -1), noise[1])]
        return _Sample(learned[own], keys[own], total, given)

    def decode(self, outputs: Any) -> tuple[Any, Any]:
        """Returns boxes and scores; see :class:`resfit.tasks.detection.objectives.DetectionObjective`."""
        names = ("class_logits", "box_codes", "proposals", "there")
        found = self._boxes([*(outputs[name] for name in names), ops.zeros((1, *self.size, 1))])
        return found["boxes"], found["scores"]


def anchor_keys(rows: Any, noise: Any) -> Any:
    """Draws the anchors that learn in a step.

    Args:
        rows: int32 ``(batch, n)``: the box that each learns, -1 for background, -2 for nothing.
        noise: Random numbers in [0, 1), likewise.

    Returns:
        ``(batch, n)``: at least 2 for those with a box, in [0, 2) for background, below 0 for those that are not drawn.
    """
    return drawn(rows >= 0, ops.equal(rows, BACKGROUND), noise, min(ANCHORS, int(rows.shape[1])), POSITIVE_SHARE)


def proposal_loss(
    logits: Any, codes: Any, anchors: Any, rows: Any, boxes: Any, keys: Any, *, total: Any = None
) -> dict[str, Any]:
    """Returns the loss of a sample of the anchors: whether an object is near, and how far it is off.

    Args:
        logits: ``(batch, n, 1)``.
        codes: ``(batch, n, 4)``.
        anchors: ``(n, 4)``, xyxy in pixels.
        rows: int32 ``(batch, n)``: the box that each learns, -1 for background, -2 for nothing.
        boxes: The true ones, ``(batch, most, 4)``.
        keys: What :func:`anchor_keys` returns.
        total: Anchors that are drawn in the batch of which these images are a part; ``None`` for no part.

    Returns:
        ``"objectness"`` and ``"proposal_codes"``, scalars.
    """
    count = min(ANCHORS, int(np.shape(anchors)[0]))
    keys, chosen = ops.top_k(keys, count)
    chosen = ops.cast(chosen, "int32")
    positive, counted = (ops.cast(keys >= limit, "float32") for limit in (2.0, 0.0))
    total = ops.maximum(ops.sum(counted) if total is None else total, 1.0)
    logits = ops.take_along_axis(logits[..., 0], chosen, axis=1)
    codes = ops.take_along_axis(codes, ops.expand_dims(chosen, -1), axis=1)
    own = ops.take(ops.convert_to_tensor(anchors), chosen, axis=0)
    which = ops.maximum(ops.take_along_axis(rows, chosen, axis=1), 0)
    true = ops.take_along_axis(boxes, ops.expand_dims(which, -1), axis=1)
    wanted = _codes_of(true, own, positive, (1.0, 1.0, 1.0, 1.0))
    return {
        "objectness": ops.sum(losses.binary(logits, positive) * counted) / total,
        "proposal_codes": ops.sum(_bent(codes - wanted) * positive) / total,
    }


def head_loss(
    logits: Any,
    codes: Any,
    proposals: Any,
    true: Any,
    classes: Any,
    *,
    background: int = 0,
    delta_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    total: Any = None,
) -> dict[str, Any]:
    """Returns the loss of a sample of proposals: their classes, and the codes of their boxes for the true class.

    Args:
        logits: ``(batch, n, outputs)``.
        codes: ``(batch, n, 4 * outputs)``.
        proposals: ``(batch, n, 4)``, xyxy in pixels.
        true: The box that each learns, likewise.
        classes: int32 ``(batch, n)``: its class output, -1 for those that learn nothing.
        background: The class output of what is no object.
        delta_stds: What codes are multiplied by before they are decoded.
        total: Proposals that learn in the batch of which these images are a part; ``None`` for no part.

    Returns:
        ``"class"`` and ``"box"``, scalars.
    """
    outputs = logits.shape[-1]
    counted = ops.cast(classes >= 0, "float32")
    total = ops.maximum(ops.sum(counted) if total is None else total, 1.0)
    wanted = ops.one_hot(ops.maximum(classes, 0), outputs, dtype="float32")
    entropy = -ops.sum(wanted * ops.log_softmax(logits, axis=-1), axis=-1)
    positive = counted * ops.cast(ops.not_equal(classes, background), "float32")
    apart = ops.reshape(codes, (-1, codes.shape[1], outputs, 4))
    own = ops.sum(apart * ops.expand_dims(wanted, -1), axis=2)
    apart_by = _bent(own - _codes_of(true, proposals, positive, delta_stds))
    return {"class": ops.sum(entropy * counted) / total, "box": ops.sum(apart_by * positive) / total}


def _codes_of(true: Any, boxes: Any, positive: Any, stds: tuple[float, ...]) -> Any:
    """The codes of true boxes; of what has none 0, so that no loss of theirs is undefined."""
    mine = ops.expand_dims(positive, -1) > 0
    unit = ops.convert_to_tensor(np.array([0, 0, 1, 1], np.float32))
    true, boxes = (ops.where(mine, one, unit) for one in (true, boxes))
    return ops.stop_gradient(box_rules.encode_deltas(true, boxes, stds))


def _bent(difference: Any) -> Any:
    """The smooth distance of codes, summed over the four."""
    away = ops.abs(difference)
    each = ops.where(away < _BEND, 0.5 * away * away / _BEND, away - 0.5 * _BEND)
    return ops.sum(each, axis=-1)
