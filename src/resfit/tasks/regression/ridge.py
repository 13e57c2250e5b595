"""Ridge regression on features, its strength chosen by cross-validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from resfit import processors
from resfit.errors import DataError
from resfit.evaluation.intervals import group_numbers

#: Penalties that are tried, for each image and standardised features.
PENALTIES = tuple(10.0 ** np.arange(-5, 3.5, 0.5))
_FOLDS = 5
_FEWEST = 10  # images from which a penalty is chosen
_DEFAULT = 1e-1


@dataclasses.dataclass(frozen=True, eq=False)
class RidgeHead:
    """A linear function of features.

    Attributes:
        kernel: float32 array ``(features, numbers)``.
        bias: float32 array ``(numbers,)``.
        penalty: Strength of the regularisation, for each image and standardised features.
        folds: Cross-validation folds that chose it; 0 where there were too few images.
        held_out: Predictions ``(n, numbers)`` for the images it was fitted to, by heads that had not learned from them;
            empty where there were too few.
    """

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float = 0.0
    folds: int = 0
    held_out: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns predictions float32 ``(n, numbers)``.

        Args:
            rows: Features ``(n, features)``.
        """
        return np.asarray(rows, np.float32) @ self.kernel + self.bias


def fit_ridge(
    rows: np.ndarray, values: np.ndarray, *, groups: Sequence[str | None] | None = None, seed: int = 0
) -> RidgeHead:
    """Fits ridge regression, one penalty for all numbers.

    Args:
        rows: Features ``(n, features)``.
        values: float64 array ``(n, numbers)``.
        groups: For each image the group that no fold parts; ``None`` for none.
        seed: Of the folds.

    Raises:
        DataError: The features are not finite.
    """
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        raise DataError("features must be finite. The network gives infinite or undefined values on these images.")
    scale = rows.std(axis=0)
    scale[scale < 1e-9] = 1.0
    spread = values.std(axis=0)
    spread[spread < 1e-12] = 1.0
    mean = rows.mean(axis=0)
    standard, goal = (rows - mean) / scale, values / spread
    with processors.blas_threads(rows.size):
        folds = _folds(group_numbers(groups, len(rows)), seed)
        penalty, held_out = _DEFAULT, np.zeros((0, values.shape[1]))
        if folds is not None:
            tried = np.empty((len(PENALTIES), *values.shape))
            for fold in range(int(folds.max()) + 1):
                path = _Path(standard[folds != fold], goal[folds != fold])
                for index, strength in enumerate(PENALTIES):
                    tried[index, folds == fold] = path.predict(standard[folds == fold], strength)
            best = int(((tried - goal) ** 2).mean(axis=(1, 2)).argmin())
            penalty, held_out = PENALTIES[best], tried[best] * spread
        final = _Path(standard, goal)
        kernel = final.kernel(penalty) * spread / scale[:, None]
    bias = values.mean(axis=0) - mean @ kernel
    return RidgeHead(
        kernel.astype(np.float32),
        bias.astype(np.float32),
        float(penalty),
        0 if folds is None else int(folds.max()) + 1,
        held_out,
    )


def _folds(groups: np.ndarray, seed: int) -> np.ndarray | None:
    """Returns the fold of each image, groups whole; ``None`` where there are too few."""
    count = int(groups.max()) + 1
    if count < _FEWEST:
        return None
    order = np.random.default_rng(seed).permutation(count)
    return (order % _FOLDS)[groups]


class _Path:
    """Ridge regression with an intercept at any penalty, from one decomposition."""

    def __init__(self, rows: np.ndarray, values: np.ndarray):
        from scipy.linalg import eigh

        self._mean, self._offset = rows.mean(axis=0), values.mean(axis=0)
        centred, goal = rows - self._mean, values - self._offset
        self._count, self._dual = len(rows), len(rows) < rows.shape[1]
        gram = centred @ centred.T if self._dual else centred.T @ centred
        self._values, vectors = eigh(gram)
        self._values = np.maximum(self._values, 0)
        self._turned = vectors.T @ (goal if self._dual else centred.T @ goal)
        self._back = centred.T @ vectors if self._dual else vectors

    def kernel(self, penalty: float) -> np.ndarray:
        return self._back @ (self._turned / (self._values + penalty * self._count)[:, None])

    def predict(self, rows: np.ndarray, penalty: float) -> np.ndarray:
        return (rows - self._mean) @ self.kernel(penalty) + self._offset
