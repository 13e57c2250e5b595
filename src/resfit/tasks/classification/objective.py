"""What a classifier learns: cross-entropy of one class or of several labels an image, and the share that is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.training.objective import Objective

if TYPE_CHECKING:
    from resfit.training.settings import Tuning


class ClassObjective(Objective):
    """Cross-entropy with label smoothing, focal loss, class weights and distillation, as the settings say.

    Args:
        targets: float32 array ``(n, classes)``, rows summing to 1, or 0 and 1 for several labels.
        train: Positions to learn from, by which classes are weighed.
        tuning: The settings.
        multilabel: Whether an image may have several labels (sigmoid in place of softmax).
        teacher: Whether there is a teacher, for ``tuning.distillation``.

    Raises:
        ArgumentError: Distillation is asked for without a teacher.
    """

    metric = "accuracy"

    def __init__(
        self, targets: np.ndarray, train: np.ndarray, tuning: Tuning, *, multilabel: bool = False, teacher: bool = False
    ):
        if tuning.distillation and not teacher:
            raise ArgumentError("distillation needs a teacher. Received: teacher=None.")
        self.targets, self.tuning, self.multilabel = np.asarray(targets, np.float32), tuning, multilabel
        self.weights = class_weights(self.targets[np.asarray(train)], tuning.balance)

    def loss(self, outputs: Any, targets: Any, teacher: Any) -> Any:
        """Returns the loss of each image; see :class:`resfit.training.objective.Objective`."""
        import tensorflow as tf

        tuning, classes, logits = self.tuning, self.targets.shape[1], outputs
        smooth = tuning.label_smoothing
        goal = targets * (1 - smooth) + smooth * (0.5 if self.multilabel else 1 / classes)
        weights = tf.constant(self.weights)
        if self.multilabel:
            each = tf.nn.sigmoid_cross_entropy_with_logits(goal, logits)
            if tuning.focal:
                each *= tf.abs(goal - tf.sigmoid(logits)) ** tuning.focal
            loss = tf.reduce_sum(each * weights, axis=1)
        elif tuning.focal:
            logs = tf.nn.log_softmax(logits)
            loss = -tf.reduce_sum(goal * (1 - tf.exp(logs)) ** tuning.focal * logs * weights, axis=1)
        else:
            loss = tf.nn.softmax_cross_entropy_with_logits(goal, logits)
            if tuning.balance:
                loss *= tf.reduce_sum(targets * weights, axis=1)
        if tuning.distillation:
            warm = tuning.temperature
            if self.multilabel:
                taught = tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(teacher / warm), logits / warm)
                other = tf.reduce_sum(taught, axis=1)
            else:
                other = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher / warm), logits / warm)
            loss = (1 - tuning.distillation) * loss + tuning.distillation * warm**2 * other
        return loss

    def score(self, outputs: Any, targets: Any) -> Any:
        """Returns how many images are right, with several labels all of them."""
        import tensorflow as tf

        if self.multilabel:
            right = tf.reduce_all(tf.equal(outputs > 0, targets > 0.5), axis=1)
        else:
            right = tf.equal(tf.argmax(outputs, 1), tf.argmax(targets, 1))
        return tf.reduce_sum(tf.cast(right, tf.float32))

    def measure(self, outputs: Iterator[tuple[np.ndarray, Any]]) -> tuple[float, float]:
        """Returns mean cross-entropy and accuracy; with several labels the share of labels that are right."""
        rows, logits = zip(*outputs, strict=True)
        return measure(np.concatenate(logits), self.targets[np.concatenate(rows)], multilabel=self.multilabel)


def class_weights(targets: np.ndarray, balance: bool) -> np.ndarray:
    """Returns what each class weighs in the loss: the mean over the images is 1.

    Args:
        targets: Array ``(n, classes)``.
        balance: Whether the weights make up for the number of images; otherwise all are 1.
    """
    counts = targets.sum(axis=0)
    if not balance:
        return np.ones(targets.shape[1], np.float32)
    present = counts > 0
    weights = np.where(present, counts.sum() / (np.maximum(counts, 1e-9) * max(present.sum(), 1)), 0.0)
    return weights.astype(np.float32)


def measure(logits: np.ndarray, targets: np.ndarray, *, multilabel: bool = False) -> tuple[float, float]:
    """Returns mean cross-entropy and accuracy of logits; with several labels the share of labels that are right.

    Args:
        logits: Array ``(n, classes)``.
        targets: Array ``(n, classes)``.
        multilabel: Whether an image may have several labels.
    """
    values = logits.astype(np.float64)
    if multilabel:
        loss = np.logaddexp(0, values) - targets * values
        return float(loss.sum(axis=1).mean()), float(((values > 0) == (targets > 0.5)).mean())
    shifted = values - values.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    hits = values.argmax(axis=1) == targets.argmax(axis=1)
    return float(-(targets * logs).sum(axis=1).mean()), float((hits & np.isfinite(values).all(axis=1)).mean())
