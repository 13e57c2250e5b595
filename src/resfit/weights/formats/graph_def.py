"""Graphs of TensorFlow's programs, read as data: those of SavedModels, and frozen graphs (``.pb``).

No operation is run. Calls of functions are put in their place, so that each program is one list of operations. Formats:
``saved_model.proto``, ``graph.proto``, ``function.proto``, ``attr_value.proto`` and ``saved_object_graph.proto`` of
tensorflow/tensorflow.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import wire
from resfit.weights.formats.onnx import Node, OnnxGraph
from resfit.weights.formats.tf_bundle import DTYPES

# The library of protocol buffers takes no larger message.
_MOST_BYTES = 1 << 31
_MOST_FIELDS = 3_000_000
_MOST_NODES = 100_000
_MOST_DEPTH = 30
_MOST_AXES = 8
# Elements that a constant may have beyond those that its bytes hold (one number that stands for all).
_MOST_FILLED = 1_000_000
_MOST_PROGRAMS = 8

_BFLOAT16 = 14
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
#: Operations that are variables.
VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
# Outputs that a function names, where they are not the first of their operation.
_FURTHER = ("batch_mean", "batch_variance", "reserve_space_1", "reserve_space_2", "reserve_space_3")
# Ways of a program that are not those that a user takes.
_INTERNAL = ("__saved_model_init_op", "__saved_model_train_op")


@dataclasses.dataclass(frozen=True)
class GraphProgram:
    """One way through a graph, from images to what it makes of them.

    Attributes:
        name: What the file calls it, such as ``"serving_default"``.
        graph: Its operations, in the form of :mod:`resfit.weights.formats.onnx`. Constants are operations ``"Const"``.
        handles: For values that are variables, the object of the program that they are.
    """

    name: str
    graph: OnnxGraph
    handles: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class GraphPrograms:
    """What a file holds.

    Attributes:
        programs: Each way through it, the likeliest first.
        children: For each object of the program, what it calls others, and which these are.
    """

    programs: tuple[GraphProgram, ...]
    children: tuple[Mapping[str, int], ...]


def read(path: Path) -> GraphPrograms:
    """Reads the graphs of a SavedModel or of a frozen graph.

    Args:
        path: ``saved_model.pb``, or a file that holds a graph alone.

    Raises:
        CheckpointError: The file is damaged, or larger than any network's.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size < _MOST_BYTES:
                raise ValueError(f"{size} bytes")
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        reader = _Reader()
        if path.name == "saved_model.pb":
            return reader.saved_model(content)
        return GraphPrograms(reader.frozen(content), ())
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path}: the graph must be whole. Received: {error}.") from error


