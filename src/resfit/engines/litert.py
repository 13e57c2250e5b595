"""LiteRT (TensorFlow Lite with XNNPACK), in float32 or int8."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import processors
from resfit.engines.base import register_engine

if TYPE_CHECKING:
    import keras

_FILE = "network.tflite"
# far beyond any value of an image
_NO_LIMIT = 1e9
_PIECE = 4 * 224 * 224
_MOST_IN_PIECE = 64


def convert(model: keras.Model, folder: Path, samples: np.ndarray | None = None) -> dict[str, Any]:
    """Writes a Keras model as a LiteRT model; see :func:`resfit.engines.openvino.convert`.

    Args:
        model: With one input and one output, on the TensorFlow backend.
        folder: An empty folder.
        samples: Images to calibrate int8 on; ``None`` writes float32.
    """
    (folder / _FILE).write_bytes(converted(model, samples))
    return {"conversion": "traced"}


def converted(
    model: keras.Model, samples: np.ndarray | None = None, *, half: bool = False, one_size: bool = False
) -> bytes:
    """Returns a Keras model as a LiteRT model.

    Args:
        model: With one input and one output, on the TensorFlow backend.
        samples: Images to calibrate int8 on; ``None`` keeps floats.
        half: Whether weights are kept in float16; they are computed with in float32.
        one_size: Whether the model refuses images of another size than the network's input has. LiteRT's interpreter
            resizes any input when it is told to, and its signatures do so on their own.

    Raises:
        RuntimeError: Keras runs on another backend.
    """
    import tensorflow as tf

    converter = _converter(model, samples, one_size)
    if half:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    with quiet():
        return converter.convert()


def quantizer(model: keras.Model, samples: np.ndarray, *, one_size: bool = False) -> Callable[[Sequence[str]], bytes]:
    """Calibrates a network once, and returns what makes int8 models of it in which some operations stay in float32.

    Args:
        model: As :func:`converted` takes it.
        samples: Images to calibrate on.
        one_size: As :func:`converted` takes it.

    Returns:
        A function of the names of operations, as a LiteRT model has them, which returns a LiteRT model.

    Raises:
        RuntimeError: Keras runs on another backend.
    """
    import tensorflow as tf

    options = tf.lite.experimental.QuantizationDebugOptions
    with quiet():
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=_converter(model, samples, one_size), debug_dataset=lambda: _one_by_one(samples[:1])
        )

    def quantize(floats: Sequence[str]) -> bytes:
        with quiet():
            debugger.options = options(denylisted_nodes=list(floats))
            return bytes(debugger.get_nondebug_quantized_model())

    return quantize


def _converter(model: keras.Model, samples: np.ndarray | None, one_size: bool = False) -> Any:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("LiteRT models are converted from Keras on TensorFlow only")
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="images")]
    guard = _one_size(model.input_shape[1:3]) if one_size else lambda images: images
    function = tf.function(lambda images: model(guard(images), training=False), input_signature=signature)
    # the converter itself freezes nothing of Keras 3: variables would stay variables, without their values
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(), lower_control_flow=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if samples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: _one_by_one(samples)
        # input and output stay float32; an operation without an int8 form does too
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


def _one_size(size: tuple[int, int]) -> Callable[[Any], Any]:
    """Returns what passes images of one size on as they are, and cannot be broadcast with others.

    A limit that no value reaches stands for every row and for every column: the converter keeps both, where it drops
    an operation that it knows to do nothing.
    """
    import tensorflow as tf

    rows = tf.constant(np.full((1, size[0], 1, 1), -_NO_LIMIT, np.float32))
    columns = tf.constant(np.full((1, 1, size[1], 1), _NO_LIMIT, np.float32))
    return lambda images: tf.minimum(tf.maximum(images, rows), columns)


def _one_by_one(samples: np.ndarray) -> Iterator[list[np.ndarray]]:
    for image in samples:
        yield [np.asarray(image, np.float32)[None]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the converter's lines, which it writes to the descriptor itself, off stderr."""
    import sys

    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


@register_engine(  # the converter quantises by itself
    "litert",
    convert=convert,
    modules=("ai_edge_litert",),
    packages=("tensorflow", "tensorflow-cpu", "ai-edge-litert"),
    precisions=("float32", "int8"),
)
class LiteRtEngine:
    """Runs a network that :func:`convert` wrote, on the CPU. Several threads may use it, one at a time.

    Args:
        folder: Where it stands.
        precision: ``"float32"`` or ``"int8"``, as it was written.
        threads: Number of threads; ``None`` is one a core.
        file: Its name there.

    Raises:
        ValueError: The file is damaged.
    """

    name = "litert"

    def __init__(self, folder: Path, *, precision: str = "float32", threads: int | None = None, file: str = _FILE):
        with quiet():
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter = Interpreter(
                model_path=str(folder / file), num_threads=threads or processors.available()
            )
        self.precision = precision
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._shape: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        images = np.asarray(images)
        if not len(images):  # which LiteRT does not take
            return self.run(np.zeros((1, *images.shape[1:]), np.float32))[:0]
        piece = min(_MOST_IN_PIECE, max(1, _PIECE // max(1, images.shape[1] * images.shape[2])))
        with self._lock:
            parts = [self._rows(images[start : start + piece]) for start in range(0, max(1, len(images)), piece)]
        return np.concatenate(parts)

    def _rows(self, images: np.ndarray) -> np.ndarray:
        if images.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input, images.shape)
            with quiet():
                self._interpreter.allocate_tensors()
            self._shape = images.shape
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(images, np.float32))
        self._interpreter.invoke()
        return np.array(self._interpreter.get_tensor(self._output), np.float32)
