"""Names of other libraries' tensors, and what they are called here.

One table a convention, read in both directions: :func:`translate` brings tensors to canonical names and Keras'
axes, :func:`to_torch` goes back. Nothing is dropped silently: what no rule knows must be on the list of things
that are left out (:data:`LEFT_OUT`), or it is handed back as a leftover.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks.plan import NORM_SUFFIXES
from resfit.preprocessing import InputSpec
from resfit.weights import attention
from resfit.weights.assumption import sentence
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors

Kind = Literal["conv", "norm", "dense", "pointwise"]
_Value = TypeVar("_Value")

_HEAD_OF_LAYERS = "a head of several layers (what lies between them is not told)"

#: Tensors that are no weights of a network, as patterns of names below any prefix, and what they are.
LEFT_OUT: dict[str, str] = {
    "*num_batches_tracked": "counters of batch norm",
    "*optim*": "slots of an optimiser",
    "*lr_sched*": "slots of an optimiser",
    "*.exp_avg": "slots of an optimiser",
    "*.exp_avg_sq": "slots of an optimiser",
    "*.momentum_buffer": "slots of an optimiser",
    "*scaler.*": "state of loss scaling",
    "*rng_state*": "state of a random generator",
    "*queue*": "a queue of features",
    "*n_averaged": "a counter of averaging",
    "loss.*": "state of the loss",
    "criterion.*": "state of the loss",
    "data_preprocessor.*": "the means and deviations of its library's input contract (input_spec= sets the contract)",
    "*fc.[0-9].*": _HEAD_OF_LAYERS,
    "*projection_head_momentum.*": "a projection head",
    "*prediction_head_momentum.*": "a projection head",
    "*projector_momentum.*": "a projection head",
    "*prediction_head.*": "a projection head",
    "*projector.*": "a projection head",
    "*projector_*": "a projection head",
    "*projection.*": "a projection head",
    "*projection_head.*": "a projection head",
    "*proj_head.*": "a projection head",
    "*predictor.*": "a projection head",
    "*prototypes*": "a projection head",
    "*projetion.*": "a projection head",  # so misspelt in a port of BYOL that many use
    "*contrastive_head.*": "a projection head",
    "neck.*": "a projection head",
    "*.neck.*": "a projection head",
    "*encoder_[qk].1.*": "a projection head",
    "*bn.running_*": "statistics of a projection head",
    "*.heads.*": "heads of other tasks",
    "*momentum_classifier.*": "a classifier that was trained beside the network",
    "*head.mlp.*": "a projection head",
    "*head.last_layer.*": "a projection head",
    "*attnpool.*": attention.REASON,
    "*head.pos_embed": attention.REASON,
    "*head.[qkv].*": attention.REASON,
    "*head.qkv.*": attention.REASON,
    "*head.proj.*": attention.REASON,
    "transformer.*": "CLIP's text tower",
    "token_embedding.*": "CLIP's text tower",
    "positional_embedding": "CLIP's text tower",
    "ln_final.*": "CLIP's text tower",
    "text_projection": "CLIP's text tower",
    "logit_scale": "CLIP's text tower",
    "logit_bias": "CLIP's text tower",
    "text.*": "CLIP's text tower",
    "*center": "a running centre of self-distillation",
}

# Parts of detectors whose names are like those of projection heads.
_DETECTOR_PART = re.compile(r"(?:^|\.)(?:roi_heads|rpn|(?:box|mask|keypoint|class|bbox)_predictor|input_projection)\.")

# Parts of names that wrappers of modules add: torch.compile, FSDP, activation checkpointing, DataParallel and others.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|_forward_module|module)\."
)

# Parts of a prefix that mark a running average of the network beside it.
_AVERAGED = re.compile(r"(^|_)ema($|_)|^momentum_|^target_|^encoder_k$|^key_encoder$|_momentum$|^averaged?_")
# Parts of a prefix whose classifier is no classifier but a projection of self-supervised training.
_SELF_SUPERVISED = (
    *("encoder_q", "encoder_k", "base_encoder", "momentum_encoder", "query_encoder", "key_encoder"),
    *("online_encoder", "online_network", "target_encoder", "target_network", "student", "teacher"),
)
# Classifiers that stand beside a network, where its prefix names it a part of a larger one.
_BESIDE = ("head.fc", "classifier", "fc", "head", "linear")

_NECK = re.compile(r"(?:^|\.)neck\.")

_DILATED = "segmenters of {} are trained so; output_stride=32 is the stride without dilation"
# What a network usually is where it stands in a larger one: its prefix, a name beside it, the fields and why.
_PLACES: tuple[tuple[str, str, dict[str, tuple[Any, str]]], ...] = (
    # torchvision/models/segmentation of pytorch/vision: replace_stride_with_dilation=[False, True, True]
    (r"(?:^|\.)backbone\.$", r"classifier\.(?:0|4)\.", {"output_stride": (8, _DILATED.format("torchvision"))}),
    # configs/_base_/models of open-mmlab/mmsegmentation: strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)
    (r"(?:^|\.)backbone\.$", r"decode_head\.", {"output_stride": (8, _DILATED.format("mmsegmentation"))}),
    # segmentation_models_pytorch/decoders/deeplabv3 of qubvel-org
    (r"(?:^|\.)encoder\.$", r"decoder\.aspp\.", {"output_stride": (16, _DILATED.format("SMP (DeepLabV3+)"))}),
    (r"(?:^|\.)encoder\.$", r"decoder\.0\.convs\.", {"output_stride": (8, _DILATED.format("SMP (DeepLabV3)"))}),
    # overwrite_eps in torchvision/models/detection
    (
        r"(?:^|\.)backbone\.body\.$",
        r"fpn\.",
        {
            "norm_epsilon": (
                1e-5,
                "torchvision's first weights of Faster R-CNN, RetinaNet and Mask R-CNN ran with norm_epsilon=0",
            )
        },
    ),
)

# Convolutions of a stem of several.
_STEM_CONVOLUTION = (
    r"(?:conv1\.\d+|stem\.\d+|stem\.conv\d|embedder\.embedder\.\d+\.convolution|conv1\.conv1_\d\.conv)\.weight"
)
# What a part of a network itself is called, below its prefix.
_OWN_PART = re.compile(
    r"(?:resnet\.)?(?:conv\d*|bn\d*|norm\d*|stem|maxpool|embedder|encoder|layers?\d*|stages|res\d|res_layers|\d+)\."
)

# Where the blocks of a network stand among its own names.
_BLOCK = re.compile(r"(?:resnet\.)?(?:layer\d+|stages\.\d+|encoder\.stages\.\d+|\d+)\.(?:\w+\.)?\d+\.")

_CONV = {"weight": "kernel", "bias": "bias"}
_NORM = {
    **{"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"},
    "v": "v",  # of EvoNorm
}

# Paddle's names of statistics; its dense layers have Keras' axes.
_PADDLE = {"_mean": "running_mean", "_variance": "running_var"}

# Axes of a kernel, by the number of them: torch's to Keras', and back.
_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}
_BACK = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a convention's table.

    Attributes:
        source: The layer's name there. ``{s}``, ``{b}`` and ``{i}`` stand for the numbers of stage, block and
            convolution.
        target: The canonical name here, without ``_conv`` or what norms end in (``_bn``); ``{stem}`` is the last
            convolution of the stem.
        kind: What the layer is; ``"pointwise"`` is a dense layer that is a 1x1 convolution there.
        shift: Added to the source's ``{i}``.
        only: For writing: the networks that this name is for, by a field of the spec and its value.
        is_read_only: Whether files are read with this name and never written: it is that of another library's variant.
    """

    source: str
    target: str
    kind: Kind
    shift: int = 0
    only: tuple[str, Any] | None = None
    is_read_only: bool = False


