"""What is wrong with a set of pictures with boxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.box_geometry import overlap_matrix
from resfit.data.box_statistics import BoxPair, BoxStatistics, box_statistics
from resfit.data.boxes import BoxSet, scan_boxes
from resfit.data.dataset import ImageSet
from resfit.errors import ArgumentError
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.quality import checking
from resfit.tasks.base import TextTable
from resfit.wording import counted

if TYPE_CHECKING:
    from resfit.tasks.detection.detector import Detector

#: Score from which a box that nobody drew is worth a look, whatever the detector's own threshold.
LEAST_SCORE = 0.5
_SHOWN = 10
_RARE = 10  # boxes of a class in the training set under which little can be learned of it


@dataclasses.dataclass(frozen=True)
class DoubtfulBox:
    """A box that is worth a look.

    Attributes:
        image: Position of the picture.
        kind: ``"missing"``: a detector that did not learn from the picture finds an object that no box marks;
            ``"class"``: it finds another class; ``"box"``: it finds the object elsewhere, or nothing at all.
        box: Left, top, right and bottom edge in pixels: for ``"missing"`` the detector's, else the annotated one.
        label: The annotated class; for ``"missing"`` the detector's.
        suggested: The detector's class; empty for none.
        score: The detector's score, 0..1; for boxes that it does not find 0.
    """

    image: int
    kind: str
    box: tuple[float, float, float, float]
    label: str
    suggested: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class BoxChecks:
    """What was found. All positions are those of ``boxes``.

    Attributes:
        boxes: The pictures that could be read, with their boxes.
        images: The same as images.
        statistics: Sizes, classes, boxes that cover each other.
        same: Pictures that are there more than once.
        leaks: Pictures in both training and test set: ``(test, other, "exact" or "near")``.
        doubtful: Boxes that are probably missing or wrong; ``None`` where no detector was given.
        skipped: Pictures that could not be read, with the reason.
    """

    boxes: BoxSet
    images: ImageSet
    statistics: BoxStatistics
    same: checking.Duplicates
    leaks: tuple[tuple[int, int, str], ...]
    doubtful: tuple[DoubtfulBox, ...] | None
    skipped: tuple[Any, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the source, with the argument that changes it."""
        return self.boxes.warnings

    def findings(self) -> list[str]:
        """Returns what a person should look at, one sentence each."""
        numbers, same = self.statistics, self.same
        copies = sum(len(group) - 1 for group in same.exact)
        leaked = len({test for test, *_ in self.leaks})
        at = "x".join(str(side) for side in reversed(numbers.input_size))
        found = [
            (copies, counted(copies, "exact copy of another picture", "exact copies of other pictures")),
            (len(same.near), counted(len(same.near), "pair of near duplicates", "pairs of near duplicates")),
            (
                leaked,
                counted(leaked, "picture in both training and test set", "pictures in both training and test set"),
            ),
            (
                numbers.contradiction_count,
                counted(
                    numbers.contradiction_count,
                    "pair of boxes that cover each other, of different classes",
                    "pairs of boxes that cover each other, of different classes",
                ),
            ),
            (
                numbers.duplicate_count,
                counted(
                    numbers.duplicate_count,
                    "pair of boxes of one class that cover each other",
                    "pairs of boxes of one class that cover each other",
                ),
            ),
            *((1, f"no training picture has a box of class {name!r}") for name in numbers.missing_in_training),
            *(
                (1, f"class {name!r} has {counted(count, 'box', 'boxes')}: too few to learn it or to measure it")
                for name, count in numbers.boxes_by_class.items()
                if count < _RARE and name not in numbers.missing_in_training
            ),
            *((1, f"{counted(count, text, text)}") for text, count in self.boxes.skipped_counts.items() if count),
        ]
        texts = [text for number, text in found if number]
        median = numbers.side_quantiles((0.5,))[0.5]
        needed = max(numbers.size_needed())
        if np.isfinite(median) and needed > max(numbers.input_size):
            way = f"use --size {needed}" if needed <= 1280 else "use --tiles"
            if 640 <= needed <= 1280:
                way += " or --tiles"
            texts.append(f"the median box is {median:.0f} px at {at}: {way}")
        elif numbers.small > 0.25:
            more = max(numbers.size_needed(0.75))
            texts.append(
                f"{numbers.small:.0%} of the boxes are narrower than 16 px at {at}: --size {more} shows three of four"
            )
        if self.doubtful:
            kinds = {kind: sum(one.kind == kind for one in self.doubtful) for kind in ("missing", "class", "box")}
            texts += [counted(kinds[kind], *words) for kind, words in _DOUBTS.items() if kinds[kind]]
        return texts

    def name(self, position: int) -> str:
        """Returns what is written for a picture: its path below the folder."""
        path = self.boxes.paths[position]
        return str(path.relative_to(self.boxes.root)) if path.is_relative_to(self.boxes.root) else str(path)

    def to_dict(self, most: int | None = 20) -> dict[str, Any]:
        """Returns everything as JSON-ready values.

        Args:
            most: Entries of each list; ``None`` is all.
        """

        def listed(items: list[Any]) -> dict[str, Any]:
            return {"count": len(items), "items": items[:most]}

        doubtful = self.doubtful
        return {
            "images": len(self.boxes),
            "skipped": len(self.skipped),
            "skipped_boxes": dict(self.boxes.skipped_counts),
            "findings": self.findings(),
            "statistics": self.statistics.to_dict(),
            "exact_duplicates": listed([[self.name(place) for place in group] for group in self.same.exact]),
            "near_duplicates": listed([[self.name(a), self.name(b)] for a, b in self.same.near.tolist()]),
            "leaks": listed([{"test": self.name(a), "other": self.name(b), "kind": kind} for a, b, kind in self.leaks]),
            "contradictions": listed([self._pair(pair) for pair in self.statistics.contradictions]),
            "duplicate_boxes": listed([self._pair(pair) for pair in self.statistics.duplicates]),
            "doubtful": None
            if doubtful is None
            else listed(
                [{**dataclasses.asdict(one), "image": self.name(one.image), "box": list(one.box)} for one in doubtful]
            ),
        }

    def tables(self) -> list[TextTable]:
        """Returns it for people."""
        numbers = self.statistics
        title = f"{len(self.boxes)} pictures, {numbers.boxes} boxes, {numbers.negatives} pictures without boxes"
        found = [TextTable(title, ("found",), [(text,) for text in self.findings()] or [("nothing wrong",)])]
        classes = [(name, count, numbers.images_by_class[name]) for name, count in numbers.boxes_by_class.items()]
        found.append(TextTable("classes", ("class", ">boxes", ">pictures"), classes))
        pairs = [
            (*self._pair(pair)["labels"], self.name(pair.image), f"{pair.overlap:.2f}")
            for pair in numbers.contradictions
        ]
        if pairs:
            columns = ("class", "other class", "picture", ">overlap")
            found.append(TextTable("boxes that cover each other", columns, pairs[:_SHOWN]))
        if self.doubtful:
            doubtful = [
                (self.name(one.image), one.kind, one.label, one.suggested, f"{one.score:.2f}")
                for one in self.doubtful[:_SHOWN]
            ]
            headings = ("picture", "what", "class", "detector says", ">score")
            found.append(TextTable("boxes worth a look", headings, doubtful))
        return found

    def _pair(self, pair: BoxPair) -> dict[str, Any]:
        names = [self.boxes.classes[int(self.boxes.labels[row])] for row in (pair.first, pair.second)]
        boxes = [self.boxes.boxes[row].tolist() for row in (pair.first, pair.second)]
        return {"image": self.name(pair.image), "labels": names, "boxes": boxes, "overlap": pair.overlap}


