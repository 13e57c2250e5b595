"""build(): a DetectorSpec as a Keras model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
from keras import layers

from resfit.errors import ArgumentError
from resfit.networks import build as networks
from resfit.networks.detection import deformable_detr_build, detr_build, faster_rcnn_build, rtdetr_build, rtdetr_plan
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec, QueryDetectorSpec, takes_best_class
from resfit.networks.detection.layers import CropToMatch, DecodeBoxes, LevelScale, PositiveDistances, QualityScores
from resfit.networks.detection.nms import NonMaxSuppression
from resfit.networks.detection.query_plan import tap_width
from resfit.networks.detection.spec import DetectorSpec
from resfit.networks.detection.transformer import BestPairs, BoxesInPixels, ReportedScores
from resfit.networks.plan import NORM_SUFFIXES
from resfit.preprocessing import InputSpec

#: What a model can return.
Outputs = Literal["boxes", "raw", "detections"]

# Fields of a spec that the layer that decodes boxes takes.
_DECODING = (
    *("levels", "anchor_sizes", "anchor_ratios", "anchor_rounding", "anchor_stride", "anchor_offset"),
    *("box_coding", "delta_stds", "distribution_bins"),
)


@dataclasses.dataclass(frozen=True)
class RawOutputs:
    """What the head says, level by level joined; ``n`` is places times anchors over all levels.

    Attributes:
        class_logits: ``(batch, n, classes)``.
        box_codes: ``(batch, n, 4)``, distances already positive; or ``(batch, n, 4 * bins)`` logits of distributions.
        quality: Logits ``(batch, n, 1)``, or None.
        maps: The maps of the pyramid.
    """

    class_logits: Any
    box_codes: Any
    quality: Any
    maps: tuple[Any, ...]

    def named(self) -> dict[str, Any]:
        """Returns the tensors by name, without the maps."""
        found = {"class_logits": self.class_logits, "box_codes": self.box_codes}
        return found if self.quality is None else {**found, "quality": self.quality}


def build(
    spec: AnyDetectorSpec,
    *,
    outputs: Outputs = "boxes",
    input_shape: tuple[int | None, int | None, int] | None = None,
    input_spec: InputSpec | None = None,
    preprocess: bool = False,
    rounds: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a detector as a functional Keras model with fresh weights.

    Images may have any height and width, odd ones too; no side needs to divide by a stride. RT-DETR needs as many
    places on its maps as it has queries.

    Args:
        spec: The detector.
        outputs: ``"boxes"`` for ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}``: xyxy in pixels of the
            input, cut to it, and scores in [0, 1], before non-maximum suppression. ``"raw"`` for logits and codes, as
            losses take them: ``"class_logits"``, ``"box_codes"`` and, where there is one, ``"quality"``. The codes of
            RT-DETR and DETR are centres and sides in shares of the image; they have no suppression. Of Faster R-CNN
            ``"objectness"``, ``"proposal_codes"`` and ``"proposals"`` as well.
            ``"detections"`` for what is left after the suppression, see
            :class:`resfit.networks.detection.nms.NonMaxSuppression`.
        input_shape: ``(height, width, channels)`` of one image; height and width may be None, which is the default.
        input_spec: The input contract; kept as ``model.input_spec`` and used by ``preprocess``.
        preprocess: Whether the model takes RGB images 0..255 of any dtype and normalises them itself.
        rounds: Of the suppression, for runtimes without loops; see
            :func:`resfit.networks.detection.nms.keep_greedily`.
        name: Name of the model.

    Returns:
        A functional model with the attribute ``architecture``, the spec that was built, and, if one was given,
        ``input_spec``. Its layers are those of the backbone and of pyramid and head side by side, so that the canonical
        name of a weight is the layer's and the variable's (``"p3_lateral_conv/kernel"``).

    Raises:
        ArgumentError: An argument is outside its choices.

    Example:
        >>> from resfit.networks.detection import catalog
        >>> model = build(catalog.get("fcos_light_resnet18").spec.replace(classes=6))
        >>> model.output["scores"].shape[-1]
        6
    """
    if outputs not in ("boxes", "raw", "detections"):
        raise ArgumentError(f"outputs must be 'boxes', 'raw' or 'detections'. Received: {outputs!r}.")
    if input_shape is not None and input_shape[-1] != spec.in_channels:
        spec = spec.replace(backbone=spec.backbone.replace(in_channels=int(input_shape[-1])))
    taps = spec.taps
    body = networks.build(
        spec.backbone,
        input_shape=input_shape,
        include_top=False,
        taps=tuple(taps.values()),
        input_spec=input_spec,
        preprocess=preprocess,
    )
    maps = {level: body.output[tap] for level, tap in taps.items()}
    images = body.inputs[0]
    if isinstance(spec, QueryDetectorSpec):
        found = _queries(spec, maps, input_shape)
        if outputs != "raw":
            found = boxes_of_queries(images, found, spec)
        if outputs == "detections":
            found = best_pairs(spec)(found)
    elif isinstance(spec, FasterRCNNSpec):
        two = faster_rcnn_build.heads(images, pyramid(maps, spec), spec, rounds=rounds)
        found = two.named() if outputs == "raw" else faster_rcnn_build.boxes_and_scores(images, two, spec)
        if outputs == "detections":
            found = suppression(spec, rounds=rounds)(found)
    else:
        raw = pyramid_and_head(maps, spec)
        found = raw.named() if outputs == "raw" else boxes_and_scores(images, raw, spec)
        if outputs == "detections":
            found = suppression(spec, rounds=rounds)({**found, "maps": list(raw.maps)})
    model = keras.Model(body.inputs[0], found, name=name)
    model.architecture = spec
    if input_spec is not None:
        model.input_spec = input_spec
    return model


