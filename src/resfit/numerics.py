"""What logits and probabilities say of each other."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax


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
