"""Classification, as the other tasks and the command line know it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact
from resfit.data.inputs import takes_arrays
from resfit.tasks.base import Recognition, Strength, Task, register_task

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel

_CHECK_OPTIONS = ("model", "label_method", "seed", "engine", "cache", "batch_size", "progress")


@register_task
class Classification(Task):
    """One class an image, or several labels."""

    name = "classification"
    kind = artifact.CLASSIFIER
    fitted = "Classifier"
    reads_lazily = True

    def recognises(self, source: Any, options: Mapping[str, Any]) -> Recognition:
        """Says that it may be data of this task, which nothing but the labels states."""
        return Recognition(Strength.POSSIBLE, "the labels are read as classes")

    def fit(self, source: Any, **options: Any) -> FittedModel:
        """Fits a :class:`resfit.Classifier`, as :func:`resfit.tasks.classification.fit.fit` does."""
        from resfit.tasks.classification.fit import fit

        return fit(source, **options)

    def plan(self, source: Any, **options: Any) -> Any:
        """Says what a fit would do, as :func:`resfit.tasks.classification.fit.plan` does."""
        from resfit.tasks.classification.fit import plan

        return plan(source, **options)

    def load(self, folder: Path) -> FittedModel:
        """Reads a classifier."""
        from resfit.tasks.classification.classifier import Classifier

        return Classifier.load(folder)

    @takes_arrays
    def check(self, source: Any, **options: Any) -> Any:
        """Looks for duplicates, leaks, wrong labels, odd images and shortcuts, as :class:`resfit.quality.Checks`."""
        from resfit import zoo
        from resfit.data.dataset import scan
        from resfit.quality import checking

        running = {name: options.pop(name) for name in _CHECK_OPTIONS if name in options}
        method = running.pop("label_method", "ridge")
        checking.check_label_method(method)
        images = scan(source, **options)
        body = zoo.load(running.pop("model", "resnet10_tiny"), include_top=False, pooling="avg")
        return checking.check(body, images, label_method=method, **running)
