"""Two classifiers on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation import calibration
from resfit.evaluation.figures import mean_over_known
from resfit.evaluation.intervals import RESAMPLES, Figure, bootstrap, group_numbers, interval
from resfit.evaluation.ranking import Ranking


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """How much better the first classifier is than the second.

    Attributes:
        first: By name, figures of the first: ``accuracy``, ``auroc_macro``, ``log_loss`` and ``brier``.
        second: The same of the second.
        differences: First minus second, with 95 % intervals over resamples that are the same for both.
        only_first: Images that the first alone has right.
        only_second: Images that the second alone has right.
        p_value: Of McNemar's exact test, two-sided: how likely so uneven a split would be if both were as good. It
            takes the images as independent, which images of one group are not.
        n: Number of images.
        units: Images or groups that were resampled.
    """

    first: dict[str, float]
    second: dict[str, float]
    differences: dict[str, Figure]
    only_first: int
    only_second: int
    p_value: float
    n: int
    units: int

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "differences": {name: figure.to_dict() for name, figure in self.differences.items()}}


def compare(
    truth: Any,
    first: Any,
    second: Any,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares two classifiers of the same classes on the same images.

    Args:
        truth: ``n`` integers, or an array ``(n, classes)`` of 0 and 1 where an image may have several labels; an image
            is then right where all its labels are.
        first: Probabilities ``(n, classes)`` of one classifier.
        second: Probabilities of the other.
        groups: For each image the group it belongs to, or ``None``; resamples keep a group together.
        resamples: How many.
        seed: Of the resamples.

    Raises:
        ArgumentError: The arrays do not fit together.

    Example:
        >>> compare([0, 1, 1], [[1, 0], [0, 1], [0, 1]], [[1, 0], [1, 0], [1, 0]]).only_first
        2
    """
    from scipy.stats import binomtest

    labels = np.asarray(truth)
    tables = [np.asarray(table, np.float64) for table in (first, second)]
    if not len(labels) or any(table.ndim != 2 or table.shape != (len(labels), tables[0].shape[1]) for table in tables):
        raise ArgumentError(
            "truth must have n >= 1 entries and both probabilities shape (n, classes). "
            f"Received: {labels.shape}, {tables[0].shape} and {tables[1].shape}."
        )
    multilabel = labels.ndim == 2
    known = labels.astype(bool) if multilabel else labels[:, None] == np.arange(tables[0].shape[1])
    right = [((table > 0.5) == known).all(axis=1) if multilabel else table.argmax(axis=1) == labels for table in tables]
    numbers = group_numbers(groups, len(labels))
    statistics = {
        str(i): _statistic(labels, known, table, hits)
        for i, (table, hits) in enumerate(zip(tables, right, strict=True))
    }
    once = np.ones((len(labels), 1), np.float32)
    names = ("exact_match_accuracy" if multilabel else "accuracy", "log_loss", "brier", "auroc_macro")
    values = [dict(zip(names, statistics[key](once)[:, 0].tolist(), strict=True)) for key in ("0", "1")]
    drawn = bootstrap(statistics, numbers, resamples=resamples, seed=seed)
    one, two = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return Comparison(
        first=values[0],
        second=values[1],
        differences={
            name: interval(values[0][name] - values[1][name], drawn["0"][i] - drawn["1"][i])
            for i, name in enumerate(names)
        },
        only_first=one,
        only_second=two,
        p_value=float(binomtest(one, one + two).pvalue) if one + two else 1.0,
        n=len(labels),
        units=int(numbers.max()) + 1,
    )


def _statistic(
    labels: np.ndarray, known: np.ndarray, table: np.ndarray, right: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    lost = calibration.losses(labels, table)
    columns = np.stack([right, lost["log_loss"], lost["brier"]], axis=1).astype(np.float32)
    rankings = [Ranking(known[:, i], table[:, i]) for i in range(table.shape[1]) if 0 < known[:, i].sum() < len(known)]

    def measure(weights: np.ndarray) -> np.ndarray:
        means = (columns.T @ weights) / weights.sum(axis=0)
        areas = np.full(weights.shape[1], np.nan)
        if rankings:
            areas = mean_over_known(np.stack([ranking.measure(weights)[0] for ranking in rankings]))
        return np.concatenate([means, areas[None]])

    return measure
