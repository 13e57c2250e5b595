"""What a SavedModel's program does with a value, read as data: no operation is run, and nothing of it is kept."""

from __future__ import annotations

import re
from pathlib import Path

from resfit.checkpoints.readers import wire
from resfit.errors import CheckpointError

_GRAPH = "saved_model.pb"
_MOST_BYTES = 500_000_000
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
        CheckpointError: The graph is damaged, or of more than 500 MB.
    """
    path = folder / _GRAPH
    if not path.is_file():
        return set()
    if path.stat().st_size > _MOST_BYTES:
        raise CheckpointError(f"{path}: a graph must have at most {_MOST_BYTES} bytes. Received: more.")
    found: set[str] = set()
    try:
        # meta graphs, their graphs, the libraries of these, their functions (saved_model.proto, graph.proto,
        # function.proto of tensorflow/tensorflow)
        parts = [memoryview(path.read_bytes())]
        for field in (2, 2, 2, 1):
            parts = [wire.view(value) for part in parts for number, value in wire.fields(part) if number == field]
        for function in parts:
            found |= _origins(function, node)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the graph must be whole. Received: {error}.") from error
    return found


def _origins(function: memoryview, wanted: re.Pattern[str]) -> set[str]:
    nodes: dict[str, tuple[str, str]] = {}
    for number, value in wire.fields(function):
        if number == 3:
            name = operation = first = ""
            for field, told in wire.fields(wire.view(value)):
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
