"""What a fit of a detector does: chosen from data, network, machine and budget, before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError
from resfit.features import pixels
from resfit.networks.detection import kinds
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec, QueryDetectorSpec
from resfit.networks.detection.query_plan import tap_width
from resfit.networks.detection.rtdetr_plan import check_places
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.networks.spec import ArchitectureSpec
from resfit.storage.locks import cache_root
from resfit.tasks.detection.network import detector_spec
from resfit.tasks.detection.speed import DetectorSpeed, speed_of
from resfit.training.loop import check_choice

_VIEWS = 5
STRATEGIES = ("auto", "head", "last", "full")
_SIZES = (256, 320, 384, 448, 512, 576, 640)
# pixels of the input that the median box of each class should have, and that it needs to be seen
_NARROWEST, _SEEN = 20.0, 14.0


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
        pretrained_head: Whether pyramid and head begin with the weights in the package where they fit.
        published: Whether a published detector is kept but for its class layer.
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
        hardware: What the estimates and the division of the time are of, as :class:`DetectorSpeed` has it.
    """

    strategy: str
    size: tuple[int, int]
    views: int
    head: dict[str, Any]
    epochs: tuple[int, int]
    minutes: float | None
    head_share: float
    pretrained_head: bool = True
    published: bool = False
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
    hardware: dict[str, Any] = dataclasses.field(default_factory=dict)
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
    base: ArchitectureSpec | AnyDetectorSpec,
    *,
    strategy: str,
    minutes: float | None,
    size: int | tuple[int, int] | None,
    views: int | None,
    head: dict[str, Any],
    batch_size: int | None,
    storage: int | None,
    folder: Path | None,
    packaged: bool = False,
    measured: bool | str | Path = True,
) -> DetectionPlan:
    """Chooses what a fit does.

    Args:
        boxes: The pictures.
        base: The residual network, or the detector, that it begins with.
        strategy: As :func:`resfit.tasks.detection.fit.fit` takes it, like all that follow.
        minutes: The budget.
        size: Of the input.
        views: Stored views.
        head: Fields of pyramid and head.
        batch_size: Pictures a step.
        storage: Bytes of stored maps.
        folder: Of the cache.
        packaged: Whether the network is the one in the package, which has a pretrained pyramid and head, 64 wide.
        measured: Where measurements of a GPU are kept, as :func:`resfit.engines.speed.forward` takes it.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    check_choice("strategy", strategy, STRATEGIES)
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1. Received: {batch_size}.")
    if views is not None and not 0 <= views <= 100:
        raise ArgumentError(f"views must be 0 to 100. Received: {views}.")
    reasons: list[str] = []
    most = int(np.diff(boxes.offsets).max(initial=0))
    crowded = {"max_detections": min(1000, 2 * most), "candidates": min(1000, 3 * most)} if most > 50 else {}
    pretrained_head = packaged and bool(head.get("pretrained", True))
    # a narrow head makes more passes of a short time, and is what the package has weights of
    short = pretrained_head or (minutes is not None and minutes < _SHORT)
    narrow = {"pyramid_width": 64, "head_width": 64} if short else {}
    published = isinstance(base, AnyDetectorSpec)
    if isinstance(base, AnyDetectorSpec):
        fields = _published_fields(base, head, most, reasons)
    else:
        fields = {**_HEAD, **narrow, **crowded, **head}
    fields.pop("pretrained", None)
    what = "encoder and decoder" if isinstance(base, QueryDetectorSpec) else "pyramid and head"
    train = max(1.0, 0.7 * len(boxes))
    speed = speed_of(base, boxes, measured)
    reasons += [speed.told] if speed.told else []

    def spec_at(side: tuple[int, int]) -> AnyDetectorSpec:
        if isinstance(base, AnyDetectorSpec):
            return kinds.with_classes(base, len(boxes.classes)).replace(input_size=side, **fields)
        return detector_spec(base, len(boxes.classes), side, **fields)

    def costs_at(side: tuple[int, int]) -> _Costs:
        return _Costs.of(spec_at(side), side)

    def fits(side: int) -> bool:
        return (
            minutes is None
            or speed.rate(costs_at((side, side)).head) * _TRAINING * 60 * minutes / train >= _LEAST_PASSES
        )

    chosen = _size(boxes, size, fits, reasons)
    spec = spec_at(chosen)
    if isinstance(spec, RTDETRSpec):
        check_places(spec, chosen)
    elif isinstance(spec, DeformableDETRSpec) and spec.proposes:
        check_places(spec, chosen, spec.all_levels)
    costs = costs_at(chosen)
    grids = kinds.count(spec, input_size=chosen).levels
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
    share, passes = _division(costs, minutes, train, speed)
    if strategy == "auto":
        strategy = "head"
        if minutes is not None:
            strategy = next((name for name in ("full", "last") if passes[name] >= _ENOUGH[name]), "head")
        reasons.append(_why(strategy, minutes, passes, what))
    share = 1.0 if strategy == "head" else share
    features = len(boxes) * (1 + 0.7 * max(wanted - 1, 0)) * speed.forward_seconds(costs.body)
    training = 30 * train / speed.rate(costs.head)
    return DetectionPlan(
        seconds={"features": features, "training": training if minutes is None else max(0.0, minutes * 60 - features)},
        seconds_each=0.01 + speed.predicting_seconds(costs.body + costs.head / 3),
        strategy=strategy,
        size=chosen,
        views=wanted,
        head=fields,
        epochs=(30, 15),
        minutes=minutes,
        head_share=share,
        pretrained_head=pretrained_head,
        learning_rate=_rate_of_learning(base) or (2e-3 if pretrained_head else 3e-3),
        body_learning_rate=_rate_of_learning(base) or 1e-3,
        published=published,
        batch_size=batch_size or _batch_size(costs, minutes, train, speed),
        body_batch_size=batch_size or 8,
        map_bytes=len(boxes) * wanted * width * 2,
        reasons=tuple(reasons),
        hardware=speed.to_dict(),
    )


@dataclasses.dataclass(frozen=True)
class _Costs:
    """Multiply-accumulates for a picture.

    Attributes:
        body: Of the frozen body.
        head: Of a training step of pyramid and head, three times a pass forward.
        full: Of a training step of the whole network.
        last: Of one where the first stages stay as they are.
    """

    body: float
    head: float
    full: float
    last: float

    @classmethod
    def of(cls, spec: AnyDetectorSpec, size: tuple[int, int]) -> _Costs:
        """Counts them."""
        counted = kinds.count(spec, input_size=size)
        body = counted.part("backbone")[1]
        head = 3.0 * (counted.macs - body)
        return cls(body, head, 3.0 * body + head, 2.2 * body + head)


def _division(
    costs: _Costs, minutes: float | None, train: float, speed: DetectorSpeed
) -> tuple[float, dict[str, float]]:
    """Share of the time that is the head's alone, and about how many passes the rest could make over the pictures."""
    if minutes is None:
        return _HEAD_SHARE, dict.fromkeys(_ENOUGH, 0.0)
    seconds = _TRAINING * 60 * minutes
    alone = max(_HEAD_SHARE, _HEAD_PASSES * train / speed.rate(costs.head) / seconds)
    left = max(0.0, 1 - alone) * seconds
    return min(alone, 1.0), {name: left * speed.rate(getattr(costs, name), decodes=True) / train for name in _ENOUGH}


