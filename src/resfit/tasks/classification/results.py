"""What a fit and a prediction come to, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class FitRecipe:
    """How a classifier was made: what is needed to make it again.

    Attributes:
        model: Name or source of the network.
        strategy: What was kept: ``"probe"`` (a head on the frozen network), ``"finetune"`` or ``"full"``.
        seed: Seed of the split, of the folds, and of all that is random in training.
        test_share: Share of the images that was set aside for the final measurement, where the data had no test split.
        C: Inverse regularisation strength of the head.
        folds: Cross-validation folds that chose it; 1 is a hold-out, 0 no choice.
        grouped: Whether images of one group were kept together.
        asked: The strategy that was asked for.
        features: Name of the layer whose output the head reads; empty for the input of the last layer.
        tuning: Settings of the fine-tuning; ``None`` for a probe.
        head: Kind of the head, one of :data:`resfit.tasks.classification.heads.base.HEADS`.
        separator: What stands between the labels of an image that may have several; empty for one label an image.
        precision: Of the arithmetic of the features that a probe has learned from; the classifier computes in float32.
    """

    model: str
    strategy: str
    seed: int
    test_share: float
    C: float
    folds: int
    grouped: bool
    asked: str = ""
    features: str = ""
    tuning: dict[str, Any] | None = None
    head: str = "linear"
    separator: str = ""
    precision: str = "float32"

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.separator)

    @property
    def regularisation(self) -> str:
        """C of the head and how it was chosen, in words; empty where there was nothing to choose.

        A fine-tuning trains the head on, so that C is only what it began with, and a head that it began with may have
        had a fixed one.
        """
        if self.head != "linear" or self.C <= 0 or (self.strategy != "probe" and self.folds == 0):
            return ""
        how = {0: "the default: too few images to choose", 1: "chosen on a hold-out"}.get(
            self.folds, f"chosen by {self.folds}-fold cross-validation"
        )
        began = "" if self.strategy == "probe" else " of the head that the training began with"
        return f"C = {self.C:.3g}{began} ({how})"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        path: The file; ``None`` for an array.
        label: The most probable class. Where an image may have several labels, all that are decided on, those of a
            probability over one half, with the classifier's separator between them, and empty for none. ``None`` if the
            image could not be used.
        probability: Of the class, 0..1. Where an image may have several labels, of the least certain of ``labels``, and
            without any one minus the largest.
        probabilities: The most probable classes with their probabilities, best first; at least all of ``labels``.
        labels: The labels decided on, the most probable first; with one class an image this alone.
        error: Why the image could not be used; empty if it could.
        prediction_set: With ``coverage=``, the classes of which one is the true one as often as was asked for, the most
            probable first.
        unlike_training: Whether the image is less like the training images than 99 in 100 of their own kind: what
            is said about it is then not to be relied on.
        unlikeness: How unlike they are, 1 at that limit; ``None`` for a classifier that cannot tell.
    """

    path: Path | None
    label: str | None
    probability: float
    probabilities: dict[str, float]
    error: str = ""
    labels: tuple[str, ...] = ()
    prediction_set: tuple[str, ...] = ()
    unlike_training: bool = False
    unlikeness: float | None = None

    @classmethod
    def of(
        cls,
        path: Path | None,
        probabilities: np.ndarray,
        classes: Sequence[str],
        *,
        top: int | None,
        multilabel: bool,
        prediction_set: tuple[str, ...],
        unlikeness: float | None,
        separator: str = ";",
    ) -> Prediction:
        """Returns what is said about an image that could be used.

        Args:
            path: The file; ``None`` for an array.
            probabilities: Array ``(classes,)``.
            classes: Their names.
            top: How many classes are listed; ``None`` is all.
            multilabel: Whether an image may have several labels.
            prediction_set: As the attribute.
            unlikeness: As the attribute.
            separator: What stands between labels.
        """
        order = np.argsort(-probabilities, kind="stable")
        chosen = [int(i) for i in order if probabilities[i] > 0.5] if multilabel else [int(order[0])]
        most = None if top is None else max(top, len(chosen))
        labels = tuple(classes[i] for i in chosen)
        return cls(
            path,
            separator.join(labels),
            float(probabilities[chosen[-1]] if chosen else 1 - probabilities[order[0]]),
            {classes[i]: float(probabilities[i]) for i in order[:most]},
            labels=labels,
            prediction_set=prediction_set,
            unlike_training=unlikeness is not None and unlikeness > 1,
            unlikeness=unlikeness,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        return {
            "path": str(self.path),
            "label": self.label,
            "labels": list(self.labels),
            "probability": self.probability if self.label is not None else None,
            "probabilities": self.probabilities,
            "prediction_set": list(self.prediction_set),
            "unlike_training": self.unlike_training,
            "unlikeness": self.unlikeness,
            "error": self.error or None,
        }

    def cells(self) -> tuple[object, ...]:
        """Returns path, class, probability, further classes and prediction set as texts."""
        listed = list(self.probabilities.items())
        count = len(self.labels)
        shown = f"{self.probability:.1%}"
        name = str(self.label)
        if count != 1:  # several labels an image, or none of them
            name = ", ".join(f"{label} {value:.1%}" for label, value in listed[:count]) or "no label"
        further = ", ".join(f"{label} {value:.1%}" for label, value in listed[count:])
        return (self.path, name, shown, further, ", ".join(self.prediction_set))
