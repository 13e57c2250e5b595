"""Multinomial logistic regression as the weights of one dense layer, its strength chosen by cross-validation."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from resfit import processors
from resfit.data import stratification
from resfit.errors import ArgumentError, DataError
from resfit.numerics import activated, softmax
from resfit.tasks.classification.heads import solver

#: Strengths that are tried, from the most to the least regularised: the C of scikit-learn.
GRID = tuple(float(c) for c in np.logspace(-4, 1, 11))
#: The strength where there is too little to choose on.
DEFAULT_C = 0.01

# images x features x classes up to which so many folds are affordable
_FIVE_FOLDS = 2e7
_THREE_FOLDS = 4e8
# images for each feature under which their span is worth finding
_FEWER = 0.75
_UNSEEN = -1e4  # logit of a class that has no example
# bytes of the features up to which scikit-learn gets them as a standardised copy in memory
_IN_MEMORY = 1 << 30
# images that the strength is chosen on where there are more than fit in memory
_CHOOSING = 20_000


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


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """What was predicted for images by fits that had no part in them.

    Attributes:
        positions: Rows of the images.
        logits: float32 array ``(images, classes)``.
    """

    positions: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A linear classifier as the weights of one dense layer, standardisation included.

    Attributes:
        kernel: Float32 array of shape ``(features, classes)``.
        bias: Float32 array of shape ``(classes,)``.
        C: The chosen inverse regularisation strength.
        cv_scores: What it was chosen on; empty where there was too little data to choose.
        folds: Number of folds; 1 is a single hold-out, 0 no choice.
        activation: ``"softmax"``, or ``"sigmoid"`` where an image may have several labels.
        held_out: What cross-validation at that strength predicted; ``None`` where there was none.
    """

    kernel: np.ndarray
    bias: np.ndarray
    C: float
    cv_scores: tuple[CvScore, ...] = ()
    folds: int = 0
    activation: str = "softmax"
    held_out: HeldOut | None = None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns ``features @ kernel + bias``, shape ``(n, classes)``.

        Args:
            features: Array of shape ``(n, features)``.
        """
        return np.asarray(features, np.float32) @ self.kernel + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the softmax of :meth:`logits`, shape ``(n, classes)``, rows summing to 1, or their sigmoid."""
        return activated(self.logits(features), self.activation)

    def layers(self) -> list[Any]:
        """Returns the head as one Keras layer that gives logits; see
        :func:`resfit.tasks.classification.heads.base.attach`.
        """
        import keras

        dense = keras.layers.Dense(len(self.bias), dtype="float32", name="predictions")
        dense.build((None, len(self.kernel)))
        dense.set_weights([self.kernel, self.bias])
        return [dense]


