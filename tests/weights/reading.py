"""What the fuzzing calls where a reader takes more than a path, or reads only when asked. Nothing heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from resfit.weights.formats import pickled, saved_graph


def numbers(path: Path) -> dict[str, Any]:
    """The numbers of every array of a pickle."""
    return dict(pickled.read(path).arrays)


def origins(folder: Path) -> set[str]:
    """What makes the inputs of every product of matrices in a SavedModel."""
    return saved_graph.origins(folder, re.compile(".*MatMul"))
