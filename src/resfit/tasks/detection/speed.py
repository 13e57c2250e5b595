"""How fast this machine computes a detector: assumed for a processor, measured on a GPU with real batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit import devices, engines, processors
from resfit.data.boxes import BoxSet
from resfit.engines import speed as engine_speed
from resfit.networks import arithmetic
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.spec import ArchitectureSpec
from resfit.tasks import backbone
from resfit.training import recipes
from resfit.training import speed as training_speed

# multiply-accumulates a second and core in a training step, measured on two shared cores
_MACS_PER_SECOND = 2.0e10
# files whose size is looked at
_FILES = 200


@dataclasses.dataclass(frozen=True)
class DetectorSpeed:
    """How fast this machine computes a detector.

    Attributes:
        training: Multiply-accumulates a second in a training step.
        forward: The same on an engine.
        predicting: The same in a prediction.
        decoding: Seconds in which the processors decode a picture while a GPU computes; 0 on a processor, whose cores
            share both.
        device: What computes, as ``device=`` calls it.
    """

    training: float
    forward: float
    predicting: float
    decoding: float = 0.0
    device: str = "cpu"

    def rate(self, macs: float, *, decodes: bool = False) -> float:
        """Returns the pictures a second of a training step.

        Args:
            macs: Multiply-accumulates of the step for a picture.
            decodes: Whether each picture is decoded for it, which a GPU does not wait for unless it takes longer.
        """
        return 1 / max(macs / self.training, self.decoding if decodes else 0.0, 1e-12)

    def forward_seconds(self, macs: float) -> float:
        """Returns the seconds for a picture that is decoded and goes through a frozen network.

        Args:
            macs: Multiply-accumulates of the network for a picture.
        """
        return max(macs / self.forward, self.decoding)

    def predicting_seconds(self, macs: float) -> float:
        """Returns the seconds for a picture that is decoded and predicted.

        Args:
            macs: Multiply-accumulates of the detector for a picture.
        """
        return max(macs / self.predicting, self.decoding)

    @property
    def told(self) -> str:
        """What was measured, as a sentence; empty for a processor."""
        if self.device == "cpu":
            return ""
        return (
            f"measured on {self.device}: {self.training / 1e9:.0f} billion multiply-accumulates a second in a training "
            f"step, {self.forward / 1e9:.0f} in the frozen body; the processors decode a picture in "
            f"{1e3 * self.decoding:.1f} ms meanwhile"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)


def speed_of(base: ArchitectureSpec | AnyDetectorSpec, boxes: BoxSet, cache: bool | str | Path = True) -> DetectorSpeed:
    """Returns how fast the device of what runs now computes a detector.

    On a GPU the residual network is timed, forwards and in training steps, once for each machine.

    Args:
        base: The residual network, or the detector.
        boxes: The pictures.
        cache: Where measurements are kept, as :func:`resfit.engines.speed.forward` takes it.
    """
    device = devices.current()
    if device.kind == "cpu":
        rate = processors.available() * _MACS_PER_SECOND
        return DetectorSpeed(rate, 2 * rate, rate)  # an engine is twice as fast
    spec = base if isinstance(base, ArchitectureSpec) else base.backbone
    body = backbone.untrained(spec, spec.input_size)
    macs = float(arithmetic.count(spec, input_size=spec.input_size, include_top=False).macs)
    forward = macs / engine_speed.forward(body, engines.resolve("keras", device=device), cache).seconds
    # a detector trains in float32; backwards are twice as many as forwards
    step = 3 * macs / training_speed.step_seconds(body, "float32", device.each[0], cache)
    return DetectorSpeed(step, forward, forward, _decoding_seconds(boxes), device.label)


def _decoding_seconds(boxes: BoxSet) -> float:
    """Returns the seconds in which all processors together decode a picture."""
    sizes = [path.stat().st_size for path in boxes.paths[:: max(1, len(boxes) // _FILES)] if path.exists()]
    return recipes.decoding_seconds(float(np.mean(sizes)) if sizes else 0.0, processors.available())
