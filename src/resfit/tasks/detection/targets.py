"""Which place of a detector's maps learns which true box, computed once for each picture and view.

Points, and anchors of one for each place, are assigned by ATSS; several anchors at a place by their overlap.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from resfit.data.box_geometry import overlap_matrix
from resfit.networks.detection import anchors
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.spec import DetectorSpec

#: In a row of targets: a place where there is nothing, and one of which nothing is known.
BACKGROUND, IGNORED = -1, -2

_CANDIDATES = 9  # places of each level that are closest to a box
_ANCHOR = 8  # side of the square that stands for a place, in strides
#: Overlap from which an anchor learns a box, and under which it learns background: RetinaNet's (arXiv:1708.02002), and
#: that of anchors that propose boxes (Ren et al. 2015, arXiv:1506.01497).
RETINANET_LIMITS, PROPOSAL_LIMITS = (0.5, 0.4), (0.7, 0.3)


class Assigner(Protocol):
    """What says which of a detector's outputs learns which true box."""

    @property
    def width(self) -> int:
        """Numbers that it gives for a picture."""
        ...

    def assign(self, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        """Returns int16 ``(width,)``.

        Args:
            boxes: Array ``(k, 4)``, xyxy in pixels of the input.
            ignored: Array ``(m, 4)``: regions of which nothing is known.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """The places of all maps of a detector for one size of input.

    Attributes:
        points: float32 array ``(n, 4)``: the unit box of each place, xyxy in pixels, as
            :func:`resfit.networks.detection.boxes.decode_distances` takes it.
        centres: float32 array ``(n, 2)``: x and y.
        anchors: float32 array ``(n, 4)``: the squares that candidates are compared with; with several anchors at a
            place the anchors themselves.
        counts: Places of each level, of each anchor one.
        by_overlap: Whether there are several anchors at a place, which are assigned by their overlap.
        limits: Overlap from which an anchor learns a box, and under which it learns background, where they are.
    """

    points: np.ndarray
    centres: np.ndarray
    anchors: np.ndarray
    counts: tuple[int, ...]
    by_overlap: bool = False
    limits: tuple[float, float] = RETINANET_LIMITS

    @property
    def width(self) -> int:
        """Places of all levels."""
        return len(self.points)

    def assign(self, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        """Says which box each place learns; see :func:`assign` and :func:`assign_by_overlap`."""
        return (assign_by_overlap if self.by_overlap else assign)(self, boxes, ignored)

    @classmethod
    def of(cls, spec: DetectorSpec | FasterRCNNSpec, size: tuple[int, int]) -> Places:
        """Returns the places of a dense detector, or those that proposals come of.

        Args:
            spec: The detector.
            size: Height and width of the input in pixels.
        """
        levels = anchors.anchors(spec, size)
        points, two = np.concatenate(levels), isinstance(spec, FasterRCNNSpec)
        if spec.anchors_per_cell > 1 or two:
            centres = ((points[:, :2] + points[:, 2:]) / 2).astype(np.float32)
            limits = PROPOSAL_LIMITS if two else RETINANET_LIMITS
            return cls(points, centres, points, tuple(len(one) for one in levels), True, limits)
        centres = (points[:, :2] + points[:, 2:]) / 2
        half = np.concatenate(
            [np.full((len(one), 1), _ANCHOR * 2.0**level / 2) for one, level in zip(levels, spec.levels, strict=True)]
        )
        squares = np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)
        return cls(points, centres.astype(np.float32), squares, tuple(len(one) for one in levels))


def assign(places: Places, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Says which box each place learns, by ATSS (Zhang et al. 2019, arXiv:1912.02424).

    The nine places of each level that are closest to a box's middle are its candidates. Those learn it that lie in it
    and whose square overlaps it by at least the mean and the deviation over all candidates together. A box without
    any, such as one smaller than a cell, is learned by the closest place. Of several boxes a place learns the one that
    its square overlaps most.

    Args:
        places: Of the detector.
        boxes: Array ``(k, 4)``, xyxy in pixels of the input.
        ignored: Array ``(m, 4)``: regions of which nothing is known. Places in them learn no background.

    Returns:
        int16 array ``(n,)``: number of the box, :data:`BACKGROUND` or :data:`IGNORED`.
    """
    rows = _unassigned(places, ignored)
    if not len(boxes):
        return rows
    boxes = np.asarray(boxes, np.float32)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = np.zeros((len(rows), len(boxes)), np.float32)
    for axis in (0, 1):
        distances += (places.centres[:, axis, None] - middles[:, axis]) ** 2
    chosen, start = [], 0
    for count in places.counts:
        some = min(_CANDIDATES, count)
        chosen.append(start + np.argsort(distances[start : start + count], axis=0, kind="stable")[:some])
        start += count
    candidates = np.concatenate(chosen)  # (c, k)
    overlaps = overlap_matrix(places.anchors, boxes)  # (n, k)
    columns = np.arange(len(boxes))
    found = overlaps[candidates, columns]
    threshold = found.mean(axis=0) + found.std(axis=0)
    centres = places.centres[candidates]  # (c, k, 2)
    inside = ((centres > boxes[:, :2]) & (centres < boxes[:, 2:])).all(axis=2)
    learns = inside & (found >= threshold)
    best = np.full(len(rows), -1.0)
    for number in columns.tolist():
        mine = candidates[learns[:, number], number]
        if not len(mine):
            mine = _ranked(distances, candidates, overlaps, number)[:1]
        better = overlaps[mine, number] > best[mine]
        rows[mine[better]] = number
        best[mine[better]] = overlaps[mine[better], number]
    # a box that lost all its places to others gets one that its owner can spare
    for number in np.setdiff1d(columns, rows).tolist():
        for place in _ranked(distances, candidates, overlaps, number).tolist():
            if rows[place] < 0 or (rows == rows[place]).sum() > 1:
                rows[place] = number
                break
    return rows


def assign_by_overlap(places: Places, boxes: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Says which box each anchor learns, as RetinaNet does (Lin et al. 2017, arXiv:1708.02002), and Faster R-CNN.

    An anchor learns the box that it overlaps most, by 0.5 or more; between 0.4 and 0.5 it learns nothing. (Anchors that
    propose boxes: 0.7 and 0.3.) The anchors that overlap a box most of all learn too, however little that is, so that
    every box is learned.

    Args:
        places: Of the detector.
        boxes: As :func:`assign` takes them.
        ignored: Likewise.

    Returns:
        As :func:`assign`.
    """
    rows = _unassigned(places, ignored)
    if not len(boxes):
        return rows
    overlaps = overlap_matrix(places.anchors, np.asarray(boxes, np.float32))  # (n, k)
    which, best = overlaps.argmax(axis=1), overlaps.max(axis=1)
    least, most = places.limits[1], places.limits[0]
    rows[(best >= least) & (rows == BACKGROUND)] = IGNORED
    learns = (best >= most) | (overlaps == np.maximum(overlaps.max(axis=0), 1e-9)).any(axis=1)
    rows[learns] = which[learns]
    for number in np.setdiff1d(np.arange(len(boxes)), rows).tolist():
        # another box overlaps its anchors more, or it lies between all of them: the best that can be spared
        middle = (boxes[number, :2] + boxes[number, 2:]) / 2
        near = ((places.centres - middle) ** 2).sum(axis=1)
        for place in np.lexsort((near, -overlaps[:, number]))[: 10 * len(boxes)].tolist():
            if rows[place] < 0 or (rows == rows[place]).sum() > 1:
                rows[place] = number
                break
    return rows


def _unassigned(places: Places, ignored: np.ndarray) -> np.ndarray:
    """Background everywhere but where nothing is known."""
    rows = np.full(len(places.points), BACKGROUND, np.int16)
    if len(ignored):
        x, y = places.centres[:, :1], places.centres[:, 1:]
        rows[
            ((x >= ignored[:, 0]) & (x <= ignored[:, 2]) & (y >= ignored[:, 1]) & (y <= ignored[:, 3])).any(axis=1)
        ] = IGNORED
    return rows


def _ranked(distances: np.ndarray, candidates: np.ndarray, overlaps: np.ndarray, number: int) -> np.ndarray:
    """The candidates of a box: first those whose square overlaps it most, of equals the closest to its middle."""
    mine = candidates[:, number]
    return mine[np.lexsort((distances[mine, number], -overlaps[mine, number]))]
