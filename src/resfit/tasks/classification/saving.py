"""A classifier to its folder and back: which of its parts :mod:`resfit.artifact` keeps, and how they are restored."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, devices, engines
from resfit.data import class_names
from resfit.engines import stored
from resfit.errors import ArgumentError, ArtifactError, MissingDependencyError
from resfit.tasks.classification import schema
from resfit.tasks.classification.heads.stored import StoredHead, taken
from resfit.weights import keras_models

if TYPE_CHECKING:
    import keras

#: Called before a model is read by Keras: what the command line keeps TensorFlow's lines off the terminal with.
before_keras: list[Callable[[], None]] = []
# how closely a head in numpy must agree with Keras, in probabilities
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where a classifier was read from.

    Attributes:
        folder: Its folder.
        key: Of what is kept of it in the cache.
        load: Returns its model, with a check that it is still the one that was there.
        record: What is kept; ``None`` where that is nothing.
    """

    folder: Path
    key: str
    load: Callable[[], keras.Model]
    record: stored.Record | None = None


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
    expected = sums[artifact.MODEL]

    def load() -> keras.Model:
        if not artifact.is_model(folder, expected):
            raise ArtifactError(
                f"{folder / artifact.MODEL} must be the model that was there when the classifier was loaded. Received: "
                "another one, or none. Load the classifier again."
            )
        return _model(folder, found)

    # the description of the first format has no checksum, so that a key would not cover it
    described = sums.get(artifact.DESCRIPTION)
    key = "" if described is None else stored.key_of(expected, described)
    record = stored.find(key) if key else None
    return {
        "model": _model(folder, found) if record is None else None,
        "classes": found.classes,
        "input_spec": found.input_spec,
        "recipe": found.recipe,
        "metrics": found.metrics,
        "fingerprint": found.fingerprint,
        "versions": found.versions,
        "attachments": attachments,
        "calibration": found.calibration,
        "origin": Origin(folder, key, load, record) if key else None,
    }


def _model(folder: Path, found: Any) -> keras.Model:
    """Reads the model of a folder whose description has been read."""
    for call in before_keras:
        call()
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


def origin_of(folder: Path) -> Origin | None:
    """Returns where a classifier that has just been written stands; ``None`` where that cannot be told.

    Args:
        folder: Its folder.
    """
    try:
        _, _, sums = artifact.read_with_sums(folder)
        key = stored.key_of(sums[artifact.MODEL], sums[artifact.DESCRIPTION])
    except (ArtifactError, KeyError):
        return None
    return Origin(folder, key, lambda: read(folder)["model"])


def keep(classifier: Any, origin: Origin, images: np.ndarray) -> None:
    """Keeps a classifier's network in OpenVINO's form, so that later programs run it without Keras.

    It is kept only where network and head agree with Keras on these images. Nothing of the images is kept.

    Args:
        classifier: A :class:`resfit.Classifier` whose model is there.
        origin: Where it stands.
        images: Some images as its network takes them, ``(n, height, width, channels)``; four are enough.
    """
    with contextlib.suppress(OSError, ArgumentError, MissingDependencyError, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user did not ask for this engine
        body = classifier.body()
        with engines.unchanged(body):
            network = engines.entry_of(body, "openvino")
            running = engines.create(body, "openvino")
            rows = running.run(images)
            fine = running.name == "openvino" and (network.facts().get("agreement") or 0.0) >= engines.AGREEMENT
            found = taken(classifier.head_model()) if fine and _is_finite(classifier.model) else None
            if found is not None:
                head = StoredHead(*found, *_activation(classifier))
                exact = classifier.head().probabilities(rows)
                if not np.abs(head.probabilities(rows) - exact).max() <= _TOLERANCE:
                    found = None
            steps, arrays = found or (None, {})
            fingerprint = engines.fingerprint(body)
        stored.keep(origin.key, body, network if found else None, fingerprint, steps, arrays)


def can_keep(origin: Origin) -> bool:
    """Says whether a classifier's network could be kept, and it has not been tried in vain.

    Args:
        origin: Where it stands.
    """
    return devices.current().kind == "cpu" and stored.can_be_kept() and not stored.is_settled(origin.key)


def head_of(classifier: Any, record: stored.Record) -> StoredHead:
    """Returns the head that is kept of a classifier.

    Args:
        classifier: A :class:`resfit.Classifier`.
        record: What is kept of it.
    """
    return StoredHead(record.head, record.arrays, *_activation(classifier))


def _activation(classifier: Any) -> tuple[str, float]:
    return "sigmoid" if classifier.recipe.multilabel else "softmax", classifier.temperature


def _is_finite(model: keras.Model) -> bool:
    return all(np.isfinite(np.asarray(variable, np.float32)).all() for variable in model.variables)
