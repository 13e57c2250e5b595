"""Detection, as the other tasks and the command line know it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.data.boxes import BoxSet, find_box_formats, format_title
from resfit.errors import DataError
from resfit.tasks.base import Recognition, Strength, Task, register_task
from resfit.tasks.detection.saving import DETECTOR

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel

_COLUMNS = ({"xmin", "ymin", "xmax", "ymax"}, {"x1", "y1", "x2", "y2"})


@register_task
class Detection(Task):
    """Boxes around objects, each of one class."""

    name = "detection"
    kind = DETECTOR
    fitted = "Detector"

    def recognises(self, source: Any, options: Mapping[str, Any]) -> Recognition:
        """Says whether there are annotations with boxes."""
        if isinstance(source, BoxSet):
            return Recognition(Strength.CERTAIN, "the source is a set of boxes")
        columns = getattr(source, "columns", None)
        if columns is not None:
            known = {str(name).strip().lower() for name in columns}
            if any(wanted <= known for wanted in _COLUMNS):
                return Recognition(Strength.CERTAIN, "the table has columns of boxes")
            return Recognition(Strength.NONE)
        if not isinstance(source, str | os.PathLike):
            return Recognition(Strength.NONE)
        try:
            found = find_box_formats(source)
        except (DataError, OSError):
            return Recognition(Strength.NONE)
        if not found:
            return Recognition(Strength.NONE)
        return Recognition(Strength.CERTAIN, f"the data has boxes: {format_title(found[0])}")

    def fit(self, source: Any, **options: Any) -> FittedModel:
        """Fits a :class:`resfit.Detector`, as :func:`resfit.tasks.detection.fit.fit` does."""
        from resfit.tasks.detection.fit import fit

        return fit(source, **options)

    def plan(self, source: Any, **options: Any) -> Any:
        """Says what a fit would do, as :func:`resfit.tasks.detection.fit.plan` does."""
        from resfit.tasks.detection.fit import plan

        return plan(source, **options)

    def load(self, folder: Path) -> FittedModel:
        """Reads a detector."""
        from resfit.tasks.detection.detector import Detector

        return Detector.load(folder)

    def check(self, source: Any, **options: Any) -> Any:
        """Looks for what is wrong with a data set, as :func:`resfit.tasks.detection.checks.check` does."""
        from resfit.tasks.detection.checks import check

        return check(source, **options)
