"""A detector's checkpoint as a Keras model: recognised by its names, translated, identified, built, filled."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks import catalog as networks
from resfit.networks.detection import catalog, kinds
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec, is_of_detector
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import TORCH, InputSpec, changed
from resfit.weights import completeness, labels, registry
from resfit.weights.assumption import sentence
from resfit.weights.formats.base import Tensors

if TYPE_CHECKING:
    import keras

#: The input contract of torchvision's detectors.
TORCHVISION = dataclasses.replace(TORCH, size=(800, 1333), resize_mode="fit", crop_fraction=1.0)

#: That of RT-DETR, whose images are stretched to a square.
RTDETR = InputSpec(size=(640, 640), scale=1 / 255, resize_mode="squash", crop_fraction=1.0)


def _fields(kind: Any) -> tuple[str, ...]:
    """Names of the fields of a kind of network, or of one."""
    return tuple(field.name for field in dataclasses.fields(kind))


_BACKBONE_FIELDS = _fields(ArchitectureSpec)
_BACKBONE = "backbone."
#: What overrides may name: fields of a network, of a detector, and of a detector's backbone.
FIELDS = (
    *_BACKBONE_FIELDS,
    *_fields(DetectorSpec),
    *_fields(RTDETRSpec),
    *_fields(DETRSpec),
    *_fields(DeformableDETRSpec),
    *_fields(FasterRCNNSpec),
    *(f"{_BACKBONE}{field}" for field in _BACKBONE_FIELDS),
)


@dataclasses.dataclass(frozen=True)
class DetectorSource:
    """A detector's checkpoint that was read and understood, not yet built. No Keras was imported for it.

    Attributes:
        path: What was read; None for fresh weights.
        name: The catalog's name of the detector, or of its family.
        spec: The detector.
        arrays: Its weights by canonical name; empty for fresh ones.
        input_spec: Its input contract.
        class_names: Names of its class outputs, those that stand for nothing included, or None.
        convention: How it names its tensors.
        assumptions: What it does not tell and was assumed, one sentence each.
        is_keras_file: Whether ``path`` is one of Keras' files of weights, to be matched once the detector is built.
    """

    path: Path | None
    name: str
    spec: AnyDetectorSpec
    arrays: Mapping[str, np.ndarray]
    input_spec: InputSpec
    class_names: tuple[str, ...] | None
    convention: str
    assumptions: tuple[str, ...]
    is_keras_file: bool = False


def read(
    tensors: Tensors,
    convention: Any,
    *,
    architecture: str | None = None,
    input_spec: Any = None,
    config: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    prefix: str | None = None,
    averaged: bool = False,
    **overrides: Any,
) -> DetectorSource:
    """Says what detector tensors are those of.

    Args:
        tensors: What a reader returned.
        convention: The module with ``translate``, ``identify`` and ``SPEC`` that knows their names.
        architecture: A name of the catalog of detectors that says what tensors do not, such as the anchors.
        input_spec: In place of the input contract that the source states.
        config: In place of what the source says of itself.
        ignore: Patterns of names to leave out.
        prefix: What stands before the detector's names, where a source holds several.
        averaged: Take the running average (EMA) that a source holds beside the detector.
        **overrides: Fields of :class:`DetectorSpec`, and fields of the backbone's :class:`ArchitectureSpec`, with
            ``"backbone."`` before those that both have.

    Raises:
        CheckpointError: Tensors are left over, missing or of other sizes.
        ArgumentError: An override is no field, or does not fit.
    """
    arrays = {
        name: array
        for name, array in tensors.arrays.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    }
    translation = convention.translate(arrays, prefix=prefix, averaged=averaged)
    told = tensors.config if config is None else config
    stated = told.get("resfit")
    own, body = _apart(overrides, _fields(stated or convention.SPEC))
    if isinstance(stated, AnyDetectorSpec):  # what resfit wrote says itself what it is
        spec, assumptions = stated.replace(**own, backbone=stated.backbone.replace(**body)), ()
    else:
        more = {"config": told} if convention.TAKES_CONFIG else {}
        spec, assumptions = convention.identify(translation, architecture=architecture, body=body, **more, **own)
    received = completeness.problem(translation.arrays, translation.leftover, kinds.count(spec).layers)
    if received:
        raise CheckpointError(
            f"every tensor must have its place in the detector, and the detector every tensor. Received: {received}. "
            "What is no part of the detector can be left out by ignore=; include_top=False loads its backbone alone."
        )
    usual = getattr(convention, "usual_contract", None)
    contract, assumed = _contract(spec, tensors.input_spec, input_spec, usual(translation) if usual else None)
    return DetectorSource(
        path=tensors.path,
        name=name_of(spec),
        spec=spec,
        arrays=translation.arrays,
        input_spec=contract,
        class_names=tensors.class_names if len(tensors.class_names or ()) == spec.classes else None,
        convention=convention.__name__.rpartition(".")[2],
        assumptions=(*assumptions, *assumed, *translation.left_out, *tensors.left_out),
    )


def read_own(tensors: Tensors, *, input_spec: Any = None, **reading: Any) -> DetectorSource:
    """Returns a detector that resfit wrote, which says itself what it is.

    Args:
        tensors: What a reader returned; ``config["resfit"]`` is its DetectorSpec.
        input_spec: In place of the input contract that it states.
        **reading: No other argument may be given.

    Raises:
        CheckpointError: The arrays are not those of the detector that is named.
        ArgumentError: Another argument is given.
    """
    given = sorted(key for key, value in reading.items() if key not in ("config", "architecture") and value)
    if given:
        raise ArgumentError(f"a file of resfit says itself what it is. Received: {tensors.path} with {given}.")
    spec: AnyDetectorSpec = tensors.config["resfit"]
    received = completeness.problem(tensors.arrays, {}, kinds.count(spec).layers)
    if received:
        raise CheckpointError(f"the arrays must be those of the detector that the file names. Received: {received}.")
    contract, assumed = _contract(spec, tensors.input_spec, input_spec)
    names = tensors.class_names if len(tensors.class_names or ()) == spec.classes else None
    return DetectorSource(tensors.path, name_of(spec), spec, tensors.arrays, contract, names, "resfit", tuple(assumed))


def named(name: str) -> DetectorSource:
    """Returns a detector of the catalog with fresh weights.

    Args:
        name: Of the catalog of detectors.
    """
    spec = catalog.get(name).spec
    row = registry.detectors().get(name)
    contract = row.input_spec if row else dataclasses.replace(_usual(spec), size=spec.input_size)
    return DetectorSource(None, name, spec, {}, contract, None, "resfit", ())


def filled(source: DetectorSource, found: DetectorSource) -> DetectorSource:
    """Returns a named detector with the weights that were read for it.

    Args:
        source: What :func:`named` returned.
        found: What was read.

    Raises:
        CheckpointError: They are those of another detector.
    """
    spec, own = found.spec, source.spec
    alike = own.replace(
        classes=spec.classes, input_size=spec.input_size, backbone=own.backbone.replace(classes=spec.backbone.classes)
    )
    different = [name for name in _fields(alike) if getattr(spec, name, None) != getattr(alike, name)]
    if different:
        pairs = ", ".join(f"{name} ({getattr(spec, name, None)}; not {getattr(alike, name)})" for name in different)
        raise CheckpointError(
            f"{found.path}: the weights must be those of {source.name!r}. Received: a detector that differs in "
            f"{pairs}. Load the path itself."
        )
    row = registry.detectors().get(source.name)
    published = row.class_names if row is not None and row.classes == spec.classes else None
    stated = found.class_names
    if published and stated and _are_alike(stated, published):  # "sofa" for "couch" in transformers' files
        stated = None
    kept = tuple(text for text in found.assumptions if not _is_told_by_name(text))
    if published and stated is None:
        kept = (*kept, f"class names are those of {row.labels if row else ''} ({source.name}'s published weights)")
    contract = found.input_spec if found.convention == "resfit" else source.input_spec
    return dataclasses.replace(
        found,
        name=source.name,
        input_spec=contract,
        class_names=stated or published,
        assumptions=kept,
    )


def _are_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether most classes have the same names in the same places, so that they are the same."""
    return 2 * sum(a == b for a, b in zip(one, other, strict=False)) > len(other)


