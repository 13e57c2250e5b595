"""How good predicted numbers are: MAE, RMSE and R2 with intervals by resampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import Figure, Statistic, bootstrap, group_numbers, interval, mean_of

#: Figures of each number, in this order.
FIGURES = ("mae", "rmse", "r2")


def regression_figures(
    truth: np.ndarray, predicted: np.ndarray, *, groups: Sequence[Any] | None = None, seed: int = 0
) -> list[dict[str, Figure]]:
    """Returns for each number MAE, RMSE (both in its unit) and R2, each with its 95 % interval.

    R2 is one minus the mean square error over the variance of the true numbers: 1 is perfect, 0 what the mean of these
    images would reach, and it is undefined where all true numbers are the same.

    Args:
        truth: Array ``(n, numbers)``, ``n`` at least 1.
        predicted: Array of the same shape.
        groups: For each image the group it belongs to, which is resampled as a whole; ``None`` for none.
        seed: Of the resamples.

    Returns:
        For each number a figure by name (:data:`FIGURES`).

    Raises:
        ArgumentError: There is no image, or the arrays do not fit together.

    Example:
        >>> regression_figures(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [4.0]]))[0]["r2"].value
        0.5
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.ndim != 2 or truth.shape != predicted.shape or not len(truth):
        raise ArgumentError(
            "truth and predicted must have one shape (n, numbers) with n >= 1. "
            f"Received: {truth.shape} and {predicted.shape}."
        )
    units = group_numbers(groups, len(truth))
    found = []
    for column in range(truth.shape[1]):
        goal = truth[:, column] - truth[:, column].mean()  # the variance of large numbers must not be lost in rounding
        error = predicted[:, column] - truth[:, column]
        statistics: dict[str, Statistic] = {
            "mae": mean_of(np.abs(error)),
            "rmse": _rmse(error),
            "r2": _r2(error, goal),
        }
        drawn = bootstrap(statistics, units, seed=seed)
        whole = np.ones((len(truth), 1), np.float32)
        values = {name: float(np.squeeze(statistic(whole))) for name, statistic in statistics.items()}
        found.append({name: interval(values[name], drawn[name][0]) for name in FIGURES})
    return found


def _rmse(error: np.ndarray) -> Statistic:
    mean = mean_of(error**2)
    return lambda table: np.sqrt(mean(table))


def _r2(error: np.ndarray, goal: np.ndarray) -> Statistic:
    means = mean_of(np.stack([error**2, goal, goal**2], axis=1))

    def statistic(table: np.ndarray) -> np.ndarray:
        square, first, second = means(table).astype(np.float64)
        variance = second - first**2
        defined = variance > 1e-6 * np.maximum(second, np.finfo(np.float64).tiny)
        return np.where(defined, 1 - square / np.where(defined, variance, 1), np.nan)[None]

    return statistic


@dataclasses.dataclass(frozen=True, eq=False)
class NumberScore:
    """How well one number is predicted.

    Attributes:
        name: Of the number.
        mae: Mean absolute error, in the number's unit.
        rmse: Root of the mean square error, in the number's unit.
        r2: Share of the variance that is explained, at most 1.
        coverage: Share of the images whose interval holds the true number; ``None`` without intervals.
        width: Width of the intervals, in the number's unit; ``None`` without.
    """

    name: str
    mae: Figure
    rmse: Figure
    r2: Figure
    coverage: float | None = None
    width: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values."""
        return {
            "name": self.name,
            **{name: getattr(self, name).to_dict() for name in FIGURES},
            "interval_coverage": self.coverage,
            "interval_width": self.width,
        }
