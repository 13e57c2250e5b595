"""Names of Haiku's residual networks (JAX), and what their arrays are called here.

``haiku/_src/nets/resnet.py`` of google-deepmind/dm-haiku names them, and ``byol/utils/networks.py`` of
google-deepmind/deepmind-research alike: ``res_net50/~/block_group_0/~/block_0/~/conv_0`` with ``w``, its norm with
``scale`` and ``offset``, and among the states ``…/batchnorm_0/~/mean_ema`` with ``average``. BYOL keeps parameters and
states in ``online_params`` and ``online_state`` (``byol/byol_experiment.py``), those of its target beside them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.assumption import sentence
from resfit.weights.conventions import tf_defaults
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors

#: Arrays that are no weights of a network, as patterns of names, and what they are.
LEFT_OUT: dict[str, str] = {
    "*opt_state/*": "slots of an optimiser",
    "*target_params/*": "the running average of the network",
    "*target_state/*": "the running average of the network",
    "*projector/*": "a projection head",
    "*predictor/*": "a projection head",
    "*_ema/hidden": "running averages before they are corrected",
    "*_ema/counter": "running averages before they are corrected",
    "*rng": "state of a random generator",
    "*step": "a counter of training steps",
}

_ANCHOR = re.compile(r"(?P<tree>(?:.*/)?)(?P<net>[^/]+)/~/initial_conv/w")
_NUMBER = r"(\d{1,6})"
_BLOCK = re.compile(rf"block_group_{_NUMBER}/~/block_{_NUMBER}/~/(shortcut_)?(conv|batchnorm)(?:_{_NUMBER})?")
_PLAIN = {"initial_conv": "conv1_conv", "initial_batchnorm": "conv1_bn", "final_batchnorm": "post_bn"}
_LEAVES = {
    "w": "kernel",
    "b": "bias",
    "scale": "gamma",
    "offset": "beta",
    "~/mean_ema/average": "moving_mean",
    "~/var_ema/average": "moving_variance",
}
_PART = re.compile(rf"(?P<layer>.+?)/(?P<leaf>{'|'.join(map(re.escape, _LEAVES))})")
# The classifier of BYOL, which is trained on the features while they are learned, and Haiku's own.
_HEADS = ("classifier", "{net}/~/logits")


def is_network(names: Iterable[str]) -> bool:
    """Whether names are those of a network of Haiku.

    Args:
        names: Names of arrays, parts joined by ``"/"``.
    """
    return any(_ANCHOR.fullmatch(name) for name in names)


@register_convention("haiku", recognises=lambda tensors: is_network(tensors.arrays), order=20)
def translate(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Brings the arrays of a program of Haiku to canonical names.

    Args:
        tensors: What the reader of pickles returned. Not changed.
        prefix: What stands before the network's parameters (``"online_params/res_net50"``), if there are several.
        averaged: Take the running average that BYOL keeps as its target.
        ignore: Patterns of names to leave out, beside :data:`LEFT_OUT`.

    Raises:
        CheckpointError: No residual network of Haiku is there, or several are.
    """
    kept, left_out = _sorted_out(tensors.arrays, ignore, averaged)
    networks = {(match["tree"], match["net"]) for match in map(_ANCHOR.fullmatch, kept) if match}
    choices = ", ".join(f"{tree}{net}" for tree, net in sorted(networks)[:8]) or f"names such as {kept[:4]}"
    found = networks
    if prefix is not None:
        found = {(tree, net) for tree, net in networks if f"{tree}{net}" == prefix.removesuffix("/").removesuffix("/~")}
    if len(found) != 1:
        raise CheckpointError(
            "the arrays must be those of one residual network of Haiku, or prefix= say which. Received: "
            f"{choices}{f', and prefix={prefix!r}' if prefix is not None else ''}."
        )
    ((tree, net),) = found
    others = [f"{other}{name}/" for other, name in networks if (other, name) != (tree, net)]
    if others:
        strange = [name for name in kept if any(f"/{name}".find(f"/{other}") >= 0 for other in others)]
        left_out = {**left_out, "another network": strange}
        kept = [name for name in kept if name not in set(strange)]
    state = _state_tree(kept, net)
    names = {name: _canonical(name.removeprefix(tree).removeprefix(state), net) for name in kept}
    preactivated = "post_bn/gamma" in names.values()
    arrays: dict[str, np.ndarray] = {}
    leftover: dict[str, np.ndarray] = {}
    for name, target in names.items():
        if target is None:
            leftover[name] = tensors.arrays[name]
            continue
        target = _before(target) if preactivated else target
        if target in arrays:
            raise CheckpointError(f"two arrays must not stand for one weight. Received: {name!r} for {target!r}.")
        array = tensors.arrays[name]
        # vectors of norms have axes of length 1 for the batch and the places of a map
        arrays[target] = array if target.endswith("/kernel") else array.reshape(-1)
    habits = tf_defaults.habits("haiku", tf_defaults.FoundProgram(arrays))
    return Translation(
        convention="haiku",
        prefix=f"{tree}{net}/~/",
        arrays=arrays,
        facts=habits.facts,
        leftover=leftover,
        left_out=tuple(f"left out {reason}: {len(names)} arrays" for reason, names in left_out.items()),
        remarks=(
            *habits.remarks,
            sentence(f"the network is what stands under {f'{tree}{net}'!r}", "by its names", "prefix"),
        ),
        input_spec=habits.input_spec,
        assumed=tuple(habits.facts),
        program=tf_defaults.PROGRAM_NAMES["haiku"],
    )


