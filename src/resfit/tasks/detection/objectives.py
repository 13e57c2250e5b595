"""What a detector of each kind learns: which outputs learn which box, the loss, and outputs as boxes and scores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from resfit.networks.detection import boxes as box_rules
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec, QueryDetectorSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.tasks.detection import losses, set_loss
from resfit.tasks.detection.phases import StepTargets
from resfit.tasks.detection.set_loss import BoxTargets, KnownTargets, SetLossSettings
from resfit.tasks.detection.targets import Assigner, Places
from resfit.tasks.detection.two_stage import TwoStageObjective


class DetectionObjective(Protocol):
    """What a kind of detector learns."""

    @property
    def places(self) -> Assigner:
        """Which of its outputs learns which box."""
        ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Boxes of each level."""
        ...

    @property
    def clip(self) -> float:
        """Largest norm of all gradients together."""
        ...

    def loss(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the loss of a batch, a scalar.

        Args:
            model: From inputs, and what training adds to them, to raw outputs.
            inputs: Maps or images; of a part alone, where the batch is divided.
            targets: What is learned. The losses of the parts of a batch add up to that of the batch.
        """
        ...

    def weight(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns what a part adds to what the loss of the whole batch is divided by, a scalar.

        Args:
            model: As :meth:`loss` takes it.
            inputs: Of the part.
            targets: As :meth:`loss` takes them; their weight is not known yet.
        """
        ...

    def decode(self, outputs: Any) -> tuple[Any, Any]:
        """Returns boxes ``(batch, n, 4)`` in pixels of the input, cut to it, and scores ``(batch, n, classes)``."""
        ...


def objective_of(spec: AnyDetectorSpec, size: tuple[int, int]) -> DetectionObjective:
    """Returns what a detector learns.

    Args:
        spec: The detector.
        size: Height and width of the input in pixels.
    """
    if isinstance(spec, RTDETRSpec):
        return DenoisingObjective(spec, size)
    if isinstance(spec, DETRSpec):
        return QueryObjective(spec, size, set_loss.DETR)
    if isinstance(spec, DeformableDETRSpec):
        return QueryObjective(spec, size, set_loss.DEFORMABLE_DETR)
    if isinstance(spec, FasterRCNNSpec):
        return TwoStageObjective(spec, size)
    assert isinstance(spec, DetectorSpec)
    return DenseObjective(spec, size)


class DenseObjective:
    """Every place of the maps learns a box or background.

    Args:
        spec: The detector.
        size: Height and width of the input in pixels.
    """

    clip = 10.0

    def __init__(self, spec: DetectorSpec, size: tuple[int, int]):
        self.spec, self.size = spec, size
        self.places: Places = Places.of(spec, size)
        self.counts = self.places.counts
        self._decode = functools.partial(
            box_rules.decode, coding=spec.box_coding, stds=spec.delta_stds, bins=spec.distribution_bins
        )

    def loss(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the loss; see :class:`DetectionObjective`."""
        import tensorflow as tf

        points, rows, divisors = tf.constant(self.places.points), tf.cast(targets.rows, tf.int32), None
        kind = targets.settings.loss
        if targets.edges is not None:
            divisors = losses.divisors_of(points, rows, targets.boxes, kind=kind, weight=targets.weight)
        return losses.detection_loss(
            model(inputs),
            points,
            *(value[targets.own] for value in (rows, targets.boxes, targets.labels)),
            kind=kind,
            box_weight=targets.settings.box_weight,
            decode=self._decode,
            divisors=divisors,
        )["total"]

    def weight(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the sum of the scores of places that learn a box; see :class:`DetectionObjective`."""
        import tensorflow as tf

        if targets.settings.loss != "quality_focal":
            return tf.constant(0.0)
        own = tf.cast(targets.rows, tf.int32)[targets.own]
        return tf.reduce_sum(losses.score_weight(model(inputs)["class_logits"], own))

    def decode(self, outputs: Any) -> tuple[Any, Any]:
        """Returns boxes and scores; see :class:`DetectionObjective`."""
        import tensorflow as tf

        boxes = self._decode(outputs["box_codes"], tf.constant(self.places.points[None]))
        scores = tf.sigmoid(outputs["class_logits"])
        if self.spec.quality is not None:
            scores = scores * tf.sigmoid(outputs["quality"])
            scores = tf.sqrt(scores) if self.spec.quality_rule == "geometric_mean" else scores
        return box_rules.clip_boxes(boxes, *self.size), scores


class BoxCount:
    """Queries are matched with boxes at each step: all that is kept of a picture is how many boxes it has."""

    width = 1

    def assign(self, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        """Returns the number of boxes; regions of which nothing is known are learned as background."""
        return np.array([len(boxes)], np.int16)


class QueryObjective:
    """Each box is given to one query, which learns it (DETR, arXiv:2005.12872).

    Args:
        spec: The detector.
        size: Height and width of the input in pixels.
        settings: Weights of the loss; ``None`` is RT-DETR's.
    """

    clip = 0.1

    def __init__(self, spec: QueryDetectorSpec, size: tuple[int, int], settings: SetLossSettings | None = None):
        self.spec, self.size, self.settings = spec, size, settings or SetLossSettings()
        self.places = BoxCount()
        self._reported = spec.reported if isinstance(spec, DETRSpec) else tuple(range(spec.classes))
        self.counts = (spec.queries,)

    def loss(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the loss; see :class:`DetectionObjective`."""
        whole = self._truth(targets)
        truth, outputs = whole.part(targets.own), model(inputs)
        matches = self._matches(outputs, truth)
        return self._summed(set_loss.set_loss(outputs, truth, matches, settings=self.settings, whole=whole))

    def weight(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns nothing: losses are divided by what the boxes alone say; see :class:`DetectionObjective`."""
        import tensorflow as tf

        return tf.constant(0.0)

    def _truth(self, targets: StepTargets) -> BoxTargets:
        """The true boxes, as shares of the input, and their class outputs."""
        import tensorflow as tf

        height, width = self.size
        there = tf.range(tf.shape(targets.labels)[1])[None] < tf.cast(targets.rows, tf.int32)
        outputs = tf.gather(tf.constant(self._reported, tf.int32), tf.where(there, targets.labels, 0))
        shares = targets.boxes / tf.constant([width, height, width, height], tf.float32)
        low, high = shares[..., :2], shares[..., 2:]
        shares = tf.where(there[..., None], tf.concat([(low + high) / 2, high - low], -1), 0.0)
        return BoxTargets(tf.where(there, outputs, -1), shares)

    def _matches(self, outputs: dict[str, Any], truth: BoxTargets, denoising: Any = 0) -> dict[str, Any]:
        """For each layer the query of each true box."""
        import tensorflow as tf

        matches = {}
        for name, pair in set_loss.layers(outputs, denoising).items():
            own = set_loss.targets_of(name, truth, self.settings)
            matches[name] = tf.numpy_function(self._matched, [*pair, own.classes, own.boxes], tf.int32)
            matches[name].set_shape((None, None))
        return matches

    @staticmethod
    def _summed(parts: dict[str, Any]) -> Any:
        import tensorflow as tf

        return tf.add_n([tf.convert_to_tensor(value, tf.float32) for value in parts.values()])

    def _matched(self, logits: np.ndarray, given: np.ndarray, classes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return set_loss.match(logits, given, BoxTargets(classes, boxes), self.settings)

    def decode(self, outputs: Any) -> tuple[Any, Any]:
        """Returns boxes and scores; see :class:`DetectionObjective`."""
        import tensorflow as tf

        height, width = self.size
        boxes = set_loss.corners(outputs["box_codes"]) * tf.constant([width, height, width, height], tf.float32)
        logits = outputs["class_logits"]
        if self.settings.classification == "softmax":
            scores = tf.gather(tf.nn.softmax(logits, axis=-1), tf.constant(self._reported, tf.int32), axis=-1)
        else:
            scores = tf.sigmoid(logits)
        return box_rules.clip_boxes(boxes, height, width), scores


class DenoisingObjective(QueryObjective):
    """Beside the queries, denoising queries learn the box that they were made of (RT-DETR, arXiv:2304.08069)."""

    def loss(self, model: Callable[..., Any], inputs: Any, targets: StepTargets) -> Any:
        """Returns the loss; see :class:`DetectionObjective`."""
        import tensorflow as tf

        whole, settings, part = self._truth(targets), targets.settings, targets.own
        truth = whole.part(part)
        noise = functools.partial(self._noise, count=settings.denoising, seed=settings.seed)
        kinds = [tf.int32, tf.float32, tf.float32, tf.int32, tf.float32, tf.int32, tf.float32]
        made = tf.numpy_function(noise, [whole.classes, whole.boxes, targets.number], kinds)
        ranks = ((None, None), (None, None, 4), (None, None), (None, None), (None, None, 4), (None, None), ())
        for tensor, shape in zip(made, ranks, strict=True):
            tensor.set_shape(shape)
        # the noise is that of the whole batch; its mask and the number of its groups are of no picture
        made = [made[at] if at in (2, 6) else made[at][part] for at in range(len(made))]
        outputs, own = model(inputs, made[:3]), tf.shape(made[0])[1]
        matches = self._matches(outputs, truth, own)
        known = KnownTargets(BoxTargets(made[3], made[4]), made[5], made[6]) if settings.denoising else None
        parts = set_loss.set_loss(
            outputs, truth, matches, denoising=own, known=known, settings=self.settings, whole=whole
        )
        return self._summed(parts)

    def _noise(
        self, classes: np.ndarray, boxes: np.ndarray, number: np.ndarray, *, count: int, seed: int
    ) -> tuple[Any, ...]:
        """Denoising queries and what they are to learn; no random state outlives a step, so that a run resumes."""
        targets = BoxTargets(classes, boxes)
        random = np.random.default_rng([seed, int(number)])
        queries = self.spec.queries
        noise = set_loss.denoising_queries(targets, self.spec.classes, queries, random, count=max(count, 1))
        known = KnownTargets.of(targets, noise.groups)
        if not count:
            noise = set_loss.no_queries(len(classes), queries)
        found = known.targets
        return (
            *(noise.classes, noise.codes, noise.mask, found.classes, found.boxes, known.queries),
            np.float32(known.groups),
        )
