"""The operations of a graph as steps on maps of features, whatever the order of their axes.

An exporter may turn axes, write constants as operations, and add and take away axes of one. Here a value is a constant,
or a step with a letter for each of its axes: N, C, H, W, or 1; a turned axis moves a letter and nothing else. What does
not fit becomes a step of the kind ``"strange"`` with its reason, so that the one that matters can be named later.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.weights.formats.onnx import Node, OnnxGraph
from resfit.weights.graph import onnx_features, onnx_layout
from resfit.weights.graph.onnx_constants import OPERATIONS, Constants, Operation, UnsupportedOperationError
from resfit.weights.graph.steps import Map, Step, in_order

_MOST_CHANNELS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Lifted:
    """A graph as steps.

    Attributes:
        start: The images.
        ends: What is handed out.
        names: The inputs of every operation that what is handed out depends on.
        channels_last: Whether images come as (batch, height, width, channels).
    """

    start: Step
    ends: tuple[Step, ...]
    names: frozenset[str]
    channels_last: bool


def lift(graph: OnnxGraph, arrays: Mapping[str, np.ndarray], prefix: str | None = None) -> Lifted:
    """Brings a graph to steps.

    Args:
        graph: The graph.
        arrays: Its constants.
        prefix: The input or output of the network that is wanted, where a graph has several.

    Raises:
        Unfit: It has not one input of images, or no output.
    """
    name, outputs = choose(graph, prefix)
    graph = dataclasses.replace(graph, outputs=outputs)
    lifter = Lifter(arrays, graph, _HANDLERS, _WHY, OPERATIONS)
    return lift_with(lifter, graph, name, channels_last=_takes_channels_last(graph, name))


def choose(graph: OnnxGraph, prefix: str | None) -> tuple[str, tuple[str, ...]]:
    """Returns the images of a graph, and what of its outputs is read.

    Args:
        graph: The graph.
        prefix: The input or output of the network that is wanted, where the graph has several.

    Raises:
        Unfit: The choice is none, or is to be made. The text lists the choices.
    """
    images = [name for name, shape in graph.inputs.items() if shape is None or len(shape) == 4]
    choices = [*(images if len(images) > 1 else ()), *(graph.outputs if len(graph.outputs) > 1 else ())]
    if prefix is not None and prefix not in choices:
        raise UnsupportedOperationError(
            f"prefix must be one of {tuple(choices)}, inputs and outputs of the graph. Received: {prefix!r}"
        )
    outputs = graph.outputs
    if prefix in outputs and prefix not in images:
        outputs = (str(prefix),)
        needed = Lifter.read_by(dataclasses.replace(graph, outputs=outputs))
        images = [name for name in images if name in needed]
    elif prefix is not None:
        images = [prefix]
    if len(images) != 1 or (prefix is None and len(graph.inputs) != 1):
        listed = list(graph.inputs)[:5]
        way_out = f". Pass prefix= with one of {tuple(choices)}" if len(images) > 1 else ""
        raise UnsupportedOperationError(f"a graph must take one input, images. Received: inputs {listed}{way_out}")
    return images[0], outputs


def lift_with(lifter: Lifter, graph: OnnxGraph, name: str, *, channels_last: bool) -> Lifted:
    """Brings a graph to steps.

    Args:
        lifter: What knows its operations.
        graph: The graph.
        name: Its images. What is made of other inputs belongs to other networks.
        channels_last: Whether they come as (batch, height, width, channels).

    Raises:
        Unfit: It makes nothing of its images.
    """
    shape = graph.inputs[name]
    letters = "NHWC" if channels_last else "NCHW"
    sides: dict[str, int | None] = dict(zip(letters, shape or (None,) * 4, strict=True))
    if (sides["C"] or 0) > _MOST_CHANNELS:
        raise UnsupportedOperationError(f"images must have channels that can be. Received: {sides['C']}")
    start = Step("input", [], f"input {name!r}", sides["C"] or 0, (sides["H"], sides["W"]))
    others = [one for one in graph.inputs if one != name]
    for other in others:
        reason = {"reason": "it is made of another input"}
        lifter.values[other] = Map(Step("strange", [], f"input {other!r}", 0, (None, None), reason), letters)
    lifter.values[name] = Map(start, letters)
    nodes = _in_order(graph.nodes)
    for node in nodes:
        lifter.take(node)
    if others:
        graph = dataclasses.replace(graph, outputs=_alone(lifter, graph, nodes, start))
    ends = [lifter.values.get(name) for name in graph.outputs]
    found = tuple(end.step for end in ends if isinstance(end, Map))
    if not found or len(found) != len(ends):
        raise UnsupportedOperationError(
            f"a graph must hand out what it makes of its input. Received: outputs {list(graph.outputs)[:5]}"
        )
    return Lifted(start, found, frozenset(lifter.read_by(graph)), channels_last)


def _alone(lifter: Lifter, graph: OnnxGraph, nodes: Sequence[Node], start: Step) -> tuple[str, ...]:
    """What is made of one input alone, up to where it meets the others."""

    def is_own(name: str) -> bool:
        value = lifter.values.get(name)
        return isinstance(value, Map) and value.step.kind != "strange" and start in in_order([value.step])

    needed = Lifter.read_by(graph)
    own = {name for node in nodes for name in node.outputs[:1] if name in needed and is_own(name)}
    goes_on = {name for node in nodes if node.outputs and node.outputs[0] in own for name in node.inputs}
    last = [name for name in own if name not in goes_on]
    if len(last) != 1:
        raise UnsupportedOperationError(
            f"a network of one input must end in one place before it meets others. Received: {sorted(last)[:5]}"
        )
    return tuple(last)


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """Brings operations behind those that they read from, which some converters do not, such as ONNX Runtime's to
    float16; those of a circle stay last."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    missing = [
        {makers[name] for name in node.inputs if makers.get(name, place) != place} for place, node in enumerate(nodes)
    ]
    readers: dict[int, list[int]] = {}
    for place, needed in enumerate(missing):
        for one in needed:
            readers.setdefault(one, []).append(place)
    ready = [place for place, needed in enumerate(missing) if not needed]
    heapq.heapify(ready)
    ordered: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        ordered.append(place)
        for reader in readers.get(place, ()):
            missing[reader].discard(place)
            if not missing[reader]:
                heapq.heappush(ready, reader)
    done = set(ordered)
    return [nodes[place] for place in (*ordered, *(place for place in range(len(nodes)) if place not in done))]


