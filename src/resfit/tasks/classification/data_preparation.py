"""The images of a fit: which can be used, how they are split, what they show, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit import artifact
from resfit.data import split as splits
from resfit.data.dataset import ImageSet, Skipped
from resfit.errors import DataError
from resfit.evaluation import reference_images
from resfit.evaluation.inference import targets
from resfit.features import extract as feature_store
from resfit.features import pixels
from resfit.quality import checking
from resfit.storage.atomic import atomic_open
from resfit.tasks.classification import strategies

# images that a head is fitted to at most where a training begins with it, and of a class at least, so far as there are
_MOST_TO_BEGIN_WITH, _FEW_OF_A_CLASS = 10_000, 10


class UsableImages:
    """Which files could be used, what was measured of them, and what became of the others.

    Attributes:
        rows: Features of the images ``(n, features)``; without columns where there are none.
    """

    def __init__(
        self,
        found: feature_store.Features | strategies.FrozenOutputs | pixels.DecodedPixels,
        rows: np.ndarray | None = None,
    ):
        self.indices, self.skipped = found.indices, found.skipped
        self.digests, self.records = found.digests, found.records
        self.computed, self.reused, self.engine = 0, 0, "none"
        if not isinstance(found, pixels.DecodedPixels):
            self.add(found)
        self.rows = np.zeros((len(found.indices), 0), np.float32) if rows is None else rows

    def add(self, found: feature_store.Features | strategies.FrozenOutputs) -> None:
        """Counts what went through the network.

        Args:
            found: Images of which some may have been there before.
        """
        self.reused = max(self.reused, found.reused - self.computed)  # not what this very fit computed
        self.computed += found.computed
        self.engine = found.engine


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The images that a fit learns from and is measured on.

    Attributes:
        images: Those that can be used; ``n`` of them.
        parts: How they are split.
        classes: Names of the classes, or of the labels where an image may have several.
        targets: float32 array ``(n, classes)`` of 0 and 1.
        separator: What stands between the labels of an image; empty for one label an image.
    """

    images: ImageSet
    parts: splits.Split
    classes: tuple[str, ...]
    targets: np.ndarray
    separator: str

    @functools.cached_property
    def everything(self) -> np.ndarray:
        """Positions of what is not for testing."""
        return np.sort(np.concatenate([self.parts.train, self.parts.val]))

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.separator)

    def some(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Returns positions to begin with where there are many: at random, with something of each class.

        Args:
            positions: Of the images.
            seed: Of the choice.
        """
        if len(positions) <= _MOST_TO_BEGIN_WITH:
            return positions
        order = np.random.default_rng(seed).permutation(positions)
        chosen, rest = order[:_MOST_TO_BEGIN_WITH], order[_MOST_TO_BEGIN_WITH:]
        rare = np.flatnonzero(self.targets[chosen].sum(axis=0) < _FEW_OF_A_CLASS)
        more = [rest[self.targets[rest, label] > 0][:_FEW_OF_A_CLASS] for label in rare]
        return np.unique(np.concatenate([chosen, *more]))

    def labels(self, positions: np.ndarray) -> np.ndarray:
        """Returns what heads learn: numbers of classes ``(n,)``, or with several labels an image rows of targets.

        Args:
            positions: Of the images.
        """
        rows = self.targets[positions]
        return rows if self.multilabel else rows.argmax(axis=1)

    def groups(self, positions: np.ndarray) -> list[str | None]:
        """Returns what images belong to.

        Args:
            positions: Of the images.
        """
        return [self.images.groups[position] for position in positions]


def material_of(images: ImageSet, parts: splits.Split) -> TrainingData:
    """Returns images with what they show.

    Args:
        images: Those that can be used.
        parts: How they are split.

    Raises:
        DataError: A class has no image to learn from.
    """
    classes = images.classes
    found = TrainingData(images, parts, classes, targets(images, classes), images.separator)
    counts = found.targets[found.everything].sum(axis=0)
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(f"each class needs a usable training image. Received none for: {', '.join(empty[:8])}.")
    return found


def split(images: ImageSet, val: float, test: float, seed: int) -> splits.Split:
    """Splits a set.

    Args:
        images: The set.
        val: Share of what is not for testing to choose on.
        test: Share to measure on, where the set does not state it.
        seed: Of the split.
    """
    labelled = np.flatnonzero(images.labelled)
    stated = sum(images.splits[position] == "test" for position in labelled) / max(1, len(labelled))
    return splits.split(images, val=val * (1 - (stated or test)), test=test, seed=seed)


def likely_references(images: ImageSet, width: int, sampling_order: np.ndarray) -> list[int]:
    """Returns positions of images that the classifier will probably keep: a thumbnail is made when they are decoded.

    Args:
        images: All of them.
        width: Number of features.
        sampling_order: When the turn of each comes.
    """
    tested = np.array([part == "test" for part in images.splits], bool)
    learned = np.flatnonzero(~tested & images.labelled)
    return learned[reference_images.likely(images.labels[learned], width, sampling_order[learned])].tolist()


def check_skipped(skipped: Sequence[Skipped], found: int, most: float, table: bytes, out: Path | None) -> None:
    """Stops where too many images are unusable, and leaves the list of them behind.

    Args:
        skipped: Those that cannot be used.
        found: How many there are, with these.
        most: Largest fraction of them.
        table: The list, as a file.
        out: Where the classifier would go.

    Raises:
        DataError: There are too many.
    """
    if len(skipped) <= most * found:
        return
    where = f"such as {skipped[0].path}: {skipped[0].reason}"
    if out is not None:
        # an earlier classifier stays as it is
        target = (
            out.with_name(f"{out.name}.{artifact.SKIPPED}") if artifact.is_artifact(out) else out / artifact.SKIPPED
        )
        with atomic_open(target) as file:
            file.write(table)
        where += f"; all are listed in {target}"
    raise DataError(
        f"at most {most:.0%} of the images may be unusable. Received: {len(skipped)} of {found} "
        f"({len(skipped) / max(found, 1):.1%}), {where}. Repair or remove them, or raise max_skipped."
    )


class DataChecker:
    """The data checks of a fit: duplicates first, for the split needs them, and the rest when there is a head.

    Attributes:
        together: The images, with those that are alike in one group.

    Args:
        images: Those that can be used.
        used: What was measured of them.
    """

    def __init__(self, images: ImageSet, used: UsableImages):
        self._images, self._records, self._rows = images, used.records, np.asarray(used.rows)
        self._same = checking.duplicates(used.digests, used.records, used.rows if used.rows.shape[1] else None)
        self.together = checking.group_duplicates(images, self._same)

    def examine(self, seed: int, skipped: Sequence[Skipped]) -> checking.Checks:
        """Looks for everything.

        Args:
            seed: Of the folds.
            skipped: Images that cannot be used.
        """
        return checking.examine(self._images, self._rows, self._records, self._same, seed=seed, skipped=skipped)
