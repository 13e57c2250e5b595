"""A detector to its folder and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact
from resfit.data import class_names
from resfit.errors import ArgumentError, ArtifactError
from resfit.tasks import stored_network
from resfit.tasks.detection import schema
from resfit.weights import keras_models

if TYPE_CHECKING:
    import keras

#: What detectors are saved as.
DETECTOR = artifact.ArtifactKind("detector")


def write(folder: Path, detector: Any, attachments: dict[str, bytes], *, force: bool = False) -> None:
    """Writes the parts of a detector, whole or not at all.

    Args:
        folder: A new or empty folder, or an earlier fitted model, which is replaced.
        detector: A :class:`resfit.Detector`.
        attachments: Its further files.
        force: As :func:`resfit.artifact.check_target` takes it.

    Raises:
        ArgumentError: Something else stands there, or names of classes are none.
        OSError: It cannot be written.
    """
    class_names.check(detector.classes, alike=False, error=ArgumentError)
    recipe = dataclasses.asdict(detector.recipe)
    description = {
        "classes": list(detector.classes),
        "input": detector.input_spec.to_dict(),
        "detector": detector.spec.to_dict(),
        "recipe": {**recipe, "epochs": list(recipe["epochs"]), "tiles": list(recipe["tiles"])},
        "thresholds": detector.thresholds,
        "metrics": detector.metrics,
        "data": detector.fingerprint,
        "versions": detector.versions,
    }
    artifact.write(folder, detector.model.save, description, attachments, kind=DETECTOR, force=force)


def read(folder: Path) -> dict[str, Any]:
    """Reads the parts of a detector, as its constructor takes them.

    Args:
        folder: A folder that :func:`write` wrote.

    Raises:
        ArtifactError: It is missing, incomplete, damaged, of another kind or format.
    """
    description, attachments, sums = artifact.read_with_sums(folder, DETECTOR)
    try:
        found = schema.read(description)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / DETECTOR.description} cannot be read: {error} Fit it again.") from error
    origin = stored_network.origin(folder, DETECTOR, sums, lambda: _model(folder, found))
    kept = origin is not None and origin.record is not None
    model = None if kept else _model(folder, found)
    return {"model": model, **found, "attachments": attachments, "origin": origin}


def _model(folder: Path, found: dict[str, Any]) -> keras.Model:
    """Reads the model of a folder whose description has been read."""
    stored_network.prepare_keras()
    from resfit.networks.detection import build

    del build  # imported so that the layers of all detectors are registered
    try:
        model = keras_models.load(folder / artifact.MODEL)
        outputs = getattr(model, "output", None)
        if not isinstance(outputs, dict) or set(outputs) != {"boxes", "scores"}:
            raise ArtifactError("the model must have the outputs 'boxes' and 'scores'.")
        shapes = outputs["boxes"].shape[-1], outputs["scores"].shape[-1], model.inputs[0].shape[-1]
        wanted = 4, len(found["classes"]), found["input_spec"].channels
        if shapes != wanted:
            raise ArtifactError(f"the model must have 4 edges, classes and channels of {wanted}. Received: {shapes}.")
    except Exception as error:
        raise ArtifactError(f"the detector {str(folder)!r} cannot be read: {error} Fit it again.") from error
    model.architecture, model.input_spec = found["spec"], found["input_spec"]
    return model
