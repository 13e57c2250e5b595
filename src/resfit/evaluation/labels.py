"""How good predictions are where an image may have several labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation.intervals import accuracy_interval
from resfit.evaluation.metrics import ClassScore

if TYPE_CHECKING:
    from resfit.evaluation.figures import Figures


@dataclasses.dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """How good a classifier with several labels an image is.

    Attributes:
        exact_match_accuracy: Share of images whose labels are all right, none missing and none too many, 0..1.
        interval: 95 % interval of that share: Wilson's, or of resampled groups where there are groups.
        n: Number of images.
        log_loss: Binary log-loss, mean over images and labels, in nats.
        mean_average_precision: Mean over labels of the average precision (mAP), over those that some image has and some
            has not; ``nan`` where there is no such label.
        average_precision: The same by label; ``nan`` for one that no image has, or that all have.
        f1_micro: Harmonic mean of precision and recall over all labels together.
        f1_macro: Mean of the labels' own.
        per_class: One score a label, at a probability of one half.
        skipped: Images that could not be used, with ``path`` and ``reason``.
        figures: Every figure with its interval, where they were asked for.
        notes: What makes the figures other than those on new images.
    """

    exact_match_accuracy: float
    interval: tuple[float, float]
    n: int
    log_loss: float
    mean_average_precision: float
    average_precision: tuple[float, ...]
    f1_micro: float
    f1_macro: float
    per_class: tuple[ClassScore, ...]
    skipped: tuple[Any, ...] = ()
    figures: Figures | None = None
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """The exact-match accuracy."""
        return self.exact_match_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values, without the skipped images; what is undefined is ``None``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["skipped"], fields["notes"]
        fields["figures"] = None if self.figures is None else self.figures.to_dict()
        if self.figures is None:
            del fields["figures"]
        areas = [_known(area) for area in self.average_precision]
        del fields["average_precision"]
        scores = [
            {**dataclasses.asdict(score), "average_precision": area}
            for score, area in zip(self.per_class, areas, strict=True)
        ]
        mean = _known(self.mean_average_precision)
        return {**fields, "mean_average_precision": mean, "interval": list(self.interval), "per_class": scores}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def evaluate_labels(
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    skipped: Sequence[Any] = (),
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> LabelEvaluation:
    """Compares predicted probabilities of labels with the true ones.

    Args:
        truth: Array ``(n, classes)`` of 0 and 1, ``n`` at least 1.
        probabilities: Array of the same shape.
        classes: Names of the labels.
        skipped: Passed on to the result.
        groups: For each image the group it belongs to, or ``None``.
        seed: Of the resamples of groups.

    Raises:
        ArgumentError: There is no image, or the arrays do not fit together.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    known, scores = np.asarray(truth).astype(int), np.asarray(probabilities, np.float64)
    if not len(known) or known.shape != scores.shape or known.shape[1] != len(classes):
        raise ArgumentError(
            f"truth and probabilities must have shape (n >= 1, {len(classes)}). "
            f"Received: {known.shape} and {scores.shape}."
        )
    guesses = (scores > 0.5).astype(int)
    columns = precision_recall_fscore_support(known, guesses, zero_division=0.0)
    areas = [
        float(average_precision_score(known[:, i], scores[:, i]))
        if 0 < known[:, i].sum() < len(known)
        else float("nan")
        for i in range(len(classes))
    ]
    seen = [area for area in areas if np.isfinite(area)]
    exact = int((known == guesses).all(axis=1).sum())
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    losses = -(known * np.log(clipped) + (1 - known) * np.log(1 - clipped)).mean(axis=1)
    return LabelEvaluation(
        exact_match_accuracy=exact / len(known),
        interval=accuracy_interval((known == guesses).all(axis=1), groups, seed=seed),
        n=len(known),
        log_loss=float(losses.mean()),
        mean_average_precision=float(np.mean(seen)) if seen else float("nan"),
        average_precision=tuple(areas),
        f1_micro=float(precision_recall_fscore_support(known, guesses, average="micro", zero_division=0.0)[2]),
        f1_macro=float(np.mean(columns[2])),
        per_class=tuple(
            ClassScore(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
        ),
        skipped=tuple(skipped),
    )
