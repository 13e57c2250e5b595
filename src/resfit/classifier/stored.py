"""A classifier to its folder and back: which of its parts :mod:`resfit.artifact` keeps, and how they are restored."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact
from resfit.classifier.outcome import Recipe
from resfit.errors import ArtifactError
from resfit.evaluation.calibrated import Calibration
from resfit.preprocessing import InputSpec

if TYPE_CHECKING:
    pass


def write(folder: Path, classifier: Any, attachments: dict[str, bytes]) -> None:
    """Writes the parts of a classifier, whole or not at all.

    Args:
        folder: A new or empty folder, or an earlier classifier, which is replaced.
        classifier: A :class:`resfit.Classifier`.
        attachments: Its further files.

    Raises:
        ArgumentError: Something else stands there.
        OSError: It cannot be written.
    """
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
    artifact.write(folder, classifier.model.save, description, attachments)


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
        return kind.load(folder)


def read(folder: Path) -> dict[str, Any]:
    """Returns the parts of a classifier, as its constructor takes them.

    Args:
        folder: A folder that :func:`write` wrote.

    Raises:
        ArtifactError: It is missing, incomplete, damaged or of another format.
    """
    description, attachments = artifact.read(folder)
    import keras

    from resfit.architecture import layers, network
    from resfit.architecture.spec import ArchitectureSpec
    from resfit.transfer import head_layers

    del layers, head_layers  # imported so that the layers of its own are registered
    try:
        model = keras.saving.load_model(folder / artifact.MODEL, compile=False, safe_mode=True)
        contract = InputSpec.from_dict(description["input"])
        if description["architecture"] is not None:
            network.attach(model, ArchitectureSpec.from_dict(description["architecture"]), contract)
        classes = tuple(str(name) for name in description["classes"])
        if model.output_shape[-1] != len(classes):
            raise ArtifactError(f"the model has {model.output_shape[-1]} outputs for {len(classes)} classes.")
        return {
            "model": model,
            "classes": classes,
            "input_spec": contract,
            "recipe": Recipe(**description["recipe"]),
            "metrics": description["metrics"],
            "fingerprint": description["data"],
            "versions": description["versions"],
            "attachments": attachments,
            # classifiers of before have neither
            "calibration": Calibration.from_dict(description.get("temperature", 1.0), description.get("calibration")),
        }
    except Exception as error:
        text = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(f"the classifier {str(folder)!r} cannot be read: {text}. Fit it again.") from error
