"""How good a detector is: COCO's twelve figures, precision-recall curves, operating thresholds, comparisons.

Detections are matched with true boxes once, at ten overlaps and four ranges of size. Everything else, resamples of
images included, is counted from these matches. The rules are those of COCO's own evaluation (`pycocotools`), ties
included, and the figures equal its figures.

Source:
    Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv:1405.0312; cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.data.box_geometry import areas, overlapping_pairs
from resfit.errors import ArgumentError
from resfit.evaluation.intervals import Figure, bootstrap, group_numbers, interval

#: Overlaps (intersection over union) at which a detection counts as a hit: 0.50, 0.55 ... 0.95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Recalls at which precision is read off.
RECALLS = np.linspace(0.0, 1.0, 101)
#: Ranges of a box's area in square pixels, both ends included.
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
#: Detections of an image and class that count, the highest scores first.
MAX_DETECTIONS = (1, 10, 100)
#: COCO's twelve figures, in its order.
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
#: Resamples of images behind an interval.
RESAMPLES = 1000

_COMBINATIONS = len(AREA_RANGES) * len(IOU_THRESHOLDS)
# Where each average precision is read: area range and overlaps; and each recall: area range and detections.
_PRECISIONS = ((0, slice(0, 10)), (0, slice(0, 1)), (0, slice(5, 6)), *((area, slice(0, 10)) for area in (1, 2, 3)))
_MEAN_RECALLS = ((0, 1), (0, 10), (0, 100), (1, 100), (2, 100), (3, 100))
_CELLS_AT_ONCE = 2_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The true boxes of a set of images, in one table.

    Attributes:
        images: Integers ``(n,)``: the image of each box, its position in the set.
        boxes: Array ``(n, 4)``, xyxy in pixels.
        labels: Integers ``(n,)``: the class of each box.
        crowd: Booleans ``(n,)``: regions with many objects, in which detections are neither right nor wrong. ``None``
            for none.
        areas: Numbers ``(n,)``, in square pixels, that put a box into a range of size; ``None`` for the boxes' own.
            COCO's files state the area of the object's outline here.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PredictedBoxes:
    """A detector's boxes on a set of images, in one table.

    Attributes:
        images: Integers ``(n,)``: the image of each box, its position in the set.
        boxes: Array ``(n, 4)``, xyxy in pixels.
        scores: Numbers ``(n,)``; higher is more confident.
        labels: Integers ``(n,)``: the class of each box.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """Precision and recall of one class at every score.

    Attributes:
        scores: float64 array ``(n,)``, descending: detections with at least this score are counted.
        precision: float64 array ``(n,)``, 0..1: the share of them that is right.
        recall: float64 array ``(n,)``, 0..1: the share of the true boxes that is found.
        interpolated: float64 array ``(101,)``: the best precision at a recall of at least 0, 0.01 ... 1, whose mean is
            the average precision.
        average_precision: 0..1; NaN without true boxes.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    interpolated: np.ndarray
    average_precision: float


@dataclasses.dataclass(frozen=True)
class DetectionThreshold:
    """The score from which detections of a class are shown.

    Attributes:
        threshold: Detections with at least this score are shown.
        f1: The largest F1 of any threshold: the harmonic mean of precision and recall.
        precision: At this threshold, 0..1.
        recall: At this threshold, 0..1.
    """

    threshold: float
    f1: float
    precision: float
    recall: float


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """Detections matched with true boxes. Detections are ordered by class, and in a class by falling score.

    Attributes:
        classes: Names of the classes.
        images: Number of images.
        order: int64 ``(n,)``: position of each detection in the table it came from; those beyond the highest 100 of
            their image and class are left out.
        image: int64 ``(n,)``: its image.
        label: int64 ``(n,)``: its class.
        score: float64 ``(n,)``: its score.
        rank: int64 ``(n,)``: its place among the detections of its image and class, from 0.
        hit: bool ``(n, 4, 10)``: whether it is a true positive, by range of size and overlap.
        ignored: bool ``(n, 4, 10)``: whether it counts neither as right nor as wrong.
        matched: int64 ``(n,)``: the true box that it takes at overlap 0.5 and any size, -1 for none.
        true_image: int64 ``(m,)``: the image of each true box.
        true_label: int64 ``(m,)``: its class.
        counted: bool ``(m, 4)``: whether it is to be found, by range of size: no crowd, and within the range.
        truth: The true boxes.
        predicted: The detections, as they were given.
    """

    classes: tuple[str, ...]
    images: int
    order: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    matched: np.ndarray
    true_image: np.ndarray
    true_label: np.ndarray
    counted: np.ndarray
    truth: TrueBoxes
    predicted: PredictedBoxes

    def figures(self) -> dict[str, float]:
        """Returns COCO's twelve figures, 0..1 each, by the names of :data:`FIGURES`.

        A figure for which there is no true box (no small ones, say) is NaN, where COCO's program writes -1.
        """
        return dict(zip(FIGURES, _mean_over_classes(self._class_figures()).tolist(), strict=True))

    def per_class(self) -> dict[str, dict[str, float]]:
        """Returns the twelve figures of each class, and its numbers of true boxes and of detections.

        Returns:
            By class, the names of :data:`FIGURES` and ``boxes`` (crowds not counted) and ``detections``.
        """
        table = self._class_figures()
        boxes = np.bincount(self.true_label[self.counted[:, 0]], minlength=len(self.classes))
        detections = np.bincount(self.label, minlength=len(self.classes))
        return {
            name: dict(zip(FIGURES, table[:, row].tolist(), strict=True))
            | {"boxes": int(boxes[row]), "detections": int(detections[row])}
            for row, name in enumerate(self.classes)
        }

    def intervals(
        self, groups: Sequence[Any] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> tuple[dict[str, Figure], dict[str, dict[str, Figure]]]:
        """Returns the twelve figures with 95 % intervals, over resamples of images.

        Args:
            groups: For each image the group it belongs to, or ``None``; a group is drawn as one.
            resamples: How many.
            seed: Of the draws.

        Returns:
            The figures; and by class the figures of that class, whose ``note`` says how many resamples lacked it.
        """
        values = self._class_figures()
        drawn = self._resampled(group_numbers(groups, self.images), resamples, seed)
        overall = _mean_over_classes(values)
        means = _mean_over_classes(drawn)
        return (
            {name: interval(overall[i], means[i]) for i, name in enumerate(FIGURES)},
            {
                label: {name: interval(values[i, row], drawn[i, row]) for i, name in enumerate(FIGURES)}
                for row, label in enumerate(self.classes)
            },
        )

    def curve(self, label: str | int, *, iou: float = 0.5) -> PrecisionRecallCurve:
        """Returns the precision-recall curve of a class, for boxes of any size.

        Args:
            label: The class, by name or number.
            iou: Overlap of a hit, one of :data:`IOU_THRESHOLDS`.

        Raises:
            ArgumentError: There is no such class or overlap.
        """
        row = self._class(label)
        level = _level(iou)
        hits, kept, expected = self._column(row, 0, level)
        places = np.flatnonzero(kept)
        scores, right = self.score[places], hits[places]
        true = np.cumsum(right)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = true / np.arange(1, len(true) + 1)
            recall = true / expected if expected else np.full(len(true), np.nan)
        interpolated = np.full(len(RECALLS), np.nan)
        if expected:
            best = np.maximum.accumulate(precision[::-1])[::-1]
            first = np.searchsorted(recall, RECALLS, "left")
            interpolated = np.where(first < len(best), np.append(best, 0.0)[np.minimum(first, len(best))], 0.0)
        average = average_precision(right, expected)
        last = np.append(np.diff(scores) != 0, True) if len(scores) else np.zeros(0, bool)  # equal scores come together
        return PrecisionRecallCurve(scores[last], precision[last], recall[last], interpolated, average)

    def operating_points(self, *, iou: float = 0.5) -> dict[str, DetectionThreshold | None]:
        """Returns for each class the score with the largest F1.

        Args:
            iou: Overlap of a hit, one of :data:`IOU_THRESHOLDS`.

        Returns:
            By class; ``None`` for a class without true boxes or without any hit. Of several scores that are as good,
            the highest is taken.
        """
        found: dict[str, DetectionThreshold | None] = {}
        for row, name in enumerate(self.classes):
            curve = self.curve(row, iou=iou)
            total = curve.precision + curve.recall
            f1 = np.divide(2 * curve.precision * curve.recall, total, out=np.zeros_like(total), where=total > 0)
            if not len(f1) or not f1.max() > 0:
                found[name] = None
                continue
            best = int(np.flatnonzero(f1 >= f1.max() - 1e-12)[0])
            numbers = (curve.scores[best], f1[best], curve.precision[best], curve.recall[best])
            found[name] = DetectionThreshold(*map(float, numbers))
        return found

    def _class(self, label: str | int) -> int:
        """The number of a class."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if not isinstance(label, str) and 0 <= int(label) < len(self.classes):
            return int(label)
        raise ArgumentError(f"label must be one of the classes {list(self.classes)}. Received: {label!r}.")

    def _span(self, row: int) -> slice:
        """Where the detections of a class are."""
        return slice(*np.searchsorted(self.label, [row, row + 1]).tolist())

    def _column(self, row: int, area: int, level: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Hits of one class, size and overlap among all detections; which count; number of true boxes to find."""
        here = np.zeros(len(self.label), bool)
        here[self._span(row)] = True
        kept = here & ~self.ignored[:, area, level]
        return self.hit[:, area, level], kept, int((self.counted[:, area] & (self.true_label == row)).sum())

    def _class_figures(self) -> np.ndarray:
        """The twelve figures of each class, ``(12, classes)``."""
        found = np.full((len(FIGURES), len(self.classes)), np.nan)
        for row in range(len(self.classes)):
            span = self._span(row)
            hit, ignored, rank = self.hit[span], self.ignored[span], self.rank[span]
            expected = self.counted[self.true_label == row].sum(axis=0)
            precision = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS)), np.nan)
            for area in np.flatnonzero(expected).tolist():
                for level in range(len(IOU_THRESHOLDS)):
                    right = hit[~ignored[:, area, level], area, level]
                    precision[area, level] = average_precision(right, int(expected[area]))
            for i, (area, levels) in enumerate(_PRECISIONS):
                found[i, row] = precision[area, levels].mean()
            for i, (area, most) in enumerate(_MEAN_RECALLS, len(_PRECISIONS)):
                if expected[area]:
                    found[i, row] = hit[rank < most, area].sum() / (expected[area] * len(IOU_THRESHOLDS))
        return found

    def _resampled(self, groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
        """The twelve figures of each class on resamples of images, ``(12, classes, resamples)``."""
        shape = (len(FIGURES), len(self.classes))
        if not self.images or not self.classes:
            return np.full((*shape, resamples), np.nan)
        measure = _Resampler(self)
        drawn = bootstrap({"all": measure}, groups, resamples=resamples, seed=seed)["all"]
        return drawn.reshape(*shape, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class DetectorComparison:
    """How much better the first detector is than the second, on the same images.

    Attributes:
        first: The twelve figures of the first.
        second: Those of the second.
        differences: First minus second, with 95 % intervals over resamples that are the same for both.
        per_class: By class, the difference in AP with its interval.
        images: Number of images.
        units: Images or groups that were resampled.
    """

    first: dict[str, float]
    second: dict[str, float]
    differences: dict[str, Figure]
    per_class: dict[str, Figure]
    images: int
    units: int


def match(truth: TrueBoxes, predicted: PredictedBoxes, *, images: int, classes: Sequence[str] | int) -> Matching:
    """Matches detections with true boxes, as COCO's evaluation does.

    In each image and class, detections are taken by falling score; each takes the free true box that it overlaps most,
    if it overlaps enough. True boxes outside of a range of size, and crowds, are taken only by what takes no other box,
    and such detections do not count; a crowd can be taken any number of times.

    Args:
        truth: The true boxes.
        predicted: The detections.
        images: Number of images, those without any box included.
        classes: Names of the classes, or their number.

    Raises:
        ArgumentError: The tables do not fit together, or hold boxes without extent to the right and down, or numbers
            that are not finite.

    Example:
        >>> truth = TrueBoxes([0], [[0, 0, 10, 10]], [0])
        >>> found = PredictedBoxes([0, 0], [[0, 0, 10, 9], [50, 50, 60, 60]], [0.9, 0.8], [0, 0])
        >>> match(truth, found, images=1, classes=["cat"]).figures()["ap50"]
        1.0
    """
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    truth = _checked_truth(truth, images, len(names))
    predicted = _checked_predicted(predicted, images, len(names))
    assert truth.crowd is not None
    assert truth.areas is not None
    # true boxes by image and class, in their own order
    group = truth.labels * images + truth.images
    arranged = np.argsort(group, kind="stable")
    owners, crowd = group[arranged], truth.crowd[arranged]
    bounds = np.array(list(AREA_RANGES.values()))
    sizes = truth.areas[arranged][:, None]
    overlooked = crowd[:, None] | (sizes < bounds[:, 0]) | (sizes > bounds[:, 1])
    # detections by image and class, the highest score first, equal scores in their own order
    group = predicted.labels * images + predicted.images
    order = np.lexsort((-predicted.scores, group))
    first = np.searchsorted(group[order], group[order], "left")
    rank = np.arange(len(order)) - first
    within = rank < MAX_DETECTIONS[-1]
    order, rank = order[within], rank[within]
    boxes = predicted.boxes[order]
    taken, chosen, first_taken = _take(boxes, group[order], truth.boxes[arranged], owners, crowd, overlooked)
    sizes = areas(boxes)[:, None]
    outside = (sizes < bounds[:, 0]) | (sizes > bounds[:, 1])
    hit = taken & ~chosen
    ignored = np.where(taken, chosen, np.repeat(outside, len(IOU_THRESHOLDS), axis=1))
    # through all images of a class
    by_class = np.lexsort((-predicted.scores[order], predicted.labels[order]))
    order = order[by_class]
    shape = (len(order), len(AREA_RANGES), len(IOU_THRESHOLDS))
    counted = np.empty((len(arranged), len(AREA_RANGES)), bool)
    counted[arranged] = ~overlooked
    matched = np.append(arranged, -1)[first_taken]  # -1 takes the last entry
    return Matching(
        classes=names,
        images=images,
        order=order,
        image=predicted.images[order],
        label=predicted.labels[order],
        score=predicted.scores[order],
        rank=rank[by_class],
        hit=hit[by_class].reshape(shape),
        ignored=ignored[by_class].reshape(shape),
        matched=matched[by_class],
        true_image=truth.images,
        true_label=truth.labels,
        counted=counted,
        truth=truth,
        predicted=predicted,
    )


def compare(
    first: Matching,
    second: Matching,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DetectorComparison:
    """Compares two detectors on the same images.

    Args:
        first: One detector's detections, matched.
        second: The other's, matched with the same true boxes.
        groups: For each image the group it belongs to, or ``None``; a group is drawn as one.
        resamples: How many; each is the same for both detectors, so that hard images weigh on both.
        seed: Of the draws.

    Raises:
        ArgumentError: The images, classes or true boxes differ.
    """
    same = first.classes == second.classes and first.images == second.images
    if not same or not all(
        np.array_equal(getattr(first.truth, name), getattr(second.truth, name))
        for name in ("images", "boxes", "labels", "crowd", "areas")
    ):
        raise ArgumentError(
            "both detectors must be matched with the same true boxes, images and classes. "
            f"Received: {first.images} images, {len(first.true_label)} boxes, {len(first.classes)} classes and "
            f"{second.images} images, {len(second.true_label)} boxes, {len(second.classes)} classes."
        )
    numbers = group_numbers(groups, first.images)
    tables = [matching._class_figures() for matching in (first, second)]
    drawn = [matching._resampled(numbers, resamples, seed) for matching in (first, second)]
    means = [_mean_over_classes(table) for table in tables]
    change = _mean_over_classes(drawn[0]) - _mean_over_classes(drawn[1])
    return DetectorComparison(
        first=dict(zip(FIGURES, means[0].tolist(), strict=True)),
        second=dict(zip(FIGURES, means[1].tolist(), strict=True)),
        differences={name: interval(means[0][i] - means[1][i], change[i]) for i, name in enumerate(FIGURES)},
        per_class={
            name: interval(tables[0][0, row] - tables[1][0, row], drawn[0][0, row] - drawn[1][0, row])
            for row, name in enumerate(first.classes)
        },
        images=first.images,
        units=int(numbers.max(initial=-1)) + 1,
    )


def _take(
    boxes: np.ndarray,
    owners: np.ndarray,
    true_boxes: np.ndarray,
    true_owners: np.ndarray,
    crowd: np.ndarray,
    overlooked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lets detections take true boxes, for all images, classes, ranges of size and overlaps at once.

    The n-th detections of all images and classes, which cannot get in each other's way, take their boxes together.

    Args:
        boxes: Detections, ordered by owner (image and class) and falling score.
        owners: Their owners.
        true_boxes: True boxes, ordered by owner.
        true_owners: Their owners.
        crowd: Which true boxes are crowds.
        overlooked: bool ``(m, 4)``: which true boxes are not to be found, by range of size.

    Returns:
        By detection and combination of size and overlap, ``(n, 40)``: whether it took a box, and whether that one is
        not to be found. And which true box it took in the first combination, -1 for none.
    """
    taken = np.zeros((len(boxes), _COMBINATIONS), bool)
    chosen = np.zeros((len(boxes), _COMBINATIONS), bool)
    first = np.full(len(boxes), -1)
    pairs = list(overlapping_pairs(boxes, owners, true_boxes, true_owners, least=IOU_THRESHOLDS[0], crowd=crowd))
    if not pairs:
        return taken, chosen, first
    one, two, overlap = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    # the last of a detection's pairs is its best: of equal overlaps COCO takes the later box
    best_last = np.lexsort((two, overlap, one))
    one, two, overlap = one[best_last], two[best_last], overlap[best_last]
    detections, begin = np.unique(one, return_index=True)
    turn = np.arange(len(detections)) - np.searchsorted(owners[detections], owners[detections], "left")
    turns = np.repeat(turn, np.diff(np.append(begin, len(one))))
    by_turn = np.argsort(turns, kind="stable")
    one, two, overlap, turns = one[by_turn], two[by_turn], overlap[by_turn], turns[by_turn]
    thresholds = np.tile(IOU_THRESHOLDS, len(AREA_RANGES))
    aside = np.repeat(overlooked, len(IOU_THRESHOLDS), axis=1)
    gone = np.zeros((len(true_boxes), _COMBINATIONS), bool)
    columns = np.arange(_COMBINATIONS)
    limits = np.searchsorted(turns, np.arange(int(turns[-1]) + 2)) if len(turns) else np.zeros(1, np.int64)
    for low, high in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
        box, who = two[low:high], one[low:high]
        possible = (overlap[low:high, None] >= thresholds) & (~gone[box] | crowd[box, None])
        place = np.arange(1, high - low + 1)[:, None]
        # boxes to be found come before the others, whatever the overlap; 0 stands for none
        preference = np.where(possible, place + np.where(aside[box], 0, high - low), 0)
        starts = np.flatnonzero(np.append(True, np.diff(who) != 0))
        best = np.maximum.reduceat(preference, starts, axis=0)
        found = best > 0
        box_taken = box[(best - 1) % (high - low)]
        rows = who[starts]
        taken[rows] = found
        chosen[rows] = found & aside[box_taken, columns]
        first[rows] = np.where(found[:, 0], box_taken[:, 0], -1)
        who_found, which = np.nonzero(found)
        gone[box_taken[who_found, which], which] = True
    return taken, chosen, first


class _Resampler:
    """Computes the figures of each class on many resamples at once: takes weights, returns ``(12 * classes, some)``.

    Args:
        matching: Detections and true boxes.
    """

    def __init__(self, matching: Matching):
        from scipy import sparse

        self._matching = matching
        self._classes, self._images = len(matching.classes), matching.images
        shape = (self._classes, self._images)
        self._expected = []
        for area in range(len(AREA_RANGES)):
            counted = matching.counted[:, area]
            places = (matching.true_label[counted], matching.true_image[counted])
            self._expected.append(sparse.csr_matrix((np.ones(counted.sum()), places), shape=shape))
        self._hits = []
        for area, most in _MEAN_RECALLS:
            some = matching.rank < most
            shares = matching.hit[some, area].mean(axis=1)
            self._hits.append(sparse.csr_matrix((shares, (matching.label[some], matching.image[some])), shape=shape))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The figures on resamples.

        Args:
            weights: float32 ``(images, resamples)``: how often each image was drawn.
        """
        count = weights.shape[1]
        found = np.full((len(FIGURES), self._classes, count), np.nan)
        expected = [table @ weights for table in self._expected]
        for i, (area, _) in enumerate(_MEAN_RECALLS, len(_PRECISIONS)):
            with np.errstate(invalid="ignore", divide="ignore"):
                found[i] = np.where(
                    expected[area] > 0, (self._hits[i - len(_PRECISIONS)] @ weights) / expected[area], np.nan
                )
        for row in range(self._classes):
            precision = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), count), np.nan)
            for area in range(len(AREA_RANGES)):
                if expected[area][row].any():
                    for level in range(len(IOU_THRESHOLDS)):
                        precision[area, level] = self._precision(row, area, level, expected[area][row], weights)
            for i, (area, levels) in enumerate(_PRECISIONS):
                found[i, row] = precision[area, levels].mean(axis=0)
        return found.reshape(-1, count)

    def _precision(self, row: int, area: int, level: int, expected: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The average precision of a class on each resample, NaN where it has no true box."""
        from scipy import sparse

        matching = self._matching
        span = matching._span(row)
        kept = ~matching.ignored[span, area, level]
        hits = np.flatnonzero(matching.hit[span, area, level][kept])
        result = np.where(expected > 0, 0.0, np.nan)
        if not len(hits):
            return result
        # only hits change recall; what lies between two of them is counted by one row of a sparse table
        images = matching.image[span][kept][: hits[-1] + 1]
        table = sparse.csr_matrix(
            (np.ones(len(images), np.float32), images, np.append(0, hits + 1)), shape=(len(hits), self._images)
        )
        step = max(1, _CELLS_AT_ONCE // len(hits))
        for start in range(0, weights.shape[1], step):
            some = slice(start, start + step)
            drawn = np.ascontiguousarray(weights[:, some])
            called = np.cumsum(table @ drawn, axis=0, dtype=np.float64)
            true = np.cumsum(drawn[images[hits]], axis=0, dtype=np.float64)
            best = np.maximum.accumulate((true / np.maximum(called, 1.0))[::-1], axis=0)[::-1]
            with np.errstate(invalid="ignore", divide="ignore"):
                reached = np.searchsorted(RECALLS, true / expected[some], "right")
            gained = np.diff(reached, axis=0, prepend=0)
            result[some] = np.where(expected[some] > 0, (best * gained).sum(axis=0) / len(RECALLS), np.nan)
        return result


def average_precision(right: np.ndarray, expected: int) -> float:
    """COCO's average precision: the mean over 101 recalls of the best precision from there on.

    Args:
        right: Whether each detection is a hit, by falling score; ignored ones left out.
        expected: Number of true boxes.
    """
    if not expected:
        return float("nan")
    hits = np.flatnonzero(right)
    true = np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate((true / (hits + 1))[::-1])[::-1]
    gained = np.diff(np.searchsorted(RECALLS, true / expected, "right"), prepend=0)
    return float((best * gained).sum() / len(RECALLS))


def _mean_over_classes(table: np.ndarray) -> np.ndarray:
    """Means over axis 1 of what is known; NaN where nothing is."""
    known = np.isfinite(table)
    number = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, table, 0.0).sum(axis=1) / np.where(number > 0, number, np.nan)


def _level(iou: float) -> int:
    """The number of an overlap in :data:`IOU_THRESHOLDS`."""
    level = int(np.abs(IOU_THRESHOLDS - iou).argmin())
    if not abs(IOU_THRESHOLDS[level] - iou) < 1e-6:
        known = ", ".join(f"{threshold:.2f}" for threshold in IOU_THRESHOLDS)
        raise ArgumentError(f"iou must be one of {known}. Received: {iou}.")
    return level


def _checked_truth(truth: TrueBoxes, images: int, classes: int) -> TrueBoxes:
    """The true boxes as arrays that fit together."""
    owners, boxes, labels = _checked(truth.images, truth.boxes, truth.labels, images, classes, "true boxes")
    crowd = np.zeros(len(owners), bool) if truth.crowd is None else np.asarray(truth.crowd).astype(bool)
    sizes = areas(boxes) if truth.areas is None else np.asarray(truth.areas, np.float64)
    for name, values in (("crowd", crowd), ("areas", sizes)):
        if values.shape != owners.shape or not np.isfinite(values).all():
            raise ArgumentError(
                f"{name} must have one finite entry for each of the {len(owners)} true boxes. Received: {values.shape}."
            )
    return TrueBoxes(owners, boxes, labels, crowd, sizes)


def _checked_predicted(predicted: PredictedBoxes, images: int, classes: int) -> PredictedBoxes:
    """The detections as arrays that fit together."""
    given = (predicted.images, predicted.boxes, predicted.labels)
    owners, boxes, labels = _checked(*given, images, classes, "detections")
    scores = np.asarray(predicted.scores, np.float64)
    if scores.shape != owners.shape or not np.isfinite(scores).all():
        wrong = int((~np.isfinite(scores)).sum())
        raise ArgumentError(
            f"scores must be one finite number for each of the {len(owners)} detections. "
            f"Received: shape {scores.shape} with {wrong} that are not finite."
        )
    return PredictedBoxes(owners, boxes, scores, labels)


def _checked(
    owners: Any, boxes: Any, labels: Any, images: int, classes: int, what: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, boxes and labels as arrays that fit together."""
    numbers = []
    for name, values, limit in (("images", owners, images), ("labels", labels, classes)):
        array = np.asarray(values)
        whole = array.astype(np.int64) if array.size else np.zeros(0, np.int64)
        if array.ndim != 1 or (whole != array).any() or ((whole < 0) | (whole >= limit)).any():
            raise ArgumentError(
                f"{name} of {what} must be whole numbers from 0 to {limit - 1}, in one dimension. "
                f"Received: shape {array.shape}" + (f", {array.min()} to {array.max()}." if array.size else ".")
            )
        numbers.append(whole)
    table = np.asarray(boxes, np.float64)
    table = table.reshape(-1, 4) if table.size == 0 else table
    if table.shape != (len(numbers[0]), 4) or len(numbers[1]) != len(table):
        raise ArgumentError(
            f"{what} must have as many images and labels as boxes, boxes of shape (n, 4). "
            f"Received: {len(numbers[0])} images, {len(numbers[1])} labels and boxes of shape {table.shape}."
        )
    wrong = ~(np.isfinite(table).all(axis=1) & (table[:, 2] >= table[:, 0]) & (table[:, 3] >= table[:, 1]))
    if wrong.any():
        raise ArgumentError(
            f"{what} must be finite, with x1 <= x2 and y1 <= y2. "
            f"Received: {int(wrong.sum())} that are not, such as {table[wrong][0].tolist()}."
        )
    return numbers[0], table, numbers[1]
