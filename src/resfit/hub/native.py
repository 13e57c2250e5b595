"""SavedModels that hold a residual network, as native Keras networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import zoo
from resfit.hub import resolver, scan
from resfit.weights import tfhub

if TYPE_CHECKING:
    import keras


def to_keras(handle: str, **kwargs: Any) -> keras.Model:
    """Loads a SavedModel that holds a residual network as a native Keras network, with layers by name.

    Args:
        handle: What :func:`resfit.hub.resolve` takes.
        **kwargs: As :func:`resfit.load` takes them. Default: what the SavedModel gives, logits or probabilities, and
            without a classifier pooled features.

    Returns:
        The network, as :func:`resfit.load` returns it: it takes RGB images 0..255 unless ``preprocess=False``.

    Raises:
        CheckpointError: The SavedModel holds no network that can be recognised; :class:`resfit.hub.KerasLayer` runs it
            as it is.
        HandleError: The handle leads to no SavedModel.
    """
    folder = resolver.resolve(handle)
    ends = {"pooling": "avg", "classifier_activation": "softmax" if scan.has(folder, "Softmax") else None}
    return zoo.load(folder if tfhub.split(folder).scheme else Path(folder), **{**ends, **kwargs})
