"""What a regressor learns: the Huber loss of standardised numbers, and the share of the variance that is explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from resfit.training.objective import Objective

#: Losses by name.
LOSSES = ("huber", "mse")


class NumberObjective(Objective):
    """The Huber loss (Huber 1964), or the squared error, of numbers that have mean 0 and deviation 1 in training.

    Args:
        targets: float32 array ``(n, numbers)``, standardised.
        loss: One of :data:`LOSSES`. The Huber loss is linear beyond one deviation, so that a few wrong numbers do not
            decide.
    """

    metric = "r2"

    def __init__(self, targets: np.ndarray, loss: str = "huber"):
        self._targets, self._loss = targets, loss

    def loss(self, outputs: Any, targets: Any, teacher: Any) -> Any:
        """Returns the loss of each image; see :class:`resfit.training.objective.Objective`."""
        import tensorflow as tf

        away = tf.abs(outputs - targets)
        each = 0.5 * away**2 if self._loss == "mse" else tf.where(away < 1, 0.5 * away**2, away - 0.5)
        return tf.reduce_mean(each, axis=1)

    def score(self, outputs: Any, targets: Any) -> Any:
        """Returns the sum of one minus the squared error, in variances of the training images."""
        import tensorflow as tf

        return tf.reduce_sum(1 - tf.reduce_mean((outputs - targets) ** 2, axis=1))

    def measure(self, outputs: Iterator[tuple[np.ndarray, Any]]) -> tuple[float, float]:
        """Returns mean loss and mean R2 of validation images."""
        rows, parts = zip(*outputs, strict=True)
        goal = self._targets[np.concatenate(rows)].astype(np.float64)
        away = np.abs(np.concatenate(parts) - goal)
        each = 0.5 * away**2 if self._loss == "mse" else np.where(away < 1, 0.5 * away**2, away - 0.5)
        variance = np.maximum(goal.var(axis=0), 1e-12)
        return float(each.mean()), float((1 - (away**2).mean(axis=0) / variance).mean())
