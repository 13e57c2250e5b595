"""Names of RT-DETR and RT-DETRv2, as transformers' published files and its library of today have them, and as their
authors do; and what their tensors are called here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.detection import catalog
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import is_of_detector
from resfit.weights.assumption import sentence
from resfit.weights.conventions import detector_names, pytorch
from resfit.weights.conventions.detector_names import DetectorNames, Naming, backbone_of, built, highest
from resfit.weights.formats.base import Tensors

#: What :func:`identify` returns, and whether it takes a configuration.
SPEC, TAKES_CONFIG = RTDETRSpec, True

_SCALE = "n_points_scale"
_CONSTANTS = "constants that are computed anew"
_AUTHORS_BODY = "backbone."
_BODY = "model.backbone.model."


def _paired(source: str, target: str, parts: tuple[str, str] = ("conv", "norm")) -> tuple[tuple[str, str], ...]:
    """A convolution and its norm."""
    return tuple((f"{source}.{part}", target) for part in parts)


def _fused(source: str, target: str) -> tuple[tuple[str, str], ...]:
    return (
        *_paired(f"{source}.conv{{=n}}", f"{target}_{{=n}}"),
        *_paired(f"{source}.bottlenecks.{{b}}.conv{{=n}}", f"{target}_block{{b}}_{{=n}}"),
    )


def _encoder(path: str) -> tuple[tuple[str, str], ...]:
    """What all programs call alike."""
    return (
        *_paired(f"{path}encoder.lateral_convs.{{i}}", "encoder_lateral_{i}"),
        *_fused(f"{path}encoder.fpn_blocks.{{i}}", "encoder_top_down_{i}"),
        *_paired(f"{path}encoder.downsample_convs.{{i}}", "encoder_downsample_{i}"),
        *_fused(f"{path}encoder.pan_blocks.{{i}}", "encoder_bottom_up_{i}"),
    )


def _boxes(source: str, target: str) -> tuple[str, str]:
    return (f"{source}.layers.{{k}}", f"{target}_box_{{k}}")


_SAMPLING = (
    ("sampling_offsets", "offsets"),
    ("attention_weights", "weights"),
    ("value_proj", "values"),
    ("output_proj", "sampled"),
)


def _transformers() -> tuple[tuple[str, str], ...]:
    attention, decoder = "model.encoder.encoder.0.layers.{i}", "model.decoder.layers.{i}"
    rules: list[tuple[str, str]] = [
        *_paired("model.encoder_input_proj.{i}", "encoder_input_{i}", ("0", "1")),
        *_encoder("model."),
        *_paired("model.decoder_input_proj.{i}", "decoder_input_{i}", ("0", "1")),
    ]
    # the published files first, then what the library of today writes
    for path, target in (
        (attention, "encoder_attention_{i}"),
        (decoder, "decoder_{i}"),
        ("model.encoder.aifi.0.layers.{i}", "encoder_attention_{i}"),
    ):
        rules += [
            (f"{path}.self_attn.{letter}_proj", f"{target}_{part}") for letter, part in zip("qkv", _QKV, strict=True)
        ]
        rules += [(f"{path}.self_attn.{part}", f"{target}_attended") for part in ("out_proj", "o_proj")]
        rules.append((f"{path}.self_attn_layer_norm", f"{target}_attended_norm"))
        for part, hidden in (("fc1", "hidden"), ("fc2", "output")):
            rules += [(f"{path}.{prefix}{part}", f"{target}_{hidden}") for prefix in ("", "mlp.")]
        rules.append((f"{path}.final_layer_norm", f"{target}_output_norm"))
    rules += [(f"{decoder}.encoder_attn.{part}", f"decoder_{{i}}_{own}") for part, own in _SAMPLING]
    rules += [
        (f"{decoder}.encoder_attn_layer_norm", "decoder_{i}_sampled_norm"),
        ("model.denoising_class_embed", "decoder_denoising"),
        ("model.enc_output.0", "decoder_proposal"),
        ("model.enc_output.1", "decoder_proposal_norm"),
        ("model.enc_score_head", "decoder_proposal_class"),
        _boxes("model.enc_bbox_head", "decoder_proposal"),
        ("model.decoder.query_pos_head.layers.{k}", "decoder_position_{k}"),
        ("model.decoder.class_embed.{i}", "decoder_{i}_class"),
        _boxes("model.decoder.bbox_embed.{i}", "decoder_{i}"),
        # the same heads once more
        ("class_embed.{i}", "decoder_{i}_class"),
        _boxes("bbox_embed.{i}", "decoder_{i}"),
    ]
    return tuple(rules)


def _authors() -> tuple[tuple[str, str], ...]:
    attention, decoder = "encoder.encoder.0.layers.{i}", "decoder.decoder.layers.{i}"
    rules: list[tuple[str, str]] = [*_encoder("")]
    # first RT-DETR's, then RT-DETRv2's
    for parts in (("0", "1"), ("conv", "norm")):
        rules += _paired("encoder.input_proj.{i}", "encoder_input_{i}", parts)
    rules += _paired("decoder.input_proj.{i}", "decoder_input_{i}")
    for path, target, last in ((attention, "encoder_attention_{i}", "norm2"), (decoder, "decoder_{i}", "norm3")):
        rules += [
            (f"{path}.self_attn.out_proj", f"{target}_attended"),
            (f"{path}.norm1", f"{target}_attended_norm"),
            (f"{path}.linear1", f"{target}_hidden"),
            (f"{path}.linear2", f"{target}_output"),
            (f"{path}.{last}", f"{target}_output_norm"),
        ]
    rules += [(f"{decoder}.cross_attn.{part}", f"decoder_{{i}}_{own}") for part, own in _SAMPLING]
    rules.append((f"{decoder}.norm2", "decoder_{i}_sampled_norm"))
    for first, second in (("0", "1"), ("proj", "norm")):
        rules += [
            (f"decoder.enc_output.{first}", "decoder_proposal"),
            (f"decoder.enc_output.{second}", "decoder_proposal_norm"),
        ]
    rules += [
        ("decoder.denoising_class_embed", "decoder_denoising"),
        ("decoder.enc_score_head", "decoder_proposal_class"),
        _boxes("decoder.enc_bbox_head", "decoder_proposal"),
        ("decoder.query_pos_head.layers.{k}", "decoder_position_{k}"),
        ("decoder.dec_score_head.{i}", "decoder_{i}_class"),
        _boxes("decoder.dec_bbox_head.{i}", "decoder_{i}"),
    ]
    return tuple(rules)


_QKV = ("query", "key", "value")

#: The tables: transformers', and the authors'.
NAMINGS = (
    Naming(
        "transformers' RT-DETR",
        re.compile(
            r"(?P<prefix>(?:.*\.)?)model\.backbone\.model\.encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"
        ),
        (_BODY,),
        _transformers(),
        embeddings=("decoder_denoising",),
        constants={rf"model\.decoder\.layers\.\d+\.encoder_attn\.{_SCALE}": _CONSTANTS},
    ),
    Naming(
        "RT-DETR's authors",
        re.compile(r"(?P<prefix>(?:.*\.)?)backbone\.res_layers\.0\.blocks\.0\.branch2a\.conv\.weight"),
        (_AUTHORS_BODY,),
        _authors(),
        packed=(
            ("encoder.encoder.0.layers.{i}.self_attn", "encoder_attention_{i}"),
            ("decoder.decoder.layers.{i}.self_attn", "decoder_{i}"),
        ),
        embeddings=("decoder_denoising",),
        constants={
            r"decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale": _CONSTANTS,
            r"decoder\.(?:anchors|valid_mask)": _CONSTANTS,
        },
    ),
)

# Fields that tensors do not tell, and what transformers' configurations call them.
_UNTOLD = {
    "encoder_heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "queries": "num_queries",
    "sampling": "decoder_method",
    "offset_scale": "decoder_offset_scale",
    "temperature": "positional_encoding_temperature",
}
_SAID = ("encoder_heads", "decoder_heads", "queries", "sampling")
# What the backbones of both programs are, and tensors do not tell.
_BACKBONE = {"stem_pool": "max", "activation": "relu", "norm_epsilon": 1e-5, "antialias": None}
# Fields of a configuration that the network here has no other form of.
_FIXED: dict[str, tuple[Any, ...]] = {
    "normalize_before": (False,),
    "learn_initial_query": (False,),
    "with_box_refine": (True,),
    "encoder_activation_function": ("gelu",),
    "activation_function": ("silu",),
    "decoder_activation_function": ("relu",),
    "eval_size": (None,),
    "anchor_image_size": (None, [640, 640], []),
}


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether tensors are those of an RT-DETR, by their names.

    Args:
        names: Tensors, or anything, by name.
    """
    for naming in NAMINGS:
        root = "model." if naming is NAMINGS[0] else ""
        for prefix in naming.prefixes(names):
            if f"{prefix}{root}encoder.lateral_convs.0.conv.weight" in names:
                return True
    return False


