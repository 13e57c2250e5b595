"""How good a detector is on pictures with true boxes, with everything that a report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.box_geometry import areas as box_areas
from resfit.data.boxes import BoxSet
from resfit.data.dataset import Skipped
from resfit.evaluation.detection import AREA_RANGES, DetectionThreshold, Matching, PredictedBoxes, TrueBoxes, match
from resfit.evaluation.detection_errors import KINDS, DetectionErrors, detection_errors
from resfit.evaluation.intervals import Figure
from resfit.tasks.base import Picture, Plot, TextTable
from resfit.tasks.detection.detections import Detections, draw_boxes, opened

_SHOWN = ("ap", "ap50", "ap75", "ar100", "ap_small", "ap_medium", "ap_large")
_PICTURES = 4  # of each kind of mistake
_SAMPLE = 8  # pictures with all their boxes
_LONGEST = 800  # pixels of a picture's longer side
_RED, _BLUE, _GREEN = 0, 1, 2  # of the palette
_KINDS = {"background": "false alarms", "missed": "missed objects"}


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """A measurement of a detector.

    Attributes:
        metrics: COCO's twelve figures by name (``ap``, ``ap50``, ``ap75``, ``ar100`` ...), 0..1; NaN where there is
            nothing to find.
        intervals: The same with 95 % intervals over resampled pictures; empty where they were not asked for.
        per_class: By class the twelve figures, and ``boxes`` and ``detections``.
        class_intervals: By class the figures with intervals.
        thresholds: By class the score from which boxes are shown.
        operating: By class precision, recall and F1 at that score.
        errors: Mistakes by kind among the boxes that are shown.
        matching: Detections matched with true boxes, for curves and comparisons.
        images: Number of pictures that were measured.
        boxes: Number of true boxes, regions to ignore left out.
        paths: The pictures.
        skipped: Pictures that could not be used, with the reason.
        notes: What was assumed of the source, with the argument that changes it.
    """

    metrics: dict[str, float]
    intervals: dict[str, Figure]
    per_class: dict[str, dict[str, float]]
    class_intervals: dict[str, dict[str, Figure]]
    thresholds: dict[str, float]
    operating: dict[str, DetectionThreshold]
    errors: DetectionErrors
    matching: Matching
    images: int
    boxes: int
    paths: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values."""
        return {
            "images": self.images,
            "boxes": self.boxes,
            "metrics": self.metrics,
            "intervals": {name: figure.to_dict() for name, figure in self.intervals.items()},
            "per_class": self.per_class,
            "class_intervals": {
                label: {name: figure.to_dict() for name, figure in figures.items()}
                for label, figures in self.class_intervals.items()
            },
            "operating": {label: dataclasses.asdict(point) for label, point in self.operating.items()},
            "errors": {"counts": self.errors.counts, "gains": self.errors.gains},
            "skipped": len(self.skipped),
        }

    def tables(self) -> list[TextTable]:
        """Returns the figures for people, the most important table first."""

        def cell(name: str) -> str:
            figure = self.intervals.get(name)
            text = f"{self.metrics[name]:.3f}" if np.isfinite(self.metrics[name]) else "nothing to find"
            known = figure is not None and np.isfinite(figure.low)
            return text + (f" ({figure.low:.3f} to {figure.high:.3f})" if figure is not None and known else "")

        figures = TextTable("", ("figure", "value (95 % interval)"), [(name, cell(name)) for name in _SHOWN])
        rows = []
        for label, own in self.per_class.items():
            point = self.operating[label]
            rows.append(
                (
                    *(label, own["boxes"], f"{own['ap']:.3f}", f"{own['ap50']:.3f}", f"{self.thresholds[label]:.2f}"),
                    *(f"{point.precision:.3f}", f"{point.recall:.3f}", f"{point.f1:.3f}"),
                )
            )
        columns = ("class", ">boxes", ">AP", ">AP50", ">threshold", ">precision", ">recall", ">F1")
        sizes = []
        areas, crowd = box_areas(self.matching.truth.boxes), self.matching.truth.crowd
        areas = areas if crowd is None else areas[~crowd]
        for size in ("small", "medium", "large"):
            low, high = AREA_RANGES[size]
            count = int(((areas >= low) & (areas < high)).sum())
            sides = f"{low**0.5:.0f} to {high**0.5:.0f} px" if size != "large" else f"{low**0.5:.0f} px and more"
            sizes.append((size, sides, count, cell(f"ap_{size}"), cell(f"ar_{size}")))
        mistakes = [(kind, self.errors.counts[kind], f"{self.errors.gains[kind]:.3f}") for kind in KINDS]
        return [
            figures,
            TextTable("classes", columns, rows),
            TextTable("by size of the boxes", ("size", "side of a square", ">boxes", "AP", "AR"), sizes),
            TextTable("mistakes at the thresholds", ("kind", ">boxes", ">AP50 lost"), mistakes),
        ]

    def plots(self) -> list[Plot]:
        """Returns the precision-recall curve of each class at an overlap of 0.5."""
        found = []
        for label in self.per_class:
            curve = self.matching.curve(label)
            if len(curve.recall) and np.isfinite(curve.average_precision):
                found.append(
                    Plot(
                        f"{label}: AP50 {curve.average_precision:.3f}",
                        "recall",
                        "precision",
                        curve.recall,
                        curve.precision,
                        joined=True,
                    )
                )
        return found

    def pictures(self) -> list[Picture]:
        """Returns some pictures with true boxes in green and those that are shown in blue, and the worst mistakes.

        Of each kind of mistake there are the worst: the true boxes in green, the one in question in red.
        """
        found = []
        truth, predicted = self.matching.truth, self.matching.predicted
        limits = np.array([self.thresholds[label] for label in self.matching.classes], np.float32)
        is_shown = predicted.scores >= limits[predicted.labels] if len(predicted.labels) else np.zeros(0, bool)
        for image in np.unique(np.linspace(0, len(self.paths) - 1, min(_SAMPLE, len(self.paths))).astype(int)).tolist():
            own = truth.boxes[truth.images == image]
            rows = (predicted.images == image) & is_shown
            caption = f"{len(own)} true boxes, {int(rows.sum())} found"
            picture = _drawn(self.paths[image], own, predicted.boxes[rows], colour=_BLUE)
            group = "true boxes (green) and what is found (blue)"
            found.append(Picture(picture, caption, group, self.paths[image].name))
        for kind in KINDS:
            for image, detection, true in self.errors.worst(kind, _PICTURES):
                own = truth.boxes[truth.images == image]
                asked = truth.boxes[true] if kind == "missed" else predicted.boxes[detection]
                label = truth.labels[true] if kind == "missed" else predicted.labels[detection]
                caption = self.matching.classes[int(label)]
                if detection >= 0:
                    caption += f", score {predicted.scores[detection]:.2f}"
                picture = _drawn(self.paths[image], own, asked[None], colour=_RED)
                found.append(Picture(picture, caption, f"mistakes: {_KINDS.get(kind, kind)}", self.paths[image].name))
        return found


