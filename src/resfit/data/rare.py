"""Classes of one or two images: too few to train on and to measure with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.data.dataset import ImageSet, Skipped
from resfit.data.folders import some
from resfit.errors import ArgumentError, closest
from resfit.wording import counted

#: What can be done with such classes.
CHOICES = ("drop", "error", "other")
#: Name of the class that they are put together to.
OTHER = "other"
#: Images of a class from which on it is learned.
LEAST = 3


def settled(images: ImageSet, choice: str = "drop") -> tuple[ImageSet, str]:
    """Returns a set without classes of fewer than three images, and what was done with them; empty where nothing was.

    Args:
        images: The set. One whose images may have several labels, or have numbers, stays as it is.
        choice: ``"drop"`` leaves their images out (they are in :attr:`ImageSet.ignored`), ``"other"`` makes one class
            of them, ``"error"`` leaves them to :func:`resfit.data.dataset.check_trainable`.

    Raises:
        ArgumentError: There is no such choice.
    """
    if choice not in CHOICES:
        raise ArgumentError(f"rare must be one of {CHOICES}. Received: {choice!r}.{closest(choice, CHOICES)}")
    if choice == "error" or images.targets is not None or images.values is not None:
        return images, ""
    counts = images.counts()
    small = [name for name, number in counts.items() if 0 < number < LEAST]
    kept = [name for name, number in counts.items() if number >= LEAST]
    shown = some([f"{name} ({counts[name]})" for name in small])
    more = sum(counts[name] for name in small) + counts.get(OTHER, 0)
    merges = choice == "other" and more >= LEAST
    if not small or len({*kept, *([OTHER] if merges else [])}) < 2:
        return images, ""
    few = counted(len(small), "class", "classes")
    if merges:
        classes = tuple(sorted({*kept, OTHER}))
        new = {name: classes.index(name if name in kept else OTHER) for name in counts if counts[name]}
        labels = _renamed(images, new)
        return (
            dataclasses.replace(images, classes=classes, labels=labels, fingerprint=f"{images.fingerprint}-other"),
            f"{few} of fewer than {LEAST} images are put together as {OTHER!r} (rare, --rare): {shown}",
        )
    rare = np.isin(images.labels, [images.classes.index(name) for name in small])
    found = images.subset(np.flatnonzero(~rare))
    found = dataclasses.replace(
        found,
        classes=tuple(kept),
        labels=_renamed(found, {name: index for index, name in enumerate(kept)}),
        skipped=images.skipped,
        ignored=(
            *images.ignored,
            *(Skipped(images.paths[row], f"its class has fewer than {LEAST} images") for row in np.flatnonzero(rare)),
        ),
    )
    return found, (
        f"{few} of fewer than {LEAST} images {'is' if len(small) == 1 else 'are'} left out: {shown}. "
        "rare='other' (--rare other) makes one class of them, rare='error' (--rare error) stops instead"
    )


def as_fitted(images: ImageSet, few: Mapping[str, Any] | None) -> tuple[ImageSet, str]:
    """Returns a set as it was fitted: without the classes that were left out then, or with them put together.

    Args:
        images: Images to measure on.
        few: What a fit noted of such classes, ``{"choice": ..., "classes": [...]}``, or ``None``.

    Returns:
        The set, and what was done; empty where nothing was.
    """
    names = [name for name in images.classes if few and name in few.get("classes", ())]
    if not few or not names or images.targets is not None:
        return images, ""
    if few.get("choice") == "other":
        classes = tuple(sorted({*images.classes, OTHER} - {*names}))
        new = {name: classes.index(OTHER if name in names else name) for name in images.classes}
        found = dataclasses.replace(images, classes=classes, labels=_renamed(images, new))
        return found, f"classes that are {OTHER!r} as in training: {some(names)}"
    classes = tuple(name for name in images.classes if name not in names)
    kept = ~np.isin(images.labels, [images.classes.index(name) for name in names])
    found = images.subset(np.flatnonzero(kept))
    labels = _renamed(found, {name: index for index, name in enumerate(classes)})
    found = dataclasses.replace(found, classes=classes, labels=labels, skipped=images.skipped, ignored=images.ignored)
    left = counted(int((~kept).sum()), "image", "images")
    return found, f"{left} of classes that were left out in training: {some(names)}"


def _renamed(images: ImageSet, new: dict[str, int]) -> np.ndarray:
    numbers = np.array([*(new.get(name, -1) for name in images.classes), -1], np.int64)
    return numbers[images.labels]  # -1, without a label, is the last