def translate(
    tensors: Tensors | Mapping[str, np.ndarray], *, prefix: str | None = None, averaged: bool = False
) -> DetectorNames:
    """Brings the tensors of an RT-DETR to canonical names.

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
) -> tuple[RTDETRSpec, tuple[str, ...]]:
    """Recovers the detector that tensors belong to.

    Depths and widths stand in the tensors. Heads, the number of queries and how places are sampled do not: they are
    those of the configuration beside the tensors, or of the published networks.

    Args:
        translation: As :func:`translate` returned it.
        architecture: A name of the catalog that stands for what tensors do not tell.
        body: Fields of the backbone's ArchitectureSpec; they win over everything.
        config: transformers' configuration, where there is one.
        **overrides: Fields of :class:`RTDETRSpec`; they win over everything.

    Returns:
        The detector, and what neither tensors nor overrides tell, one sentence each.

    Raises:
        CheckpointError: The tensors do not make a detector.
        ArgumentError: An override does not fit.
    """
    usual = catalog.get(architecture).spec if architecture else RTDETRSpec(catalog.get("rtdetr_r18vd").spec.backbone)
    if not isinstance(usual, RTDETRSpec):
        raise CheckpointError(f"the tensors must be those of {architecture!r}. Received: those of an RT-DETR.")
    backbone, assumptions = backbone_of(translation.body, **{**_BACKBONE, **(body or {})})
    stated = _stated(config or {})
    told_body = ((config or {}).get("backbone_config") or {}) if stated else {}
    if isinstance(told_body, Mapping) and told_body.get("hidden_act", "relu") != "relu":
        raise CheckpointError(f"the backbone must use relu. Received: hidden_act={told_body['hidden_act']!r}.")
    fields = {**{name: getattr(usual, name) for name in _UNTOLD}, **stated, **overrides}
    shapes = {name: tuple(np.shape(array)) for name, array in translation.arrays.items()}
    told = _told(shapes, fields, [array for name, array in translation.constants.items() if "scale" in name])
    if not architecture:
        assumptions += [
            sentence(f"{name}={fields[name]!r}", "as in the published networks; the tensors do not tell", name)
            for name in _SAID
            if name not in {**stated, **told, **overrides}
        ]
    fields = {"backbone": backbone, **fields, **told, **overrides}
    return built(RTDETRSpec, fields, overrides), tuple(assumptions)


def to_torch(spec: RTDETRSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of a detector under the names of transformers' published files.

    Args:
        spec: The detector.
        arrays: Weights by canonical name, as :func:`resfit.weights.canonical.arrays` returns them.

    Raises:
        ArgumentError: There is no name for a layer of this detector.
    """
    if spec.backbone.shortcut != "avgpool" or spec.backbone.norm != "batch" or len(spec.backbone.stem) != 3:
        raise ArgumentError("transformers' RT-DETR must have a ResNet-vd as its backbone. Received: another network.")
    own = {name: array for name, array in arrays.items() if is_of_detector(name)}
    body = {name: array for name, array in arrays.items() if name not in own}
    renamed = {_body_name(name): array for name, array in pytorch.to_torch(spec.backbone, "timm", arrays=body).items()}
    # the norms of the backbone are frozen there, and have no counters
    counter = detector_names.COUNTER
    written = {f"{_BODY}{name}": array for name, array in renamed.items() if not name.endswith(counter)}
    written |= detector_names.to_torch(NAMINGS[0], own)
    if spec.version == 2:
        scale = np.full(spec.points * len(spec.levels), 1 / spec.points, np.float32)
        for number in range(spec.decoder_depth):
            written[f"model.decoder.layers.{number}.encoder_attn.{_SCALE}"] = scale.copy()
        # the published files hold the heads twice
        for name in list(written):
            match = re.fullmatch(r"model\.decoder\.((?:class|bbox)_embed\..*)", name)
            if match is not None:
                written[match[1]] = written[name].copy()
    return written


