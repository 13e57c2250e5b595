"""How well scores rank: areas under curves on many resamples at once, thresholds, DeLong's interval."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import LEVEL, RESAMPLES, Figure, bootstrap, group_numbers, mean_of, share_interval

_SLACK = 1e-9
_EXACT = 10_000_000  # counts that float32 adds up exactly


class Ranking:
    """Scores of positives and negatives, arranged so that a resample costs one sparse product.

    Only the distinct scores of positives matter as thresholds; negatives are counted at and between them.

    Args:
        positive: Booleans ``(n,)``.
        scores: Numbers ``(n,)``; higher is more positive.
        owners: For each score the image whose weight it has; ``None`` where they are the images, in order.
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray, owners: np.ndarray | None = None):
        from scipy import sparse

        known, values = np.asarray(positive, bool), -np.asarray(scores, np.float64)
        columns = np.arange(len(known)) if owners is None else np.asarray(owners)
        descending, own = np.unique(values[known], return_inverse=True)
        self.thresholds = -descending
        count = len(descending)
        others = values[~known]
        left, right = (np.searchsorted(descending, others, side) for side in ("left", "right"))
        cells = np.empty(len(known), np.int64)
        cells[known] = own
        cells[~known] = np.where(right > left, count + left, 2 * count + left)
        images = int(columns.max(initial=-1)) + 1
        ones = np.ones(len(known), np.float32)
        self._cells = sparse.csr_matrix((ones, (cells, columns)), shape=(3 * count + 1, images))

    def measure(self, weights: np.ndarray | None = None, specificity: float = 0.95) -> np.ndarray:
        """Returns AUROC, average precision, and the best sensitivity at a specificity, ``(3, resamples)``.

        Args:
            weights: Array ``(images, resamples)``; ``None`` counts every image once.
            specificity: Lowest specificity for the third figure.
        """
        true, false, own, level, negatives = self._curve(weights)
        if not len(true):
            return np.full((3, len(negatives)), np.nan)
        positives = true[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            lost = np.einsum("ij,ij->j", own, false) - 0.5 * np.einsum("ij,ij->j", own, level)
            area = 1 - lost / (positives * negatives)
            called = true + false
            np.divide(true, np.maximum(called, 1e-30, out=called), out=called)
            average = np.einsum("ij,ij->j", own, called) / positives
            reached = (false <= self._allowed(negatives, specificity)).sum(axis=0)
            best = np.where(reached > 0, true[reached - 1, np.arange(len(reached))], 0) / positives
        return np.stack([area, average, np.where(negatives > 0, best, np.nan)])

    def threshold(self, specificity: float) -> float:
        """Returns the lowest score that is called positive so that the specificity holds; infinite if none does."""
        _, false, _, _, negatives = self._curve(None)
        reached = int((false[:, 0] <= self._allowed(negatives, specificity)[0]).sum())
        return float(self.thresholds[reached - 1]) if reached else float("inf")

    @staticmethod
    def _allowed(negatives: np.ndarray, specificity: float) -> np.ndarray:
        return (1 - specificity) * negatives + _SLACK * (1 + negatives)

    def _curve(self, weights: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Returns what is called positive down to each threshold, rightly and wrongly, and what stands at it."""
        count = len(self.thresholds)
        if weights is None:
            weights = np.ones((self._cells.shape[1], 1), np.float64)
        elif self._cells.nnz > _EXACT:
            weights = weights.astype(np.float64)
        cells = self._cells @ weights[: self._cells.shape[1]]
        own, level, between = cells[:count], cells[count : 2 * count], cells[2 * count :]
        negatives = level.sum(axis=0) + between.sum(axis=0)
        true = own.cumsum(axis=0)
        false = level + between[:-1]
        return true, np.cumsum(false, axis=0, out=false), own, level, negatives


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it does.

    Attributes:
        threshold: Images with at least this score are called positive.
        sensitivity: Share of the positives that are.
        specificity: Share of the negatives that are not.
        rule: How it was chosen.
    """

    threshold: float
    sensitivity: Figure
    specificity: Figure
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "sensitivity": self.sensitivity.to_dict(),
            "specificity": self.specificity.to_dict(),
            "rule": self.rule,
        }


def at_threshold(
    truth: Any,
    scores: Any,
    threshold: float,
    *,
    groups: Any = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    rule: str = "given",
) -> OperatingPoint:
    """Measures a threshold that was chosen on other images.

    Args:
        truth: ``n`` values, 1 or True for a positive image.
        scores: ``n`` numbers; higher is more positive.
        threshold: From which score on an image is called positive.
        groups: For each image its group or ``None``; resamples keep a group together.
        resamples: How many.
        seed: Of the resamples.
        rule: How the threshold was chosen, for the reader.
    """
    known, values = _checked(truth, scores)
    numbers = group_numbers(groups, len(known))
    called = values >= threshold
    figures = []
    for members, right in ((known, called), (~known, ~called)):
        share = float(right[members].mean())
        both = mean_of(np.stack([members & right, members], axis=1))
        resampled = bootstrap({"both": both}, numbers, resamples=resamples, seed=seed)["both"]
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = resampled[0] / resampled[1]
        figures.append(share_interval(share, shares, len(np.unique(numbers[members]))))
    return OperatingPoint(float(threshold), figures[0], figures[1], rule)


def sensitivity_at_specificity(truth: Any, scores: Any, specificity: float = 0.95, **options: Any) -> OperatingPoint:
    """Returns the threshold of the highest sensitivity at a specificity, and what it does on these images.

    The intervals are those of the threshold as it stands. Where the threshold is to be used, choose it on validation
    images and measure it on test images with :func:`at_threshold`.

    Args:
        truth: As :func:`at_threshold` takes it.
        scores: As :func:`at_threshold` takes them.
        specificity: Lowest specificity, in [0, 1].
        **options: As :func:`at_threshold` takes them.

    Example:
        >>> sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], 0.9).sensitivity.value
        0.5
    """
    if not 0 <= specificity <= 1:
        raise ArgumentError(f"specificity must lie in [0, 1]. Received: {specificity}.")
    known, values = _checked(truth, scores)
    threshold = Ranking(known, values).threshold(specificity)
    return at_threshold(known, values, threshold, rule=f"specificity at least {specificity:g}", **options)


def operating_point(truth: Any, scores: Any, *, cost_ratio: float = 1.0, **options: Any) -> OperatingPoint:
    """Returns the threshold that costs least.

    Args:
        truth: As :func:`at_threshold` takes it.
        scores: As :func:`at_threshold` takes them.
        cost_ratio: What a missed positive costs, a false alarm being 1.
        **options: As :func:`at_threshold` takes them.

    Example:
        >>> operating_point([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], cost_ratio=5).threshold
        0.3
    """
    from sklearn.metrics import roc_curve

    if not 0 < cost_ratio < float("inf"):
        raise ArgumentError(f"cost_ratio must be positive. Received: {cost_ratio}.")
    known, values = _checked(truth, scores)
    false, true, thresholds = roc_curve(known, values, drop_intermediate=False)
    costs = cost_ratio * (1 - true) * known.sum() + false * (~known).sum()
    threshold = float(thresholds[int(np.argmin(costs))])
    rule = f"least cost, a missed positive counting {cost_ratio:g} false alarms"
    return at_threshold(known, values, threshold, rule=rule, **options)


def delong_interval(truth: Any, scores: Any) -> Figure:
    """Returns the AUROC with DeLong's interval.

    Args:
        truth: ``n`` values, 1 or True for a positive image.
        scores: ``n`` numbers; higher is more positive.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44; by midranks after Sun and Xu 2014, IEEE SPL 21.
    """
    from scipy.stats import norm

    known, values = _checked(truth, scores)
    (area,), variance = _delong(known, values[None])
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance[0, 0])
    return Figure(float(area), max(0.0, float(area - half)), min(1.0, float(area + half)), "DeLong")


