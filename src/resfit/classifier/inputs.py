"""What a classifier is asked about: files, folders and arrays, as batches that its network takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import decode, deep
from resfit.data import image_set as image_sets
from resfit.errors import ArgumentError
from resfit.preprocessing import InputSpec


def listed(images: Any, contract: InputSpec) -> tuple[list[Path], list[np.ndarray]]:
    """Returns the images as files or as arrays ``(height, width, channels)``; one of the two lists is empty.

    Args:
        images: As :meth:`resfit.Classifier.predict` takes them.
        contract: The network's input contract.

    Raises:
        ArgumentError: They are none of these.
        DataError: A folder without images.
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    if hasattr(images, "__array__") and not isinstance(images, list | tuple):
        array = np.asarray(images)
        images = [array] if array.ndim == 3 else list(array) if array.ndim == 4 else [array]
    items = list(images)
    channels = contract.channels
    if all(isinstance(item, str | os.PathLike) for item in items):
        paths: list[Path] = []
        for item in items:
            path = Path(item)
            if path.is_dir() or not os.path.lexists(path) or image_sets.is_several(path, contract.reading):
                found = image_sets.scan_images([path], reading=contract.reading)
                paths.extend(sorted((*found.paths, *(item.path for item in found.skipped))))
            else:
                paths.append(path)
        return paths, []
    arrays = [np.asarray(item) for item in items]
    for array in arrays:
        if array.ndim != 3 or array.shape[-1] != channels or array.dtype.kind not in "uif" or 0 in array.shape:
            raise ArgumentError(
                f"images must be files, folders, or arrays of shape (height, width, {channels}) with numbers 0..255. "
                f"Received: shape {array.shape}, dtype {array.dtype}."
            )
    return [], arrays


def batches(
    paths: list[Path], arrays: list[np.ndarray], contract: InputSpec, size: int
) -> Iterator[decode.DecodedBatch]:
    """Yields images as the network takes them.

    Args:
        paths: Files.
        arrays: Arrays, as :func:`listed` returns them.
        contract: The network's input contract.
        size: Images in a batch.
    """
    if paths:
        yield from decode.decode_many(paths, contract, batch_size=size)
    for start in range(0, len(arrays), size):
        some = [fit_array(array, contract) for array in arrays[start : start + size]]
        yield decode.DecodedBatch(np.arange(start, start + len(some)), np.stack(some), [])


def fit_array(array: np.ndarray, contract: InputSpec) -> np.ndarray:
    """Resizes and crops an array as a file would be; one of the right size passes as it is, whatever its dtype.

    Args:
        array: Array of shape ``(height, width, channels)``, RGB, values 0..255.
        contract: The network's input contract.
    """
    if array.shape[:2] == tuple(contract.size) or contract.resize_mode == "none":
        return array
    from PIL import Image

    if array.dtype != np.uint8 and ((array == np.rint(array)) & (array >= 0) & (array <= 255)).all():
        array = array.astype(np.uint8)  # a copy of eight bits gives the same answer as they do
    if array.dtype != np.uint8:  # nothing is rounded
        values = np.clip(array, 0, 255).astype(np.float32)
        picture = deep.Picture(tuple(values[..., channel] for channel in range(contract.channels)))
        (result,) = deep.rendered(picture, contract, [lambda plane: decode.resize(plane, contract)])
        return result
    image = Image.fromarray(array if contract.channels == 3 else array[:, :, 0])
    return np.asarray(decode.resize(image, contract)).reshape(*contract.size, contract.channels)
