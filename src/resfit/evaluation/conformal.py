"""Prediction sets that hold the true class as often as was asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, closest
from resfit.evaluation.intervals import Figure

#: How a set is made: ``lac`` (least ambiguous set-valued classifier) takes the classes above one probability, ``aps``
#: (adaptive prediction sets) the likeliest classes until their probabilities sum up. Papers: :func:`fit_conformal`.
METHODS = ("lac", "aps")
_KNOTS, _KNOTS_OF_A_CLASS = 512, 64
_ROUNDING = 1e-6  # float32 sums of probabilities differ by so much


@dataclasses.dataclass(frozen=True)
class Conformal:
    """Scores of held-out images, from which a set of any coverage can be made.

    Attributes:
        count: Number of images.
        ranks: Which order statistics are kept, 1..count, ascending.
        scores: By method, the scores at these ranks.
        by_class: For each class the same of its own images, for class-conditional sets; empty in classifiers of
            earlier versions.
    """

    count: int
    ranks: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    by_class: tuple[Conformal, ...] = ()

    @property
    def highest_coverage(self) -> float:
        """The highest coverage that so many images can give; above it, every class is in every set."""
        return self.count / (self.count + 1)

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

    def limit(self, coverage: float, *, class_conditional: bool = False, classes: Sequence[str] = ()) -> str:
        """Returns why a coverage cannot be had from so many images, or ``""``.

        Args:
            coverage: As :meth:`quantile` takes it.
            class_conditional: As :meth:`sets` takes it.
            classes: Names of the classes, for class-conditional sets.
        """
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        if not class_conditional:
            if self.count >= needed:
                return ""
            return (
                f"a coverage of {coverage:g} needs at least {needed} calibration images, and there are {self.count}: "
                f"every class is in every prediction set. The highest coverage to ask for is "
                f"{math.floor(1000 * self.highest_coverage) / 1000:g}."
            )
        few = [name for name, own in zip(classes, self.by_class, strict=True) if own.count < needed]
        if not few:
            return ""
        shown = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
        return (
            f"a coverage of {coverage:g} within each class needs at least {needed} calibration images of it, and "
            f"{len(few)} of {len(classes)} classes have fewer ({shown}): these are in every prediction set."
        )

    def sets(
        self, probabilities: np.ndarray, coverage: float, method: str = "lac", *, class_conditional: bool = False
    ) -> np.ndarray:
        """Returns which classes are in each image's set, booleans ``(n, classes)``.

        The most probable class always is. Over images drawn like the held-out ones, the true class is in the set at
        least as often as asked, on average.

        Args:
            probabilities: Array ``(n, classes)``, of the classifier that the scores are of.
            coverage: As :meth:`quantile` takes it.
            method: As :meth:`quantile` takes it.
            class_conditional: Whether the coverage is to hold within each class: each has a quantile of its own.

        Raises:
            ArgumentError: Sets by class are asked for, and the scores were not kept by class.

        Source:
            Class-conditional sets: Vovk 2012, Mondrian conformal prediction, arXiv:1209.2673.
        """
        shares = np.asarray(probabilities, np.float64)
        limits: Any = self.quantile(coverage, method)
        if class_conditional:
            if len(self.by_class) != shares.shape[1]:
                raise ArgumentError(
                    "class-conditional prediction sets need calibration scores of each class, which classifiers of "
                    "earlier versions do not have. Fit the classifier again."
                )
            limits = np.array([own.quantile(coverage, method) for own in self.by_class])
        chosen = _SCORES[method](shares) <= limits + _ROUNDING
        chosen[np.arange(len(shares)), shares.argmax(axis=1)] = True
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        scores = {name: [float(f"{value:.7g}") for value in values] for name, values in self.scores.items()}
        by_class = [own.to_dict() for own in self.by_class]
        return {"count": self.count, "ranks": list(self.ranks), "scores": scores} | (
            {"by_class": by_class} if by_class else {}
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Conformal:
        """Restores what :meth:`to_dict` returned."""
        scores = {name: tuple(float(value) for value in fields["scores"][name]) for name in METHODS}
        by_class = tuple(cls.from_dict(own) for own in fields.get("by_class", ()))
        return cls(int(fields["count"]), tuple(int(rank) for rank in fields["ranks"]), scores, by_class)


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
    shares, truth = np.asarray(probabilities, np.float64), np.asarray(truth)
    own = {method: score(shares)[np.arange(len(shares)), truth] for method, score in _SCORES.items()}
    by_class = (
        _order_statistics({method: values[truth == label] for method, values in own.items()}, _KNOTS_OF_A_CLASS)
        for label in range(shares.shape[1])
    )
    return dataclasses.replace(_order_statistics(own, _KNOTS), by_class=tuple(by_class))


def _order_statistics(scores: Mapping[str, np.ndarray], knots: int) -> Conformal:
    """Keeps at most so many of the sorted scores, evenly spread over their ranks."""
    count = len(next(iter(scores.values())))
    ranks = np.unique(np.ceil(np.linspace(1, count, min(count, knots))).astype(int)) if count else np.zeros(0, int)
    return Conformal(
        count,
        tuple(ranks.tolist()),
        {method: tuple(np.sort(values)[ranks - 1].tolist()) for method, values in scores.items()},
    )


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
