"""The loss of detectors that decode queries: each true box is given to one query, which learns it.

As RT-DETR is trained (Zhao et al. 2023, arXiv:2304.08069): matching by the Hungarian method, a classification whose
target is the overlap of the box (varifocal loss, Zhang et al. 2020, arXiv:2008.13367), distances and generalised
overlap of the boxes, for every layer of the decoder and for the choice of queries; and denoising queries (Zhang et al.
2022, arXiv:2203.03605), which know the box that they belong to. DETR (Carion et al. 2020, arXiv:2005.12872) and
Deformable DETR (Zhu et al. 2020, arXiv:2010.04159) differ in the loss of the classes, and have no denoising queries.
Boxes are centres and sides in shares of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from keras import ops

from resfit.tasks.detection import losses

_SMALL = 1e-8


@dataclasses.dataclass(frozen=True)
class SetLossSettings:
    """Weights of the loss and of the matching, those of RT-DETR.

    Attributes:
        classification: ``"varifocal"`` (RT-DETR), ``"focal"`` (Deformable DETR), or ``"softmax"`` with a last output
            for no object (DETR).
        class_weight: Of the classification.
        box_weight: Of the distances of centres and sides.
        overlap_weight: Of the generalised overlap.
        focal_share: What queries without an object count in the classification.
        focal_gamma: The power of their score by which they count.
        class_cost: Of the classification in the matching.
        box_cost: Of the distances there.
        overlap_cost: Of the generalised overlap there.
        cost_share: Share of the positive part of the cost of a class.
        cost_gamma: Gamma of the cost of a class.
        no_object_weight: What queries without an object count in a softmax.
        proposes_objects: Whether the choice of queries learns whether there is an object, as the first class, not
            which.
    """

    classification: Literal["varifocal", "focal", "softmax"] = "varifocal"
    class_weight: float = 1.0
    box_weight: float = 5.0
    overlap_weight: float = 2.0
    focal_share: float = 0.75
    focal_gamma: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    overlap_cost: float = 2.0
    cost_share: float = 0.25
    cost_gamma: float = 2.0
    no_object_weight: float = 0.1
    proposes_objects: bool = False


#: Those of DETR and of Deformable DETR.
DETR = SetLossSettings("softmax", class_cost=1.0)
DEFORMABLE_DETR = SetLossSettings("focal", class_weight=2.0, focal_share=0.25, proposes_objects=True)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxTargets:
    """The true boxes of a batch, padded to one length.

    Attributes:
        classes: int32 ``(batch, most)``; -1 behind the boxes of an image.
        boxes: float32 ``(batch, most, 4)``: centres and sides in shares of the image.
    """

    classes: np.ndarray
    boxes: np.ndarray

    def part(self, images: slice) -> BoxTargets:
        """Returns those of some of the images.

        Args:
            images: Which.
        """
        return BoxTargets(self.classes[images], self.boxes[images])

    @classmethod
    def of(cls, classes: Sequence[np.ndarray], boxes: Sequence[np.ndarray], size: tuple[int, int]) -> BoxTargets:
        """Returns the targets of boxes in pixels.

        Args:
            classes: For each image, integers ``(n,)``.
            boxes: For each image, ``(n, 4)``, xyxy in pixels of the input.
            size: Height and width of the input in pixels.
        """
        most = max([len(one) for one in classes] + [1])
        found = cls(np.full((len(classes), most), -1, np.int32), np.zeros((len(classes), most, 4), np.float32))
        height, width = size
        for row, (own, corners) in enumerate(zip(classes, boxes, strict=True)):
            shares = np.asarray(corners, np.float64).reshape(-1, 4) / [width, height, width, height]
            found.classes[row, : len(own)] = own
            low, high = shares[:, :2], shares[:, 2:]
            found.boxes[row, : len(own)] = np.concatenate([(low + high) / 2, high - low], axis=1)
        return found

    @property
    def counts(self) -> np.ndarray:
        """Boxes of each image."""
        return (self.classes >= 0).sum(axis=1)


def corners(boxes: Any) -> Any:
    """Returns xyxy of centres and sides.

    Args:
        boxes: ``(..., 4)``, an array or a tensor.
    """
    half = boxes[..., 2:] * 0.5
    if isinstance(boxes, np.ndarray):
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    return ops.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def overlaps(one: Any, other: Any, xp: Any = ops) -> tuple[Any, Any]:
    """Returns intersection over union, and the generalised one (Rezatofighi et al. 2019), of boxes pair by pair.

    Args:
        one: ``(..., 4)``, xyxy.
        other: Likewise; the shapes may broadcast.
        xp: ``keras.ops``, or numpy.
    """
    low, high = xp.maximum(one[..., :2], other[..., :2]), xp.minimum(one[..., 2:], other[..., 2:])
    sides = xp.maximum(high - low, 0.0)
    shared = sides[..., 0] * sides[..., 1]
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (one, other)]
    union = areas[0] + areas[1] - shared
    overlap = shared / xp.maximum(union, _SMALL)
    around = xp.maximum(one[..., 2:], other[..., 2:]) - xp.minimum(one[..., :2], other[..., :2])
    whole = xp.maximum(around[..., 0] * around[..., 1], _SMALL)
    return overlap, overlap - (whole - union) / whole


def match(
    logits: np.ndarray, boxes: np.ndarray, targets: BoxTargets, settings: SetLossSettings | None = None
) -> np.ndarray:
    """Gives each true box to the query that suits it best, no query twice.

    Args:
        logits: ``(batch, queries, classes)``.
        boxes: ``(batch, queries, 4)``: centres and sides.
        targets: The true boxes.
        settings: What suits how much; ``None`` is RT-DETR's.

    Returns:
        int32 ``(batch, most)``: the query of each box; -1 where there is no box, or no query is left for it.
    """
    from scipy import special
    from scipy.optimize import linear_sum_assignment

    own = settings or SetLossSettings()
    found = np.full(targets.classes.shape, -1, np.int32)
    softmax, wide = own.classification == "softmax", logits.astype(np.float64)
    scores = special.softmax(wide, axis=-1) if softmax else 1 / (1 + np.exp(-np.clip(wide, -60, 60)))
    for row, count in enumerate(targets.counts.tolist()):
        if not count:
            continue
        labels, true = targets.classes[row, :count], targets.boxes[row, :count].astype(np.float64)
        score = scores[row][:, labels]
        positive, negative = -score, 0.0
        if not softmax:
            positive = own.cost_share * (1 - score) ** own.cost_gamma * -np.log(score + _SMALL)
            negative = (1 - own.cost_share) * score**own.cost_gamma * -np.log(1 - score + _SMALL)
        given = boxes[row].astype(np.float64)[:, None]
        distance = np.abs(given - true[None]).sum(axis=-1)
        _, overlap = overlaps(corners(given), corners(true[None]), np)
        cost = own.class_cost * (positive - negative) + own.box_cost * distance - own.overlap_cost * overlap
        # what is no number is taken last
        queries, places = linear_sum_assignment(np.nan_to_num(cost, nan=1e30, posinf=1e30, neginf=1e30))
        found[row, places] = queries
    return found


def layer_loss(
    logits: Any,
    boxes: Any,
    targets: BoxTargets,
    queries: Any,
    normalizer: Any,
    settings: SetLossSettings,
    whole: BoxTargets | None = None,
) -> dict[str, Any]:
    """Returns the parts of the loss of one layer, weighted.

    Args:
        logits: ``(batch, q, classes)``.
        boxes: ``(batch, q, 4)``: centres and sides.
        targets: The true boxes; tensors may stand in place of the arrays.
        queries: int32 ``(batch, most)``: the query of each true box, -1 for none.
        normalizer: What the sums are divided by: the boxes of the batch.
        settings: Weights.
        whole: Those of the batch of which these images are a part, for a softmax; ``None`` for no part.

    Returns:
        ``"class"``, ``"box"`` and ``"overlap"``, scalars.
    """
    logits, queries = ops.convert_to_tensor(logits), ops.convert_to_tensor(queries)
    count, classes = ops.shape(logits)[1], logits.shape[-1]
    valid = ops.cast(queries >= 0, "float32")
    chosen = ops.one_hot(ops.maximum(queries, 0), count, dtype="float32") * ops.expand_dims(valid, -1)
    true = ops.cast(targets.boxes, "float32")
    given = ops.matmul(chosen, ops.cast(boxes, "float32"))
    overlap, generalised = overlaps(corners(given), corners(true))
    labels = ops.one_hot(ops.maximum(ops.cast(targets.classes, "int32"), 0), classes, dtype="float32")
    back = ops.transpose(chosen, (0, 2, 1))
    positive = ops.matmul(back, labels)
    logits = ops.cast(logits, "float32")
    if settings.classification == "softmax":
        each = _softmax_loss(logits, positive, settings.no_object_weight, whole or targets)
    elif settings.classification == "focal":
        each = ops.sum(losses.focal(logits, positive, alpha=settings.focal_share, gamma=settings.focal_gamma))
        each = each / normalizer
    else:
        quality = ops.stop_gradient(ops.maximum(overlap, 0.0))
        target = ops.matmul(back, labels * ops.expand_dims(quality, -1))
        score = ops.stop_gradient(ops.sigmoid(logits))
        weight = settings.focal_share * score**settings.focal_gamma * (1 - positive) + target
        each = ops.sum(weight * losses.binary(logits, target)) / normalizer
    distance = ops.sum(ops.abs(given - true), axis=-1)
    return {
        "class": settings.class_weight * each,
        "box": settings.box_weight * ops.sum(distance * valid) / normalizer,
        "overlap": settings.overlap_weight * ops.sum((1 - generalised) * valid) / normalizer,
    }


def _softmax_loss(logits: Any, positive: Any, no_object: float, whole: BoxTargets) -> Any:
    """The cross-entropy of queries, of which those without an object count less; the last output is theirs."""
    object_there = ops.sum(positive, axis=-1)
    target = ops.concatenate([positive[..., :-1], ops.expand_dims(1.0 - object_there, -1)], axis=-1)
    weight = object_there + no_object * (1.0 - object_there)
    there = ops.cast(ops.convert_to_tensor(whole.classes) >= 0, "float32")
    queries = ops.cast(ops.shape(logits)[1], "float32")
    matched = ops.sum(ops.minimum(ops.sum(there, axis=-1), queries))
    others = queries * ops.cast(ops.shape(there)[0], "float32") - matched
    entropy = -ops.sum(target * ops.log_softmax(logits, axis=-1), axis=-1)
    return ops.sum(weight * entropy) / (matched + no_object * others)


def targets_of(layer: str, targets: BoxTargets, settings: SetLossSettings) -> BoxTargets:
    """Returns what a layer learns: the true boxes, with their classes or as objects.

    Args:
        layer: A name of :func:`layers`.
        targets: The true boxes; tensors may stand in place of the arrays.
        settings: Of the loss.
    """
    if layer != "proposal" or not settings.proposes_objects:
        return targets
    classes = targets.classes
    first = np.minimum(classes, 0) if isinstance(classes, np.ndarray) else ops.minimum(classes, 0)
    return BoxTargets(first, targets.boxes)


def set_loss(
    outputs: Mapping[str, Any],
    targets: BoxTargets,
    matches: Mapping[str, Any],
    *,
    denoising: Any = 0,
    known: KnownTargets | None = None,
    settings: SetLossSettings | None = None,
    whole: BoxTargets | None = None,
) -> dict[str, Any]:
    """Returns the parts of the loss, summed over the layers.

    Args:
        outputs: What :class:`resfit.networks.detection.rtdetr_build.QueryDecoder`, or a transformer of the others,
            returns for training.
        targets: The true boxes; tensors may stand in place of the arrays.
        matches: For each of :func:`layers`, the query of each true box, as :func:`match` returns them.
        denoising: Denoising queries before the others.
        known: What these are to learn; ``None`` where there are none.
        settings: Weights; ``None`` is RT-DETR's.
        whole: The true boxes of the batch of which these images are a part; ``None`` for no part.
    """
    own = settings or SetLossSettings()
    whole = whole or targets
    normalizer = ops.maximum(ops.sum(ops.cast(ops.convert_to_tensor(whole.classes) >= 0, "float32")), 1.0)
    total: dict[str, Any] = dict.fromkeys(("class", "box", "overlap", "denoising"), 0.0)
    for name, (logits, given) in layers(outputs, denoising).items():
        learned = targets_of(name, targets, own)
        for part, value in layer_loss(logits, given, learned, matches[name], normalizer, own, whole).items():
            total[part] = total[part] + value
    if known is None:
        return total
    many = normalizer * ops.cast(known.groups, "float32")
    for name in [name for name in outputs if name.startswith("logits_")]:
        logits, given = (outputs[key][:, :denoising] for key in (name, name.replace("logits", "boxes")))
        for value in layer_loss(logits, given, known.targets, known.queries, many, own).values():
            total["denoising"] = total["denoising"] + value
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class KnownTargets:
    """What denoising queries are to learn.

    Attributes:
        targets: The true boxes once for each group.
        queries: int32 ``(batch, groups * most)``: the query of each, -1 where there is no box.
        groups: How many groups there are.
    """

    targets: BoxTargets
    queries: Any
    groups: Any

    @classmethod
    def of(cls, targets: BoxTargets, groups: int) -> KnownTargets:
        """Returns those of denoising queries.

        Args:
            targets: The true boxes.
            groups: Of :class:`DenoisingQueries`.
        """
        most = targets.classes.shape[1]
        # the first half of each group stands where its boxes are, the second beside them
        places = np.concatenate([np.arange(most, dtype=np.int32) + 2 * most * group for group in range(groups)])
        classes = np.tile(targets.classes, (1, groups))
        boxes = np.tile(targets.boxes, (1, groups, 1))
        return cls(BoxTargets(classes, boxes), np.where(classes >= 0, places[None], -1).astype(np.int32), groups)


def layers(outputs: Mapping[str, Any], denoising: Any = 0) -> dict[str, tuple[Any, Any]]:
    """Returns logits and boxes of each layer that is matched, without the denoising queries.

    Args:
        outputs: As :func:`set_loss` takes them.
        denoising: Denoising queries before the others.
    """
    found = {}
    if "proposal_logits" in outputs:
        found["proposal"] = (outputs["proposal_logits"], outputs["proposal_boxes"])
    for name in outputs:
        if name.startswith("logits_"):
            boxes = outputs[name.replace("logits", "boxes")]
            found[name] = (outputs[name][:, denoising:], boxes[:, denoising:])
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class DenoisingQueries:
    """Queries that begin near a true box, and the mask that keeps them to themselves.

    Attributes:
        classes: int32 ``(batch, d)``, some of them wrong; the number of classes where there is no box.
        codes: float32 ``(batch, d, 4)``: logits of centres and sides.
        mask: float32 ``(d + queries, d + queries)``, added to the logits of the attention among queries.
        groups: Groups, each of which knows the boxes once.
    """

    classes: np.ndarray
    codes: np.ndarray
    mask: np.ndarray
    groups: int


def denoising_queries(
    targets: BoxTargets,
    classes: int,
    queries: int,
    generator: np.random.Generator,
    *,
    count: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DenoisingQueries:
    """Makes denoising queries: in each group one near each true box, and one beside it that is no object.

    Args:
        targets: The true boxes.
        classes: Number of classes.
        queries: Other queries of the detector.
        generator: Of the noise.
        count: Queries at the true boxes, at most, unless one group has more.
        label_noise: Twice the share of classes that are drawn anew.
        box_noise: How far edges move at most, in half sides of the box.
    """
    most = targets.classes.shape[1]
    groups = max(count // most, 1)
    labels = np.tile(np.where(targets.classes >= 0, targets.classes, classes), (1, 2 * groups)).astype(np.int32)
    boxes = np.tile(targets.boxes, (1, 2 * groups, 1))
    known = np.tile(targets.classes >= 0, (1, 2 * groups))
    beside = np.tile(np.repeat([0.0, 1.0], most), groups)[None, :, None]
    drawn = generator.random(labels.shape) < label_noise * 0.5
    labels = np.where(drawn & known, generator.integers(0, classes, labels.shape), labels).astype(np.int32)
    edges = corners(boxes)
    far = np.tile(boxes[..., 2:] * 0.5, (1, 1, 2)) * box_noise
    sign = generator.integers(0, 2, edges.shape) * 2.0 - 1.0
    edges = np.clip(edges + sign * (generator.random(edges.shape) + beside) * far, 0, 1)
    low, high = edges[..., :2], edges[..., 2:]
    shares = np.clip(np.concatenate([(low + high) / 2, high - low], axis=-1), 1e-5, 1 - 1e-5)
    total = 2 * most * groups
    mask = np.zeros((total + queries, total + queries), np.float32)
    mask[total:, :total] = -1e9  # the others do not see what is known
    group = np.arange(total) // (2 * most)
    mask[:total, :total][group[:, None] != group[None, :]] = -1e9
    codes = np.log(shares / (1 - shares)).astype(np.float32)
    return DenoisingQueries(labels, codes, mask, groups)


def no_queries(batch: int, queries: int) -> DenoisingQueries:
    """Returns no denoising queries at all.

    Args:
        batch: Images.
        queries: Other queries of the detector.
    """
    mask = np.zeros((queries, queries), np.float32)
    return DenoisingQueries(np.zeros((batch, 0), np.int32), np.zeros((batch, 0, 4), np.float32), mask, 0)
