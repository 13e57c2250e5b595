"""A detector of Keras' own layers and operations alone, for ``.keras`` files that load without resfit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from resfit.errors import ExportError
from resfit.export.detection.export_detector import ExportDetector
from resfit.export.plain import own_layers, plain
from resfit.networks.detection import layers, nms, transformer
from resfit.networks.detection.kinds import QueryDetectorSpec

# Rounds of suppression that are written out, since a file of Keras has no loops.
ROUNDS = 16


def without_resfit(subject: ExportDetector) -> tuple[keras.Model, tuple[str, ...]]:
    """Returns the network of Keras' own layers and operations, and notes for the card.

    Args:
        subject: What is exported.

    Raises:
        ExportError: A layer has no such form.
    """
    network = (
        subject.scores if subject.raw else subject.detector.suppressed(rounds=ROUNDS, size=subject.input_spec.size)
    )
    network = plain(network, fold=False)
    named = dict(network.output)

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(operation, layers.LevelScale):
            factor = float(np.asarray(operation.scale))
            return keras.layers.Rescaling(factor, name=operation.name)(*arguments)
        if isinstance(operation, transformer.LearnedQueries):
            table = np.asarray(operation.embeddings)[None]
            found = keras.ops.tile(keras.ops.convert_to_tensor(table), (keras.ops.shape(arguments[0])[0], 1, 1))
            return [found, keras.ops.zeros_like(found)]
        if isinstance(operation, _TRACED):
            # its operations become operations of the model
            return operation.call(*arguments, **options)
        return operation(*arguments, **options)

    traced = keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
    left = own_layers(traced)
    if left:
        raise ExportError(
            f"a .keras export must load without resfit. Received: a layer that only resfit has, {left[0]!r}. "
            "Take format='tf_saved_model'."
        )
    assert named.keys() == dict(traced.output).keys()
    notes = ["Operations of resfit's own are written as Keras'."]
    if not subject.raw and not isinstance(subject.spec, QueryDetectorSpec):
        notes.append(f"Suppression is written out in {ROUNDS} rounds; longer chains of suppressions differ.")
    return traced, tuple(notes)


_TRACED = (
    layers.CropToMatch,
    layers.PositiveDistances,
    layers.QualityScores,
    layers.DecodeBoxes,
    nms.NonMaxSuppression,
    transformer.DotProductAttention,
    transformer.Gelu,
    transformer.AddSinePositions,
    transformer.AddScaledPositions,
    transformer.ReportedScores,
    transformer.PlacesToMap,
    transformer.UsedPlaces,
    transformer.ProposedBoxes,
    transformer.BestPlaces,
    transformer.StopGradient,
    transformer.RefineBoxes,
    transformer.DeformableSampling,
    transformer.BoxesInPixels,
    transformer.BestPairs,
    # what only training needs hands its input on
    transformer.AuxiliaryDense,
    transformer.AuxiliaryEmbedding,
)
