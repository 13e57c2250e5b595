"""Whether arrays are those that a network needs, layer by layer, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.networks.arithmetic import LayerCount
from resfit.weights.conventions import pytorch

_LISTED = 8
# How many times the memory that they share a network's weights may have, beside some that are small.
_MOST_SHARED, _FREE_BYTES = 4, 100_000_000


def problem(arrays: Mapping[str, np.ndarray], leftover: Mapping[str, Any], layers: Iterable[LayerCount]) -> str:
    """Compares arrays with what an architecture needs, so that a network is never larger than the file it is made from.

    Args:
        arrays: By canonical name.
        leftover: What no rule knows, by the source's name.
        layers: What the architecture needs.

    Returns:
        What is left over, missing, or of another size, in words; ``""`` where everything fits.

    Raises:
        CheckpointError: The arrays are many times larger together than the memory that they share.
    """
    needed = {layer.name: layer.parameters for layer in layers if layer.parameters}
    held: dict[str, int] = {}
    shapes: dict[str, list[str]] = {}
    for name, array in arrays.items():
        layer = name.partition("/")[0]
        held[layer] = held.get(layer, 0) + int(array.size)
        shapes.setdefault(layer, []).append(f"{name} {array.shape}")
    missing = [f"{name} ({needed[name]} weights)" for name in needed if name not in held]
    strange = [text for name in held if name not in needed for text in shapes[name]]
    strange += [pytorch.described({name: array}) for name, array in leftover.items()]
    different = [
        f"{', '.join(shapes[name])} where {needed[name]} weights belong"
        for name in held
        if name in needed and held[name] != needed[name]
    ]
    _check_memory(arrays)
    integers = [name for name, array in arrays.items() if not np.issubdtype(array.dtype, np.floating)]
    told = (
        (strange, "tensors left over"),
        (missing, "layers without tensors"),
        (different, "layers of other sizes"),
        (integers, "weights that are no floating-point numbers"),
    )
    return ". ".join(f"{len(found)} {what}: {listed(found)}" for found, what in told if found)


def _check_memory(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses weights that are many times larger together than the memory that they share.

    Raises:
        CheckpointError: They are.
    """
    shared: dict[int, int] = {}
    for array in arrays.values():
        base: Any = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        shared[base.__array_interface__["data"][0]] = max(base.nbytes, array.nbytes if base.size else 0)
    total = sum(array.nbytes for array in arrays.values())
    if total > _MOST_SHARED * sum(shared.values()) + _FREE_BYTES:
        raise CheckpointError(
            f"a network's weights must be numbers of their own. Received: {total} bytes of weights that share "
            f"{sum(shared.values())} bytes."
        )


def is_of_its_own(array: np.ndarray) -> bool:
    """Whether the numbers of an array have places of their own in memory, so that a copy is as large as it is.

    Args:
        array: Any.
    """
    extent = sum((side - 1) * abs(stride) for side, stride in zip(array.shape, array.strides, strict=True))
    return bool(array.size) and extent + array.itemsize >= array.nbytes


def listed(items: Sequence[str]) -> str:
    """Returns the first few of many words, and how many more there are.

    Args:
        items: The words.
    """
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
