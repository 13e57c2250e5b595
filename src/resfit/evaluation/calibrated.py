"""What is learned of a classifier from images that it has not learned from: its temperature, its prediction sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.evaluation import calibration
from resfit.evaluation.conformal import Conformal, fit_conformal
from resfit.numerics import activated


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """How logits become probabilities, and probabilities sets.

    Attributes:
        temperature: What logits are divided by before the softmax or sigmoid; 1 changes nothing.
        count: Number of images that it was fitted on.
        source: Which: ``"cross-validation"``, ``"validation"``, or empty where there were none.
        effect: Log-loss and calibration error on these images, ``"before"`` and ``"after"``.
        conformal: For prediction sets; ``None`` without images or with several labels an image.
    """

    temperature: float = 1.0
    count: int = 0
    source: str = ""
    effect: dict[str, Any] = dataclasses.field(default_factory=dict)
    conformal: Conformal | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values, without the temperature, which stands on its own."""
        conformal = None if self.conformal is None else self.conformal.to_dict()
        return {"count": self.count, "source": self.source, "effect": self.effect, "conformal": conformal}

    @classmethod
    def from_dict(cls, temperature: float, fields: Mapping[str, Any] | None) -> Calibration:
        """Restores what :meth:`to_dict` returned.

        Args:
            temperature: The temperature.
            fields: The rest; ``None`` for a classifier that has none.
        """
        if not 0 < temperature < float("inf"):
            raise ValueError(f"the temperature must be positive and finite. Received: {temperature}")
        if fields is None:
            return cls(temperature)
        sets = fields["conformal"]
        return cls(
            temperature,
            int(fields["count"]),
            str(fields["source"]),
            dict(fields["effect"]),
            None if sets is None else Conformal.from_dict(sets),
        )


def calibrate(logits: np.ndarray | None, targets: np.ndarray, activation: str, source: str) -> Calibration:
    """Fits temperature and prediction sets.

    Args:
        logits: Array ``(n, classes)`` of images that the classifier has not learned from; ``None`` for no such images.
        targets: Array ``(n, classes)`` of 0 and 1.
        activation: ``"softmax"`` or ``"sigmoid"``.
        source: Which images they are, for the reader.
    """
    if logits is None or not len(logits):
        return Calibration()
    truth = np.asarray(targets).astype(int) if activation == "sigmoid" else np.asarray(targets).argmax(axis=1)
    temperature = calibration.fit_temperature(logits, truth)
    conformal = None
    if activation != "sigmoid":
        conformal = fit_conformal(activated(np.asarray(logits, np.float64) / temperature, activation), truth)
    effect = calibration.summary(logits, truth, temperature, activation)
    return Calibration(temperature, len(logits), source, effect, conformal)
