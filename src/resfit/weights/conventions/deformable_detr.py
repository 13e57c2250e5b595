"""Names of Deformable DETR, as transformers' published files and its library of today have them, and as its authors
do; and what its tensors are called here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.networks.detection import catalog
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.spec import is_of_detector
from resfit.weights.assumption import sentence
from resfit.weights.completeness import is_of_its_own
from resfit.weights.conventions import detector_names, pytorch
from resfit.weights.conventions.detector_names import DetectorNames, Naming, backbone_of, built, highest
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = DeformableDETRSpec, True

_SAMPLING = (
    ("sampling_offsets", "offsets"),
    ("attention_weights", "weights"),
    ("value_proj", "values"),
    ("output_proj", "sampled"),
)
_QKV = ("query", "key", "value")
_LEVELS = re.compile(r"(?:.*\.)?level_embed")


def _heads(path: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{path}class_embed.{{i}}", "decoder_{i}_class"),
        (f"{path}bbox_embed.{{i}}.layers.{{k}}", "decoder_{i}_box_{k}"),
    )


def _shared(path: str) -> tuple[tuple[str, str], ...]:
    """What both programs call alike."""
    return (
        (f"{path}level_embed", "encoder_levels"),
        (f"{path}reference_points", "decoder_reference"),
        (f"{path}enc_output", "decoder_proposal"),
        (f"{path}enc_output_norm", "decoder_proposal_norm"),
        (f"{path}pos_trans", "decoder_position"),
        (f"{path}pos_trans_norm", "decoder_position_norm"),
        *_heads(""),
        *_heads(f"{path}decoder."),
    )


def _transformers() -> tuple[tuple[str, str], ...]:
    rules: list[tuple[str, str]] = [
        ("model.input_proj.{i}.0", "encoder_input_{i}"),
        ("model.input_proj.{i}.1", "encoder_input_{i}_gn"),
        ("model.query_position_embeddings", "decoder_queries"),
    ]
    for part, sampling in (("encoder", "self_attn"), ("decoder", "encoder_attn")):
        path, target = f"model.{part}.layers.{{i}}", f"{part}_{{i}}"
        rules += [(f"{path}.{sampling}.{name}", f"{target}_{own}") for name, own in _SAMPLING]
        rules.append((f"{path}.{sampling}_layer_norm", f"{target}_sampled_norm"))
        for name, hidden in (("fc1", "hidden"), ("fc2", "output")):
            rules += [(f"{path}.{prefix}{name}", f"{target}_{hidden}") for prefix in ("", "mlp.")]
        rules.append((f"{path}.final_layer_norm", f"{target}_output_norm"))
    path, target = "model.decoder.layers.{i}", "decoder_{i}"
    rules += [(f"{path}.self_attn.{letter}_proj", f"{target}_{name}") for letter, name in zip("qkv", _QKV, strict=True)]
    # the published files first, then what the library of today writes
    rules += [(f"{path}.self_attn.{name}", f"{target}_attended") for name in ("out_proj", "o_proj")]
    return (*rules, (f"{path}.self_attn_layer_norm", f"{target}_attended_norm"), *_shared("model."))


def _authors() -> tuple[tuple[str, str], ...]:
    rules: list[tuple[str, str]] = [
        ("input_proj.{i}.0", "encoder_input_{i}"),
        ("input_proj.{i}.1", "encoder_input_{i}_gn"),
        ("query_embed", "decoder_queries"),
    ]
    for part, sampling, norms in (
        ("encoder", "self_attn", ("sampled", "output")),
        ("decoder", "cross_attn", ("sampled", "attended", "output")),
    ):
        path, target = f"transformer.{part}.layers.{{i}}", f"{part}_{{i}}"
        rules += [(f"{path}.{sampling}.{name}", f"{target}_{own}") for name, own in _SAMPLING]
        rules += [(f"{path}.linear1", f"{target}_hidden"), (f"{path}.linear2", f"{target}_output")]
        rules += [(f"{path}.norm{number}", f"{target}_{name}_norm") for number, name in enumerate(norms, start=1)]
    rules.append(("transformer.decoder.layers.{i}.self_attn.out_proj", "decoder_{i}_attended"))
    return (*rules, *_shared("transformer."))


#: The tables: transformers', and the authors'.
NAMINGS = (
    Naming(
        "transformers' Deformable DETR",
        re.compile(r"(?P<prefix>(?:.*\.)?)model\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight"),
        ("model.backbone.conv_encoder.model.", "model.backbone.model."),
        _transformers(),
        embeddings=("decoder_queries", "encoder_levels"),
    ),
    Naming(
        "Deformable DETR's authors",
        re.compile(r"(?P<prefix>(?:.*\.)?)transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight"),
        ("backbone.0.body.",),
        _authors(),
        packed=(("transformer.decoder.layers.{i}.self_attn", "decoder_{i}"),),
        embeddings=("decoder_queries", "encoder_levels"),
    ),
)
_BACKBONE = {"stem_pool": "max", "activation": "relu", "norm_epsilon": 1e-5, "antialias": None}
_BACKBONE |= {"stride_in_block": "spatial"}
# Fields of a configuration that the network here has no other form of.
_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("sine",),
    "activation_function": ("relu",),
    "dilation": (False, None),
}


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of a Deformable DETR, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    return any(f"{prefix}class_embed.0.weight" in names for naming in NAMINGS for prefix in naming.prefixes(names))


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorNames:
    """Brings the tensors of a Deformable DETR to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    arrays = tensors.arrays if isinstance(tensors, Tensors) else tensors
    # a table that stands without a layer of its own
    arrays = {f"{name}.weight" if _LEVELS.fullmatch(name) else name: array for name, array in arrays.items()}
    found = detector_names.translate(arrays, NAMINGS, prefix=prefix, averaged=averaged)
    refines = any(".decoder.bbox_embed." in name for name in arrays)
    return dataclasses.replace(found, arrays=_with_heads(dict(found.arrays), refines))


