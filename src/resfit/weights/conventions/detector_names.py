"""Names of a detector's tensors by a table that is read both ways: layers there, layers here.

What a table says is where a layer stands; the kind of a layer follows from its tensors. A template holds numbers:
``{i}`` counts from 0 in the source and from 1 here, ``{i+2}`` here from 3; ``{=i}`` is the same in both. ``{i*3}`` in
the source stands for every third number.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.spec import ArchitectureSpec
from resfit.weights import identify as architectures
from resfit.weights.conventions import pytorch
from resfit.weights.formats.base import Tensors

COUNTER = "num_batches_tracked"
# where the argument stands that an assumption about the backbone names
_ARGUMENT = re.compile(r"(?=\b\w+= changes it)")
_NUMBER = re.compile(r"\{(?P<same>=?)(?P<letter>\w)(?:\+(?P<shift>\d))?(?:\*(?P<step>\d))?\}")
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_DENSE = {"weight": "kernel", "bias": "bias"}
_PARTS = ("query", "key", "value")
_Spec = TypeVar("_Spec")


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a program names a kind of detector.

    Attributes:
        program: What it is called.
        anchor: Matches the name of one tensor of each such detector, with what stands before the names as ``prefix``.
        bodies: Where the backbone may stand below that.
        rules: Templates of layers there and here. The first that fits a layer is the one that is written.
        packed: Templates of attention whose three projections are one tensor, ``in_proj_weight``, and their stem here.
        embeddings: Layers here whose tensor is a table of vectors.
        constants: Patterns of tensors that are no weights, and what they are.
        groups: Whether norms without statistics are group norms, not layer norms.
    """

    program: str
    anchor: re.Pattern[str]
    bodies: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    packed: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ()
    constants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: bool = False

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """Returns what stands before the names of each detector.

        Args:
            names: Of tensors.
        """
        return [match["prefix"] for match in map(self.anchor.fullmatch, names) if match]


@dataclasses.dataclass(frozen=True)
class DetectorNames:
    """Tensors of a detector under canonical names.

    Attributes:
        naming: How the source names them.
        prefix: What stood before the names.
        arrays: Arrays by canonical name, axes as Keras has them.
        body: The backbone's, with what its names tell.
        leftover: Tensors that no rule knows, by the source's name.
        left_out: What was left out and why, one sentence each.
        constants: Tensors that are no weights, by the source's name.
        kind: Which of several kinds of detectors it is, where a table has some.
    """

    naming: Naming
    prefix: str
    arrays: Mapping[str, np.ndarray]
    body: pytorch.Translation
    leftover: Mapping[str, np.ndarray]
    left_out: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    kind: str = ""


def backbone_of(body: pytorch.Translation, **fields: Any) -> tuple[ArchitectureSpec, list[str]]:
    """Recovers the backbone of a detector.

    Args:
        body: Its tensors, with what their names tell.
        **fields: Fields of its ArchitectureSpec; they win over everything.

    Returns:
        The backbone, and what was assumed of it, one sentence each, which name arguments as ``backbone.NAME``.

    Raises:
        CheckpointError: The tensors do not make a residual network.
        ArgumentError: A field does not fit.
    """
    found = architectures.identify(body.arrays, convention=body.convention, facts=body.facts, **fields)
    return found.spec, [f"backbone: {_ARGUMENT.sub('backbone.', text)}" for text in found.assumptions]