def fit_linear(
    features: np.ndarray,
    labels: Any,
    *,
    classes: int | None = None,
    seed: int = 0,
    sample_groups: Sequence[Any] | None = None,
    grid: Sequence[float] = GRID,
    balance: bool = False,
    label_smoothing: float = 0.0,
) -> LinearHead:
    """Fits multinomial logistic regression on standardised features.

    The strength of the regularisation is the one with the best accuracy in stratified cross-validation, and with the
    smallest log-loss among those within half a standard error of it. The grid is walked from strong to weak and left
    once it has stopped getting better. Images of one group never stand on both sides of a fold. With more data there
    are fewer folds, down to a single hold-out of a fifth.

    Features of more than a gigabyte are read chunk by chunk, and the strength is chosen on 20,000 of the images; the
    optimum is the same. With several labels an image, each class is a binary regression of the same strength, chosen by
    log-loss.

    Args:
        features: Float array of shape ``(n, features)``. Not changed.
        labels: ``n`` integers in ``0..classes-1``; or an array ``(n, classes)`` of 0 and 1, where an image may have
            several labels.
        classes: Number of classes; ``None`` is the largest label plus one. A class without an example gets
            probability 0.
        seed: Seed of the folds.
        sample_groups: For each image the group it belongs to (a patient, a scene), or ``None``. An image whose group is
            ``None`` is a group of its own.
        grid: Values of C to choose from, ascending.
        balance: Whether each class counts the same in the loss, however many images it has.
        label_smoothing: Share of the target, in [0, 1), spread over all classes.

    Returns:
        The head. Its ``probabilities`` are scikit-learn's to float32 accuracy.

    Raises:
        ArgumentError: The arrays do not fit together, or a label is out of range.
        DataError: There are fewer than two classes, or a feature is not finite.
    """
    multilabel = np.ndim(labels) == 2
    if multilabel and balance:
        raise ArgumentError("balance is for one label an image. Received: several labels.")
    rows = features if isinstance(features, np.memmap) else np.asarray(features, np.float32)
    targets = np.asarray(labels).astype(np.int64)
    count = targets.shape[1] if multilabel else int(classes if classes is not None else targets.max(initial=-1) + 1)
    _check(rows, targets, count, multilabel, sample_groups)
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(f"label_smoothing must lie in [0, 1). Received: {label_smoothing!r}.")
    groups = group_numbers(sample_groups)
    # float64 sums: a float32 mean over many rows loses digits that the folded bias needs
    mean, deviation = solver.moments(rows)
    if not np.isfinite(mean).all():
        raise DataError("features must be finite. The network gives infinite or undefined values on these images.")
    scale = scale_of(deviation)
    mean = mean.astype(np.float32).astype(np.float64)  # what is subtracted
    if multilabel or label_smoothing or rows.size * 4 > _IN_MEMORY:
        own = _Own(rows, targets, count, multilabel, mean, scale, balance, label_smoothing)
        return _fit_own(own, groups, grid, seed)

    standard = ((rows - mean.astype(np.float32)) / scale.astype(np.float32)).astype(np.float32)
    basis = None
    if len(standard) < _FEWER * standard.shape[1]:
        # the weights lie in the span of the rows, and the penalty does not change when axes are turned
        basis = _span(standard)
        standard = (standard @ basis).astype(np.float32)
    folds = _folds(standard, targets, groups, count, seed)
    walkers = [_estimator(grid[0], tolerance=1e-4, balance=balance) for _ in folds]
    scores = _sweep(standard, targets, folds, count, grid, walkers)[0] if len(grid) > 1 else ()
    chosen = _choose(scores, len(targets)) if scores else _default(grid)
    spared = None
    if scores:
        again = (_strength_of_all(chosen, folds, len(targets)),)
        spared = _held_out(folds, _sweep(standard, targets, folds, count, again, walkers)[1])
    estimator = _estimator(chosen, tolerance=1e-5, balance=balance)
    with processors.blas_threads(standard.size):
        estimator.fit(standard, targets)
    weights, intercept = _expanded(estimator, count)
    if basis is not None:
        weights = weights @ basis.T
    head = _folded(weights, intercept, mean, scale, chosen, scores, len(folds) if scores else 0)
    return dataclasses.replace(head, held_out=spared)


def _span(rows: np.ndarray) -> np.ndarray:
    """Returns orthonormal directions ``(features, at most n)`` that the rows lie in.

    By way of the rows' products with each other, which are fewer than the features. Directions that hold less than a
    hundred-thousandth of the largest extent are left out: no penalised weight lies along them.
    """
    wide = rows.astype(np.float64)
    with processors.blas_threads(rows.size):
        extents, turned = np.linalg.eigh(wide @ wide.T)
        kept = extents > 1e-10 * extents[-1]
        kept[-1] = True  # even of rows that are all zero
        return wide.T @ (turned[:, kept] / np.sqrt(np.maximum(extents[kept], np.finfo(float).tiny)))


def _check(
    rows: np.ndarray, targets: np.ndarray, count: int, multilabel: bool, sample_groups: Sequence[Any] | None
) -> None:
    if rows.ndim != 2 or len(rows) != len(targets):
        raise ArgumentError(
            f"features must have shape (n, features) and labels n entries. Received: {rows.shape}, {targets.shape}."
        )
    if multilabel:
        if not np.isin(targets, (0, 1)).all():
            raise ArgumentError("labels of shape (n, classes) must be 0 or 1. Received other numbers.")
        if not len(rows) or (targets.min(axis=0) == targets.max(axis=0)).all():
            raise DataError("a classifier needs images with and without a label. Received: every label all or none.")
    else:
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