@dataclasses.dataclass(frozen=True)
class Convention:
    """How one library names its layers.

    Attributes:
        name: What it is called here.
        anchor: A regular expression that finds the first convolution of the first block; its group ``prefix``
            is what stands before the network's own names.
        rules: The table. The first rule that fits wins, in both directions.
        shift: Added to the source's number of a stage; blocks are counted from 0 there, from 1 here.
        body: What stands before the names of all but the classifier, where there is one.
    """

    name: str
    anchor: str
    rules: tuple[Rule, ...]
    shift: int
    body: str = ""


@dataclasses.dataclass(frozen=True)
class Located:
    """A network among the names of a source.

    Attributes:
        convention: How it is named.
        prefix: What stands before its own names, with the last dot.
        averaged: Whether the prefix says that it is a running average of another one.
    """

    convention: Convention
    prefix: str
    averaged: bool

    @property
    def self_supervised(self) -> bool:
        """Whether the prefix is one of self-supervised training."""
        return any(part in _SELF_SUPERVISED for part in self.prefix.split("."))


def _stem_of_sequence(name: str) -> tuple[Rule, ...]:
    """The deep stem as one Sequential: convolution, norm and activation in turn."""
    convolutions = tuple(Rule(f"{name}.{3 * number}", f"conv1_{number + 1}", "conv") for number in range(3))
    return (*convolutions, *(Rule(f"{name}.{3 * number + 1}", f"conv1_{number + 1}", "norm") for number in range(2)))


def _blocks(path: str) -> tuple[Rule, ...]:
    """Blocks as torchvision and its many descendants name them; the shortcut first, since it is convolution 0."""
    pooled = ("shortcut", "avgpool")
    return (
        Rule(f"{path}.downsample.1", "conv{s}_block{b}_0", "conv", only=pooled),
        Rule(f"{path}.downsample.2", "conv{s}_block{b}_0", "norm", only=pooled),
        Rule(f"{path}.downsample.0", "conv{s}_block{b}_0", "conv"),
        Rule(f"{path}.downsample.1", "conv{s}_block{b}_0", "norm"),
        Rule(f"{path}.shortcut.0", "conv{s}_block{b}_0", "conv"),
        Rule(f"{path}.shortcut.1", "conv{s}_block{b}_0", "norm"),
        Rule(f"{path}.se.fc1", "conv{s}_block{b}_se_reduce", "conv"),
        Rule(f"{path}.se.fc2", "conv{s}_block{b}_se_expand", "conv"),
        Rule(f"{path}.se_module.fc1", "conv{s}_block{b}_se_reduce", "conv"),
        Rule(f"{path}.se_module.fc2", "conv{s}_block{b}_se_expand", "conv"),
        Rule(f"{path}.se.conv", "conv{s}_block{b}_eca", "conv"),
        Rule(f"{path}.conv{{i}}", "conv{s}_block{b}_{i}", "conv"),
        Rule(f"{path}.bn{{i}}", "conv{s}_block{b}_{i}", "norm"),
    )