def _takes_channels_last(graph: OnnxGraph, name: str) -> bool:
    """Whether what images go through first turns their axes to have the channels second."""
    readers: dict[str, Node] = {}
    for node in graph.nodes:
        for value in node.inputs if node.op != "Shape" else ():
            readers.setdefault(value, node)
    for _ in range(8):
        reader = readers.get(name)
        if reader is None or not reader.outputs or reader.op == "Conv":
            return False
        if reader.op == "Transpose":
            return tuple(reader.attributes.get("perm") or ()) == (0, 3, 1, 2)
        name = reader.outputs[0]
    return False


class Lifter:
    """Works operations out one after the other.

    Args:
        arrays: The constants of a graph.
        graph: The graph.
        handlers: What knows each kind of operation.
        why: Why some kinds are no residual network's.
        operations: What works kinds of operations on constants out.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        graph: OnnxGraph,
        handlers: Mapping[str, onnx_features.Handler],
        why: Mapping[str, str],
        operations: Mapping[str, Operation],
    ):
        self.values: dict[str, Any] = dict(arrays)
        self.handlers, self.why = handlers, why
        self.constants = Constants(sum(array.size for array in arrays.values()), operations)
        self.opset = graph.opset
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)

    def take(self, node: Node) -> None:
        """Works one operation out."""
        inputs = [self.values.get(name) if name else None for name in node.inputs]
        maps = [value for value in inputs if isinstance(value, Map)]
        strange = next((value for value in maps if value.step.kind == "strange"), None)
        if strange is not None:  # what is made of it is as strange
            others = [value for value in maps if value.step is not strange.step]
            if node.op in ("Add", "AddV2", "Sum") and any({"H", "W"} & set(value.axes) for value in others):
                strange.step.values["summed"] = True  # vectors are summed in heads alone
            self.values.update(dict.fromkeys(filter(None, node.outputs), strange))
            return
        try:
            missing = [name for name in node.inputs if name and name not in self.values]
            if missing or not node.outputs:
                raise UnsupportedOperationError(
                    f"it reads {missing[:3]}, which nothing before it makes" if missing else "it makes nothing"
                )
            if not maps:
                self._keep(node, self.constants.work_out(node, inputs))
                return
            known = self.handlers.get(node.op)
            if known is None:
                raise UnsupportedOperationError(self.why.get(node.op, "no residual network has it"))
            result = known(self.opset, node, inputs)
            if isinstance(result, Map) and result.step.channels > _MOST_CHANNELS:
                raise UnsupportedOperationError(f"{result.step.channels} channels")
        except UnsupportedOperationError as reason:
            result = self._strange(node, maps, str(reason))
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, ArithmeticError) as error:
            result = self._strange(node, maps, f"its inputs do not fit it ({error})")
        self._keep(node, result)

    def _keep(self, node: Node, result: Any) -> None:
        """Keeps what an operation made, and lets constants go that nothing reads any more."""
        if node.outputs:
            self.values[node.outputs[0]] = result
        for name in node.inputs:
            self.uses[name] -= 1
            if not self.uses[name] and isinstance(self.values.get(name), np.ndarray):
                del self.values[name]

    @staticmethod
    def _strange(node: Node, maps: Sequence[Map], reason: str) -> Map:
        step = Step(
            "strange", [value.step for value in maps], str(node), 0, (None, None), {"reason": reason, "summed": False}
        )
        return Map(step, "NCHW" if any({"H", "W"} & set(value.axes) for value in maps) else "NC")

    @staticmethod
    def read_by(graph: OnnxGraph) -> set[str]:
        """Names that the outputs depend on."""
        makers = {name: node for node in graph.nodes for name in node.outputs if name}
        wanted, seen = list(graph.outputs), set(graph.outputs)
        while wanted:
            node = makers.get(wanted.pop())
            fresh = [name for name in node.inputs if name not in seen] if node else []
            seen.update(fresh)
            wanted += fresh
        return seen


_QUANTISED = "a quantised network is not read; export the network of floating-point numbers"
_WHY = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"), _QUANTISED),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "QLinearMatMul"), _QUANTISED),
    **dict.fromkeys(
        [f"com.microsoft.nchwc.{name}" for name in ("ReorderInput", "ReorderOutput", "Conv", "MaxPool", "AveragePool")],
        "an operation for one kind of processor; let ONNX Runtime write the file with its optimisation at EXTENDED",
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), "a residual network has no branches that depend on the images"),
}
_HANDLERS = {**onnx_features.HANDLERS, **onnx_layout.HANDLERS}
