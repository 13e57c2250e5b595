"""Whether probabilities mean what they say: calibration error, and the temperature that mends it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import Statistic, wilson_interval
from resfit.numerics import activated

#: Bins of the calibration error and of the reliability diagram.
BINS = 15
_TEMPERATURES = (0.05, 20.0)
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class ReliabilityBin:
    """Images of like confidence.

    Attributes:
        confidence: Their mean confidence.
        accuracy: Share that was right.
        count: How many there are.
        low: 95 % interval of the share after Wilson, lower end.
        high: Upper end.
    """

    confidence: float
    accuracy: float
    count: int
    low: float
    high: float


def reliability(confidence: Any, right: Any, *, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Returns the bins of a reliability diagram, each of as many images.

    Args:
        confidence: ``n`` probabilities of what was predicted.
        right: ``n`` booleans: whether it was so.
        bins: How many; images of equal confidence stay together, so that there may be fewer.
    """
    values, hits = _pairs(confidence, right)
    numbers = _bins(values, bins)
    found = []
    for number in np.unique(numbers):
        members = numbers == number
        count, good = int(members.sum()), int(hits[members].sum())
        low, high = wilson_interval(good, count)
        found.append(ReliabilityBin(float(values[members].mean()), good / count, count, low, high))
    return tuple(found)


def expected_error(confidence: Any, right: Any, *, bins: int = BINS) -> float:
    """Returns the expected calibration error over bins of equal mass, 0..1.

    The mean over images of how far the accuracy of the bin is from its confidence.

    Args:
        confidence: As :func:`reliability` takes it.
        right: As :func:`reliability` takes it.
        bins: How many.

    Source:
        Naeini et al. 2015, AAAI; bins of equal mass after Nixon et al. 2019, arXiv:1904.01685.
    """
    values, hits = _pairs(confidence, right)
    gaps = np.bincount(_bins(values, bins), weights=values - hits)
    return float(np.abs(gaps).sum() / len(values))


def ece_statistic(
    confidence: np.ndarray, right: np.ndarray, *, owners: np.ndarray | None = None, bins: int = BINS
) -> Statistic:
    """Returns :func:`expected_error` as a statistic of resamples, over the bins of all images.

    Args:
        confidence: As :func:`reliability` takes it.
        right: As :func:`reliability` takes it.
        owners: For each confidence the image it belongs to; ``None`` where they are the images, in order.
        bins: How many.
    """
    from scipy import sparse

    values, hits = _pairs(confidence, right)
    columns = np.arange(len(values)) if owners is None else owners
    numbers = _bins(values, bins)
    shape = (bins, int(columns.max()) + 1)
    gaps = sparse.csr_matrix(((values - hits).astype(np.float32), (numbers, columns)), shape=shape)
    each = len(values) / shape[1]
    return lambda weights: np.abs(gaps @ weights).sum(axis=0) / (each * weights.sum(axis=0))


def losses(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each image's negative log-likelihood in nats and its Brier score.

    With one label an image, the Brier score is the sum over classes of the squared difference, 0..2; with several, both
    are means over the labels.

    Args:
        truth: ``n`` integers, or an array ``(n, classes)`` of 0 and 1.
        probabilities: Array ``(n, classes)``.
    """
    shares = np.asarray(probabilities, np.float64)
    if np.ndim(truth) == 2:
        known = np.asarray(truth, np.float64)
        clipped = np.clip(shares, _TINY, 1 - _TINY)
        loss = -(known * np.log(clipped) + (1 - known) * np.log(1 - clipped)).mean(axis=1)
        return {"log_loss": loss, "brier": ((shares - known) ** 2).mean(axis=1)}
    rows = np.arange(len(shares))
    own = shares[rows, truth]
    brier = (shares**2).sum(axis=1) - 2 * own + 1
    return {"log_loss": -np.log(np.clip(own, _TINY, 1)), "brier": brier}


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """Returns the temperature that makes held-out probabilities most likely.

    The targets are softened by 1 / (n + 2), as Platt's scaling softens them, so that a few images that are all right
    do not make every probability 1.

    Args:
        logits: Array ``(n, classes)`` of images that the classifier has not learned from.
        truth: ``n`` integers, or an array ``(n, classes)`` of 0 and 1 where an image may have several labels.

    Returns:
        What logits are to be divided by, between 0.05 and 20; 1 without images.

    Source:
        Guo et al. 2017, arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar

    values = np.asarray(logits, np.float64)
    if not len(values):
        return 1.0
    if not np.isfinite(values).all():
        raise ArgumentError("logits must be finite. Received: infinite or undefined ones.")
    classes = values.shape[1]
    multilabel = np.ndim(truth) == 2
    known = np.asarray(truth, np.float64) if multilabel else np.eye(classes)[np.asarray(truth)]
    soft = 1 / (len(values) + 2)
    if multilabel:
        goal = known * (1 - soft) + (1 - known) * soft
    else:
        usable = values > -1e3  # a class without an example has no share in it
        goal = np.where(usable, soft / np.maximum(usable.sum(axis=1, keepdims=True), 1), 0) + known * (1 - soft)
        goal /= goal.sum(axis=1, keepdims=True)

    def loss(logarithm: float) -> float:
        scaled = values / np.exp(logarithm)
        if multilabel:
            return float((np.logaddexp(0, scaled) - goal * scaled).sum(axis=1).mean())
        top = scaled.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
        return float((total - (goal * np.where(goal > 0, scaled, 0)).sum(axis=1)).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def summary(logits: np.ndarray, truth: np.ndarray, temperature: float, activation: str) -> dict[str, Any]:
    """Returns log-loss and calibration error before and after the temperature, JSON-ready.

    Args:
        logits: Array ``(n, classes)``.
        truth: As :func:`fit_temperature` takes it.
        temperature: What logits are divided by.
        activation: ``"softmax"`` or ``"sigmoid"``.
    """
    found = {}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        shares = activated(np.asarray(logits, np.float64) / divisor, activation)
        if np.ndim(truth) == 2:
            pair = shares.ravel(), np.asarray(truth, bool).ravel()
        else:
            pair = shares.max(axis=1), shares.argmax(axis=1) == truth
        found[name] = {"log_loss": float(losses(truth, shares)["log_loss"].mean()), "ece": expected_error(*pair)}
    return found


def _pairs(confidence: Any, right: Any) -> tuple[np.ndarray, np.ndarray]:
    values, hits = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if values.ndim != 1 or values.shape != hits.shape or not len(values):
        raise ArgumentError(
            f"confidences and hits must be as many, at least 1. Received: {values.shape}, {hits.shape}."
        )
    return values, hits


def _bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Returns for each value the number of its bin, 0..bins-1; equal values are in one bin."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, "left")
    last = np.searchsorted(ordered, values, "right") - 1
    return np.minimum((first + last) * bins // (2 * len(values)), bins - 1)
