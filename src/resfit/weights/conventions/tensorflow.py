"""Names of TensorFlow's programs, and what their tensors are called here.

:func:`translate` finds out which program wrote a source:

======================  ==================================================================================
``tf-slim``             ``resnet_v2_50/block1/unit_1/bottleneck_v2/conv1/weights``; TensorFlow Hub's modules
``bit``                 ``resnet/block1/unit01/a/standardized_conv2d/kernel``: BiT, as ``.npz`` and in the Hub
``keras``               ``conv2_block1_1_conv/kernel``: keras.applications, and networks of resfit
``keras-legacy``        ``res2a_branch2a/kernel``: keras.applications before 2019
``model-garden-1``      the same names without biases: TensorFlow Hub's ``tensorflow/resnet_50``
``model-garden``        ``backbone/layer_with_weights-2/_conv1/kernel``, or layers numbered through
``model-garden-rs``     the same with squeeze-excite: ResNet-RS
``official``            ``resnet_model/conv2d_1/kernel``: TensorFlow's official models for its first version
``supcon``              ``ContrastiveModel/Encoder/BlockGroup0/BottleneckBlock/Conv2DFixedPadding/conv2d/kernel``
``simclr``              ``resnet_model/block_groups/0/layers/0/projection_layers/0/conv2d/kernel``, and BiT's ``bit``
                        as Keras saves it: by objects (:mod:`resfit.weights.conventions.tf_objects`)
======================  ==================================================================================

Kernels are in Keras' axes already. What the programs do and tensors do not tell comes from
:mod:`resfit.weights.conventions.tf_defaults`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError, closest
from resfit.weights.assumption import sentence
from resfit.weights.conventions import tf_defaults, tf_objects
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.conventions.pytorch import described
from resfit.weights.formats import saved_graph
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.keras_h5 import grouped_kernel
from resfit.weights.formats.saved_model import Objects

#: Tensors that are no weights of a network, as patterns of names or of ways to them, and what they are.
LEFT_OUT: dict[str, str] = {
    "*global_step": "a counter of training steps",
    "*save_counter": "a counter of checkpoints",
    "*learning_rate": "the learning rate",
    "EMA/*": "running averages of figures",
    "*/ExponentialMovingAverage": "the running average of the weights",
    "*.OPTIMIZER_SLOT/*/average": "the running average of the weights",
    "*.OPTIMIZER_SLOT*": "slots of an optimiser",
    "*/Momentum": "slots of an optimiser",
    "*/Momentum_[0-9]*": "slots of an optimiser",
    "*/Adam": "slots of an optimiser",
    "*/Adam_[0-9]*": "slots of an optimiser",
    "*/RMSProp": "slots of an optimiser",
    "*/RMSProp_[0-9]*": "slots of an optimiser",
    "beta1_power*": "slots of an optimiser",
    "beta2_power*": "slots of an optimiser",
    "optimizer/*": "slots of an optimiser",
    "*/optimizer/*": "slots of an optimiser",
    "*_optimizer/*": "slots of an optimiser",
    "*keras_api/metrics/*": "counters of metrics",
    "*_metrics/*": "counters of metrics",
    "metrics/*": "counters of metrics",
    "*loss_scale*": "state of loss scaling",
    "ContrastiveModel/ProjectionHead/*": "a projection head",
    "*/ContrastiveModel/ProjectionHead/*": "a projection head",
    "ContrastiveModel/ClassificationHead/*": (_SCALED_HEAD := "a classifier of features that are scaled to length 1"),
    "*/ContrastiveModel/ClassificationHead/*": _SCALED_HEAD,
    "*seed_generator*": "state of a random generator",
}

_AVERAGE = "/ExponentialMovingAverage"

_LEAVES = {
    **{name: name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "v")},
    "weights": "kernel",
    "biases": "bias",
    # tensorpack's
    **{"W": "kernel", "b": "bias", "mean/EMA": "moving_mean", "variance/EMA": "moving_variance"},
}

# Six digits are plenty, and keep hostile names from becoming huge numbers.
_NUMBER = r"(\d{1,6})"


@dataclasses.dataclass(frozen=True)
class _Named:
    """A source's tensors under canonical names.

    Attributes:
        prefix: What stands before the network's own names.
        arrays: By canonical name.
        unknown: By the source's name, what has no place yet.
        remarks: Choices that were made.
        pooled_shortcuts: Whether the names tell that shortcuts average before they project.
    """

    prefix: str
    arrays: dict[str, np.ndarray]
    unknown: dict[str, np.ndarray]
    remarks: tuple[str, ...] = ()
    pooled_shortcuts: bool = False


@dataclasses.dataclass(frozen=True)
class _Convention:
    """How one program names its layers.

    Attributes:
        name: What it is called here.
        anchor: A regular expression that finds the first convolution of the first block; its group ``prefix`` is what
            stands before the network's own names.
        layer: Returns the canonical name of a layer, or None.
    """

    name: str
    anchor: str
    layer: Callable[[str], str | None]


def is_network(names: Iterable[str]) -> bool:
    """Whether some of these names are those of a network of a program that names its layers.

    Args:
        names: Names of arrays, parts joined by ``"/"``.
    """
    return any(_prefixes(convention.anchor, names) for convention in _CONVENTIONS)


def translate(
    tensors: Tensors | Mapping[str, np.ndarray],
    *,
    prefix: str | None = None,
    averaged: bool = False,
    ignore: Sequence[str] = (),
    by_keras: bool = False,
) -> Translation:
    """Brings the tensors of a TensorFlow source to canonical names.

    Args:
        tensors: What the reader of SavedModels and checkpoints or that of ``.npz`` returned, or arrays under the
            source's names. Not changed.
        prefix: What stands before the names of the network, if the source holds several. What stands elsewhere is
            left out.
        averaged: Take the running averages that the source holds beside the weights.
        ignore: Patterns of names to leave out, beside :data:`LEFT_OUT`.
        by_keras: Whether Keras wrote the source, and not TensorFlow.

    Raises:
        CheckpointError: No known residual network is there, or several are.
    """
    if not isinstance(tensors, Tensors):
        tensors = Tensors(Path(), tensors)
    source = dict(tensors.arrays)
    # part of the input contract
    colours = tuple(source.pop(name) for name in tensors.arrays if name.endswith("mean_rgb"))
    objects = tensors.graph if isinstance(tensors.graph, Objects) else Objects({}, False, ())
    left_out: dict[str, list[str]] = {}
    if averaged:
        source = _averages(source)
    if prefix is not None:
        inside = _under(prefix, source, objects.paths)
        if elsewhere := [name for name in source if name not in inside]:
            left_out[f"what stands elsewhere than under {prefix!r}"] = elsewhere
        source = {name: array for name, array in source.items() if name in inside}
    for name in list(source):
        reason = _reason(name, objects.paths.get(name, name), ignore)
        if reason is not None:
            left_out.setdefault(reason, []).append(name)
            source.pop(name)
    if objects.other:
        left_out["what is no number"] = list(objects.other)
    convention, named = _translated(source, objects.paths, by_keras=by_keras)
    if convention == "simclr" and tf_objects.PROJECTION in left_out:
        named = _without_foreign_head(named, tensors.path)
    arrays = {name: _squeezed(name, array) for name, array in named.arrays.items()}
    found = tf_defaults.FoundProgram(arrays, objects.is_saved_model, colours, named.pooled_shortcuts)
    habits = tf_defaults.habits(convention, found)
    remarks = [*named.remarks, *habits.remarks]
    if named.prefix:
        remarks.append(sentence(f"the network is what stands under {named.prefix!r}", "by its names", "prefix"))
    return Translation(
        convention=convention,
        prefix=named.prefix,
        arrays=arrays,
        facts=habits.facts,
        leftover=named.unknown,
        left_out=tuple(f"left out {reason}: {few(names)}" for reason, names in left_out.items()),
        remarks=tuple(remarks),
        input_spec=habits.input_spec,
        assumed=tuple(habits.facts),
        program=tf_defaults.PROGRAM_NAMES.get(convention, ""),
        beside=_beside(named),
    )


def _beside(named: _Named) -> tuple[str, ...]:
    """Names that no part of the network can have: they stand outside its prefix, or in none of its layers' scopes."""
    return tuple(name for name in named.unknown if named.prefix and not name.startswith(named.prefix))


