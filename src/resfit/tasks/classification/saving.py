"""A classifier to its folder and back: which of its parts :mod:`resfit.artifact` keeps, and how they are restored."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact
from resfit.data import class_names
from resfit.engines import stored
from resfit.errors import ArgumentError, ArtifactError
from resfit.tasks import stored_network
from resfit.tasks.classification import schema
from resfit.tasks.classification.heads.stored import StoredHead, taken
from resfit.weights import keras_models

if TYPE_CHECKING:
    import keras

# how closely a head in numpy must agree with Keras, in probabilities
_TOLERANCE = 1e-5


def write(folder: Path, classifier: Any, attachments: dict[str, bytes], *, force: bool = False) -> None:
    """Writes the parts of a classifier, whole or not at all.

    Args:
        folder: A new or empty folder, or an earlier classifier, which is replaced.
        classifier: A :class:`resfit.Classifier`.
        attachments: Its further files.
        force: As :func:`resfit.artifact.check_target` takes it.

    Raises:
        ArgumentError: Something else stands there, or names of classes are none.
        OSError: It cannot be written.
    """
    class_names.check(classifier.classes, alike=False, error=ArgumentError)
    architecture = getattr(classifier.model, "architecture", None)
    description = {
        "classes": list(classifier.classes),
        "input": classifier.input_spec.to_dict(),
        "architecture": None if architecture is None else architecture.to_dict(),
        "recipe": dataclasses.asdict(classifier.recipe),
        "temperature": classifier.calibration.temperature,
        "calibration": classifier.calibration.to_dict(),
        "metrics": classifier.metrics,
        "data": classifier.fingerprint,
        "versions": classifier.versions,
    }
    artifact.write(folder, classifier.model.save, description, attachments, force=force)


def packed(classifier: Any) -> dict[str, bytes]:
    """Returns the files of a classifier's folder by their names in it.

    Args:
        classifier: A :class:`resfit.Classifier`.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "classifier.resfit"
        classifier.save(folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(kind: Any, files: dict[str, bytes]) -> Any:
    """Returns the classifier that :func:`packed` took apart.

    Args:
        kind: Its class.
        files: Its files.

    Raises:
        ArtifactError: They cannot be read.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "classifier.resfit"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        fitted = kind.load(folder)
        _ = fitted.model  # while the folder is there
        return fitted


def read(folder: Path) -> dict[str, Any]:
    """Returns the parts of a classifier, as its constructor takes them.

    Args:
        folder: A folder that :func:`write` wrote.

    Raises:
        ArtifactError: It is missing, incomplete, damaged or of another format.
    """
    description, attachments, sums = artifact.read_with_sums(folder)
    try:
        found = schema.read(description, strict=description["format"] != 1)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / artifact.DESCRIPTION} cannot be read: {error} Fit it again.") from error
    origin = stored_network.origin(folder, artifact.CLASSIFIER, sums, lambda: _model(folder, found))
    kept = origin is not None and origin.record is not None
    return {
        "model": None if kept else _model(folder, found),
        "classes": found.classes,
        "input_spec": found.input_spec,
        "recipe": found.recipe,
        "metrics": found.metrics,
        "fingerprint": found.fingerprint,
        "versions": found.versions,
        "attachments": attachments,
        "calibration": found.calibration,
        "origin": origin,
    }


def _model(folder: Path, found: Any) -> keras.Model:
    """Reads the model of a folder whose description has been read."""
    stored_network.prepare_keras()
    from resfit.networks import build, layers
    from resfit.tasks.classification.heads import layers as head_layers

    del layers, head_layers  # imported so that the layers of its own are registered
    path = folder / artifact.MODEL
    try:
        model = keras_models.load(path)
        if found.architecture is not None:
            build.attach(model, found.architecture, found.input_spec)
        outputs = tuple(getattr(model, "output_shape", ()) or ())
        if len(outputs) != 2 or outputs[-1] != len(found.classes):
            raise ArtifactError(f"the model must have an output for each of {len(found.classes)} classes: {outputs}.")
        if found.recipe.features and found.recipe.features not in {layer.name for layer in model.layers}:
            raise ArtifactError(f"the model must have a layer {found.recipe.features!r:.100}. Received: none.")
    except Exception as error:
        raise ArtifactError(f"the classifier {str(folder)!r} cannot be read: {error} Fit it again.") from error
    return model


def head_to_keep(classifier: Any, rows: np.ndarray) -> stored_network.Head | None:
    """Returns the head of a classifier as it is kept; ``None`` where numpy does not compute what Keras does.

    Args:
        classifier: A :class:`resfit.Classifier` whose model is there.
        rows: Some features, ``(n, features)``.
    """
    found = taken(classifier.head_model())
    if found is None:
        return None
    head = StoredHead(*found, *_activation(classifier))
    exact = classifier.head().probabilities(rows)
    return found if np.abs(head.probabilities(rows) - exact).max() <= _TOLERANCE else None


def head_of(classifier: Any, record: stored.Record) -> StoredHead:
    """Returns the head that is kept of a classifier.

    Args:
        classifier: A :class:`resfit.Classifier`.
        record: What is kept of it.
    """
    return StoredHead(record.head, record.arrays, *_activation(classifier))


def _activation(classifier: Any) -> tuple[str, float]:
    return "sigmoid" if classifier.recipe.multilabel else "softmax", classifier.temperature
