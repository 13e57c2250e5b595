"""Object detection: from a folder with boxes to a detector."""

from __future__ import annotations

from resfit.tasks.detection.detections import Detections as Detections
from resfit.tasks.detection.detector import Detector as Detector
from resfit.tasks.detection.fit import fit as fit
from resfit.tasks.detection.fit import plan as plan

__all__ = ["Detections", "Detector", "fit", "plan"]