def _queries(
    spec: QueryDetectorSpec, maps: Mapping[int, Any], input_shape: tuple[int | None, int | None, int] | None
) -> Any:
    """Logits and boxes of every query."""
    if isinstance(spec, DETRSpec):
        return detr_build.Transformer(spec)(maps)
    height, width = (input_shape or (None, None))[:2]
    sized = height is not None and width is not None
    if isinstance(spec, DeformableDETRSpec):
        if sized and spec.proposes:
            rtdetr_plan.check_places(spec, (height, width), spec.all_levels)  # type: ignore[arg-type]
        return deformable_detr_build.DeformableTransformer(spec)(maps)
    if sized:
        rtdetr_plan.check_places(spec, (height, width))  # type: ignore[arg-type]
    return rtdetr_build.QueryDecoder(spec)(maps)


def boxes_of_queries(images: Any, raw: Mapping[str, Any], spec: QueryDetectorSpec) -> dict[str, Any]:
    """Returns boxes in pixels and scores of every query.

    Args:
        images: ``(batch, height, width, channels)``, of which only height and width matter.
        raw: ``"class_logits"`` and ``"box_codes"``.
        spec: The detector.
    """
    boxes = BoxesInPixels(name="boxes")([raw["box_codes"], images])
    if isinstance(spec, DETRSpec):
        scores = ReportedScores(spec.reported, name="scores")(raw["class_logits"])
    else:
        scores = layers.Activation("sigmoid", dtype="float32", name="scores")(raw["class_logits"])
    return {"boxes": boxes, "scores": scores}


def best_pairs(spec: QueryDetectorSpec) -> BestPairs:
    """Returns the layer that takes the best pairs of a box and a class, in place of suppression.

    Args:
        spec: The detector.
    """
    return BestPairs(spec.max_detections, spec.score_threshold, takes_best_class(spec), name="detections")


def build_on_maps(spec: DetectorSpec, *, name: str | None = None) -> keras.Model:
    """Builds pyramid and head alone, for training on stored maps of a frozen backbone.

    Args:
        spec: The detector.
        name: Name of the model.

    Returns:
        A model from the maps of ``spec.taps``, ``{"stage3": (batch, height, width, channels), ...}``, to the raw
        outputs of :func:`build`. Its weights have the names that they have in the whole model.
    """
    inputs = {tap: layers.Input((None, None, tap_width(spec, tap)), name=tap) for tap in spec.taps.values()}
    raw = pyramid_and_head({level: inputs[tap] for level, tap in spec.taps.items()}, spec)
    model = keras.Model(inputs, raw.named(), name=name)
    model.architecture = spec
    return model


