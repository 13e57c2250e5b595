"""What the layers of a Faster R-CNN cost. Pure Python, no Keras."""

from __future__ import annotations

from resfit.networks import arithmetic
from resfit.networks.arithmetic import LayerCount
from resfit.networks.detection.anchors import grid_sizes
from resfit.networks.detection.arithmetic import DetectorArithmetic, conv, norm, pyramid
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec


def count(spec: FasterRCNNSpec, *, input_size: tuple[int, int] | None = None) -> DetectorArithmetic:
    """Counts a detector. The head's cost is that of all proposals.

    Args:
        spec: The detector.
        input_size: Height and width of the image in pixels. Default: the spec's.
    """
    size = input_size or spec.input_size
    grids = dict(zip(spec.levels, grid_sizes(spec, size), strict=True))
    layers = list(arithmetic.count(spec.backbone, input_size=size, include_top=False).layers)
    layers += pyramid(spec, {level: grids[level] for level in spec.taps})
    layers += [*_proposals(spec, list(grids.values())), *_head(spec)]
    return DetectorArithmetic(tuple(layers), grids, spec.candidates)


def _proposals(spec: FasterRCNNSpec, maps: list[tuple[int, int]]) -> list[LayerCount]:
    width, anchors = spec.pyramid_width, spec.anchors_per_cell
    layers = [conv(f"rpn_{number}", "proposals", maps, width, width, 3) for number in range(1, spec.proposal_depth + 1)]
    layers.append(conv("rpn_objectness", "proposals", maps, width, anchors, 1))
    layers.append(conv("rpn_codes", "proposals", maps, width, 4 * anchors, 1))
    return layers


def _head(spec: FasterRCNNSpec) -> list[LayerCount]:
    side, width = spec.pool_size, spec.pyramid_width
    maps = [(side, side)] * spec.proposals
    layers: list[LayerCount] = []
    for number, wide in enumerate(spec.box_convs, start=1):
        name = f"roi_{number}"
        layers.append(conv(name, "head", maps, width, wide, 3, biased=spec.box_norm == "none"))
        layers += norm(name, "head", maps, wide, spec.box_norm)
        width = wide
    width *= side * side
    for number in range(1, spec.box_dense + 1):
        layers.append(_dense(spec, f"roi_dense_{number}", width, spec.box_width))
        width = spec.box_width
    layers.append(_dense(spec, "class_logits_dense", width, spec.class_outputs))
    layers.append(_dense(spec, "box_codes_dense", width, 4 * spec.class_outputs))
    return layers


def _dense(spec: FasterRCNNSpec, name: str, inputs: int, outputs: int) -> LayerCount:
    weights = inputs * outputs
    parameters = weights + outputs
    return LayerCount(name, "head", "dense", (1, 1, outputs), parameters, parameters, weights * spec.proposals)
