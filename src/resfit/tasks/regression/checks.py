"""What is wrong with images whose labels are numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from resfit.data import dataset
from resfit.data.inputs import takes_numbers
from resfit.features import extract as feature_store
from resfit.quality import checking
from resfit.tasks import backbone
from resfit.tasks.base import TextTable
from resfit.tasks.regression.ridge import fit_ridge

_OPTIONS = ("engine", "cache", "batch_size", "progress")
# deviations from what other images let expect, in robust standard deviations, from which a number is worth a look
_FAR = 4.0
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class DoubtfulNumber:
    """An image whose number is far from what a model that has not seen it expects.

    Attributes:
        position: In ``checks.images``.
        name: Of the number.
        value: As stated.
        expected: As predicted.
        deviations: How far apart they are, in robust standard deviations of all such differences.
    """

    position: int
    name: str
    value: float
    expected: float
    deviations: float


@dataclasses.dataclass(frozen=True, eq=False)
class NumberChecks:
    """What was found.

    Attributes:
        checks: Duplicates, leaks, odd images and shortcuts; classes are ranges of the first number.
        doubtful: Numbers that are worth a look, the most doubtful first.
    """

    checks: checking.Checks
    doubtful: tuple[DoubtfulNumber, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the source."""
        return self.checks.notes

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        found = self.checks.to_dict(most=None)
        del found["label_errors"]
        return {
            **found,
            "numbers": [
                {**dataclasses.asdict(item), "path": self.checks.name(item.position)} for item in self.doubtful
            ],
        }

    def tables(self) -> list[TextTable]:
        """Returns it for people."""
        findings = self.checks.findings() + (
            [f"{len(self.doubtful)} numbers that are worth a look"] if self.doubtful else []
        )
        count = len(self.checks.images)
        tables = [
            TextTable(f"{count} images with numbers", ("found",), [(text,) for text in findings or ["nothing wrong"]])
        ]
        if self.doubtful:
            rows = [
                (self.checks.name(item.position), item.name, f"{item.value:.6g}", f"{item.expected:.6g}")
                for item in self.doubtful[:_SHOWN]
            ]
            more = f" (and {len(self.doubtful) - _SHOWN} more: --json)" if len(self.doubtful) > _SHOWN else ""
            tables.append(TextTable(f"numbers worth a look{more}", ("path", "number", ">stated", ">expected"), rows))
        return tables


@takes_numbers
def check(source: Any, *, model: Any = backbone.DEFAULT_MODEL, seed: int = 0, **options: Any) -> NumberChecks:
    """Looks for duplicates, leaks, odd images, shortcuts, and numbers that other images speak against.

    A number is worth a look where ridge regression on the other images expects another, farther away than four robust
    standard deviations of all such differences.

    Args:
        source: As :func:`resfit.tasks.regression.fit.fit` takes it.
        model: The network whose features are used.
        seed: Of the folds.
        **options: Of :func:`resfit.features.extract.extract` and :func:`resfit.data.dataset.scan`.
    """
    running = {name: options.pop(name) for name in _OPTIONS if name in options}
    images = dataset.scan(source, numbers=True, **options)
    body, _ = backbone.body_of(model)
    found = feature_store.extract(body, images, records=True, **running)
    kept, rows = images.subset(found.indices), np.asarray(found.rows)
    assert kept.values is not None
    values = kept.values
    same = checking.duplicates(found.digests, found.records, rows)
    checks = checking.examine(
        kept, rows[:, :0], found.records, same, seed=seed, skipped=(*images.skipped, *found.skipped)
    )
    differ = tuple((a, b) for a, b, _ in same.pairs() if not np.array_equal(values[a], values[b], equal_nan=True))
    not_run = {name: reason for name, reason in checks.not_run.items() if name != "label_errors"}
    checks = dataclasses.replace(checks, ignored=images.ignored_counts(), conflicts=differ, not_run=not_run)
    return NumberChecks(checks, tuple(_doubtful(kept, rows, values, seed)))


def _doubtful(images: dataset.ImageSet, rows: np.ndarray, values: np.ndarray, seed: int) -> list[DoubtfulNumber]:
    known = np.flatnonzero(np.isfinite(values).all(axis=1))
    expected = fit_ridge(
        rows[known], values[known], groups=[images.groups[position] for position in known], seed=seed
    ).held_out
    if not len(expected):
        return []
    away = values[known] - expected
    spread = 1.4826 * np.median(np.abs(away - np.median(away, axis=0)), axis=0)
    deviations = np.abs(away) / np.maximum(spread, 1e-12)
    found = [
        DoubtfulNumber(int(known[row]), images.value_names[column], *map(float, numbers))
        for row, column in np.argwhere(deviations > _FAR)
        for numbers in [(values[known[row], column], expected[row, column], deviations[row, column])]
    ]
    return sorted(found, key=lambda item: -item.deviations)
