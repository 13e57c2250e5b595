"""Prediction sets that hold the true class as often as was asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, closest
from resfit.evaluation.intervals import Figure

#: How a set is made: the classes above one probability (``lac``), or the likeliest classes until they sum up (``aps``).
METHODS = ("lac", "aps")
_KNOTS = 512
_ROUNDING = 1e-6  # float32 sums of probabilities differ by so much


@dataclasses.dataclass(frozen=True)
class Conformal:
    """Scores of held-out images, from which a set of any coverage can be made.

    Attributes:
        count: Number of images.
        ranks: Which order statistics are kept, 1..count, ascending.
        scores: By method, the scores at these ranks.
    """

    count: int
    ranks: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]

    def quantile(self, coverage: float, method: str = "lac") -> float:
        """Returns the largest score that a class of a set may have.

        Args:
            coverage: How often the true class is to be in the set, in (0, 1).
            method: One of :data:`METHODS`.

        Returns:
            The ``ceil((n + 1) coverage)``-th smallest score or the next kept one; infinite where there are too few
            images for this coverage, so that every class is in the set.
        """
        check(coverage, method)
        wanted = math.ceil((self.count + 1) * coverage - 1e-9)
        position = int(np.searchsorted(self.ranks, wanted))
        return self.scores[method][position] if position < len(self.ranks) else float("inf")

    def sets(self, probabilities: np.ndarray, coverage: float, method: str = "lac") -> np.ndarray:
        """Returns which classes are in each image's set, booleans ``(n, classes)``.

        The most probable class always is. Over images drawn like the held-out ones, the true class is in the set at
        least as often as asked, on average.

        Args:
            probabilities: Array ``(n, classes)``, of the classifier that the scores are of.
            coverage: As :meth:`quantile` takes it.
            method: As :meth:`quantile` takes it.
        """
        shares = np.asarray(probabilities, np.float64)
        chosen = _SCORES[method](shares) <= self.quantile(coverage, method) + _ROUNDING
        chosen[np.arange(len(shares)), shares.argmax(axis=1)] = True
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        scores = {name: [float(f"{value:.7g}") for value in values] for name, values in self.scores.items()}
        return {"count": self.count, "ranks": list(self.ranks), "scores": scores}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Conformal:
        """Restores what :meth:`to_dict` returned."""
        scores = {name: tuple(float(value) for value in fields["scores"][name]) for name in METHODS}
        return cls(int(fields["count"]), tuple(int(rank) for rank in fields["ranks"]), scores)


def fit_conformal(probabilities: np.ndarray, truth: np.ndarray) -> Conformal:
    """Returns the scores of held-out images.

    Args:
        probabilities: Array ``(n, classes)`` of images that the classifier has not learned from.
        truth: ``n`` integers.

    Source:
        LAC: Sadinle, Lei and Wasserman 2019, JASA 114. APS, with one half for its random part: Romano, Sesia and
        Candès 2020,
        arXiv:2006.02544.
    """
    shares = np.asarray(probabilities, np.float64)
    count = len(shares)
    ranks = np.unique(np.ceil(np.linspace(1, count, min(count, _KNOTS))).astype(int)) if count else np.zeros(0, int)
    scores = {}
    for method, score in _SCORES.items():
        own = np.sort(score(shares)[np.arange(count), truth])
        scores[method] = tuple(own[ranks - 1].tolist())
    return Conformal(count, tuple(ranks.tolist()), scores)


def measure_sets(sets: np.ndarray, truth: np.ndarray, **options: Any) -> dict[str, Figure]:
    """Returns how often the true class was in the sets, their mean size, and the share of sets with one class.

    Args:
        sets: Booleans ``(n, classes)``.
        truth: ``n`` integers.
        **options: ``groups``, ``resamples`` and ``seed`` of the intervals.
    """
    from resfit.evaluation.intervals import bootstrap, group_numbers, interval, mean_of, share_interval

    numbers = group_numbers(options.pop("groups", None), len(sets))
    sizes = sets.sum(axis=1)
    columns = np.stack([sets[np.arange(len(sets)), truth], sizes, sizes == 1], axis=1)
    drawn = bootstrap({"means": mean_of(columns)}, numbers, **options)["means"]
    units = int(numbers.max()) + 1
    covered, size, single = (float(value) for value in columns.mean(axis=0))
    return {
        "coverage": share_interval(covered, drawn[0], units),
        "size": interval(size, drawn[1]),
        "single": share_interval(single, drawn[2], units),
    }


def check(coverage: float, method: str) -> None:
    """Makes sure that a set can be asked for.

    Raises:
        ArgumentError: ``coverage`` is not in (0, 1), or the method is unknown.
    """
    if not 0 < coverage < 1:
        raise ArgumentError(f"coverage must lie in (0, 1). Received: {coverage}.")
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {METHODS}. Received: {method!r}.{closest(method, METHODS)}")


def _lac(shares: np.ndarray) -> np.ndarray:
    return 1 - shares


def _aps(shares: np.ndarray) -> np.ndarray:
    order = np.argsort(-shares, axis=1, kind="stable")
    ordered = np.take_along_axis(shares, order, axis=1)
    # with all of its own share the least likely class would score 1 in every image, and ties make sets too large
    sums = ordered.cumsum(axis=1) - ordered / 2
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, axis=1)
    return scores


_SCORES = {"lac": _lac, "aps": _aps}