def _with_heads(arrays: dict[str, np.ndarray], refines: bool) -> dict[str, np.ndarray]:
    """Names the heads for what they are: one for all layers where boxes are not refined, and that of proposals."""
    depth = highest(arrays, r"decoder_(\d+)_query/kernel")
    if "decoder_proposal/kernel" in arrays:
        own = f"decoder_{depth + 1}_"
        return {
            f"decoder_proposal_{name.removeprefix(own)}" if name.startswith(own) else name: array
            for name, array in arrays.items()
        }
    heads: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"decoder_(\d+)_((?:class|box_\d+)/\w+)", name)
        if match:
            heads.setdefault(match[2], {})[name] = array
    boxes = [list(each.values()) for name, each in heads.items() if name.startswith("box_")]
    if refines or not boxes or any(_differ(array, each[0]) for each in boxes for array in each[1:]):
        return arrays
    return {
        **{name: array for name, array in arrays.items() if not any(name in each for each in heads.values())},
        **{f"decoder_{part}": each[max(each)] for part, each in heads.items()},
    }


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two heads are not the same."""
    if one.shape != other.shape or not (is_of_its_own(one) and is_of_its_own(other)):
        return one.shape != other.shape
    return not np.array_equal(one, other)


def identify(
    translation: DetectorNames,
    *,
    architecture: str | None = None,
    body: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[DeformableDETRSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Depths, widths, levels and forms stand in the tensors. Heads, and the number of queries of two stages, do not.

    Args:
        translation: As :func:`translate` returned it.
        architecture: A name of the catalog that stands for what tensors do not tell.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        config: transformers' configuration, where there is one.
        **overrides: Fields of :class:`DeformableDETRSpec`; they win over everything.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override does not fit.
    """
    usual = catalog.get(architecture or "deformable_detr_resnet50").spec
    if not isinstance(usual, DeformableDETRSpec):
        raise CheckpointError(f"the tensors must be those of {architecture!r}. Received: those of a Deformable DETR.")
    stated = _stated(config or {})
    own = dict(body or {})
    backbone, assumptions = backbone_of(translation.body, **{**_BACKBONE, **own})
    fields = {"heads": usual.heads, "queries": usual.queries, **stated, **overrides}
    told = _told({name: tuple(np.shape(array)) for name, array in translation.arrays.items()}, fields["heads"])
    if not architecture and not stated:
        assumptions += [
            sentence(f"{name}={fields[name]!r}", "as in the published networks; the tensors do not tell", name)
            for name in ("heads", "queries")
            if name not in overrides and name not in told
        ]
    fields = {"backbone": backbone, **fields, **told, **overrides}
    return built(DeformableDETRSpec, fields, overrides), tuple(assumptions)


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of transformers states.

    Raises:
        CheckpointError: It states something that the network here has no form of.
    """
    if str(config.get("model_type", "")) != "deformable_detr":
        return {}
    for name, known in _FIXED.items():
        if config.get(name, known[0]) not in known:
            raise CheckpointError(
                f"the configuration must be one of Deformable DETR's published forms. Received: "
                f"{name}={config[name]!r}; known is {known[0]!r}. config={{}} leaves the configuration out."
            )
    heads = {config.get(f"{part}_attention_heads", 8) for part in ("encoder", "decoder")}
    if len(heads) != 1:
        raise CheckpointError(f"encoder and decoder must have as many heads. Received: {sorted(heads)}.")
    return {"heads": heads.pop(), "queries": config.get("two_stage_num_proposals", 300)}


def _told(shapes: Mapping[str, tuple[int, ...]], heads: Any) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    axes = {"encoder_input_1_conv/kernel": 4, "encoder_1_weights/kernel": 2, "decoder_1_weights/kernel": 2}
    axes |= {"encoder_1_hidden/kernel": 2, "encoder_levels/embeddings": 2}
    if (queries := shapes.get("decoder_queries/embeddings")) is not None:
        axes["decoder_queries/embeddings"] = 2
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(f"heads must be a positive integer. Received: {heads!r}.")
    for name, count in axes.items():
        if len(shapes.get(name, ())) != count:
            raise CheckpointError(
                f"a Deformable DETR must have {name!r} of {count} axes. Received: {shapes.get(name)}."
            )
    inputs = highest(shapes, r"encoder_input_(\d+)_conv/kernel")
    kernels = [shapes.get(f"encoder_input_{number}_conv/kernel", ()) for number in range(1, inputs + 1)]
    taps = sum(len(one) == 4 and one[0] == 1 for one in kernels)
    if inputs > 10 or not taps or any(len(one) != 4 for one in kernels):
        raise CheckpointError(f"there must be 1 to 10 maps, numbered without gaps. Received: {inputs}.")
    depth = highest(shapes, r"decoder_(\d+)_query/kernel")
    refines, proposes = f"decoder_{depth}_class/kernel" in shapes, "decoder_proposal/kernel" in shapes
    head = shapes.get(f"decoder_{depth}_class/kernel" if refines else "decoder_class/kernel", ())
    if len(head) != 2:
        raise CheckpointError(f"a Deformable DETR must have a head for classes. Received: {head}.")
    points = {}
    for part in ("encoder", "decoder"):
        sampled, each = shapes[f"{part}_1_weights/kernel"][-1], heads * inputs
        points[part], rest = divmod(sampled, each)
        if rest or not points[part]:
            raise CheckpointError(
                f"the {part} must have {each} weights for each point. Received: {sampled}. Pass heads=."
            )
    return {
        "levels": tuple(range(6 - taps, 6)),
        "extra_levels": inputs - taps,
        "width": shapes["encoder_input_1_conv/kernel"][-1],
        "encoder_depth": highest(shapes, r"encoder_(\d+)_weights/kernel"),
        "decoder_depth": depth,
        "hidden": shapes["encoder_1_hidden/kernel"][-1],
        "encoder_points": points["encoder"],
        "points": points["decoder"],
        "refines": refines,
        "proposes": proposes,
        "classes": head[-1],
        **({} if queries is None else {"queries": queries[0]}),
    }


def to_torch(spec: DeformableDETRSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of a detector under the names of transformers' published files, with timm's backbone.

    Args:
        spec: The detector.
        arrays: Weights by canonical name, as :func:`resfit.weights.canonical.arrays` returns them.

    Raises:
        ArgumentError: There is no name for a layer of this detector.
    """
    own = {name: array for name, array in arrays.items() if is_of_detector(name)}
    body = {name: array for name, array in arrays.items() if name not in own}
    counter, path, depth = detector_names.COUNTER, NAMINGS[0].bodies[0], spec.decoder_depth
    renamed = pytorch.to_torch(spec.backbone, "timm", arrays=body)
    written = {f"{path}{name}": array for name, array in renamed.items() if not name.endswith(counter)}
    numbered: dict[str, np.ndarray] = {}
    for name, array in own.items():
        head = re.fullmatch(r"decoder_(proposal_)?((?:class|box_\d+)/\w+)", name)
        numbers = [depth + 1] if head and head[1] else range(1, depth + 1)
        names = [f"decoder_{number}_{head[2]}" for number in numbers] if head else [name]
        numbered |= {one: array for one in names}
    written |= detector_names.to_torch(NAMINGS[0], numbered)
    written["model.level_embed"] = written.pop("model.level_embed.weight")
    # the decoder holds heads that it uses itself a second time
    for name in list(written):
        if (name.startswith("bbox_embed.") and spec.refines) or (name.startswith("class_embed.") and spec.proposes):
            written[f"model.decoder.{name}"] = written[name].copy()
    return written