def _batch_size(costs: _Costs, minutes: float | None, train: float, speed: DetectorSpeed) -> int:
    """Pictures a step: few where there is time for few steps, which then make more of the same passes."""
    seen = 30 * train if minutes is None else 60 * minutes * speed.rate(costs.head + costs.body / 2)
    return 2 if seen < _FEW else 4 if seen < 5 * _FEW else 8


def _why(strategy: str, minutes: float | None, passes: dict[str, float], learns: str) -> str:
    """The choice of what learns as a sentence."""
    if minutes is None:
        return f"{learns} learn on stored maps: without a budget of time nothing more is tried (budget=)"
    if strategy == "head":
        return (
            f"{learns} learn on stored maps: in {minutes:g} minutes the last stages could make about "
            f"{passes['last']:.1f} passes over the pictures afterwards, too few to help"
        )
    what = "the whole network" if strategy == "full" else "the last stages"
    return f"{learns} learn on stored maps, then {what} on changed pictures, about {passes[strategy]:.0f} passes"


def _rate_of_learning(base: ArchitectureSpec | AnyDetectorSpec) -> float | None:
    """The learning rate of a published detector, which is lower than that of a fresh pyramid and head."""
    if isinstance(base, DETRSpec):
        return 1e-4
    if isinstance(base, QueryDetectorSpec):
        return 2e-4
    return 5e-4 if isinstance(base, AnyDetectorSpec) else None


