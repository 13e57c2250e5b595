"""Detection, as the other tasks and the command line know it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.data.annotations.tabular import states_boxes
from resfit.data.boxes import BoxSet, find_box_formats, format_title
from resfit.errors import ArgumentError, DataError
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
    reads_lazily = True

    def recognises(self, source: Any, options: Mapping[str, Any]) -> Recognition:
        """Says whether there are annotations with boxes."""
        if isinstance(source, BoxSet):
            return Recognition(Strength.CERTAIN, "the source is a set of boxes")
        columns = getattr(source, "columns", None)
        if columns is not None:
            known = {str(name).strip().lower() for name in columns}
            if any(wanted <= known for wanted in _COLUMNS) or states_boxes([str(name) for name in columns]):
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

        return fit(source, **own_options(options))

    def plan(self, source: Any, **options: Any) -> Any:
        """Says what a fit would do, as :func:`resfit.tasks.detection.fit.plan` does."""
        from resfit.tasks.detection.fit import plan

        return plan(source, **own_options(options))

    def load(self, folder: Path) -> FittedModel:
        """Reads a detector."""
        from resfit.tasks.detection.detector import Detector

        return Detector.load(folder)

    def check(self, source: Any, **options: Any) -> Any:
        """Looks for what is wrong with a data set, as :func:`resfit.tasks.detection.checks.check` does."""
        from resfit.tasks.detection.checks import check

        return check(source, **own_options(options))


# Options of every task by the names that they have here, and roles of columns.
_RENAMED = {"image_root": "images"}
_ROLES = {"path_column": "path", "label_column": "label", "split_column": "split", "group_column": "group"}
_STRATEGIES = {"probe": "head", "finetune": "last"}
# Options of other tasks, and what leaves everything as it is.
_FOREIGN: dict[str, tuple[Any, ...]] = {
    "trainable_from": (None,),
    "lr_find": (False,),
    "label_separator": (None,),
    "multilabel": (None, False),
    "label_from": (None,),
    "train": (None,),
    "val": (None,),
    "test": (None,),
    "reading": (None,),
    "head": ("linear", None),
    "teacher": (None,),
    "balance": (False,),
    "label_smoothing": (None,),
    "focal": (0.0,),
    "references": (None,),
    "precision": ("float32",),
    "tensorboard": (True, False),
    "label_method": ("ridge",),
}


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of every task as those of detection.

    Args:
        options: Keywords of a fit or check.

    Raises:
        ArgumentError: One is another task's and would change something there.
    """
    found: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for name, value in options.items():
        if name in _ROLES:
            if value is not None:
                columns[_ROLES[name]] = value
        elif name == "head" and isinstance(value, Mapping):
            found[name] = value
        elif name in _FOREIGN:
            if value not in _FOREIGN[name]:
                raise ArgumentError(
                    f"{name} is no option of detection. Received: {value!r}. Splits are read from the data's folders "
                    "and files; help(resfit.tasks.detection.fit.fit) lists what a fit takes."
                )
        elif name == "strategy":
            found[name] = _STRATEGIES.get(value, value)
        elif value is not None or name not in _RENAMED:
            found[_RENAMED.get(name, name)] = value
    return {**found, "columns": {**columns, **(found.get("columns") or {})}} if columns else found