def body(source: DetectorSource) -> tuple[ArchitectureSpec, dict[str, np.ndarray]]:
    """Returns the backbone of a detector and its weights.

    Args:
        source: The detector.
    """
    return source.spec.backbone, {name: array for name, array in source.arrays.items() if not is_of_detector(name)}


def load(
    source: DetectorSource,
    *,
    classes: int | None = None,
    preprocess: bool = True,
    input_shape: tuple[int | None, int | None, int] | None = None,
    in_channels: int | None = None,
    name: str | None = None,
    fresh_classes: bool | None = None,
) -> keras.Model:
    """Builds a detector and fills it.

    Args:
        source: What was read.
        classes: Class outputs. A number other than the source's gives a fresh class layer and keeps the rest.
        preprocess: Whether the model takes RGB images 0..255 and normalises them itself.
        input_shape: ``(height, width, channels)``; height and width may be None, which is the default.
        in_channels: Input channels, if ``input_shape`` does not say; weights for RGB are adapted.
        name: Name of the model.
        fresh_classes: Whether the class layer is fresh. Default: where ``classes`` is another number than the source's.

    Returns:
        A model of images to ``{"boxes": (batch, n, 4) xyxy in pixels of the input, "scores": (batch, n, classes)}``,
        before suppression, with the attributes that :func:`resfit.load` states; ``architecture`` is a DetectorSpec.

    Raises:
        CheckpointError: The arrays do not fit the detector.
    """
    from resfit.networks.detection import build
    from resfit.weights import canonical

    spec = source.spec
    channels = (input_shape[-1] if input_shape else in_channels) or spec.in_channels
    contract = source.input_spec.with_channels(channels)
    other = classes is not None and classes != spec.classes
    fresh = other if fresh_classes is None else fresh_classes
    wanted = spec.replace(classes=classes or spec.classes, backbone=spec.backbone.replace(in_channels=channels))
    model = build.build(
        wanted,
        input_shape=input_shape or (None, None, channels),
        input_spec=contract,
        preprocess=preprocess,
        name=name or source.name,
    )
    if source.is_keras_file and source.path is not None:
        canonical.fill_from_file(model, canonical.read(source.path))
    elif source.arrays:
        try:
            values = canonical.adapted_to(source.arrays, channels, source.input_spec.channel_order)
            canonical.fill(model, values, fresh=kinds.class_weights(spec) if fresh else ())
        except CheckpointError as error:
            raise CheckpointError(f"{source.path}: {error}") from None
    model.class_names = source.class_names if source.path is not None and not fresh else None
    model.assumptions = source.assumptions
    return model