def _averages(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the running averages in the place of the weights that they are of.

    Raises:
        CheckpointError: There are none.
    """
    found = {name.removesuffix(_AVERAGE): array for name, array in source.items() if name.endswith(_AVERAGE)}
    if not found:
        raise CheckpointError(f"the source must hold a running average. Received: {described(source)}.")
    return {name: found.get(name, array) for name, array in source.items()}


def _under(prefix: str, source: Mapping[str, np.ndarray], paths: Mapping[str, str]) -> set[str]:
    """Returns the names of the network under a prefix, without those of networks further down.

    Raises:
        CheckpointError: No network is there.
    """
    wanted = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    ways = {name: paths.get(name, name) for name in source}
    known = sorted({*_networks(source), *_networks(ways.values())})
    if not any(place.startswith(wanted) for place in known):
        raise CheckpointError(f"prefix must be one of {tuple(known)}. Received: {prefix!r}.{closest(wanted, known)}")
    below = tuple(place for place in known if wanted in known and place != wanted and place.startswith(wanted))
    return {
        name
        for name, way in ways.items()
        if any(text.startswith(wanted) and not text.startswith(below) for text in (name, way))
    }


def _networks(names: Iterable[str]) -> set[str]:
    """Every place where a network of a known program begins."""
    listed = list(names)
    anchors = [*(convention.anchor for convention in _CONVENTIONS), _GARDEN_ANCHOR]
    found = {place for anchor in anchors for place in _prefixes(anchor, listed)}
    as_ways = dict(zip(listed, listed, strict=True))
    return found | {place for program in tf_objects.PROGRAMS for place in tf_objects.prefixes(program, as_ways)}


def _translated(
    source: Mapping[str, np.ndarray], paths: Mapping[str, str], *, by_keras: bool = False
) -> tuple[str, _Named]:
    for convention in _CONVENTIONS:
        prefixes = _prefixes(convention.anchor, source)
        if prefixes:
            named = _by_name(convention, source, _only(prefixes))
            if convention.name in ("keras", "keras-legacy"):
                named = _with_head(named)
            biased = by_keras or any(name.endswith("_conv/bias") for name in named.arrays)
            if convention.name == "keras-legacy" and not biased:
                return "model-garden-1", named
            return convention.name, named
    for program in tf_objects.PROGRAMS:
        prefixes = tf_objects.prefixes(program, paths)
        if prefixes:
            return program.name, _by_way(program, source, paths, _only(prefixes))
    prefixes = _prefixes(_GARDEN_ANCHOR, paths.values())
    if prefixes:
        named = _with_head(_by_object(source, paths, _only(prefixes)))
        return _garden_dialect(named), named
    numbered = _numbered(source)
    if numbered is not None:
        return numbered
    for pattern, told in _REFUSED:
        if any(re.search(pattern, name) for name in source):
            raise CheckpointError(f"the network must be one that an architecture here can say. Received: {told}")
    raise CheckpointError(
        "the tensors must be named as in TF-Slim, BiT, SimCLR, keras.applications or TensorFlow's official models, "
        f"under any prefix. Received: {described(source)}."
    )


def is_left_out(name: str, ignore: Sequence[str] = ()) -> bool:
    """Whether an array is no weight of a network, or one that is asked to be left out.

    Args:
        name: The source's name of it.
        ignore: Patterns of names to leave out.
    """
    return _reason(name, name, ignore) is not None


def _reason(name: str, path: str, ignore: Sequence[str]) -> str | None:
    """Why a tensor is left out, or None where it must have its place."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore):
        return "what was asked for"
    for pattern, reason in (*LEFT_OUT.items(), *tf_objects.LEFT_OUT.items()):
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(path, pattern):
            return reason
    return None


def _prefixes(anchor: str, names: Any) -> list[str]:
    pattern = re.compile(anchor)
    return sorted({match["prefix"] for match in map(pattern.fullmatch, names) if match})


def _only(prefixes: Sequence[str]) -> str:
    if len(prefixes) > 1:
        raise CheckpointError(
            f"the source must hold one network, or say which. Received: networks under {tuple(prefixes[:8])}. "
            "Pass prefix=."
        )
    return prefixes[0]


# Networks that are known and not read: a name of theirs, what they are, and the way out.
_REFUSED = (
    (
        r"(?:^|/)stage1_unit1_(?:conv1|bn1)/",
        "a network of classification_models (qubvel), which normalises its input by a batch norm of its own and has a "
        "norm before and after the pooling of its stem. keras.models.load_model runs a whole model of it.",
    ),
    (
        r"(?:^|/)(?:Bottleneck)?ResNetBlock_\d+/Conv_\d+/kernel$",
        "a network of Flax's examples (JAX), whose layers are numbered in the order of their calls. Save its weights "
        "under torchvision's names.",
    ),
    (
        r"(?:^|/)res2_0_branch2a(?:_bn_s)?(?:_w)?$",
        "a network of Caffe2 (Detectron), whose norms hold a scale and a bias alone. detectron2 loads it, and saves it "
        "under its own names, which are read.",
    ),
)

# By name.


def _slim_layer(layer: str) -> str | None:
    plain = {
        "conv1": "conv1_conv",
        "conv1/BatchNorm": "conv1_bn",
        "postnorm": "post_bn",
        "logits": "predictions",
    }
    if layer in plain:
        return plain[layer]
    match = re.fullmatch(rf"block{_NUMBER}/unit_{_NUMBER}/\w+/(shortcut|preact|conv([1-3]))(/BatchNorm)?", layer)
    if match is None:
        return None
    stage, block, part, number, norm = match.groups()
    base = f"conv{int(stage) + 1}_block{int(block)}"
    if part == "preact":
        return None if norm else f"{base}_preact_bn"
    return f"{base}_{number or 0}_{'bn' if norm else 'conv'}"


def _bit_layer(layer: str) -> str | None:
    plain = {
        "root_block/standardized_conv2d": "conv1_conv",
        "group_norm": "post_gn",
        "head/conv2d": "predictions",
        "head/dense": "predictions",
    }
    if layer in plain:
        return plain[layer]
    match = re.fullmatch(rf"block{_NUMBER}/unit{_NUMBER}/(a/proj|a|b|c)/(standardized_conv2d|group_norm)", layer)
    if match is None:
        return None
    stage, block, part, kind = match.groups()
    base = f"conv{int(stage) + 1}_block{int(block)}"
    if kind == "standardized_conv2d":
        return f"{base}_{('a/proj', 'a', 'b', 'c').index(part)}_conv"
    # each norm comes before the convolution of its letter
    return {"a": f"{base}_preact_gn", "b": f"{base}_1_gn", "c": f"{base}_2_gn"}.get(part)


_KERAS_LAYER = re.compile(
    r"(?:conv1|conv1_[1-9]|pool1|post|conv\d{1,6}_block\d{1,6}_(?:[0-3]|preact|eca|se_reduce|se_expand))_(?:conv|bn|gn|evo)"
    r"|predictions"
)


def _keras_layer(layer: str) -> str | None:
    return layer if _KERAS_LAYER.fullmatch(layer) else None


def canonical_layer(layer: str) -> str | None:
    """Returns the canonical name of a layer of keras.applications, of any age; None for any other layer.

    Args:
        layer: The layer's name.
    """
    return _keras_layer(layer) or _legacy_layer(layer)


def _legacy_layer(layer: str) -> str | None:
    plain = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "fc1000": "predictions", "probs": "predictions"}
    if layer in plain:
        return plain[layer]
    match = re.fullmatch(r"(res|bn)([2-9])([a-z])(\d{0,4})_branch(1|2[abc])", layer)
    if match is None:
        return None
    kind, stage, letter, count, branch = match.groups()
    # blocks are a, b, c, …, or a, b1, b2, … where the letters would not do
    block = int(count) + 1 if count else ord(letter) - ord("a") + 1
    number = 0 if branch == "1" else "abc".index(branch[1]) + 1
    return f"conv{stage}_block{block}_{number}_{'conv' if kind == 'res' else 'bn'}"