def suppression(spec: DetectorSpec | FasterRCNNSpec, *, rounds: int | None = None) -> NonMaxSuppression:
    """Returns the layer of non-maximum suppression with a detector's thresholds.

    Args:
        spec: The detector.
        rounds: See :func:`resfit.networks.detection.nms.keep_greedily`.
    """
    return NonMaxSuppression(
        spec.score_threshold,
        spec.nms_threshold,
        candidates=spec.candidates,
        max_detections=spec.max_detections,
        anchors_per_cell=spec.anchors_per_cell,
        rounds=rounds,
        name="suppression",
    )


def pyramid_and_head(taps: Mapping[int, Any], spec: DetectorSpec) -> RawOutputs:
    """Applies pyramid and head to maps of the backbone.

    Args:
        taps: By level, tensors of shape ``(batch, height, width, channels)``.
        spec: The detector.
    """
    maps = pyramid(taps, spec)
    return dense_head(maps, spec)


def pyramid(taps: Mapping[int, Any], spec: DetectorSpec | FasterRCNNSpec) -> tuple[Any, ...]:
    """Applies the feature pyramid (Lin et al. 2016, arXiv:1612.03144).

    Args:
        taps: As in :func:`pyramid_and_head`.
        spec: The detector.

    Returns:
        The map of each level, ``(batch, height, width, pyramid_width)``.
    """
    width, norm = spec.pyramid_width, spec.pyramid_norm
    levels = sorted(taps)
    found: dict[int, Any] = {}
    above = None
    for level in reversed(levels):
        lateral = _convolved(taps[level], spec, f"p{level}_lateral", width, 1, norm)
        if above is not None:
            doubled = layers.UpSampling2D(2, interpolation="nearest", name=f"p{level}_doubled")(above)
            if None in lateral.shape[1:3] or doubled.shape[1:3] != lateral.shape[1:3]:
                doubled = CropToMatch(name=f"p{level}_crop")([doubled, lateral])
            lateral = layers.Add(name=f"p{level}_add")([lateral, doubled])
        above = lateral
        found[level] = _convolved(lateral, spec, f"p{level}_output", width, 3, norm)
    last = levels[-1]
    if isinstance(spec, FasterRCNNSpec):  # every second place
        x = layers.MaxPooling2D(1, strides=2, name=f"p{last + 1}_pool")(found[last])
        return (*(found[level] for level in levels), x)
    x = found[last] if spec.extra_input == "p5" else taps[last]
    for level in (level for level in spec.levels if level > last):
        if spec.extra_activation and level > last + 1:
            x = layers.Activation(spec.activation, name=f"p{level}_relu")(x)
        x = layers.ZeroPadding2D(1, name=f"p{level}_pad")(x)
        x = layers.Conv2D(width, 3, strides=2, kernel_initializer=_pyramid_start(), name=f"p{level}_conv")(x)
        found[level] = x
    return tuple(found[level] for level in spec.levels)


def dense_head(maps: Sequence[Any], spec: DetectorSpec) -> RawOutputs:
    """Applies the head, whose layers all levels share.

    Args:
        maps: The map of each level.
        spec: The detector.
    """
    anchors = spec.anchors_per_cell
    bias = keras.initializers.Constant(-math.log((1 - spec.prior) / spec.prior))
    class_branch, box_branch = _Branch("class", spec), _Branch("box", spec)
    class_output = _output(anchors * spec.classes, "class_logits_conv", bias)
    box_output = _output(anchors * spec.box_values, "box_codes_conv")
    quality_output = _output(anchors, "quality_conv") if spec.quality else None
    classes, boxes, qualities = [], [], []
    for level, x in zip(spec.levels, maps, strict=True):
        named = class_branch(x)
        classes.append(_flat(class_output(named), spec.classes, f"p{level}_class_logits"))
        placed = box_branch(x)
        codes = box_output(placed)
        if spec.level_scales:
            codes = LevelScale(name=f"p{level}_scale")(codes)
        if spec.box_coding == "distances":
            codes = PositiveDistances(spec.distance_activation, name=f"p{level}_distances")(codes)
        boxes.append(_flat(codes, spec.box_values, f"p{level}_box_codes"))
        if quality_output is not None:
            judged = quality_output(placed if spec.quality_branch == "box" else named)
            qualities.append(_flat(judged, 1, f"p{level}_quality"))
    joined = [_joined(parts, name) for parts, name in ((classes, "class_logits"), (boxes, "box_codes"))]
    quality = _joined(qualities, "quality") if qualities else None
    return RawOutputs(joined[0], joined[1], quality, tuple(maps))


