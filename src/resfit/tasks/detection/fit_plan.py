"""What a fit of a detector does: chosen from data, network, machine and budget, before anything runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit import processors
from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError
from resfit.features import pixels
from resfit.networks import arithmetic
from resfit.networks.detection import anchors
from resfit.networks.detection.build import tap_width
from resfit.networks.spec import ArchitectureSpec
from resfit.storage.locks import cache_root
from resfit.tasks.detection.network import detector_spec
from resfit.training.loop import check_choice

_VIEWS = 5
STRATEGIES = ("auto", "head", "last", "full")
_SIZES = (256, 320, 384, 448, 512, 576, 640)
_NARROWEST = 20.0  # pixels of the input that the median box of each class should have


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
        body_batch_size: Pictures a step of the body's phase, which small batches make slower.
        map_bytes: What the stored maps take.
        seconds: Estimates: ``"features"`` and ``"training"``.
        seconds_each: Estimate for a prediction.
        reasons: Why, one sentence each.
    """

    strategy: str
    size: tuple[int, int]
    views: int
    head: dict[str, Any]
    epochs: tuple[int, int]
    minutes: float | None
    head_share: float
    batch_size: int = 4
    learning_rate: float = 3e-3
    body_learning_rate: float = 1e-3
    zoom: tuple[float, float] = (0.6, 1.7)
    colour: float = 0.3
    mosaic: float = 0.3
    body_batch_size: int = 8
    map_bytes: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds_each: float = 0.0
    reasons: tuple[str, ...] = ()
    tuning: None = None  # of a classification's plan

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return sum(self.seconds.values())

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
    reasons: list[str] = []
    chosen = _size(boxes, size, reasons)
    most = int(np.diff(boxes.offsets).max(initial=0))
    crowded = {"max_detections": min(1000, 2 * most), "candidates": min(1000, 3 * most)} if most > 50 else {}
    # a narrow head makes more passes of a short time
    narrow = {"pyramid_width": 64, "head_width": 64} if minutes is not None and minutes < _SHORT else {}
    fields = {**_HEAD, **narrow, **crowded, **head}
    spec = detector_spec(backbone, len(boxes.classes), chosen, **fields)
    grids = dict(zip(spec.levels, anchors.grid_sizes(spec, chosen), strict=True))
    width = sum(grids[level][0] * grids[level][1] * tap_width(spec, tap) for level, tap in spec.taps.items())
    wanted = _VIEWS if views is None else views
    if views is None and minutes is not None:  # a view costs a pass of the body, and is seen once an epoch at most
        wanted = 2 if minutes < 1.5 else 3 if minutes < 6 else _VIEWS
    stored = pixels.plan(len(boxes), wanted, (width // 2 + 1,), folder or cache_root(), budget=storage)
    if wanted and not stored.stored:
        wanted = 0
        reasons.append(f"{stored.reason}")
    elif wanted:
        reasons.append(
            f"{wanted} views of each picture are stored: maps of {len(boxes) * wanted * width * 2 / 2**20:.0f} MB in "
            "float16"
        )
    passes = _passes(boxes, backbone, chosen, minutes)
    if strategy == "auto":
        strategy = "head"
        if minutes is not None and minutes >= _LEAST_MINUTES:
            strategy = "full" if passes["full"] >= 2 * _ENOUGH else "last" if passes["last"] >= _ENOUGH else "head"
        reasons.append(_why(strategy, minutes, passes))
    share = 1.0 if strategy == "head" else _HEAD_SHARE
    cores = processors.available()
    body = arithmetic.count(backbone, input_size=chosen, include_top=False).macs
    features = len(boxes) * (1 + 0.7 * max(wanted - 1, 0)) * body / (cores * 2 * _MACS_PER_SECOND)
    training = 30 * 0.7 * len(boxes) * _HEAD_MACS / (cores * _MACS_PER_SECOND)
    return DetectionPlan(
        seconds={"features": features, "training": training if minutes is None else max(0.0, minutes * 60 - features)},
        seconds_each=0.01 + (body + _HEAD_MACS / 3) / (cores * _MACS_PER_SECOND),
        strategy=strategy,
        size=chosen,
        views=wanted,
        head=fields,
        epochs=(30, 15),
        minutes=minutes,
        head_share=share,
        batch_size=batch_size or _batch_size(boxes, backbone, chosen, minutes),
        body_batch_size=batch_size or 8,
        map_bytes=len(boxes) * wanted * width * 2,
        reasons=tuple(reasons),
    )


def _passes(
    boxes: BoxSet, backbone: ArchitectureSpec, size: tuple[int, int], minutes: float | None
) -> dict[str, float]:
    """About how many passes over the training pictures what learns could make in the body's part of the budget."""
    counted = arithmetic.count(backbone, input_size=size, include_top=False)
    cores = processors.available()
    train = max(1.0, 0.7 * len(boxes))
    seconds = 60 * (minutes or 0.0) * (1 - _HEAD_SHARE) * 0.9
    # forward, and twice that for the gradients of what learns
    costs = {"full": 3.0 * counted.macs, "last": 2.2 * counted.macs}
    return {name: seconds * cores * _MACS_PER_SECOND / (cost + _HEAD_MACS) / train for name, cost in costs.items()}


def _batch_size(boxes: BoxSet, backbone: ArchitectureSpec, size: tuple[int, int], minutes: float | None) -> int:
    """Pictures a step: few where there is time for few steps, which then make more of the same passes."""
    if minutes is None:
        seen = 30 * 0.7 * len(boxes)
    else:
        macs = arithmetic.count(backbone, input_size=size, include_top=False).macs
        seen = 60 * minutes * processors.available() * _MACS_PER_SECOND / (1.5 * macs + _HEAD_MACS)
    return 2 if seen < _FEW else 4 if seen < 5 * _FEW else 8


def _why(strategy: str, minutes: float | None, passes: dict[str, float]) -> str:
    """The choice of what learns as a sentence."""
    if minutes is None:
        return "pyramid and head learn on stored maps: without a budget of time nothing more is tried (budget=)"
    if strategy == "head":
        return (
            f"pyramid and head learn on stored maps: in {minutes:g} minutes the last stages could make about "
            f"{passes['last']:.1f} passes over the pictures, too few to help"
        )
    what = "the whole network" if strategy == "full" else "the last stages"
    return (
        f"pyramid and head learn on stored maps, then {what} on changed pictures, about {passes[strategy]:.0f} passes"
    )


# Multiply-accumulates a second and core in a training step, and those of the head's step, measured on two shared cores.
_MACS_PER_SECOND, _HEAD_MACS = 2.0e10, 2.0e9
_LEAST_MINUTES, _ENOUGH = 1.5, 1.5  # passes of the body under which it had better stay as it is
_SHORT = 6.0  # minutes
_FEW = 6000  # pictures that go through a step in the whole run
_HEAD_SHARE = 0.3  # of the training's time, before the body learns too
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
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).min(axis=1)[~boxes.crowd]
    shares = sides / boxes.sizes[boxes.owners].max(axis=1)[~boxes.crowd]
    labels = boxes.labels[~boxes.crowd]
    medians = {int(label): float(np.median(shares[labels == label])) for label in np.unique(labels)}
    smallest = min(medians, key=lambda label: medians[label]) if medians else 0
    share = medians.get(smallest, 0.1)
    # more pixels than the pictures have show nothing more
    limit = max(_SIZES[0], int(np.quantile(boxes.sizes.max(axis=1), 0.5)))
    chosen = next((one for one in _SIZES if one * share >= _NARROWEST or one >= limit), _SIZES[-1])
    reasons.append(
        f"input of {chosen} pixels, at which the median box of class {boxes.classes[smallest]!r}, the smallest one, is "
        f"{chosen * share:.0f} pixels narrow (size= changes it)"
    )
    return chosen, chosen
