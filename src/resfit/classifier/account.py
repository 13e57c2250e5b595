"""What a fit says of itself: recipe, figures, tables, versions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit import checking
from resfit.classifier.learning import Kept
from resfit.classifier.material import Material
from resfit.classifier.outcome import Recipe
from resfit.data import csv_cells, privacy, scans
from resfit.data.image_set import Skipped
from resfit.evaluation.labels import LabelEvaluation
from resfit.evaluation.metrics import Evaluation
from resfit.transfer import strategies


def recipe_of(data: Material, kept: Kept, **asked: Any) -> Recipe:
    """Returns how a classifier was made.

    Args:
        data: What it has learned from.
        kept: What it has learned.
        **asked: What was asked for: the fields ``model``, ``seed``, ``test_share``, ``asked``, ``head`` and
            ``precision``.
    """
    return Recipe(
        strategy=kept.strategy,
        C=getattr(kept.head, "C", 0.0),
        folds=getattr(kept.head, "folds", 0),
        grouped=any(group is not None for group in data.images.groups),
        features=kept.network.layers[-1].name,
        tuning=None if kept.tuned is None else kept.tuned.tuning.to_dict(),
        separator=data.separator,
        **asked,
    )


def metrics(
    data: Material,
    kept: Kept,
    found: int,
    skipped: Sequence[Skipped],
    tuned: strategies.Tuned | None,
    checked: checking.Checks | None,
    result: Evaluation | LabelEvaluation | None,
    left_out: int = 0,
) -> dict[str, Any]:
    """Returns the figures of a fit, JSON-ready.

    Args:
        data: What it has learned from.
        kept: What it has learned.
        found: Number of images that were looked at, with those that could not be used.
        skipped: These.
        tuned: The fine-tuning, kept or not, if there was one.
        checked: What is wrong with the images, if that was looked for.
        result: The measurement, if there were images for it.
        left_out: Number of images that there was no time for.
    """
    return {
        "images": {
            "found": found + left_out,
            "skipped": len(skipped),
            "train": len(kept.train),
            **({} if kept.held_out is None else {"val": len(kept.held_out)}),
            "test": len(data.parts.test),
            **({"left_out": left_out} if left_out else {}),
        },
        "cross_validation": [dataclasses.asdict(score) for score in getattr(kept.head, "cv_scores", ())],
        **({} if tuned is None else {"training": _training(tuned)}),
        **({} if checked is None else {"checks": checked.to_dict()}),
        "test": None if result is None else result.to_dict(),
        **({"notice": scans.NOTICE} if data.images.medical else {}),
    }


def _training(tuned: strategies.Tuned) -> dict[str, Any]:
    learned = tuned.learned
    return {
        "epoch": learned.epoch,
        "epochs": learned.history[-1]["epoch"],
        "steps": learned.steps,
        "ending": learned.ending,
        "val_accuracy": learned.accuracy,
        "val_loss": learned.loss,
        "val_accuracy_before": learned.history[0].get("val_accuracy"),
    }


def verdict(tuned: strategies.Tuned, strategy: str) -> str:
    """Returns what fine-tuning has brought, as a sentence.

    Args:
        tuned: The fine-tuning.
        strategy: The one that was asked for.
    """
    first = tuned.learned.history[0].get("val_accuracy", 0.0)
    text = f"validation accuracy {first:.1%} before, {tuned.learned.accuracy or 0.0:.1%} after"
    if tuned.learned.ending == "diverged":
        text += "; the loss was no number any more, a lower learning rate may help"
    if tuned.learned.epoch == 0:
        return f"{text}: {'the probe is kept' if strategy == 'auto' else 'no epoch was better than the probe'}"
    return f"{text}: epoch {tuned.learned.epoch} of {tuned.learned.history[-1]['epoch']} is kept"


def skipped_table(skipped: Sequence[Skipped]) -> bytes:
    """Returns the images that could not be used as CSV.

    Args:
        skipped: These.
    """
    return csv_cells.table(("path", "reason"), ((item.path, item.reason) for item in skipped))


def test_table(data: Material, probabilities: np.ndarray) -> bytes:
    """Returns what was said about the test images as CSV.

    Args:
        data: The images.
        probabilities: Array ``(test images, classes)``.
    """
    images, rows = data.images, []
    for position, row in zip(data.parts.test, probabilities, strict=True):
        best = int(row.argmax())
        label = images.classes[images.labels[position]]
        rows.append((privacy.shown(images, images.paths[position]), label, data.classes[best], f"{row[best]:.6f}"))
    return csv_cells.table(("path", "label", "predicted", "probability"), rows)


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that have a part in a classifier."""
    import importlib.metadata as metadata
    import platform

    import keras

    import resfit

    found = {"resfit": resfit.__version__, "python": platform.python_version(), "keras": keras.__version__}
    for package in (
        "tensorflow",
        "tensorflow-cpu",
        "numpy",
        "scikit-learn",
        "openvino",
        "pillow",
        "pydicom",
        "nibabel",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
