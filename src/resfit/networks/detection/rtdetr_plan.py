"""The layers of an RT-DETR beside its backbone, one by one. Pure Python, no Keras.

Both the Keras builder and the arithmetic read this plan, so that widths stand in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from resfit.networks import arithmetic
from resfit.networks.arithmetic import LayerCount
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.networks.detection.rtdetr_spec import RTDETRSpec

#: What the decoder's heads for training alone are called.
DENOISING = "decoder_denoising"


@dataclasses.dataclass(frozen=True)
class PlannedLayer:
    """One layer with weights.

    Attributes:
        name: Its name, without ``_conv`` and ``_bn`` for a convolution, which stands for both.
        kind: A convolution with a batch norm behind it, a dense layer, a layer norm, or an embedding.
        inputs: Channels that enter; of an embedding how many vectors it has.
        outputs: Channels that leave.
        kernel: Side of a convolution's kernel.
        stride: Of a convolution.
        place: What it runs on: the number of a map, ``"places"`` of all maps, ``"queries"``, or ``"training"``.
    """

    name: str
    kind: Literal["conv", "dense", "norm", "embedding"]
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    place: int | str = "queries"


def plan(spec: RTDETRSpec) -> tuple[PlannedLayer, ...]:
    """Returns the layers of encoder and decoder.

    Args:
        spec: The detector.
    """
    return (*_encoder(spec), *_decoder(spec))


def _encoder(spec: RTDETRSpec) -> Iterator[PlannedLayer]:
    width, fused, last = spec.encoder_width, spec.fusion_width, len(spec.levels) - 1
    for number, tap in enumerate(spec.taps.values()):
        yield _conv(f"encoder_input_{number + 1}", tap_width(spec, tap), width, number)
    for number in range(1, spec.encoder_depth + 1):
        yield from _attention(f"encoder_attention_{number}", width, last)
        yield from _feed_forward(f"encoder_attention_{number}", width, spec.encoder_hidden, last)
    for number in range(1, last + 1):
        yield _conv(f"encoder_lateral_{number}", width, width, last - number + 1)
        yield from _fusion(spec, f"encoder_top_down_{number}", width, fused, last - number)
    for number in range(1, last + 1):
        yield _conv(f"encoder_downsample_{number}", width, width, number, kernel=3, stride=2)
        yield from _fusion(spec, f"encoder_bottom_up_{number}", width, fused, number)


def _fusion(spec: RTDETRSpec, name: str, width: int, fused: int, place: int) -> Iterator[PlannedLayer]:
    for number in (1, 2):
        yield _conv(f"{name}_{number}", 2 * width, fused, place)
    for block in range(1, spec.fusion_blocks + 1):
        yield _conv(f"{name}_block{block}_1", fused, fused, place, kernel=3)
        yield _conv(f"{name}_block{block}_2", fused, fused, place)
    if fused != width:
        yield _conv(f"{name}_3", fused, width, place)


def _decoder(spec: RTDETRSpec) -> Iterator[PlannedLayer]:
    width, levels = spec.decoder_width, len(spec.levels)
    for number in range(levels):
        yield _conv(f"decoder_input_{number + 1}", spec.encoder_width, width, number)
    yield PlannedLayer(DENOISING, "embedding", spec.classes + 1, width, place="training")
    yield PlannedLayer("decoder_proposal", "dense", width, width, place="places")
    yield PlannedLayer("decoder_proposal_norm", "norm", width, width, place="places")
    yield PlannedLayer("decoder_proposal_class", "dense", width, spec.classes, place="places")
    yield from _boxes("decoder_proposal", width, "places")
    yield PlannedLayer("decoder_position_1", "dense", 4, 2 * width, place="positions")
    yield PlannedLayer("decoder_position_2", "dense", 2 * width, width, place="positions")
    sampled = spec.decoder_heads * levels * spec.points
    for number in range(1, spec.decoder_depth + 1):
        name = f"decoder_{number}"
        yield from _attention(name, width, "queries")
        yield PlannedLayer(f"{name}_offsets", "dense", width, 2 * sampled)
        yield PlannedLayer(f"{name}_weights", "dense", width, sampled)
        yield PlannedLayer(f"{name}_values", "dense", width, width, place="places")
        yield PlannedLayer(f"{name}_sampled", "dense", width, width)
        yield PlannedLayer(f"{name}_sampled_norm", "norm", width, width)
        yield from _feed_forward(name, width, spec.decoder_hidden, "queries")
        place = "queries" if number == spec.decoder_depth else "training"
        yield PlannedLayer(f"{name}_class", "dense", width, spec.classes, place=place)
        yield from _boxes(name, width, "queries")


def _attention(name: str, width: int, place: int | str) -> Iterator[PlannedLayer]:
    for part in ("query", "key", "value", "attended"):
        yield PlannedLayer(f"{name}_{part}", "dense", width, width, place=place)
    yield PlannedLayer(f"{name}_attended_norm", "norm", width, width, place=place)


def _feed_forward(name: str, width: int, hidden: int, place: int | str) -> Iterator[PlannedLayer]:
    yield PlannedLayer(f"{name}_hidden", "dense", width, hidden, place=place)
    yield PlannedLayer(f"{name}_output", "dense", hidden, width, place=place)
    yield PlannedLayer(f"{name}_output_norm", "norm", width, width, place=place)


def _boxes(name: str, width: int, place: str) -> Iterator[PlannedLayer]:
    for number, outputs in enumerate((width, width, 4), start=1):
        yield PlannedLayer(f"{name}_box_{number}", "dense", width, outputs, place=place)


def _conv(name: str, inputs: int, outputs: int, place: int, *, kernel: int = 1, stride: int = 1) -> PlannedLayer:
    return PlannedLayer(name, "conv", inputs, outputs, kernel, stride, place)


def tap_width(spec: RTDETRSpec, tap: str) -> int:
    """Returns the channels of a stage of the backbone.

    Args:
        spec: The detector.
        tap: ``"stage2"`` to ``"stage5"``.
    """
    return spec.backbone.widths[int(tap.removeprefix("stage")) - 2]


def map_sizes(spec: RTDETRSpec, image_size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Returns height and width of the map of each level.

    Args:
        spec: The detector.
        image_size: Height and width of the image in pixels.
    """
    return {level: (-(-image_size[0] // 2**level), -(-image_size[1] // 2**level)) for level in spec.levels}


def count(spec: RTDETRSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector: its layers, and the products of attention and sampling as layers without weights.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    size = input_size or spec.input_size
    grids = map_sizes(spec, size)
    areas = [rows * columns for rows, columns in grids.values()]
    layers = list(arithmetic.count(spec.backbone, input_size=size, include_top=False).layers)
    uses = {"places": sum(areas), "queries": spec.queries, "positions": spec.decoder_depth * spec.queries}
    for layer in plan(spec):
        layers += _counted(layer, areas, uses)
    width, coarse = spec.encoder_width, areas[-1]
    for number in range(1, spec.encoder_depth + 1):
        layers.append(_products(f"encoder_attention_{number}_attention", "encoder", coarse, 2 * coarse * width))
    samples = len(spec.levels) * spec.points * spec.decoder_width
    for number in range(1, spec.decoder_depth + 1):
        each = 2 * spec.queries * spec.decoder_width
        layers.append(_products(f"decoder_{number}_attention", "decoder", spec.queries, each))
        layers.append(_products(f"decoder_{number}_sampling", "decoder", spec.queries, 5 * samples))
    return DetectorArithmetic(tuple(layers), grids, spec.queries)


def _counted(layer: PlannedLayer, areas: list[int], uses: dict[str, int]) -> list[LayerCount]:
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
    four, two = 4 * layer.outputs, 2 * layer.outputs
    return [
        LayerCount(f"{layer.name}_conv", part, "conv", shape, weights, weights, macs, **sides),
        LayerCount(f"{layer.name}_bn", part, "norm", shape, four, two, 0, 2 * times * layer.outputs),
    ]


def _products(name: str, part: str, times: int, each: int) -> LayerCount:
    return LayerCount(name, part, "attention", (times,), 0, 0, times * each)