_PACK_LAYER = re.compile(rf"group{_NUMBER}/block{_NUMBER}/conv(shortcut|[123])(/bn)?")


def _pack_layer(layer: str) -> str | None:
    """``examples/ResNet/resnet_model.py`` of tensorpack/tensorpack."""
    plain = {"conv0": "conv1_conv", "conv0/bn": "conv1_bn", "linear": "predictions"}
    if layer in plain:
        return plain[layer]
    match = _PACK_LAYER.fullmatch(layer)
    if match is None:
        return None
    number = "0" if match[3] == "shortcut" else match[3]
    return f"conv{int(match[1]) + 2}_block{int(match[2]) + 1}_{number}_{'bn' if match[4] else 'conv'}"


_HUGGING_LAYER = re.compile(
    rf"encoder/stages\.{_NUMBER}/layers\.{_NUMBER}/(?:layer\.([0-2])|(shortcut))/(convolution|normalization)"
)


def _hugging_layer(layer: str) -> str | None:
    """``models/resnet/modeling_tf_resnet.py`` of transformers before version 5, in its ``tf_model.h5``."""
    layer = layer.removeprefix("resnet/")
    plain = {
        "embedder/embedder/convolution": "conv1_conv",
        "embedder/embedder/normalization": "conv1_bn",
        "classifier.1": "predictions",
    }
    if layer in plain:
        return plain[layer]
    match = _HUGGING_LAYER.fullmatch(layer)
    if match is None:
        return None
    number = 0 if match[4] else int(match[3]) + 1
    return f"conv{int(match[1]) + 2}_block{int(match[2]) + 1}_{number}_{'conv' if match[5] == 'convolution' else 'bn'}"


