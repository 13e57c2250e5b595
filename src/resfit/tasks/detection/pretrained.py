"""The parts of a detector from a published one, or from any Keras model of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import zoo
from resfit.errors import ArgumentError, CheckpointError, ResfitError
from resfit.networks.detection import catalog, kinds
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.preprocessing import InputSpec
from resfit.tasks.detection.results import DetectorRecipe
from resfit.weights import detectors, locate
from resfit.weights.conventions.base import find_convention
from resfit.weights.detectors import DetectorSource
from resfit.weights.formats import base as formats

if TYPE_CHECKING:
    import keras

#: Score from which boxes are shown where no validation chose one.
THRESHOLD = 0.5


def load(source: str | os.PathLike[str], *, threshold: float = THRESHOLD, **reading: Any) -> dict[str, Any]:
    """Loads a published detector, as the arguments of :class:`resfit.tasks.detection.Detector`.

    Outputs that stand for no class (COCO's gaps, the background) are left out; they change nothing but the numbers of
    the classes.

    Args:
        source: A name of the catalog of detectors, a handle or a file, as :func:`resfit.load` takes it.
        threshold: Score from which boxes are shown, 0..1. It was not chosen on images; ``predict(threshold=)`` and
            ``--threshold`` change it.
        **reading: ``weights``, and for a file or handle what :func:`resfit.load` takes beside it.

    Returns:
        The arguments. Classes are called as their publisher calls them; by their numbers where that is not known.

    Raises:
        UnknownNameError: No table has this name.
        CheckpointError: It is no detector, or cannot be read.
    """
    weights = reading.pop("weights", "default")
    found = zoo.read_any(source, weights, reading)
    if not isinstance(found, DetectorSource):
        raise CheckpointError(
            f"the network must be a detector. Received: {os.fspath(source)!r}, a classifier ({found.name}). "
            "`resfit models --task detection` lists detectors; resfit.Classifier predicts with classifiers."
        )
    model = detectors.load(with_meaning(found))
    return of_model(model, name=os.fspath(source), threshold=threshold)


def recognises(source: str | os.PathLike[str]) -> bool:
    """Whether a name, a handle or a file is that of a detector. Of a file the names of its tensors are read.

    Args:
        source: As :func:`resfit.load` takes it.
    """
    if str(source) in catalog.rows():
        return True
    path = locate.as_path(source)
    kind = None if path is None or not path.exists() else formats.find_format(path)
    if path is None or kind is None or path.suffix == ".keras":
        return False
    try:
        convention = find_convention(kind.read(path))
    except ResfitError:
        return False  # whoever reads it next says what is wrong with it
    return convention is not None and convention.is_larger


def source_of(model: str | os.PathLike[str] | keras.Model) -> DetectorSource | None:
    """Reads the detector that a fit begins with; ``None`` where the network is none.

    Args:
        model: A name, a handle or a file, as :func:`resfit.load` takes it, or a model of its.

    Raises:
        CheckpointError: It cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        found = zoo.read_any(model) if "://" in str(model) or recognises(model) else None
        return with_meaning(found) if isinstance(found, DetectorSource) else None
    spec = getattr(model, "architecture", None)
    if not isinstance(spec, AnyDetectorSpec):
        return None
    from resfit.weights import canonical

    parts = of_model(model)
    arrays = canonical.arrays(model)
    return DetectorSource(None, model.name, spec, arrays, parts["input_spec"], parts["classes"], "resfit", ())


def spec_of(model: str | os.PathLike[str] | keras.Model) -> AnyDetectorSpec | None:
    """Returns what detector a fit begins with, without weights where a name says it; ``None`` where it is none.

    Args:
        model: As :func:`source_of` takes it.
    """
    if isinstance(model, str | os.PathLike) and str(model) in catalog.rows():
        return catalog.get(str(model)).spec
    found = source_of(model)
    return None if found is None else found.spec


def with_classes(source: DetectorSource, classes: Sequence[str], channels: int | None, seed: int) -> keras.Model:
    """Returns a detector for other classes: its class layer is fresh, unless it finds these very classes already.

    Args:
        source: What was read.
        classes: The names of the classes.
        channels: Of the images, 1 or 3; ``None`` is what it was trained on.
        seed: Of the fresh weights.
    """
    import keras

    keras.utils.set_random_seed(seed)
    own = tuple(classes) == tuple(source.class_names or ())
    if not own:
        source = dataclasses.replace(source, spec=kinds.with_classes(source.spec, source.spec.classes))
    return detectors.load(source, classes=len(classes), in_channels=channels, fresh_classes=not own)


def of_model(model: keras.Model, *, name: str = "", threshold: float = THRESHOLD) -> dict[str, Any]:
    """Returns a Keras model of a detector as the arguments of :class:`resfit.tasks.detection.Detector`.

    Args:
        model: What :func:`resfit.load` or :func:`resfit.networks.detection.build.build` returned, with
            ``outputs="boxes"``.
        name: What it is called. Default: the model's name.
        threshold: Score from which boxes are shown, 0..1.

    Raises:
        ArgumentError: It is no such model.
    """
    spec, contract = getattr(model, "architecture", None), getattr(model, "input_spec", None)
    outputs = getattr(model, "output", None)
    if not isinstance(spec, AnyDetectorSpec) or not isinstance(outputs, dict) or set(outputs) != {"boxes", "scores"}:
        raise ArgumentError(
            "the model must be a detector with the outputs 'boxes' and 'scores'. Received: "
            f"{type(spec).__name__} with outputs {sorted(outputs) if isinstance(outputs, dict) else outputs}."
        )
    if not isinstance(contract, InputSpec) or not any(layer.name == "normalization" for layer in model.layers):
        raise ArgumentError(
            "the detector must take RGB images 0..255 and have an input contract. Received: one that was loaded with "
            "preprocess=False, or without input_spec. Load it with resfit.load."
        )
    if contract.resize_mode not in ("fit", "letterbox", "squash"):
        contract = dataclasses.replace(contract, resize_mode="letterbox", crop_fraction=1.0)
    classes = detectors.class_names(model)
    return {
        "model": model,
        "classes": classes,
        "input_spec": contract,
        "spec": spec,
        "recipe": DetectorRecipe(model=name or model.name, trained="published", views=0),
        "thresholds": dict.fromkeys(classes, threshold),
    }


def with_meaning(source: DetectorSource) -> DetectorSource:
    """Returns a detector without the outputs that stand for no class.

    Args:
        source: What was read. Weights of Keras' own files cannot be cut before the network is built, and stay whole.
    """
    names = source.class_names
    if not names or source.is_keras_file or all(map(detectors.has_meaning, names)):
        return source
    kept = [number for number, name in enumerate(names) if detectors.has_meaning(name)]
    told = tuple(names[number] for number in kept)
    if isinstance(source.spec, DETRSpec | FasterRCNNSpec):  # the softmax is over all of them
        hidden = {one for number, one in enumerate(source.spec.reported) if number not in kept}
        left = tuple(sorted({*source.spec.unreported, *hidden}))
        spec = source.spec.replace(classes=len(kept), unreported=left)
        return dataclasses.replace(source, spec=spec, class_names=told)
    if not isinstance(source.spec, DetectorSpec):
        return source
    arrays = dict(source.arrays)
    for part in ("kernel", "bias"):
        array = np.asarray(arrays[f"class_logits_conv/{part}"])
        each = array.reshape(*array.shape[:-1], source.spec.anchors_per_cell, len(names))
        arrays[f"class_logits_conv/{part}"] = each[..., kept].reshape(*array.shape[:-1], -1)
    return dataclasses.replace(
        source,
        spec=source.spec.replace(classes=len(kept)),
        arrays=arrays,
        class_names=told,
    )
