"""Names of torchvision's RetinaNet and FCOS, and what their tensors are called here: one table, read both ways.

The published files hold a network (``backbone.body.*``, named as torchvision's classifiers), its pyramid and a head. Of
the last there are three dialects: RetinaNet's with convolutions and norms numbered apart, the one of files that were
written before there could be norms, and FCOS's, which numbers all modules in turn. This table, and not more, is what
:mod:`resfit.weights.conventions.pytorch` does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks.detection import catalog
from resfit.networks.detection.spec import DetectorSpec, is_of_detector
from resfit.networks.plan import NORM_SUFFIXES
from resfit.weights import identify as architectures
from resfit.weights.assumption import sentence
from resfit.weights.conventions import detector_names, pytorch
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = DetectorSpec, False

_ANCHOR = re.compile(r"(?P<prefix>(?:.*\.)?)backbone\.body\.layer1\.0\.conv1\.weight")
_BODY = "backbone.body."
_HEADS = {"class": "head.classification_head", "box": "head.regression_head"}
# The argument that an assumption about the backbone names, and that of the detector.
_ARGUMENT, _IN_BACKBONE = r"(\w+)= changes it", r"backbone={'\1': ...} changes it"
_FIELDS = tuple(field.name for field in dataclasses.fields(DetectorSpec))

_CONV = {"weight": "kernel", "bias": "bias"}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class DetectorRule:
    """One line of the table.

    Attributes:
        source: The layer's name there; ``{i}`` stands for a number.
        target: The canonical name here, without ``_conv`` or what norms end in.
        kind: ``"conv"`` or ``"norm"``.
        step: The source's number is this times the target's, counted from ``first``, and ``offset``.
        first: The target's number that the source's first one stands for.
        offset: See ``step``.
    """

    source: str
    target: str
    kind: str
    step: int = 1
    first: int = 0
    offset: int = 0


def _branches(convolution: str, norm: str | None, step: int) -> tuple[DetectorRule, ...]:
    rules = []
    for branch, path in _HEADS.items():
        rules.append(DetectorRule(f"{path}.{convolution}", f"{branch}_{{i}}", "conv", step, first=1))
        if norm is not None:
            offset = 1 if step > 1 else 0
            rules.append(DetectorRule(f"{path}.{norm}", f"{branch}_{{i}}", "norm", step, first=1, offset=offset))
    return tuple(rules)


_SHARED = (
    DetectorRule("backbone.fpn.inner_blocks.{i}.0", "p{i}_lateral", "conv", first=3),
    DetectorRule("backbone.fpn.inner_blocks.{i}.1", "p{i}_lateral", "norm", first=3),
    DetectorRule("backbone.fpn.layer_blocks.{i}.0", "p{i}_output", "conv", first=3),
    DetectorRule("backbone.fpn.layer_blocks.{i}.1", "p{i}_output", "norm", first=3),
    # files from before the pyramid could have norms
    DetectorRule("backbone.fpn.inner_blocks.{i}", "p{i}_lateral", "conv", first=3),
    DetectorRule("backbone.fpn.layer_blocks.{i}", "p{i}_output", "conv", first=3),
    DetectorRule("backbone.fpn.extra_blocks.p{i}", "p{i}", "conv"),
    DetectorRule("head.classification_head.cls_logits", "class_logits", "conv"),
    DetectorRule("head.regression_head.bbox_reg", "box_codes", "conv"),
    DetectorRule("head.regression_head.bbox_ctrness", "quality", "conv"),
)

#: The tables by dialect.
DIALECTS: dict[str, tuple[DetectorRule, ...]] = {
    "retinanet": (*_branches("conv.{i}.0", "conv.{i}.1", 1), *_SHARED),
    "retinanet-first": (*_branches("conv.{i}", None, 2), *_SHARED),
    "fcos": (*_branches("conv.{i}", "conv.{i}", 3), *_SHARED),
}


@dataclasses.dataclass(frozen=True)
class DetectorTranslation:
    """Tensors of a detector under canonical names.

    Attributes:
        dialect: How the source names the head.
        prefix: What stood before the names.
        arrays: Arrays by canonical name, axes as Keras has them.
        body: The backbone's, with what its names tell.
        leftover: Tensors that no rule knows, by the source's name.
        left_out: What was left out and why, one sentence each.
    """

    dialect: str
    prefix: str
    arrays: Mapping[str, np.ndarray]
    body: pytorch.Translation
    leftover: Mapping[str, np.ndarray]
    left_out: tuple[str, ...]


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of one of torchvision's dense detectors, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    found = [match["prefix"] for match in map(_ANCHOR.fullmatch, names) if match]
    return any(f"{prefix}head.classification_head.cls_logits.weight" in names for prefix in found)


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorTranslation:
    """Brings the tensors of torchvision's RetinaNet or FCOS to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    if isinstance(tensors, Tensors):
        tensors = tensors.arrays
    tensors = pytorch.unwrapped(tensors)
    prefix = _prefix(tensors, prefix, averaged)
    own = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    body = pytorch.translate({name.removeprefix(_BODY): a for name, a in own.items() if name.startswith(_BODY)})
    dialect = _dialect(own)
    arrays = dict(body.arrays)
    leftover = {f"{prefix}{_BODY}{name}": array for name, array in body.leftover.items()}
    left_out, beside = detector_names.sorted_out(tensors, prefix, _prefixes(tensors))
    leftover |= beside
    for name, array in own.items():
        if name.startswith(_BODY) or name.endswith(f".{_COUNTER}"):
            continue
        layer, _, leaf = name.rpartition(".")
        weight = own.get(f"{layer}.weight")
        kind = "norm" if weight is not None and np.ndim(weight) == 1 else "conv"
        target = _forward(dialect, layer, kind)
        ending = (_NORM if kind == "norm" else _CONV).get(leaf)
        if target is None or ending is None:
            leftover[f"{prefix}{name}"] = array
            continue
        ends = _norm_ending(own, layer) if kind == "norm" else "conv"
        canonical = f"{target}_{ends}/{ending}"
        if canonical in arrays:
            raise CheckpointError(f"two tensors must not stand for one weight. Received: {name!r} for {canonical!r}.")
        arrays[canonical] = np.transpose(array, (2, 3, 1, 0)) if np.ndim(array) == 4 else array
    return DetectorTranslation(dialect, prefix, arrays, body, leftover, (*body.left_out, *left_out))


