"""ONNX Runtime, in float32 or int8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import processors
from resfit.engines.base import Unsupported, register_engine

if TYPE_CHECKING:
    import keras
    import onnx

_FILE = "network.onnx"
_PIECE = 4 * 224 * 224
_MOST_IN_PIECE = 64


def convert(model: keras.Model, folder: Path) -> dict[str, Any]:
    """Writes a Keras model as an ONNX model; see :func:`resfit.engines.openvino.convert`.

    Raises:
        RuntimeError: It has a layer that resfit does not translate, and Keras' own exporter is not there or fails.
    """
    import onnx

    network, way = converted(model)
    onnx.save(network, folder / _FILE)
    return {"conversion": way}


def converted(model: keras.Model, output: str = "outputs") -> tuple[onnx.ModelProto, str]:
    """Returns a Keras model as an ONNX model, and how it was converted.

    Args:
        model: With one input and one output.
        output: Name of the output, where Keras' own exporter is not needed.

    Raises:
        RuntimeError: As :func:`convert` says.
    """
    import onnx

    from resfit.engines import onnx_graph

    try:
        return onnx_graph.build(model, output), "layers"
    except Unsupported as reason:
        try:
            with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
                model.export(f"{folder}/{_FILE}", format="onnx", verbose=False)
                return onnx.load(f"{folder}/{_FILE}"), f"exported ({reason})"
        except Exception as error:
            raise RuntimeError(f"{reason}, and Keras cannot export it either ({error})") from error


def quantize(source: Path, folder: Path, samples: np.ndarray, *, careful: bool) -> None:
    """Writes an int8 version of a converted network; see :func:`resfit.engines.openvino.quantize`."""
    import onnx

    from resfit.engines import int8

    network = onnx.load(source / _FILE)
    feed = network.graph.input[0].name
    made = int8.quantized(network, samples, careful=careful, feed=lambda batch: {feed: batch})
    onnx.save(made, folder / _FILE)


@register_engine(
    "onnxruntime",
    convert=convert,
    quantize=quantize,
    modules=("onnx", "onnxruntime"),
    packages=("onnx", "onnxruntime"),
    quantizer=("nncf",),
    precisions=("float32", "int8"),
)
class OnnxRuntimeEngine:
    """Runs a network that :func:`convert` or :func:`quantize` wrote, on the CPU. Several threads may use it.

    Args:
        folder: Where it stands.
        precision: ``"float32"`` or ``"int8"``, as it was written.
        threads: Number of threads; ``None`` is one a core.
        file: Its name there.

    Raises:
        Exception: The files are damaged; ONNX Runtime has several types for that.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, *, precision: str = "float32", threads: int | None = None, file: str = _FILE):
        import onnxruntime

        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or processors.available()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        images = np.asarray(images)
        piece = min(_MOST_IN_PIECE, max(1, _PIECE // max(1, images.shape[1] * images.shape[2])))
        parts = []
        for start in range(0, max(1, len(images)), piece):
            batch = np.ascontiguousarray(images[start : start + piece], np.float32)
            parts.append(self._session.run(None, {self._input: batch})[0])
        return np.concatenate(parts).astype(np.float32, copy=False)