def frozen(backbone: ArchitectureSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a backbone as torchvision saves them: norms with an epsilon of 0 are frozen, uncounted.

    Args:
        backbone: The residual network.
        tensors: Its tensors, with counters.
    """
    return {name: a for name, a in tensors.items() if backbone.norm_epsilon or not name.endswith(f".{COUNTER}")}


def built(make: Callable[..., _Spec], fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> _Spec:
    """Makes a spec of fields, among them overrides of the user's.

    Args:
        make: The spec's class, or what makes one of its fields.
        fields: All of them.
        overrides: The user's.

    Raises:
        CheckpointError: What the tensors tell does not fit.
        ArgumentError: It does not, and there are overrides, which may be why.
    """
    try:
        return make(**fields)
    except ArgumentError as error:
        if overrides:
            raise
        raise CheckpointError(f"the tensors must make a detector that can be built. Received: {error}") from error


def translate(
    tensors: Tensors | Mapping[str, np.ndarray],
    namings: Iterable[Naming],
    *,
    prefix: str | None = None,
    averaged: bool = False,
) -> DetectorNames:
    """Brings the tensors of a detector to canonical names.

    Args:
        tensors: What a reader returned, or arrays under the source's names. Not changed.
        namings: The tables that may fit; the first one does whose anchor is there.
        prefix: What stands before the names of the detector, if the source holds several.
        averaged: Take the running average (EMA) rather than the detector itself.

    Raises:
        CheckpointError: They are not those of one such detector.
    """
    arrays = pytorch.unwrapped(tensors.arrays if isinstance(tensors, Tensors) else tensors)
    namings = tuple(namings)
    naming = next((one for one in namings if one.prefixes(arrays)), namings[0])
    prefix = chosen(naming.prefixes(arrays), prefix, averaged, naming.program, arrays)
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    path = next((path for path in naming.bodies if any(name.startswith(path) for name in own)), naming.bodies[0])
    inside = {name: array for name, array in own.items() if name.startswith(path)}
    body = pytorch.translate({name.removeprefix(path): array for name, array in inside.items()})
    found = dict(body.arrays)
    leftover = {f"{prefix}{path}{name}": array for name, array in body.leftover.items()}
    outside, more = sorted_out(arrays, prefix, naming.prefixes(arrays))
    constants: dict[str, np.ndarray] = {}
    for name, array in own.items():
        if name in inside or name.endswith(f".{COUNTER}"):
            continue
        if any(re.fullmatch(pattern, name) for pattern in naming.constants):
            constants[name] = array
            continue
        named = _canonical(naming, own, name, array)
        if not named:
            more[f"{prefix}{name}"] = array
        for target, value in named.items():
            if target in found and not np.array_equal(found[target], value):
                raise CheckpointError(
                    f"two tensors must not stand for one weight. Received: {prefix + name!r} for {target!r}, beside "
                    "another one with other values. Pass ignore= for one of them."
                )
            found[target] = value
    kinds: dict[str, int] = {}
    for name in constants:
        told = next(told for pattern, told in naming.constants.items() if re.fullmatch(pattern, name))
        kinds[told] = kinds.get(told, 0) + 1
    sentences = [f"left out {told} ({count} tensors)" for told, count in kinds.items()]
    return DetectorNames(
        naming, prefix, found, body, {**leftover, **more}, (*body.left_out, *outside, *sentences), constants
    )


def chosen(
    every: list[str], wanted: str | None, averaged: bool, program: str, tensors: Mapping[str, np.ndarray]
) -> str:
    """Returns what stands before the names of the one detector that is meant.

    Args:
        every: What stands before the names of each.
        wanted: What was asked for, or None.
        averaged: Whether a running average is meant.
        program: What is named, for errors.
        tensors: Everything there is, for errors.

    Raises:
        CheckpointError: It is not one.
    """
    found = [one for one in every if pytorch.is_averaged(one) == averaged] if len(every) > 1 else every
    if averaged and not any(map(pytorch.is_averaged, every)):
        raise CheckpointError(f"the source must hold a running average. Received: detectors under {every}.")
    if wanted is not None:
        found = [one for one in every if one.rstrip(".") == wanted.rstrip(".")]
    if len(found) != 1:
        raise CheckpointError(
            f"the tensors must be those of one detector of {program}. Received: {len(found)} of them (of {every}) in "
            f"{pytorch.described(tensors)}. Pass prefix= where there are several."
        )
    return found[0]


def sorted_out(
    tensors: Mapping[str, np.ndarray], prefix: str, every: Iterable[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns why tensors beside a detector are left out, one sentence each, and those for which nothing says so.

    Args:
        tensors: Everything there is.
        prefix: What stands before the names of the detector.
        every: What stands before those of each detector.
    """
    reasons: dict[str, int] = {}
    leftover = {}
    others = [one for one in every if one and one != prefix]
    for name, array in tensors.items():
        if name.startswith(prefix):
            continue
        other = next((one for one in others if name.startswith(one)), None)
        if other is None:
            reason = pytorch.state_of_training(name)
        else:
            reason = f"{'the running average' if pytorch.is_averaged(other) else 'another detector'} under {other!r}"
        if reason is None:
            leftover[name] = array
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
    return [f"left out {reason} ({count} tensors)" for reason, count in reasons.items()], leftover


def to_torch(naming: Naming, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of encoder and decoder under the names and axes of a program of torch.

    Args:
        naming: The table.
        arrays: Weights by canonical name, without those of the backbone.

    Raises:
        ArgumentError: The table has no name for a layer.
    """
    written: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        layer, _, leaf = name.partition("/")
        if layer in naming.embeddings:
            written[f"{_source(naming, layer, 'embedding')}.weight"] = np.ascontiguousarray(array)
            continue
        base = layer.removesuffix("_conv").removesuffix("_bn")
        is_norm = leaf in _NORM.values()
        source = _source(naming, base, "norm" if layer.endswith("_bn") else "layer")
        ending = next(key for key, value in (_NORM if is_norm else _DENSE).items() if value == leaf)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
        written[f"{source}.{ending}"] = np.ascontiguousarray(array if axes is None else array.transpose(axes))
        if leaf == "moving_variance":
            written[f"{source}.{COUNTER}"] = np.array(0, np.int64)
    return written


def _source(naming: Naming, target: str, kind: str) -> str:
    """The first name that the table has for a layer; of a convolution and its norm, which share a target, the second
    row is the norm's."""
    found = []
    for source, template in naming.rules:
        numbers = _numbers(template, target)
        if numbers is not None:
            found.append(_filled(source, numbers, 0))
    if not found:
        raise ArgumentError(
            f"{naming.program} must have a name for every layer of the detector. Received: {target!r}, which it lacks."
        )
    return found[1 if kind == "norm" else 0]


def _canonical(naming: Naming, own: Mapping[str, np.ndarray], name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """A tensor under its canonical name; a packed one under three; none where no rule fits."""
    layer, _, leaf = name.rpartition(".")
    if leaf in ("in_proj_weight", "in_proj_bias"):
        target = _target(naming.packed, layer)
        if target is None or np.ndim(array) != (2 if leaf == "in_proj_weight" else 1) or len(array) % 3:
            return {}
        kind = "kernel" if leaf == "in_proj_weight" else "bias"
        thirds = np.split(array, 3)
        return {f"{target}_{part}/{kind}": third.T for part, third in zip(_PARTS, thirds, strict=True)}
    target = _target(naming.rules, layer)
    weight = own.get(f"{layer}.weight")
    if target is not None and leaf == "scale" and np.size(array) == 1:  # one number for a level
        return {f"{target}/scale": np.reshape(array, ())}
    if target is None or weight is None:
        return {}
    axes, endings, suffix = np.ndim(weight), _DENSE, ""
    if target in naming.embeddings:
        return {f"{target}/embeddings": array} if leaf == "weight" else {}
    if axes == 1:
        endings, suffix = _NORM, "_bn" if f"{layer}.running_mean" in own else "_gn" if naming.groups else ""
    elif axes == 4:
        suffix = "_conv"
    elif axes != 2:
        return {}
    if leaf not in endings:
        return {}
    if np.ndim(array) == 4:
        array = np.transpose(array, (2, 3, 1, 0))
    elif np.ndim(array) == 2:
        array = np.transpose(array)
    return {f"{target}{suffix}/{endings[leaf]}": array}


def _target(rules: Iterable[tuple[str, str]], layer: str) -> str | None:
    for source, template in rules:
        numbers = _numbers(source, layer, 0)
        if numbers is not None:
            return _filled(template, numbers, 1)
    return None


def _numbers(template: str, name: str, first: int = 1) -> dict[str, int] | None:
    """The numbers that a name has where its template holds them, counted from 0; None where it does not fit.

    Args:
        template: The template.
        name: Of a layer.
        first: What numbers begin with on this side.
    """
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    found = {}
    for mark in _NUMBER.finditer(template):
        number = int(match[mark["letter"]])
        if not mark["same"]:
            number, rest = divmod(number - int(mark["shift"] or 0) - first, int(mark["step"] or 1))
            if rest or number < 0:
                return None
        found[mark["letter"]] = number
    return found


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern. Numbers have at most three digits."""
    parts, end = [], 0
    seen: set[str] = set()
    for mark in _NUMBER.finditer(template):
        letter = mark["letter"]
        group = f"(?P={letter})" if letter in seen else rf"(?P<{letter}>\d{{1,3}})"
        parts += [re.escape(template[end : mark.start()]), group]
        seen.add(letter)
        end = mark.end()
    return re.compile("".join([*parts, re.escape(template[end:])]))


def _filled(template: str, numbers: Mapping[str, int], first: int) -> str:
    """A template with its numbers, which begin with ``first`` on this side."""

    def number(mark: re.Match[str]) -> str:
        value = numbers[mark["letter"]]
        if not mark["same"]:
            value = value * int(mark["step"] or 1) + int(mark["shift"] or 0) + first
        return str(value)

    return _NUMBER.sub(number, template)


def highest(names: Iterable[str], pattern: str) -> int:
    """Returns the highest number in names, 0 where none fits.

    Args:
        names: Of weights.
        pattern: With the number as its group.
    """
    return max((int(match[1]) for match in map(re.compile(pattern).fullmatch, names) if match), default=0)