def _drawn(path: Path, true: np.ndarray, others: np.ndarray, *, colour: int) -> np.ndarray:
    """A picture of at most so many pixels with true boxes in green and others in another colour of the palette."""
    from PIL import ImageDraw

    picture = opened(path)
    scale = min(1.0, _LONGEST / max(picture.size))
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    canvas = ImageDraw.Draw(picture)
    draw_boxes(canvas, true * scale, np.full(len(true), _GREEN), [""] * len(true), picture.size)
    draw_boxes(canvas, others * scale, np.full(len(others), colour), [""] * len(others), picture.size)
    return np.asarray(picture)


def evaluated(
    boxes: BoxSet,
    predicted: Sequence[Detections],
    thresholds: Mapping[str, float],
    *,
    intervals: bool = True,
    seed: int = 0,
) -> DetectionEvaluation:
    """Measures detections against true boxes.

    Args:
        boxes: Pictures with true boxes.
        predicted: For each picture all detections, down to the lowest score.
        thresholds: By class the score from which boxes are shown.
        intervals: Whether figures come with intervals.
        seed: Of the resamples.
    """
    usable = [position for position, one in enumerate(predicted) if not one.error]
    skipped = tuple(Skipped(boxes.paths[position], one.error) for position, one in enumerate(predicted) if one.error)
    kept = boxes.subset(usable) if skipped else boxes
    some = [predicted[position] for position in usable]
    matching = matched(kept, some)
    figures, by_class = matching.intervals(kept.groups, seed=seed) if intervals else ({}, {})
    return DetectionEvaluation(
        metrics=matching.figures(),
        intervals=figures,
        per_class=matching.per_class(),
        class_intervals=by_class,
        thresholds=dict(thresholds),
        operating={label: at_threshold(matching, label, thresholds[label]) for label in kept.classes},
        errors=detection_errors(matching, thresholds=dict(thresholds)),
        matching=matching,
        images=len(kept),
        boxes=int((~kept.crowd).sum()),
        paths=kept.paths,
        skipped=skipped,
        notes=boxes.warnings,
    )


def matched(boxes: BoxSet, predicted: Sequence[Detections]) -> Matching:
    """Matches detections with true boxes.

    Args:
        boxes: Pictures with true boxes.
        predicted: For each its detections.
    """
    owners = np.repeat(np.arange(len(predicted)), [len(one) for one in predicted])
    parts = [
        np.concatenate([getattr(one, name) for one in predicted]) if predicted else np.zeros(0)
        for name in ("boxes", "scores", "classes")
    ]
    table = PredictedBoxes(owners, parts[0].reshape(-1, 4), parts[1], parts[2])
    truth = TrueBoxes(boxes.owners, boxes.boxes, boxes.labels, boxes.crowd)
    return match(truth, table, images=len(boxes), classes=boxes.classes)


def at_threshold(matching: Matching, label: str, threshold: float) -> DetectionThreshold:
    """Returns precision, recall and F1 of a class where boxes of at least a score are shown, at an overlap of 0.5.

    Args:
        matching: The matching.
        label: The class.
        threshold: The score.
    """
    row = matching.classes.index(label)
    own = (matching.label == row) & (matching.score >= threshold) & ~matching.ignored[:, 0, 0]
    hits, shown = int(matching.hit[own, 0, 0].sum()), int(own.sum())
    wanted = int((matching.counted[:, 0] & (matching.true_label == row)).sum())
    precision = hits / shown if shown else float("nan")
    recall = hits / wanted if wanted else float("nan")
    f1 = 2 * hits / (shown + wanted) if shown + wanted else float("nan")
    return DetectionThreshold(float(threshold), f1, precision, recall)
