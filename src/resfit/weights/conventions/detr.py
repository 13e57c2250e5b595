"""Names of DETR, as transformers' published files and its library of today have them, with timm's backbone or its own,
and as its authors do; and what its tensors are called here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.networks.detection import catalog
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.spec import is_of_detector
from resfit.weights.assumption import sentence
from resfit.weights.conventions import detector_names, pytorch
from resfit.weights.conventions.detector_names import DetectorNames, Naming, backbone_of, built, highest
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = DETRSpec, True

_QKV = ("query", "key", "value")


def _transformers() -> tuple[tuple[str, str], ...]:
    rules: list[tuple[str, str]] = [("model.input_projection", "encoder_input")]
    for part in ("encoder", "decoder"):
        path, target = f"model.{part}.layers.{{i}}", f"{part}_{{i}}"
        attentions = [("self_attn", target)] + ([("encoder_attn", f"{target}_seen")] if part == "decoder" else [])
        for source, own in attentions:
            rules += [
                (f"{path}.{source}.{letter}_proj", f"{own}_{name}") for letter, name in zip("qkv", _QKV, strict=True)
            ]
            # the published files first, then what the library of today writes
            rules += [(f"{path}.{source}.{name}", f"{own}_attended") for name in ("out_proj", "o_proj")]
            rules.append((f"{path}.{source}_layer_norm", f"{own}_attended_norm"))
        for name, hidden in (("fc1", "hidden"), ("fc2", "output")):
            rules += [(f"{path}.{prefix}{name}", f"{target}_{hidden}") for prefix in ("", "mlp.")]
        rules.append((f"{path}.final_layer_norm", f"{target}_output_norm"))
    return (
        *rules,
        ("model.query_position_embeddings", "decoder_queries"),
        ("model.decoder.layernorm", "decoder_norm"),
        ("class_labels_classifier", "decoder_class"),
        ("bbox_predictor.layers.{k}", "decoder_box_{k}"),
    )


def _authors() -> tuple[tuple[str, str], ...]:
    rules: list[tuple[str, str]] = [("input_proj", "encoder_input")]
    for part, norms in (("encoder", ("attended", "output")), ("decoder", ("attended", "seen_attended", "output"))):
        path, target = f"transformer.{part}.layers.{{i}}", f"{part}_{{i}}"
        rules.append((f"{path}.self_attn.out_proj", f"{target}_attended"))
        if part == "decoder":
            rules.append((f"{path}.multihead_attn.out_proj", f"{target}_seen_attended"))
        rules += [(f"{path}.linear1", f"{target}_hidden"), (f"{path}.linear2", f"{target}_output")]
        rules += [(f"{path}.norm{number}", f"{target}_{name}_norm") for number, name in enumerate(norms, start=1)]
    return (
        *rules,
        ("query_embed", "decoder_queries"),
        ("transformer.decoder.norm", "decoder_norm"),
        ("class_embed", "decoder_class"),
        ("bbox_embed.layers.{k}", "decoder_box_{k}"),
    )


#: The tables: transformers', and the authors'.
NAMINGS = (
    Naming(
        "transformers' DETR",
        re.compile(r"(?P<prefix>(?:.*\.)?)model\.input_projection\.weight"),
        ("model.backbone.conv_encoder.model.", "model.backbone.model."),
        _transformers(),
        embeddings=("decoder_queries",),
    ),
    Naming(
        "DETR's authors",
        re.compile(r"(?P<prefix>(?:.*\.)?)transformer\.encoder\.layers\.0\.self_attn\.in_proj_weight"),
        ("backbone.0.body.",),
        _authors(),
        packed=(
            ("transformer.encoder.layers.{i}.self_attn", "encoder_{i}"),
            ("transformer.decoder.layers.{i}.self_attn", "decoder_{i}"),
            ("transformer.decoder.layers.{i}.multihead_attn", "decoder_{i}_seen"),
        ),
        embeddings=("decoder_queries",),
    ),
)

# What the backbones of all programs are, and tensors do not tell.
_BACKBONE = {"stem_pool": "max", "activation": "relu", "norm_epsilon": 1e-5, "antialias": None}
_BACKBONE |= {"stride_in_block": "spatial"}
# Fields of a configuration that the network here has no other form of.
_FIXED: dict[str, tuple[Any, ...]] = {"position_embedding_type": ("sine",), "activation_function": ("relu",)}


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of a DETR, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    heads = ("class_labels_classifier.weight", "class_embed.weight")
    return any(
        f"{prefix}{head}" in names
        for naming, head in zip(NAMINGS, heads, strict=True)
        for prefix in naming.prefixes(names)
    )


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorNames:
    """Brings the tensors of a DETR to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    return detector_names.translate(tensors, NAMINGS, prefix=prefix, averaged=averaged)


