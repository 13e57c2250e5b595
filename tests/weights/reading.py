"""What the fuzzing calls where a reader takes more than a path, or reads only when asked. Nothing heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from resfit.errors import CheckpointError
from resfit.weights.formats import graph_def, pickled, saved_graph


def numbers(path: Path) -> dict[str, Any]:
    """The numbers of every array of a pickle."""
    return dict(pickled.read(path).arrays)


def origins(folder: Path) -> set[str]:
    """What makes the inputs of every product of matrices in a SavedModel."""
    return saved_graph.origins(folder, re.compile(".*MatMul"))


def graph(path: Path) -> list[int]:
    """How many steps lead to each output of each program of a graph."""
    from resfit.weights.graph import lift_tf, steps, tf_models, translate

    if path.is_dir():
        path = path / "saved_model.pb"
    programs = graph_def.read(path)
    if not programs.programs:
        raise CheckpointError("a graph must have a way through it. Received: none.")
    counts = []
    for program in programs.programs:
        with translate.told_plainly():
            lifted = lift_tf.lift(program.graph, {})
            if path.suffix == ".pb" and path.name != "saved_model.pb":
                translate.assemble(tf_models.main_end(lifted)[0], [])
        counts.append(len(steps.in_order(lifted.ends)))
    return counts
