"""Runs one source on images, in a process of its own that :mod:`resfit.weights.verify` starts."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main(kind: str, path: str, memory: str, seconds: str, given: str, made: str) -> None:
    """Runs a source.

    Args:
        kind: ``"keras"``, ``"onnx"`` or ``"tensorflow"``.
        path: The source.
        memory: Bytes that it may take.
        seconds: Of computing that it may take.
        given: A ``.npy`` file of images, shape (batch, height, width, channels).
        made: Where its outputs go, a ``.npz`` file.
    """
    _limit(int(memory), int(seconds))
    images = np.load(given)
    outputs = {"keras": _keras, "onnx": _onnx, "tensorflow": _tensorflow}[kind](path, images)
    named: dict[str, Any] = {f"{number:04d}": np.asarray(one, np.float32) for number, one in enumerate(outputs)}
    np.savez(made, **named)


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for what, value in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _keras(path: str, images: np.ndarray) -> list[Any]:
    import keras

    from resfit.networks import layers as _layers  # noqa: F401  # registers them

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.inputs and model.inputs[0].shape[1] == images.shape[3] != model.inputs[0].shape[3]:
        images = images.transpose(0, 3, 1, 2)
    made = model(images, training=False)
    return list(made) if isinstance(made, (list, tuple)) else list(made.values()) if isinstance(made, dict) else [made]


def _onnx(path: str, images: np.ndarray) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    one = session.get_inputs()[0]
    if not (len(one.shape) == 4 and one.shape[3] == images.shape[3] and one.shape[1] != images.shape[3]):
        images = images.transpose(0, 3, 1, 2)
    if isinstance(one.shape[0], int):
        images = np.repeat(images, one.shape[0], axis=0)
    types = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    made = session.run(None, {one.name: np.ascontiguousarray(images.astype(types.get(one.type, np.float32)))})
    return [output[:1] for output in made]


def _tensorflow(path: str, images: np.ndarray) -> list[Any]:
    import tensorflow as tf

    module = tf.saved_model.load(path)
    call = module.signatures.get("serving_default") or next(iter(module.signatures.values()), None)
    if call is None:
        made = module(tf.constant(images))
        return list(made.values()) if isinstance(made, dict) else [made]
    ((name, _),) = call.structured_input_signature[1].items()
    return list(call(**{name: tf.constant(images)}).values())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # the reason goes to whoever started this
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
