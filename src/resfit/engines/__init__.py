"""How a forward pass is run: one file a runtime, all with the same call.

An engine takes a batch of RGB images with values 0..255 and returns what the network gives for each. :func:`create`
picks one, converts the network for it, and keeps the converted network on disk.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from resfit import devices
from resfit.devices import Device
from resfit.engines import compiled, speed
from resfit.engines import litert as _litert  # noqa: F401  # these three register themselves
from resfit.engines import onnxruntime as _onnxruntime  # noqa: F401
from resfit.engines import openvino as _openvino  # noqa: F401
from resfit.engines.base import RUNTIMES, Engine, Runtime, register_engine
from resfit.engines.prefix import cut
from resfit.engines.resolved import (
    PRECISIONS,
    Resolved,
    check_installed,
    check_name,
    check_precision,
    has_precision,
    is_installed,
    resolve,
)
from resfit.engines.stored import StoredNetwork
from resfit.errors import ArgumentError, MissingDependencyError, ResfitWarning
from resfit.storage.locks import cache_root, is_writable, report_unusable, scratch

if TYPE_CHECKING:
    import keras

__all__ = [
    "AGREEMENT",
    "BFLOAT16_AGREEMENT",
    "NAMES",
    "PRECISIONS",
    "Engine",
    "Resolved",
    "StoredNetwork",
    "agreement",
    "as_keras",
    "batch_sizes",
    "check_installed",
    "check_name",
    "check_precision",
    "create",
    "cut",
    "fingerprint",
    "for_server",
    "has_precision",
    "is_installed",
    "is_quantized",
    "macs_per_image",
    "register_engine",
    "resolve",
    "stream",
]

#: What ``engine=`` accepts, beside engines that other programs register.
NAMES = ("auto", "keras", *RUNTIMES)
#: Multiply-accumulates from which OpenVINO's start (about a second) pays for itself.
WORTH_CONVERTING = 5e10
# images of a batch that rivals for a server are measured on
_SERVED = 8
#: Images from which on a GPU it is measured once whether XLA is faster.
_LONG = 2000

#: Smallest cosine between a row of an engine and Keras' own on a processor, in float32 and in half as many bits.
AGREEMENT = 0.9999
BFLOAT16_AGREEMENT = 0.999
_CHECKED_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class _Agreement:
    """How closely an engine must agree with Keras, and where that is noted."""

    fact: str
    least: float
    form: str

    def warn(self, name: str, found: float) -> None:
        warnings.warn(
            f"{name} must agree with Keras on this network{self.form} (cosine at least {self.least}). "
            f"Received: {found:.6f}. Going on with Keras in float32.",
            ResfitWarning,
            stacklevel=4,
        )


_AGREEMENTS = {
    "float32": _Agreement("agreement", AGREEMENT, ""),
    **{
        name: _Agreement(f"agreement_{name}", BFLOAT16_AGREEMENT, f" in {name}")
        for name in ("tf32", "bfloat16", "float16")
    },
}

_Tag = TypeVar("_Tag")
# fingerprints of models that are not being changed, by identity
_unchanged: contextvars.ContextVar[dict[int, str]] = contextvars.ContextVar("unchanged", default={})  # noqa: B039
#: Images to calibrate int8 on, or what decodes them when they are needed.
Samples = np.ndarray | Callable[[], np.ndarray]


def create(
    model: keras.Model | StoredNetwork,
    engine: str | Engine | Resolved = "auto",
    *,
    images: int | None = None,
    threads: int | None = None,
    until: str | None = None,
    precision: str = "float32",
    samples: Samples | None = None,
    calibration: str | None = None,
    cache: Path | None = None,
) -> Engine:
    """Makes a Keras model, or the first part of one, ready to run.

    What is not Keras in float32 on the processor is compared with it on real images, the ``samples`` or the first batch
    it runs. Of a converted network the result is kept beside it. Where an engine disagrees, resfit falls back to Keras
    in float32 with a warning.

    An int8 network is compared with its float32 form on samples that it was not calibrated on, and given up for
    that, with a warning, below a cosine of 0.99.

    Args:
        model: A network with one input ``(batch, height, width, channels)`` and one output; or one that is kept in
            OpenVINO's form, which runs so where that is what was asked for, and as Keras' otherwise.
        engine: ``"keras"``, ``"openvino"``, ``"onnxruntime"``, ``"litert"``, or ``"auto"``: Keras on a GPU; on a
            processor OpenVINO if it is installed and the work is long enough to repay its start, otherwise Keras. An
            engine is passed through. What :func:`resolve` has decided is taken, and ``precision`` is not read.
        images: Number of images that are coming, for ``"auto"``; ``None`` is many.
        threads: Number of threads; ``None`` is the runtime's own choice. Keras takes none.
        until: Where to stop, as :func:`resfit.engines.prefix.cut` takes it: a stage, ``"features"`` or a layer.
        precision: ``"float32"``; ``"bfloat16"``, which OpenVINO has, some four times as fast where the processor has
            matrix units for it, and Keras; ``"float16"`` and ``"tf32"`` on cards that have them; or ``"int8"``, which
            all but Keras have. An engine that is named and does not have it is refused; ``"auto"`` takes what has it,
            or goes on in float32 with a warning.
        samples: For int8, images of the kind that are coming, of the size that the network gets; 48 are enough. Or a
            function that returns them, called if they are needed.
        calibration: A name for the samples; an int8 network that was calibrated under it is used again, without
            samples. Default: their digest.
        cache: Folder for converted networks, in its ``engines``; ``None`` is resfit's own cache.

    Raises:
        ArgumentError: ``engine`` or ``precision`` is unknown, the engine does not have the precision, the runtime
            cannot convert the network, the model has more than one input or output, there is no such layer, or int8 is
            asked for without samples.
        MissingDependencyError: The runtime, or NNCF for int8, is not installed.

    Example:
        >>> body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
        >>> create(body).run(np.zeros((2, 64, 64, 3), "uint8")).shape
        (2, 320)
        >>> create(body, "openvino", until="stage3").run(np.zeros((2, 64, 64, 3), "uint8")).shape
        (2, 8, 8, 80)
    """
    check_precision(precision)
    check_name("auto" if isinstance(engine, Resolved) else engine)
    if not isinstance(engine, str | Resolved):
        return engine
    check_installed(engine if isinstance(engine, str) else engine.engine)
    if isinstance(model, StoredNetwork):
        if until is None and cache is None and (ready := _stored(model, engine, precision, threads)) is not None:
            return ready
        model = model.keras()
    model = cut(model, until)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ArgumentError(
            "an engine runs models with one input and one output. "
            f"Received: {len(model.inputs)} inputs and {len(model.outputs)} outputs."
        )
    from resfit.engines.keras import KerasEngine

    resolved = engine
    if isinstance(resolved, str):
        resolved = resolve(resolved, precision)
        if resolved.note:
            warnings.warn(resolved.note, ResfitWarning, stacklevel=2)
    precision, name = resolved.precision, resolved.engine
    if name == "auto":
        name = "openvino" if _openvino_pays(model, images) else "keras"
    plain = KerasEngine(model, device=resolved.device)
    if name == "keras":
        if resolved.key == "float32":
            return plain
        long = images is not None and images >= _LONG and resolved.device.kind == "gpu"
        return _on_card(model, resolved, compiled=long and speed.forward(model, resolved, cache or True).compiled)
    if precision == "int8" and samples is None and calibration is None:
        raise ArgumentError('precision="int8" is calibrated on images. Pass samples=, an array of some 48 of them.')
    folder = cache or cache_root()
    try:
        if is_writable(folder):
            try:
                return _Maker(model, name, threads, cache).made(plain, precision, samples, calibration)
            except OSError as error:
                report_unusable(folder, error)
        with scratch() as temporary:  # it lives in memory alone
            return _Maker(model, name, threads, temporary).made(plain, precision, samples, calibration)
    except (ArgumentError, MissingDependencyError):
        raise
    except Exception as error:
        if not resolved.chosen:
            raise ArgumentError(f"{name} cannot convert this network ({error}). Use engine='keras'.") from error
        return plain


def _stored(network: StoredNetwork, engine: str | Resolved, precision: str, threads: int | None) -> Engine | None:
    """Returns the engine of a network that is kept converted, where that is asked for and it can be read."""
    resolved = resolve(engine, precision) if isinstance(engine, str) else engine
    rules = {name: (rule.fact, rule.least) for name, rule in _AGREEMENTS.items()}
    if resolved.note or not network.runs(resolved, rules):
        return None
    try:
        return network.engine(resolved.precision, threads=threads)
    except (RuntimeError, OSError):  # damaged or pruned meanwhile
        return None


def for_server(model: keras.Model | StoredNetwork, engine: str = "auto") -> Engine:
    """Makes a model ready to answer whenever it is asked.

    Args:
        model: As :func:`create` takes it.
        engine: As :func:`create` takes it; with ``"auto"`` on a machine with a GPU it is measured whether Keras there
            or OpenVINO on the processor answers sooner. Of several cards the first answers.

    Raises:
        ArgumentError: As :func:`create`.
    """
    resolved = resolve(engine, device=devices.current().each[0])
    if engine != "auto" or resolved.device.kind == "cpu" or not is_installed("openvino"):
        return create(model, resolved if isinstance(engine, str) else engine)
    model = as_keras(model)
    rivals = [create(model, resolved)]
    with contextlib.suppress(ArgumentError):  # OpenVINO cannot convert every network
        rivals.append(create(model, "openvino"))
    images = np.zeros((_SERVED, *speed.input_size(model), model.inputs[0].shape[-1]), np.uint8)
    times = [speed.fastest_batch(rival, images) for rival in rivals]
    return rivals[times.index(min(times))]


def batch_sizes(engine: Engine, largest: int) -> list[int]:
    """Returns the sizes of batches that an engine makes itself ready for apart, to be run once before a client waits.

    Args:
        engine: The engine.
        largest: The largest batch.
    """
    device = getattr(engine, "device", None)
    if device is None or device.kind == "cpu":
        return sorted({1, min(2, largest), largest})
    return sorted({*(1 << power for power in range(largest.bit_length()) if 1 << power <= largest), largest})


def stream(engine: Engine, batches: Iterable[tuple[_Tag, np.ndarray]]) -> Iterator[tuple[_Tag, np.ndarray]]:
    """Runs batches as they come; while one is fetched and the last one is used, an engine that can goes on working.

    Args:
        engine: The engine.
        batches: Pairs of anything and a batch of images, as :meth:`Engine.run` takes it, of at least one image.

    Returns:
        Pairs of the same thing and the rows of its batch, in the same order. At most two batches are held.
    """
    own = getattr(engine, "stream", None)
    return own(batches) if own is not None else ((tag, engine.run(images)) for tag, images in batches)


def as_keras(model: keras.Model | StoredNetwork) -> keras.Model:
    """Returns a network as a Keras model.

    Args:
        model: A Keras model, or one that is kept in another form.
    """
    return model.keras() if isinstance(model, StoredNetwork) else model


def fingerprint(model: keras.Model | StoredNetwork) -> str:
    """Returns a digest of everything that decides what a model computes: its layers and its weights.

    The names of layers, which Keras numbers afresh in each program, have no part in it.

    Args:
        model: A built model.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    if isinstance(model, StoredNetwork):
        return model.fingerprint
    known = _unchanged.get()
    if id(model) not in known:
        return _fingerprint(model)
    found = known[id(model)] = known[id(model)] or _fingerprint(model)
    return found