_SUPCON_LAYER = re.compile(
    rf"BlockGroup{_NUMBER}/\w+Block(?:_{_NUMBER})?/(Conv2DFixedPadding|batch_normalization)(?:_{_NUMBER})?(/conv2d)?"
)


def _supcon_layer(layer: str) -> str | None:
    """``supcon/resnet.py`` and ``blocks.py`` of google-research/google-research, whose layers number what they call.

    The first block of a stage always projects, and calls its projection first.
    """
    plain = {"Conv2DFixedPadding/conv2d": "conv1_conv", "batch_normalization": "conv1_bn"}
    if layer in plain:
        return plain[layer]
    match = _SUPCON_LAYER.fullmatch(layer)
    if match is None or (match[3] == "Conv2DFixedPadding") != bool(match[5]):
        return None
    stage, block, number = int(match[1]), int(match[2] or 0), int(match[4] or 0)
    return f"conv{stage + 2}_block{block + 1}_{number + (block > 0)}_{'conv' if match[5] else 'bn'}"


_CONVENTIONS = (
    _Convention("tf-slim", r"(?P<prefix>(?:.*/)?)block1/unit_1/\w+/conv1/weights", _slim_layer),
    _Convention("bit", r"(?P<prefix>(?:.*/)?)block1/unit0*1/a/standardized_conv2d/kernel", _bit_layer),
    _Convention("supcon", r"(?P<prefix>(?:.*/)?)BlockGroup0/\w+Block/Conv2DFixedPadding/conv2d/kernel", _supcon_layer),
    _Convention("tensorpack", r"(?P<prefix>(?:.*/)?)group0/block0/conv1/W", _pack_layer),
    _Convention(
        "transformers-tf",
        r"(?P<prefix>(?:.*?/)??)(?:resnet/)?encoder/stages\.0/layers\.0/layer\.0/convolution/kernel",
        _hugging_layer,
    ),
    _Convention("keras", r"(?P<prefix>(?:.*/)?)conv2_block1_1_conv/kernel", _keras_layer),
    _Convention("keras-legacy", r"(?P<prefix>(?:.*/)?)res2a_branch2a/kernel", _legacy_layer),
)