def _published_fields(spec: AnyDetectorSpec, head: dict[str, Any], most: int, reasons: list[str]) -> dict[str, Any]:
    """The fields of a published detector that a fit changes: none that its weights depend on."""
    free = {field.name for field in dataclasses.fields(spec)} & set(_FREE)
    if isinstance(spec, FasterRCNNSpec):  # its network chooses them
        free -= {"candidates"}
    bound = sorted(set(head) - free - {"pretrained"})
    if bound:
        raise ArgumentError(
            f"the head of a published detector is as it was published, but for {sorted(free)}. Received: {bound[0]!r}. "
            "With 'pretrained': False in head= its residual network alone is taken."
        )
    own: dict[str, Any] = {"score_threshold": _HEAD["score_threshold"]}
    if isinstance(spec, DetectorSpec | FasterRCNNSpec) and most > 50:
        own |= {"max_detections": max(spec.max_detections, min(1000, 2 * most))}
    elif isinstance(spec, QueryDetectorSpec) and most > spec.queries:
        reasons.append(
            f"a picture has up to {most} boxes, and the detector's {spec.queries} queries find no more than as many "
            "(tiles= cuts pictures into parts)"
        )
    return {**own, **head}


_TRAINING = 0.75  # share of a budget that is left for training
_HEAD_SHARE, _HEAD_PASSES = 0.3, 25  # of the training's time, and passes, before the body learns too
_ENOUGH = {"full": 10.0, "last": 10.0}  # passes of the body under which it had better stay as it is
_LEAST_PASSES = 12  # of the head, for which a smaller input is taken
_SHORT = 6.0  # minutes
_FREE = ("score_threshold", "nms_threshold", "candidates", "max_detections")  # no weight depends on them
_FEW = 6000  # pictures that go through a step in the whole run
_HEAD: dict[str, Any] = {
    "pyramid_width": 96,
    "head_width": 96,
    "norm_groups": 16,
    "quality": None,
    "score_threshold": 0.01,
}


def _size(
    boxes: BoxSet, size: int | tuple[int, int] | None, fits: Callable[[int], bool], reasons: list[str]
) -> tuple[int, int]:
    """The size of the input: what the boxes need, or less where the budget asks for it and they are still seen."""
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
    wanted = next((one for one in _SIZES if one * share >= _NARROWEST or one >= limit), _SIZES[-1])
    seen = [one for one in _SIZES if one <= wanted and (one * share >= _SEEN or one == wanted)]
    chosen = next((one for one in reversed(seen) if fits(one)), seen[0])
    reasons.append(
        f"input of {chosen} pixels, at which the median box of class {boxes.classes[smallest]!r}, the smallest one, is "
        f"{chosen * share:.0f} pixels narrow"
        + (f"; {wanted} would be better and take longer than the budget" if chosen < wanted else "")
        + " (size= changes it)"
    )
    return chosen, chosen
