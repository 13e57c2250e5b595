"""Layers of detectors that decode queries, one by one: what plans are made of, and what they cost. No Keras.

A Keras builder and the arithmetic read the same plan, so that widths stand in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from resfit.networks.arithmetic import LayerCount


@dataclasses.dataclass(frozen=True)
class PlannedLayer:
    """One layer with weights.

    Attributes:
        name: Its name, without ``_conv`` and ``_bn`` for a convolution, which stands for both.
        kind: A convolution with a batch norm behind it or with a bias, a dense layer, a layer norm, or a table.
        inputs: Channels that enter; of an embedding how many vectors it has.
        outputs: Channels that leave.
        kernel: Side of a convolution's kernel.
        stride: Of a convolution.
        place: What it runs on: the number of a map, ``"places"`` of all maps, ``"queries"``, or ``"training"``.
    """

    name: str
    kind: Literal["conv", "biased_conv", "dense", "norm", "embedding"]
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    place: int | str = "queries"


def attention(name: str, width: int, place: int | str, keys: int | str | None = None) -> Iterator[PlannedLayer]:
    """Yields the projections of an attention and the norm behind it.

    Args:
        name: What their names begin with.
        width: Channels.
        place: What they run on.
        keys: What keys and values run on. Default: ``place``.
    """
    for part in ("query", "key", "value", "attended"):
        own = place if keys is None or part in ("query", "attended") else keys
        yield PlannedLayer(f"{name}_{part}", "dense", width, width, place=own)
    yield PlannedLayer(f"{name}_attended_norm", "norm", width, width, place=place)


def feed_forward(name: str, width: int, hidden: int, place: int | str) -> Iterator[PlannedLayer]:
    """Yields the two layers of a feed-forward part and the norm behind it.

    Args:
        name: What their names begin with.
        width: Channels.
        hidden: Hidden units.
        place: What they run on.
    """
    yield PlannedLayer(f"{name}_hidden", "dense", width, hidden, place=place)
    yield PlannedLayer(f"{name}_output", "dense", hidden, width, place=place)
    yield PlannedLayer(f"{name}_output_norm", "norm", width, width, place=place)


def boxes(name: str, width: int, place: str) -> Iterator[PlannedLayer]:
    """Yields the three layers that say where a box is.

    Args:
        name: What their names begin with.
        width: Channels.
        place: What they run on.
    """
    for number, outputs in enumerate((width, width, 4), start=1):
        yield PlannedLayer(f"{name}_box_{number}", "dense", width, outputs, place=place)


def conv(name: str, inputs: int, outputs: int, place: int, *, kernel: int = 1, stride: int = 1) -> PlannedLayer:
    """Returns a convolution with its batch norm.

    Args:
        name: Its name.
        inputs: Channels that enter.
        outputs: Channels that leave.
        place: Number of the map.
        kernel: Side of the kernel.
        stride: Its stride.
    """
    return PlannedLayer(name, "conv", inputs, outputs, kernel, stride, place)


def tap_width(spec: Any, tap: str) -> int:
    """Returns the channels of a stage of the backbone.

    Args:
        spec: The detector.
        tap: ``"stage1"`` to ``"stage5"``.
    """
    number = int(tap.removeprefix("stage"))
    return spec.backbone.stem[-1].width if number == 1 else spec.backbone.widths[number - 2]


def counted(layer: PlannedLayer, areas: Sequence[int], uses: Mapping[str, int]) -> list[LayerCount]:
    """Counts a layer.

    Args:
        layer: The layer.
        areas: Places of each map.
        uses: How many vectors there are of what else layers run on.
    """
    part = layer.name.partition("_")[0]
    times = areas[layer.place] if isinstance(layer.place, int) else uses.get(layer.place, 0)
    shape = (times, layer.outputs)
    weights = layer.kernel**2 * layer.inputs * layer.outputs
    macs = times * weights
    if layer.kind == "norm":
        pair = 2 * layer.outputs
        return [LayerCount(layer.name, part, "norm", shape, pair, pair, 0, 5 * times * layer.outputs)]
    if layer.kind == "embedding":
        return [LayerCount(layer.name, part, "dense", shape, weights, weights, 0)]
    if layer.kind == "dense":
        biased = weights + layer.outputs
        return [LayerCount(layer.name, part, "dense", shape, biased, biased, macs)]
    sides = {"kernel": layer.kernel, "stride": layer.stride}
    if layer.kind == "biased_conv":
        biased = weights + layer.outputs
        return [LayerCount(f"{layer.name}_conv", part, "conv", shape, biased, biased, macs, **sides)]
    four, two = 4 * layer.outputs, 2 * layer.outputs
    return [
        LayerCount(f"{layer.name}_conv", part, "conv", shape, weights, weights, macs, **sides),
        LayerCount(f"{layer.name}_bn", part, "norm", shape, four, two, 0, 2 * times * layer.outputs),
    ]


def products(name: str, part: str, times: int, each: int) -> LayerCount:
    """Counts products without weights.

    Args:
        name: What they are called.
        part: ``"encoder"`` or ``"decoder"``.
        times: How many vectors there are.
        each: Products of one.
    """
    return LayerCount(name, part, "attention", (times,), 0, 0, times * each)
