"""Regression, as the command line and the other tasks know it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.artifact import ArtifactKind
from resfit.tasks.base import Recognition, Strength, Task, register_task

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel


@register_task
class Regression(Task):
    """One number or several an image."""

    name = "regression"
    kind = ArtifactKind("regressor")
    fitted = "Regressor"
    reads_lazily = True

    def recognises(self, source: Any, options: Mapping[str, Any]) -> Recognition:
        """Says that it is asked for by name: numbers may be classes, which a table does not state.

        A table whose numbers read like a quantity is refused as classes, with this task named.
        """
        return Recognition(Strength.NONE)

    def fit(self, source: Any, **options: Any) -> FittedModel:
        """Fits a :class:`resfit.tasks.regression.regressor.Regressor`."""
        from resfit.tasks.regression.fit import fit

        return fit(source, **options)

    def plan(self, source: Any, **options: Any) -> Any:
        """Says what a fit would do, as :func:`resfit.tasks.regression.fit.plan` does."""
        from resfit.tasks.regression.fit import plan

        return plan(source, **options)

    def load(self, folder: Path) -> FittedModel:
        """Reads a regressor."""
        from resfit.tasks.regression.regressor import Regressor

        return Regressor.load(folder)

    def check(self, source: Any, **options: Any) -> Any:
        """Looks for duplicates, leaks, odd images, shortcuts and numbers that are worth a look."""
        from resfit.tasks.regression.checks import check

        return check(source, **options)
