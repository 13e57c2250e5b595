"""The network of a plan, and what decides whether two workers have the same."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact, engines
from resfit.errors import ArgumentError, closest
from resfit.features.extract import default_batch_size
from resfit.storage.atomic import atomic_open
from resfit.tasks import backbone, dispatch

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec
    from resfit.scale.folder import RunFolder

#: What can be done with a shard.
TASKS = ("embed", "predict", "evaluate", "check")
#: Kinds of fitted models that ``"evaluate"`` measures.
MEASURED = ("classification", "regression", "detection")


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A loaded network.

    Attributes:
        body: Gives one vector an image; ``None`` for predicting and for detectors, where ``fitted`` is asked.
        contract: How images become its input.
        fingerprint: Digest of layers, weights, input contract and calibration.
        fitted: The fitted model, where one is asked.
    """

    body: keras.Model | None
    contract: InputSpec
    fingerprint: str
    fitted: Any = None

    @property
    def batch_size(self) -> int:
        """Images in one pass where nothing else is asked for."""
        return default_batch_size(self.contract.size)


def check_task(task: str) -> None:
    """Makes sure that there is a task.

    Raises:
        ArgumentError: There is none of this name.
    """
    if task not in TASKS:
        raise ArgumentError(f"task must be one of {TASKS}. Received: {task!r}.{closest(task, TASKS)}")


def load(model: str, task: str) -> LoadedNetwork:
    """Loads a network as a task needs it.

    Args:
        model: Name, handle, file or folder.
        task: One of :data:`TASKS`.

    Raises:
        ArgumentError: The task needs another kind of model.
        ResfitError: It cannot be loaded.
    """
    check_task(task)
    if task == "predict":
        fitted = dispatch.load_or_pretrained(model)
        return LoadedNetwork(None, fitted.input_spec, _fingerprint(fitted.model, fitted.input_spec, fitted), fitted)
    if artifact.is_artifact(Path(model)):
        fitted = dispatch.load(model)
        if task == "evaluate" and fitted.task not in MEASURED:
            raise ArgumentError(
                f"task='evaluate' is of models for {', '.join(MEASURED)}. Received: one for {fitted.task}. Use "
                "task='predict', and measure its predictions."
            )
        if task == "evaluate" and fitted.task == "detection":
            return LoadedNetwork(None, fitted.input_spec, _fingerprint(fitted.model, fitted.input_spec, fitted), fitted)
        body = fitted.body()
        return LoadedNetwork(body, fitted.input_spec, _fingerprint(fitted.model, fitted.input_spec, fitted), fitted)
    if task == "evaluate":
        raise ArgumentError(f"task='evaluate' needs the folder of a fitted model. Received: model={model!r}.")
    body, _ = backbone.body_of(model)
    return LoadedNetwork(body, body.input_spec, _fingerprint(body, body.input_spec))


def engine_name(network: LoadedNetwork, engine: str) -> str:
    """Returns the engine that all workers use.

    Args:
        network: The network.
        engine: As :func:`resfit.engines.create` takes it.
    """
    engines.check_name(engine)
    engines.check_installed(engine)
    if engine != "auto" or network.body is None:
        return engine
    return engines.create(network.body, engine).name


def _fingerprint(model: keras.Model, contract: InputSpec, fitted: Any = None) -> str:
    calibration, residuals = getattr(fitted, "calibration", None), getattr(fitted, "residuals", None)
    facts = {
        "network": engines.fingerprint(model),
        "input": contract.to_dict(),
        "labels": None if fitted is None else list(fitted.labels),
        "residuals": residuals.to_dict() if residuals is not None else None,
        "thresholds": getattr(fitted, "thresholds", None),
        "calibration": None if calibration is None else [calibration.temperature, calibration.to_dict()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def place_of(folder: RunFolder, model: str, fingerprint: str) -> str:
    """Returns what :func:`load` takes for the network of a plan: its name, or a local copy of the plan's.

    Args:
        folder: Of the run.
        model: Of the plan.
        fingerprint: Of the plan.
    """
    if not model.startswith("model/"):
        return model
    place = _copies() / hashlib.sha256(f"{folder.url} {fingerprint}".encode()).hexdigest()[:24] / Path(model).name
    for inside, name in list(folder.files(model)) or [("", model)]:
        file = place / inside if inside else place
        if not file.is_file():
            with atomic_open(file) as copy:
                copy.write(folder.read(name))
    return str(place)


@functools.cache
def _copies() -> Path:
    folder = tempfile.mkdtemp(prefix="resfit-models-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
