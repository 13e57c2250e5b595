"""The fit report: recipe, figures, tables, versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.data import csv_cells
from resfit.data.dataset import Skipped
from resfit.data.medical import privacy, scans
from resfit.evaluation.labels import LabelEvaluation
from resfit.evaluation.metrics import Evaluation
from resfit.quality import checking
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


def metrics(
    data: TrainingData,
    kept: FitResult,
    found: int,
    skipped: Sequence[Skipped],
    tuned: finetuning.FineTuned | None,
    checked: checking.Checks | None,
    result: Evaluation | LabelEvaluation | None,
    left_out: int = 0,
    ignored: Mapping[str, int] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the figures of a fit, JSON-ready.

    Args:
        data: What it has learned from.
        kept: What it has learned.
        found: Number of images that were looked at, with those that could not be used; found files are these, those
            that there was no time for and those that a rule left out.
        skipped: These.
        tuned: The fine-tuning, kept or not, if there was one.
        checked: What is wrong with the images, if that was looked for.
        result: The measurement, if there were images for it.
        left_out: Number of images that there was no time for.
        ignored: Number of files that each rule left out.
        plan: What was asked for, and what the clock decided.
    """
    parts = {
        "train": len(kept.train),
        **({} if kept.held_out is None else {"val": len(kept.held_out)}),
        "test": len(data.parts.test),
    }
    beyond = len(data.images) - sum(parts.values())
    rules = dict(ignored or {})
    return {
        "images": {
            "found": found + left_out + sum(rules.values()),
            "skipped": len(skipped),
            **parts,
            **({"left_out": left_out + beyond} if left_out + beyond else {}),
            "ignored": sum(rules.values()),
        },
        **({"ignored": rules} if rules else {}),
        "cross_validation": [dataclasses.asdict(score) for score in getattr(kept.head, "cv_scores", ())],
        **({} if tuned is None else {"training": _training(tuned)}),
        **({} if checked is None else {"checks": checked.to_dict()}),
        **({} if plan is None else {"plan": dict(plan)}),
        "test": None if result is None else result.to_dict(),
        **({"notice": scans.NOTICE} if data.images.medical else {}),
    }


def _training(tuned: finetuning.FineTuned) -> dict[str, Any]:
    learned = tuned.learned
    return {
        "epoch": learned.epoch,
        "epochs": learned.history[-1]["epoch"],
        "steps": learned.steps,
        "ending": learned.ending,
        "val_accuracy": learned.score,
        "val_loss": learned.loss,
        "val_accuracy_before": learned.history[0].get("val_accuracy"),
    }


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
