"""Object detection: from a folder with boxes to a detector."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resfit.tasks.detection.detections import Detections as Detections
    from resfit.tasks.detection.detector import Detector as Detector

# Imported on first use: the task is registered without them, and without Keras.
_EXPORTS = {"Detections": "detections", "Detector": "detector"}

__all__ = ["Detections", "Detector"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
