"""The layers of a DETR beside its backbone, one by one, and what they cost. Pure Python, no Keras."""

from __future__ import annotations

from collections.abc import Iterator

from resfit.networks import arithmetic
from resfit.networks.detection import query_plan
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.query_plan import PlannedLayer

#: The table of what is learned of each query.
QUERIES = "decoder_queries"


def plan(spec: DETRSpec) -> tuple[PlannedLayer, ...]:
    """Returns the layers of encoder and decoder.

    Args:
        spec: The detector.
    """
    return tuple(_layers(spec))


def _layers(spec: DETRSpec) -> Iterator[PlannedLayer]:
    width = spec.width
    entering = query_plan.tap_width(spec, next(iter(spec.taps.values())))
    yield PlannedLayer("encoder_input", "biased_conv", entering, width, place=0)
    for number in range(1, spec.encoder_depth + 1):
        yield from query_plan.attention(f"encoder_{number}", width, 0)
        yield from query_plan.feed_forward(f"encoder_{number}", width, spec.hidden, 0)
    yield PlannedLayer(QUERIES, "embedding", spec.queries, width)
    for number in range(1, spec.decoder_depth + 1):
        name = f"decoder_{number}"
        yield from query_plan.attention(name, width, "queries")
        yield from query_plan.attention(f"{name}_seen", width, "queries", keys=0)
        yield from query_plan.feed_forward(name, width, spec.hidden, "queries")
    yield PlannedLayer("decoder_norm", "norm", width, width)
    yield PlannedLayer("decoder_class", "dense", width, spec.class_outputs)
    yield from query_plan.boxes("decoder", width, "queries")


def map_size(spec: DETRSpec, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of the map that the transformer takes.

    Args:
        spec: The detector.
        image_size: Height and width of the image in pixels.
    """
    stride = spec.backbone.output_stride
    return -(-image_size[0] // stride), -(-image_size[1] // stride)


def count(spec: DETRSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector: its layers, and the products of attention as layers without weights.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    size = input_size or spec.input_size
    rows, columns = map_size(spec, size)
    area, width, queries = rows * columns, spec.width, spec.queries
    layers = list(arithmetic.count(spec.backbone, input_size=size, include_top=False).layers)
    for layer in plan(spec):
        layers += query_plan.counted(layer, [area], {"queries": queries})
    for number in range(1, spec.encoder_depth + 1):
        layers.append(query_plan.products(f"encoder_{number}_attention", "encoder", area, 2 * area * width))
    for number in range(1, spec.decoder_depth + 1):
        each = 2 * (queries + area) * width
        layers.append(query_plan.products(f"decoder_{number}_attention", "decoder", queries, each))
    return DetectorArithmetic(tuple(layers), {next(iter(spec.taps)): (rows, columns)}, queries)
