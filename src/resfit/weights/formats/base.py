"""What every reader returns: the arrays of a source under its own names, and what the source says beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.preprocessing import InputSpec

_MOST_JSON = 50_000_000


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file or folder holds.

    Attributes:
        path: What was read.
        arrays: Arrays under the names of the source, in its axes.
        config: What the source states about its network in words of its own (``config.json`` beside the weights, a
            Keras model's configuration), or an empty mapping.
        input_spec: The input contract, where the source states one.
        class_names: Labels of the classes in the order of the classifier, where the source states them.
        left_out: What else is there and was not read, one sentence each.
        graph: How the arrays are used, where the source tells (ONNX); in a form of the reader's own.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_spec: InputSpec | None = None
    class_names: tuple[str, ...] | None = None
    graph: Any = None
    left_out: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a mapping of JSON that lies beside weights.

    Args:
        path: The file, of at most 50 MB.

    Raises:
        CheckpointError: It is missing, larger, no JSON, or no mapping.
    """
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the file must be JSON. Received: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the file must hold a mapping. Received: {type(value).__name__}.")
    return value