_TORCH_STEM = (
    Rule("conv1", "conv1", "conv"),
    *_stem_of_sequence("conv1"),
    Rule("bn1", "{stem}", "norm"),
    # OpenMMLab's ResNetV1c and V1d, whose stem holds its last norm too
    *_stem_of_sequence("stem"),
    Rule("stem.7", "conv1_3", "norm"),
    Rule("maxpool.0", "pool1", "conv"),
    Rule("maxpool.1", "pool1", "norm"),
)
_TORCH_BLOCKS = _blocks("layer{s}.{b}")
_PREACT = "stages.{s}.blocks.{b}"
_TRANSFORMERS = "encoder.stages.{s}.layers.{b}"

#: torchvision's and timm's ``resnet`` module.
TORCH = Convention(
    "timm",
    r"(?P<prefix>(?:.*\.)?)layer1\.0\.conv1\.weight",
    (
        *_TORCH_STEM,
        *_TORCH_BLOCKS,
        Rule("fc", "predictions", "dense"),
        Rule("last_linear", "predictions", "dense"),
        Rule("fc.1", "predictions", "dense"),
    ),
    shift=1,
)
#: Networks for CIFAR, whose classifier is called ``linear``.
CIFAR = Convention(
    "cifar",
    r"(?P<prefix>(?:.*\.)?)layer1\.0\.conv1\.weight",
    (*_TORCH_STEM, *_TORCH_BLOCKS, Rule("linear", "predictions", "dense")),
    shift=1,
)
#: CLIP's visual tower: torchvision's blocks behind a stem of its own.
CLIP = Convention(
    "clip",
    r"(?P<prefix>(?:.*\.)?)layer1\.0\.conv1\.weight",
    (
        *(Rule(f"conv{number}", f"conv1_{number}", "conv") for number in (1, 2, 3)),
        *(Rule(f"bn{number}", f"conv1_{number}", "norm") for number in (1, 2, 3)),
        Rule("layer{s}.{b}.downsample.0", "conv{s}_block{b}_0", "conv"),
        Rule("layer{s}.{b}.downsample.1", "conv{s}_block{b}_0", "norm"),
        *_TORCH_BLOCKS,
    ),
    shift=1,
)
#: The same tower as timm's ``byobnet`` module names it.
BYOB_CLIP = Convention(
    "timm-clip",
    r"(?P<prefix>(?:.*\.)?)stages\.0\.0\.conv1_1x1\.conv\.weight",
    (
        Rule("stem.conv{i}.conv", "conv1_{i}", "conv"),
        Rule("stem.conv{i}.bn", "conv1_{i}", "norm"),
        Rule("stages.{s}.{b}.shortcut.conv.conv", "conv{s}_block{b}_0", "conv"),
        Rule("stages.{s}.{b}.shortcut.conv.bn", "conv{s}_block{b}_0", "norm"),
        Rule("stages.{s}.{b}.conv2_kxk.conv", "conv{s}_block{b}_2", "conv"),
        Rule("stages.{s}.{b}.conv2_kxk.bn", "conv{s}_block{b}_2", "norm"),
        Rule("stages.{s}.{b}.conv{i}_1x1.conv", "conv{s}_block{b}_{i}", "conv"),
        Rule("stages.{s}.{b}.conv{i}_1x1.bn", "conv{s}_block{b}_{i}", "norm"),
    ),
    shift=2,
)
#: A torchvision network cut into ``nn.Sequential(*children)``, as self-supervised code often does.
SEQUENTIAL = Convention(
    "sequential",
    r"(?P<prefix>(?:.*\.)?)4\.0\.conv1\.weight",
    (Rule("0", "conv1", "conv"), Rule("1", "{stem}", "norm"), *_blocks("{s}.{b}")),
    shift=-2,
)
#: timm's ``resnetv2`` module, BiT among it.
PREACTIVATED = Convention(
    "timm-v2",
    r"(?P<prefix>(?:.*\.)?)stages\.0\.blocks\.0\.conv1\.weight",
    (
        Rule("stem.conv", "conv1", "conv"),
        Rule("stem.conv{i}", "conv1_{i}", "conv"),
        Rule("stem.norm{i}", "conv1_{i}", "norm"),
        Rule(f"{_PREACT}.downsample.conv", "conv{s}_block{b}_0", "conv"),
        Rule(f"{_PREACT}.conv{{i}}", "conv{s}_block{b}_{i}", "conv"),
        Rule(f"{_PREACT}.norm1", "conv{s}_block{b}_preact", "norm"),
        Rule(f"{_PREACT}.norm{{i}}", "conv{s}_block{b}_{i}", "norm", shift=-1),
        Rule("norm", "post", "norm"),
        Rule("head.fc", "predictions", "pointwise"),
    ),
    shift=2,
)
#: transformers' ResNet, with its classifier or without.
TRANSFORMERS = Convention(
    "transformers",
    r"(?P<prefix>(?:.*?\.)??)(?:resnet\.)?encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    (
        Rule("embedder.embedder.convolution", "conv1", "conv"),
        Rule("embedder.embedder.normalization", "conv1", "norm"),
        # RT-DETR's deep stem, and its shortcuts that average before they project
        Rule("embedder.embedder.{i}.convolution", "conv1_{i}", "conv", shift=1, is_read_only=True),
        Rule("embedder.embedder.{i}.normalization", "conv1_{i}", "norm", shift=1, is_read_only=True),
        Rule(f"{_TRANSFORMERS}.shortcut.1.convolution", "conv{s}_block{b}_0", "conv", only=("shortcut", "avgpool")),
        Rule(f"{_TRANSFORMERS}.shortcut.1.normalization", "conv{s}_block{b}_0", "norm", only=("shortcut", "avgpool")),
        Rule(f"{_TRANSFORMERS}.shortcut.convolution", "conv{s}_block{b}_0", "conv"),
        Rule(f"{_TRANSFORMERS}.shortcut.normalization", "conv{s}_block{b}_0", "norm"),
        Rule(f"{_TRANSFORMERS}.layer.{{i}}.convolution", "conv{s}_block{b}_{i}", "conv", shift=1),
        Rule(f"{_TRANSFORMERS}.layer.{{i}}.normalization", "conv{s}_block{b}_{i}", "norm", shift=1),
        Rule("classifier.1", "predictions", "dense"),
    ),
    shift=2,
    body="resnet.",
)

