"""Object detection: from a folder with boxes to a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resfit.tasks.detection.detections import Detections as Detections
    from resfit.tasks.detection.detector import Detector as Detector

__all__ = ["Detections", "Detector"]


def __getattr__(name: str) -> Any:
    # imported on first use: the task is registered without them, and without Keras
    if name == "Detections":
        from resfit.tasks.detection.detections import Detections

        return Detections
    if name == "Detector":
        from resfit.tasks.detection.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
