"""Named detectors: list them, describe one, and find the ones within given limits. No Keras is imported.

``resfit.load(name)`` brings one as a network; :class:`resfit.Detector` predicts with it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from resfit.errors import ArgumentError
from resfit.networks.detection import catalog, kinds
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.suggestions import pareto
from resfit.weights import registry
from resfit.weights.detectors import name_of_backbone, named

#: What :func:`ordered` sorts by: a field, and whether the largest comes first.
ORDERS: dict[str, tuple[str, bool]] = {
    "ap": ("ap", True),
    "params": ("parameters", False),
    "gmacs": ("gmacs", False),
    "name": ("name", False),
}


@dataclasses.dataclass(frozen=True)
class DetectorInfo:
    """One detector of the catalog in one line.

    Attributes:
        name: What ``resfit.load`` takes.
        family: The kind of detector.
        backbone: The catalog's name of its residual network.
        parameters: Moving statistics included.
        gmacs: Multiply-accumulates in billions for one image of ``cost_size``, as its publisher counts them.
        cost_size: Height and width in pixels that ``gmacs`` is for.
        classes: Class outputs, those included that stand for nothing.
        loadable: Whether ``resfit.load(name)`` brings published weights.
        licence: Of these weights; ``""`` where none is stated for them.
        training_data: What they were trained on.
        ap: Published box AP in percent, or None.
        evaluated_on: The images that it was measured on.
        evaluation_size: Pixels of the shorter side and most of the longer one at which it was measured, or None.
        megabytes: Size of the file in millions of bytes.
        figures: Who publishes these figures.
        url: Where the weights are.
        sha256: Digest of the file, or its first digits where only these are published.
        paper: Where the detector was published.
        pareto: Whether none of those listed costs less and has as high an AP, or as little and a higher one.
    """

    name: str
    family: str
    backbone: str
    parameters: int
    gmacs: float
    cost_size: tuple[int, int]
    classes: int
    loadable: bool
    licence: str
    training_data: str
    ap: float | None
    evaluated_on: str
    evaluation_size: tuple[int, int] | None
    megabytes: float | None
    figures: str
    url: str
    sha256: str
    paper: str
    pareto: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def list_detectors(
    pattern: str = "*", *, licence: str | None = None, trained_on: str | None = None, source: str | None = None
) -> list[DetectorInfo]:
    """Lists the detectors of the catalog.

    Args:
        pattern: Shell pattern such as ``"retinanet_*"``.
        licence: Of the published weights, as :func:`resfit.weights.registry.find` takes it.
        trained_on: Part of the name of what they were trained on.
        source: Who publishes them.

    Returns:
        One row each, in the order of the catalog; with a choice of weights, those that have some.

    Example:
        >>> [row.name for row in list_detectors("fcos_resnet50")]
        ['fcos_resnet50']
    """
    names = catalog.names(pattern)
    if licence is not None or trained_on is not None or source is not None:
        chosen = registry.find(licence=licence, trained_on=trained_on, source=source, among=registry.detectors())
        kept = {row.architecture for row in chosen}
        names = [name for name in names if name in kept]
    found = [_info(name) for name in names]
    front = iter(pareto([(row.gmacs, row.ap) for row in found if row.ap is not None]))
    return [row if row.ap is None else dataclasses.replace(row, pareto=next(front)) for row in found]


def ordered(found: list[DetectorInfo], by: str) -> list[DetectorInfo]:
    """Returns rows in an order; those without the figure last.

    Args:
        found: The rows.
        by: One of :data:`ORDERS`.

    Raises:
        ArgumentError: There is no such order.
    """
    if by not in ORDERS:
        raise ArgumentError(f"detectors can be sorted by {', '.join(ORDERS)}. Received: {by!r}.")
    field, descending = ORDERS[by]
    known = [row for row in found if getattr(row, field) is not None]
    known.sort(key=lambda row: getattr(row, field), reverse=descending)
    return known + [row for row in found if getattr(row, field) is None]


def suggest(
    *,
    max_params: float | None = None,
    max_gmacs: float | None = None,
    min_ap: float | None = None,
    licence: str | None = None,
    trained_on: str | None = None,
    source: str | None = None,
) -> list[DetectorInfo]:
    """Suggests published detectors within limits, the highest box AP first, and marks those that nothing else beats.

    Args:
        max_params: Most parameters, such as ``40e6``.
        max_gmacs: Most multiply-accumulates for one image, in billions, at the size that the publisher states them for.
        min_ap: Lowest published box AP in percent.
        licence: As :func:`list_detectors` takes it.
        trained_on: As :func:`list_detectors` takes it.
        source: As :func:`list_detectors` takes it.

    Raises:
        ArgumentError: A limit is not above zero.
    """
    for name, limit in {"max_params": max_params, "max_gmacs": max_gmacs, "min_ap": min_ap}.items():
        if limit is not None and not limit > 0:
            raise ArgumentError(f"{name} must be above 0. Received: {limit!r}.")
    found = [
        row
        for row in list_detectors(licence=licence, trained_on=trained_on, source=source)
        if row.ap is not None
        and row.ap >= (min_ap or 0)
        and row.parameters <= (max_params or float("inf"))
        and row.gmacs <= (max_gmacs or float("inf"))
    ]
    front = pareto([(row.gmacs, row.ap or 0.0) for row in found])
    found = [dataclasses.replace(row, pareto=best) for row, best in zip(found, front, strict=True)]
    return ordered(found, "ap")


@dataclasses.dataclass(frozen=True)
class SmallerInput:
    """A published detector whose cost is within a limit at a smaller input than the one it was measured at.

    Attributes:
        info: Its line in the list, with cost and AP as they are published.
        size: Height and width in pixels.
        gmacs: Multiply-accumulates in billions for one image of this size.
    """

    info: DetectorInfo
    size: tuple[int, int]
    gmacs: float


def at_smaller_sizes(max_gmacs: float, among: list[DetectorInfo]) -> list[SmallerInput]:
    """Returns at which square size detectors are within a limit of cost, those first that need to shrink least.

    What the AP is at that size is not published: it is lower, of small objects above all.

    Args:
        max_gmacs: Most multiply-accumulates for one image, in billions.
        among: Lines of the list. Those that are within the limit as they are published, and those that are beyond it
            even at 256 pixels, are left out.
    """
    found = []
    for info in ordered([row for row in among if row.ap is not None and row.gmacs > max_gmacs], "ap"):
        sides = range(_LEAST_SIDE, min(info.cost_size), 32)
        costs = {side: kinds.count(catalog.get(info.name).spec, input_size=(side, side)).macs / 1e9 for side in sides}
        within = [side for side, cost in costs.items() if cost <= max_gmacs]
        if within:
            found.append(SmallerInput(info, (within[-1], within[-1]), round(costs[within[-1]], 3)))
    # equal ones stay in the order of their AP
    return sorted(found, key=lambda one: -(one.size[0] ** 2) / (one.info.cost_size[0] * one.info.cost_size[1]))


_LEAST_SIDE = 256


@dataclasses.dataclass(frozen=True)
class DetectorDescription:
    """What is known of one detector without building it.

    Attributes:
        info: Its line in the list.
        parts: Parameters and multiply-accumulates of ``"backbone"``, ``"pyramid"`` and ``"head"``; of
            RT-DETR ``"backbone"``, ``"encoder"`` and ``"decoder"``.
        levels: Height and width of each level's map at ``info.cost_size``.
        boxes: Boxes before suppression at that size.
        input_spec: Its input contract, as a mapping.
        architecture: Its fields, as a mapping.
        class_names: Names of its class outputs, or None.
    """

    info: DetectorInfo
    parts: dict[str, tuple[int, int]]
    levels: dict[int, tuple[int, int]]
    boxes: int
    input_spec: dict[str, Any]
    architecture: dict[str, Any]
    class_names: tuple[str, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            **self.info.to_dict(),
            "parts": {name: {"parameters": one, "macs": other} for name, (one, other) in self.parts.items()},
            "levels": {str(level): list(sides) for level, sides in self.levels.items()},
            "boxes": self.boxes,
            "input_spec": self.input_spec,
            "architecture": self.architecture,
            "class_names": None if self.class_names is None else list(self.class_names),
        }


def describe(name: str) -> DetectorDescription:
    """Describes a detector from its tables alone.

    Args:
        name: Of the catalog of detectors.

    Raises:
        UnknownNameError: The catalog has no such name.
    """
    spec, counted = catalog.get(name).spec, _count(name)
    row = registry.detectors().get(name)
    return DetectorDescription(
        info=next(info for info in list_detectors(name) if info.name == name),
        parts={part: counted.part(part) for part in counted.parts},
        levels=counted.levels,
        boxes=counted.boxes,
        input_spec=named(name).input_spec.to_dict(),
        architecture=spec.to_dict(),
        class_names=row.class_names if row else None,
    )


@functools.cache
def _count(name: str) -> DetectorArithmetic:
    return kinds.count(catalog.get(name).spec)


def _info(name: str) -> DetectorInfo:
    row, counted, weights = catalog.get(name), _count(name), registry.detectors().get(name)
    spec = row.spec
    evaluated = None
    if weights is not None:
        side = weights.eval_size or weights.input_size
        evaluated = (side, weights.longest_side or side)
    return DetectorInfo(
        name=name,
        family=row.family,
        backbone=name_of_backbone(spec),
        parameters=counted.parameters,
        gmacs=round(counted.macs / 1e9, 3),
        cost_size=spec.input_size,
        classes=spec.classes,
        loadable=bool(weights and weights.loadable),
        licence=weights.licence if weights else "",
        training_data=weights.training_data if weights else "",
        ap=weights.ap if weights else None,
        evaluated_on=weights.evaluated_on if weights else "",
        evaluation_size=evaluated,
        megabytes=weights.megabytes if weights else None,
        figures=weights.figures if weights else "",
        url=weights.url if weights else "",
        sha256=weights.sha256 if weights else "",
        paper=row.paper,
    )