@contextlib.contextmanager
def unchanged(model: keras.Model | StoredNetwork) -> Iterator[None]:
    """Within it, a model's :func:`fingerprint` is computed once: nobody changes the model meanwhile.

    Args:
        model: A built model.
    """
    known = _unchanged.get()
    token = _unchanged.set(known if id(model) in known else {**known, id(model): ""})
    try:
        yield
    finally:
        _unchanged.reset(token)


def _fingerprint(model: keras.Model) -> str:
    import keras

    digest = hashlib.sha256()
    # a graph of its own, so that the same layers reached in another way look the same
    graph = keras.Model(list(model.inputs), list(model.outputs))
    config: dict[str, Any] = {"class_name": "Functional", "config": graph.get_config()}
    names: dict[str, str] = {}
    _number_names(config, names)
    digest.update(json.dumps(_without_names(config, names), sort_keys=True, default=str).encode())
    for weight in graph.weights:
        values = np.ascontiguousarray(weight.numpy() if hasattr(weight, "numpy") else weight)
        digest.update(f"{values.shape}{values.dtype}".encode())
        digest.update(values.view(np.uint8).data if values.size else b"")
    return digest.hexdigest()


class _Maker:
    """Converts one network for one runtime, through the cache."""

    def __init__(self, model: keras.Model, name: str, threads: int | None, cache: Path | None):
        self._model, self._name, self._threads, self._cache = model, name, threads, cache
        self._runtime: Runtime = RUNTIMES[name]
        self._fingerprint = fingerprint(model)

    def made(self, plain: Engine, precision: str, samples: Samples | None, calibration: str | None) -> Engine:
        return self.int8(plain, samples, calibration) if precision == "int8" else self.floats(plain, precision)

    def floats(self, plain: Engine, precision: str = "float32") -> Engine:
        entry = self._entry("float32", None)  # the same file: bfloat16 is how it is run
        rule = _AGREEMENTS[precision]
        found = entry.facts().get(rule.fact)
        if found is not None and not found >= rule.least:
            rule.warn(self._name, found)
            return plain
        fast = self._open(entry, precision, lambda folder: self._runtime.convert(self._model, folder))
        return fast if found is not None else _Checked(fast, plain, entry)

    def int8(self, plain: Engine, samples: Samples | None, calibration: str | None) -> Engine:
        from resfit.engines import int8

        if calibration is None:
            samples = cast(Samples, samples)
            samples = samples() if callable(samples) else np.asarray(samples)
            calibration = hashlib.sha256(np.ascontiguousarray(samples).data).hexdigest()
        entry = self._entry("int8", calibration)
        exact = None
        if not entry.exists():
            if self._runtime.quantizer:
                int8.check_installed()
            if samples is None:
                raise ArgumentError(f"no int8 network is kept under calibration={calibration!r}. Pass samples= too.")
            exact = self.floats(plain)
            if exact is plain:  # what disagrees in float32 is no base for int8
                return plain
            calibrating, checking = int8.split(samples() if callable(samples) else samples)
            expected = exact.run(checking)

        def write(folder: Path) -> dict[str, Any]:
            lowest = -1.0
            for careful in (False, True):
                for stale in folder.iterdir():
                    stale.unlink()
                self._quantize(folder, calibrating, careful)
                made = self._runtime.engine(folder, precision="int8", threads=self._threads)
                lowest = agreement(made.run(checking), expected)
                if lowest >= int8.AGREEMENT:
                    break
            return {"agreement": lowest, "agreement_images": len(checking), "careful": careful}

        fast = self._open(entry, "int8", write)
        found = entry.facts().get("agreement", -1.0)
        if found >= int8.AGREEMENT:
            return fast
        warnings.warn(
            f"int8 must agree with float32 on this network (cosine at least {int8.AGREEMENT}). "
            f"Received: {found:.4f}. Going on in float32.",
            stacklevel=4,
        )
        return exact or self.floats(plain)

    def _quantize(self, folder: Path, samples: np.ndarray, careful: bool) -> None:
        if self._runtime.quantize is not None:
            self._runtime.quantize(self._entry("float32", None).folder, folder, samples, careful=careful)
        else:
            self._runtime.convert(self._model, folder, samples)

    def _entry(self, precision: str, calibration: str | None) -> compiled.CompiledEntry:
        return entry_of(self._model, self._name, precision, calibration, self._fingerprint, self._cache)

    def _open(self, entry: compiled.CompiledEntry, precision: str, write: Callable[[Path], dict[str, Any]]) -> Any:
        entry.make(write)
        try:
            fast = self._runtime.engine(entry.folder, precision=precision, threads=self._threads)
        except Exception:  # damaged: make it again
            entry.remove()
            entry.make(write)
            fast = self._runtime.engine(entry.folder, precision=precision, threads=self._threads)
        entry.used(fast)
        return fast


