"""What exporters write as several operations, brought back to one.

Scales and shifts go into the convolution before them, paddings into the convolution or pooling behind them; a product
with a sigmoid is an activation or channel attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from resfit.weights.graph.steps import Pads, Step, in_order

_LOWEST = -1e30
_BINOMIAL = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])


@dataclasses.dataclass(frozen=True)
class Simplified:
    """A graph of few kinds of steps.

    Attributes:
        start: The images.
        ends: What is handed out.
        steps: All steps, each behind those that it reads.
        readers: For each step, by its identity, those that read it.
        scaled: How many scales and shifts went into convolutions.
    """

    start: Step
    ends: tuple[Step, ...]
    steps: tuple[Step, ...]
    readers: dict[int, list[Step]]
    scaled: int


def simplify(start: Step, ends: Sequence[Step]) -> Simplified:
    """Brings a graph to few kinds of steps. The given steps are not changed.

    Args:
        start: The images.
        ends: What is handed out.
    """
    before = in_order(ends)
    counts = {id(step): len(found) for step, found in zip(before, _readers(before), strict=True)}
    for end in ends:
        counts[id(end)] += 1
    made: dict[int, Step] = {}
    scaled = 0
    for step in before:
        inputs = [made[id(one)] for one in step.inputs]
        alone = len(step.inputs) == 1 and counts[id(step.inputs[0])] == 1
        rule = _RULES.get(step.kind)
        result = rule(step, inputs, alone) if rule else None
        scaled += step.kind == "affine" and result is not None and result.kind == "conv"
        made[id(step)] = dataclasses.replace(step, inputs=inputs) if result is None else result
    found = tuple(made[id(end)] for end in ends)
    after = in_order(found)
    readers = {id(step): list(told) for step, told in zip(after, _readers(after), strict=True)}
    first = made.get(id(start), start)
    readers.setdefault(id(first), [])
    return Simplified(first, found, tuple(after), readers, scaled)


def _readers(steps: Sequence[Step]) -> list[list[Step]]:
    found: dict[int, list[Step]] = {id(step): [] for step in steps}
    for step in steps:
        for one in step.inputs:
            found[id(one)].append(step)
    return [found[id(step)] for step in steps]


def scaled_by(step: Step, scale: np.ndarray, shift: np.ndarray) -> Step:
    """Returns a convolution or dense layer that scales and shifts what it makes.

    Args:
        step: Of the kind ``"conv"`` or ``"dense"``.
        scale: One number for each of its channels, or one for all.
        shift: The same.
    """
    kernel, bias = step.values["kernel"], step.values["bias"]
    if np.any(scale != 1):
        kernel = (kernel * scale).astype(np.float32)
    moved = np.broadcast_to((0.0 if bias is None else bias.astype(np.float64)) * scale + shift, (step.channels,))
    if bias is None and not np.any(moved):
        return dataclasses.replace(step, values={**step.values, "kernel": kernel})
    return dataclasses.replace(step, values={**step.values, "kernel": kernel, "bias": moved.astype(np.float32)})


def _affine(step: Step, inputs: Sequence[Step], alone: bool) -> Step | None:
    x, scale, shift = inputs[0], step.values["scale"], step.values["shift"]
    if x.kind == "affine" and alone:
        both = {"scale": x.values["scale"] * scale, "shift": x.values["shift"] * scale + shift}
        return dataclasses.replace(step, inputs=list(x.inputs), values=both)
    if x.kind in ("conv", "dense") and alone:
        return scaled_by(x, scale, shift)
    if x.kind == "norm" and alone:
        gamma, beta = (x.values[name].astype(np.float64) for name in ("gamma", "beta"))
        moved = {"gamma": (gamma * scale).astype(np.float32), "beta": (beta * scale + shift).astype(np.float32)}
        return dataclasses.replace(x, values={**x.values, **moved})
    return None


def _conv(step: Step, inputs: Sequence[Step], alone: bool) -> Step | None:
    x = inputs[0]
    if x.kind != "pad" or step.values["pads"] != (0, 0, 0, 0) or step.values["same"]:
        return None
    kernel, depth = step.values["kernel"], step.values["groups"]
    if x.values["mode"] == "reflect":
        filters = kernel.reshape(kernel.shape[0], kernel.shape[1], -1).transpose(2, 0, 1)
        blurs = kernel.shape[:3] == (3, 3, 1) and depth == step.channels and step.values["bias"] is None
        if not blurs or x.values["pads"] != (1, 1, 1, 1) or np.abs(filters - _BINOMIAL).max() > 1e-5:
            return None
        values = {"strides": step.values["strides"]}
        return dataclasses.replace(step, kind="blur", inputs=list(x.inputs), values=values)
    if x.values["value"] != 0:
        return None
    return dataclasses.replace(step, inputs=list(x.inputs), values={**step.values, "pads": x.values["pads"]})


def _max(step: Step, inputs: Sequence[Step], alone: bool) -> Step | None:
    x, pads = inputs[0], step.values["pads"]
    if x.kind != "pad" or x.values["mode"] != "constant" or pads != (0, 0, 0, 0) or step.values["same"]:
        return dataclasses.replace(step, inputs=list(inputs), values={**step.values, "border": "lowest"})
    value = x.values["value"]
    if value != 0 and value > _LOWEST:
        return None
    padded: Pads = x.values["pads"]
    border = "zero" if value == 0 else "lowest"
    return dataclasses.replace(step, inputs=list(x.inputs), values={**step.values, "pads": padded, "border": border})


def _multiply(step: Step, inputs: Sequence[Step], alone: bool) -> Step | None:
    for x, gate in (inputs, inputs[::-1]):
        if gate.kind != "act":
            continue
        source, name = gate.inputs[0], gate.values["name"]
        if source is x and name in _GATED:
            return dataclasses.replace(step, kind="act", inputs=[x], values={"name": _GATED[name]})
        if name == "sigmoid" and (found := _attention(x, source)):
            kind, values = found
            return dataclasses.replace(step, kind=kind, inputs=[x], values=values)
    return None


def _attention(x: Step, source: Step) -> tuple[str, dict[str, np.ndarray | None]] | None:
    """Channel attention whose gates are made from the maps themselves."""
    if source.kind == "line" and source.inputs[0].kind == "mean" and source.inputs[0].inputs[0] is x:
        return "eca", {"kernel": source.values["kernel"]}
    path = [source]
    for kind in ("dense", "act", "dense", "mean"):
        if path[-1].kind != kind:
            return None
        path.append(path[-1].inputs[0])
    expand, middle, reduce = path[0], path[1], path[2]
    if path[-1] is not x or middle.values["name"] != "relu":
        return None
    return "se", {
        **{f"reduce_{name}": reduce.values[name] for name in ("kernel", "bias")},
        **{f"expand_{name}": expand.values[name] for name in ("kernel", "bias")},
    }


#: An activation that is multiplied with what it reads.
_GATED = {"sigmoid": "silu", "hard_sigmoid": "hard_silu"}
_RULES = {"affine": _affine, "conv": _conv, "max": _max, "multiply": _multiply}