def identify(
    translation: DetectorNames,
    *,
    architecture: str | None = None,
    body: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[DETRSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Depths, widths and queries stand in the tensors. Heads and dilation (DC5) do not: they are those of the
    configuration beside the tensors, or of the published network without dilation.

    Args:
        translation: As :func:`translate` returned it.
        architecture: A name of the catalog that stands for what tensors do not tell.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        config: transformers' configuration, where there is one.
        **overrides: Fields of :class:`DETRSpec`; they win over everything.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override does not fit.
    """
    usual = catalog.get(architecture or "detr_resnet50").spec
    if not isinstance(usual, DETRSpec):
        raise CheckpointError(f"the tensors must be those of {architecture!r}. Received: those of a DETR.")
    stated = _stated(config or {})
    stride = {"output_stride": stated.pop("output_stride", usual.backbone.output_stride)}
    own = dict(body or {})
    backbone, assumptions = backbone_of(translation.body, **{**_BACKBONE, **stride, **own})
    told = _told({name: tuple(np.shape(array)) for name, array in translation.arrays.items()})
    if not architecture and not stated:
        untold = {"heads": usual.heads, "backbone.output_stride": stride["output_stride"]}
        assumptions += [
            sentence(f"{name}={value!r}", "as in the published networks; the tensors do not tell", name)
            for name, value in untold.items()
            if name not in overrides and name.removeprefix("backbone.") not in own
        ]
    fields = {"backbone": backbone, "heads": usual.heads, **stated, **told, **overrides}
    return built(DETRSpec, fields, overrides), tuple(assumptions)


def to_torch(spec: DETRSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of a detector under the names of transformers' published files, with timm's backbone.

    Args:
        spec: The detector.
        arrays: Weights by canonical name, as :func:`resfit.weights.canonical.arrays` returns them.

    Raises:
        ArgumentError: There is no name for a layer of this detector.
    """
    own = {name: array for name, array in arrays.items() if is_of_detector(name)}
    body = {name: array for name, array in arrays.items() if name not in own}
    counter, path = detector_names.COUNTER, NAMINGS[0].bodies[0]
    renamed = pytorch.to_torch(spec.backbone, "timm", arrays=body)
    # the norms of the backbone are frozen there, and have no counters
    written = {f"{path}{name}": array for name, array in renamed.items() if not name.endswith(counter)}
    return written | detector_names.to_torch(NAMINGS[0], own)


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of transformers states, its dilation as the backbone's output stride.

    Raises:
        CheckpointError: It states something that the network here has no form of.
    """
    if str(config.get("model_type", "")) != "detr":
        return {}
    for name, known in _FIXED.items():
        if config.get(name, known[0]) not in known:
            raise CheckpointError(
                f"the configuration must be one of DETR's published forms. Received: {name}={config[name]!r}; known "
                f"is {known[0]!r}. config={{}} leaves the configuration out."
            )
    heads = {config.get(f"{part}_attention_heads", 8) for part in ("encoder", "decoder")}
    if len(heads) != 1:
        raise CheckpointError(f"encoder and decoder must have as many heads. Received: {sorted(heads)}.")
    return {"heads": heads.pop(), "output_stride": 16 if config.get("dilation") else 32}


def _told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    axes = {"encoder_input_conv/kernel": 4, "decoder_queries/embeddings": 2, "decoder_class/kernel": 2}
    axes |= {"decoder_1_hidden/kernel": 2}
    for name, count in axes.items():
        if len(shapes.get(name, ())) != count:
            raise CheckpointError(f"a DETR must have {name!r} of {count} axes. Received: {shapes.get(name)}.")
    return {
        "width": shapes["encoder_input_conv/kernel"][-1],
        "encoder_depth": highest(shapes, r"encoder_(\d+)_query/kernel"),
        "decoder_depth": highest(shapes, r"decoder_(\d+)_query/kernel"),
        "hidden": shapes["decoder_1_hidden/kernel"][-1],
        "queries": shapes["decoder_queries/embeddings"][0],
        "classes": shapes["decoder_class/kernel"][-1] - 1,
    }