def entry_of(
    model: keras.Model,
    name: str,
    precision: str = "float32",
    calibration: str | None = None,
    digest: str | None = None,
    cache: Path | None = None,
) -> compiled.CompiledEntry:
    """Returns the place of a converted network in the cache.

    Args:
        model: The network.
        name: The engine.
        precision: ``"float32"`` or ``"int8"``.
        calibration: Name of what int8 was calibrated on.
        digest: The network's :func:`fingerprint`, if it is known already.
        cache: As :func:`create` takes it.
    """
    runtime = RUNTIMES[name]
    description = {
        "engine": name,
        "precision": precision,
        "network": digest or fingerprint(model),
        "name": model.name,
        "input": list(model.inputs[0].shape),
        "calibration": calibration,
    }
    packages = runtime.packages + (runtime.quantizer if precision == "int8" else ())
    return compiled.entry(description, packages, cache)


def is_quantized(
    model: keras.Model, name: str, calibration: str, *, until: str | None = None, cache: Path | None = None
) -> bool:
    """Says whether the cache holds an int8 network that :func:`create` would take without samples.

    Args:
        model: The network.
        name: The engine; ``"auto"`` is OpenVINO.
        calibration: As :func:`create` takes it.
        until: As :func:`create` takes it.
        cache: As :func:`create` takes it.
    """
    name = "openvino" if name == "auto" else name
    if name not in RUNTIMES:
        return False
    return entry_of(cut(model, until), name, "int8", calibration, cache=cache).exists()


