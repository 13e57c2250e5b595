"""Sources whose graph says what network they hold: ONNX, and whole Keras models. Names mean nothing there."""

from __future__ import annotations

from collections.abc import Sequence

from resfit.errors import ArgumentError
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.keras_config import SavedModel, layers_of
from resfit.weights.formats.onnx import OnnxGraph


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

    _refuse_choice(tensors, prefix, averaged, "an ONNX file is read by its graph")
    return translate.translate(tensors, ignore=ignore)


@register_convention("keras-graph", recognises=_is_keras_model, order=10)
def _translate_keras(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Reads the network off the configuration of a Keras model."""
    from resfit.weights.graph import keras_models

    way_out = ", or save the model that is wanted alone (model.get_layer(NAME).save(...))"
    _refuse_choice(tensors, prefix, averaged, "a whole Keras model is read by its graph", way_out)
    return keras_models.translate(tensors, ignore=ignore)


def _refuse_choice(tensors: Tensors, prefix: str | None, averaged: bool, why: str, way_out: str = "") -> None:
    """Raises the error of a choice by names, where names mean nothing."""
    given = [name for name, is_given in (("averaged", averaged), ("prefix", prefix is not None)) if is_given]
    if given:
        raise ArgumentError(
            f"{' and '.join(given)} chooses by names of weights, and {why}. Received: {tensors.path}. "
            f"Leave it out{way_out}."
        )
