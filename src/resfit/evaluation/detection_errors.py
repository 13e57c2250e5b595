"""What kinds of mistakes a detector makes, and how much each kind costs.

A detection that is no hit at an overlap (intersection over union) of 0.5 is one of five kinds, a true box that is not
found may be of a sixth:

- ``localisation``: the right class, but it overlaps its true box by only 0.1 to 0.5.
- ``class``: it overlaps a true box by at least 0.5, but that one has another class.
- ``duplicate``: it would be a hit if another detection with a higher score had not found the same box.
- ``background``: it overlaps every true box by less than 0.1: there is nothing.
- ``both``: the rest, whose class and place are wrong: it overlaps a box of another class by 0.1 to 0.5.
- ``missed``: a true box that no detection finds, and that no ``localisation`` or ``class`` mistake nearly found.

Source:
    Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors", arXiv:2008.08115. As in its
    program, the kinds are tried in the order localisation, class, duplicate, background, both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from resfit.data.box_geometry import overlapping_pairs
from resfit.errors import ArgumentError
from resfit.evaluation.detection import Matching, average_precision

#: The kinds of mistakes. The number of a kind in :attr:`DetectionErrors.kinds` is its position here.
KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")
#: Overlap of a hit, and overlap below which there is only background.
HIT, BACKGROUND = 0.5, 0.1
#: In :attr:`DetectionErrors.kinds`: a hit, and a detection that does not count (in a crowd, or below its threshold).
CORRECT, NOT_COUNTED = -1, -2

_LOCALISATION, _CLASS, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionErrors:
    """The mistakes of a detector by kind.

    Attributes:
        kinds: int8 ``(n,)``: for each detection, in the order of the matching, the position of its kind in
            :data:`KINDS`, or :data:`CORRECT` or :data:`NOT_COUNTED`.
        concerned: int64 ``(n,)``: the true box that a mistake is about (nearly found, found already), or -1.
        missed: bool ``(m,)``: which true boxes are missed.
        counts: By kind, how many.
        ap50: Average precision at overlap 0.5, the mean over classes; NaN without true boxes.
        gains: By kind, how much higher ``ap50`` would be without this kind alone, 0..1. They do not add up to what is
            missing from 1. Localisation and class mistakes are corrected, the best-scored one for each box that is not
            found otherwise; the other ones are taken away, and missed boxes are not asked for.
        matching: The matching.
    """

    kinds: np.ndarray
    concerned: np.ndarray
    missed: np.ndarray
    counts: dict[str, int]
    ap50: float
    gains: dict[str, float]
    matching: Matching

    def worst(self, kind: str, most: int = 20) -> list[tuple[int, int, int]]:
        """Returns where to look at mistakes of one kind.

        Args:
            kind: One of :data:`KINDS`.
            most: How many at most.

        Returns:
            Image, position of the detection in its table and of the true box in its own, each -1 where there is none.
            Detections come by falling score; missed boxes by falling area.

        Raises:
            ArgumentError: There is no such kind.
        """
        if kind not in KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(KINDS)}. Received: {kind!r}.")
        matching = self.matching
        if kind == "missed":
            assert matching.truth.areas is not None
            rows = np.flatnonzero(self.missed)
            rows = rows[np.argsort(-matching.truth.areas[rows], kind="stable")][:most]
            return [(int(matching.true_image[row]), -1, int(row)) for row in rows]
        rows = np.flatnonzero(self.kinds == KINDS.index(kind))
        rows = rows[np.argsort(-matching.score[rows], kind="stable")][:most]
        return [(int(matching.image[row]), int(matching.order[row]), int(self.concerned[row])) for row in rows]


def detection_errors(matching: Matching, *, thresholds: Mapping[str, float] | None = None) -> DetectionErrors:
    """Sorts the mistakes of a detector by kind.

    Args:
        matching: Detections and true boxes.
        thresholds: By class the score from which detections are shown; others do not count. ``None`` counts all, down
            to the lowest score, most of which are usually background.

    Raises:
        ArgumentError: A class of the thresholds is unknown.

    Example:
        >>> found = detection_errors(match(truth, predicted, images=2, classes=["cat"]))  # doctest: +SKIP
        >>> found.counts["background"], found.gains["background"]  # doctest: +SKIP
        (3, 0.08)
    """
    shown = _shown(matching, thresholds)
    hit = matching.hit[:, 0, 0] & shown
    wrong = np.flatnonzero(shown & ~hit & ~matching.ignored[:, 0, 0])
    wanted = matching.counted[:, 0]
    found = np.zeros(len(wanted), bool)
    found[matching.matched[hit]] = True
    same, other = _closest(matching, wrong, wanted)
    kinds = np.full(len(shown), NOT_COUNTED, np.int8)
    kinds[hit] = CORRECT
    concerned = np.full(len(shown), -1)
    near, right_place, again = (
        (same[0] >= BACKGROUND) & (same[0] < HIT),
        other[0] >= HIT,
        same[0] >= HIT,
    )
    nothing = (same[0] < BACKGROUND) & (other[0] < BACKGROUND)
    choices = [near, right_place, again, nothing]
    kinds[wrong] = np.select(choices, [_LOCALISATION, _CLASS, _DUPLICATE, _BACKGROUND], _BOTH)
    concerned[wrong] = np.select(choices, [same[1], other[1], same[1], -1], other[1])
    nearly = np.isin(kinds, (_LOCALISATION, _CLASS))
    reached = found.copy()
    reached[concerned[nearly]] = True
    missed = wanted & ~reached
    ap50 = _ap50(matching, matching.label, hit, hit | (kinds >= 0), wanted)
    gains = {
        name: max(
            0.0, _without(matching, kind, kinds, concerned, hit, found, wanted & ~(missed & (kind == _MISSED))) - ap50
        )
        for kind, name in enumerate(KINDS)
    }
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)} | {"missed": int(missed.sum())}
    return DetectionErrors(kinds, concerned, missed, counts, ap50, gains, matching)


def _shown(matching: Matching, thresholds: Mapping[str, float] | None) -> np.ndarray:
    """Which detections reach the threshold of their class."""
    least = np.full(len(matching.classes), -np.inf)
    for name, threshold in (thresholds or {}).items():
        if name not in matching.classes:
            raise ArgumentError(
                f"thresholds must be those of the classes {list(matching.classes)}. Received: {name!r}."
            )
        least[matching.classes.index(name)] = threshold
    return matching.score >= least[matching.label]


def _closest(
    matching: Matching, rows: np.ndarray, wanted: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For some detections the largest overlap with a box of the same class and of another, and which box that is."""
    truth, boxes = matching.truth, matching.predicted.boxes[matching.order[rows]]
    places = np.flatnonzero(wanted)
    places = places[np.argsort(truth.images[places], kind="stable")]
    results = tuple((np.zeros(len(rows)), np.full(len(rows), -1)) for _ in range(2))
    owners = truth.images[places]
    for one, two, overlap in overlapping_pairs(
        boxes, matching.image[rows], truth.boxes[places], owners, least=BACKGROUND
    ):
        alike = matching.label[rows[one]] == truth.labels[places[two]]
        for (best, which), kept in zip(results, (alike, ~alike), strict=True):
            some = np.flatnonzero(kept)
            some = some[np.lexsort((-two[some], overlap[some], one[some]))]  # the last is the largest, then the first
            best[one[some]], which[one[some]] = overlap[some], places[two[some]]
    return results[0], results[1]


