"""The fit report of a classifier: its recipe, what fine-tuning brought, the table of test images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from resfit.data import csv_cells
from resfit.data.medical import privacy
from resfit.tasks.classification import finetuning
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.finetuning import FitResult
from resfit.tasks.classification.results import FitRecipe


def recipe_of(data: TrainingData, kept: FitResult, **asked: Any) -> FitRecipe:
    """Returns how a classifier was made.

    Args:
        data: What it has learned from.
        kept: What it has learned.
        **asked: What was asked for: the fields ``model``, ``seed``, ``test_share``, ``asked``, ``head`` and
            ``precision``.
    """
    return FitRecipe(
        strategy=kept.strategy,
        C=getattr(kept.head, "C", 0.0),
        folds=getattr(kept.head, "folds", 0),
        grouped=any(group is not None for group in data.images.groups),
        features=kept.network.layers[-1].name,
        tuning=None if kept.tuned is None else kept.tuned.tuning.to_dict(),
        separator=data.separator,
        **asked,
    )


def cross_validation(kept: FitResult) -> list[dict[str, Any]]:
    """Returns what the head's regularisation was chosen by, JSON-ready.

    Args:
        kept: What was learned.
    """
    return [dataclasses.asdict(score) for score in getattr(kept.head, "cv_scores", ())]


def verdict(tuned: finetuning.FineTuned, strategy: str) -> str:
    """Returns what fine-tuning has brought, as a sentence.

    Args:
        tuned: The fine-tuning.
        strategy: The one that was asked for.
    """
    first = tuned.learned.history[0].get("val_accuracy", 0.0)
    what = "share of right labels in validation" if tuned.head.activation == "sigmoid" else "validation accuracy"
    text = f"{what} {first:.1%} before, {tuned.learned.score or 0.0:.1%} after"
    if tuned.learned.ending == "diverged":
        text += "; the loss became NaN, a lower learning rate may help"
    if tuned.learned.epoch == 0:
        return f"{text}: {'the probe is kept' if strategy == 'auto' else 'no epoch was better than the probe'}"
    return f"{text}: epoch {tuned.learned.epoch} of {tuned.learned.history[-1]['epoch']} is kept"


def test_table(data: TrainingData, probabilities: np.ndarray) -> bytes:
    """Returns what was said about the test images as CSV.

    Where an image may have several labels, ``label`` and ``predicted`` have all of them with the separator between,
    ``probability`` those of the predicted ones, and a further column for each label has its probability.

    Args:
        data: The images.
        probabilities: Array ``(test images, classes)``.
    """
    images, rows = data.images, []
    for position, row in zip(data.parts.test, probabilities, strict=True):
        chosen = np.flatnonzero(row > 0.5) if data.multilabel else [int(row.argmax())]
        names = (data.separator or ";").join(data.classes[index] for index in chosen)
        shares = ";".join(f"{row[index]:.6f}" for index in chosen)
        every = [f"{share:.6f}" for share in row] if data.multilabel else []
        label = images.label_text(int(position))
        rows.append((privacy.shown(images, images.paths[position]), label, names, shares, *every))
    more = [f"probability of {name}" for name in data.classes] if data.multilabel else []
    return csv_cells.table(("path", "label", "predicted", "probability", *more), rows)
