"""A linear classifier on features: multinomial logistic regression, its strength chosen by cross-validation."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, DataError

#: Strengths that are tried, from the most to the least regularised: the C of scikit-learn.
GRID = tuple(float(c) for c in np.logspace(-4, 1, 11))
#: The strength where there is too little to choose on.
DEFAULT_C = 0.01

# images x features x classes up to which so many folds are affordable
_FIVE_FOLDS = 2e7
_THREE_FOLDS = 4e8
# values of the feature array up to which one thread is as fast
_ONE_THREAD = 10_000_000
_UNSEEN = -1e4  # logit of a class that has no example


@dataclasses.dataclass(frozen=True)
class CvScore:
    """How well one strength did on images left out.

    Attributes:
        C: Inverse of the regularisation's strength, as scikit-learn's.
        log_loss: Mean negative log-likelihood of the true class, in nats.
        accuracy: Share of images whose most probable class is the true one.
    """

    C: float
    log_loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A linear classifier as the weights of one dense layer, standardisation included.

    Attributes:
        kernel: Float32 array of shape ``(features, classes)``.
        bias: Float32 array of shape ``(classes,)``.
        C: The chosen inverse regularisation strength.
        cv_scores: What it was chosen on; empty where there was too little data to choose.
        folds: Number of folds; 1 is a single hold-out, 0 no choice.
    """

    kernel: np.ndarray
    bias: np.ndarray
    C: float
    cv_scores: tuple[CvScore, ...] = ()
    folds: int = 0

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns ``features @ kernel + bias``, shape ``(n, classes)``.

        Args:
            features: Array of shape ``(n, features)``.
        """
        return np.asarray(features, np.float32) @ self.kernel + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the softmax of :meth:`logits`, shape ``(n, classes)``, rows summing to 1."""
        return _softmax(self.logits(features))


def fit_linear(
    features: np.ndarray,
    labels: Any,
    *,
    classes: int | None = None,
    seed: int = 0,
    sample_groups: Sequence[Any] | None = None,
    grid: Sequence[float] = GRID,
) -> LinearHead:
    """Fits multinomial logistic regression on standardised features.

    The strength of the regularisation is the one with the best accuracy in stratified cross-validation, and with the
    smallest log-loss among those within half a standard error of it. The grid is walked from strong to weak and left
    once it has stopped getting better. Images of one group never stand on both sides of a fold. With more data there
    are fewer folds, down to a single hold-out of a fifth.

    Args:
        features: Float array of shape ``(n, features)``. Not changed.
        labels: ``n`` integers in ``0..classes-1``.
        classes: Number of classes; ``None`` is the largest label plus one. A class without an example gets
            probability 0.
        seed: Seed of the folds.
        sample_groups: For each image the group it belongs to (a patient, a scene), or ``None``. An image whose group is
            ``None`` is a group of its own.
        grid: Values of C to choose from, ascending.

    Returns:
        The head. Its ``probabilities`` are scikit-learn's to float32 accuracy.

    Raises:
        ArgumentError: The arrays do not fit together, or a label is out of range.
        DataError: There are fewer than two classes, or a feature is not finite.
    """
    rows = np.asarray(features, np.float32)
    targets = np.asarray(labels).astype(np.int64)
    if rows.ndim != 2 or len(rows) != len(targets):
        raise ArgumentError(
            f"features must have shape (n, features) and labels n entries. Received: {rows.shape}, {targets.shape}."
        )
    count = int(classes if classes is not None else targets.max(initial=-1) + 1)
    if len(targets) and (targets.min() < 0 or targets.max() >= count):
        raise ArgumentError(f"labels must lie in 0..{count - 1}. Received: {targets.min()}..{targets.max()}.")
    if len(np.unique(targets)) < 2:
        raise DataError(
            f"a classifier needs images of at least two classes. Received: {len(np.unique(targets))} with images."
        )
    if sample_groups is not None and len(sample_groups) != len(targets):
        raise ArgumentError(
            f"sample_groups must have one entry an image ({len(targets)}). Received: {len(sample_groups)}."
        )
    groups = _group_numbers(sample_groups)
    # float64 sums: a float32 mean over many rows loses digits that the folded bias needs
    mean = rows.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise DataError("features must be finite. The network gives infinite or undefined values on these images.")
    deviation = rows.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    standard = ((rows - mean.astype(np.float32)) / scale.astype(np.float32)).astype(np.float32)

    folds = _folds(standard, targets, groups, count, seed)
    scores = _sweep(standard, targets, folds, count, grid) if len(grid) > 1 else ()
    chosen = _choose(scores, len(targets)) if scores else _default(grid)
    estimator = _estimator(chosen, tolerance=1e-5)
    with _blas_threads(standard.size):
        estimator.fit(standard, targets)
    weights, intercept = _expanded(estimator, count)
    kernel = weights.T / scale[:, None]
    mean32 = mean.astype(np.float32).astype(np.float64)  # what was subtracted
    bias = intercept - mean32 @ kernel
    return LinearHead(
        kernel=kernel.astype(np.float32),
        bias=bias.astype(np.float32),
        C=chosen,
        cv_scores=tuple(scores),
        folds=len(folds) if scores else 0,
    )


