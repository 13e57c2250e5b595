"""What a fit of a detector does: chosen from the data, the network, the machine and the budget, before anything runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError
from resfit.features import pixels
from resfit.networks import arithmetic
from resfit.networks.detection import anchors
from resfit.networks.spec import ArchitectureSpec
from resfit.storage.locks import cache_root
from resfit.tasks.detection.network import detector_spec
from resfit.training.loop import check_choice

STRATEGIES = ("auto", "head", "last", "full")
_SIZES = (192, 256, 320, 384, 448, 512, 576, 640)


@dataclasses.dataclass(frozen=True)
class DetectionPlan:
    """What a fit does.

    Attributes:
        strategy: ``"head"``, ``"last"`` or ``"full"``.
        size: Height and width of the input in pixels.
        views: Stored views of each picture, the plain one included; 0 runs the body in every epoch.
        head: Fields of pyramid and head.
        epochs: Of the head's phase, and of the body's, where there is no budget.
        minutes: The budget.
        head_share: Share of the training's time that is the head's alone.
        batch_size: Pictures a step.
        learning_rate: Of the head's phase.
        body_learning_rate: Of the body's phase.
        zoom: Scales of changed views.
        colour: How far their colours are changed.
        mosaic: Share of mosaics where the body learns.
        map_bytes: What the stored maps take.
        reasons: Why, one sentence each.
    """

    strategy: str
    size: tuple[int, int]
    views: int
    head: dict[str, Any]
    epochs: tuple[int, int]
    minutes: float | None
    head_share: float
    batch_size: int = 8
    learning_rate: float = 2e-3
    body_learning_rate: float = 1e-3
    zoom: tuple[float, float] = (0.6, 1.7)
    colour: float = 0.3
    mosaic: float = 0.0
    map_bytes: int = 0
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)


def make_plan(
    boxes: BoxSet,
    backbone: ArchitectureSpec,
    *,
    strategy: str,
    minutes: float | None,
    size: int | tuple[int, int] | None,
    views: int | None,
    head: dict[str, Any],
    batch_size: int | None,
    storage: int | None,
    folder: Path | None,
) -> DetectionPlan:
    """Chooses what a fit does.

    Args:
        boxes: The pictures.
        backbone: The residual network.
        strategy: As :func:`resfit.tasks.detection.fit.fit` takes it, like all that follow.
        minutes: The budget.
        size: Of the input.
        views: Stored views.
        head: Fields of pyramid and head.
        batch_size: Pictures a step.
        storage: Bytes of stored maps.
        folder: Of the cache.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    check_choice("strategy", strategy, STRATEGIES)
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1. Received: {batch_size}.")
    if views is not None and not 0 <= views <= 100:
        raise ArgumentError(f"views must be 0 to 100. Received: {views}.")
    reasons = []
    chosen = _size(boxes, size, reasons)
    fields = {**_HEAD, **head}
    spec = detector_spec(backbone, len(boxes.classes), chosen, **fields)
    grids = dict(zip(spec.levels, anchors.grid_sizes(spec, chosen), strict=True))
    from resfit.networks.detection.build import tap_width

    width = sum(grids[level][0] * grids[level][1] * tap_width(spec, tap) for level, tap in spec.taps.items())
    wanted = 5 if views is None else views
    stored = pixels.plan(len(boxes), wanted, (width // 2 + 1,), folder or cache_root(), budget=storage)
    if wanted and not stored.stored:
        wanted = 0
        reasons.append(f"{stored.reason}")
    elif wanted:
        reasons.append(
            f"{wanted} views of each picture are stored: maps of {len(boxes) * wanted * width * 2 / 2**20:.0f} MB in float16"
        )
    if strategy == "auto":
        strategy = "full" if minutes is not None and minutes >= 1.0 else "head"
    share = 1.0 if strategy == "head" else _HEAD_SHARE
    return DetectionPlan(
        strategy=strategy,
        size=chosen,
        views=wanted,
        head=fields,
        epochs=(30, 15),
        minutes=minutes,
        head_share=share,
        batch_size=batch_size or 8,
        map_bytes=len(boxes) * wanted * width * 2,
        reasons=tuple(reasons),
    )


_HEAD_SHARE = 0.25  # of the training's time, before the body learns too
_HEAD: dict[str, Any] = {
    "pyramid_width": 96,
    "head_width": 96,
    "norm_groups": 16,
    "quality": None,
    "score_threshold": 0.01,
}


def _size(boxes: BoxSet, size: int | tuple[int, int] | None, reasons: list[str]) -> tuple[int, int]:
    """The size of the input."""
    if size is not None:
        given = (size, size) if isinstance(size, int) else tuple(size)
        if len(given) != 2 or not all(isinstance(side, int) and 32 <= side <= 4096 for side in given):
            raise ArgumentError(f"size must be height and width of 32 to 4096 pixels. Received: {size!r}.")
        return int(given[0]), int(given[1])
    owners = boxes.owners
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).min(axis=1)
    longest = boxes.sizes[owners].max(axis=1)
    share = float(np.quantile(sides / longest, 0.25)) if len(sides) else 0.1
    limit = max(320, int(np.quantile(boxes.sizes.max(axis=1), 0.5)))
    chosen = next((one for one in _SIZES[2:] if one * share >= 16 or one >= limit), _SIZES[-1])
    reasons.append(
        f"input of {chosen} pixels, at which a quarter of the boxes is narrower than {chosen * share:.0f} pixels (size= "
        "changes it)"
    )
    return chosen, chosen


def cost(spec: Any) -> float:
    """Multiply-accumulates of a body."""
    return float(arithmetic.count(spec, include_top=False).macs)