#: detectron2's ResNet, whose norms are parts of its convolutions; alone, or as ``backbone.bottom_up.``.
DETECTRON = Convention(
    "detectron2",
    r"(?P<prefix>(?:.*\.)?)res2\.0\.conv1\.weight",
    (
        Rule("stem.conv1", "{first}", "conv"),
        Rule("stem.conv1.norm", "{first}", "norm"),
        Rule("stem.conv{i}", "conv1_{i}", "conv"),
        Rule("stem.conv{i}.norm", "conv1_{i}", "norm"),
        Rule("res{s}.{b}.shortcut", "conv{s}_block{b}_0", "conv"),
        Rule("res{s}.{b}.shortcut.norm", "conv{s}_block{b}_0", "norm"),
        Rule("res{s}.{b}.conv{i}", "conv{s}_block{b}_{i}", "conv"),
        Rule("res{s}.{b}.conv{i}.norm", "conv{s}_block{b}_{i}", "norm"),
        Rule("linear", "predictions", "dense"),
        Rule("stem.fc", "predictions", "dense"),
    ),
    shift=0,
)
_CONV_AND_NORM: tuple[Kind, ...] = ("conv", "norm")
_PRESNET = "res_layers.{s}.blocks.{b}"
#: The ResNet of RT-DETR's authors (``PResNet`` of lyuwenyu/RT-DETR).
PRESNET = Convention(
    "presnet",
    r"(?P<prefix>(?:.*\.)?)res_layers\.0\.blocks\.0\.branch2a\.conv\.weight",
    (
        Rule("conv1.conv1_{i}.conv", "conv1_{i}", "conv"),
        Rule("conv1.conv1_{i}.norm", "conv1_{i}", "norm"),
        Rule(f"{_PRESNET}.short.conv.conv", "conv{s}_block{b}_0", "conv", only=("shortcut", "avgpool")),
        Rule(f"{_PRESNET}.short.conv.norm", "conv{s}_block{b}_0", "norm", only=("shortcut", "avgpool")),
        Rule(f"{_PRESNET}.short.conv", "conv{s}_block{b}_0", "conv"),
        Rule(f"{_PRESNET}.short.norm", "conv{s}_block{b}_0", "norm"),
        *(
            Rule(f"{_PRESNET}.branch2{letter}.{part}", f"conv{{s}}_block{{b}}_{number}", part)
            for number, letter in enumerate("abc", start=1)
            for part in _CONV_AND_NORM
        ),
    ),
    shift=2,
)

# Radford et al. 2021, for all towers but for their sizes.
_CLIP_CONTRACT = InputSpec(
    scale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
    crop_fraction=1.0,
)

_CLIP_FACTS = {"stem_pool": "avg", "antialias": "avg", "shortcut": "avgpool"}

# What networks of a convention are usually given, in words too.
_USUAL_CONTRACTS = {
    # PIXEL_MEAN and PIXEL_STD of detectron2/config/defaults.py
    "detectron2": (
        InputSpec(channel_order="bgr", mean=(103.53, 116.28, 123.675)),
        "BGR, less 103.53 116.28 123.675 (detectron2's default)",
    ),
    "presnet": (InputSpec(scale=1 / 255, resize_mode="squash", size=(640, 640)), "scaled to 0..1 (RT-DETR's)"),
}

#: Every convention by its name. ``torchvision`` is written as ``timm``.
CONVENTIONS = {
    c.name: c for c in (TORCH, CIFAR, CLIP, BYOB_CLIP, SEQUENTIAL, PREACTIVATED, TRANSFORMERS, DETECTRON, PRESNET)
}