def _sorted_out(
    names: Iterable[str], ignore: Sequence[str], averaged: bool
) -> tuple[list[str], Mapping[str, list[str]]]:
    kept: list[str] = []
    left_out: dict[str, list[str]] = {}
    patterns = [*((pattern, "what was asked for") for pattern in ignore), *LEFT_OUT.items()]
    if averaged:
        told = {"target": "the network that is averaged", "online": "the running average of the network"}
        patterns = [
            (pattern.replace("target", "online"), told["target"]) if reason == told["online"] else (pattern, reason)
            for pattern, reason in patterns
        ]
    for name in names:
        reason = next((why for pattern, why in patterns if fnmatch.fnmatchcase(name, pattern)), None)
        left_out.setdefault(reason, []).append(name) if reason else kept.append(name)
    return kept, left_out


def _state_tree(names: Iterable[str], net: str) -> str:
    """What stands before the names of the states, which are kept apart from the parameters."""
    pattern = re.compile(rf"(?P<tree>(?:.*/)?){re.escape(net)}/~/.+/~/mean_ema/average")
    found = sorted({match["tree"] for match in map(pattern.fullmatch, names) if match})
    if len(found) > 1:
        raise CheckpointError(f"the network must have one state. Received: {found[:5]}. Leave out others by ignore=.")
    return found[0] if found else ""


def _canonical(name: str, net: str) -> str | None:
    match = _PART.fullmatch(name)
    if match is None:
        return None
    layer, leaf = match["layer"], _LEAVES[match["leaf"]]
    if layer in [head.format(net=net) for head in _HEADS]:
        return f"predictions/{leaf}"
    own = layer.removeprefix(f"{net}/~/")
    if own == layer:
        return None
    if own in _PLAIN:
        return f"{_PLAIN[own]}/{leaf}"
    block = _BLOCK.fullmatch(own)
    if block is None or bool(block[3]) == bool(block[5]):
        return None
    number = 0 if block[3] else int(block[5]) + 1
    kind = "conv" if block[4] == "conv" else "bn"
    return f"conv{int(block[1]) + 2}_block{int(block[2]) + 1}_{number}_{kind}/{leaf}"


def _before(target: str) -> str:
    """Norms with pre-activation: each stands before the convolution of its number."""
    match = re.fullmatch(rf"(conv{_NUMBER}_block{_NUMBER}_)(\d)_bn/(\w+)", target)
    if match is None:
        return target
    return f"{match[1]}{'preact' if match[4] == '1' else int(match[4]) - 1}_bn/{match[5]}"
