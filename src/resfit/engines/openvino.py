"""OpenVINO: the fast engine on a CPU, in float32 or int8.

A batch is cut into pieces of a few images that run side by side, a thread each: on two cores that is as fast as one
piece on both in float32, and 1.6 times as fast in int8, and a thread that has to wait for a decoder holds nobody up.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resfit.engines.base import Unsupported, register_engine

if TYPE_CHECKING:
    import keras

_FILE = "network.xml"
# pixels of a piece: four images of 224x224; larger pieces fall out of the core's cache
_PIECE = 4 * 224 * 224
_MOST_IN_PIECE = 64
_MADV_PAGEOUT = 21

_Tag = TypeVar("_Tag")


def convert(model: keras.Model, folder: Path) -> dict[str, Any]:
    """Writes a Keras model as an OpenVINO model.

    Args:
        model: With one input and one output.
        folder: An empty folder.

    Returns:
        How it was converted.

    Raises:
        RuntimeError: OpenVINO cannot convert it.
    """
    network, way = converted(model)
    _save(network, folder)
    return {"conversion": way}


def quantize(source: Path, folder: Path, samples: np.ndarray, *, careful: bool) -> None:
    """Writes an int8 version of a converted network, calibrated by NNCF.

    Args:
        source: Folder that :func:`convert` wrote.
        folder: An empty folder.
        samples: Images ``(n, height, width, channels)``, RGB 0..255, to calibrate on.
        careful: Whether biases are corrected too, which takes about twice as long.

    Raises:
        MissingDependencyError: NNCF is not installed.
    """
    import openvino

    from resfit.engines import int8

    network = openvino.Core().read_model(source / _FILE)
    _save(int8.quantized(network, samples, careful=careful), folder)


def _save(network: Any, folder: Path) -> None:
    import openvino

    openvino.save_model(network, folder / _FILE, compress_to_fp16=False)


def converted(model: keras.Model) -> tuple[Any, str]:
    """Returns a Keras model as an ``openvino.Model``, and how it was converted.

    Args:
        model: With one input and one output.

    Raises:
        RuntimeError: OpenVINO cannot convert it.
    """
    from resfit.engines import openvino_graph

    try:
        return openvino_graph.build(model), "layers"
    except Unsupported as reason:
        return traced(model), f"traced ({reason})"


def traced(model: keras.Model) -> Any:
    """Converts through TensorFlow's graph, which knows every layer and takes some ten times as long.

    Args:
        model: With one input; several outputs come in the order of their names.

    Raises:
        RuntimeError: OpenVINO cannot convert it, or Keras runs on another backend.
    """
    import keras
    import openvino

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("layers that resfit does not translate itself need Keras on TensorFlow")
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="images")]
    graph = tf.function(lambda images: model(images, training=False), input_signature=signature)
    return openvino.convert_model(graph)


@register_engine(
    "openvino",
    convert=convert,
    quantize=quantize,
    packages=("openvino",),
    quantizer=("nncf",),
    precisions=("float32", "bfloat16", "int8"),
)
class OpenVinoEngine:
    """Runs a network that :func:`convert` or :func:`quantize` wrote. Several threads may use it.

    Args:
        folder: Where it stands.
        precision: ``"float32"`` or ``"int8"``, as it was written; ``"bfloat16"`` runs what was written in float32.
        threads: Number of threads, which are then not pinned to cores, so that several processes can share the
            machine; ``None`` is one a core.
        few: Whether single images come first: the network is compiled for several when these come.

    Raises:
        RuntimeError: The files are damaged.
    """

    name = "openvino"

    def __init__(self, folder: Path, *, precision: str = "float32", threads: int | None = None, few: bool = False):
        import openvino

        self.precision = precision
        self._core = openvino.Core()
        self._file = folder / _FILE
        self._network = self._core.read_model(self._file)  # one for both forms, which share its weights
        # pinned threads of two processes would take the same cores, whatever else is idle
        self._threads = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False} if threads else {}
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._made: _Pool | None = None
        self._is_new = False
        if few:
            _ = self._quick  # what cannot be compiled is known at once
        else:
            _ = self._several

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        images = np.asarray(images)
        if not len(images):  # which OpenVINO's pooling does not take
            return self.run(np.zeros((1, *images.shape[1:]), np.float32))[:0]
        with self._lock:  # a compiled network has one request for its direct calls, too
            if len(images) == 1 or len(images) < self._several.streams:  # all threads on the few
                rows = np.array(self._quick(np.ascontiguousarray(images, np.float32))[0], np.float32)
            else:
                rows = self._several.requests.submit(images, self._piece(images)).rows()
            if self._is_new:  # the first run has copied the weights
                self._is_new = False
                _page_out(self._file.with_suffix(".bin"))
            return rows

    def stream(self, batches: Iterable[tuple[_Tag, np.ndarray]]) -> Iterator[tuple[_Tag, np.ndarray]]:
        """Runs batches as they come, in order; see :func:`resfit.engines.stream`."""
        pool = _Requests(self._several.compiled, 2 * self._several.streams)
        pending: deque[tuple[_Tag, _Job]] = deque()
        for tag, images in batches:
            pending.append((tag, pool.submit(images, self._piece(images))))
            # what is submitted keeps the threads busy while the next batch is fetched and the last one is used
            while len(pending) > 1:
                first, job = pending.popleft()
                yield first, job.rows()
        for tag, job in pending:
            yield tag, job.rows()

    @property
    def _several(self) -> _Pool:
        """The network for many images: compiled when it is first needed."""
        with self._making:
            if self._made is None:
                self._made = _Pool(self._compile("THROUGHPUT"))
            return self._made

    @functools.cached_property
    def _quick(self) -> Any:
        """The network for less than a stream each: compiled when it is first needed."""
        return self._compile("LATENCY")

    def _compile(self, hint: str) -> Any:
        floats = "bf16" if self.precision == "bfloat16" else "f32"
        config = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": floats, **self._threads}
        self._is_new = True
        return self._core.compile_model(self._network, "CPU", config)

    def _piece(self, images: np.ndarray) -> int:
        fits = min(_MOST_IN_PIECE, max(1, _PIECE // max(1, images.shape[1] * images.shape[2])))
        return max(1, min(fits, -(-len(images) // self._several.streams)))


def _page_out(file: Path) -> None:
    """Lets go of the pages of a mapped file, which are read again if they are needed: compiled weights are copies."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        for line in Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
            span, *_, name = line.split(maxsplit=5)
            if name == str(file):
                begin, end = (int(address, 16) for address in span.split("-"))
                advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)


