"""How a forward pass is run: one file a runtime, all with the same call.

An engine takes a batch of RGB images with values 0..255 and returns one row for each image. :func:`create` picks one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit.errors import ArgumentError, MissingDependencyError, closest

if TYPE_CHECKING:
    import keras

#: What ``engine=`` accepts.
NAMES = ("auto", "keras", "openvino")

#: Multiply-accumulates from which OpenVINO's conversion (seconds) pays for itself, and if it is in the cache already.
WORTH_CONVERTING = 1e12
WORTH_LOADING = 2e11

#: Smallest cosine between a row of an engine and Keras' own, on the first batch.
AGREEMENT = 0.9999
_CHECKED_IMAGES = 8


class Engine(Protocol):
    """A network that is ready to run."""

    @property
    def name(self) -> str:
        """Which runtime it is."""
        ...

    @property
    def precision(self) -> str:
        """Number format of its arithmetic."""
        ...

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch.

        Args:
            images: Array of shape ``(batch, height, width, channels)``, RGB, values 0..255, any dtype. Not changed.

        Returns:
            A new float32 array of shape ``(batch, outputs)``.
        """
        ...


def create(
    model: keras.Model, engine: str | Engine = "auto", *, images: int | None = None, threads: int | None = None
) -> Engine:
    """Makes a Keras model ready to run.

    Every engine computes in float32. One that is not Keras is compared with Keras on its first batch and given up,
    with a warning, where the two disagree.

    Args:
        model: A network with one input ``(batch, height, width, channels)`` and one output ``(batch, outputs)``.
        engine: ``"keras"``, ``"openvino"``, or ``"auto"``: OpenVINO if it is installed, no GPU is in sight and the work
            is long enough to repay its conversion, otherwise Keras. An engine is passed through.
        images: Number of images that are coming, for ``"auto"``; ``None`` is many.
        threads: Number of threads; ``None`` is the runtime's own choice. Keras takes none.

    Raises:
        ArgumentError: ``engine`` is unknown, or the model has more than one input or output.
        MissingDependencyError: OpenVINO is asked for and not installed.

    Example:
        >>> body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
        >>> create(body).run(np.zeros((2, 64, 64, 3), "uint8")).shape
        (2, 320)
    """
    check_name(engine)
    if not isinstance(engine, str):
        return engine
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ArgumentError(
            "an engine runs models with one input and one output. "
            f"Received: {len(model.inputs)} inputs and {len(model.outputs)} outputs."
        )
    from resfit.engines.keras import KerasEngine

    plain = KerasEngine(model)
    if engine == "keras" or (engine == "auto" and not _openvino_pays(model, images)):
        return plain
    if importlib.util.find_spec("openvino") is None:
        raise MissingDependencyError('engine="openvino" needs openvino. Install it: pip install openvino')
    from resfit.engines.openvino import OpenVinoEngine

    try:
        fast = OpenVinoEngine(model, threads=threads)
    except Exception as error:
        if engine == "openvino":
            raise ArgumentError(f"OpenVINO cannot convert this network ({error}). Use engine='keras'.") from error
        return plain
    return _Checked(fast, plain)


def check_name(engine: str | Engine) -> None:
    """Makes sure that :func:`create` knows the engine, where it may not be needed or only later.

    Raises:
        ArgumentError: It does not.
    """
    if isinstance(engine, str) and engine not in NAMES:
        raise ArgumentError(f"engine must be one of {NAMES}. Received: {engine!r}.{closest(engine, NAMES)}")


def fingerprint(model: keras.Model) -> str:
    """Returns a digest of everything that decides what a model computes: its layers and its weights.

    The names of layers, which Keras numbers afresh in each program, have no part in it.

    Args:
        model: A built model.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    import keras

    digest = hashlib.sha256()
    # a graph of its own, so that the same layers reached in another way look the same
    graph = keras.Model(list(model.inputs), list(model.outputs))
    config: dict[str, Any] = {"class_name": "Functional", "config": graph.get_config()}
    names: dict[str, str] = {}
    _number_names(config, names)
    digest.update(json.dumps(_without_names(config, names), sort_keys=True, default=str).encode())
    for weight in graph.weights:
        values = np.ascontiguousarray(weight.numpy() if hasattr(weight, "numpy") else weight)
        digest.update(f"{values.shape}{values.dtype}".encode())
        digest.update(values.view(np.uint8).data if values.size else b"")
    return digest.hexdigest()


class _Checked:
    """An engine that proves itself against Keras on its first batch."""

    def __init__(self, fast: Engine, plain: Engine):
        self._fast = fast
        self._plain = plain
        self._checked = False

    @property
    def name(self) -> str:
        return self._fast.name

    @property
    def precision(self) -> str:
        return self._fast.precision

    def run(self, images: Any) -> np.ndarray:
        rows = self._fast.run(images)
        if not self._checked and len(rows):
            self._checked = True
            expected = self._plain.run(images[:_CHECKED_IMAGES])
            lowest = agreement(rows[:_CHECKED_IMAGES], expected)
            if not lowest >= AGREEMENT:
                warnings.warn(
                    f"{self._fast.name} must agree with Keras on this network (cosine at least {AGREEMENT}). "
                    f"Received: {lowest:.6f}. Going on with Keras.",
                    stacklevel=2,
                )
                self._fast = self._plain
                rows = self._fast.run(images)
        return rows


def agreement(rows: np.ndarray, expected: np.ndarray) -> float:
    """Returns the smallest cosine between the rows of two arrays; 1.0 for two rows of zeros.

    Args:
        rows: Array of shape ``(n, outputs)``.
        expected: Array of the same shape.
    """
    a, b = rows.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0))
    return float(cosines.min())


def _openvino_pays(model: keras.Model, images: int | None) -> bool:
    if importlib.util.find_spec("openvino") is None or _has_gpu():
        return False
    macs = _macs_per_image(model)
    if macs is None or images is None:
        return True
    work = macs * images
    if work < WORTH_LOADING:
        return False
    if work >= WORTH_CONVERTING:
        return True
    from resfit.engines.openvino import is_converted

    return is_converted(model)


def _has_gpu() -> bool:
    import keras

    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _macs_per_image(model: keras.Model) -> float | None:
    from resfit.architecture import arithmetic

    architecture = getattr(model, "architecture", None)
    if architecture is None:
        return None
    height, width = model.inputs[0].shape[1:3]
    contract = getattr(model, "input_spec", None)
    size = (height, width) if height and width else getattr(contract, "size", architecture.input_size)
    return float(arithmetic.count(architecture, input_size=size).macs)


def _number_names(value: Any, names: dict[str, str]) -> None:
    if isinstance(value, dict):
        config = value.get("config")
        if "class_name" in value and isinstance(config, dict) and isinstance(config.get("name"), str):
            names.setdefault(config["name"], f"#{len(names)}")
        for inner in value.values():
            _number_names(inner, names)
    elif isinstance(value, list | tuple):
        for inner in value:
            _number_names(inner, names)


def _without_names(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        skipped = ("trainable", "shared_object_id", "build_config", "compile_config")
        return {key: _without_names(inner, names) for key, inner in value.items() if key not in skipped}
    if isinstance(value, list | tuple):
        return [_without_names(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value