def is_frozen(path: Path) -> bool:
    """Whether a file begins as a graph of TensorFlow does: with an operation that has a name and a kind.

    Args:
        path: The file.
    """
    try:
        with open(path, "rb") as file:
            head = memoryview(file.read(4096))
        if not head or head[0] != 0x0A:
            return False
        length, at = wire.varint(head, 1)
        first: dict[int, wire.Field] = {}
        for number, value in wire.fields(head[at : at + min(length, 400)]):
            first.setdefault(number, value)
            if {1, 2} <= first.keys():
                break
        return bool(wire.text(first[1])) and wire.text(first[2]).isidentifier()
    except (OSError, ValueError, KeyError):
        return False


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function of a graph."""

    arguments: tuple[tuple[str, tuple[int | None, ...] | None], ...]
    results: tuple[str, ...]
    nodes: Mapping[str, Node]


class _Reader:
    def __init__(self) -> None:
        self.room = itertools.count(1)
        self.library: dict[str, memoryview] = {}
        self.parsed: dict[str, _Function] = {}

    def fields(self, message: wire.Field) -> Iterator[tuple[int, wire.Field]]:
        for field in wire.fields(wire.view(message)):
            if next(self.room) > _MOST_FIELDS:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            yield field

    def grouped(self, message: wire.Field) -> dict[int, list[wire.Field]]:
        found: dict[int, list[wire.Field]] = {}
        for number, value in self.fields(message):
            found.setdefault(number, []).append(value)
        return found

    def mapping(self, entries: Sequence[wire.Field]) -> dict[str, wire.Field]:
        """A map of a protocol buffer, by its keys."""
        found = {}
        for entry in entries:
            pair = self.grouped(entry)
            found[wire.text(pair[1][-1]) if 1 in pair else ""] = pair[2][-1] if 2 in pair else memoryview(b"")
        return found

    # Files.

    def saved_model(self, content: memoryview) -> GraphPrograms:
        graphs = [self.grouped(value) for number, value in self.fields(content) if number == 2]
        if not graphs:
            raise ValueError("no graph")
        tags = [self.tags(graph) for graph in graphs]
        order = sorted(range(len(graphs)), key=lambda place: ("serve" not in tags[place], "train" in tags[place]))
        meta = graphs[order[0]]
        if 2 not in meta:
            raise ValueError("no graph")
        nodes = self.graph(meta[2][-1])
        functions, children, constants = self.objects(meta[7][-1]) if 7 in meta else ({}, (), {})
        found = []
        for name, value in self.mapping(meta.get(5, [])).items():
            if name not in _INTERNAL:
                found.append(self.signature(name, self.grouped(value), nodes, functions))
        found.sort(key=lambda one: (one.name != "serving_default", one.name != "default", one.name))
        for name in self.calls(meta, functions) if 7 in meta else ():
            if name in self.library and len(found) < _MOST_PROGRAMS:
                found.append(self.function_program(name, functions[name], nodes, constants))
        return GraphPrograms(tuple(one for one in found[:_MOST_PROGRAMS] if one.graph.outputs), children)

    def frozen(self, content: memoryview) -> tuple[GraphProgram, ...]:
        nodes = self.graph(content)
        images = {
            name: node.attributes.get("shape")
            for name, node in nodes.items()
            if node.op in ("Placeholder", "PlaceholderWithDefault")
        }
        read = {name.rpartition(":")[0] or name for node in nodes.values() for name in node.inputs}
        idle = ("Const", "Placeholder", "NoOp", "Assert")
        outputs = [name for name, node in nodes.items() if name not in read and node.op not in idle]
        ops = self.flattened(nodes, outputs)
        return (GraphProgram("", OnnxGraph(ops, images, tuple(outputs), 13, "TensorFlow", ()), {}),)

    def tags(self, meta: Mapping[int, list[wire.Field]]) -> list[str]:
        return [wire.text(tag) for about in meta.get(1, []) for key, tag in self.fields(about) if key == 4]

    def graph(self, message: wire.Field) -> dict[str, Node]:
        """The operations of a graph by name; its functions are kept for later."""
        nodes: dict[str, Node] = {}
        for number, value in self.fields(message):
            if number == 1:
                node = self.node(value)
                nodes[node.name] = node
                if len(nodes) > _MOST_NODES:
                    raise ValueError(f"more than {_MOST_NODES} operations")
            elif number == 2:
                for part, function in self.fields(value):
                    if part == 1:
                        signature = next((v for n, v in self.fields(function) if n == 1), memoryview(b""))
                        name = next((wire.text(v) for n, v in self.fields(signature) if n == 1), "")
                        self.library[name] = wire.view(function)
        return nodes

    def signature(
        self,
        name: str,
        stated: Mapping[int, list[wire.Field]],
        nodes: Mapping[str, Node],
        functions: Mapping[str, Sequence[int]],
    ) -> GraphProgram:
        inputs, outputs = ({k: self.grouped(v) for k, v in self.mapping(stated.get(n, [])).items()} for n in (1, 2))
        images = {_value(wire.text(one[1][-1])): self.shape(one.get(3)) for one in inputs.values() if 1 in one}
        ends = [_value(wire.text(one[1][-1])) for _, one in sorted(outputs.items()) if 1 in one]
        handles: dict[str, int] = {}
        for node in nodes.values():
            bound = functions.get(str(node.attributes.get("f")), ()) if node.op in _CALLS else ()
            if bound and len(bound) <= len(node.inputs):
                handles |= dict(zip(node.inputs[-len(bound) :], bound, strict=True))
        graph = OnnxGraph(self.flattened(nodes, ends), images, tuple(dict.fromkeys(ends)), 13, "TensorFlow", ())
        return GraphProgram(name, graph, handles)

    def function_program(
        self, name: str, bound: Sequence[int], outer: Mapping[str, Node], constants: Mapping[int, str]
    ) -> GraphProgram:
        """The program that a function alone is, as one of a module without signatures."""
        function = self.function(name)
        free = len(function.arguments) - len(bound)
        images = dict(function.arguments[: max(free, 0)])
        captured = dict(zip([argument for argument, _ in function.arguments[max(free, 0) :]], bound, strict=False))
        nodes = dict(function.nodes)
        for argument, place in captured.items():
            constant = outer.get(constants.get(place, ""))
            if constant is not None:
                nodes[argument] = dataclasses.replace(constant, name=argument, inputs=(), outputs=(argument,))
        graph = OnnxGraph(
            self.flattened(nodes, function.results),
            images,
            tuple(dict.fromkeys(function.results)),
            13,
            "TensorFlow",
            (),
        )
        return GraphProgram(name, graph, captured)

    # Objects.

    def objects(
        self, message: wire.Field
    ) -> tuple[dict[str, tuple[int, ...]], tuple[dict[str, int], ...], dict[int, str]]:
        """Which objects functions capture, what objects call each other, and which are constants."""
        found = self.grouped(message)
        children: list[dict[str, int]] = []
        constants: dict[int, str] = {}
        for place, item in enumerate(found.get(1, [])):
            parts = self.grouped(item)
            named = (dict(self.fields(child)) for child in parts.get(1, []))
            children.append({wire.text(one[2]): wire.number(one.get(1, 0)) for one in named if 2 in one})
            if 9 in parts:
                constants[place] = next((wire.text(v) for n, v in self.fields(parts[9][-1]) if n == 1), "")
        functions = {}
        for name, value in self.mapping(found.get(2, [])).items():
            functions[name] = _whole_numbers(self.grouped(value).get(2, []))
        return functions, tuple(children), constants

    def calls(self, meta: Mapping[int, list[wire.Field]], functions: Mapping[str, Any]) -> list[str]:
        """The functions that the outermost object is when it is called."""
        objects = [value for number, value in self.fields(meta[7][-1]) if number == 1]
        if not objects:
            return []
        named = (dict(self.fields(child)) for number, child in self.fields(objects[0]) if number == 1)
        place = next((wire.number(one.get(1, 0)) for one in named if 2 in one and wire.text(one[2]) == "__call__"), -1)
        if not 0 <= place < len(objects):
            return []
        stated = self.grouped(objects[place]).get(6, [])
        names = [wire.text(v) for function in stated for n, v in self.fields(function) if n == 1]
        return [name for name in names if name in functions]

    # Operations.

    def function(self, name: str) -> _Function:
        if name not in self.parsed:
            parts = self.grouped(self.library[name])
            signature = self.grouped(parts[1][-1]) if 1 in parts else {}
            names = [_named(self.grouped(argument)) for argument in signature.get(2, [])]
            stated = {key: self.grouped(value) for key, value in self._by_number(parts.get(7, [])).items()}
            shapes = [self._stated_shape(stated.get(place)) for place in range(len(names))]
            results = self.mapping(parts.get(4, []))
            order = [_named(self.grouped(argument)) for argument in signature.get(3, [])]
            nodes = {node.name: node for node in map(self.node, parts.get(3, []))}
            found = tuple(_value(wire.text(results[result])) for result in order if result in results)
            self.parsed[name] = _Function(tuple(zip(names, shapes, strict=True)), found, nodes)
        return self.parsed[name]

    def _by_number(self, entries: Sequence[wire.Field]) -> dict[int, wire.Field]:
        found = {}
        for entry in entries:
            pair = self.grouped(entry)
            found[wire.number(pair[1][-1]) if 1 in pair else 0] = pair[2][-1] if 2 in pair else memoryview(b"")
        return found

    def _stated_shape(self, parts: Mapping[int, list[wire.Field]] | None) -> tuple[int | None, ...] | None:
        shapes = self.attributes(parts.get(1, [])).get("_output_shapes") if parts else None
        return shapes[0] if isinstance(shapes, tuple) and shapes else None

    def node(self, message: wire.Field) -> Node:
        parts = self.grouped(message)
        name = wire.text(parts[1][-1]) if 1 in parts else ""
        inputs = [text for text in map(wire.text, parts.get(3, [])) if not text.startswith("^")]
        return Node(
            op=wire.text(parts[2][-1]) if 2 in parts else "",
            name=name,
            inputs=tuple(map(_value, inputs)),
            outputs=(name,),
            attributes=self.attributes(parts.get(5, [])),
        )

    def attributes(self, entries: Sequence[wire.Field]) -> dict[str, Any]:
        return {name: self.attribute(value) for name, value in self.mapping(entries).items()}

    def attribute(self, message: wire.Field) -> Any:
        for number, value in self.fields(message):
            if number == 1:
                return self._list(value)
            if number == 2:
                return str(wire.view(value), "utf-8", "replace")
            if number in (3, 5, 6):
                return wire.number(value)
            if number == 4:
                return _float(value)
            if number == 7:
                return self.shape([value])
            if number == 8:
                return self.tensor(value)
            if number == 10:
                return next((wire.text(name) for part, name in self.fields(value) if part == 1), "")
        return None

    def _list(self, message: wire.Field) -> tuple[Any, ...]:
        parts = self.grouped(message)
        if 3 in parts:
            return _whole_numbers(parts[3])
        if 7 in parts:
            return tuple(self.shape([one]) for one in parts[7])
        if 2 in parts:
            return tuple(str(wire.view(one), "utf-8", "replace") for one in parts[2])
        return ()

    def shape(self, stated: Sequence[wire.Field] | None) -> tuple[int | None, ...] | None:
        """A shape with None for lengths that are open; None where even the number of axes is."""
        if not stated:
            return None
        parts = self.grouped(stated[-1])
        if 3 in parts:
            return None
        sides = []
        for dimension in parts.get(2, []):
            length = next((wire.number(value) for number, value in self.fields(dimension) if number == 1), 0)
            sides.append(length if length > 0 else None)
        return tuple(sides[: _MOST_AXES + 1])

    def tensor(self, message: wire.Field) -> np.ndarray | None:
        """The numbers of a constant; None where it holds none."""
        parts = self.grouped(message)
        kind = wire.number(parts[1][-1]) if 1 in parts else 0
        if kind not in DTYPES:
            return None
        dtype = np.dtype(DTYPES[kind])
        shape: list[int] = []
        for dimension in self.grouped(parts[2][-1]).get(2, []) if 2 in parts else ():
            shape.append(next((wire.number(v) for n, v in self.fields(dimension) if n == 1), 0))
        if len(shape) > _MOST_AXES or min(shape, default=0) < 0:
            raise ValueError(f"a constant of shape {shape[:_MOST_AXES]}")
        count = math.prod(shape)
        if 4 in parts:
            raw = wire.view(parts[4][-1])
            if len(raw) != count * dtype.itemsize:
                raise ValueError(f"a constant of shape {tuple(shape)} in {len(raw)} bytes")
            flat = np.frombuffer(raw, dtype)
        else:
            flat = _listed(parts, kind, dtype)
            if flat.size > count or count - flat.size > _MOST_FILLED:
                raise ValueError(f"a constant of shape {tuple(shape)} of {flat.size} numbers")
            last = flat[-1] if flat.size else dtype.type(0)
            flat = np.concatenate([flat, np.full(count - flat.size, last, dtype)])
        if kind == _BFLOAT16:
            flat = (flat.astype("<u4") << 16).view("<f4")
        return flat.reshape(shape)

    # Calls.

    def flattened(self, nodes: Mapping[str, Node], ends: Sequence[str]) -> tuple[Node, ...]:
        """The operations that some values depend on, with those of functions in the place of their calls."""
        made: list[Node] = []
        waiting: list[tuple[Mapping[str, Node], Sequence[str], str, Mapping[str, str], int]] = [
            (nodes, ends, "", {}, 0)
        ]
        while waiting:
            scope, wanted, prefix, bound, depth = waiting.pop()
            if depth > _MOST_DEPTH:
                raise ValueError(f"functions that call each other {_MOST_DEPTH} deep")
            for node in _needed(scope, wanted):
                if len(made) > _MOST_NODES:
                    raise ValueError(f"more than {_MOST_NODES} operations")
                inputs = tuple(_in_scope(name, prefix, bound) for name in node.inputs)
                name = f"{prefix}{node.name}"
                called = str(node.attributes.get("f")) if node.op in _CALLS else node.op
                if called not in self.library:
                    made.append(dataclasses.replace(node, name=name, inputs=inputs, outputs=(name,)))
                    continue
                function, own = self.function(called), f"{name}/"
                arguments = [argument for argument, _ in function.arguments]
                given = dict(zip(arguments, inputs, strict=False))
                for number, result in enumerate(function.results):
                    output = f"{name}:{number}" if number else name
                    made.append(Node("Identity", name, (_in_scope(result, own, given),), (output,), {}))
                waiting.append((function.nodes, function.results, own, given, depth + 1))
        return tuple(made)


def _needed(nodes: Mapping[str, Node], ends: Sequence[str]) -> list[Node]:
    """The operations of one scope that some of its values depend on."""
    seen: set[str] = set()
    pending = deque(ends)
    found = []
    while pending:
        value = pending.popleft()
        node = nodes.get(value) or nodes.get(value.rpartition(":")[0])
        if node is not None and node.name not in seen:
            seen.add(node.name)
            found.append(node)
            pending.extend(node.inputs)
    return found


def _in_scope(name: str, prefix: str, bound: Mapping[str, str]) -> str:
    return bound.get(name, f"{prefix}{name}")


def _value(reference: str) -> str:
    """What a value is called here: its operation, and the number of the output behind the first.

    Graphs write ``node:0``, functions ``node:output:0``.
    """
    node, *rest = reference.split(":")
    if len(rest) == 2:
        if rest[0] in _FURTHER:
            return f"{node}:{rest[0]}"
        rest = rest[1:]
    return node if not rest or rest == ["0"] else f"{node}:{rest[0]}"


def _named(argument: Mapping[int, list[wire.Field]]) -> str:
    return wire.text(argument[1][-1]) if 1 in argument else ""


def _whole_numbers(values: Sequence[wire.Field]) -> tuple[int, ...]:
    """Whole numbers of a repeated field, one a field or all in one."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(wire.number(value))
            continue
        at = 0
        while at < len(value):
            number, at = wire.varint(value, at)
            found.append(wire.number(number))
    return tuple(found)


def _float(value: wire.Field) -> float:
    raw = value.to_bytes(8, "little")[:4] if isinstance(value, int) else bytes(value[:4])
    return float(np.frombuffer(raw, "<f4", 1)[0])


def _listed(parts: Mapping[int, list[wire.Field]], kind: int, dtype: np.dtype) -> np.ndarray:
    """Numbers that lie in the field of their type."""
    if kind in (1, 2):
        own = "<f4" if kind == 1 else "<f8"
        size = np.dtype(own).itemsize
        raw = b"".join(
            value.to_bytes(8, "little")[:size] if isinstance(value, int) else bytes(value)
            for value in parts.get(5 if kind == 1 else 6, [])
        )
        return np.frombuffer(raw, own)
    numbers = _whole_numbers(parts.get({9: 10, 10: 11, 19: 13, _BFLOAT16: 13, 22: 16, 23: 17}.get(kind, 7), []))
    if kind in (19, _BFLOAT16):
        return np.array(numbers, np.int64).astype("<u2").view(dtype)
    return np.array(numbers, np.int64).astype(dtype)