class _Job:
    """A batch under way. Pieces that are done are taken over as their requests are needed again."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray | None] = []
        self.waiting: deque[_Request] = deque()

    def rows(self) -> np.ndarray:
        while self.waiting:
            self.waiting[0].finish()
        return np.concatenate([part for part in self.parts if part is not None])


class _Request:
    """One inference request, and whose piece it works on."""

    def __init__(self, compiled: Any):
        self._request = compiled.create_infer_request()
        self._job: _Job | None = None
        self._place = 0
        self._images: np.ndarray | None = None  # kept alive while it is read

    def start(self, job: _Job, images: np.ndarray) -> None:
        self.finish()
        self._job, self._place = job, len(job.parts)
        self._images = np.ascontiguousarray(images, np.float32)
        job.parts.append(None)
        job.waiting.append(self)
        self._request.start_async({0: self._images}, share_inputs=True)

    def finish(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job.waiting.remove(self)
            self._request.wait()
            job.parts[self._place] = np.array(self._request.get_output_tensor(0).data, np.float32)


class _Pool:
    """A compiled network, the number of its streams, and requests for it."""

    def __init__(self, compiled: Any):
        self.compiled = compiled
        self.streams = max(1, int(compiled.get_property("NUM_STREAMS")))
        self.requests = _Requests(compiled, 2 * self.streams)


class _Requests:
    """Requests that are used in turn; the next one waits for its last piece."""

    def __init__(self, compiled: Any, count: int):
        self._requests = [_Request(compiled) for _ in range(count)]
        self._next = 0

    def submit(self, images: np.ndarray, piece: int) -> _Job:
        job = _Job()
        for start in range(0, max(1, len(images)), piece):
            self._requests[self._next].start(job, images[start : start + piece])
            self._next = (self._next + 1) % len(self._requests)
        return job
