"""The layers of a Deformable DETR beside its backbone, one by one, and what they cost. Pure Python, no Keras."""

from __future__ import annotations

from collections.abc import Iterator

from resfit.networks import arithmetic
from resfit.networks.detection import query_plan
from resfit.networks.detection.arithmetic import DetectorArithmetic
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.query_plan import PlannedLayer
from resfit.networks.detection.rtdetr_plan import map_sizes

#: The tables of what is learned of each level, and of each query.
LEVELS, QUERIES = "encoder_levels", "decoder_queries"


def plan(spec: DeformableDETRSpec) -> tuple[PlannedLayer, ...]:
    """Returns the layers of encoder and decoder.

    Args:
        spec: The detector.
    """
    return (*_encoder(spec), *_decoder(spec))


def _encoder(spec: DeformableDETRSpec) -> Iterator[PlannedLayer]:
    width, taps = spec.width, list(spec.taps.values())
    for place in range(len(spec.all_levels)):
        extra = place >= len(taps)
        entering = width if place > len(taps) else query_plan.tap_width(spec, taps[min(place, len(taps) - 1)])
        kernel, stride = (3, 2) if extra else (1, 1)
        yield PlannedLayer(f"encoder_input_{place + 1}", "biased_conv", entering, width, kernel, stride, place)
        yield PlannedLayer(f"encoder_input_{place + 1}_gn", "norm", width, width, place=place)
    yield PlannedLayer(LEVELS, "embedding", len(spec.all_levels), width)
    for number in range(1, spec.encoder_depth + 1):
        yield from _sampling(spec, f"encoder_{number}", spec.encoder_points, "places")
        yield from query_plan.feed_forward(f"encoder_{number}", width, spec.hidden, "places")


def _sampling(spec: DeformableDETRSpec, name: str, points: int, place: str) -> Iterator[PlannedLayer]:
    width, sampled = spec.width, spec.heads * len(spec.all_levels) * points
    yield PlannedLayer(f"{name}_offsets", "dense", width, 2 * sampled, place=place)
    yield PlannedLayer(f"{name}_weights", "dense", width, sampled, place=place)
    yield PlannedLayer(f"{name}_values", "dense", width, width, place="places")
    yield PlannedLayer(f"{name}_sampled", "dense", width, width, place=place)
    yield PlannedLayer(f"{name}_sampled_norm", "norm", width, width, place=place)


def _decoder(spec: DeformableDETRSpec) -> Iterator[PlannedLayer]:
    width = spec.width
    if spec.proposes:
        yield PlannedLayer("decoder_proposal", "dense", width, width, place="places")
        yield PlannedLayer("decoder_proposal_norm", "norm", width, width, place="places")
        yield PlannedLayer("decoder_proposal_class", "dense", width, spec.classes, place="places")
        yield from query_plan.boxes("decoder_proposal", width, "places")
        yield PlannedLayer("decoder_position", "dense", 2 * width, 2 * width)
        yield PlannedLayer("decoder_position_norm", "norm", 2 * width, 2 * width)
    else:
        yield PlannedLayer(QUERIES, "embedding", spec.queries, 2 * width)
        yield PlannedLayer("decoder_reference", "dense", width, 2)
    for number in range(1, spec.decoder_depth + 1):
        name = f"decoder_{number}"
        yield from query_plan.attention(name, width, "queries")
        yield from _sampling(spec, name, spec.points, "queries")
        yield from query_plan.feed_forward(name, width, spec.hidden, "queries")
        if spec.refines:
            place = "queries" if number == spec.decoder_depth else "training"
            yield PlannedLayer(f"{name}_class", "dense", width, spec.classes, place=place)
            yield from query_plan.boxes(name, width, "queries")
    if not spec.refines:
        yield PlannedLayer("decoder_class", "dense", width, spec.classes)
        yield from query_plan.boxes("decoder", width, "queries")


def count(spec: DeformableDETRSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector: its layers, and the products of attention and sampling as layers without weights.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    size = input_size or spec.input_size
    grids = map_sizes(spec.all_levels, size)
    areas = [rows * columns for rows, columns in grids.values()]
    layers = list(arithmetic.count(spec.backbone, input_size=size, include_top=False).layers)
    places, queries, width = sum(areas), spec.queries, spec.width
    for layer in plan(spec):
        layers += query_plan.counted(layer, areas, {"places": places, "queries": queries})
    each = 5 * len(areas) * width
    for number in range(1, spec.encoder_depth + 1):
        layers.append(query_plan.products(f"encoder_{number}_sampling", "encoder", places, each * spec.encoder_points))
    for number in range(1, spec.decoder_depth + 1):
        layers.append(query_plan.products(f"decoder_{number}_attention", "decoder", queries, 2 * queries * width))
        layers.append(query_plan.products(f"decoder_{number}_sampling", "decoder", queries, each * spec.points))
    return DetectorArithmetic(tuple(layers), grids, queries)
