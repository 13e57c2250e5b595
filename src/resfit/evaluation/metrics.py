"""How good predictions are: accuracy with its interval, the confusion matrix, a table by class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import accuracy_interval

if TYPE_CHECKING:
    from resfit.evaluation.figures import Figures


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others.

    Attributes:
        name: The class.
        precision: Share of the images predicted as this class that are of it, 0..1; 0 if there is none.
        recall: Share of the images of this class that are predicted as it, 0..1; 0 if there is none.
        f1: Harmonic mean of the two.
        support: Number of images of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How good a classifier is on a set of images.

    Attributes:
        accuracy: Share of images whose most probable class is the true one, 0..1.
        interval: 95 % interval of the accuracy, low and high, 0..1: Wilson's, or of resampled groups where images have
            groups.
        n: Number of images.
        log_loss: Mean negative log-likelihood of the true class, in nats.
        per_class: One score a class, in the classifier's order.
        confusion: Integer array of shape ``(classes, classes)``: row the true class, column the predicted one.
        skipped: Images that could not be used, with ``path`` and ``reason``.
        figures: Every figure with its interval, where they were asked for.
        notes: What makes the figures other than those on new images.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    log_loss: float
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray
    skipped: tuple[Any, ...] = ()
    figures: Figures | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values, without the skipped images."""
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "n": self.n,
            "log_loss": self.log_loss,
            "per_class": [dataclasses.asdict(score) for score in self.per_class],
            "confusion": self.confusion.tolist(),
            **({} if self.figures is None else {"figures": self.figures.to_dict()}),
        }


def evaluate(
    labels: Any,
    probabilities: Any,
    classes: Sequence[str],
    *,
    skipped: Sequence[Any] = (),
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compares predicted probabilities with true labels.

    Args:
        labels: ``n`` integers in ``0..classes-1``, ``n`` at least 1.
        probabilities: Array of shape ``(n, classes)``.
        classes: Names of the classes.
        skipped: Passed on to the result.
        groups: For each image the group it belongs to (a patient, a scene), or ``None``.
        seed: Of the resamples of groups.

    Raises:
        ArgumentError: There is no image, or the arrays do not fit together.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth = np.asarray(labels, np.int64)
    scores = np.asarray(probabilities)
    if len(truth) == 0 or scores.shape != (len(truth), len(classes)):
        raise ArgumentError(
            f"labels must have n >= 1 entries and probabilities shape (n, {len(classes)}). "
            f"Received: {truth.shape} and {scores.shape}."
        )
    if truth.min() < 0 or truth.max() >= len(classes):
        raise ArgumentError(f"labels must lie in 0..{len(classes) - 1}. Received: {truth.min()}..{truth.max()}.")
    predicted = scores.argmax(axis=1)
    known = np.arange(len(classes))
    correct = int((predicted == truth).sum())
    columns = precision_recall_fscore_support(truth, predicted, labels=known, zero_division=0.0)
    likelihood = np.clip(scores[np.arange(len(truth)), truth].astype(np.float64), 1e-12, 1.0)
    return Evaluation(
        accuracy=correct / len(truth),
        interval=accuracy_interval(predicted == truth, groups, seed=seed),
        n=len(truth),
        log_loss=float(-np.log(likelihood).mean()),
        per_class=tuple(
            ClassScore(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
        ),
        confusion=confusion_matrix(truth, predicted, labels=known),
        skipped=tuple(skipped),
    )