def locate(names: Iterable[str]) -> tuple[Located, ...]:
    """Finds every residual network among the names of a source, the likeliest first.

    A network comes before its running average, a teacher before its student, a short prefix before a long one.

    Args:
        names: Names of the source's tensors.
    """
    present = set(names)
    found = []
    for name in sorted(present):
        for convention in (TORCH, BYOB_CLIP, SEQUENTIAL, PREACTIVATED, TRANSFORMERS, DETECTRON, PRESNET):
            match = re.fullmatch(convention.anchor, name)
            if match is None:
                continue
            prefix = match["prefix"]
            if convention is TORCH:
                convention = _torch_dialect(present, prefix)
            parts = prefix.split(".")
            found.append(Located(convention, prefix, any(_AVERAGED.search(part) for part in parts)))
    return tuple(sorted(found, key=lambda one: (one.averaged, "student" in one.prefix, one.prefix.count("."))))


def translate(
    tensors: Tensors | Mapping[str, np.ndarray],
    *,
    prefix: str | None = None,
    averaged: bool = False,
    ignore: Sequence[str] = (),
) -> Translation:
    """Brings the tensors of a source to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        prefix: What stands before the names of the network, if the source holds several.
        averaged: Take the running average (EMA) rather than the network itself.
        ignore: Patterns of names to leave out, beside :data:`LEFT_OUT`.

    Raises:
        CheckpointError: No known residual network is there, or several are and none is the likeliest.
    """
    if isinstance(tensors, Tensors):
        tensors = tensors.arrays
    tensors = unwrapped(tensors)
    is_paddle = any(name.endswith("._mean") for name in tensors)
    located = locate(tensors)
    chosen = _choose(located, prefix, averaged, tensors)
    tables = _tables(chosen.convention)
    stems = _stem_convolutions(chosen, tensors)
    own = [name for name in tensors if name.startswith(chosen.prefix)]
    norm = NORM_SUFFIXES[_norm_kind(own)]
    context = {"stem": f"conv1_{stems}" if stems > 1 else "conv1", "first": "conv1_1" if stems > 1 else "conv1"}
    fc_heads = sum(re.fullmatch(re.escape(chosen.prefix) + r"fc\.\d+\.weight", name) is not None for name in tensors)

    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    unknown: dict[str, np.ndarray] = {}
    head_names: list[str] = []
    remarks: list[str] = []
    for name, array in tensors.items():
        layer, _, leaf = name.removeprefix(chosen.prefix).removeprefix(chosen.convention.body).rpartition(".")
        kind = _kind(tensors, f"{name.rpartition('.')[0]}.weight")
        found = _first(tables, layer, kind, context) if name.startswith(chosen.prefix) else None
        ending = (_NORM if kind == "norm" else _CONV).get(_PADDLE.get(leaf, leaf))
        if found is None or ending is None:
            unknown[name] = array
            continue
        rule, base = found
        if base == "predictions":
            if chosen.self_supervised or (rule.source == "fc.1" and fc_heads != 1):
                head_names.append(name)
                continue
            if rule.source == "fc.1":
                why = "it is the only layer with weights in 'fc'"
                remarks.append(sentence(f"{name!r} is the classifier", why, "include_top"))
            arrays[f"predictions/{ending}"] = _dense(array, transposed=not is_paddle)
            continue
        if base.endswith("_0") and kind == "conv" and chosen.convention is not PREACTIVATED:
            facts["shortcut"] = rule.only[1] if rule.only else facts.get("shortcut", "projection")
        canonical = f"{base}_{norm if kind == 'norm' else 'conv'}/{ending}"
        if canonical in arrays:
            raise CheckpointError(f"two tensors must not stand for one weight. Received: {name!r} for {canonical!r}.")
        arrays[canonical] = np.transpose(array, _AXES[array.ndim]) if array.ndim in _AXES else array
    pooling, contract = None, None
    if chosen.convention in (CLIP, BYOB_CLIP):
        pooling = attention.find(tensors, chosen.prefix)
        side = attention.image_size(pooling, 32) or 224
        contract = dataclasses.replace(_CLIP_CONTRACT, size=(side, side))
        facts |= _CLIP_FACTS
        remarks.append(
            sentence("images scaled to 0..1, less CLIP's mean, over its deviation", "by its names", "input_spec")
        )
    usual = _USUAL_CONTRACTS.get(chosen.convention.name)
    if chosen.convention is TRANSFORMERS and stems > 1:
        usual = _USUAL_CONTRACTS["presnet"]
    if usual:
        contract = usual[0]
        remarks.append(sentence(f"images {usual[1]}", "the weights do not say so", "input_spec"))
    beside = _beside(unknown, chosen, arrays)
    unknown = {name: array for name, array in unknown.items() if name not in beside.values()}
    leftover, left_out = _sort_out(unknown, chosen, located, ignore)
    outside = tuple(name for name in leftover if not _is_inside(name, chosen))
    if beside and (chosen.self_supervised or any("a projection head" in text for text in left_out)):
        left_out.append(f"left out a classifier that was trained beside the network: {_few([*beside.values()])}")
    elif beside:
        arrays |= {f"predictions/{ending}": _dense(tensors[name]) for ending, name in beside.items()}
        why = "by its name and its width"
        remarks.append(sentence(f"{beside['kernel']!r}, beside the network, is its classifier", why, "include_top"))
    if head_names:
        left_out.append(f"left out a projection head of self-supervised training: {_few(head_names)}")
    if chosen.prefix:
        remarks.append(sentence(f"the network is what stands under {chosen.prefix!r}", "by its names", "prefix"))
    return Translation(
        convention=chosen.convention.name,
        prefix=chosen.prefix,
        arrays=arrays,
        facts=facts,
        leftover=leftover,
        left_out=tuple(left_out),
        remarks=tuple(dict.fromkeys(remarks)),
        attention=pooling,
        input_spec=contract,
        beside=outside,
        habits=_habits(chosen, tensors),
        assumed=tuple(_CLIP_FACTS) if chosen.convention in (CLIP, BYOB_CLIP) else (),
        program="CLIP",
        counts_batches=any(name.endswith(".num_batches_tracked") for name in own),
    )


