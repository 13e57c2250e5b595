"""How a detector was made: plain data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DetectorRecipe:
    """How a detector was made.

    Attributes:
        model: Name or source of the residual network.
        trained: What learned: ``"head"``, ``"head and last stages"`` or ``"whole network"``.
        epochs: Passes over the training images of each phase, in order.
        best_epoch: Validation whose weights were kept, over all phases; 0 is before the training.
        views: Stored views of each picture, the plain one included; 0 where the body ran in every epoch.
        loss: Of the classes: ``"quality_focal"`` or ``"focal"``.
        seed: Of the split, the fresh weights and all changes.
        tiles: Height and width in pixels of the tiles that pictures are cut into; empty for none.
        score_scale: What the classes' logits were multiplied by so that scores are probabilities.
        score_shift: What was added to them then.
    """

    model: str
    trained: str = "head"
    epochs: tuple[int, ...] = ()
    best_epoch: int = 0
    views: int = 1
    loss: str = "quality_focal"
    seed: int = 0
    tiles: tuple[int, ...] = ()
    score_scale: float = 1.0
    score_shift: float = 0.0
