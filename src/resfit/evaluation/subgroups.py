"""Figures by what a table says of each image: a site, a sex, a scanner."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.data.image_set import read_column
from resfit.evaluation.figures import Figures, figures
from resfit.evaluation.judged import Judged
from resfit.evaluation.resampling import RESAMPLES

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
    judged: Judged,
    source: str | os.PathLike[str],
    column: str,
    *,
    path_column: str = "path",
    specificity: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Measures the images of each value of a column.

    Args:
        judged: The images.
        source: The CSV file that they come from.
        column: Its column.
        path_column: Its column with the path.
        specificity: As :func:`resfit.evaluation.figures.figures` takes it.
        resamples: As there.
        seed: As there.

    Raises:
        DataError: The source is no CSV file, or has no such column.
    """
    values = read_column(source, column, path_column=path_column)
    own = [values.get(os.path.normpath(path), "") for path in judged.images.paths]
    return tuple(
        _subgroup(judged, name, np.flatnonzero([value == name for value in own]), specificity, resamples, seed)
        for name in sorted(set(own))
    )


def _subgroup(judged: Judged, name: str, rows: np.ndarray, specificity: float, resamples: int, seed: int) -> Subgroup:
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
