"""The engine that every other one is measured against: the Keras model itself, on the processor or on a card.

On a card, and in fewer bits than float32, a copy runs whose batch norms are part of their convolutions. Images go up as
they are, uint8 in a quarter of the bytes, and become numbers of the network there. While one batch is computed the next
one goes up and the last one comes down.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resfit import devices
from resfit.devices import Device
from resfit.errors import ResfitError, ResfitWarning

if TYPE_CHECKING:
    import keras

#: Batches under way on a device at once.
IN_FLIGHT = 2

_Tag = TypeVar("_Tag")
# TensorFloat-32 is a switch of the whole process: what needs it on runs alone
_switch = threading.RLock()


class KerasEngine:
    """Runs a Keras model in inference mode. Several threads may use it.

    A batch for which the device's memory does not suffice is run in halves, and so are all after it.

    Args:
        model: A network with one input and one output.
        precision: Number format of its arithmetic, ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``; what
            goes in and comes out is float32.
        device: What it runs on; ``None`` is :func:`resfit.devices.current`.
        compiled: Whether XLA compiles it.

    Attributes:
        precision: As the argument.
        device: What it runs on.
        most: Images that go through at once, once memory has run out; ``None`` before.
    """

    name = "keras"

    def __init__(
        self,
        model: keras.Model,
        precision: str = "float32",
        device: Device | None = None,
        *,
        compiled: bool = False,
    ):
        self._model, self.precision = model, precision
        self.device = device or devices.current()
        self.most: int | None = None
        self._compiled = compiled
        self._program: keras.Model | None = None
        self._calls: dict[str, Callable[[np.ndarray], Any]] = {}
        self._lock = threading.Lock()

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch of shape ``(batch, height, width, channels)``; see :class:`resfit.engines.Engine`."""
        images = _plain(images)
        if not len(images):  # TensorFlow's convolutions give wrong shapes of no images where oneDNN computes them
            return self.run(np.zeros((1, *images.shape[1:]), images.dtype))[:0]
        parts: list[np.ndarray] = []
        start = 0
        while start < len(images):
            part = images[start : start + (self.most or len(images) or 1)]
            try:
                parts.append(self._fetched(self._launched(part), len(part)))
            except Exception as error:
                self._halve(len(part), error)
                continue
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def stream(self, batches: Iterable[tuple[_Tag, np.ndarray]]) -> Iterator[tuple[_Tag, np.ndarray]]:
        """Runs batches as they come, in order; see :func:`resfit.engines.stream`."""
        pending: deque[tuple[_Tag, np.ndarray, Any]] = deque()

        def finish() -> tuple[_Tag, np.ndarray]:
            tag, images, outputs = pending.popleft()
            return tag, self.finish(images, outputs)

        for tag, images in batches:
            pending.append((tag, images, self.begin(images)))
            while len(pending) >= IN_FLIGHT:
                yield finish()
        while pending:
            yield finish()

    def begin(self, images: Any) -> Any:
        """Starts a batch; on a card this returns before it is computed.

        Args:
            images: As :meth:`run` takes them.

        Returns:
            What :meth:`finish` waits for.
        """
        images = _plain(images)
        if self.most is None or len(images) <= self.most:
            try:
                return self._launched(images)
            except Exception as error:
                self._halve(len(images), error)
        return None

    def finish(self, images: Any, outputs: Any) -> np.ndarray:
        """Returns the rows of a batch that was started.

        Args:
            images: The batch.
            outputs: What :meth:`begin` returned for it.
        """
        if outputs is not None:
            try:
                return self._fetched(outputs, len(images))
            except Exception as error:
                self._halve(len(images), error)
        return self.run(images)

    def once(self, images: Any) -> np.ndarray:
        """Runs one batch as the layers are, in float32 on the processor: what all others must agree with.

        Nothing is compiled first, which pays if it stays the only batch.
        """
        import keras

        with devices.on_host():
            result = self._model(keras.ops.convert_to_tensor(np.asarray(images, np.float32)), training=False)
            return np.array(keras.ops.convert_to_numpy(result), np.float32)

    def _launched(self, images: np.ndarray) -> Any:
        """Starts a batch; on a card this returns before it is computed."""
        with self._numbers(), devices.placed(self.device):
            return self._call(images.dtype)(self._padded(images))

    def _fetched(self, outputs: Any, count: int) -> np.ndarray:
        """Waits for a batch that was started."""
        return np.array(outputs[:count], np.float32)

    def _padded(self, images: np.ndarray) -> np.ndarray:
        """Returns a batch for a card, of a power of two: a card is made ready for each size of batch anew.

        In TensorFloat-32 it is one more, since TensorFlow keeps what it has chosen for a size in either format.
        """
        if self.device.kind == "cpu":
            return images
        size = (1 << max(0, len(images) - 1).bit_length()) + (self.precision == "tf32")
        if size == len(images):
            return images
        return np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), images.dtype)])

    def _halve(self, images: int, error: Exception) -> None:
        """Takes half of a batch from now on, or raises what was no lack of memory."""
        if not devices.is_out_of_memory(error) or images <= 1:
            raise error
        with self._lock:
            half = images // 2
            if self.most is None or half < self.most:
                self.most = half
                warnings.warn(
                    f"{self.device.label} has not enough memory for {images} images at once: going on with {half}.",
                    ResfitWarning,
                    stacklevel=4,
                )

    @contextlib.contextmanager
    def _numbers(self) -> Iterator[None]:
        """Switches TensorFloat-32 on, where that is the precision, and off again."""
        if self.precision != "tf32":
            yield
            return
        import tensorflow as tf

        with _switch:
            tf.config.experimental.enable_tensor_float_32_execution(True)
            try:
                yield
            finally:
                tf.config.experimental.enable_tensor_float_32_execution(False)

    def _call(self, dtype: np.dtype[Any]) -> Callable[[np.ndarray], Any]:
        name = str(dtype)
        if name not in self._calls:
            with self._lock:
                if name not in self._calls:
                    self._calls[name] = self._made(name)
        return self._calls[name]

    def _made(self, dtype: str) -> Callable[[np.ndarray], Any]:
        import keras

        if keras.backend.backend() != "tensorflow":
            return self._model.predict_on_batch
        import tensorflow as tf

        if self._program is None:
            plain = self.precision == "float32" and self.device.kind == "cpu"
            self._program = self._model if plain else frozen_copy(self._model, self.precision)
        program = self._program

        def forward(images: Any) -> Any:
            return tf.cast(program(tf.cast(images, tf.float32), training=False), tf.float32)

        # one graph for every batch size, where `predict_on_batch` traces a new one for each
        signature = [tf.TensorSpec((None, *self._model.inputs[0].shape[1:]), dtype)]
        return tf.function(forward, input_signature=signature, jit_compile=self._compiled or None)


