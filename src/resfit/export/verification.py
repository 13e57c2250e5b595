"""Whether an export's outputs equal Keras' on real images, in the runtime that it was written for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

#: Largest difference from Keras' own in float32, as a share of the largest value.
TOLERANCE = 1e-4
#: The same of scores by precision; ``None`` is no limit. Half precision has 11 bits: each weight is off by up to 5e-4
#: of itself, and logits add these up.
TOLERANCES: dict[str, float | None] = {"float32": TOLERANCE, "float16": 1e-2, "int8": None}
#: What numbers may differ by to be close, as a share of the largest, by precision.
CLOSE = {"float32": TOLERANCE, "float16": 1e-2, "int8": 5e-2}
#: Smallest share of images of which the first class is Keras' own.
LEAST_AGREEMENT = 0.99

#: Images ``(n, height, width, channels)``, RGB 0..255, to scores ``(n, classes)``.
Run = Callable[[np.ndarray], np.ndarray]

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Check:
    """One further comparison, of features or of encoded images.

    Attributes:
        what: What was compared.
        difference: The largest difference.
        tolerance: What it must not pass; ``None`` states it without a limit.
        unit: Of both.
    """

    what: str
    difference: float
    tolerance: float | None = TOLERANCE
    unit: str = "of the largest"

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a difference that is no number is not."""
        return self.tolerance is None or self.difference <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Verification:
    """How an export compares with Keras.

    Attributes:
        runtime: What ran it, with its version.
        precision: Of the export.
        images: Number of images.
        source: Where they are from, how many there are, and how these were chosen.
        difference: Largest difference of a score, as a share of the largest score.
        agreement: Top-1 agreement: the share of images with the same most probable class. A tie that the tolerance
            allows counts as the same. With several labels an image: share of labels about which both decide the same.
        accuracy: Share of labelled images that the export gets right; ``None`` without labels.
        keras_accuracy: The same for Keras.
        latency: Median milliseconds for one image, from array to scores, on this machine.
        checks: Further comparisons.
        no_images: Shape of the scores of an empty batch; a string says how it was refused.
        other_size: How an image of another size was refused; ``None`` where any size is taken. A shape is that of the
            scores that came instead.
        files: The images by name, files from the folder on that all of them are in; empty for arrays.
    """

    runtime: str
    precision: str
    images: int
    source: str
    difference: float
    agreement: float
    accuracy: float | None
    keras_accuracy: float | None
    latency: float
    checks: tuple[Check, ...] = ()
    no_images: tuple[int, ...] | str | None = None
    other_size: tuple[int, ...] | str | None = None
    files: tuple[str, ...] = ()

    #: What ``difference``, ``agreement`` and ``accuracy`` are called in tables.
    HEADINGS: ClassVar[tuple[str, str, str]] = (">largest difference", ">top-1 agreement", ">accuracy")

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the export, in words; nothing if it agrees."""
        found = []
        tolerance = TOLERANCES[self.precision]
        if tolerance is not None and not self.difference <= tolerance:
            found.append(f"a score differs by {self.difference:.2g} of the largest, more than {tolerance:.0e}")
        if not self.agreement >= LEAST_AGREEMENT:
            found.append(f"the top-1 agreement is {self.agreement:.1%} of the images, less than {LEAST_AGREEMENT:.0%}")
        for check in self.checks:
            if not check.passed and check.tolerance is not None:
                found.append(
                    f"{check.what} differ by {check.difference:.3g} {check.unit}, more than {check.tolerance:g}"
                )
        if isinstance(self.no_images, str) or (self.no_images is not None and self.no_images[0] != 0):
            found.append(f"an empty batch must give no scores, and gives {self.no_images}")
        if isinstance(self.other_size, tuple):
            found.append("images of another size are not refused")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, the limits and the verdict as JSON-ready values."""
        return {
            **dataclasses.asdict(self),
            "no_images": list(self.no_images) if isinstance(self.no_images, tuple) else self.no_images,
            "other_size": list(self.other_size) if isinstance(self.other_size, tuple) else self.other_size,
            "files": list(self.files),
            "checks": [{**dataclasses.asdict(check), "passed": check.passed} for check in self.checks],
            "limits": self.limits(),
            "passed": not self.problems,
        }

    def limits(self) -> dict[str, Any]:
        """Returns what the figures must not pass."""
        return {"difference": TOLERANCES[self.precision], "agreement": LEAST_AGREEMENT}

    def lines(self) -> list[str]:
        """Returns the comparison for the card."""
        found = [
            f"- Largest difference of a score: {self.difference:.1e} of the largest. "
            f"Same first class: {self.agreement:.1%}."
        ]
        if self.accuracy is not None and self.keras_accuracy is not None:
            found.append(f"- Accuracy on them: {self.accuracy:.1%}; in Keras {self.keras_accuracy:.1%}.")
        return found


