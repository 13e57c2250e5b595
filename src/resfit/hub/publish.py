"""Writes a Keras network as a reusable SavedModel, the form that TensorFlow Hub publishes.

The form is that of https://www.tensorflow.org/hub/reusable_saved_models: an object that is called with ``inputs`` and
``training`` and has ``variables``, ``trainable_variables`` and ``regularization_losses``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from resfit.errors import ArgumentError


def publish(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    value_range: tuple[float, float] | None = None,
    trainable: bool = True,
) -> Path:
    """Writes a model as a reusable SavedModel, with a signature ``serving_default``. Each weight is written once.

    Args:
        model: A built model. Its inputs are those of the SavedModel, the batch left open.
        folder: Where the SavedModel is to stand; it must not exist, or be empty.
        value_range: The images that the SavedModel is to take, such as ``(0.0, 1.0)``, for a model that takes 0..255.
            Default: what the model takes.
        trainable: Whether the SavedModel publishes trainable variables and the regularisation of the model. What is
            frozen in the model (``layer.trainable = False``) is published as not trainable either way.

    Returns:
        The folder.

    Raises:
        ArgumentError: The model is not built or has several inputs, or the folder holds files.
        OSError: The folder cannot be written.

    Example:
        >>> publish(resfit.load("resnet18", include_top=False, pooling="avg"), "resnet18")  # doctest: +SKIP
        PosixPath('resnet18')
    """
    target = Path(folder)
    if not model.built or model.inputs is None:
        raise ArgumentError(
            f"a model must be built to be published. Received: {model.name!r}, which is not. Call it on data first."
        )
    if value_range is not None and len(model.inputs) != 1:
        raise ArgumentError(
            f"value_range is for a model of one input. Received: {len(model.inputs)} inputs. Leave it out."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"the folder must be new or empty. Received: {os.fspath(folder)!r}, which holds files.")
    given = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    specs = tree.map_structure(_open, given)
    module = _module(model, specs, value_range, trainable)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        work = Path(temporary) / "saved_model"
        tf.saved_model.save(module, os.fspath(work), signatures={"serving_default": _signature(module.__call__, specs)})
        if target.exists():
            shutil.rmtree(target)
        os.replace(work, target)
    return target


def _module(model: keras.Model, specs: Any, value_range: tuple[float, float] | None, trainable: bool) -> Any:
    scale, shift = 1.0, 0.0
    if value_range is not None:
        low, high = value_range
        if not low < high:
            raise ArgumentError(f"value_range must be (low, high) with low < high. Received: {value_range!r}.")
        scale, shift = 255.0 / (high - low), -255.0 * low / (high - low)

    @tf.function(autograph=False)
    def call(inputs: Any, training: bool = False) -> Any:
        # a signature's shape is not checked when it is called, and a network may take any
        inputs = tree.map_structure(lambda tensor, spec: tf.ensure_shape(tensor, spec.shape), inputs, specs)
        if value_range is not None:
            inputs = inputs * scale + shift
        outputs = model(inputs, training=training)
        return tree.map_structure(lambda tensor: tf.cast(tensor, tf.float32) if _is_half(tensor) else tensor, outputs)

    for training in (False, True):
        call.get_concrete_function(specs, training=training)

    module = tf.train.Checkpoint()
    module.__call__ = call
    module.variables = [weight.value for weight in model.weights]
    module.trainable_variables = [weight.value for weight in model.trainable_weights] if trainable else []
    module.regularization_losses = _losses(model) if trainable else []
    return module


def _losses(model: keras.Model) -> list[Any]:
    """Returns one function for each regularised weight of a model."""

    def one(weight: Any) -> Any:
        return tf.function(lambda: tf.convert_to_tensor(weight.regularizer(weight.value)), input_signature=[])

    return [one(weight) for weight in model.trainable_weights if weight.regularizer is not None]


def _signature(function: Any, inputs: Any) -> Any:
    """Returns a signature with the inputs as keywords: ``inputs``, or the names of a dict."""
    nest = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    if any(not isinstance(spec, tf.TensorSpec) for spec in nest.values()):
        nest = {f"inputs_{number}": spec for number, spec in enumerate(tree.flatten(inputs))}

    def serve(**given: Any) -> dict[str, Any]:
        outputs = function(tree.pack_sequence_as(inputs, [given[name] for name in nest]), training=False)
        if isinstance(outputs, dict):
            return outputs
        flat = tree.flatten(outputs)
        return {"outputs" if len(flat) == 1 else f"outputs_{number}": tensor for number, tensor in enumerate(flat)}

    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in nest.items()}
    return tf.function(serve, autograph=False).get_concrete_function(**specs)


def _open(tensor: Any) -> tf.TensorSpec:
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def _is_half(tensor: Any) -> bool:
    return tensor.dtype in (tf.float16, tf.bfloat16)
