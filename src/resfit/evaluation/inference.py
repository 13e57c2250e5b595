"""Labelled images as a classifier sees them: what everything that is measured starts from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import dataset as image_sets
from resfit.data import rare
from resfit.data.dataset import ImageSet, Skipped
from resfit.data.inputs import takes_arrays
from resfit.data.medical import privacy
from resfit.errors import ArgumentError, DataError, closest
from resfit.evaluation.labels import LabelEvaluation, evaluate_labels
from resfit.evaluation.metrics import Evaluation, evaluate
from resfit.features import extract as feature_store
from resfit.features.progress import Progress

#: What ``part=`` accepts.
PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledPredictions:
    """Labelled images with what a classifier says about them.

    Attributes:
        images: Those that could be used; their labels are numbers of the source's own classes.
        targets: float32 array ``(n, classes)`` of 0 and 1, in the classifier's order of classes.
        probabilities: float32 array ``(n, classes)``, calibrated.
        logits: float32 array ``(n, classes)``, divided by the temperature.
        rows: Features that the head read ``(n, features)``.
        classes: Names of the classifier's classes.
        multilabel: Whether an image may have several labels.
        skipped: Images that could not be used, with the reason.
        seconds: What it took.
        computed: Images that went through the network; the others' features were in the cache.
        engine: What ran it.
    """

    images: ImageSet
    targets: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray
    rows: np.ndarray
    classes: tuple[str, ...]
    multilabel: bool
    skipped: tuple[Skipped, ...]
    seconds: float
    computed: int
    engine: str

    @property
    def truth(self) -> np.ndarray:
        """Numbers of the true classes ``(n,)``; with several labels an image, the table of them ``(n, classes)``."""
        return self.targets.astype(int) if self.multilabel else self.targets.argmax(axis=1)

    @property
    def groups(self) -> list[str | None] | None:
        """The group of each image; ``None`` where there are no groups."""
        return list(self.images.groups) if any(group is not None for group in self.images.groups) else None

    def subset(self, positions: np.ndarray) -> LabelledPredictions:
        """Returns some of the images.

        Args:
            positions: Which.
        """
        tables = {name: getattr(self, name)[positions] for name in ("targets", "probabilities", "logits", "rows")}
        return dataclasses.replace(self, images=self.images.subset(positions), skipped=(), **tables)


@takes_arrays
def judge(
    classifier: Any,
    source: Any,
    *,
    part: str | None = None,
    engine: str = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **scan_options: Any,
) -> LabelledPredictions:
    """Runs labelled images through a classifier.

    Args:
        classifier: A :class:`resfit.Classifier`.
        source: A folder of class folders, a CSV file or a pair ``(images, labels)``, as :func:`resfit.fit` takes them.
        part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
        engine: As :func:`resfit.engines.create` takes it.
        cache: Where features are kept, as :func:`resfit.fit` takes it.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.
        **scan_options: Further options of :func:`resfit.data.dataset.scan`.

    Raises:
        ArgumentError: There is no such part.
        DataError: No image can be used, or a class is not one of the classifier's.
    """
    begin = time.perf_counter()
    images = found_by(classifier, source, part=part, **scan_options)
    separator = classifier.recipe.separator
    extracted = feature_store.extract(
        classifier.network(),
        images,
        input_spec=classifier.input_spec,
        engine=engine,
        cache=cache,
        batch_size=batch_size,
        progress=progress,
    )
    labelled = images.labelled[extracted.indices]
    skipped = privacy.shown_skipped(images, (*images.skipped, *extracted.skipped))
    if not labelled.any():
        raise DataError(f"at least one labelled image must be usable. Received: {len(skipped)} unusable ones.")
    rows = np.asarray(extracted.rows)[labelled]
    positions = extracted.indices[labelled]
    head = classifier.head()
    return LabelledPredictions(
        images=images.subset(positions),
        targets=targets(images, classifier.classes)[positions],
        probabilities=head.probabilities(rows),
        logits=head.logits(rows),
        rows=rows,
        classes=classifier.classes,
        multilabel=bool(separator),
        skipped=skipped,
        seconds=time.perf_counter() - begin,
        computed=extracted.computed,
        engine=extracted.engine,
    )


def found_by(classifier: Any, source: Any, *, part: str | None = None, **scan_options: Any) -> ImageSet:
    """Finds labelled images that a classifier can be measured on. Nothing is decoded.

    Args:
        classifier: A :class:`resfit.Classifier`.
        source: As :func:`judge` takes it.
        part: As :func:`judge` takes it.
        **scan_options: Further options of :func:`resfit.data.dataset.scan`.

    Raises:
        ArgumentError: There is no such part.
        DataError: A class is not one of the classifier's.
    """
    separator = classifier.recipe.separator
    if separator and scan_options.get("label_separator") is None:
        scan_options["label_separator"] = separator
    images = image_sets.scan(source, **{"reading": classifier.input_spec.reading, **scan_options})
    images, said = rare.as_fitted(images, classifier.metrics.get("rare"))
    if said:
        images = dataclasses.replace(images, notes=(*images.notes, said))
    if part is not None:
        images = part_of(images, part)
    if images.multilabel and not separator:
        raise DataError(
            "the images must have one class each, as those that the classifier was fitted to. Received: images of "
            "several labels. Fit a classifier with label_separator or columns of 0 and 1."
        )
    unknown = [name for name in images.classes if name not in classifier.classes]
    if unknown:
        raise DataError(
            f"the classes must be among the classifier's: {', '.join(classifier.classes)}. "
            f"Received: {unknown[0]!r}.{closest(unknown[0], classifier.classes)}"
        )
    return images


def targets(images: ImageSet, classes: Sequence[str]) -> np.ndarray:
    """Returns for each image and class 1 or 0, as float32; an image without a label has none.

    Args:
        images: The set.
        classes: Names, in the order of the columns; all of the set's are among them.
    """
    columns = [classes.index(name) for name in images.classes]
    table = np.zeros((len(images), len(classes)), np.float32)
    if images.targets is not None:
        table[:, columns] = images.targets
    else:
        rows = np.flatnonzero(images.labelled)
        table[rows, np.array(columns, np.int64)[images.labels[rows]]] = 1
    return table


def right(probabilities: np.ndarray, known: np.ndarray, multilabel: bool) -> np.ndarray:
    """Returns for each image whether its class, or all of its labels, are told right: bool ``(n,)``.

    Args:
        probabilities: Array ``(n, classes)``.
        known: As :func:`targets` returns them.
        multilabel: Whether an image may have several labels.
    """
    if multilabel:
        return np.asarray(((probabilities > 0.5) == known.astype(bool)).all(axis=1))
    return np.asarray(probabilities.argmax(axis=1) == known.argmax(axis=1))


def measured(
    known: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    multilabel: bool,
    skipped: Sequence[Skipped],
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> Evaluation | LabelEvaluation:
    """Compares probabilities with targets ``(n, classes)``.

    Args:
        known: As :func:`targets` returns them.
        probabilities: Array of the same shape.
        classes: Names.
        multilabel: Whether an image may have several labels.
        skipped: Passed on.
        groups: For each image its group or ``None``; groups are resampled whole for the accuracy's interval.
        seed: Of the resamples.
    """
    options: dict[str, Any] = {"skipped": skipped, "groups": groups, "seed": seed}
    if multilabel:
        return evaluate_labels(known, probabilities, classes, **options)
    return evaluate(known.argmax(axis=1), probabilities, classes, **options)


def part_of(images: ImageSet, part: str) -> ImageSet:
    """Returns the images of one part of a split that the source states.

    Args:
        images: All of them.
        part: One of :data:`PARTS`.

    Raises:
        ArgumentError: There is no such part.
        DataError: The source states no such part.
    """
    if part not in PARTS:
        raise ArgumentError(f"part must be one of {PARTS}. Received: {part!r}.{closest(part, PARTS)}")
    chosen = [position for position, split in enumerate(images.splits) if split == part]
    if not chosen:
        stated = ", ".join(sorted({split for split in images.splits if split})) or "none"
        raise DataError(f"the source must state a split with part {part!r}. Received parts: {stated}.")
    return dataclasses.replace(images.subset(chosen), skipped=images.skipped)