def _on_card(model: keras.Model, resolved: Resolved, *, compiled: bool) -> Engine:
    """Returns Keras on a card or in fewer bits, which proves itself against Keras in float32 on the processor."""
    from resfit.engines.cards import KerasCardsEngine
    from resfit.engines.keras import KerasEngine

    kind = KerasCardsEngine if resolved.device.cards else KerasEngine
    fast = kind(model, resolved.precision, resolved.device, compiled=compiled)
    exact = resolved.precision == "float32"
    return _Checked(fast, KerasEngine(model, device=devices.cpu() if exact else resolved.device))


class _Checked:
    """An engine that proves itself against Keras on its first batch; for a converted network once for all programs.

    Args:
        fast: The engine.
        plain: What takes its place where it does not agree.
        entry: Where the result is kept.
    """

    def __init__(self, fast: Engine, plain: Engine, entry: compiled.CompiledEntry | None = None):
        self._fast = fast
        self._plain = plain
        self._entry = entry
        self._checked = False

    @property
    def name(self) -> str:
        return self._fast.name

    @property
    def precision(self) -> str:
        return self._fast.precision

    @property
    def device(self) -> Device:
        return getattr(self._fast, "device", None) or devices.cpu()

    def run(self, images: Any) -> np.ndarray:
        rows = self._fast.run(images)
        if not self._checked and len(rows):
            self._checked = True
            expected = getattr(self._plain, "once", self._plain.run)(images[:_CHECKED_IMAGES])
            lowest = agreement(rows[:_CHECKED_IMAGES], expected)
            rule = _AGREEMENTS[self.precision]
            if self._entry is not None:
                self._entry.note(**{rule.fact: lowest, "agreement_images": len(expected)})
            if not lowest >= rule.least:
                rule.warn(self._fast.name, lowest)
                self._fast = self._plain
                rows = self._fast.run(images)
        return rows

    def stream(self, batches: Iterable[tuple[_Tag, np.ndarray]]) -> Iterator[tuple[_Tag, np.ndarray]]:
        coming = iter(batches)
        for tag, images in itertools.islice(coming, 0 if self._checked else 1):
            yield tag, self.run(images)
        yield from stream(self._fast, coming)


