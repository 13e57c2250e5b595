"""From what a detector's network gives to detections, in numpy: the same greedy suppression as in exported models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resfit.numerics import float32_below


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    counts: Sequence[int] = (),
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    candidates: int = 250,
    max_detections: int = 100,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the detections of one picture, as :class:`resfit.networks.detection.nms.NonMaxSuppression` keeps them.

    Args:
        boxes: float32 ``(n, 4)``, xyxy.
        scores: float32 ``(n, classes)``.
        counts: Boxes of each level, of each of which the best pairs enter; empty for the best of all.
        score_threshold: Detections have more than this score.
        nms_threshold: Of two boxes of one class that overlap by more than this, the better stays.
        candidates: Pairs of box and class that enter, of each level.
        max_detections: How many are kept.

    Returns:
        Boxes ``(k, 4)``, scores ``(k,)``, labels ``(k,)``, the best first, and the row of each in ``boxes``.
    """
    places, labels = np.nonzero(scores > float32_below(score_threshold))
    values = scores[places, labels]
    starts = np.append(0, np.cumsum(counts)) if len(counts) else np.array([0, len(boxes)])
    chosen = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        low, high = np.searchsorted(places, [start, end])
        order = np.argsort(-values[low:high], kind="stable")[:candidates]
        chosen.append(low + order)
    rows = np.concatenate(chosen)
    rows = rows[np.argsort(-values[rows], kind="stable")]
    keep = greedy(boxes[places[rows]], labels[rows], nms_threshold, max_detections)
    rows = rows[keep]
    return boxes[places[rows]], values[rows], labels[rows].astype(np.int64), places[rows]


def greedy(boxes: np.ndarray, labels: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Returns the positions of boxes that greedy suppression keeps, class by class.

    Args:
        boxes: Array ``(n, 4)``, the best first.
        labels: Array ``(n,)``.
        threshold: A box goes that overlaps a better one of its class, which stays, by more than this.
        most: How many are kept at most.
    """
    limit = np.float32(float32_below(threshold))
    kept: list[int] = []
    for label in np.unique(labels):
        own: list[int] = []
        rows = np.flatnonzero(labels == label)
        left, top, right, bottom = corners = boxes[rows].astype(np.float32).astype(np.float64).T
        sides = np.concatenate([corners, ((right - left) * (bottom - top))[None]])
        while len(rows) and len(own) < most:
            own.append(int(rows[0]))
            best, rest = sides[:, :1], sides[:, 1:]
            width = np.minimum(rest[2], best[2]) - np.maximum(rest[0], best[0])
            height = np.minimum(rest[3], best[3]) - np.maximum(rest[1], best[1])
            shared = np.where((width > 0) & (height > 0), width * height, 0.0)
            over = np.divide(shared, best[4] + rest[4] - shared, out=np.zeros_like(shared), where=shared > 0)
            stays = ~(over.astype(np.float32) > limit)
            rows, sides = rows[1:][stays], rest[:, stays]
        kept += own
    return np.sort(np.asarray(kept, np.int64))[:most]


def best_classes(scores: np.ndarray) -> np.ndarray:
    """Returns scores of which each box keeps the best one alone.

    Args:
        scores: Array ``(n, classes)``.
    """
    best = scores.argmax(axis=1) if scores.size else np.zeros(len(scores), np.int64)
    return np.where(np.arange(scores.shape[1]) == best[:, None], scores, 0).astype(scores.dtype)
