"""Which images learn, which choose and which measure."""

from __future__ import annotations

import dataclasses

import numpy as np

from resfit.data.image_set import ImageSet
from resfit.errors import ArgumentError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Positions in an image set; no image is in two parts.

    Attributes:
        train: Images that weights are fitted on.
        val: Images that choices are made on.
        test: Images that nothing is fitted or chosen on.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def split(images: ImageSet, *, val: float = 0.15, test: float = 0.15, seed: int = 0) -> Split:
    """Splits a set by class, and never through a group.

    Splits that the data states are kept; a part that it lacks is cut out of its training images.

    Args:
        images: The set; files without a label are left out.
        val: Share of all labelled images that choices are made on, in [0, 1).
        test: Share of them that measures, in [0, 1).
        seed: Of the random choice; equal seeds give equal splits.

    Returns:
        Sorted positions.

    Raises:
        ArgumentError: The shares leave nothing to train on.
        DataError: The data puts one group on two sides.

    Example:
        >>> parts = split(images, test=0.2)  # doctest: +SKIP
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ArgumentError(f"val and test must be at least 0 and sum to less than 1. Received: {val}, {test}.")
    stated = np.array([part or "train" for part in images.splits], dtype=object)
    labelled = images.labels >= 0
    parts = {name: np.flatnonzero(labelled & (stated == name)) for name in ("train", "val", "test")}
    _check_groups(images, parts)
    total = int(labelled.sum())
    generator = np.random.default_rng(seed)
    for name, share in (("test", test), ("val", val)):
        if len(parts[name]) == 0 and share > 0:
            wanted = share * total / max(len(parts["train"]), 1)
            taken = _take(images, parts["train"], min(wanted, 0.9), generator)
            parts[name] = np.sort(parts["train"][taken])
            parts["train"] = parts["train"][~taken]
    return Split(parts["train"], parts["val"], parts["test"])


def _check_groups(images: ImageSet, parts: dict[str, np.ndarray]) -> None:
    seen: dict[str, str] = {}
    for name, members in parts.items():
        for position in members:
            group = images.groups[position]
            if group is not None and seen.setdefault(group, name) != name:
                raise DataError(
                    f"a group must stay on one side of the split. Received: {group!r} in {seen[group]} and in {name}."
                )


def _take(images: ImageSet, members: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Chooses about this share of each class, in whole groups; one unit of each class stays.

    Returns a boolean array over ``members``.
    """
    labels = images.labels[members]
    units: dict[object, list[int]] = {}
    for row, position in enumerate(members):
        group = images.groups[position]
        units.setdefault(("alone", row) if group is None else ("group", group), []).append(row)
    rows = list(units.values())
    classes = len(images.classes)
    counts = np.array([np.bincount(labels[unit], minlength=classes) for unit in rows]).reshape(len(rows), classes)
    quota = share * counts.sum(axis=0)
    # a class with two units or more gives at least one image
    several = (counts > 0).sum(axis=0) >= 2
    quota = np.where(several, np.maximum(quota, 1), 0)
    left = counts.sum(axis=0)
    taken = np.zeros(classes)
    chosen = np.zeros(len(members), bool)
    # large groups first, in random order among equals: small ones then fill what is left
    order = generator.permutation(len(rows))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    for unit in order:
        need = counts[unit]
        own = need > 0
        fits = taken[own] + need[own] <= np.floor(quota[own] + 0.5)
        if fits.all() and (left[own] - need[own] >= 1).all():
            chosen[rows[unit]] = True
            taken += need
            left = left - need
    for label in np.flatnonzero(several):
        if taken[label]:
            continue
        # every group of this class is larger than the quota: the smallest that can be spared goes
        for unit in order[::-1]:
            need = counts[unit]
            if need[label] and not chosen[rows[unit]].any() and (left[need > 0] - need[need > 0] >= 1).all():
                chosen[rows[unit]] = True
                taken += need
                left = left - need
                break
    return chosen
