"""What every reader returns: the arrays of a source under its own names, and what the source says beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfit.preprocessing import InputSpec


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
        graph: How the arrays are used, where the source tells (ONNX); in a form of the reader's own.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_spec: InputSpec | None = None
    class_names: tuple[str, ...] | None = None
    graph: Any = None