def identify(
    translation: DetectorTranslation,
    *,
    architecture: str | None = None,
    body: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[DetectorSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Depth, widths, norms, classes, quality branch and what the extra levels are made of stand in the tensors. Anchors,
    thresholds and, without norms in the head, the epsilon of the backbone's do not: they are those of torchvision's
    published network of the kind.

    Args:
        translation: As :func:`translate` returned it.
        architecture: A name of the catalog of detectors that stands for what tensors do not tell, in place of
            torchvision's network of the kind.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        **overrides: Fields of :class:`DetectorSpec`; they win over everything. ``backbone`` may be a mapping of those
            fields of its architecture that are to be changed.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override is no field, or does not fit.
    """
    for name in overrides:
        if name not in _FIELDS:
            raise ArgumentError(
                f"an override must be a field of DetectorSpec. Received: {name!r}.{closest(name, _FIELDS)}"
            )
    shapes = {name: tuple(np.shape(array)) for name, array in translation.arrays.items()}
    of_body = dict(body or {})
    if isinstance(overrides.get("backbone"), Mapping):
        of_body |= overrides.pop("backbone")
    found = architectures.identify(
        translation.body.arrays, convention=translation.body.convention, facts=translation.body.facts, **of_body
    )
    normed = any(name.startswith("class_1_") and name.endswith("/gamma") for name in shapes)
    kind = "fcos_resnet50" if "quality_conv/kernel" in shapes else "retinanet_resnet50_v2" if normed else None
    usual: Any = catalog.get(kind or "retinanet_resnet50")
    row: Any = usual if architecture is None else catalog.get(architecture)
    is_dense = isinstance(row.spec, DetectorSpec)
    if not is_dense or (row.spec.box_coding, row.spec.quality) != (usual.spec.box_coding, usual.spec.quality):
        raise CheckpointError(
            f"the tensors must be those of {row.name!r} ({row.family}). Received: those of a {usual.family}."
        )
    backbone = found.spec
    assumptions = [f"backbone: {re.sub(_ARGUMENT, _IN_BACKBONE, text)}" for text in found.assumptions]
    is_frozen = not translation.body.counts_batches  # as the published ones of the first kind are
    if (kind is None or architecture) and is_frozen and "backbone" not in overrides and "norm_epsilon" not in of_body:
        epsilon = row.spec.backbone.norm_epsilon
        backbone = backbone.replace(norm_epsilon=epsilon)
        assumptions = [text for text in assumptions if not text.startswith("backbone: norm_epsilon=")]
        why = f"as the weights of {row.name} run"
        assumptions.append(sentence(f"backbone: norm_epsilon={epsilon:g}", why, "backbone={'norm_epsilon': ...}"))
    told = {"backbone": backbone, **_told(translation, shapes, row.spec, overrides)}
    values = {**told, **overrides}
    assumed = ("anchor_sizes", "anchor_ratios", "score_threshold", "nms_threshold", "max_detections")
    assumptions += [
        sentence(f"{field}={getattr(row.spec, field)}", f"torchvision's {row.name}; the tensors do not tell", field)
        for field in assumed
        if field not in overrides
    ]
    return detector_names.built(row.spec.replace, values, overrides), tuple(assumptions)


def to_torch(spec: DetectorSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of a detector under torchvision's names and axes.

    Args:
        spec: The detector.
        arrays: Weights by canonical name, as :func:`resfit.weights.canonical.arrays` returns them.

    Returns:
        Contiguous arrays, with the counters that torch's batch norm has where it is not frozen, as torchvision's
        RetinaNet (without a quality branch) or FCOS (with one) of today names them.

    Raises:
        ArgumentError: torchvision has no name for a layer of this detector.
    """
    dialect = "fcos" if spec.quality else "retinanet"
    own = {name: a for name, a in arrays.items() if is_of_detector(name)}
    body = {name: a for name, a in arrays.items() if name not in own}
    inside = detector_names.frozen(spec.backbone, pytorch.to_torch(spec.backbone, "torchvision", arrays=body))
    written = {f"{_BODY}{name}": array for name, array in inside.items()}
    for name, array in own.items():
        layer, _, leaf = name.partition("/")
        base, _, ends = layer.rpartition("_")
        kind = "norm" if ends in NORM_SUFFIXES.values() else "conv"
        source = _back(dialect, base, kind)
        endings = {value: key for key, value in (_NORM if kind == "norm" else _CONV).items()}
        if source is None or leaf not in endings:
            raise ArgumentError(
                f"torchvision must have a name for every layer of the detector. Received: {layer!r}, which it lacks."
            )
        array = np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array
        written[f"{source}.{endings[leaf]}"] = np.ascontiguousarray(array)
        if leaf == "moving_variance":
            written[f"{source}.{_COUNTER}"] = np.array(0, np.int64)
    return written


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """What stands before the names of each detector."""
    return [match["prefix"] for match in map(_ANCHOR.fullmatch, names) if match]


def _prefix(tensors: Mapping[str, Any], wanted: str | None, averaged: bool) -> str:
    """What stands before the names of the one detector."""
    program = "torchvision ('backbone.body.layer1...')"
    prefix = detector_names.chosen(_prefixes(tensors), wanted, averaged, program, tensors)
    if any(name.startswith((f"{prefix}rpn.", f"{prefix}roi_heads.")) for name in tensors):
        raise CheckpointError(
            "the tensors must be those of a dense detector, RetinaNet or FCOS. Received: a detector of two stages, "
            f"with {prefix}rpn or {prefix}roi_heads."
        )
    if f"{prefix}head.classification_head.cls_logits.weight" not in tensors:
        raise CheckpointError(
            "the tensors must have RetinaNet's or FCOS's head, 'head.classification_head.cls_logits.weight'. "
            f"Received: {pytorch.described(tensors)}."
        )
    return prefix


def _dialect(names: Mapping[str, Any]) -> str:
    """How the convolutions of the head are numbered."""
    path = f"{_HEADS['class']}.conv"
    if f"{path}.0.0.weight" in names:
        return "retinanet"
    return "fcos" if f"{path}.1.weight" in names else "retinanet-first"


def _norm_ending(names: Mapping[str, Any], layer: str) -> str:
    """What the name of a norm ends in here: only batch norms have statistics."""
    return NORM_SUFFIXES["batch" if f"{layer}.running_mean" in names else "group"]


def _told(
    translation: DetectorTranslation,
    shapes: Mapping[str, tuple[int, ...]],
    spec: DetectorSpec,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    needed = ("class_logits_conv/kernel", "box_codes_conv/kernel", "p3_lateral_conv/kernel", "p6_conv/kernel")
    for name in needed:
        if len(shapes.get(name, ())) != 4:
            raise CheckpointError(f"a detector must have a convolution {name!r}. Received: {shapes.get(name)}.")
    anchors, rest = divmod(shapes["box_codes_conv/kernel"][-1], 4)
    sizes, ratios = (overrides.get(field, getattr(spec, field)) for field in ("anchor_sizes", "anchor_ratios"))
    classes, more = divmod(shapes["class_logits_conv/kernel"][-1], max(anchors, 1))
    if rest or more or anchors != len(sizes[0]) * len(ratios):
        raise CheckpointError(
            f"the head must have {len(sizes[0]) * len(ratios)} anchors at each place. Received: box outputs of "
            f"{shapes['box_codes_conv/kernel'][-1]} and class outputs of {shapes['class_logits_conv/kernel'][-1]} "
            "channels. Pass anchor_sizes= and anchor_ratios=."
        )
    numbers = [int(match[1]) for match in (re.fullmatch(r"class_(\d+)_conv/kernel", name) for name in shapes) if match]
    levels = sorted(
        int(match[1]) for match in (re.fullmatch(r"p(\d+)(_lateral)?_conv/kernel", name) for name in shapes) if match
    )
    width = shapes["p3_lateral_conv/kernel"][-1]
    norms = {
        part: next((kind for kind, ends in NORM_SUFFIXES.items() if f"{layer}_{ends}/gamma" in shapes), "none")
        for part, layer in (("head", "class_1"), ("pyramid", "p3_lateral"))
    }
    return {
        "levels": tuple(levels),
        "pyramid_width": width,
        "pyramid_norm": norms["pyramid"],
        # where both would be as wide, torchvision takes the pyramid's
        "extra_input": "p5" if shapes["p6_conv/kernel"][2] == width else "c5",
        "head_depth": max(numbers, default=0),
        "head_width": shapes["class_logits_conv/kernel"][2],
        "head_norm": norms["head"],
        "head_bias": "class_1_conv/bias" in shapes,
        "classes": classes,
    }


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d{1,3})"))


def _forward(dialect: str, layer: str, kind: str) -> str | None:
    for rule in DIALECTS[dialect]:
        match = _pattern(rule.source).fullmatch(layer) if rule.kind == kind else None
        if match is None:
            continue
        if "i" not in match.groupdict():
            return rule.target
        number, rest = divmod(int(match["i"]) - rule.offset, rule.step)
        if not rest and number >= 0:
            return rule.target.format(i=number + rule.first)
    return None


def _back(dialect: str, base: str, kind: str) -> str | None:
    for rule in DIALECTS[dialect]:
        match = _pattern(rule.target).fullmatch(base) if rule.kind == kind else None
        if match is None:
            continue
        if "i" not in match.groupdict():
            return rule.source
        number = int(match["i"]) - rule.first
        if number >= 0:
            return rule.source.format(i=number * rule.step + rule.offset)
    return None
