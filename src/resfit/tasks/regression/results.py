"""What a regressor says, and how good it is, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.dataset import Skipped
from resfit.errors import ArgumentError
from resfit.evaluation.intervals import RESAMPLES
from resfit.evaluation.regression import NumberScore
from resfit.tasks.base import Picture, Plot, TextTable

_MOST_SCORES = 1000


@dataclasses.dataclass(frozen=True)
class NumberPrediction:
    """What a regressor says about one image.

    Attributes:
        path: The file; ``None`` for an array.
        values: The predicted numbers by name; empty if the image could not be used.
        intervals: For each number low and high end of the interval that holds the true one as often as ``coverage``
            says; empty without one.
        coverage: Share of images, in (0, 1), whose intervals hold the true number; ``None`` without intervals.
        error: Why the image could not be used; empty if it could.
    """

    path: Path | None
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    coverage: float | None = None
    error: str = ""

    @property
    def value(self) -> float:
        """The number, where there is only one.

        Raises:
            ArgumentError: There are several, or the image could not be used.
        """
        if len(self.values) != 1:
            raise ArgumentError(f"value is for one number. Received: {self.error or ', '.join(self.values)}.")
        return next(iter(self.values.values()))

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        return {
            "path": str(self.path),
            "values": self.values,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "coverage": self.coverage,
            "error": self.error or None,
        }


@dataclasses.dataclass(frozen=True)
class ResidualIntervals:
    """Intervals around predictions, from the errors on images that were not learned from (split conformal prediction).

    Of ``n`` such errors, the one of rank ``ceil((n + 1) * coverage)`` is the half width. The coverage holds on average
    over images like these.

    Attributes:
        count: Number of images.
        ranks: Ranks of the errors that are kept, ascending from 1 to ``count``.
        errors: For each number the absolute errors of these ranks, ascending.
        source: Where the errors come from: ``"cross-validation"`` or ``"validation"``.

    Source:
        Vovk, Gammerman and Shafer 2005; Lei et al. 2018, J. Am. Stat. Assoc. 113.
    """

    count: int
    ranks: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]
    source: str

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray, source: str) -> ResidualIntervals:
        """Returns the intervals that errors give.

        Args:
            truth: Array ``(n, numbers)``.
            predicted: Array of the same shape.
            source: As the attribute.
        """
        away = np.sort(np.abs(np.asarray(predicted, np.float64) - truth), axis=0)
        count = len(away)
        ranks = np.unique(np.linspace(1, count, min(count, _MOST_SCORES)).round().astype(int)) if count else np.zeros(0)
        kept = away[ranks.astype(int) - 1]
        return cls(count, tuple(ranks.astype(int).tolist()), tuple(map(tuple, kept.T.tolist())), source)

    def half_widths(self, coverage: float) -> tuple[float, ...]:
        """Returns half the width of the interval of each number.

        Args:
            coverage: Share of images, in (0, 1).

        Raises:
            ArgumentError: It is out of range, or there are too few images for it.
        """
        if not 0 < coverage < 1:
            raise ArgumentError(f"coverage must lie in (0, 1). Received: {coverage!r}.")
        rank = math.ceil((self.count + 1) * coverage - 1e-9)
        if rank > self.count:
            raise ArgumentError(
                f"intervals of coverage {coverage:g} need at least {math.ceil(coverage / (1 - coverage) - 1e-9)} "
                f"images that were not learned from. Received: {self.count}. Pass a lower coverage, or coverage=None "
                "for none."
            )
        place = next(index for index, known in enumerate(self.ranks) if known >= rank)
        return tuple(errors[place] for errors in self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class RegressionEvaluation:
    """How good a regressor is on a set of images.

    Attributes:
        scores: One for each number.
        n: Number of images.
        truth: The true numbers, float64 ``(n, numbers)``.
        predicted: The predicted ones.
        paths: The images.
        coverage: That the intervals were to have; ``None`` without intervals.
        grouped: Whether groups of images were resampled.
        skipped: Images that could not be used, with the reason.
        notes: What was assumed of the source.
    """

    scores: tuple[NumberScore, ...]
    n: int
    truth: np.ndarray
    predicted: np.ndarray
    paths: Sequence[Path]
    coverage: float | None = None
    grouped: bool = False
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def r2(self) -> float:
        """R2, the mean over the numbers."""
        return float(np.mean([score.r2.value for score in self.scores]))

    @property
    def mae(self) -> float:
        """Mean absolute error of the first number, in its unit."""
        return self.scores[0].mae.value

    @property
    def rmse(self) -> float:
        """Root of the mean square error of the first number, in its unit."""
        return self.scores[0].rmse.value

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values."""
        return {"n": self.n, "coverage": self.coverage, "numbers": [score.to_dict() for score in self.scores]}

    def tables(self) -> list[TextTable]:
        """Returns the figures for people."""
        sets = self.coverage is not None
        more = (f">in its {self.coverage:.0%} interval", ">width") if sets else ()
        rows = [
            (
                score.name,
                *(_shown(getattr(score, name)) for name in ("mae", "rmse", "r2")),
                *((f"{score.coverage:.1%}", f"{score.width:.4g}") if score.coverage is not None and sets else ()),
            )
            for score in self.scores
        ]
        drawn = "groups" if self.grouped else "images"
        title = f"{self.n} images; with 95 % intervals ({RESAMPLES} resamples of {drawn})"
        return [TextTable(title, ("number", ">MAE", ">RMSE", ">R2", *more), rows)]

    def plots(self) -> list[Plot]:
        """Returns predicted over true numbers, and errors over predictions."""
        found = []
        for column, score in enumerate(self.scores):
            truth, predicted = self.truth[:, column], self.predicted[:, column]
            found.append(
                Plot(score.name, f"true {score.name}", f"predicted {score.name}", truth, predicted, diagonal=True)
            )
            found.append(
                Plot(
                    f"errors of {score.name}",
                    f"predicted {score.name}",
                    "predicted - true",
                    predicted,
                    predicted - truth,
                )
            )
        return found

    def pictures(self) -> list[Picture]:
        """Returns the images with the largest errors of the first number."""
        from resfit.data.thumbnails import thumbnails

        away = np.abs(self.predicted[:, 0] - self.truth[:, 0])
        worst = np.argsort(-away, kind="stable")[:12].tolist()
        name = self.scores[0].name
        found = []
        for position, data in zip(worst, thumbnails([self.paths[place] for place in worst]), strict=True):
            if data:
                said = f"{name} {self.predicted[position, 0]:.4g}, truly {self.truth[position, 0]:.4g}"
                found.append(Picture(data, said, "largest errors"))
        return found


def _shown(figure: Any) -> str:
    if not np.isfinite(figure.value):
        return "undefined"
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"
