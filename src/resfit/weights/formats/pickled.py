"""Pickles of plain data and numpy's arrays (``.pkl``), in which programs of JAX and detectron2 keep their weights.

They are read as data (:mod:`resfit.weights.formats.restricted_pickle`): nothing of them is imported or called. An
array's numbers are made of the bytes once they are asked for.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import restricted_pickle, torch
from resfit.weights.formats.base import Tensors, register_format
from resfit.weights.formats.restricted_pickle import NumpyArray, Tensor


@register_format("pickle", suffixes=(".pkl", ".pickle"), avoided=True)
def read(path: Path) -> Tensors:
    """Reads the arrays of a pickle, each when it is asked for.

    Args:
        path: The file.

    Returns:
        Arrays under the keys of the mappings and the fields of the named tuples that lead to them, joined by ``"/"``.

    Raises:
        CheckpointError: The file is missing or damaged, asks for more than data, or holds no arrays.
    """
    path = Path(path)
    if zipfile.is_zipfile(path):  # torch.save writes whatever name it is given
        return torch.read_pickle(path)
    try:
        data = path.read_bytes()
        loaded, _ = restricted_pickle.load(data)
        arrays, unread = restricted_pickle.arrays(loaded, "/")
        restricted_pickle.check_shared(arrays, len(data))
        if not arrays:
            what = restricted_pickle.class_name(loaded)
            raise CheckpointError(f"the file must hold arrays of numbers. Received: none, in a {what}.")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"weights file must exist. Received: {path}.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: the file must be readable. Received: {error}.") from error
    return Tensors(path, _Arrays(path, arrays), left_out=torch.unread_objects(unread))


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays by their names. A file of an optimiser's state may be five times as large as what is needed of it."""

    def __init__(self, path: Path, arrays: Mapping[str, NumpyArray | Tensor]) -> None:
        self._path, self._arrays = path, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        try:
            if isinstance(array, Tensor):
                raise ValueError("a tensor of torch, whose numbers lie elsewhere")
            return array.numbers()
        except ValueError as error:
            raise CheckpointError(
                f"{self._path}: an array must have the numbers that it declares. Received: {name!r}, {error}."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