def _blas_threads(size: int, *, side_by_side: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Keeps small products, and fits that run side by side, to one thread each.

    The threads of a product wait for each other by spinning, which on a busy machine takes a hundred times as long.
    """
    from threadpoolctl import threadpool_limits

    single = side_by_side or size < _ONE_THREAD
    return threadpool_limits(1, user_api="blas") if single else contextlib.nullcontext()


def _default(grid: Sequence[float]) -> float:
    return float(min(grid, key=lambda c: abs(np.log(c / DEFAULT_C))))


def _estimator(c: float, tolerance: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, solver="lbfgs", max_iter=1000, tol=tolerance, warm_start=True)


def _sweep(
    standard: np.ndarray,
    targets: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    count: int,
    grid: Sequence[float],
) -> tuple[CvScore, ...]:
    """Scores each C over the folds, from strong to weak regularisation, each from the solution before."""
    from sklearn.exceptions import ConvergenceWarning

    if not folds:
        return ()
    estimators = [_estimator(grid[0], tolerance=1e-4) for _ in folds]
    splits = [(standard[train], targets[train], standard[test], targets[test]) for train, test in folds]
    total = sum(len(test) for _, test in folds)

    def score(estimator: Any, split: tuple[np.ndarray, ...], c: float) -> tuple[float, int]:
        train_x, train_y, test_x, test_y = split
        estimator.set_params(C=c).fit(train_x, train_y)
        weights, intercept = _expanded(estimator, count)
        probabilities = _softmax(test_x @ weights.T + intercept)
        likelihood = probabilities[np.arange(len(test_y)), test_y]
        loss = -float(np.log(np.clip(likelihood, 1e-12, 1)).sum())
        return loss, int((probabilities.argmax(axis=1) == test_y).sum())

    scores: list[CvScore] = []
    workers = min(len(folds), os.cpu_count() or 1)
    with (
        _blas_threads(standard.size, side_by_side=workers > 1),
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in grid:
            results = list(pool.map(score, estimators, splits, [c] * len(folds)))
            loss, hits = sum(loss for loss, _ in results), sum(hits for _, hits in results)
            scores.append(CvScore(float(c), loss / total, hits / total))
            if _is_past_the_best(scores):
                break
    return tuple(scores)


def _is_past_the_best(scores: Sequence[CvScore]) -> bool:
    last = scores[-1]
    return last.log_loss > 1.02 * min(s.log_loss for s in scores) and last.accuracy < max(s.accuracy for s in scores)


def _choose(scores: Sequence[CvScore], n: int) -> float:
    """Returns the C of the best accuracy; among those too close to tell apart, that of the smallest log-loss."""
    best = max(score.accuracy for score in scores)
    close = best - 0.5 * np.sqrt(best * (1 - best) / n)
    return min((s for s in scores if s.accuracy >= close), key=lambda score: score.log_loss).C


def _expanded(estimator: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns one row of weights and one bias for each class, whatever classes the estimator has seen."""
    coefficients, intercepts = np.asarray(estimator.coef_, np.float64), np.asarray(estimator.intercept_, np.float64)
    if len(estimator.classes_) == 2 and len(coefficients) == 1:  # sigmoid(z) is softmax(-z/2, z/2)
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weights = np.zeros((count, coefficients.shape[1]))
    bias = np.full(count, _UNSEEN)
    weights[estimator.classes_], bias[estimator.classes_] = coefficients, intercepts
    return weights, bias


def _folds(
    standard: np.ndarray, targets: np.ndarray, groups: np.ndarray | None, count: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns pairs of training and test positions, every training side with at least two classes."""
    work = float(standard.size) * count
    wanted = 5 if work <= _FIVE_FOLDS else 3 if work <= _THREE_FOLDS else 1
    sizes = np.bincount(targets, minlength=count)
    units = len(np.unique(groups)) if groups is not None else int(sizes.max())
    splits = min(5 if wanted == 1 else wanted, units, int(sizes.max()))
    if splits < 2:
        return []
    pairs = [
        (train, test)
        for train, test in _splitter(splits, targets, groups, seed)
        if len(test) and len(np.unique(targets[train])) >= 2
    ]
    return pairs[:1] if wanted == 1 else pairs


def _splitter(
    splits: int, targets: np.ndarray, groups: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    with warnings.catch_warnings():
        # a class with fewer images than folds is missing from some: `_expanded` knows how to do without
        warnings.simplefilter("ignore", UserWarning)
        if groups is not None:
            folds = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
            yield from folds.split(targets, targets, groups)
        else:
            yield from StratifiedKFold(splits, shuffle=True, random_state=seed).split(targets, targets)


def _group_numbers(groups: Sequence[Any] | None) -> np.ndarray | None:
    if groups is None or all(group is None for group in groups):
        return None
    numbers: dict[Any, int] = {}
    return np.asarray(
        [numbers.setdefault(("alone", i) if g is None else ("group", g), len(numbers)) for i, g in enumerate(groups)]
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