def _by_name(convention: _Convention, source: Mapping[str, np.ndarray], prefix: str) -> _Named:
    named: dict[str, np.ndarray] = {}
    unknown: dict[str, np.ndarray] = {}
    remarks: list[str] = []
    for name, array in source.items():
        own = name.removeprefix(prefix).removesuffix(":0")
        layer, _, leaf = own.removesuffix("/EMA").rpartition("/")
        leaf += "/EMA" if own.endswith("/EMA") else ""
        target = convention.layer(layer) if name.startswith(prefix) else None
        if target is not None and leaf in _LEAVES:
            _put(named, f"{target}/{_LEAVES[leaf]}", array, name)
        elif target is not None and leaf == "depthwise_kernel" and array.ndim == 4 and array.shape[3] > 0:
            _put(named, f"{target}/kernel", grouped_kernel(array, max(array.shape[2] // array.shape[3], 1)), name)
        elif re.fullmatch(r"conv\d+_block\d+_2_gconv", layer) and leaf == "kernel":
            remarks.append(f"left out what sums a depthwise convolution to a grouped one: {name}")
        else:
            unknown[name] = array
    return _Named(prefix, named, unknown, tuple(remarks[:1]))


def _by_way(
    program: tf_objects.Program, source: Mapping[str, np.ndarray], paths: Mapping[str, str], prefix: str
) -> _Named:
    named: dict[str, np.ndarray] = {}
    unknown: dict[str, np.ndarray] = {}
    for name, array in source.items():
        way = paths.get(name, name)
        target = program.weight(way.removeprefix(prefix)) if way.startswith(prefix) else None
        if target is not None:
            _put(named, target, array, name)
        else:
            unknown[way if name.startswith("variables/") else name] = array
    return _Named(prefix, named, unknown)


def _without_foreign_head(named: _Named, path: Path) -> _Named:
    """Leaves out a classifier beside a projection head, unless the program says that it stands on the features.

    SimCLR fine-tunes from a middle layer of that head (``ft_proj_selector`` in its ``tf2/run.py``), which has the
    features' width.
    """
    heads = [name for name in named.arrays if name.startswith("predictions/")]
    made = saved_graph.origins(path, tf_objects.CLASSIFIER) if path.is_dir() else set()
    if not heads or made == {tf_objects.POOLING}:
        return named
    why = "it stands on the projection head" if made else "whether it stands on the projection head is not told"
    arrays = {name: array for name, array in named.arrays.items() if name not in heads}
    return dataclasses.replace(named, arrays=arrays, remarks=(*named.remarks, f"left out the classifier: {why}"))


def _put(named: dict[str, np.ndarray], target: str, array: np.ndarray, name: str) -> None:
    if target in named:
        raise CheckpointError(f"two tensors must not stand for one weight. Received: {name!r} for {target!r}.")
    named[target] = array


def _with_head(named: _Named) -> _Named:
    """Takes the classifier to be the one dense layer of the source, whatever its name."""
    width = next(
        (array.shape[3] for name, array in _last_convolutions(named.arrays) if array.ndim == 4),
        None,
    )
    dense = [name for name, array in named.unknown.items() if name.endswith("/kernel") and array.ndim == 2]
    if "predictions/kernel" in named.arrays or len(dense) != 1 or named.unknown[dense[0]].shape[0] != width:
        return named
    unknown, arrays = dict(named.unknown), dict(named.arrays)
    arrays["predictions/kernel"] = unknown.pop(dense[0])
    bias = f"{dense[0].removesuffix('kernel')}bias"
    if bias in unknown:
        arrays["predictions/bias"] = unknown.pop(bias)
    remark = sentence(f"{dense[0]!r} is the classifier", "it is the only dense layer", "include_top", "ignore")
    return dataclasses.replace(named, arrays=arrays, unknown=unknown, remarks=(*named.remarks, remark))


def _last_convolutions(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the convolutions that end blocks, the last block's first."""
    found = []
    for name, array in arrays.items():
        match = re.fullmatch(rf"conv{_NUMBER}_block{_NUMBER}_([23])_conv/kernel", name)
        if match:
            found.append((int(match[1]), int(match[2]), int(match[3]), name, array))
    for *_, name, array in sorted(found, key=lambda one: one[:3], reverse=True):
        yield name, array


# By object: TensorFlow's Model Garden.

_GARDEN_ANCHOR = r"(?P<prefix>(?:.*/)?)layer(?:_with_weights)?-\d{1,6}/_conv1/kernel"
_GARDEN_PARTS = {
    **{"_shortcut": "0_conv", "_shortcut1": "0_conv", "_norm0": "0_bn"},
    **{f"_conv{number}": f"{number}_conv" for number in (1, 2, 3)},
    **{f"_norm{number}": f"{number}_bn" for number in (1, 2, 3)},
    "_squeeze_excitation/_se_reduce": "se_reduce_conv",
    "_squeeze_excitation/_se_expand": "se_expand_conv",
}


def _by_object(source: Mapping[str, np.ndarray], paths: Mapping[str, str], prefix: str) -> _Named:
    """Reads the order of layers and blocks off the objects of a functional model."""
    pattern = re.compile(re.escape(prefix) + rf"layer(?:_with_weights)?-{_NUMBER}/(?:(.+)/)?(\w+)")
    layers: dict[int, dict[tuple[str, str], str]] = {}
    unknown: dict[str, np.ndarray] = {}
    for name, array in source.items():
        match = pattern.fullmatch(paths.get(name, name))
        if match and match[3] in _LEAVES:
            layers.setdefault(int(match[1]), {})[match[2] or "", match[3]] = name
        else:
            unknown[name] = array
    blocks = [number for number, layer in layers.items() if ("_conv1", "kernel") in layer]
    named: dict[str, np.ndarray] = {}
    for number, base in _garden_stem(layers, source, min(blocks)):
        for (_, leaf), name in layers[number].items():
            _put(named, f"{base}/{leaf}", source[name], name)
    stage = block = 0
    for number in sorted(layers):
        layer = layers[number]
        if number not in blocks:
            if number > min(blocks):
                unknown |= {name: source[name] for name in layer.values()}
            continue
        projects = any((shortcut, "kernel") in layer for shortcut in ("_shortcut", "_shortcut1"))
        stage, block = (stage + 1, 1) if projects or not stage else (stage, block + 1)
        for (part, leaf), name in layer.items():
            if part in _GARDEN_PARTS:
                _put(named, f"conv{stage + 1}_block{block}_{_GARDEN_PARTS[part]}/{leaf}", source[name], name)
            else:
                unknown[name] = source[name]
    pooled = any(("_shortcut1", "kernel") in layer for layer in layers.values())
    return _Named(prefix, named, unknown, pooled_shortcuts=pooled)


def _garden_dialect(named: _Named) -> str:
    """ResNet-RS, which squeezes and excites, has another activation than ResNet."""
    return "model-garden-rs" if any("_se_" in name for name in named.arrays) else "model-garden"


def _garden_stem(
    layers: Mapping[int, Mapping[tuple[str, str], str]], source: Mapping[str, np.ndarray], first: int
) -> list[tuple[int, str]]:
    """Names the layers before the first block: convolutions and norms in turn."""
    before = sorted(number for number in layers if number < first)
    kernels = [number for number in before if ("", "kernel") in layers[number]]
    bases = _stem_names([source[layers[number]["", "kernel"]].shape for number in kernels])
    found, count = [], -1
    for number in before:
        count += number in kernels
        if count < 0:
            raise CheckpointError(f"the network must begin with a convolution. Received: {described(source, 4)}.")
        found.append((number, f"{bases[count]}_{'conv' if number in kernels else 'bn'}"))
    return found


def _stem_names(kernels: Sequence[tuple[int, ...]]) -> list[str]:
    """Canonical names of one to four convolutions: one or three, and perhaps one in place of the pooling."""
    count = len(kernels)
    if count not in (1, 2, 3, 4):
        raise CheckpointError(f"a stem must have 1 to 4 convolutions. Received: {count}.")
    stem = ["conv1"] if count < 3 else ["conv1_1", "conv1_2", "conv1_3"]
    return stem + ["pool1"] * (count in (2, 4))


# By number: layers that were named "conv2d", "conv2d_1", … as they were made.

_COUNTED = re.compile(
    rf"(?P<scope>(?:.*/)?)(?P<kind>conv2d|(?:sync_)?batch_normalization|dense)(?:_{_NUMBER})?/(?P<leaf>\w+)"
)
_GARDEN_SCOPE = re.compile(r"(?:bottleneck|residual)_block(?:_\d+)?/$")


def _numbered(source: Mapping[str, np.ndarray]) -> tuple[str, _Named] | None:
    """Tells the network from the order in which its layers were made, or returns None."""
    kinds: dict[str, dict[int, dict[str, str]]] = {"conv2d": {}, "batch_normalization": {}, "dense": {}}
    scopes = set()
    unknown: dict[str, np.ndarray] = {}
    for name, array in source.items():
        match = _COUNTED.fullmatch(name.removesuffix(":0"))
        if match is None or match["leaf"] not in _LEAVES:
            unknown[name] = array
            continue
        layer = kinds[match["kind"].removeprefix("sync_")].setdefault(int(match[3] or 0), {})
        if match["leaf"] in layer:
            raise CheckpointError(f"layers must be numbered through. Received: {name!r} and {layer[match['leaf']]!r}.")
        layer[match["leaf"]] = name
        scopes.add(match["scope"])
    convolutions = [layer for _, layer in sorted(kinds["conv2d"].items()) if "kernel" in layer]
    norms = [layer for _, layer in sorted(kinds["batch_normalization"].items())]
    if len(convolutions) < 3 or not norms or any(source[layer["kernel"]].ndim != 4 for layer in convolutions):
        return None
    order, squeezes = _counted_blocks([(source[c["kernel"]].shape, "bias" in c) for c in convolutions])
    named: dict[str, np.ndarray] = {}
    for base, layer in zip(order, convolutions, strict=True):
        for leaf, name in layer.items():
            _put(named, f"{base}_conv/{_LEAVES[leaf]}", source[name], name)
    normalized = _counted_norms([base for base in order if base not in squeezes], len(norms))
    for base, layer in zip(normalized, norms, strict=True):
        for leaf, name in layer.items():
            _put(named, f"{base}_bn/{leaf}", source[name], name)
    dense = list(kinds["dense"].values())
    for layer in dense:
        for leaf, name in layer.items():
            if len(dense) == 1:
                _put(named, f"predictions/{leaf}", source[name], name)
            else:
                unknown[name] = source[name]
    outer = {_GARDEN_SCOPE.sub("", scope) for scope in scopes}
    remark = "blocks were told from the order in which the program numbered its layers (a SavedModel's graph states it)"
    is_garden = any(_GARDEN_SCOPE.search(scope) for scope in scopes)
    # the names do not tell whether the shortcuts of ResNet-RS average; those of the published ones do
    pooled = is_garden and "pool1_conv/kernel" in named
    found = _Named(outer.pop() if len(outer) == 1 else "", named, unknown, (remark,), pooled)
    return (_garden_dialect(found) if is_garden else "official"), found


def _counted_blocks(kernels: Sequence[tuple[tuple[int, ...], bool]]) -> tuple[list[str], set[str]]:
    """Names convolutions in the order in which they were made: a block's projection first, squeeze-excite last.

    Returns:
        A canonical base for each, and those of squeeze-excite among them.
    """
    sides = [shape[0] for shape, _ in kernels]
    leading = next((place for place, side in enumerate(sides) if side == 1), len(sides))
    # a stem of one large convolution may be followed by a first stage of 3x3 convolutions without a projection
    stem = 1 + (leading == 2) if sides[0] > 3 else leading
    order = _stem_names([shape for shape, _ in kernels[:stem]])
    squeezes: set[str] = set()
    bottleneck = 1 in sides[stem:] and _is_bottleneck(sides[stem:])
    pattern = [1, 3, 1] if bottleneck else [3, 3]
    at, stage, block = stem, 0, 0
    while at < len(kernels):
        projects = sides[at : at + 2] == [1, pattern[0]] and sides[at : at + len(pattern)] != pattern
        stage, block = (stage + 1, 1) if projects or not stage else (stage, block + 1)
        base = f"conv{stage + 1}_block{block}"
        if projects:
            order.append(f"{base}_0")
            at += 1
        if sides[at : at + len(pattern)] != pattern:
            raise CheckpointError(
                f"numbered convolutions must make blocks of {'x'.join(map(str, pattern))}. Received: kernels of sides "
                f"{sides[at : at + 4]} at number {at}."
            )
        order += [f"{base}_{number}" for number in range(1, len(pattern) + 1)]
        at += len(pattern)
        if [biased for _, biased in kernels[at : at + 2]] == [True, True] and not kernels[stem][1]:
            squeezes |= {f"{base}_se_reduce", f"{base}_se_expand"}
            order += [f"{base}_se_reduce", f"{base}_se_expand"]
            at += 2
    return order, squeezes


def _is_bottleneck(sides: Sequence[int]) -> bool:
    """Whether the first block is 1x1, 3x3, 1x1, with a projection before or without."""
    return list(sides[:3]) == [1, 3, 1] or list(sides[:4]) == [1, 1, 3, 1]


def _counted_norms(convolutions: Sequence[str], count: int) -> list[str]:
    """Names norms in the order in which they were made: one after each convolution, or one before (v2)."""
    if count == len(convolutions):
        return list(convolutions)
    names: list[str] = []
    for base in convolutions:
        block, _, number = base.rpartition("_")
        if not number.isdigit() or "_block" not in block:
            continue
        if number == "0" or (number == "1" and f"{block}_0" not in convolutions):
            names.append(f"{block}_preact")
        if number != "0" and f"{block}_{int(number) + 1}" in convolutions:
            names.append(base)
    names.append("post")
    if count != len(names):
        raise CheckpointError(
            f"every convolution must have its norm. Received: {len(convolutions)} convolutions, {count} norms."
        )
    return names


# Small parts.


def _squeezed(name: str, array: np.ndarray) -> np.ndarray:
    """A classifier that is a 1x1 convolution there is a dense layer here."""
    if name == "predictions/kernel" and array.ndim == 4 and array.shape[:2] == (1, 1):
        return array[0, 0]
    return array


def few(names: Sequence[str]) -> str:
    """Lists the first names for a sentence.

    Args:
        names: All of them.
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@register_convention(
    "tensorflow",
    recognises=lambda tensors: isinstance(tensors.graph, Objects) or is_network(tensors.arrays),
    order=30,
)
@register_convention(
    "tensorflow-numbered", recognises=lambda tensors: not any("." in name for name in tensors.arrays), order=90
)
def _translate_source(tensors: Tensors, **options: Any) -> Translation:
    """Translates what TensorFlow wrote, and arrays with its names; the second sees what no other convention knows."""
    return translate(tensors, **options)