_DOUBTS = {
    "missing": ("box that is probably missing (worth a look)", "boxes that are probably missing (worth a look)"),
    "class": ("box with a doubtful class (worth a look)", "boxes with a doubtful class (worth a look)"),
    "box": ("box at a doubtful place (worth a look)", "boxes at a doubtful place (worth a look)"),
}


def check(
    source: Any,
    *,
    model: str = "resnet10_tiny",
    detector: Detector | str | Path | None = None,
    held_out: str | float | None = None,
    size: int | tuple[int, int] = 320,
    seed: int = 0,
    engine: str = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **scan_options: Any,
) -> BoxChecks:
    """Looks for what is wrong with a set of pictures with boxes.

    Args:
        source: As :func:`resfit.data.boxes.scan_boxes` takes it, or a set of boxes.
        model: Network whose features tell near duplicates.
        detector: A detector, or its folder, that did not learn from these pictures: what it finds and nobody marked,
            and what is marked and it does not find, is worth a look.
        held_out: Makes such a list from the data alone: the budget, such as ``"2m"`` or a number of minutes, of each of
            three detectors that are fitted on parts of the pictures and judge the others (:func:`judged_by_folds`).
        size: Height and width of the input that sizes of boxes refer to.
        seed: Of the parts that ``held_out`` makes.
        engine: As :func:`resfit.engines.create` takes it.
        cache: Where features are kept.
        batch_size: Pictures in one pass.
        progress: Called as pictures get done.
        **scan_options: Of :func:`resfit.data.boxes.scan_boxes`.

    Example:
        >>> check("cells/").findings()  # doctest: +SKIP
        ['the median box is 9 px at 320x320: use --size 576']
    """
    from resfit import zoo

    if detector is not None and held_out is not None:
        raise ArgumentError("detector and held_out must not both be given. Received: both.")
    boxes = source if isinstance(source, BoxSet) else scan_boxes(source, **scan_options)
    given = (size, size) if isinstance(size, int) else tuple(size)
    if len(given) != 2 or min(given) < 32:
        raise ArgumentError(f"size must be height and width of at least 32 pixels. Received: {size!r}.")
    body = zoo.load(model, include_top=False, pooling="avg")
    found = feature_store.extract(
        body, boxes.image_set(), engine=engine, cache=cache, batch_size=batch_size, progress=progress, records=True
    )
    kept = boxes.subset(found.indices)
    kept = dataclasses.replace(
        kept, warnings=boxes.warnings, skipped_counts=boxes.skipped_counts, skipped=boxes.skipped
    )
    same = checking.duplicates(found.digests, found.records, np.asarray(found.rows))
    images = kept.image_set()
    leaks = checking.leaks_between(same, images.splits)
    doubtful = None
    if detector is not None:
        doubtful = tuple(doubts(kept, _loaded(detector), engine=engine, progress=progress))
    elif held_out is not None:
        options: dict[str, Any] = {"model": model, "engine": engine, "cache": cache, "progress": progress}
        doubtful = tuple(judged_by_folds(kept, seed=seed, budget=held_out, **options))
    return BoxChecks(kept, images, box_statistics(kept, (given[0], given[1])), same, leaks, doubtful, found.skipped)


