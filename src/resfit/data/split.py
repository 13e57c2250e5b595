"""Which images learn, which choose and which measure."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np

from resfit.data import stratification
from resfit.data.dataset import ImageSet
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
    """Splits a set by class, or where an image may have several labels by each of them, and never through a group.

    Splits that the data states are kept; a part that it lacks is cut out of its training images. Several labels are
    split by iterative stratification (:mod:`resfit.data.stratification`).

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
    labelled = images.labelled
    parts = {name: np.flatnonzero(labelled & (stated == name)) for name in ("train", "val", "test")}
    _check_groups(images, parts)
    total = int(labelled.sum())
    generator = np.random.default_rng(seed)
    for name, share in (("test", test), ("val", val)):
        if len(parts[name]) == 0 and share > 0:
            wanted = share * total / max(len(parts["train"]), 1)
            take = _take if images.targets is None else _take_labels
            taken = take(images, parts["train"], min(wanted, 0.9), generator)
            parts[name] = np.sort(parts["train"][taken])
            parts["train"] = parts["train"][~taken]
    return Split(parts["train"], parts["val"], parts["test"])


@dataclasses.dataclass(frozen=True)
class _Unit:
    """Images that stay together: a group, or one image without a group. ``counts`` is how many of each class."""

    rows: list[int]
    counts: Counter[int]


def _check_groups(images: ImageSet, parts: dict[str, np.ndarray]) -> None:
    seen: dict[str, str] = {}
    for name, members in parts.items():
        for position in members:
            group = images.groups[position]
            if group is not None and seen.setdefault(group, name) != name:
                raise DataError(
                    f"a group must stay on one side of the split. Received: {group!r} in {seen[group]} and in {name}."
                )


def _take_labels(images: ImageSet, members: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Chooses about this share of each label, in whole groups; one unit of each label stays.

    Returns a boolean array over ``members``.
    """
    assert images.targets is not None
    groups = [images.groups[position] for position in members.tolist()]
    parts = stratification.stratify(
        images.targets[members],
        (1 - share, share),
        generator,
        groups=groups if any(group is not None for group in groups) else None,
        keep=0,
    )
    return parts == 1


def _take(images: ImageSet, members: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Chooses about this share of each class, in whole groups; one unit of each class stays.

    Returns a boolean array over ``members``.
    """
    labels = images.labels[members].tolist()
    gathered: dict[object, list[int]] = {}
    for row, position in enumerate(members.tolist()):
        group = images.groups[position]
        gathered.setdefault(("alone", row) if group is None else ("group", group), []).append(row)
    units = [_Unit(rows, Counter(labels[row] for row in rows)) for rows in gathered.values()]
    left = Counter(labels)
    holders = Counter(label for unit in units for label in unit.counts)
    # a class with two units or more gives at least one image
    quota = {label: max(share * left[label], 1) if holders[label] >= 2 else 0 for label in left}
    most = {label: math.floor(number + 0.5) for label, number in quota.items()}
    taken: Counter[int] = Counter()
    chosen: list[int] = []

    def take(unit: _Unit) -> None:
        chosen.extend(unit.rows)
        taken.update(unit.counts)
        left.subtract(unit.counts)

    def spared(unit: _Unit) -> bool:
        return all(left[label] - number >= 1 for label, number in unit.counts.items())

    # large groups first, in random order among equals: small ones then fill what is left
    shuffled = [units[row] for row in generator.permutation(len(units))]
    ordered = sorted(shuffled, key=lambda unit: -len(unit.rows))
    for unit in ordered:
        if spared(unit) and all(taken[label] + number <= most[label] for label, number in unit.counts.items()):
            take(unit)
    # a class whose every group is larger than its quota: the smallest that can be spared goes
    for label in sorted(left):
        if holders[label] >= 2 and not taken[label]:
            smallest = next((unit for unit in reversed(ordered) if label in unit.counts and spared(unit)), None)
            if smallest:
                take(smallest)
    mask = np.zeros(len(members), bool)
    mask[chosen] = True
    return mask
