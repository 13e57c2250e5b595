"""Heads for a few images a class: the nearest class mean, and the nearest neighbours.

Both compare directions: features are centred on the training images and brought to length one (Wang et al. 2019,
arXiv:1911.04623), so that the cosine decides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, DataError
from resfit.numerics import TINY, directions, softmax

#: Numbers of neighbours that are tried.
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_TEMPERATURES = tuple(float(t) for t in np.logspace(-2.5, 0.5, 25))


@dataclasses.dataclass(frozen=True, eq=False)
class NearestMeanHead:
    """Each class by the mean of its images.

    Attributes:
        centre: float32 array ``(features,)``, subtracted from the features.
        means: float32 array ``(classes, features)`` of centred features of length one.
        temperature: What squared distances are divided by; chosen on images left out one at a time.
        activation: Always ``"softmax"``.
    """

    centre: np.ndarray
    means: np.ndarray
    temperature: float
    activation: str = "softmax"

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns minus the squared distances over the temperature, but for a constant, shape ``(n, classes)``."""
        kernel, bias = self._dense()
        return directions(features, self.centre) @ kernel + bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the softmax of :meth:`logits`."""
        return softmax(self.logits(features), axis=1)

    def layers(self) -> list[Any]:
        """Returns the head as Keras' own layers; see :func:`resfit.tasks.classification.heads.base.attach`."""
        import keras

        kernel, bias = self._dense()
        dense = keras.layers.Dense(len(bias), dtype="float32", name="predictions")
        dense.build((None, len(kernel)))
        dense.set_weights([kernel, bias])
        return [*_direction_layers(self.centre), dense]

    def _dense(self) -> tuple[np.ndarray, np.ndarray]:
        known = np.isfinite(self.means).all(axis=1)
        means = np.where(known[:, None], self.means, 0)
        bias = np.where(known, -(means**2).sum(axis=1) / self.temperature, -1e4)
        return (2 * means.T / self.temperature).astype(np.float32), bias.astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class KNNHead:
    """Each class by the training images nearest to an image, the nearer the more.

    Attributes:
        centre: float32 array ``(features,)``, subtracted from the features.
        bank: float32 array ``(n, features)``: the training images, centred and of length one.
        labels: int64 array ``(n,)``: their classes.
        classes: Number of classes.
        count: How many neighbours vote.
        temperature: A neighbour's vote is ``exp(cosine / temperature)``.
        activation: Always ``"softmax"``.
    """

    centre: np.ndarray
    bank: np.ndarray
    labels: np.ndarray
    classes: int
    count: int
    temperature: float
    activation: str = "softmax"

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns the logarithm of each class' share of the votes, shape ``(n, classes)``."""
        cosines = directions(features, self.centre) @ self.bank.T
        return np.log(_votes(cosines, self.labels, self.classes, self.count, self.temperature) + TINY)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the softmax of :meth:`logits`: the shares of the votes."""
        return softmax(self.logits(features), axis=1)

    def layers(self) -> list[Any]:
        """Returns the head as Keras layers, of which the last is resfit's own; see
        ``resfit.tasks.classification.heads.base.attach``.
        """
        from resfit.tasks.classification.heads.layers import NeighbourVotes

        last = NeighbourVotes(
            len(self.bank), self.classes, self.count, self.temperature, dtype="float32", name="predictions"
        )
        last.build((None, self.bank.shape[1]))
        last.set_weights([self.bank, np.eye(self.classes, dtype=np.float32)[self.labels]])
        return [*_direction_layers(self.centre), last]


def fit_nearest_mean(features: np.ndarray, labels: Any, classes: int) -> NearestMeanHead:
    """Fits a nearest class mean.

    Args:
        features: Float array of shape ``(n, features)``. Not changed.
        labels: ``n`` integers in ``0..classes-1``.
        classes: Number of classes. A class without an example gets probability 0.

    Raises:
        ArgumentError: The arrays do not fit together.
        DataError: A feature is not finite.
    """
    rows, targets, centre = _prepared(features, labels, classes)
    known = np.eye(classes, dtype=np.float64)[targets]
    counts = known.sum(axis=0)
    sums = known.T @ rows
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)
    # each image against means that it had no part in; alone in its class it would be compared with itself
    own = (sums[targets] - rows) / np.maximum(counts[targets] - 1, 1)[:, None]
    usable = counts[targets] > 1
    distances = ((rows**2).sum(axis=1)[:, None] - 2 * rows @ np.nan_to_num(means).T) + np.nansum(means**2, axis=1)
    distances[np.arange(len(rows)), targets] = ((rows - own) ** 2).sum(axis=1)
    distances[:, counts == 0] = np.inf
    temperature = _best_temperature(lambda t: -distances[usable] / t, targets[usable])
    return NearestMeanHead(centre, means.astype(np.float32), temperature)


def fit_neighbours(features: np.ndarray, labels: Any, classes: int, *, count: int | None = None) -> KNNHead:
    """Fits nearest neighbours.

    Args:
        features: Float array of shape ``(n, features)``. Not changed; a copy is part of the head.
        labels: ``n`` integers in ``0..classes-1``.
        classes: Number of classes.
        count: Neighbours that vote; ``None`` chooses among :data:`NEIGHBOURS` on images left out one at a time.

    Raises:
        ArgumentError: The arrays do not fit together, or ``count`` is not in ``1..n``.
        DataError: A feature is not finite.
    """
    rows, targets, centre = _prepared(features, labels, classes)
    bank = rows.astype(np.float32)
    if count is not None and not 1 <= count <= len(bank):
        raise ArgumentError(f"count must lie in 1..{len(bank)}. Received: {count}.")
    options = [count] if count is not None else [k for k in NEIGHBOURS if k < len(bank)] or [1]
    sample = np.arange(len(bank)) if len(bank) <= 4000 else np.linspace(0, len(bank) - 1, 4000).astype(int)
    cosines = bank[sample] @ bank.T
    cosines[np.arange(len(sample)), sample] = -np.inf  # not by itself
    best = (-1.0, -np.inf, options[0], 0.1)
    for k in options:
        for temperature in (0.02, 0.05, 0.1, 0.3):
            votes = _votes(cosines, targets, classes, k, temperature)
            accuracy = float((votes.argmax(axis=1) == targets[sample]).mean())
            likelihood = float(np.log(votes[np.arange(len(sample)), targets[sample]] + 1e-3).mean())
            best = max(best, (accuracy, likelihood, k, temperature), key=lambda found: found[:2])
    return KNNHead(centre, bank, targets, classes, best[2], best[3])


def _direction_layers(centre: np.ndarray) -> list[Any]:
    import keras

    # a batch norm that only subtracts: the centre is a weight, and any Keras reads it
    centring = keras.layers.BatchNormalization(
        center=False, scale=False, epsilon=TINY, trainable=False, dtype="float32", name="centring"
    )
    centring.build((None, len(centre)))
    centring.set_weights([centre, np.full(len(centre), 1 - TINY, np.float32)])
    return [centring, keras.layers.UnitNormalization(dtype="float32", name="direction")]


def _prepared(features: np.ndarray, labels: Any, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, targets = np.asarray(features, np.float32), np.asarray(labels).astype(np.int64)
    if rows.ndim != 2 or len(rows) != len(targets) or not len(rows):
        raise ArgumentError(
            f"features must have shape (n, features) and labels n entries. Received: {rows.shape}, {targets.shape}."
        )
    if targets.min() < 0 or targets.max() >= classes:
        raise ArgumentError(f"labels must lie in 0..{classes - 1}. Received: {targets.min()}..{targets.max()}.")
    centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(centre).all():
        raise DataError("features must be finite. The network gives infinite or undefined values on these images.")
    return directions(rows, centre).astype(np.float64), targets, centre


def _best_temperature(logits_at: Any, targets: np.ndarray) -> float:
    if not len(targets):
        return 0.1

    def loss(temperature: float) -> float:
        likelihood = softmax(logits_at(temperature), axis=1)[np.arange(len(targets)), targets]
        return -float(np.log(np.maximum(likelihood, 1e-12)).mean())

    return min(_TEMPERATURES, key=loss)


def _votes(cosines: np.ndarray, labels: np.ndarray, classes: int, count: int, temperature: float) -> np.ndarray:
    nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    weights = np.exp((np.take_along_axis(cosines, nearest, axis=1) - 1) / temperature)
    votes = np.zeros((len(cosines), classes))
    for column in range(count):
        np.add.at(votes, (np.arange(len(cosines)), labels[nearest[:, column]]), weights[:, column])
    return votes / np.maximum(votes.sum(axis=1, keepdims=True), 1e-30)