def boxes_and_scores(images: Any, raw: RawOutputs, spec: DetectorSpec) -> dict[str, Any]:
    """Decodes what the head says.

    Args:
        images: ``(batch, height, width, channels)``, of which only height and width matter.
        raw: What the head says.
        spec: The detector.

    Returns:
        ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}``, as :func:`build` returns them.
    """
    decode = DecodeBoxes(**{field: getattr(spec, field) for field in _DECODING}, name="boxes")
    if raw.quality is None:
        scores = layers.Activation("sigmoid", dtype="float32", name="scores")(raw.class_logits)
    else:
        scores = QualityScores(spec.quality_rule, name="scores")([raw.class_logits, raw.quality])
    return {"boxes": decode([images, raw.box_codes, *raw.maps]), "scores": scores}


class _Branch:
    """The convolutions of one branch of the head: the same layers for every map."""

    def __init__(self, name: str, spec: DetectorSpec):
        start = keras.initializers.RandomNormal(stddev=0.01)
        self.layers: list[Any] = []
        for number in range(1, spec.head_depth + 1):
            place = f"{name}_{number}"
            convolution = layers.Conv2D(
                spec.head_width,
                3,
                padding="same",
                use_bias=spec.head_bias,
                kernel_initializer=start.clone(),
                name=f"{place}_conv",
            )
            self.layers.append(convolution)
            if spec.head_norm != "none":
                self.layers.append(_norm(spec, spec.head_norm, place))
            self.layers.append(layers.Activation(spec.activation, name=f"{place}_relu"))

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def _output(width: int, name: str, bias: Any = "zeros") -> Any:
    """An output convolution of the head."""
    start = keras.initializers.RandomNormal(stddev=0.01)
    return layers.Conv2D(width, 3, padding="same", kernel_initializer=start, bias_initializer=bias, name=name)


def _convolved(x: Any, spec: DetectorSpec | FasterRCNNSpec, name: str, width: int, kernel: int, norm: str) -> Any:
    """A convolution of the pyramid, with its norm."""
    biased, start = norm == "none", _pyramid_start()
    convolution = layers.Conv2D(
        width, kernel, padding="same", use_bias=biased, kernel_initializer=start, name=f"{name}_conv"
    )
    x = convolution(x)
    return x if norm == "none" else _norm(spec, norm, name)(x)


def _norm(spec: DetectorSpec | FasterRCNNSpec, norm: str, name: str) -> Any:
    """A norm of pyramid or head."""
    named = f"{name}_{NORM_SUFFIXES[norm]}"
    if norm == "batch":
        return layers.BatchNormalization(momentum=spec.norm_momentum, epsilon=spec.norm_epsilon, name=named)
    assert isinstance(spec, DetectorSpec)  # the others have no group norms
    return layers.GroupNormalization(spec.norm_groups, epsilon=spec.norm_epsilon, name=named)


def _pyramid_start() -> Any:
    """torch's ``kaiming_uniform_(a=1)``: a variance of one over the inputs."""
    return keras.initializers.VarianceScaling(1.0, mode="fan_in", distribution="uniform")


def _flat(x: Any, values: int, name: str) -> Any:
    """``(batch, rows, columns, anchors * values)`` as ``(batch, rows * columns * anchors, values)``."""
    return layers.Reshape((-1, values), name=name)(x)


def _joined(parts: Sequence[Any], name: str) -> Any:
    """The levels one behind another, in float32."""
    if len(parts) == 1:
        return layers.Activation("linear", dtype="float32", name=name)(parts[0])
    return layers.Concatenate(axis=1, dtype="float32", name=name)(list(parts))