def class_names(model: Any) -> tuple[str, ...]:
    """Returns the names of a detector's class outputs, made up where they are not known.

    Args:
        model: A Keras model whose ``architecture`` is a DetectorSpec.
    """
    found = getattr(model, "class_names", None)
    return tuple(found) if found else tuple(f"class {number}" for number in range(model.architecture.classes))


def has_meaning(label: str) -> bool:
    """Whether the name of a class output stands for a class, not for a gap in the ids or the background.

    Args:
        label: The name.
    """
    return label not in labels.NO_CLASS


def name_of(spec: AnyDetectorSpec) -> str:
    """Returns the catalog's name of a detector, whatever its classes, thresholds and input size; else its family.

    Args:
        spec: The detector.
    """
    usual = ("classes", "input_size", "score_threshold", "nms_threshold", "candidates", "max_detections", "prior")
    incidental = [name for name in (*usual, "unreported") if name in _fields(spec)]
    for row in catalog.rows().values():
        if type(row.spec) is not type(spec):
            continue
        alike = row.spec.replace(**{field: getattr(spec, field) for field in incidental})
        body = spec.backbone.replace(
            **{field: getattr(alike.backbone, field) for field in ("classes", "in_channels", "input_size")}
        )
        if spec.replace(backbone=body) == alike:
            return row.name
    if not isinstance(spec, DetectorSpec):
        return spec.KIND
    return "fcos" if spec.quality else "retinanet" if spec.box_coding == "deltas" else "detector"


def name_of_backbone(spec: AnyDetectorSpec) -> str:
    """Returns the catalog's name of a detector's residual network, or ``"resnet"`` where the catalog lacks it.

    Args:
        spec: The detector.
    """
    body = spec.backbone
    for row in networks.rows().values():
        incidental = ("classes", "in_channels", "input_size", "norm_epsilon")
        if body == row.spec.replace(**{field: getattr(body, field) for field in incidental}):
            return row.name
    return "resnet"


def _is_told_by_name(text: str) -> bool:
    """Whether an assumption is one of those that the name of a detector states."""
    return text.endswith(("changes it)", "change it)"))


def _apart(overrides: Mapping[str, Any], fields: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the detector, and those of its backbone."""
    own: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    for name, value in overrides.items():
        if name in fields:
            own[name] = value
        elif name.removeprefix(_BACKBONE) in _BACKBONE_FIELDS:
            backbone[name.removeprefix(_BACKBONE)] = value
        else:
            known = [*fields, *_BACKBONE_FIELDS]
            raise ArgumentError(
                "an override must be a field of the detector or its backbone. Received: "
                f"{name!r}.{closest(name, known)}"
            )
    return own, backbone


def _usual(spec: AnyDetectorSpec) -> InputSpec:
    """The contract of a kind of detector where nothing states one."""
    return RTDETR if isinstance(spec, RTDETRSpec) else TORCHVISION


def _contract(
    spec: AnyDetectorSpec, stated: InputSpec | None, wanted: Any = None, usual: tuple[InputSpec, str] | None = None
) -> tuple[InputSpec, list[str]]:
    """The input contract, by what the source states and what is asked for, and what had to be assumed."""
    if wanted is not None:
        contract, _ = _contract(spec, stated, usual=usual)
        return changed(contract, wanted).with_channels(spec.in_channels), []
    if stated is not None:
        return stated.with_channels(spec.in_channels), []
    if usual is not None:
        own, whose = usual
        what = (
            f"images of {own.channel_order.upper()} with a shorter side of 800 and a longer one of 1333 at most, "
            f"scaled by {own.scale:.6g}, less {own.mean}, over {own.std}"
        )
        return own.with_channels(spec.in_channels), [sentence(what, whose, "input_spec")]
    if isinstance(spec, RTDETRSpec):
        what = "images stretched to 640x640 pixels, scaled to 0..1"
        why = "RT-DETR's; the source states no input contract"
        return RTDETR.with_channels(spec.in_channels), [sentence(what, why, "input_spec")]
    what = (
        "images with a shorter side of 800 and a longer one of 1333 at most, scaled to 0..1, less 0.485 0.456 0.406, "
        "over 0.229 0.224 0.225"
    )
    owner = "DETR's" if isinstance(spec, DETRSpec | DeformableDETRSpec) else "torchvision's"
    why = f"{owner}; the source states no input contract"
    return TORCHVISION.with_channels(spec.in_channels), [sentence(what, why, "input_spec")]
