"""What a SavedModel's program does with a value, read as data: no operation is run, and nothing of it is kept."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resfit.errors import CheckpointError
from resfit.weights.formats import wire

_GRAPH = "saved_model.pb"
# The graph of the deepest network has some 200,000 fields, with all its functions.
_MOST_BYTES = 200_000_000
_MOST_FIELDS = 1_000_000
_MOST_NODES = 200_000
# Operations that hand on what they get.
_HANDS_ON = ("Identity", "StopGradient")
_LONGEST_CHAIN = 100


def origins(folder: Path, node: re.Pattern[str]) -> set[str]:
    """Finds out which operations make the first inputs of some nodes, through operations that hand them on.

    Args:
        folder: That of the SavedModel.
        node: The nodes' names in the functions of the program.

    Returns:
        Kinds of operations (``{"Mean"}``); ``""`` for what comes from outside a function. Empty where there are no
        such nodes, or no graph.

    Raises:
        CheckpointError: The graph is damaged, or larger than any network's.
    """
    path = folder / _GRAPH
    if not path.is_file():
        return set()
    if path.stat().st_size > _MOST_BYTES:
        raise CheckpointError(f"{path}: a graph must have at most {_MOST_BYTES} bytes. Received: more.")
    fields = _counted()
    found: set[str] = set()
    try:
        for function in _functions(memoryview(path.read_bytes()), fields):
            found |= _origins(function, node, fields)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the graph must be whole. Received: {error}.") from error
    return found


def _counted() -> Callable[[memoryview], Iterator[tuple[int, Any]]]:
    """Returns what reads the fields of messages, as long as all of them together are not too many."""
    count = itertools.count(1)

    def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
        for field in wire.fields(message):
            if next(count) > _MOST_FIELDS:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            yield field

    return fields


def _functions(model: memoryview, fields: Callable[[memoryview], Iterator[tuple[int, Any]]]) -> Iterator[memoryview]:
    """Meta graphs, their graphs, the libraries of these, their functions.

    ``saved_model.proto``, ``graph.proto`` and ``function.proto`` of tensorflow/tensorflow.
    """
    pending: list[tuple[memoryview, tuple[int, ...]]] = [(model, (2, 2, 2, 1))]
    while pending:
        message, (wanted, *rest) = pending.pop()
        for number, value in fields(message):
            if number == wanted and rest:
                pending.append((wire.view(value), tuple(rest)))
            elif number == wanted:
                yield wire.view(value)


def _origins(
    function: memoryview, wanted: re.Pattern[str], fields: Callable[[memoryview], Iterator[tuple[int, Any]]]
) -> set[str]:
    nodes: dict[str, tuple[str, str]] = {}
    for number, value in fields(function):
        if number != 3:
            continue
        if len(nodes) == _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} nodes")
        name = operation = first = ""
        for field, told in fields(wire.view(value)):
            if field == 1:
                name = wire.text(told)
            elif field == 2:
                operation = wire.text(told)
            elif field == 3 and not first:
                first = wire.text(told).partition(":")[0]
        nodes[name] = (operation, first)
    found = set()
    for name, (_, first) in nodes.items():
        if not wanted.fullmatch(name):
            continue
        operation = ""
        for _ in range(_LONGEST_CHAIN):
            operation, before = nodes.get(first, ("", ""))
            if operation not in _HANDS_ON:
                break
            first = before
        found.add(operation)
    return found
