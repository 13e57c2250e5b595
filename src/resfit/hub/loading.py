"""From a handle to an object in memory: ``hub.load``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from resfit.errors import CheckpointError
from resfit.hub import handles, resolver, scan
from resfit.weights.formats.saved_model import V1_MARK
from resfit.weights.tfhub import HandleError


def load(handle: str, tags: Iterable[str] | None = None, options: Any = None, *, trust: bool = False) -> Any:
    """Loads a SavedModel or a module in the TF1 Hub format.

    Args:
        handle: What :func:`resfit.hub.resolve` takes.
        tags: Which graph, where there are several. Default: none for the TF1 Hub format, the only one otherwise.
        options: ``tf.saved_model.LoadOptions``.
        trust: Load it though its graph reads or writes files or the network and its publisher is not known.

    Returns:
        What ``tf.saved_model.load`` returns.

    Raises:
        ArgumentError: The handle is no string.
        HandleError: It leads to no SavedModel.
        CheckpointError: The SavedModel is damaged, or needs ``trust=True``.
    """
    folder = resolver.resolve(handle)
    return load_folder(folder, tags, options, trust=trust or handles.is_known(handle), name=handle)


def load_folder(
    folder: str, tags: Iterable[str] | None = None, options: Any = None, *, trust: bool = False, name: Any = None
) -> Any:
    """Loads the SavedModel of a folder.

    Args:
        folder: A path, of this machine or of Google Cloud Storage.
        tags: As in :func:`load`.
        options: As in :func:`load`.
        trust: Load it whatever operations it holds.
        name: What messages call it.
    """
    import tensorflow as tf

    name = name or folder
    is_v1 = tf.io.gfile.exists(os.path.join(folder, V1_MARK))
    if not any(tf.io.gfile.exists(os.path.join(folder, file)) for file in scan.FILES):
        raise CheckpointError(
            f"{name}: the folder must hold a SavedModel. Received: {folder}, which contains neither "
            f"{scan.FILES[0]} nor {scan.FILES[1]}."
        )
    if not trust and (found := scan.outside(folder)):
        raise CheckpointError(
            f"{name}: a SavedModel of a publisher that is not known may not use files or the network. "
            f"Received: operations {', '.join(found)}. Pass trust=True if you trust where it comes from."
        )
    if tags is None and is_v1:
        tags = []
    try:
        loaded = tf.saved_model.load(folder, tags=None if tags is None else list(tags), options=options)
    except (tf.errors.OpError, OSError, KeyError, AssertionError) as error:
        raise HandleError(f"{name}: the SavedModel must be whole. Received: {error}") from error
    loaded._is_hub_module_v1 = is_v1
    return loaded


def folder_size(folder: str) -> int:
    """Returns the bytes of all files under a folder."""
    return sum(os.path.getsize(os.path.join(parent, file)) for parent, _, files in os.walk(folder) for file in files)