def _without(
    matching: Matching,
    kind: int,
    kinds: np.ndarray,
    concerned: np.ndarray,
    hit: np.ndarray,
    found: np.ndarray,
    wanted: np.ndarray,
) -> float:
    """AP at 0.5 without one kind of mistakes."""
    rows = np.flatnonzero(kinds == kind)
    label, right, kept = matching.label.copy(), hit.copy(), kinds >= CORRECT
    kept[rows] = False
    if kind in (_LOCALISATION, _CLASS):
        rows = rows[~found[concerned[rows]]]
        rows = rows[np.argsort(-matching.score[rows], kind="stable")]
        _, first = np.unique(concerned[rows], return_index=True)  # the best-scored one for each box
        rows = rows[first]
        right[rows] = kept[rows] = True
        label[rows] = matching.true_label[concerned[rows]]
    return _ap50(matching, label, right, kept, wanted)


def _ap50(matching: Matching, label: np.ndarray, right: np.ndarray, kept: np.ndarray, wanted: np.ndarray) -> float:
    """The mean over classes of the average precision of detections that are sorted anew."""
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((-matching.score[rows], label[rows]))]
    bounds = np.searchsorted(label[rows], np.arange(len(matching.classes) + 1))
    expected = np.bincount(matching.true_label[wanted], minlength=len(matching.classes))
    values = [
        average_precision(right[rows[low:high]], int(number))
        for low, high, number in zip(bounds[:-1], bounds[1:], expected, strict=True)
    ]
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
