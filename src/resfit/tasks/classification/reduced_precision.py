"""Features in few bits: kept where the head loses next to nothing by them, and measured as the classifier computes.

The classifier itself computes in float32. A head that has learned from features in bfloat16 or int8 must do as well on
features in float32, which the images to be measured on get in any case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from resfit.errors import DataError
from resfit.features.extract import Features
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.heads import base

#: Most accuracy, as a share, that few bits may cost on held-out images; one image they may cost in any case.
TOLERANCE = 0.005
#: Images that are looked at where none is set aside.
_HELD_OUT = 256


class CorrectedRows:
    """Rows of which some were computed again in float32.

    Args:
        rows: Array ``(n, features)``.
        positions: Of the others.
        exact: These, ``(k, features)``.
    """

    def __init__(self, rows: np.ndarray, positions: np.ndarray, exact: np.ndarray):
        self._rows, self._exact = rows, exact
        self._place = np.full(len(rows), -1, np.int64)
        self._place[positions] = np.arange(len(positions))

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found, places = np.array(self._rows[positions]), self._place[positions]
        found[places >= 0] = self._exact[places[places >= 0]]
        return found


#: Features of images by position.
Rows = np.ndarray | CorrectedRows


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether features in few bits are kept.

    Attributes:
        kept: Whether they are.
        rows: All rows: those of the held-out images in float32, and where few bits are not kept the others too.
        narrow: Accuracy on held-out images, by their features in few bits, 0..1.
        exact: The same by their features in float32.
        text: In words.
    """

    kept: bool
    rows: Rows
    narrow: float
    exact: float
    text: str


def judge(
    data: TrainingData,
    head: base.Head,
    rows: np.ndarray,
    precision: str,
    exact_of: Callable[[np.ndarray], Features],
) -> Verdict:
    """Computes features of held-out images in float32 and compares what a head says of both.

    Args:
        data: The images. Test images are looked at, or where there are none some of the others.
        head: What has learned from ``rows``.
        rows: Features in few bits ``(n, features)``.
        precision: What they are in.
        exact_of: Computes features of images by position in float32.

    Raises:
        DataError: An image cannot be read any more.
    """
    held = data.parts.test
    if not len(held):
        held = np.unique(np.linspace(0, len(rows) - 1, min(_HELD_OUT, len(rows))).round().astype(np.int64))
    exact = _exactly(exact_of, held)
    narrow, wide = (_accuracy(data, head.logits(some), held) for some in (rows[held], exact))
    text = (
        f"accuracy on {len(held)} held-out images {narrow:.1%} by features in {precision}, {wide:.1%} by those in "
        "float32, in which the classifier computes"
    )
    tolerance = max(TOLERANCE, 1 / len(held))  # a single image says nothing
    kept = wide >= narrow - tolerance - 1e-9
    end = "" if kept else f": it may cost at most {TOLERANCE:.1%}, or a single image, so all are computed in float32"
    right = CorrectedRows(rows, held, exact) if kept else _exactly(exact_of, np.arange(len(rows)))
    return Verdict(kept, right, narrow, wide, text + end)


def _exactly(exact_of: Callable[[np.ndarray], Features], positions: np.ndarray) -> np.ndarray:
    found = exact_of(positions)
    if found.skipped:
        raise DataError(f"images changed while they were read, such as {found.skipped[0].path}. Start again.")
    return np.asarray(found.rows)


def _accuracy(data: TrainingData, logits: np.ndarray, positions: np.ndarray) -> float:
    targets = data.targets[positions]
    if data.multilabel:
        return float(((logits > 0) == (targets > 0.5)).mean())
    return float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())
