"""The layers of an RT-DETR beside its backbone, one by one, and what they cost. Pure Python, no Keras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from resfit.errors import ArgumentError
from resfit.networks import arithmetic
from resfit.networks.detection import query_plan
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.networks.detection.query_plan import PlannedLayer
from resfit.networks.detection.query_spec import LevelledQuerySpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec

#: What the decoder's heads for training alone are called.
DENOISING = "decoder_denoising"


def plan(spec: RTDETRSpec) -> tuple[PlannedLayer, ...]:
    """Returns the layers of encoder and decoder.

    Args:
        spec: The detector.
    """
    return (*_encoder(spec), *_decoder(spec))


def _encoder(spec: RTDETRSpec) -> Iterator[PlannedLayer]:
    width, fused, last = spec.encoder_width, spec.fusion_width, len(spec.levels) - 1
    for number, tap in enumerate(spec.taps.values()):
        yield query_plan.conv(f"encoder_input_{number + 1}", query_plan.tap_width(spec, tap), width, number)
    for number in range(1, spec.encoder_depth + 1):
        yield from query_plan.attention(f"encoder_attention_{number}", width, last)
        yield from query_plan.feed_forward(f"encoder_attention_{number}", width, spec.encoder_hidden, last)
    for number in range(1, last + 1):
        yield query_plan.conv(f"encoder_lateral_{number}", width, width, last - number + 1)
        yield from _fusion(spec, f"encoder_top_down_{number}", width, fused, last - number)
    for number in range(1, last + 1):
        yield query_plan.conv(f"encoder_downsample_{number}", width, width, number, kernel=3, stride=2)
        yield from _fusion(spec, f"encoder_bottom_up_{number}", width, fused, number)


def _fusion(spec: RTDETRSpec, name: str, width: int, fused: int, place: int) -> Iterator[PlannedLayer]:
    for number in (1, 2):
        yield query_plan.conv(f"{name}_{number}", 2 * width, fused, place)
    for block in range(1, spec.fusion_blocks + 1):
        yield query_plan.conv(f"{name}_block{block}_1", fused, fused, place, kernel=3)
        yield query_plan.conv(f"{name}_block{block}_2", fused, fused, place)
    if fused != width:
        yield query_plan.conv(f"{name}_3", fused, width, place)


def _decoder(spec: RTDETRSpec) -> Iterator[PlannedLayer]:
    width, levels = spec.decoder_width, len(spec.levels)
    for number in range(levels):
        yield query_plan.conv(f"decoder_input_{number + 1}", spec.encoder_width, width, number)
    yield PlannedLayer(DENOISING, "embedding", spec.classes + 1, width, place="training")
    yield PlannedLayer("decoder_proposal", "dense", width, width, place="places")
    yield PlannedLayer("decoder_proposal_norm", "norm", width, width, place="places")
    yield PlannedLayer("decoder_proposal_class", "dense", width, spec.classes, place="places")
    yield from query_plan.boxes("decoder_proposal", width, "places")
    yield PlannedLayer("decoder_position_1", "dense", 4, 2 * width, place="positions")
    yield PlannedLayer("decoder_position_2", "dense", 2 * width, width, place="positions")
    sampled = spec.decoder_heads * levels * spec.points
    for number in range(1, spec.decoder_depth + 1):
        name = f"decoder_{number}"
        yield from query_plan.attention(name, width, "queries")
        yield PlannedLayer(f"{name}_offsets", "dense", width, 2 * sampled)
        yield PlannedLayer(f"{name}_weights", "dense", width, sampled)
        yield PlannedLayer(f"{name}_values", "dense", width, width, place="places")
        yield PlannedLayer(f"{name}_sampled", "dense", width, width)
        yield PlannedLayer(f"{name}_sampled_norm", "norm", width, width)
        yield from query_plan.feed_forward(name, width, spec.decoder_hidden, "queries")
        place = "queries" if number == spec.decoder_depth else "training"
        yield PlannedLayer(f"{name}_class", "dense", width, spec.classes, place=place)
        yield from query_plan.boxes(name, width, "queries")


def map_sizes(levels: Iterable[int], image_size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Returns height and width of the map of each level.

    Args:
        levels: Levels: level ``n`` has a stride of ``2 ** n`` pixels.
        image_size: Height and width of the image in pixels.
    """
    return {level: (-(-image_size[0] // 2**level), -(-image_size[1] // 2**level)) for level in levels}


def check_places(spec: LevelledQuerySpec, size: tuple[int, int], levels: Sequence[int] | None = None) -> None:
    """Makes sure that images have as many places as there are queries that are chosen among them.

    Args:
        spec: The detector.
        size: Height and width of the images in pixels.
        levels: Of the maps. Default: those of the backbone.

    Raises:
        ArgumentError: They have fewer.
    """
    places = sum(rows * columns for rows, columns in map_sizes(tuple(levels or spec.levels), size).values())
    if places < spec.queries:
        raise ArgumentError(
            f"an image must have at least as many places as there are queries ({spec.queries}). Received: {places} at "
            f"{size[0]}x{size[1]} pixels. Take larger images, or a smaller queries=."
        )


def count(spec: RTDETRSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector: its layers, and the products of attention and sampling as layers without weights.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    size = input_size or spec.input_size
    grids = map_sizes(spec.levels, size)
    areas = [rows * columns for rows, columns in grids.values()]
    layers = list(arithmetic.count(spec.backbone, input_size=size, include_top=False).layers)
    uses = {"places": sum(areas), "queries": spec.queries, "positions": spec.decoder_depth * spec.queries}
    for layer in plan(spec):
        layers += query_plan.counted(layer, areas, uses)
    width, coarse = spec.encoder_width, areas[-1]
    for number in range(1, spec.encoder_depth + 1):
        layers.append(
            query_plan.products(f"encoder_attention_{number}_attention", "encoder", coarse, 2 * coarse * width)
        )
    samples = len(spec.levels) * spec.points * spec.decoder_width
    for number in range(1, spec.decoder_depth + 1):
        each = 2 * spec.queries * spec.decoder_width
        layers.append(query_plan.products(f"decoder_{number}_attention", "decoder", spec.queries, each))
        layers.append(query_plan.products(f"decoder_{number}_sampling", "decoder", spec.queries, 5 * samples))
    return DetectorArithmetic(tuple(layers), grids, spec.queries)
