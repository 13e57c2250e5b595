"""A FasterRCNNSpec as Keras layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from resfit.networks.detection import roi_layers
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.layers import DecodeBoxes


@dataclasses.dataclass(frozen=True)
class TwoStageOutputs:
    """What a detector of two stages says.

    Attributes:
        objectness: Logits of all anchors, ``(batch, anchors, 1)``.
        proposal_codes: Their codes, ``(batch, anchors, 4)``.
        proposals: Boxes ``(batch, n, 4)``, xyxy in pixels.
        there: 1 for each proposal, 0 for what fills up, ``(batch, n)``.
        class_logits: ``(batch, n, outputs)``.
        box_codes: ``(batch, n, 4 * outputs)``.
    """

    objectness: Any
    proposal_codes: Any
    proposals: Any
    there: Any
    class_logits: Any
    box_codes: Any

    def named(self) -> dict[str, Any]:
        """Returns the tensors by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def heads(images: Any, maps: Sequence[Any], spec: FasterRCNNSpec, *, rounds: int | None = None) -> TwoStageOutputs:
    """Applies both stages to the maps of a pyramid.

    Args:
        images: ``(batch, height, width, channels)``, of which only height and width matter.
        maps: The map of each level, the last one for proposals alone.
        spec: The detector.
        rounds: Of the suppression of proposals, see :func:`resfit.networks.detection.nms.keep_greedily`.
    """
    logits, codes = _proposal_head(maps, spec)
    decode = DecodeBoxes(
        **{field: getattr(spec, field) for field in _DECODING},
        delta_stds=(1.0, 1.0, 1.0, 1.0),
        name="rpn_boxes",
    )
    choose = roi_layers.ChooseProposals(
        spec.proposal_candidates,
        spec.proposals,
        spec.proposal_threshold,
        spec.anchors_per_cell,
        rounds=rounds,
        name="rpn_chosen",
    )
    proposals, there = choose([logits, decode([images, codes, *maps]), *maps])
    own = maps[: len(spec.taps)]
    align = roi_layers.RoIAlign(tuple(spec.taps), spec.pool_size, spec.samples, spec.aligned, name="roi_align")
    x = align([proposals, *own])
    for number, width in enumerate(spec.box_convs, start=1):
        biased = spec.box_norm == "none"
        x = layers.Conv2D(width, 3, padding="same", use_bias=biased, name=f"roi_{number}_conv")(x)
        if not biased:
            x = layers.BatchNormalization(
                momentum=spec.norm_momentum, epsilon=spec.norm_epsilon, name=f"roi_{number}_bn"
            )(x)
        x = layers.Activation("relu", name=f"roi_{number}_relu")(x)
    x = layers.Flatten(name="roi_flat")(x)
    for number in range(1, spec.box_dense + 1):
        x = layers.Dense(spec.box_width, name=f"roi_dense_{number}")(x)
        x = layers.Activation("relu", name=f"roi_dense_{number}_relu")(x)
    start = keras.initializers.RandomNormal(stddev=0.01)
    found = [
        roi_layers.RowsOfImages(name=name)(
            [layers.Dense(outputs, kernel_initializer=start.clone(), name=f"{name}_dense")(x), proposals]
        )
        for name, outputs in (("class_logits", spec.class_outputs), ("box_codes", 4 * spec.class_outputs))
    ]
    return TwoStageOutputs(logits, codes, proposals, there, *found)


_DECODING = (
    *("levels", "anchor_sizes", "anchor_ratios", "anchor_rounding", "anchor_stride", "anchor_offset"),
    *("box_coding", "distribution_bins"),
)


def _proposal_head(maps: Sequence[Any], spec: FasterRCNNSpec) -> tuple[Any, Any]:
    """Logits and codes of all anchors."""
    start = keras.initializers.RandomNormal(stddev=0.01)

    def conv(width: int, kernel: int, name: str) -> Any:
        return layers.Conv2D(width, kernel, padding="same", kernel_initializer=start.clone(), name=name)

    numbers = range(1, spec.proposal_depth + 1)
    convs = [conv(spec.pyramid_width, 3, f"rpn_{number}_conv") for number in numbers]
    relus = [layers.Activation("relu", name=f"rpn_{number}_relu") for number in numbers]
    outputs = {
        "rpn_objectness": (conv(spec.anchors_per_cell, 1, "rpn_objectness_conv"), 1),
        "rpn_codes": (conv(4 * spec.anchors_per_cell, 1, "rpn_codes_conv"), 4),
    }
    parts: dict[str, list[Any]] = {name: [] for name in outputs}
    for level, x in zip(spec.levels, maps, strict=True):
        for convolution, relu in zip(convs, relus, strict=True):
            x = relu(convolution(x))
        for name, (output, values) in outputs.items():
            parts[name].append(layers.Reshape((-1, values), name=f"p{level}_{name}")(output(x)))
    joined = [layers.Concatenate(axis=1, dtype="float32", name=name)(found) for name, found in parts.items()]
    return joined[0], joined[1]


def boxes_and_scores(images: Any, raw: TwoStageOutputs, spec: FasterRCNNSpec) -> dict[str, Any]:
    """Returns the best pairs of a proposal and a class as boxes and scores.

    Args:
        images: ``(batch, height, width, channels)``, of which only height and width matter.
        raw: What the detector says.
        spec: The detector.
    """
    layer = roi_layers.BoxesOfClasses(spec.reported, spec.candidates, spec.delta_stds, name="class_boxes")
    found = layer([raw.class_logits, raw.box_codes, raw.proposals, raw.there, images])
    return {name: layers.Activation("linear", dtype="float32", name=name)(value) for name, value in found.items()}
