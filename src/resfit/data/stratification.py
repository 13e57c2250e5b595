"""Parts of a set in which every label is as frequent as in the whole, where an image may have several labels.

Iterative stratification: the label with the fewest images left goes first, and each of its images to the part that
lacks most of that label. Groups go to a part as a whole.

Source:
    Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data", ECML PKDD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# units that change sides at most once all are assigned
_MOST_MOVES = 200
# up to so many; parts of larger sets are even enough
_EVENED_OUT = 20_000


def stratify(
    targets: np.ndarray,
    shares: Sequence[float],
    generator: np.random.Generator,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    keep: int | None = None,
) -> np.ndarray:
    """Assigns each image to a part.

    Images without any label are treated as a label of their own, so that each part gets its share of them.

    Args:
        targets: Array ``(n, labels)`` of 0 and 1.
        shares: The share of each part; they sum to 1.
        generator: Of the random choices.
        groups: For each image the group that stays in one part, or ``None``; ``None`` for no groups at all.
        keep: A part in which each label keeps at least one group or image; ``None`` for no such part.

    Returns:
        int64 array ``(n,)``: the number of the part of each image.

    Example:
        >>> targets = np.array([[1, 0], [0, 1]] * 50)
        >>> parts = stratify(targets, (0.8, 0.2), np.random.default_rng(0))
        >>> targets[parts == 1].sum(axis=0).tolist()
        [10, 10]
    """
    targets = np.asarray(targets).astype(bool)
    count = len(targets)
    unit_of = _units(groups, count)
    sizes = np.bincount(unit_of, minlength=0)
    table = _table(targets, unit_of, len(sizes))
    fractions = np.asarray(shares, np.float64)
    goal = _wanted(table.sum(axis=0), fractions, generator)  # (parts, labels)
    wanted, room = goal.copy(), fractions * count
    holders = (table > 0).sum(axis=0)  # units of each label that may still go elsewhere, where one part keeps one
    part_of_unit = np.full(len(sizes), -1)
    left = np.count_nonzero(table, axis=0)
    shuffled = generator.permutation(len(sizes))
    # large groups first, in random order among equals: small ones then fill what is left
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    while True:
        open_labels = np.flatnonzero(left > 0)
        if not len(open_labels):
            break
        label = open_labels[np.argmin(left[open_labels])]
        for unit in order[(table[order, label] > 0) & (part_of_unit[order] < 0)]:
            row = table[unit]
            own = row > 0
            part = _most_wanting(wanted[:, label], room, generator)
            if keep is not None and part != keep:
                if (holders[own] <= 1).any():
                    part = keep
                else:
                    holders[own] -= 1
            part_of_unit[unit] = part
            wanted[part] -= row
            room[part] -= sizes[unit]
            left[own] -= 1
    if len(fractions) == 2 and len(sizes) <= _EVENED_OUT:
        _even_out(table, sizes, part_of_unit, goal[1], fractions[1] * count, keep)
    return part_of_unit[unit_of]


def folds(
    targets: np.ndarray, count: int, seed: int, *, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the positions of both sides of each fold of a cross-validation, training first.

    Args:
        targets: Array ``(n, labels)`` of 0 and 1.
        count: Number of folds, at least 2.
        seed: Of the random choices.
        groups: For each image the number of its group; ``None`` for no groups.
    """
    parts = stratify(targets, [1 / count] * count, np.random.default_rng(seed), groups=groups)
    return [(np.flatnonzero(parts != number), np.flatnonzero(parts == number)) for number in range(count)]


def _units(groups: Sequence[Any] | np.ndarray | None, count: int) -> np.ndarray:
    """Returns for each image the number of what it goes to a part with: its group, or itself alone."""
    if groups is None:
        return np.arange(count)
    known: dict[Any, int] = {}
    keys = (("alone", row) if group is None else ("group", group) for row, group in enumerate(groups))
    return np.fromiter((known.setdefault(key, len(known)) for key in keys), np.int64, count)


def _table(targets: np.ndarray, unit_of: np.ndarray, units: int) -> np.ndarray:
    """Returns how many images of each label a unit has, int32 ``(units, labels + 1)``; last, those without any."""
    none = ~targets.any(axis=1)
    table = np.zeros((units, targets.shape[1] + 1), np.int32)
    if units == len(targets):
        table[unit_of, :-1], table[unit_of, -1] = targets, none
    else:
        rows, labels = np.nonzero(targets)
        np.add.at(table, (unit_of[rows], labels), 1)
        np.add.at(table[:, -1], unit_of[none], 1)
    return table


def _wanted(totals: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns how many images of each label a part should get, ``(parts, labels)``, in whole numbers.

    They are rounded at random: always rounding to the nearest would leave no image of any rare label in a small part.
    """
    exact = shares[:, None] * totals
    found = np.floor(exact)
    if len(shares) == 2:  # one draw for all labels, so that the sum over labels is right to one
        order = generator.permutation(len(totals))
        ends = np.floor(np.cumsum((exact - found)[1, order]) + generator.random())
        found[1, order] += np.diff(ends, prepend=0)
        found[0] = totals - found[1]
        return found
    for label in np.flatnonzero(found.sum(axis=0) < totals):
        missing = int(totals[label] - found[:, label].sum())
        rest = exact[:, label] - found[:, label]
        if rest.sum() > 0:
            chosen = generator.choice(len(shares), missing, replace=False, p=rest / rest.sum())
            found[chosen, label] += 1
    return found


def _even_out(
    table: np.ndarray, sizes: np.ndarray, parts: np.ndarray, goal: np.ndarray, size: float, keep: int | None
) -> None:
    """Moves units between two parts while that brings part 1 nearer to its labels and its number of images.

    The rule above looks at labels alone, so that a part may end with too many images of few labels.
    """
    rows = np.concatenate([table, sizes[:, None]], axis=1).astype(np.float32)
    target = np.append(goal, size)
    weight = 1 / np.maximum(target, 1)
    squares = (rows**2) @ weight
    excess = rows[parts == 1].sum(axis=0) - target
    for _ in range(_MOST_MOVES):
        sign = np.where(parts == 1, -1.0, 1.0)
        change = 2 * sign * (rows @ (weight * excess)) + squares
        if keep is not None:  # what holds the last of a label there stays
            held = table[parts == keep].astype(bool).sum(axis=0)
            last = (table[:, held <= 1] > 0).any(axis=1) & (parts == keep)
            change[last] = np.inf
        best = int(change.argmin())
        if change[best] >= -1e-6:
            return
        excess += sign[best] * rows[best]
        parts[best] = 1 - parts[best]


def _most_wanting(wanted: np.ndarray, room: np.ndarray, generator: np.random.Generator) -> int:
    """Returns the part that lacks most of a label; among equals the one with most room, then any."""
    best = np.flatnonzero(wanted == wanted.max())
    if len(best) > 1:
        best = best[room[best] >= room[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else generator.choice(best))
