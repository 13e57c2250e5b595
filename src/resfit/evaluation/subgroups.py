"""Figures by what a table says of each image: a site, a sex, a scanner."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.data.dataset import read_column
from resfit.evaluation.figures import Figures, figures
from resfit.evaluation.inference import LabelledPredictions
from resfit.evaluation.intervals import RESAMPLES

#: Images that a part must have for figures of its own.
LEAST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Subgroup:
    """The images of one value of a column.

    Attributes:
        value: The value; empty where the table has none.
        count: Number of images.
        figures: Their figures; ``None`` for fewer than ten images.
    """

    value: str
    count: int
    figures: Figures | None

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        found = None if self.figures is None else self.figures.to_dict()
        return {"value": self.value, "count": self.count, "figures": found}


def by_column(
    judged: LabelledPredictions,
    source: str | os.PathLike[str],
    column: str,
    *,
    scan_options: Mapping[str, Any] | None = None,
    specificity: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Measures the images of each value of a column.

    Args:
        judged: The images.
        source: Where they come from.
        column: A column of the CSV file that the source is; or ``sex`` or ``site``, which scans say themselves.
        scan_options: What :func:`resfit.data.dataset.scan` was told of the file, such as ``path_column``.
        specificity: As :func:`resfit.evaluation.figures.figures` takes it.
        resamples: As there.
        seed: As there.

    Raises:
        DataError: The scans do not say, and the source is no CSV file or has no such column.
    """
    own = judged.images.columns.get(column)  # of a table, or of what scans say of themselves
    if own is None:
        values = read_column(source, column, **(scan_options or {}))
        own = tuple(values.get(os.path.normpath(path), "") for path in judged.images.paths)
    return tuple(
        _subgroup(judged, name, np.flatnonzero([value == name for value in own]), specificity, resamples, seed)
        for name in sorted(set(own))
    )


def _subgroup(
    judged: LabelledPredictions, name: str, rows: np.ndarray, specificity: float, resamples: int, seed: int
) -> Subgroup:
    found = None
    if len(rows) >= LEAST:
        groups: Sequence[Any] | None = judged.groups
        found = figures(
            judged.truth[rows],
            judged.probabilities[rows],
            judged.classes,
            groups=None if groups is None else [groups[row] for row in rows],
            specificity=specificity,
            resamples=resamples,
            seed=seed,
        )
    return Subgroup(name, len(rows), found)
