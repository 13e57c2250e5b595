"""Comparing numbers, and networks with weights that are all different from their initial values."""

from __future__ import annotations

from typing import Any

import numpy as np


def relative_error(received: Any, expected: Any) -> float:
    """Largest difference, as a share of the largest expected magnitude."""
    received, expected = np.asarray(received, np.float64), np.asarray(expected, np.float64)
    assert received.shape == expected.shape
    return float(np.max(np.abs(received - expected)) / np.max(np.abs(expected)))


def randomize(model: Any, seed: int = 0) -> Any:
    """Gives every weight a random value: kernels by fan-in, gammas and variances around one, the rest near zero."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if len(shape) >= 2:
            value = generator.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        elif variable.path.endswith(("gamma", "variance")):
            value = generator.uniform(0.5, 1.5, shape)
        elif np.issubdtype(np.dtype(variable.dtype), np.floating):
            value = generator.normal(0, 0.1, shape)
        else:
            continue
        variable.assign(value.astype(variable.dtype))
    return model


def images(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
