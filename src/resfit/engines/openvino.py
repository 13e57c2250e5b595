"""The fast engine on a CPU: the network converted for OpenVINO, in float32.

The converted network is kept in the cache under the fingerprint of the Keras model, because the conversion costs
seconds.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.cache import cache_root, locked

if TYPE_CHECKING:
    import keras

_FORMAT = 1


class OpenVinoEngine:
    """Runs a Keras model (TensorFlow backend) through OpenVINO on the CPU.

    Args:
        model: A network with one input and one output; a height and width that it fixes are fixed here too.
        threads: Number of threads; ``None`` is one a core.
        cache: Folder for converted networks; ``None`` is resfit's own.

    Raises:
        RuntimeError: OpenVINO cannot convert the network.
    """

    name = "openvino"
    precision = "float32"

    def __init__(self, model: keras.Model, *, threads: int | None = None, cache: Path | None = None):
        import openvino

        folder = cache or cache_root() / "openvino"
        path = _converted_path(model, folder)
        core = openvino.Core()
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        with locked(folder / "lock"):
            if not path.exists():
                _convert(model, path)
            try:
                network = core.read_model(path)
            except RuntimeError:  # damaged: make it again
                _convert(model, path)
                network = core.read_model(path)
        self._compiled = core.compile_model(network, "CPU", config)

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        batch = np.ascontiguousarray(images, np.float32)
        return np.array(self._compiled(batch)[0], np.float32)


def is_converted(model: keras.Model, cache: Path | None = None) -> bool:
    """Says whether the cache holds the network already.

    Args:
        model: The Keras model.
        cache: Folder for converted networks; ``None`` is resfit's own.
    """
    return _converted_path(model, cache or cache_root() / "openvino").exists()


def _converted_path(model: keras.Model, folder: Path) -> Path:
    import openvino

    shape = tuple(model.inputs[0].shape)
    text = f"{_FORMAT} {engines.fingerprint(model)} {shape} {openvino.__version__}"
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.xml"


def _convert(model: keras.Model, path: Path) -> None:
    import openvino
    import tensorflow as tf

    shape = (None, *model.inputs[0].shape[1:])
    signature = [tf.TensorSpec(shape, tf.float32, name="images")]
    function = tf.function(lambda images: model(images, training=False), input_signature=signature)
    network = openvino.convert_model(function)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.xml")
    try:
        openvino.save_model(network, temporary, compress_to_fp16=False)
        # the weights first: the .xml is what is looked for
        os.replace(temporary.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".bin").unlink(missing_ok=True)