def unwrapped(tensors: Mapping[str, _Value]) -> Mapping[str, _Value]:
    """Returns tensors without what wrappers of modules add to their names, wherever it stands in them.

    Args:
        tensors: Arrays under the source's names. Where two names would become one, all stay as they are.
    """
    names = [_WRAPPERS.sub("", name) for name in tensors]
    return dict(zip(names, tensors.values(), strict=True)) if len(set(names)) == len(names) else tensors


def state_of_training(name: str) -> str | None:
    """Returns what a tensor beside a network is that its training keeps, such as an optimiser's slots, or None.

    Args:
        name: The tensor's.
    """
    kinds = ("slots of an", "state of", "a counter of", "counters of")
    found = (told for pattern, told in LEFT_OUT.items() if told.startswith(kinds) and _is_below(name, pattern))
    return next(found, None)


def is_averaged(prefix: str) -> bool:
    """Whether what stands before names marks the running average (EMA) of a network.

    Args:
        prefix: Such as ``"model_ema."``.
    """
    return any(_AVERAGED.search(part) for part in prefix.split("."))


def to_torch(
    model: Any, convention: str = "timm", *, arrays: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Returns the weights of a network under the names and axes of a torch library.

    Args:
        model: A network that :func:`resfit.networks.build.build` made; or its spec, with ``arrays``.
        convention: ``"torchvision"`` or ``"timm"`` (``resnet`` module), ``"timm-v2"`` (``resnetv2`` module),
            ``"transformers"`` or ``"cifar"`` (Idelbayev's networks).
        arrays: Weights by canonical name. Default: those of the network.

    Returns:
        Contiguous arrays, with the counters that torch's batch norm has.

    Raises:
        ArgumentError: There is no such convention, or it has no name for a layer of this network.
    """
    from resfit.weights import canonical

    chosen = CONVENTIONS.get("timm" if convention == "torchvision" else convention)
    if chosen is None:
        names = ("torchvision", *CONVENTIONS)
        raise ArgumentError(f"convention must be one of {names}. Received: {convention!r}.{closest(convention, names)}")
    spec = model if arrays is not None else model.architecture
    if spec.preactivation != (chosen is PREACTIVATED):
        raise ArgumentError(
            f"a network {'with' if spec.preactivation else 'without'} pre-activation has no names in "
            f"{convention!r}. "
            f"Take {'timm-v2' if spec.preactivation else 'timm'!r}."
        )
    stem = f"conv1_{len(spec.stem)}" if len(spec.stem) > 1 else "conv1"
    rules = [
        rule
        for rule in chosen.rules
        if not rule.is_read_only and (rule.only is None or getattr(spec, rule.only[0]) == rule.only[1])
    ]
    written: dict[str, np.ndarray] = {}
    for name, array in (canonical.arrays(model) if arrays is None else arrays).items():
        layer, _, leaf = name.partition("/")
        base, kind = _split(layer)
        rule, source = _first_back(
            rules, base, kind, {"stem": stem, "first": "conv1_1" if len(spec.stem) > 1 else "conv1"}, chosen.shift
        ) or (None, "")
        if rule is None:
            raise ArgumentError(
                f"{convention!r} must have a name for every layer. Received: {layer!r}, which it lacks."
            )
        endings = {value: key for key, value in (_NORM if kind == "norm" else _CONV).items()}
        array = np.transpose(array, _BACK[array.ndim])
        if rule.kind == "pointwise" and array.ndim == 2:
            array = array[:, :, None, None]
        if kind != "dense":
            source = f"{chosen.body}{source}"
        written[f"{source}.{endings[leaf]}"] = np.ascontiguousarray(array)
        if leaf == "moving_variance":
            written[f"{source}.num_batches_tracked"] = np.array(0, np.int64)
    return written


def described(tensors: Mapping[str, Any], limit: int = 8) -> str:
    """Returns names and shapes for an error.

    Args:
        tensors: Arrays by name.
        limit: How many to name before the rest is only counted.
    """
    listed = [f"{name} {tuple(np.shape(array))}" for name, array in list(tensors.items())[:limit]]
    return ", ".join(listed) + (f" and {len(tensors) - limit} more" if len(tensors) > limit else "")


def _torch_dialect(names: set[str], prefix: str) -> Convention:
    if f"{prefix}conv3.weight" in names and f"{prefix}bn3.weight" in names:
        return CLIP
    has = (f"{prefix}linear.weight" in names, f"{prefix}layer2.0.shortcut.0.weight" in names)
    return CIFAR if any(has) else TORCH


def _choose(
    located: tuple[Located, ...], prefix: str | None, averaged: bool, tensors: Mapping[str, np.ndarray]
) -> Located:
    if not located:
        raise CheckpointError(
            "the tensors must be named as in torchvision, timm (resnet or resnetv2), transformers' ResNet, detectron2, "
            f"RT-DETR or CIFAR's ResNets, under any prefix. Received: {described(tensors)}."
        )
    prefixes = tuple(one.prefix for one in located)
    if prefix is not None:
        wanted = _WRAPPERS.sub("", prefix if not prefix or prefix.endswith(".") else f"{prefix}.")
        if wanted not in prefixes:
            raise CheckpointError(f"prefix must be one of {prefixes}. Received: {prefix!r}.{closest(wanted, prefixes)}")
        return located[prefixes.index(wanted)]
    candidates = [one for one in located if one.averaged == averaged]
    if averaged and not candidates:
        raise CheckpointError(f"the source must hold a running average. Received: networks under {prefixes}.")
    candidates = candidates or list(located)
    if len({_role(one.prefix) for one in candidates}) < len(candidates):
        raise CheckpointError(
            f"the source must hold one network, or say which. Received: networks under {prefixes}. Pass prefix=."
        )
    return candidates[0]


def _beside(unknown: Mapping[str, np.ndarray], chosen: Located, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Finds the classifier of a network that is a part of a larger one (``backbone.`` and ``head.fc``).

    Returns:
        The names of its weights there, by what they are here; nothing where there is none.
    """
    outer = "".join(re.findall(r"[^.]+\.", chosen.prefix)[:-1])
    if not chosen.prefix or "predictions/kernel" in arrays:
        return {}
    width = max((array.shape[-1] for name, array in arrays.items() if name.endswith("_conv/kernel")), default=0)
    for head in _BESIDE:
        found = {_CONV[leaf]: f"{outer}{head}.{leaf}" for leaf in _CONV if f"{outer}{head}.{leaf}" in unknown}
        if "kernel" in found and unknown[found["kernel"]].ndim == 2 and unknown[found["kernel"]].shape[1] == width:
            return found
    return {}


def _role(prefix: str) -> str:
    """What tells two networks of one source apart: a student from a teacher, and nothing else."""
    return next((part for part in prefix.split(".") if part in ("student", "teacher")), "")


def _stem_convolutions(located: Located, tensors: Mapping[str, Any]) -> int:
    """How many convolutions the stem has, which says what norm the name ``bn1`` belongs to."""
    pattern = re.compile(re.escape(located.prefix + located.convention.body) + _STEM_CONVOLUTION)
    return max(sum(pattern.fullmatch(name) is not None and np.ndim(tensors[name]) == 4 for name in tensors), 1)


def _norm_kind(names: Sequence[str]) -> str:
    """The kind of a network's norms, by what their weights are called."""
    known = set(names)
    if any(name.endswith(".v") and f"{name.removesuffix('v')}weight" in known for name in names):
        return "evo"
    return "batch" if any(name.endswith(("running_mean", "._mean")) for name in names) else "group"


def _kind(tensors: Mapping[str, np.ndarray], weight: str) -> Kind | None:
    if weight not in tensors:
        return None
    dimensions = tensors[weight].ndim
    return "norm" if dimensions == 1 else "dense" if dimensions == 2 else "conv"


def _dense(array: np.ndarray, *, transposed: bool = True) -> np.ndarray:
    if not transposed:
        return array
    if array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return np.transpose(array, _AXES[array.ndim]) if array.ndim in _AXES else array


@functools.cache
def _tables(convention: Convention) -> tuple[tuple[Rule, re.Pattern[str], int], ...]:
    """The rules of a convention, each with the pattern of its source's names, to be read forward."""
    return tuple((rule, _pattern(rule.source), convention.shift) for rule in convention.rules)


def _first(
    tables: tuple[tuple[Rule, re.Pattern[str], int], ...], layer: str, kind: Kind | None, context: Mapping[str, str]
) -> tuple[Rule, str] | None:
    for rule, pattern, shift in tables:
        accepted = ("dense", "conv") if rule.kind in ("dense", "pointwise") else (rule.kind,)
        match = pattern.fullmatch(layer) if kind in accepted else None
        if match:
            numbers = _shifted(match, {"s": shift, "b": 1, "i": rule.shift})
            if min(numbers.values(), default=1) > 0:  # nothing is counted from 0 here
                return rule, rule.target.format(**numbers, **context)
    return None


def _first_back(
    rules: Sequence[Rule], base: str, kind: Kind, context: Mapping[str, str], shift: int
) -> tuple[Rule, str] | None:
    for rule in rules:
        target = rule.target.replace("{stem}", context["stem"]).replace("{first}", context["first"])
        match = _pattern(target).fullmatch(base)
        if match and kind == ("dense" if rule.kind == "pointwise" else rule.kind):
            return rule, rule.source.format(**_shifted(match, {"s": -shift, "b": -1, "i": -rule.shift}))
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    # six digits are plenty, and keep hostile names from becoming huge numbers
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d{1,6})", re.escape(template)))


def _shifted(match: re.Match[str], shifts: Mapping[str, int]) -> dict[str, int]:
    return {key: int(value) + shifts[key] for key, value in match.groupdict().items()}


def _split(layer: str) -> tuple[str, Kind]:
    for ending, kind in (("conv", "conv"), *((suffix, "norm") for suffix in NORM_SUFFIXES.values())):
        if layer.endswith(f"_{ending}"):
            return layer.removesuffix(f"_{ending}"), kind  # type: ignore[return-value]
    return layer, "dense"


def _sort_out(
    unknown: Mapping[str, np.ndarray], chosen: Located, located: tuple[Located, ...], ignore: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Divides what no rule knows into what may be left out, said why, and what may not."""
    others = [(one, _branch(one, chosen)) for one in located if one.prefix != chosen.prefix]
    leftover: dict[str, np.ndarray] = {}
    reasons: dict[str, list[str]] = {}
    for name, array in unknown.items():
        patterns = LEFT_OUT
        if _BLOCK.match(name.removeprefix(chosen.prefix)) and name.startswith(chosen.prefix):
            # inside a block everything counts, whatever it is called
            patterns = {"*num_batches_tracked": LEFT_OUT["*num_batches_tracked"]}
        reason = _left_out(name, array, patterns, chosen)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore):
            reason = "what was asked for"
        for other, branch in others:
            if _belongs(name, branch, other, chosen):
                reason = f"{'the running average' if other.averaged else 'another network'} under {other.prefix!r}"
        if reason is None:
            leftover[name] = array
        else:
            reasons.setdefault(reason, []).append(name)
    reasons.pop(LEFT_OUT["*num_batches_tracked"], None)
    return leftover, [f"left out {reason}: {_few(names)}" for reason, names in reasons.items()]


def _left_out(name: str, array: np.ndarray, patterns: Mapping[str, str], chosen: Located) -> str | None:
    """Why a tensor that no rule knows is left out, or None where it must have its place."""
    if _DETECTOR_PART.search(name):
        return None
    reason = next((told for pattern, told in patterns.items() if _is_below(name, pattern)), None)
    if reason == _HEAD_OF_LAYERS and chosen.self_supervised:
        return "a projection head"
    if reason == "a projection head" and array.ndim == 4 and _NECK.search(name):
        return None  # a pyramid of feature maps, which is called so too
    leaf = name.rpartition(".")[2]
    alone = "." not in name or (chosen.prefix and not name.startswith(chosen.prefix))
    if reason is None and alone and leaf not in {*_NORM, *_CONV} and (array.ndim < 2 or array.dtype.kind in "iub"):
        return "numbers that are no weights"
    return reason


def _is_below(name: str, pattern: str) -> bool:
    """Whether a pattern is that of a name, below any prefix."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def _is_inside(name: str, chosen: Located) -> bool:
    """Whether a tensor that no rule knows may be a part of the network itself, by where it stands."""
    return name.startswith(chosen.prefix) and _OWN_PART.match(name.removeprefix(chosen.prefix)) is not None


def _habits(chosen: Located, names: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """What networks in such a place usually have, by what stands beside them, and what else they may have."""
    outer = "".join(re.findall(r"[^.]+\.", chosen.prefix)[:-1])
    beside = [name.removeprefix(outer) for name in names if not name.startswith(chosen.prefix) or not chosen.prefix]
    found: dict[str, tuple[Any, str]] = {}
    for prefixes, part, fields in _PLACES:
        if re.search(prefixes, chosen.prefix) and any(re.match(part, name) for name in beside):
            found |= {field: told for field, told in fields.items() if field not in found}
    return found


def _branch(other: Located, chosen: Located) -> str:
    """Returns the prefix of another network, cut after the first part that tells it from the chosen one."""
    own, its = chosen.prefix.split("."), other.prefix.split(".")
    place = next((place for place, (a, b) in enumerate(zip(own, its, strict=False)) if a != b), len(its) - 1)
    return ".".join([part for part in its[: place + 1] if part] + [""])


def _belongs(name: str, branch: str, other: Located, chosen: Located) -> bool:
    """Whether a tensor is part of another network of the source, or stands in its branch."""
    if name.startswith(chosen.prefix) and len(chosen.prefix) > len(branch):
        return False
    if branch:
        return name.startswith(branch)
    layer = name.rpartition(".")[0]
    return any(pattern.fullmatch(layer) for _, pattern, _ in _tables(other.convention))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _dotted(tensors: Tensors) -> dict[str, str] | None:
    """Names with dots for slashes, or None where two would become one."""
    names = {name: name.replace("/", ".") for name in tensors.arrays}
    return names if len(set(names.values())) == len(names) else None


def _recognises(tensors: Tensors) -> bool:
    """Whether a network of torch's world is among the arrays, in whatever container."""
    names = _dotted(tensors)
    return names is not None and bool(locate(unwrapped(dict.fromkeys(names.values()))))


@register_convention("torch", recognises=_recognises, order=40)
def _translate_dotted(tensors: Tensors, **options: Any) -> Translation:
    """Translates arrays whose names may have slashes for dots."""
    names = _dotted(tensors) or {}
    arrays = {names.get(name, name): array for name, array in tensors.arrays.items()}
    return translate(dataclasses.replace(tensors, arrays=arrays), **options)
