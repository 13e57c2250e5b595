"""Sources whose graph says what network they hold: ONNX, whole Keras models, and programs of TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from resfit.errors import ArgumentError
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.keras_config import SavedModel, layers_of
from resfit.weights.formats.onnx import OnnxGraph
from resfit.weights.formats.saved_model import Objects


def _is_keras_model(tensors: Tensors) -> bool:
    """Whether it is a whole Keras model, and none of resfit's, which state what they are."""
    graph = tensors.graph
    return isinstance(graph, SavedModel) and not graph.own and layers_of(graph.config) is not None


@register_convention("onnx", recognises=lambda tensors: isinstance(tensors.graph, OnnxGraph), order=10)
def _translate_onnx(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Reads the network off a graph of ONNX."""
    from resfit.weights.graph import translate

    _refuse_average(tensors, averaged, "an ONNX file is read by its graph")
    return translate.translate(tensors, prefix=prefix, ignore=ignore)


@register_convention("keras-graph", recognises=_is_keras_model, order=10)
def _translate_keras(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Reads the network off the configuration of a Keras model."""
    from resfit.weights.graph import keras_models

    _refuse_average(tensors, averaged, "a whole Keras model is read by its graph")
    return keras_models.translate(tensors, prefix=prefix, ignore=ignore)


@register_convention(
    "tensorflow-graph",
    recognises=lambda tensors: isinstance(tensors.graph, Objects) and tensors.graph.program is not None,
    order=10,
)
def _translate_tensorflow(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Reads the network off the graph of a SavedModel or a frozen graph, by names where that cannot be."""
    from resfit.weights.graph import tf_models

    return tf_models.translate(tensors, prefix=prefix, averaged=averaged, ignore=ignore)


def _refuse_average(tensors: Tensors, averaged: bool, why: str) -> None:
    """Raises the error of a choice by names of weights, where these mean nothing."""
    if averaged:
        raise ArgumentError(f"averaged chooses by names of weights, and {why}. Received: {tensors.path}. Leave it out.")
