"""Whether an export finds the boxes that Keras finds, matched one by one, and as exactly where the truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from resfit.data.box_geometry import overlap_matrix
from resfit.export.verification import Verification

#: Boxes of an image in pixels of the input, scores and classes.
Found = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Largest distance of a matched box's edge in pixels of the input, and of its score, by precision.
TOLERANCES: dict[str, tuple[float, float]] = {"float32": (0.5, 1e-3), "float16": (2.0, 2e-2)}
#: Smallest share of boxes that have a match.
LEAST_MATCHED = {"float32": 0.99, "float16": 0.95}
#: Of int8: most AP that may be lost where true boxes are known, as a share.
MOST_LOST = 0.01
#: Of int8 without true boxes: smallest share of boxes over the threshold with a box of the same class that overlaps.
LEAST_OVERLAPPING = 0.9
_OVERLAP = 0.7


@dataclasses.dataclass(frozen=True)
class DetectionVerification(Verification):
    """How the export of a detector compares with Keras.

    ``difference`` is the largest distance of an edge of matched boxes in pixels of the input, ``agreement`` the share
    of boxes that have a match, counted from both sides; ``accuracy`` and ``keras_accuracy`` are box AP.

    Attributes:
        boxes: Boxes that Keras finds.
        score_difference: Largest difference of a matched box's score.
    """

    boxes: int = 0
    score_difference: float = 0.0

    #: What ``difference``, ``agreement`` and ``accuracy`` are called in tables.
    HEADINGS: ClassVar[tuple[str, str, str]] = (">largest difference (px)", ">boxes matched", ">box AP")

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the export, in words; nothing if it agrees."""
        found = []
        if self.precision == "int8":
            if self.accuracy is not None and self.keras_accuracy is not None:
                lost = self.keras_accuracy - self.accuracy
                if not lost <= MOST_LOST:
                    found.append(f"the box AP is {self.accuracy:.3f}, Keras' is {self.keras_accuracy:.3f}")
            elif not self.agreement >= LEAST_OVERLAPPING:
                found.append(
                    f"{self.agreement:.1%} of the boxes overlap one of Keras' by {_OVERLAP:g}, fewer than "
                    f"{LEAST_OVERLAPPING:.0%}"
                )
        elif not self.agreement >= LEAST_MATCHED[self.precision]:
            pixels, score = TOLERANCES[self.precision]
            found.append(
                f"{self.agreement:.1%} of the boxes are within {pixels:g} px and {score:g} of the score of one of "
                f"Keras', fewer than {LEAST_MATCHED[self.precision]:.0%}"
            )
        found += [
            f"{check.what} differ by {check.difference:.3g} {check.unit}, more than {check.tolerance:g}"
            for check in self.checks
            if not check.passed and check.tolerance is not None
        ]
        if isinstance(self.other_size, tuple):
            found.append("images of another size are not refused")
        return tuple(found)

    def limits(self) -> dict[str, Any]:
        """Returns what the figures must not pass."""
        if self.precision == "int8":
            return {"ap_lost": MOST_LOST, "overlapping": LEAST_OVERLAPPING, "overlap": _OVERLAP}
        pixels, score = TOLERANCES[self.precision]
        return {"matched": LEAST_MATCHED[self.precision], "pixels": pixels, "score": score}

    def lines(self) -> list[str]:
        """Returns the comparison for the card."""
        if not self.boxes:
            return ["- Keras finds no boxes on them, and neither does the export."]
        if self.precision == "int8":
            found = [
                f"- Of {self.boxes} boxes of at least the threshold, {self.agreement:.1%} overlap one of Keras' of the "
                f"same class by {_OVERLAP:g} or more, counted from both sides."
            ]
        else:
            pixels, score = TOLERANCES[self.precision]
            found = [
                f"- Of {self.boxes} boxes {self.agreement:.2%} have a match of the same class within {pixels:g} px and "
                f"{score:g} of the score, counted from both sides. Matched boxes differ by at most "
                f"{self.difference:.1e} px and {self.score_difference:.1e} of the score."
            ]
        if self.accuracy is not None and self.keras_accuracy is not None:
            found.append(f"- Box AP on them: {self.accuracy:.3f}; in Keras {self.keras_accuracy:.3f}.")
        return found


def matched(
    received: Sequence[Found], expected: Sequence[Found], precision: str, thresholds: np.ndarray
) -> tuple[float, float, float, int]:
    """Matches the boxes of an export with Keras', each with one of its class at most.

    Args:
        received: Of each image, what the export finds.
        expected: What Keras finds.
        precision: Of the export; in int8 boxes of at least the threshold are compared, by their overlap.
        thresholds: Of each class.

    Returns:
        The share of boxes with a match, counted from both sides (1 where there are none), the largest distance of an
        edge and of a score among matched ones, and the number of boxes that Keras finds.
    """
    hits = total = boxes = 0
    edges = scores = 0.0
    for one, other in zip(received, expected, strict=True):
        if not (np.isfinite(one[0]).all() and np.isfinite(one[1]).all()):
            return 0.0, float("inf"), float("inf"), sum(len(found[0]) for found in expected)
        if precision == "int8":
            one, other = (_above(found, thresholds) for found in (one, other))
        total += len(one[0]) + len(other[0])
        boxes += len(other[0])
        pairs = _pairs(one, other, precision)
        hits += 2 * len(pairs)
        for row, column in pairs:
            edges = max(edges, float(np.abs(one[0][row] - other[0][column]).max()))
            scores = max(scores, abs(float(one[1][row]) - float(other[1][column])))
    return (hits / total if total else 1.0), edges, scores, boxes


def _above(found: Found, thresholds: np.ndarray) -> Found:
    kept = found[1] >= thresholds[found[2]]
    return found[0][kept], found[1][kept], found[2][kept]


def _pairs(one: Found, other: Found, precision: str) -> list[tuple[int, int]]:
    """Pairs of boxes that stand for each other, the best score first."""
    if not len(one[0]) or not len(other[0]):
        return []
    same = one[2][:, None] == other[2][None, :]
    if precision == "int8":
        close = overlap_matrix(one[0].astype(np.float64), other[0].astype(np.float64)) >= _OVERLAP
    else:
        pixels, score = TOLERANCES[precision]
        away = np.abs(one[0][:, None].astype(np.float64) - other[0][None, :]).max(axis=2)
        close = (away <= pixels) & (np.abs(one[1][:, None].astype(np.float64) - other[1][None, :]) <= score)
    allowed = same & close
    taken: set[int] = set()
    pairs = []
    for column in range(len(other[0])):  # the best first
        rows = [row for row in np.flatnonzero(allowed[:, column]).tolist() if row not in taken]
        if rows:
            best = min(rows, key=lambda row: float(np.abs(one[0][row] - other[0][column]).max()))
            taken.add(best)
            pairs.append((best, column))
    return pairs