_STEM = {"conv1.0": "0.convolution", "conv1.1": "0.normalization", "conv1.3": "1.convolution"}
_STEM |= {"conv1.4": "1.normalization", "conv1.6": "2.convolution", "bn1": "2.normalization"}


def _body_name(name: str) -> str:
    """timm's name of a tensor of the backbone as transformers' RT-DETR has it."""
    layer, _, leaf = name.rpartition(".")
    if layer in _STEM:
        return f"embedder.embedder.{_STEM[layer]}.{leaf}"
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d)", layer)
    if match is None:
        raise ArgumentError(f"transformers' RT-DETR must have a name for every layer. Received: {layer!r}.")
    path, number = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}", int(match[4])
    if match[3] == "downsample.":
        # behind an average pooling, but for the first stage, which does not pool
        shortcut = "shortcut" if match[1] == "1" else "shortcut.1"
        return f"{path}.{shortcut}.{'convolution' if number == 1 else 'normalization'}.{leaf}"
    kind = "convolution" if match[3] == "conv" else "normalization"
    return f"{path}.layer.{number - 1}.{kind}.{leaf}"


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a configuration of transformers states.

    Raises:
        CheckpointError: It states something that the network here has no form of.
    """
    if str(config.get("model_type", "")) not in ("rt_detr", "rt_detr_v2"):
        return {}
    for name, known in _FIXED.items():
        if name in config and config[name] not in known:
            raise CheckpointError(
                f"the configuration must be one of RT-DETR's published forms. Received: {name}={config[name]!r}; known "
                f"is {known[0]!r}. config={{}} leaves the configuration out."
            )
    found = {own: config[name] for own, name in _UNTOLD.items() if name in config}
    if found.get("sampling") == "default":
        found["sampling"] = "bilinear"
    # what the library takes where a configuration does not say
    return {"encoder_heads": 8, "decoder_heads": 8, "queries": 300, "sampling": "bilinear", **found}


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any], scales: list[np.ndarray]) -> dict[str, Any]:
    """Fields of the detector that stand in its tensors."""
    axes = {"encoder_input_1_conv/kernel": 4, "encoder_top_down_1_1_conv/kernel": 4, "decoder_input_1_conv/kernel": 4}
    axes |= {f"decoder_1_{part}/kernel": 2 for part in ("weights", "hidden", "class")}
    for name, count in axes.items():
        if len(shapes.get(name, ())) != count:
            raise CheckpointError(f"an RT-DETR must have {name!r} of {count} axes. Received: {shapes.get(name)}.")
    levels = highest(shapes, r"encoder_input_(\d+)_conv/kernel")
    sampled = shapes["decoder_1_weights/kernel"][-1]
    heads = _heads(scales, sampled) or fields["decoder_heads"]
    per_head = max(int(heads), 1) * max(levels, 1)
    points, rest = divmod(sampled, per_head)
    if rest or not points or levels > 5:
        raise CheckpointError(
            f"the decoder must have {per_head} weights for each point. Received: {sampled}. Pass decoder_heads=."
        )
    for scale in scales:
        if np.shape(scale) != (levels * points,) or not np.allclose(scale, 1 / points):
            raise CheckpointError(
                f"each level must have as many points. Received: scales of {np.shape(scale)}, {scale.tolist()[:12]}."
            )
    hidden = shapes.get("encoder_attention_1_hidden/kernel", (1024,))[-1]
    return {
        "levels": tuple(range(6 - levels, 6)),
        "encoder_width": shapes["encoder_input_1_conv/kernel"][-1],
        "encoder_depth": highest(shapes, r"encoder_attention_(\d+)_query/kernel"),
        "encoder_hidden": hidden,
        "fusion_width": shapes["encoder_top_down_1_1_conv/kernel"][-1],
        "fusion_blocks": highest(shapes, r"encoder_top_down_1_block(\d+)_1_conv/kernel"),
        "decoder_width": shapes["decoder_input_1_conv/kernel"][-1],
        "decoder_depth": highest(shapes, r"decoder_(\d+)_query/kernel"),
        **({"decoder_heads": heads} if scales else {}),
        "decoder_hidden": shapes["decoder_1_hidden/kernel"][-1],
        "points": points,
        "classes": shapes["decoder_1_class/kernel"][-1],
        "version": 2 if scales else 1,
    }


def _heads(scales: list[np.ndarray], sampled: int) -> int:
    """The decoder's heads, which RT-DETRv2's constants tell: one for each place that a head samples; else 0."""
    places = int(np.size(scales[0])) if scales else 0
    return 0 if not places or sampled % places else sampled // places