def _folded(
    weights: np.ndarray,
    intercept: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    chosen: float,
    scores: Sequence[CvScore],
    folds: int,
    activation: str = "softmax",
) -> LinearHead:
    """Returns the head whose kernel holds the standardisation."""
    kernel = weights.T / scale[:, None]
    bias = intercept - mean @ kernel
    return LinearHead(
        kernel=kernel.astype(np.float32),
        bias=bias.astype(np.float32),
        C=chosen,
        cv_scores=tuple(scores),
        folds=folds,
        activation=activation,
    )


def _held_out(
    folds: Sequence[tuple[np.ndarray, np.ndarray]], logits: Sequence[np.ndarray], some: np.ndarray | None = None
) -> HeldOut | None:
    if not logits:
        return None
    rows = np.concatenate([test for _, test in folds])
    return HeldOut(rows if some is None else some[rows], np.concatenate(logits).astype(np.float32))


def _strength_of_all(c: float, folds: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> float:
    """Returns the strength that weighs against the fewer images of a fold as ``c`` does against all of them.

    With ``c`` itself the logits of the folds would be smaller than those of the head, and so would a temperature be.
    """
    return float(c * count / np.mean([len(train) for train, _ in folds]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Own:
    """A regression that scikit-learn does not have, or not on data of this size."""

    rows: np.ndarray
    labels: np.ndarray
    classes: int
    multilabel: bool
    mean: np.ndarray
    scale: np.ndarray
    balance: bool
    smoothing: float

    def targets(self) -> np.ndarray:
        if self.multilabel:
            return (self.labels * (1 - self.smoothing) + self.smoothing / 2).astype(np.float32)
        seen = np.unique(self.labels)
        goal = np.eye(self.classes, dtype=np.float32)[self.labels] * (1 - self.smoothing)
        goal[:, seen] += self.smoothing / len(seen)
        return goal

    def weights(self) -> np.ndarray | None:
        """Returns what each image counts; balanced, the classes sum up to the same, and all to n."""
        if not self.balance or self.multilabel:
            return None
        counts = np.bincount(self.labels, minlength=self.classes)
        return (len(self.labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[self.labels]

    def solve(self, c: float, indices: np.ndarray | None, start: np.ndarray | None, tolerance: float) -> np.ndarray:
        return solver.solve(
            self.rows,
            self.targets(),
            c,
            mean=self.mean,
            scale=self.scale,
            weights=self.weights(),
            multilabel=self.multilabel,
            indices=indices,
            start=start,
            tolerance=tolerance,
        )

    def score(self, matrix: np.ndarray, indices: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Returns the sum of the losses, the number of images (of labels, with several) that are right, and logits."""
        values = solver.logits(matrix, np.asarray(self.rows[indices], np.float32), self.mean, self.scale)
        truth = self.labels[indices]
        if self.multilabel:
            loss = np.logaddexp(0, values) - truth * values
            return float(loss.sum()), float(((values > 0) == truth).mean(axis=1).sum()), values
        if matrix.shape[0] > 1:
            values[:, ~np.isin(np.arange(self.classes), self.labels)] = _UNSEEN
        own = np.clip(softmax(values, axis=1)[np.arange(len(truth)), truth], 1e-12, 1)
        return -float(np.log(own).sum()), float((values.argmax(axis=1) == truth).sum()), values


def _fit_own(own: _Own, groups: np.ndarray | None, grid: Sequence[float], seed: int) -> LinearHead:
    """Chooses the strength on folds of some of the images, and solves for all."""
    count = len(own.labels)
    some = np.arange(count)
    if count > _CHOOSING:
        some = np.sort(np.random.default_rng(seed).permutation(count)[:_CHOOSING])
    strata = own.labels[some]
    inner = None if groups is None else groups[some]
    shape_only = np.broadcast_to(np.float32(0), (len(some), own.rows.shape[1]))
    folds = _folds(shape_only, strata, inner, own.classes, seed) if len(grid) > 1 else []
    scores: list[CvScore] = []
    states: list[np.ndarray | None] = [None] * len(folds)
    total = sum(len(test) for _, test in folds)
    for c in grid if folds else ():
        loss = hits = 0.0
        for number, (train, test) in enumerate(folds):
            state = own.solve(c, some[train], states[number], 1e-4)
            states[number] = state
            more, right, _ = own.score(state, some[test])
            loss, hits = loss + more, hits + right
        scores.append(CvScore(float(c), loss / total, hits / total))
        if _is_past_the_best(scores):
            break
    if not scores:
        chosen = _default(grid)
    elif own.multilabel:
        chosen = min(scores, key=lambda score: score.log_loss).C
    else:
        chosen = _choose(scores, count)
    matrix = own.solve(chosen, None, None, 1e-5)
    bias = matrix[:, -1].copy()
    if not own.multilabel:
        bias[~np.isin(np.arange(own.classes), own.labels)] = _UNSEEN
    activation = "sigmoid" if own.multilabel else "softmax"
    head = _folded(matrix[:, :-1], bias, own.mean, own.scale, chosen, scores, len(folds) if scores else 0, activation)
    if not scores:
        return head
    again = _strength_of_all(chosen, folds, len(some))
    logits = [
        own.score(own.solve(again, some[train], state, 1e-4), some[test])[2]
        for (train, test), state in zip(folds, states, strict=True)
    ]
    return dataclasses.replace(head, held_out=_held_out(folds, logits, some))


def fit_sums(
    total: Callable[[np.ndarray], tuple[float, np.ndarray]],
    some: np.ndarray,
    labels: np.ndarray,
    *,
    counts: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    sample_groups: Sequence[Any] | None = None,
    rows: int,
    multilabel: bool = False,
    seed: int = 0,
    strength: float | None = None,
) -> LinearHead:
    """Fits multinomial logistic regression on rows that others hold; the strength is chosen on a sample of them.

    With several labels an image, each class is a binary regression of the same strength, as in :func:`fit_linear`.

    Args:
        total: As :func:`resfit.tasks.classification.heads.solver.minimise` takes it, of rows that were standardised
            with :func:`scale_of` of the deviation.
        some: Rows of the sample, float array ``(n, features)``.
        labels: Their classes, as :func:`fit_linear` takes them.
        counts: Rows of each class, of all.
        mean: Of each feature, over all rows.
        deviation: Standard deviation of each feature, over all rows.
        sample_groups: As :func:`fit_linear` takes it, of the sample.
        rows: Number of all rows.
        multilabel: Whether an image may have several labels.
        seed: Of the folds.
        strength: C; ``None`` chooses it.

    Raises:
        DataError: There are rows of fewer than two classes, or a feature is not finite.
    """
    if (counts > 0).sum() < 2 and not multilabel:
        raise DataError(f"a classifier needs images of at least two classes. Received: {(counts > 0).sum()}.")
    if not np.isfinite(mean).all():
        raise DataError("features must be finite. Received: infinite or undefined ones.")
    grid = GRID if strength is None else (strength,)
    chosen = fit_linear(some, labels, classes=len(counts), seed=seed, sample_groups=sample_groups, grid=grid)
    matrix = solver.minimise(total, (len(counts), len(mean)), chosen.C, rows, multilabel=multilabel)
    bias = matrix[:, -1] if multilabel else np.where(counts > 0, matrix[:, -1], _UNSEEN)
    known = (mean, scale_of(deviation), chosen.C, chosen.cv_scores, chosen.folds, chosen.activation)
    return dataclasses.replace(_folded(matrix[:, :-1], bias, *known), held_out=chosen.held_out)


def scale_of(deviation: np.ndarray) -> np.ndarray:
    """Returns what features are divided by: 1 for those that are the same everywhere.

    Args:
        deviation: Standard deviation of each feature.
    """
    return np.where(deviation > 1e-12, deviation, 1.0)


def _default(grid: Sequence[float]) -> float:
    return float(min(grid, key=lambda c: abs(np.log(c / DEFAULT_C))))


def _estimator(c: float, tolerance: float, balance: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression

    weight = "balanced" if balance else None
    return LogisticRegression(C=c, solver="lbfgs", max_iter=1000, tol=tolerance, warm_start=True, class_weight=weight)


def _sweep(
    standard: np.ndarray,
    targets: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    count: int,
    grid: Sequence[float],
    estimators: Sequence[Any],
) -> tuple[tuple[CvScore, ...], list[np.ndarray]]:
    """Scores each C over the folds, from strong to weak regularisation, each from the solution before.

    The estimators, one for each fold, go on from where they are. Returns the scores, and for each fold the logits under
    the last C.
    """
    from sklearn.exceptions import ConvergenceWarning

    if not folds:
        return (), []
    splits = [(standard[train], targets[train], standard[test], targets[test]) for train, test in folds]
    total = sum(len(test) for _, test in folds)

    def score(estimator: Any, split: tuple[np.ndarray, ...], c: float) -> tuple[float, int, np.ndarray]:
        train_x, train_y, test_x, test_y = split
        estimator.set_params(C=c).fit(train_x, train_y)
        weights, intercept = _expanded(estimator, count)
        values = test_x @ weights.T + intercept
        probabilities = softmax(values, axis=1)
        likelihood = probabilities[np.arange(len(test_y)), test_y]
        loss = -float(np.log(np.clip(likelihood, 1e-12, 1)).sum())
        return loss, int((probabilities.argmax(axis=1) == test_y).sum()), values

    scores: list[CvScore] = []
    logits: list[np.ndarray] = []
    workers = min(len(folds), processors.available())
    with (
        processors.blas_threads(standard.size, side_by_side=workers > 1),
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in grid:
            results = list(pool.map(score, estimators, splits, [c] * len(folds)))
            loss, hits = sum(loss for loss, *_ in results), sum(hits for _, hits, _ in results)
            scores.append(CvScore(float(c), loss / total, hits / total))
            logits = [values for *_, values in results]
            if _is_past_the_best(scores):
                break
    return tuple(scores), logits


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
    splits = most_folds(5 if wanted == 1 else wanted, targets, groups)
    if splits < 2:
        return []
    pairs = [
        (train, test)
        for train, test in stratified(splits, targets, groups, seed)
        if len(test) and tells_apart(targets[train])
    ]
    return pairs[:1] if wanted == 1 else pairs


def most_folds(wanted: int, targets: np.ndarray, groups: np.ndarray | None) -> int:
    """Returns how many folds there can be: no more than groups, and than images of the most frequent class or label.

    Args:
        wanted: How many there are to be.
        targets: As :func:`stratified` takes them.
        groups: As :func:`group_numbers` returns them.
    """
    if targets.ndim == 2:
        largest = int(targets.sum(axis=0).max(initial=0))
    else:
        largest = int(np.bincount(targets).max(initial=0))
    return min(wanted, largest, len(targets) if groups is None else len(np.unique(groups)))


def tells_apart(targets: np.ndarray) -> bool:
    """Says whether images differ in their class or in any label.

    Args:
        targets: As :func:`stratified` takes them.
    """
    if targets.ndim == 2:
        return bool(len(targets)) and bool((targets != targets[0]).any())
    return len(np.unique(targets)) >= 2


def stratified(
    splits: int, targets: np.ndarray, groups: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the positions of each fold's two sides, the classes in proportion and the groups whole.

    Args:
        splits: Number of folds.
        targets: ``n`` integers; or an array ``(n, labels)`` of 0 and 1, of which each label is kept in proportion.
        groups: As :func:`group_numbers` returns them.
        seed: Of the folds.
    """
    if targets.ndim == 2:
        yield from stratification.folds(targets, splits, seed, groups=groups)
        return
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    with warnings.catch_warnings():
        # a class with fewer images than folds is missing from some: `_expanded` knows how to do without
        warnings.simplefilter("ignore", UserWarning)
        if groups is not None:
            folds = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
            yield from folds.split(targets, targets, groups)
        else:
            yield from StratifiedKFold(splits, shuffle=True, random_state=seed).split(targets, targets)


def group_numbers(groups: Sequence[Any] | None) -> np.ndarray | None:
    """Returns a number for each image's group, or ``None`` if there are none; ``None`` is a group of its own."""
    if groups is None or all(group is None for group in groups):
        return None
    numbers: dict[Any, int] = {}
    return np.asarray(
        [numbers.setdefault(("alone", i) if g is None else ("group", g), len(numbers)) for i, g in enumerate(groups)]
    )
