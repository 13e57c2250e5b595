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
# images that are looked at first, where as few as possible shall be
_STEP = 32


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


def judge_briefly(
    data: TrainingData,
    head: base.Head,
    rows: np.ndarray,
    precision: str,
    exact_of: Callable[[np.ndarray], Features],
    most: int,
    seed: int = 0,
) -> Verdict:
    """Decides as :func:`judge` does, on as few images in float32 as it takes.

    An image is right where its margin is positive: the logit of its class less the largest of the others. On images in
    a random order both margins are computed; their differences, put on the margins of all held-out images by features
    in few bits, give the accuracy that float32 would have, with its standard error. It ends as soon as the drop is
    below or above what is allowed by two of these.

    Args:
        data: As :func:`judge` takes it.
        head: As :func:`judge` takes it.
        rows: As :func:`judge` takes them.
        precision: As :func:`judge` takes it.
        exact_of: As :func:`judge` takes it.
        most: Most images in float32; where they do not decide it, the estimate does.
        seed: Of the order.

    Returns:
        The verdict; its rows are in float32 for the images that were looked at, where few bits are kept.

    Raises:
        DataError: As :func:`judge`.
    """
    held = data.parts.test
    if not len(held):
        held = np.unique(np.linspace(0, len(rows) - 1, min(_HELD_OUT, len(rows))).round().astype(np.int64))
    margins = _margins(data, head.logits(rows[held]), held)
    narrow = float((margins > 0).mean())
    tolerance = max(TOLERANCE, 1 / len(held))
    order = np.random.default_rng(seed).permutation(len(held))[: max(_STEP, most)]
    exact, wide, kept = np.zeros((0, rows.shape[1]), np.float32), narrow, True
    end = 0
    while end < len(order):
        begin, end = end, min(len(order), max(_STEP, 2 * end))
        exact = np.concatenate([exact, _exactly(exact_of, held[order[begin:end]])])
        found = _margins(data, head.logits(exact), held[order[:end]])
        shifts = found - margins[order[:end]]
        if end == len(held):  # nothing is left to estimate
            wide, error = float((found > 0).mean()), 0.0
        else:
            each = np.array([(margins + shift > 0).mean() for shift in shifts])
            wide, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
        drop = narrow - wide
        kept = drop <= tolerance + 1e-9
        if drop + 2 * error <= tolerance or drop - 2 * error > tolerance:
            break
    text = (
        f"accuracy on {len(held)} held-out images {narrow:.1%} by features in {precision}, {wide:.1%} by those in "
        f"float32, in which the classifier computes, as {end} of them tell"
    )
    if kept:
        return Verdict(True, CorrectedRows(rows, held[order[:end]], exact), narrow, wide, text)
    text += f": it may cost at most {TOLERANCE:.1%}, or a single image, so all are computed in float32"
    return Verdict(False, _exactly(exact_of, np.arange(len(rows))), narrow, wide, text)


def _margins(data: TrainingData, logits: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns by how much each image is on the right side, ``(n, 1)``, or each of its labels, ``(n, labels)``."""
    targets = data.targets[positions]
    if data.multilabel:
        return np.asarray(logits * np.where(targets > 0.5, 1, -1))
    true = targets.argmax(axis=1)
    rows = np.arange(len(logits))
    others = np.array(logits, np.float64)
    own = others[rows, true].copy()
    others[rows, true] = -np.inf
    return np.asarray((own - others.max(axis=1))[:, None])


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