def agreement(rows: np.ndarray, expected: np.ndarray) -> float:
    """Returns the smallest cosine between the rows of two arrays; 1.0 for two rows of zeros.

    Args:
        rows: Array of shape ``(n, ...)``.
        expected: Array of the same shape.

    Returns:
        -1..1; -1 if a number is not finite.
    """
    a, b = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (rows, expected))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0))
    return float(cosines.min())


def macs_per_image(model: keras.Model | StoredNetwork, size: tuple[int, int] | None = None) -> float | None:
    """Returns the multiply-accumulates of the convolutions for one image; ``None`` for a network not of resfit's.

    Args:
        model: The network.
        size: Height and width of the image in pixels; ``None`` takes the network's own.
    """
    from resfit.networks import arithmetic

    if isinstance(model, StoredNetwork):
        return None
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        return None
    height, width = model.inputs[0].shape[1:3]
    contract = getattr(model, "input_spec", None)
    own = (height, width) if height and width else getattr(contract, "size", architecture.input_size)
    return float(arithmetic.count(architecture, input_size=size or own, include_top=False).macs)


def _openvino_pays(model: keras.Model, images: int | None) -> bool:
    if not is_installed("openvino"):
        return False
    if images is None:
        return True
    macs = macs_per_image(model)
    return macs is None or macs * images >= WORTH_CONVERTING


def _number_names(value: Any, names: dict[str, str]) -> None:
    if isinstance(value, dict):
        config = value.get("config")
        if "class_name" in value and isinstance(config, dict) and isinstance(config.get("name"), str):
            names.setdefault(config["name"], f"#{len(names)}")
        for inner in value.values():
            _number_names(inner, names)
    elif isinstance(value, list | tuple):
        for inner in value:
            _number_names(inner, names)


def _without_names(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        skipped = ("trainable", "shared_object_id", "build_config", "compile_config")
        return {key: _without_names(inner, names) for key, inner in value.items() if key not in skipped}
    if isinstance(value, list | tuple):
        return [_without_names(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value
