"""Parameters, MACs and shapes of a dense detector from its spec alone. Pure Python, no Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from resfit.networks import arithmetic
from resfit.networks.arithmetic import LayerCount
from resfit.networks.detection.anchors import grid_sizes
from resfit.networks.detection.spec import DetectorSpec
from resfit.networks.plan import NORM_SUFFIXES

# Of each kind of norm: weights of a channel that learn, those that do not, and operations of a value.
_NORMS = {"batch": (2, 2, 2), "group": (2, 0, 5)}


@dataclasses.dataclass(frozen=True)
class DetectorArithmetic:
    """What a dense detector costs.

    Attributes:
        layers: Every counted layer; ``stage`` is that of the backbone, ``"pyramid"`` or ``"head"``. The MACs of a layer
            of the head are those of all levels; its shape is that of the finest.
        levels: Height and width of the map of each level.
        boxes: Boxes that the model returns for one image.
    """

    layers: tuple[LayerCount, ...]
    levels: dict[int, tuple[int, int]]
    boxes: int

    @property
    def parameters(self) -> int:
        """All weights, as ``model.count_params()`` counts them."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self) -> int:
        """Weights that learn, as torch-side libraries count parameters (no moving statistics)."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def parameters_with_frozen_norms(self) -> int:
        """Weights that learn where the norms of the backbone do not.

        torchvision states its first RetinaNet and its FCOS so, whose batch norms are frozen.
        """
        frozen = sum(layer.trainable for layer in self.layers if layer.kind == "norm" and _part(layer) == "backbone")
        return self.trainable_parameters - frozen

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions for one image; torchvision states them as GFLOPS."""
        return sum(layer.macs for layer in self.layers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that :meth:`part` tells apart, in the order of the forward pass."""
        return tuple(dict.fromkeys(map(_part, self.layers)))

    def part(self, name: str) -> tuple[int, int]:
        """Returns parameters and MACs of one part.

        Args:
            name: One of :attr:`parts`: ``"backbone"``, ``"pyramid"`` and ``"head"`` of a dense detector.
        """
        own = [layer for layer in self.layers if _part(layer) == name]
        return sum(layer.parameters for layer in own), sum(layer.macs for layer in own)


def count(
    spec: DetectorSpec, *, input_size: tuple[int, int] | None = None, classes: int | None = None
) -> DetectorArithmetic:
    """Counts a detector.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
        classes: Class outputs. Default: the spec's.

    Example:
        >>> from resfit.networks.detection import catalog
        >>> count(catalog.get("retinanet_resnet50").spec).parameters_with_frozen_norms
        34014999
    """
    size = input_size or spec.input_size
    spec = spec if classes is None else spec.replace(classes=classes)
    grids = dict(zip(spec.levels, grid_sizes(spec, size), strict=True))
    body = arithmetic.count(spec.backbone, input_size=size, include_top=False).layers
    # the norm behind the last block of a pre-activated network is its own, though counted as its head there
    counted = [dataclasses.replace(layer, stage="stage5") if layer.stage == "head" else layer for layer in body]
    counted += [*pyramid(spec, grids), *_head(spec, grids)]
    boxes = sum(rows * columns for rows, columns in grids.values()) * spec.anchors_per_cell
    return DetectorArithmetic(tuple(counted), grids, boxes)


def pyramid(spec: Any, grids: Mapping[int, tuple[int, int]]) -> list[LayerCount]:
    """Counts a feature pyramid.

    Args:
        spec: The detector.
        grids: Height and width of each level that has convolutions.
    """
    width, kind = spec.pyramid_width, spec.pyramid_norm
    layers: list[LayerCount] = []
    for level, tap in spec.taps.items():
        number = int(tap.removeprefix("stage"))
        entering = spec.backbone.stem[-1].width if number == 1 else spec.backbone.widths[number - 2]
        for part, kernel, channels in (("lateral", 1, entering), ("output", 3, width)):
            name = f"p{level}_{part}"
            layers.append(conv(name, "pyramid", [grids[level]], channels, width, kernel, biased=kind == "none"))
            layers += norm(name, "pyramid", [grids[level]], width, kind)
    last = max(spec.taps)
    for level in (level for level in grids if level > last):
        channels = width
        if level == last + 1 and spec.extra_input == "c5":
            channels = spec.backbone.widths[int(spec.taps[last].removeprefix("stage")) - 2]
        layers.append(conv(f"p{level}", "pyramid", [grids[level]], channels, width, 3, stride=2))
    return layers


def _head(spec: DetectorSpec, grids: dict[int, tuple[int, int]]) -> list[LayerCount]:
    maps = list(grids.values())
    layers: list[LayerCount] = []
    branches = {
        "class": {"class_logits": spec.classes},
        "box": {"box_codes": spec.box_values, **({"quality": 1} if spec.quality else {})},
    }
    for branch, outputs in branches.items():
        channels = spec.pyramid_width
        for number in range(1, spec.head_depth + 1):
            name = f"{branch}_{number}"
            layers.append(conv(name, "head", maps, channels, spec.head_width, 3, biased=spec.head_bias))
            layers += norm(name, "head", maps, spec.head_width, spec.head_norm)
            channels = spec.head_width
        for output, values in outputs.items():
            layers.append(conv(output, "head", maps, channels, spec.anchors_per_cell * values, 3))
    if spec.level_scales:
        for level, (rows, columns) in grids.items():
            shape = (rows, columns, spec.anchors_per_cell * spec.box_values)
            layers.append(LayerCount(f"p{level}_scale", "head", "scale", shape, 1, 1, 0))
    return layers


def conv(
    name: str,
    part: str,
    maps: list[tuple[int, int]],
    channels: int,
    width: int,
    kernel: int,
    *,
    stride: int = 1,
    biased: bool = True,
) -> LayerCount:
    """Counts a convolution.

    Args:
        name: Its name, without ``_conv``.
        part: What it belongs to.
        maps: Height and width of each map that it runs on.
        channels: Channels that enter.
        width: Channels that leave.
        kernel: Side of its kernel.
        stride: Its stride.
        biased: Whether it has a bias.
    """
    weights = kernel * kernel * channels * width
    parameters = weights + width * biased
    macs = weights * sum(rows * columns for rows, columns in maps)
    shape = (*maps[0], width)
    return LayerCount(f"{name}_conv", part, "conv", shape, parameters, parameters, macs, kernel=kernel, stride=stride)


def norm(name: str, part: str, maps: list[tuple[int, int]], width: int, kind: str) -> list[LayerCount]:
    """Counts a norm, where there is one.

    Args:
        name: Its name, without the suffix.
        part: What it belongs to.
        maps: Height and width of each map that it runs on.
        width: Channels.
        kind: ``"none"``, ``"batch"`` or ``"group"``.
    """
    if kind == "none":
        return []
    learned, statistics, operations = _NORMS[kind]
    values = width * sum(rows * columns for rows, columns in maps)
    counts = ((learned + statistics) * width, learned * width, 0, operations * values)
    return [LayerCount(f"{name}_{NORM_SUFFIXES[kind]}", part, "norm", (*maps[0], width), *counts)]


def _part(layer: LayerCount) -> str:
    return "backbone" if layer.stage.startswith("stage") else layer.stage