@dataclasses.dataclass(frozen=True)
class NumberVerification(Verification):
    """How an export of a regressor compares with Keras: ``agreement`` is the share of images whose numbers are close.

    ``difference`` is a share of the largest number, and what counts as close is :data:`CLOSE` of it.
    """

    HEADINGS: ClassVar[tuple[str, str, str]] = (">largest difference", ">close numbers", ">accuracy")

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the export, in words; nothing if it agrees."""
        words = (("a score differs", "a number differs"), ("top-1 agreement is", "share of close numbers is"))
        found = super().problems
        for old, new in words:
            found = tuple(text.replace(old, new) for text in found)
        return found

    def lines(self) -> list[str]:
        """Returns the comparison for the card."""
        return [
            f"- Largest difference of a number: {self.difference:.1e} of the largest. Within "
            f"{CLOSE[self.precision]:.0e} of it: {self.agreement:.1%} of the images."
        ]


def closeness(received: np.ndarray, expected: np.ndarray, precision: str) -> float:
    """Returns the share of images whose numbers are within :data:`CLOSE` of the largest.

    Args:
        received: Numbers ``(n, numbers)``.
        expected: Numbers of the same shape.
        precision: Of the export.
    """
    if received.shape != expected.shape or not np.isfinite(received).all():
        return 0.0
    limits = CLOSE[precision] * np.maximum(np.abs(expected).max(axis=0, initial=0.0), 1e-12)
    return float(np.mean((np.abs(received - expected) <= limits).all(axis=1)))


def rows(run: Run, images: np.ndarray) -> np.ndarray:
    """Runs a network on images, batch by batch.

    Args:
        run: The network.
        images: uint8 ``(n, height, width, channels)``.

    Returns:
        float32 ``(n, ...)``.
    """
    starts = range(0, len(images), _BATCH)
    return np.concatenate([run(images[start : start + _BATCH].astype(np.float32)) for start in starts])


def difference(received: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference as a share of the largest value; infinity for what has no number or shape."""
    if received.shape != expected.shape or not np.isfinite(received).all():
        return float("inf")
    away = np.abs(received.astype(np.float64) - expected).max(initial=0.0)
    return float(away / max(np.abs(expected).max(initial=0.0), 1e-12))


def agreement(
    received: np.ndarray, expected: np.ndarray, *, precision: str = "float32", multilabel: bool = False
) -> float:
    """Returns the share of images about which two sets of scores agree; see :class:`Verification`.

    Args:
        received: Scores ``(n, classes)``.
        expected: Scores of the same shape.
        precision: Classes whose expected scores lie within twice its tolerance are tied; none in int8.
        multilabel: Whether each label is a decision of its own.
    """
    if received.shape != expected.shape or not np.isfinite(received).all():
        return 0.0
    if multilabel:
        return float(np.mean((received > 0.5) == (expected > 0.5)))
    slack = 2 * (TOLERANCES[precision] or 0.0) * expected.max(initial=0.0)
    chosen = expected[np.arange(len(expected)), received.argmax(axis=1)]
    return float(np.mean(chosen >= expected.max(axis=1) - slack))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns the share of labelled images whose first class is right; ``None`` without labels.

    Args:
        scores: Array ``(n, classes)``.
        labels: ``n`` true classes, -1 where one is not known.
    """
    known = labels >= 0
    return float(np.mean(scores[known].argmax(axis=1) == labels[known])) if known.any() else None
