"""The ``.safetensors`` format: named arrays with text beside them, nothing that runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from resfit.errors import CheckpointError
from resfit.storage.atomic import atomic_open

# The format's own limit is 100 MB; networks of this family stay far below one.
_MOST_HEADER = 10_000_000


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the text beside the arrays, without reading the arrays.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing or its header is damaged.
    """
    header = _header(path)
    found = header.get("__metadata__", {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{os.fspath(path)}: the metadata must be a mapping. Received: {type(found).__name__}.")
    return {str(key): str(value) for key, value in found.items()}


def read_names(path: str | os.PathLike[str]) -> set[str]:
    """Reads the names of the arrays, without reading the arrays.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing or its header is damaged.
    """
    return set(_header(path)) - {"__metadata__"}


def metadata_value(text: str) -> Any:
    """Returns a metadata text as the JSON that it is, or as it stands where it is none.

    Args:
        text: One value of :func:`read_metadata`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads every array as numpy, under the names of the file.

    Args:
        path: The file.

    Returns:
        Arrays in the dtype of the file.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something other than floating-point numbers.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _header(path)
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: the file must be safetensors, and whole. Received: {error}."
        ) from error
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise CheckpointError(
                f"{os.fspath(path)}: weights must be floating-point numbers. Received: {name!r} of {array.dtype}."
            )
    return arrays


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays and text atomically.

    Args:
        path: The file.
        arrays: Numpy arrays by name.
        metadata: Text by name.
    """
    import numpy as np
    from safetensors.numpy import save

    # ascontiguousarray would give a scalar an axis
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = save(contiguous, dict(metadata or {}))
    with atomic_open(path) as file:
        file.write(data)


def _header(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, os.path.getsize(path) - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {os.fspath(path)}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: the file must be safetensors, and whole. Received: {error}."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{os.fspath(path)}: the header must be a mapping. Received: {type(header).__name__}.")
    return header