def delong_test(truth: Any, first: Any, second: Any) -> tuple[Figure, float]:
    """Compares the AUROC of two scores on the same images.

    Args:
        truth: ``n`` values, 1 or True for a positive image.
        first: ``n`` scores of one classifier.
        second: ``n`` scores of the other.

    Returns:
        First minus second with its interval, and the two-sided p-value.
    """
    from scipy.stats import norm

    known, one = _checked(truth, first)
    _, two = _checked(truth, second)
    areas, variance = _delong(known, np.stack([one, two]))
    difference = float(areas[0] - areas[1])
    spread = float(np.sqrt(max(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1], 0.0)))
    half = float(norm.ppf((1 + LEVEL) / 2)) * spread
    p = 1.0 if difference == 0 else 2 * float(norm.sf(abs(difference) / spread)) if spread else 0.0
    return Figure(difference, difference - half, difference + half, "DeLong"), p


def _delong(known: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns areas ``(s,)`` and their covariance ``(s, s)`` of scores ``(s, n)``."""
    from scipy.stats import rankdata

    positives, negatives = scores[:, known], scores[:, ~known]
    m, n = positives.shape[1], negatives.shape[1]
    among_all = rankdata(np.concatenate([positives, negatives], axis=1), axis=1)
    above = (among_all[:, :m] - rankdata(positives, axis=1)) / n  # share of negatives below each positive
    below = 1 - (among_all[:, m:] - rankdata(negatives, axis=1)) / m
    areas = above.mean(axis=1)
    covariance = sum(
        (rows - rows.mean(axis=1, keepdims=True)) @ (rows - rows.mean(axis=1, keepdims=True)).T / (k - 1) / k
        if k > 1
        else np.zeros((len(scores), len(scores)))
        for rows, k in ((above, m), (below, n))
    )
    return areas, np.asarray(covariance)


def _checked(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    known, values = np.asarray(truth).astype(bool), np.asarray(scores, np.float64)
    if known.ndim != 1 or known.shape != values.shape or known.all() or not known.any():
        raise ArgumentError(
            "truth and scores must have shape (n,), with positives and negatives. "
            f"Received: {known.shape} and {values.shape}, {int(known.sum())} positive."
        )
    if not np.isfinite(values).all():
        raise ArgumentError("scores must be finite. Received: infinite or undefined ones.")
    return known, values
