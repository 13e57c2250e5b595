"""Networks whose programs do not name their variables well: what the ways to them through the objects say.

Keras numbers its layers as they are made, so that the names of variables say little, and may not even be unique. The
attributes that a program keeps its layers in are the same in every file that it wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

_NUMBER = r"(\d{1,6})"
_LAYER = r"layer(?:_with_weights)?-"
_LEAF = r"_?(kernel|bias|gamma|beta|moving_mean|moving_variance)"


@dataclasses.dataclass(frozen=True)
class Program:
    """How one program keeps its layers.

    Attributes:
        name: What it is called here.
        anchor: A regular expression that finds the first kernel; its group ``prefix`` is what stands before the ways.
        weight: Returns the canonical name of a weight from the way to it, or None.
    """

    name: str
    anchor: re.Pattern[str]
    weight: Callable[[str], str | None]


_SIMCLR_STEM = re.compile(rf"resnet_model/initial_conv_relu_max_pool/{_NUMBER}/(conv2d|bn)/{_LEAF}")
_SIMCLR_BLOCK = re.compile(
    rf"resnet_model/block_groups/{_NUMBER}/layers/{_NUMBER}/(projection|shortcut|conv_relu_dropblock|conv2d_bn)_layers/"
    rf"{_NUMBER}/(conv2d|bn)/{_LEAF}"
)
# How many places a convolution takes in a block's list: itself, its norm and, in bottlenecks, DropBlock.
_PLACES = {"conv_relu_dropblock": 3, "conv2d_bn": 2}


def _simclr(way: str) -> str | None:
    """``tf2/model.py`` and ``tf2/resnet.py`` of google-research/simclr.

    Without selective kernels, the stem is one convolution. Its SavedModels are made by ``build_saved_model`` in
    ``tf2/run.py``, which keeps the network as ``model``.
    """
    if head := re.fullmatch(r"supervised_head/linear_layer/dense/(kernel|bias)", way):
        return f"predictions/{head[1]}"
    if stem := _SIMCLR_STEM.fullmatch(way):
        place, kind, leaf = stem.groups()
        return f"conv1_{_kind(kind)}/{leaf}" if int(place) == (0 if kind == "conv2d" else 2) else None
    match = _SIMCLR_BLOCK.fullmatch(way)
    if match is None:
        return None
    stage, block, part, place, kind, leaf = match.groups()
    places = _PLACES.get(part)
    number, rest = divmod(int(place), places) if places else (-1, int(place))
    if rest != (0 if kind == "conv2d" else 1):
        return None
    return f"conv{int(stage) + 2}_block{int(block) + 1}_{number + 1}_{_kind(kind)}/{leaf}"


def _kind(kind: str) -> str:
    return "conv" if kind == "conv2d" else "bn"


_BIT_UNIT = re.compile(rf"{_LAYER}{_NUMBER}/(_proj|_unit_a_conv|_unit_[abc]/{_LAYER}\d{{1,6}})/{_LEAF}")
_BIT_CONVOLUTIONS = {"_proj": 0, "_unit_a_conv": 1, "_unit_b": 2, "_unit_c": 3}
_BIT_NORMS = {"_unit_a": "preact", "_unit_b": "1", "_unit_c": "2"}  # each before the convolution of its letter


def _bit(way: str) -> str | None:
    """``ResnetV2`` in ``bit_tf2/models.py`` of google-research/big_transfer.

    sayakpaul/BiT-jax2tf fills it with the weights of distilled networks.
    """
    part, _, rest = way.partition("/")
    if part == "_root" and re.fullmatch(rf"{_LAYER}\d{{1,6}}/kernel", rest):
        return "conv1_conv/kernel"
    if part == "_pre_head" and (norm := re.fullmatch(r"0/_?(gamma|beta)", rest)):
        return f"post_gn/{norm[1]}"
    if part == "_head" and rest in ("kernel", "bias"):
        return f"predictions/{rest}"
    stage, _, rest = rest.partition("/")
    match = _BIT_UNIT.fullmatch(rest)
    if part != "_blocks" or not re.fullmatch(_NUMBER, stage) or match is None:
        return None
    block, place, leaf = match.groups()
    base, unit = f"conv{int(stage) + 2}_block{int(block) + 1}", place.partition("/")[0]
    if leaf == "kernel" and unit in _BIT_CONVOLUTIONS:
        return f"{base}_{_BIT_CONVOLUTIONS[unit]}_conv/kernel"
    return f"{base}_{_BIT_NORMS[unit]}_gn/{leaf}" if leaf in ("gamma", "beta") and unit in _BIT_NORMS else None


def _bit_sequence(way: str) -> str | None:
    """The same network's layers in a ``Sequential``, as a part of it is kept."""
    match = re.fullmatch(rf"{_LAYER}{_NUMBER}/(.+)", way)
    if match is None:
        return None
    place, rest = int(match[1]), match[2]
    if 1 <= place <= 4:
        return _bit(f"_blocks/{place - 1}/{rest}")
    return _bit({0: "_root/", 5: "_pre_head/0/", 6: "_head/"}.get(place, "") + rest)


#: Every program, in the order in which they are tried.
PROGRAMS = (
    Program(
        "simclr", re.compile(r"(?P<prefix>(?:.*/)?)resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel"), _simclr
    ),
    Program("bit", re.compile(rf"(?P<prefix>(?:.*/)?)_blocks/0/{_LAYER}0/_unit_a_conv/kernel"), _bit),
    Program("bit", re.compile(rf"(?P<prefix>(?:.*/)?){_LAYER}1/{_LAYER}0/_unit_a_conv/kernel"), _bit_sequence),
)

#: Beside the patterns of :mod:`resfit.weights.conventions.tensorflow`: weights that are no network's, by the ways to
#: them.
LEFT_OUT = {"*_projection_head/*": (PROJECTION := "a projection head")}

#: The node of SimCLR's program that its classifier is, and the operation that makes the pooled features.
CLASSIFIER, POOLING = re.compile(r"(?:.*/)?head_supervised/(?:.*/)?MatMul"), "Mean"


def prefixes(program: Program, ways: Mapping[str, str]) -> list[str]:
    """Returns what stands before networks of a program, sorted.

    Args:
        program: The program.
        ways: The way to each variable, by its name.
    """
    return sorted({match["prefix"] for match in map(program.anchor.fullmatch, ways.values()) if match})
