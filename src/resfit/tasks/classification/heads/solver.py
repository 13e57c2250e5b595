"""Logistic regression over rows that need not fit in memory: the optimum of scikit-learn's, found chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_CHUNK = 8192


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each column, in float64, reading the rows twice.

    Args:
        rows: Array of shape ``(n, features)``; memory-mapped will do.
    """
    mean = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _CHUNK):
        mean += rows[start : start + _CHUNK].sum(axis=0, dtype=np.float64)
    mean /= max(1, len(rows))
    square = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _CHUNK):
        square += ((rows[start : start + _CHUNK] - mean) ** 2).sum(axis=0, dtype=np.float64)
    return mean, np.sqrt(square / max(1, len(rows)))


def solve(
    rows: np.ndarray,
    targets: np.ndarray,
    c: float,
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    weights: np.ndarray | None = None,
    multilabel: bool = False,
    indices: np.ndarray | None = None,
    start: np.ndarray | None = None,
    tolerance: float = 1e-5,
    iterations: int = 1000,
) -> np.ndarray:
    """Minimises ``c * sum(loss) + |W|^2 / 2`` over standardised rows, by L-BFGS.

    The loss is cross-entropy after a softmax, or with several labels the sum of the binary ones. With two classes the
    optimum is that of scikit-learn's single sigmoid.

    Args:
        rows: float32 array of shape ``(n, features)``; memory-mapped will do.
        targets: float32 array of shape ``(n, classes)``; rows of a softmax sum to 1.
        c: Inverse regularisation strength.
        mean: Subtracted from the rows.
        scale: Divided by after that.
        weights: What each row counts in the loss; ``None`` is 1.
        multilabel: Whether an image may have several labels.
        indices: Rows to take, ascending; ``None`` is all.
        start: Where to begin, an earlier result.
        tolerance: Largest entry of the gradient of the mean loss at the end.
        iterations: Most iterations.

    Returns:
        Array ``(classes, features + 1)``, the bias last, for standardised rows.
    """
    taken = np.arange(len(rows)) if indices is None else np.asarray(indices)
    return minimise(
        lambda matrix: sums(
            matrix, rows, targets, mean=mean, scale=scale, weights=weights, multilabel=multilabel, indices=taken
        ),
        (targets.shape[1], rows.shape[1]),
        c,
        len(taken),
        multilabel=multilabel,
        start=start,
        tolerance=tolerance,
        iterations=iterations,
    )


def minimise(
    total: Callable[[np.ndarray], tuple[float, np.ndarray]],
    shape: tuple[int, int],
    c: float,
    count: int,
    *,
    multilabel: bool = False,
    start: np.ndarray | None = None,
    tolerance: float = 1e-5,
    iterations: int = 1000,
) -> np.ndarray:
    """Does what :func:`solve` does, wherever the rows are: the objective is a sum over them.

    Args:
        total: For weights as they are returned, the loss and its gradient summed over all rows, as :func:`sums`.
        shape: Number of classes and of features.
        c: Inverse regularisation strength.
        count: Number of rows.
        multilabel: As for :func:`solve`.
        start: As for :func:`solve`.
        tolerance: As for :func:`solve`.
        iterations: As for :func:`solve`.

    Returns:
        Array ``(classes, features + 1)``, the bias last, for standardised rows.
    """
    from scipy.optimize import minimize

    classes, features = shape
    penalty = 1.0 / (c * count)
    if classes == 2 and not multilabel:  # two columns for one direction: the same penalty on their difference
        penalty *= 2

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix = flat.reshape(classes, features + 1)
        loss, gradient = total(matrix)
        loss, gradient = loss / count, gradient / count
        loss += 0.5 * penalty * float((matrix[:, :-1] ** 2).sum())
        gradient[:, :-1] += penalty * matrix[:, :-1]
        return loss, gradient.ravel()

    begin = np.zeros(classes * (features + 1)) if start is None else start.ravel()
    options = {"maxiter": iterations, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    return minimize(objective, begin, method="L-BFGS-B", jac=True, options=options).x.reshape(classes, features + 1)


def sums(
    matrix: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    weights: np.ndarray | None = None,
    multilabel: bool = False,
    indices: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Returns the loss and its gradient, summed over some rows.

    Args:
        matrix: Array ``(classes, features + 1)``, the bias last.
        rows: As for :func:`solve`; float16 will do.
        targets: As for :func:`solve`; or integers ``(n,)``, the class of each row.
        mean: As for :func:`solve`.
        scale: As for :func:`solve`.
        weights: As for :func:`solve`.
        multilabel: As for :func:`solve`.
        indices: As for :func:`solve`.
    """
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    kernel, bias = matrix[:, :-1].astype(np.float32), matrix[:, -1]
    taken = np.arange(len(rows)) if indices is None else indices
    loss, gradient = 0.0, np.zeros(matrix.shape)
    for some, goal, weight in _chunks(rows, targets, weights, taken):
        if goal.ndim == 1:
            goal = np.eye(len(matrix), dtype=np.float32)[goal]
        standard = (some - shift) * factor
        value, slope = _loss((standard @ kernel.T).astype(np.float64) + bias, goal, weight, multilabel)
        loss += value
        gradient[:, :-1] += slope.astype(np.float32).T @ standard
        gradient[:, -1] += slope.sum(axis=0)
    return loss, gradient


def logits(matrix: np.ndarray, rows: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns what a solution says, shape ``(n, classes)``.

    Args:
        matrix: What :func:`solve` returned.
        rows: Array of shape ``(n, features)``.
        mean: As for :func:`solve`.
        scale: As for :func:`solve`.
    """
    kernel = matrix[:, :-1] / scale
    return rows @ kernel.T.astype(np.float32) + (matrix[:, -1] - kernel @ mean)


def _chunks(
    rows: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, taken: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for begin in range(0, len(taken), _CHUNK):
        some = taken[begin : begin + _CHUNK]
        weight = np.ones(len(some)) if weights is None else weights[some]
        yield np.asarray(rows[some], np.float32), targets[some], weight


def _loss(values: np.ndarray, goal: np.ndarray, weight: np.ndarray, multilabel: bool) -> tuple[float, np.ndarray]:
    """Returns the sum of the losses and the derivative by the logits."""
    if multilabel:
        loss = (np.logaddexp(0, values) - goal * values).sum(axis=1)
        slope = 1 / (1 + np.exp(-values)) - goal
    else:
        shifted = values - values.max(axis=1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = (goal * (total - shifted)).sum(axis=1)
        slope = np.exp(shifted - total) - goal
    return float((loss * weight).sum()), slope * weight[:, None]
