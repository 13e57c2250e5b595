"""Intervals by resampling images, or whole groups of images, with replacement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError

#: Resamples behind every interval.
RESAMPLES = 2000
#: Share of the resamples that an interval covers.
LEVEL = 0.95
_AT_ONCE = 4_000_000  # weights held at one time

#: Takes weights ``(images, resamples)``, float32, and returns figures ``(figures, resamples)``.
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval.

    Attributes:
        value: On the images themselves.
        low: Lower end.
        high: Upper end.
        method: How the interval was found: ``"bootstrap"`` (percentiles), ``"basic bootstrap"``, ``"Wilson"`` or
            ``"DeLong"``.
        note: What limits the interval, or ``""``: how many resamples lacked a class, say.
    """

    value: float
    low: float
    high: float
    method: str = "bootstrap"
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values; what is not known is ``None``."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {**{name: number if np.isfinite(number) else None for name, number in numbers.items()}} | {
            "method": self.method,
            **({"note": self.note} if self.note else {}),
        }


#: Quantile of the normal distribution for 95 %.
Z95 = 1.959963984540054


def group_numbers(groups: Sequence[Any] | None, count: int) -> np.ndarray:
    """Returns for each image the number of its group, from 0 up; one without a group is a group of its own.

    Args:
        groups: For each image its group or ``None``; ``None`` for no groups at all.
        count: Number of images.

    Raises:
        ArgumentError: There are more or fewer groups than images.
    """
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise ArgumentError(f"groups must have one entry an image ({count}). Received: {len(groups)}.")
    known: dict[Any, int] = {}
    keys = (("alone", row) if group is None else ("group", group) for row, group in enumerate(groups))
    return np.fromiter((known.setdefault(key, len(known)) for key in keys), np.int64, count)


def weights(groups: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each image is in each resample, a few resamples at a time.

    Args:
        groups: As :func:`group_numbers` returns them: what is drawn together.
        resamples: How many.
        seed: Of the draws; equal seeds give equal resamples.

    Returns:
        float32 arrays ``(images, some resamples)``.
    """
    generator = np.random.default_rng(seed)
    units = int(groups.max()) + 1
    alone = units == len(groups) and bool((groups == np.arange(units)).all())
    step = max(1, _AT_ONCE // len(groups))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, units, (count, units))
        drawn += units * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        table = np.ascontiguousarray(times.T, np.float32)
        yield table if alone else table[groups]


def bootstrap(
    statistics: Mapping[str, Statistic], groups: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Computes statistics on every resample, all of them on the same ones.

    Args:
        statistics: What is computed, by name.
        groups: As :func:`weights` takes them.
        resamples: How many.
        seed: Of the draws.

    Returns:
        By name, float64 arrays ``(figures, resamples)``.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for table in weights(groups, resamples=resamples, seed=seed):
        for name, statistic in statistics.items():
            found[name].append(np.atleast_2d(statistic(table)))
    return {name: np.concatenate(parts, axis=1).astype(np.float64) for name, parts in found.items()}


def mean_of(values: np.ndarray) -> Statistic:
    """Returns the statistic that averages numbers over images.

    Args:
        values: Array ``(images,)`` or ``(images, figures)``.
    """
    columns = np.asarray(values, np.float32).reshape(len(values), -1)
    return lambda table: (columns.T @ table) / table.sum(axis=0)


def interval(value: float, resampled: np.ndarray, *, basic: bool = False) -> Figure:
    """Returns a figure with the interval that its resamples span.

    Args:
        value: On the images themselves.
        resampled: The same on each resample; one where it is undefined (no image of a class was drawn) is left out,
            which the figure's ``note`` states.
        basic: Mirrors the percentiles at the value, for figures that resampling alone makes larger, such as a
            calibration error, and cuts them off at 0.
    """
    usable = resampled[np.isfinite(resampled)]
    if not len(usable) or not np.isfinite(value):
        return Figure(float(value), float("nan"), float("nan"))
    left_out = resampled.size - usable.size
    note = f"{left_out} of {resampled.size} resamples left out, in which it is undefined" if left_out else ""
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if basic:
        low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
    return Figure(float(value), float(low), float(high), "basic bootstrap" if basic else "bootstrap", note)


def share_interval(value: float, resampled: np.ndarray, trials: int, *, independent: bool = False) -> Figure:
    """Returns a share with its interval; resamples of a share of 0 or 1 are all alike, and Wilson's interval serves.

    Args:
        value: The share, 0..1.
        resampled: The same on each resample.
        trials: Number of independent images or groups that it is a share of.
        independent: Whether each trial is one image, so that Wilson's interval serves for every share.
    """
    if trials > 0 and (independent or value in (0.0, 1.0)):
        return Figure(float(value), *wilson_interval(round(value * trials), trials), method="Wilson")
    return interval(value, resampled)


def wilson_interval(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns Wilson's score interval of a share.

    Args:
        correct: Number of successes, 0..n.
        n: Number of trials. With none, nothing is known: (0, 1).
        z: Quantile of the normal distribution; the default covers 95 %.

    Returns:
        Low and high, both in 0..1.

    Raises:
        ArgumentError: ``correct`` is not in 0..n.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22.
    """
    if not 0 <= correct <= n:
        raise ArgumentError(f"correct must lie in 0..{n}. Received: {correct}.")
    if n == 0:
        return (0.0, 1.0)
    share = correct / n
    denominator = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / denominator
    half = z / denominator * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if correct == 0 else float(centre - half)
    high = 1.0 if correct == n else float(centre + half)
    return (low, high)


def accuracy_interval(right: np.ndarray, groups: Sequence[Any] | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the share of images that are predicted correctly.

    It is the one that :func:`resfit.evaluation.figures.figures` gives for the same images.

    Args:
        right: For each image whether it is predicted correctly; at least one.
        groups: For each image its group or ``None``. Without groups the interval is Wilson's, with groups that of
            resampled groups.
        seed: Of the resamples.

    Returns:
        Low and high, both in 0..1.
    """
    numbers = group_numbers(groups, len(right))
    units = int(numbers.max()) + 1
    if units == len(right):
        return wilson_interval(int(np.sum(right)), len(right))
    drawn = bootstrap({"accuracy": mean_of(right)}, numbers, seed=seed)["accuracy"][0]
    found = share_interval(float(np.mean(right)), drawn, units)
    return found.low, found.high
