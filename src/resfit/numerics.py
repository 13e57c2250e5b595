"""Small numerical functions that heads, evaluation and explanations share."""

from __future__ import annotations

import numpy as np

#: Smallest length that a feature vector is divided by.
TINY = 1e-6


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the softmax over an axis; scipy's takes 0.3 s to import."""
    powers = np.exp(logits - np.max(logits, axis=axis, keepdims=True))
    return np.asarray(powers / np.sum(powers, axis=axis, keepdims=True))


def activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """Returns the softmax or the sigmoid of logits ``(n, classes)``."""
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return softmax(logits, axis=1)


def tempered(shares: np.ndarray, temperature: float, activation: str) -> np.ndarray:
    """Returns the probabilities that logits divided by a temperature would have given.

    Args:
        shares: Probabilities ``(n, classes)``.
        temperature: What the logits are divided by; 1 changes nothing.
        activation: ``"softmax"`` or ``"sigmoid"``.
    """
    if temperature == 1:
        return shares
    return activated(logits_of(shares, activation) / np.float32(temperature), activation)


def logits_of(shares: np.ndarray, activation: str) -> np.ndarray:
    """Returns logits with these probabilities, shape ``(n, classes)``; those of a softmax up to a constant."""
    clipped = np.clip(shares, 1e-12, 1)
    return np.log(clipped) - (np.log1p(-np.minimum(clipped, 1 - 1e-7)) if activation == "sigmoid" else 0)


def directions(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Returns centred features of length one, float32."""
    rows = np.asarray(features, np.float32) - centre
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)


def nearest_rows(known: np.ndarray, features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each row the known rows of largest cosine similarity, both centred on the mean of the known rows.

    Args:
        known: Array ``(m, features)``.
        features: Array ``(n, features)``.
        count: How many for each.

    Returns:
        Positions in ``known``, ``(n, count)``, nearest first, and the cosines.
    """
    centre = np.asarray(known, np.float32).mean(axis=0)
    cosines = directions(features, centre) @ directions(known, centre).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def float32_below(threshold: float) -> float:
    """Returns the largest float32 that is not above a threshold: a float32 exceeds the one where it exceeds the other.

    Args:
        threshold: Any number.
    """
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))
