"""How fast this machine runs a network: real batches on the device that will be used, timed once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import processors
from resfit.engines.cards import KerasCardsEngine
from resfit.engines.keras import KerasEngine
from resfit.engines.stored import StoredNetwork
from resfit.storage.atomic import write_json
from resfit.storage.locks import folder_of, report_unusable

if TYPE_CHECKING:
    import keras

    from resfit.engines.base import Engine
    from resfit.engines.resolved import Resolved

#: Folder in the cache.
FOLDER = "speed"
#: Batches that are timed.
BATCHES = 3
#: Times that a network compiled by XLA must be as fast, to be worth the minute that compiling takes.
WORTH_COMPILING = 1.05

_FORMAT = 1
# what was measured in this process, where nothing is kept on disk
_known: dict[str, dict[str, Any]] = {}


@dataclasses.dataclass(frozen=True)
class ForwardSpeed:
    """How fast a network runs.

    Attributes:
        seconds: Of an image, while batches follow one another.
        batch: Images in a batch.
        compiled: Whether that is with XLA, which is then the faster way.
    """

    seconds: float
    batch: int
    compiled: bool


def forward(model: keras.Model, resolved: Resolved, cache: bool | str | Path = True) -> ForwardSpeed:
    """Returns how fast Keras runs a network on a device, measured once for each machine, network and precision.

    Args:
        model: The network, with a fixed input size or an ``input_spec``.
        resolved: Device and precision.
        cache: Where it is kept: ``True`` for resfit's own cache, ``False`` for nowhere, or a folder.
    """
    size = input_size(model)

    def measure() -> dict[str, Any]:
        device, precision = resolved.device, resolved.precision
        kind = KerasCardsEngine if device.cards else KerasEngine
        batch = device.batch_size(size)
        images = np.random.default_rng(0).integers(0, 256, (batch, *size, model.inputs[0].shape[-1]), np.uint8)
        plain = _seconds(kind(model, precision, device), images)
        compiled = math.inf
        if device.kind == "gpu":
            try:
                compiled = _seconds(kind(model, precision, device, compiled=True), images)
            except Exception:  # XLA cannot compile every layer
                compiled = math.inf
        best = compiled * WORTH_COMPILING < plain
        return {"seconds": compiled if best else plain, "batch": batch, "compiled": best}

    found = kept("forward", model, {**resolved.to_dict(), "size": list(size)}, measure, cache)
    return ForwardSpeed(float(found["seconds"]), int(found["batch"]), bool(found["compiled"]))


def kept(
    what: str,
    model: keras.Model | StoredNetwork,
    about: Mapping[str, Any],
    measure: Callable[[], dict[str, Any]],
    cache: bool | str | Path = True,
) -> dict[str, Any]:
    """Returns a measurement that was made before on this machine, or makes and keeps it.

    Args:
        what: Was measured.
        model: The network; its weights play no part where its architecture is known. One that is kept in OpenVINO's
            form is known by all of it.
        about: What else decides, JSON-ready.
        measure: Returns figures, JSON-ready, with ``"seconds"`` among them.
        cache: As :func:`forward` takes it.
    """
    root = folder_of(cache)
    digest, described = _described(what, model, about)
    if digest in _known:
        return _known[digest]
    found = _read(None if root is None else root / FOLDER / f"{digest}.json")
    if found is None:
        found = measure()
        _write(root, digest, {**found, "name": model.name, **described})
    _known[digest] = found
    return found


def keep(
    what: str,
    model: keras.Model | StoredNetwork,
    about: Mapping[str, Any],
    found: dict[str, Any],
    cache: bool | str | Path = True,
) -> None:
    """Keeps a measurement in place of an earlier one.

    Args:
        what: As :func:`kept` takes it.
        model: As :func:`kept` takes it.
        about: As :func:`kept` takes it.
        found: Figures, JSON-ready, with ``"seconds"`` among them.
        cache: As :func:`forward` takes it.
    """
    digest, described = _described(what, model, about)
    _write(folder_of(cache), digest, {**found, "name": model.name, **described})
    _known[digest] = found


def fastest_batch(engine: Engine, images: np.ndarray) -> float:
    """Returns the seconds of the fastest of a few batches, after one that makes the engine ready.

    Args:
        engine: The engine.
        images: One batch.
    """
    engine.run(images)
    times = []
    for _ in range(BATCHES):
        begin = time.perf_counter()
        engine.run(images)
        times.append(time.perf_counter() - begin)
    return min(times)


def _described(what: str, model: keras.Model | StoredNetwork, about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a measurement, and what it is of."""
    described = {
        "format": _FORMAT,
        "what": what,
        **(_stored(model) if isinstance(model, StoredNetwork) else _of_keras(model)),
        "cores": processors.available(),
        **about,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:32], described


def _of_keras(model: keras.Model) -> dict[str, Any]:
    import tensorflow as tf

    spec = getattr(model, "architecture", None)
    return {
        "network": _structure(model) if spec is None else repr(spec),
        "output": model.layers[-1].name,
        "tensorflow": tf.__version__,
    }


def _stored(model: StoredNetwork) -> dict[str, Any]:
    return {"network": model.fingerprint, "output": model.output_name}


def _write(root: Path | None, digest: str, facts: dict[str, Any]) -> None:
    if root is None:
        return
    path = root / FOLDER / f"{digest}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, facts)
    except OSError as error:
        report_unusable(root, error)


def input_size(model: keras.Model) -> tuple[int, int]:
    """Returns height and width in pixels of what a network gets.

    Args:
        model: The network, with a fixed input size or an ``input_spec``.
    """
    height, width = model.inputs[0].shape[1:3]
    if height and width:
        return int(height), int(width)
    size: tuple[int, int] = getattr(model, "input_spec").size  # noqa: B009
    return size


def _seconds(engine: KerasEngine | KerasCardsEngine, images: np.ndarray) -> float:
    cards = len(engine.device.each)
    for _ in engine.stream((None, images) for _ in range(cards)):  # what it takes to begin is no part of it
        pass
    begin = time.perf_counter()
    for _ in engine.stream((None, images) for _ in range(BATCHES * cards)):
        pass
    return (time.perf_counter() - begin) / (BATCHES * cards * len(images))


def _structure(model: keras.Model) -> str:
    layers = [(type(layer).__name__, [list(weight.shape) for weight in layer.weights]) for layer in model.layers]
    return json.dumps(layers)


def _read(path: Path | None) -> dict[str, Any] | None:
    """Returns what is kept; ``None`` where nothing is, or it is damaged and measured again."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        return found if 0 < float(found["seconds"]) < math.inf else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