def frozen_copy(model: keras.Model, precision: str) -> keras.Model:
    """Returns a copy that is never trained: its batch norms are part of their convolutions, whose kernels are rounded.

    On a processor TensorFlow does this itself in float32.

    Args:
        model: A network with one input and one output.
        precision: As :class:`KerasEngine` takes it.
    """
    import keras

    from resfit.networks import model_graph

    kinds = keras.layers
    along = (kinds.Add, kinds.Activation, kinds.ReLU, kinds.MaxPooling2D, kinds.ZeroPadding2D)
    policy = f"mixed_{precision}" if precision in ("bfloat16", "float16") else None
    try:
        twin = model_graph.copy(model, dtype=policy, also=along)
        return model_graph.fold(twin, lambda norm: True, _frozen_convolution)
    except ResfitError:  # a layer that is called twice cannot be folded
        return twin


def _frozen_convolution(convolution: Any, norm: Any, relu: bool) -> Any:
    """Returns a convolution of its own with the weights of the two."""
    import keras
    from keras import ops

    from resfit.networks import model_graph

    kernel, bias = model_graph.folded_weights(convolution, norm)
    policy = convolution.dtype_policy
    made = keras.layers.Conv2D(
        convolution.filters,
        convolution.kernel_size,
        strides=convolution.strides,
        padding=convolution.padding,
        dilation_rate=convolution.dilation_rate,
        groups=convolution.groups,
        activation="relu" if relu else None,
        # weights that do not change need no second copy in float32
        dtype=policy.compute_dtype,
        trainable=False,
        name=f"{convolution.name}_folded",
    )
    made.build((None, None, None, kernel.shape[2] * convolution.groups))
    made.kernel.assign(ops.cast(kernel, policy.compute_dtype))
    made.bias.assign(ops.cast(bias, policy.compute_dtype))
    return made


def _plain(images: Any) -> np.ndarray:
    """Returns images as they go up: bytes as they are, all else as float32."""
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else np.asarray(images, np.float32)