def _loaded(detector: Detector | str | Path) -> Detector:
    from resfit.tasks.detection.detector import Detector as Detectors

    return Detectors.load(detector) if isinstance(detector, str | Path) else detector


def judged_by_folds(source: Any, *, folds: int = 3, seed: int = 0, **options: Any) -> list[DoubtfulBox]:
    """Lists boxes that are probably missing or wrong: each picture is judged by a detector that did not learn from it.

    Args:
        source: As :func:`check` takes it.
        folds: Parts of the data; as many detectors are fitted.
        seed: Of the parts.
        **options: Of :func:`resfit.tasks.detection.fit.fit`, ``budget`` for each of the detectors.

    Returns:
        The most doubtful first. Positions are those of the pictures of the source.
    """
    from resfit.data import split as splits
    from resfit.tasks.detection.fit import fit

    boxes = source if isinstance(source, BoxSet) else scan_boxes(source)
    if not 2 <= folds <= len(boxes):
        raise ArgumentError(f"folds must be 2 or more, and at most one for each picture. Received: {folds}.")
    left, parts = np.arange(len(boxes)), []
    for number in range(folds - 1):
        some = dataclasses.replace(boxes.subset(left), splits=(None,) * len(left)).image_set()
        taken = splits.split(some, val=0.0, test=1 / (folds - number), seed=seed).test
        parts.append(left[taken])
        left = np.delete(left, taken)
    parts.append(left)
    found: list[DoubtfulBox] = []
    for part in parts:
        others = np.setdiff1d(np.arange(len(boxes)), part)
        training = dataclasses.replace(boxes.subset(others), splits=(None,) * len(others))
        detector = fit(training, seed=seed, **{"test_share": 0.0, "check": False, **options})
        found += [dataclasses.replace(one, image=int(part[one.image])) for one in doubts(boxes.subset(part), detector)]
    return sorted(found, key=lambda one: -one.score)


def doubts(
    boxes: BoxSet, detector: Detector, *, engine: str = "auto", progress: Progress | None = None
) -> list[DoubtfulBox]:
    """Compares boxes with what a detector finds.

    Args:
        boxes: Pictures that the detector did not learn from.
        detector: The detector.
        engine: As :func:`resfit.engines.create` takes it.
        progress: Called as pictures get done.

    Returns:
        The most doubtful first: what is found with a high score and nobody marked, or marked as something else; then
        what is marked and not found, even with the lowest score.
    """
    found: list[DoubtfulBox] = []
    names = boxes.classes
    limits = np.array([max(LEAST_SCORE, detector.thresholds.get(name, LEAST_SCORE)) for name in detector.classes])
    for position, seen in enumerate(
        detector.predict(list(boxes.paths), threshold=0.0, engine=engine, progress=progress)
    ):
        own, labels, crowd = boxes.boxes_of(position)
        marked = own[~crowd]
        kinds = [names[label] for label in labels[~crowd].tolist()]
        over = overlap_matrix(seen.boxes, own, crowd)
        sure = np.flatnonzero(seen.scores >= limits[seen.classes]) if len(seen) else np.zeros(0, np.int64)
        near = overlap_matrix(seen.boxes, marked)
        for row in sure.tolist():
            label, score = seen.labels[row], float(seen.scores[row])
            if over[row].max(initial=0.0) < 0.1:
                found.append(DoubtfulBox(position, "missing", _edges(seen.boxes[row]), label, label, score))
            elif near[row].max(initial=0.0) >= 0.6 and kinds[int(near[row].argmax())] != label:
                best = int(near[row].argmax())
                found.append(DoubtfulBox(position, "class", _edges(marked[best]), kinds[best], label, score))
        for number, kind in enumerate(kinds):
            if near[:, number].max(initial=0.0) < 0.3:
                found.append(DoubtfulBox(position, "box", _edges(marked[number]), kind, "", 0.0))
    order = {"missing": 0, "class": 0, "box": 1}
    return sorted(found, key=lambda one: (order[one.kind], -one.score))


def _edges(box: np.ndarray) -> tuple[float, float, float, float]:
    """A box as four numbers of one digit behind the point."""
    x1, y1, x2, y2 = (round(float(value), 1) for value in box)
    return x1, y1, x2, y2
