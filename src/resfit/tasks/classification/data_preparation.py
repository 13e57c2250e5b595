"""The images of a fit: which can be used, how they are split, what they show, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from resfit.data import split as splits
from resfit.data.dataset import ImageSet
from resfit.errors import DataError
from resfit.evaluation.inference import targets

# images that a head is fitted to at most where a training begins with it, and of a class at least, so far as there are
_MOST_TO_BEGIN_WITH, _FEW_OF_A_CLASS = 10_000, 10


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
