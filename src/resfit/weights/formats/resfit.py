"""resfit's own ``.safetensors``: canonical names, and the architecture in the metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog
from resfit.networks.detection import kinds
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.weights.formats import safetensors
from resfit.weights.formats.base import Tensors, register_format

_FILE = "model.safetensors"
_FIRST_KERNELS = ("conv1_conv/kernel", "conv1_1_conv/kernel")


@dataclasses.dataclass(frozen=True)
class CanonicalNames:
    """Says that the arrays have canonical names. The ``graph`` of the tensors."""


def recognises(path: Path) -> bool:
    """Whether a path is such a file, or the folder that ``resfit pretrain`` writes, by the header of the file.

    Args:
        path: The path.
    """
    path = _file(path)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        stated = safetensors.read_metadata(path)
        return "architecture" in stated or not safetensors.read_names(path).isdisjoint(_FIRST_KERNELS)
    except CheckpointError:
        return False  # the reader of other safetensors says what is wrong with it


def states_architecture(path: Path) -> bool:
    """Whether a path is such a file and its metadata state the architecture.

    Args:
        path: The path.
    """
    return recognises(path) and "architecture" in safetensors.read_metadata(_file(path))


@register_format("resfit", recognises=recognises, order=0)
def read(path: Path) -> Tensors:
    """Reads the arrays, and what the metadata state: architecture, input contract and class names.

    Args:
        path: The file, or a folder with a ``model.safetensors``.

    Returns:
        ``config`` has the architecture under ``"resfit"``, None where the metadata state none, and ``graph`` is
        :class:`CanonicalNames`.

    Raises:
        CheckpointError: The file is damaged, or its metadata are not what resfit writes.
    """
    path = _file(path)
    metadata = {key: safetensors.metadata_value(text) for key, text in safetensors.read_metadata(path).items()}
    contract = metadata.get("input_spec")
    try:
        stated = _architecture(metadata.get("architecture"))
        input_spec = InputSpec.from_dict(contract) if isinstance(contract, dict) else None
    except (ArgumentError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the metadata must be what resfit writes. Received: {error}") from error
    found = metadata.get("labels") or metadata.get("classes")
    return Tensors(
        path,
        safetensors.read_arrays(path),
        {"resfit": stated},
        input_spec,
        tuple(map(str, found)) if isinstance(found, list) and found else None,
        CanonicalNames(),
    )


def _architecture(stated: Any) -> ArchitectureSpec | kinds.AnyDetectorSpec | None:
    """The architecture that the metadata state: its fields, or a name of the catalog."""
    if stated is None:
        return None
    if isinstance(stated, Mapping) and "backbone" in stated:
        return kinds.from_dict(stated)
    return ArchitectureSpec.from_dict(stated) if isinstance(stated, Mapping) else catalog.get(str(stated)).spec


def _file(path: Path) -> Path:
    return path / _FILE if path.is_dir() else path
