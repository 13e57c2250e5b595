"""The engine that every other one is measured against: the Keras model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


class KerasEngine:
    """Runs a Keras model in inference mode.

    Args:
        model: A network with one input and one output.
    """

    name = "keras"
    precision = "float32"

    def __init__(self, model: keras.Model):
        self._model = model
        self._call: Callable[[np.ndarray], Any] | None = None

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        if self._call is None:
            self._call = _compiled(self._model)
        return np.array(self._call(np.asarray(images, np.float32)), np.float32)

    def once(self, images: Any) -> np.ndarray:
        """Runs one batch without compiling anything first, which pays if it stays the only one."""
        import keras

        result = self._model(keras.ops.convert_to_tensor(np.asarray(images, np.float32)), training=False)
        return np.array(keras.ops.convert_to_numpy(result), np.float32)


def _compiled(model: keras.Model) -> Callable[[np.ndarray], Any]:
    import keras

    if keras.backend.backend() != "tensorflow":
        return model.predict_on_batch
    import tensorflow as tf

    # one graph for every batch size, where `predict_on_batch` traces a new one for each
    signature = [tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)]
    return tf.function(lambda images: model(images, training=False), input_signature=signature)
