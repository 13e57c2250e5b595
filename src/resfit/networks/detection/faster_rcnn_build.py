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


#: Proposals of an image that the head learns from, at most (Ren et al. 2015; torchvision).
SAMPLED = 512


def heads(images: Any, maps: Sequence[Any], spec: FasterRCNNSpec, *, rounds: int | None = None) -> TwoStageOutputs:
    """Applies both stages to the maps of a pyramid.

    Args:
        images: ``(batch, height, width, channels)``, of which only height and width matter.
        maps: The map of each level, the last one for proposals alone.
        spec: The detector.
        rounds: Of the suppression of proposals, see :func:`resfit.networks.detection.nms.keep_greedily`.
    """
    return TwoStageHeads(spec, rounds=rounds)(images, maps)


_DECODING = (
    *("levels", "anchor_sizes", "anchor_ratios", "anchor_rounding", "anchor_stride", "anchor_offset"),
    *("box_coding", "distribution_bins"),
)


class TwoStageHeads:
    """Both stages of a Faster R-CNN. Their layers are made once; every call uses the same.

    Args:
        spec: The detector.
        rounds: As :func:`heads` takes it.
    """

    def __init__(self, spec: FasterRCNNSpec, *, rounds: int | None = None):
        self.spec, self.rounds = spec, rounds
        self.layers: dict[str, Any] = {}

    def __call__(self, images: Any, maps: Sequence[Any]) -> TwoStageOutputs:
        """Applies both stages; see :func:`heads`."""
        logits, codes, proposals, there = self._proposed(images, maps)
        return TwoStageOutputs(logits, codes, proposals, there, *self._said(proposals, maps))

    def learned(self, images: Any, maps: Sequence[Any], truth: Sequence[Any]) -> dict[str, Any]:
        """Applies both stages as losses take them: the head to a sample of proposals and true boxes.

        Args:
            images: As :func:`heads` takes them.
            maps: Likewise.
            truth: The true boxes, their class outputs, and random numbers, as
                :class:`resfit.networks.detection.roi_layers.SampleProposals` takes them.

        Returns:
            ``"objectness"`` and ``"proposal_codes"`` of all anchors; of each of the sample ``"proposals"``, ``"true"``,
            the box that it learns, ``"true_class"``, ``"class_logits"`` and ``"box_codes"``.
        """
        logits, codes, proposals, there = self._proposed(images, maps)
        sample = self._own(
            roi_layers.SampleProposals(
                min(SAMPLED, self.spec.proposals), background=self.spec.background, name="roi_sample"
            )
        )
        boxes, true, kinds = sample([proposals, there, *truth])
        said = self._said(boxes, maps)
        found = {"objectness": logits, "proposal_codes": codes, "proposals": boxes, "true": true, "true_class": kinds}
        return {**found, "class_logits": said[0], "box_codes": said[1]}

    def _own(self, layer: Any) -> Any:
        """A layer, or the one of its name that was made before."""
        return self.layers.setdefault(layer.name, layer)

    def _proposed(self, images: Any, maps: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Logits and codes of all anchors, the proposals, and which of them are some."""
        spec = self.spec
        logits, codes = self._anchors(maps)
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
            rounds=self.rounds,
            name="rpn_chosen",
        )
        proposals, there = self._own(choose)([logits, self._own(decode)([images, codes, *maps]), *maps])
        return logits, codes, proposals, there

    def _anchors(self, maps: Sequence[Any]) -> tuple[Any, Any]:
        """Logits and codes of all anchors."""
        spec = self.spec
        start = keras.initializers.RandomNormal(stddev=0.01)

        def conv(width: int, kernel: int, name: str) -> Any:
            return self._own(layers.Conv2D(width, kernel, padding="same", kernel_initializer=start.clone(), name=name))

        numbers = range(1, spec.proposal_depth + 1)
        convs = [conv(spec.pyramid_width, 3, f"rpn_{number}_conv") for number in numbers]
        relus = [self._relu(f"rpn_{number}_relu") for number in numbers]
        outputs = {
            "rpn_objectness": (conv(spec.anchors_per_cell, 1, "rpn_objectness_conv"), 1),
            "rpn_codes": (conv(4 * spec.anchors_per_cell, 1, "rpn_codes_conv"), 4),
        }
        parts: dict[str, list[Any]] = {name: [] for name in outputs}
        for level, x in zip(spec.levels, maps, strict=True):
            for convolution, relu in zip(convs, relus, strict=True):
                x = relu(convolution(x))
            for name, (output, values) in outputs.items():
                flat = self._own(layers.Reshape((-1, values), name=f"p{level}_{name}"))
                parts[name].append(flat(output(x)))
        joined = [
            self._own(layers.Concatenate(axis=1, dtype="float32", name=name))(found) for name, found in parts.items()
        ]
        return joined[0], joined[1]

    def _said(self, proposals: Any, maps: Sequence[Any]) -> list[Any]:
        """Class logits and box codes of proposals."""
        spec = self.spec
        align = roi_layers.RoIAlign(tuple(spec.taps), spec.pool_size, spec.samples, spec.aligned, name="roi_align")
        x = self._own(align)([proposals, *maps[: len(spec.taps)]])
        for number, width in enumerate(spec.box_convs, start=1):
            biased = spec.box_norm == "none"
            x = self._own(layers.Conv2D(width, 3, padding="same", use_bias=biased, name=f"roi_{number}_conv"))(x)
            if not biased:
                norm = layers.BatchNormalization(
                    momentum=spec.norm_momentum, epsilon=spec.norm_epsilon, name=f"roi_{number}_bn"
                )
                x = self._own(norm)(x)
            x = self._relu(f"roi_{number}_relu")(x)
        x = self._own(layers.Flatten(name="roi_flat"))(x)
        for number in range(1, spec.box_dense + 1):
            x = self._own(layers.Dense(spec.box_width, name=f"roi_dense_{number}"))(x)
            x = self._relu(f"roi_dense_{number}_relu")(x)
        start = keras.initializers.RandomNormal(stddev=0.01)
        found = []
        for name, outputs in (("class_logits", spec.class_outputs), ("box_codes", 4 * spec.class_outputs)):
            dense = self._own(layers.Dense(outputs, kernel_initializer=start.clone(), name=f"{name}_dense"))
            found.append(self._own(roi_layers.RowsOfImages(name=name))([dense(x), proposals]))
        return found

    def _relu(self, name: str) -> Any:
        return self._own(layers.Activation("relu", name=name))


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
