"""What a network is, told by the names and shapes of its weights.

Depths, widths, groups, shortcuts, norms and attention stand in the tensors. What does not (on which convolution a
stride falls, anti-aliasing, the activation) comes from the source's configuration, else from what the source's
library does by default; the latter is handed back as a list of assumptions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks import catalog
from resfit.networks.plan import NORM_SUFFIXES
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.assumption import sentence

_FIELDS = tuple(field.name for field in dataclasses.fields(ArchitectureSpec))
_PART = re.compile(r"conv(\d{1,6})_block(\d{1,6})_(\w+)/(\w+)")

# The kinds of block by the numbers of their convolutions.
_KINDS = {(1, 2): "basic", (1, 2, 3): "bottleneck"}

# The deepest network that was published has 600.
_MOST_BLOCKS = 1000

# What makes two networks of one kind different at a glance, for the error that names the nearest.
_TELLING = (
    *("block", "stage_blocks", "preactivation", "depths", "widths", "inner_widths", "reduce_widths", "block_widths"),
    *("groups", "stem"),
    *("stem_pool", "shortcut", "shortcut_kernel", "norm", "attention", "attention_sizes"),
)

# Fields that change nothing that a network of these tensors computes.
_WITHOUT_EFFECT = ("norm_momentum", "input_size", "zero_init_last", "drop_path_rate", "project_first")

_ACTIVATIONS = {"swish": "silu", "hard_swish": "hard_swish", "hardswish": "hard_swish", "gelu_new": "gelu"}


@dataclasses.dataclass(frozen=True)
class Identified:
    """An architecture that was recovered.

    Attributes:
        spec: The architecture.
        has_top: Whether the tensors hold a classifier.
        assumptions: What neither tensors nor configuration tell, one sentence each.
        architecture: The catalog's name that the configuration or the caller gave, or ``""``.
    """

    spec: ArchitectureSpec
    has_top: bool
    assumptions: tuple[str, ...]
    architecture: str


def identify(
    arrays: Mapping[str, np.ndarray],
    *,
    convention: str = "timm",
    facts: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    architecture: str | None = None,
    habits: Mapping[str, tuple[Any, str]] | None = None,
    assumed_facts: Sequence[str] = (),
    program: str = "",
    **overrides: Any,
) -> Identified:
    """Recovers the architecture of a network.

    Args:
        arrays: Arrays by canonical name, as :func:`resfit.weights.conventions.pytorch.translate` returns them.
        convention: How the source names its tensors; says what its library does by default.
        facts: Fields of the spec that the source's names tell.
        config: The source's ``config.json`` (timm's or transformers').
        architecture: A name of the catalog that says what the tensors do not; wins over the configuration's.
        habits: Fields that networks usually have where this one was found, and why; they are assumed.
        assumed_facts: Those of ``facts`` that the source does not tell, but a program does.
        program: What that program is called.
        **overrides: Fields of :class:`ArchitectureSpec`; they win over everything. The stem may be given as tuples of
            width, kernel and stride.

    Raises:
        CheckpointError: The tensors are not those of a residual network, or contradict each other.
        ArgumentError: An override is no field, or does not fit.
    """
    for name in overrides:
        if name not in _FIELDS:
            raise ArgumentError(
                f"an override must be a field of ArchitectureSpec. Received: {name!r}.{closest(name, _FIELDS)}"
            )
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    config = config or {}
    row = _row(config, architecture)
    told = _told_by_tensors(shapes)
    told |= {key: value for key, value in (facts or {}).items() if not (key == "stem_pool" and told.get(key))}
    kinds = ("preactivation", "block", "stage_blocks")
    if row is not None and any(getattr(row.spec, field) != told[field] for field in kinds):
        raise CheckpointError(
            f"the tensors must be those of {row.name!r}, as the configuration or the caller says. Received: "
            f"{', '.join(f'{field}={told[field]!r}' for field in kinds if told[field] is not None)}."
        )
    stated = _told_by_config(config, convention, told)
    kernels = _stem_kernels(shapes)
    row_fields = _told_by_row(row, told, kernels) if row else {}
    usual, assumed = _usual(told, convention, kernels)
    usual |= {field: value for field, (value, _) in (habits or {}).items()}
    assumed |= {field: why for field, (_, why) in (habits or {}).items()}
    if isinstance(overrides.get("stem"), (list, tuple)):
        overrides["stem"] = tuple(conv if isinstance(conv, StemConv) else StemConv(*conv) for conv in overrides["stem"])
    values = {**usual, **row_fields, **stated, **told, **overrides}
    known = {*row_fields, *stated, *told, *overrides}
    assumptions = [
        sentence(f"{field}={_short(values[field])}", f"{why}; the tensors do not tell", field)
        for field, why in assumed.items()
        if field not in known
    ]
    of_program = [field for field in assumed_facts if field not in (*overrides, *_WITHOUT_EFFECT)]
    if of_program:
        listed = ", ".join(f"{field}={_short(values[field])}" for field in of_program)
        why = f"as {program or 'the program of these names'} does; weights alone do not say so"
        assumptions.append(sentence(listed, why, *of_program))
    if row_fields:
        changed = {
            key: row_fields[key] for key in assumed if key in row_fields and key not in (*told, *overrides, *stated)
        }
        listed = ", ".join(f"{key}={_short(value)}" for key, value in changed.items())
        why = f"as the architecture {row.name!r} has it"  # type: ignore[union-attr]
        assumptions.append(sentence(listed or "the details", why, "architecture", *changed))
    stated_name = config.get("architecture")
    if row is None and isinstance(stated_name, str):
        why = f"the catalog lacks {stated_name!r}"
        assumptions.append(
            sentence("what the tensors do not tell is as the source's library has it", why, "architecture")
        )
    try:
        spec = ArchitectureSpec(**values)
    except ArgumentError as error:
        if overrides:
            raise
        raise CheckpointError(f"the tensors must make a network that can be built. Received: {error}") from error
    _check_groups(spec, shapes)
    return Identified(spec, "predictions/kernel" in shapes, tuple(assumptions), row.name if row else "")


def _check_groups(spec: ArchitectureSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name.endswith(("_gn/gamma", "_evo/gamma")) and (len(shape) != 1 or shape[0] % spec.norm_groups):
            raise CheckpointError(
                f"channels must divide by norm_groups={spec.norm_groups}. Received: {name!r} of {shape}. "
                "Pass norm_groups=."
            )


def nearest(spec: ArchitectureSpec) -> tuple[str, tuple[str, ...]]:
    """Finds the catalog's architecture that differs least.

    Args:
        spec: An architecture.

    Returns:
        Its name, and what differs, one text a field (``"depths (2, 1, 1, 2), there (2, 2, 2, 2)"``).
    """

    def differs(row: catalog.CatalogRow) -> tuple[str, ...]:
        return differences(spec, row.spec, _TELLING)

    best = min(catalog.rows().values(), key=lambda row: (len(differs(row)), _distance(spec, row.spec)))
    return best.name, differs(best)


def differences(spec: ArchitectureSpec, other: ArchitectureSpec, fields: Sequence[str] = _FIELDS) -> tuple[str, ...]:
    """Says in what two architectures differ, one text a field.

    Args:
        spec: One.
        other: The other.
        fields: The fields to look at.
    """
    return tuple(
        f"{field} {_short(getattr(spec, field))}, there {_short(getattr(other, field))}"
        for field in fields
        if getattr(spec, field) != getattr(other, field)
    )


def catalog_name(name: str) -> str | None:
    """Returns the catalog's name of one of timm's architectures, or None where the catalog lacks it.

    Args:
        name: timm's name, with its tag or without (``"resnet50.a1_in1k"``). A bottleneck network's stride lies on
            the 3x3 convolution there, which the catalog calls v1.5.
    """
    base = name.split(".")[0]
    rows = catalog.rows()
    if f"{base}v1.5" in rows:
        return f"{base}v1.5"
    return base if base in rows else None


def _row(config: Mapping[str, Any], architecture: str | None) -> catalog.CatalogRow | None:
    if architecture is not None:
        return catalog.get(architecture)
    stated = config.get("architecture")
    name = catalog_name(stated) if isinstance(stated, str) else None
    return catalog.get(name) if name else None


def _told_by_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields of the spec that names and shapes leave no doubt about."""
    parts: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        _check_axes(name, shape)
        match = _PART.fullmatch(name)
        if match:
            place = (int(match[1]) - 2, int(match[2]) - 1)
            parts.setdefault(place, {})[f"{match[3]}/{match[4]}"] = shape
    depths = _depths(parts)
    first = [parts[stage, 0] for stage in range(len(depths))]
    numbers = [_numbers(block) for block in first]
    if not {*numbers} <= {*_KINDS}:
        raise CheckpointError(
            "a block must have two convolutions (basic) or three (bottleneck), and all of a stage alike. Received: "
            f"convolutions {sorted(set(numbers))}."
        )
    kinds = tuple(_KINDS[found] for found in numbers)
    widths = tuple(part[f"{found[-1]}_conv/kernel"][3] for part, found in zip(first, numbers, strict=True))
    pairs = _block_widths(parts, depths, kinds)
    starts = [pairs[sum(depths[:stage])] for stage in range(len(depths))]
    reduced, inner = (tuple(pair[place] for pair in starts) for place in (0, 1))
    uniform = [pair for pair, depth in zip(starts, depths, strict=True) for _ in range(depth)]
    stem = _stem_kernels(shapes)
    told: dict[str, Any] = {
        "depths": depths,
        "widths": widths,
        "inner_widths": inner,
        "block": kinds[0],
        "stage_blocks": kinds if len({*kinds}) > 1 else None,
        "block_widths": pairs if pairs != tuple(uniform) else None,
        "preactivation": any(name.startswith(("post_", "conv2_block1_preact")) for name in shapes),
        "in_channels": stem[0][2],
        "norm": _norm(shapes),
        "groups": 1,
        "reduce_widths": reduced if reduced != inner else None,
    }
    if told["norm"] == "evo":
        told["activation"] = "linear"
    if "bottleneck" in kinds:
        spatial = [
            part["2_conv/kernel"][2] if kind == "bottleneck" else 0 for part, kind in zip(first, kinds, strict=True)
        ]
        groups = {width // entering for width, entering in zip(reduced, spatial, strict=True) if entering}
        if len(groups) != 1:
            raise CheckpointError(f"all stages must have as many groups. Received: {sorted(groups)}.")
        told["groups"] = max(groups.pop(), 1)
    if "predictions/kernel" in shapes:
        told["classes"] = shapes["predictions/kernel"][-1]
    if "pool1_conv/kernel" in shapes:
        told["stem_pool"] = "conv"
    told |= _shortcuts(first, widths, stem[-1][3])
    told |= _attention(first)
    told["conv_bias"] = _conv_bias(shapes, told["preactivation"])
    return told


def _check_axes(name: str, shape: tuple[int, ...]) -> None:
    if not name.endswith("/kernel"):
        return
    axes = 2 if name.startswith("predictions/") else 3 if name.endswith("_eca_conv/kernel") else 4
    if len(shape) != axes or 0 in shape:
        counted = {2: "two", 3: "three", 4: "four"}[axes]
        raise CheckpointError(f"a kernel must have {counted} axes, none empty. Received: {name!r} of {shape}.")


def _depths(parts: Mapping[tuple[int, int], Any]) -> tuple[int, ...]:
    stages = sorted({stage for stage, _ in parts})
    if not stages or stages != list(range(len(stages))):
        raise CheckpointError(
            "the stages must be numbered without gaps. Received: blocks in stages "
            f"{[stage + 1 for stage in stages][:10]}."
        )
    depths = []
    for stage in stages:
        blocks = sorted(block for found, block in parts if found == stage)
        if blocks != list(range(len(blocks))):
            raise CheckpointError(
                f"the blocks of a stage must be numbered without gaps. Received: stage {stage + 1} with blocks "
                f"{blocks[:10]}."
            )
        depths.append(len(blocks))
    if sum(depths) > _MOST_BLOCKS:
        raise CheckpointError(f"a network must have at most {_MOST_BLOCKS} blocks. Received: {sum(depths)}.")
    return tuple(depths)


def _numbers(block: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of a block's convolutions on the residual branch."""
    return tuple(sorted(int(name[0]) for name in block if re.fullmatch(r"[1-9]_conv/kernel", name)))


def _block_widths(
    parts: Mapping[tuple[int, int], Mapping[str, tuple[int, ...]]], depths: tuple[int, ...], kinds: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """Channels of each block's first and 3x3 convolution; where one is missing, those of its stage's first block."""
    pairs: list[tuple[int, int]] = []
    for stage, (depth, kind) in enumerate(zip(depths, kinds, strict=True)):
        names = ("1_conv/kernel", "1_conv/kernel" if kind == "basic" else "2_conv/kernel")
        for block in range(depth):
            found = [(parts[stage, block].get(name) or parts[stage, 0][name])[3] for name in names]
            pairs.append((found[0], found[1]))
    return tuple(pairs)


def _stem_kernels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    single = shapes.get("conv1_conv/kernel")
    kernels = [single] if single else []
    while not single and f"conv1_{len(kernels) + 1}_conv/kernel" in shapes:
        kernels.append(shapes[f"conv1_{len(kernels) + 1}_conv/kernel"])
    if not kernels or any(len(kernel) != 4 or 0 in kernel for kernel in kernels):
        raise CheckpointError(f"the network must begin with convolutions. Received: a stem of {kernels or 'none'}.")
    return kernels


def _norm(shapes: Mapping[str, tuple[int, ...]]) -> str:
    found = (kind for kind in ("evo", "group", "batch") if any(f"_{NORM_SUFFIXES[kind]}/" in name for name in shapes))
    return next(found, "none")


def _shortcuts(first: Sequence[Mapping[str, Any]], widths: tuple[int, ...], entering: int) -> dict[str, Any]:
    """Fields that the projections tell: their kind, and which stages keep the size."""
    kernels = [part.get("0_conv/kernel") for part in first]
    before = (entering, *widths[:-1])
    told: dict[str, Any] = {}
    if kernels[0] is None or before[0] == widths[0]:  # otherwise the projection changes the width anyway
        told["project_first"] = kernels[0] is not None
    if not any(kernels):
        if len(kernels) > 1 or before != widths:
            told["shortcut"] = "pad"
        return told
    sides = {kernel[0] for kernel in kernels[1:] if kernel}
    told["shortcut_kernel"] = sides.pop() if len(sides) == 1 else 1
    kept = [kernel is None and a == b for kernel, a, b in zip(kernels, before, widths, strict=True)]
    if any(kept[1:]):  # a block without a projection cannot subsample
        told["stage_strides"] = (1, *(1 if keeps else 2 for keeps in kept[1:]))
    return told


def _attention(first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for kind, name, axis in (("se", "se_reduce_conv/kernel", 3), ("eca", "eca_conv/kernel", 0)):
        kernels = [part.get(name) for part in first]
        if all(kernels):
            return {"attention": kind, "attention_sizes": tuple(int(kernel[axis]) for kernel in kernels if kernel)}
        if any(kernels):
            raise CheckpointError(f"all stages must have attention, or none. Received: {kernels}.")
    return {"attention": None, "attention_sizes": None}


def _conv_bias(shapes: Mapping[str, tuple[int, ...]], preactivated: bool) -> str:
    """Which convolutions have a bias; those of squeeze-excite always have."""
    kernels = [name for name in shapes if name.endswith("_conv/kernel") and "_se_" not in name and "_eca_" not in name]
    biased = [name for name in kernels if f"{name.removesuffix('kernel')}bias" in shapes]
    if not biased:
        return "none"
    if not preactivated and biased == [name for name in kernels if name.endswith("_0_conv/kernel")]:
        return "shortcut"
    return "all" if len(biased) == len(kernels) or not preactivated else "unnormalized"


def _told_by_row(
    row: catalog.CatalogRow, told: Mapping[str, Any], kernels: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """Returns what the catalog's row says of the things that tensors do not tell."""
    spec = row.spec
    fields: dict[str, Any] = {
        field: getattr(spec, field)
        for field in _FIELDS
        if field not in ("depths", "widths", "inner_widths", "classes", "attention_sizes", "stem")
    }
    if len(spec.stage_strides) != len(told["depths"]):
        del fields["stage_strides"]
    if spec.stem_pool == "conv":  # tensors would be there
        del fields["stem_pool"]
    if spec.shortcut == "pad":  # tensors tell
        del fields["shortcut"]
    if "evo" in (spec.norm, told["norm"]):  # tensors tell
        del fields["activation"]
    if [conv.kernel for conv in spec.stem] == [kernel[0] for kernel in kernels]:
        pairs = zip(kernels, spec.stem, strict=True)
        fields["stem"] = tuple(StemConv(kernel[3], conv.kernel, conv.stride) for kernel, conv in pairs)
    return fields


def _told_by_config(config: Mapping[str, Any], convention: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a configuration says in its own words."""
    fields: dict[str, Any] = {}
    own = config.get("resfit")
    if isinstance(own, ArchitectureSpec) and len(own.depths) == len(told["depths"]):
        fields = {field: getattr(own, field) for field in _FIELDS}
    if convention == "transformers" and config.get("model_type") == "resnet":
        stages = len(told["depths"])
        first = 2 if config.get("downsample_in_first_stage", False) else 1
        fields["stage_strides"] = (first, *(2,) * (stages - 1))
        fields["stride_in_block"] = "first" if config.get("downsample_in_bottleneck", False) else "spatial"
        fields["activation"] = _activation(config.get("hidden_act", "relu"))
    arguments = config.get("model_args")
    if isinstance(arguments, Mapping):
        if isinstance(arguments.get("act_layer"), str):
            fields["activation"] = _activation(arguments["act_layer"])
        if arguments.get("output_stride") in (8, 16, 32):
            fields["output_stride"] = arguments["output_stride"]
        if arguments.get("aa_layer") in ("avg", "blur"):
            fields |= {"antialias": arguments["aa_layer"], "stem_pool": arguments["aa_layer"]}
    stated = config.get("pretrained_cfg")
    size = stated.get("input_size") if isinstance(stated, Mapping) else None
    if isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size):
        fields["input_size"] = (size[1], size[2])
    return fields


def _activation(name: Any) -> str:
    return _ACTIVATIONS.get(str(name), str(name))


def _usual(
    told: Mapping[str, Any], convention: str, kernels: Sequence[tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what the source's library does by default, and why each of these fields is assumed."""
    small = len(kernels) == 1 and kernels[0][0] <= 3
    stages = len(told["depths"])
    strides = [1] if small else [2] + [1] * (len(kernels) - 1)
    stem = tuple(StemConv(kernel[3], kernel[0], stride) for kernel, stride in zip(kernels, strides, strict=True))
    why = f"the default of {'timm resnetv2' if convention == 'timm-v2' else convention}"
    values: dict[str, Any] = {
        "stem": stem,
        "stem_pool": "none" if small else "max",
        "stage_strides": (1, 2, 2, 2, *(1,) * stages)[:stages],
        "input_size": (32, 32) if small else (224, 224),
    }
    assumed = {"activation": why, "norm_epsilon": why, "antialias": why}
    if "bottleneck" in (told["block"], *(told["stage_blocks"] or ())):
        assumed["stride_in_block"] = why
        if convention == "detectron2":
            assumed["stride_in_block"] += (
                "'s configurations; its networks from torchvision have stride_in_block='spatial'"
            )
    if small:
        assumed |= dict.fromkeys(("stem", "stem_pool", "stage_strides"), "a stem of one 3x3 convolution is CIFAR's")
    else:
        assumed["stem_pool"] = why
        if stages > 4:
            assumed["stage_strides"] = "the stride of the last map is at most 32"
    if told["preactivation"]:
        deep = len(kernels) > 1
        values["project_first"] = told["block"] == "bottleneck"
        values["shortcut"] = "avgpool" if deep else "projection"
        assumed["shortcut"] = f"usual with a stem of {'several convolutions' if deep else 'one convolution'}"
        if told["norm"] == "group" and not deep:
            values |= {"weight_standardization": True, "stem_pool_padding": "zero"}
            assumed |= dict.fromkeys(
                ("weight_standardization", "stem_pool_padding"), "group norm with pre-activation is BiT's"
            )
    if told["norm"] in ("group", "evo"):
        assumed["norm_groups"] = why
    if told["conv_bias"] == "shortcut" and len(kernels) == 1 and not small:
        # monai/networks/nets/resnet.py of Project-MONAI/MONAI
        values["stem"] = (StemConv(kernels[0][3], kernels[0][0], 1),)
        assumed["stem"] = "MONAI's default conv1_t_stride=1; with conv1_t_stride=2 it is "
        assumed["stem"] += f"stem=(({kernels[0][3]}, {kernels[0][0]}, 2),)"
    values = {**{field: getattr(_DEFAULTS, field) for field in assumed}, **_HABITS.get(convention, {}), **values}
    return values, assumed


# What a convention's library does by default otherwise, and its names do not tell.
_HABITS: dict[str, dict[str, Any]] = {
    "model-garden-rs": {"activation": "silu"},
    "detectron2": {"stride_in_block": "first"},  # RESNETS.STRIDE_IN_1X1 of detectron2/config/defaults.py
}
_DEFAULTS = ArchitectureSpec(depths=(1,), widths=(1,), inner_widths=(1,), stage_strides=(1,))


def _short(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], StemConv):
        return " + ".join(f"{conv.kernel}x{conv.kernel}/{conv.stride} of {conv.width}" for conv in value)
    return repr(value)


def _distance(spec: ArchitectureSpec, other: ArchitectureSpec) -> float:
    """How far two networks lie apart in depth and width, to choose between rows that differ in as many fields."""
    a, b = (sum(one.depths) + len(one.depths) for one in (spec, other))
    return abs(np.log(a / b)) + abs(np.log(spec.widths[-1] / other.widths[-1]))
