"""What decides a phase of a detector's training."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class PhaseSettings:
    """What decides a phase of the training, apart from its data.

    Attributes:
        name: Of the phase, such as ``"head"``.
        epochs: Passes over the pictures; ``None`` takes as many as fit into ``seconds``.
        seconds: Longest time by the clock; ``None`` is no limit.
        batch_size: Pictures a step.
        learning_rate: Peak of the schedule: a linear rise, then half a cosine.
        optimizer: ``"adamw"`` or ``"sgd"``.
        weight_decay: On kernels; decoupled.
        warmup: Share of the phase in which the rate rises.
        body_rate: The learning rate's factor for the layers of the body.
        loss: Of the classes of a dense detector: ``"quality_focal"`` or ``"focal"``.
        box_weight: Of the boxes' loss.
        denoising: Of RT-DETR: denoising queries at the true boxes, at most; 0 for none.
        seed: Of the order, and of the noise of these queries.
    """

    name: str
    epochs: int | None = 10
    seconds: float | None = None
    batch_size: int = 8
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    weight_decay: float = 0.02
    warmup: float = 0.05
    body_rate: float = 0.3
    loss: str = "quality_focal"
    box_weight: float = 2.0
    denoising: int = 100
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class StepTargets:
    """What a step learns from.

    Attributes:
        rows: What the objective's ``places`` say of each picture, ``(batch, ...)``.
        boxes: ``(batch, most, 4)``, xyxy in pixels of the input, padded.
        labels: int32 ``(batch, most)``.
        number: Of the step, an integer scalar.
        settings: Of the phase.
        edges: Where the batch is divided: int32 ``(2,)``, of which pictures the inputs are; what stands above is of the
            whole batch all the same. ``None`` for no parts.
        weight: The sum of the objective's weights over the parts.
    """

    rows: Any
    boxes: Any
    labels: Any
    number: Any
    settings: PhaseSettings
    edges: Any = None
    weight: Any = None

    @property
    def own(self) -> slice:
        """The pictures that the inputs are of."""
        return slice(None) if self.edges is None else slice(self.edges[0], self.edges[1])
