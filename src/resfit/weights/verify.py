"""Compares a network that was read with the source itself, where something can run the source.

Keras runs a whole model, onnxruntime an ONNX file, TensorFlow a SavedModel that was looked through before. Whatever
runs does so in a process of its own, with limits on memory and time, since a file may ask for more than any network
needs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ResfitError
from resfit.weights.formats import keras_config, saved_model
from resfit.weights.formats.base import WeightsFormat, find_format

if TYPE_CHECKING:
    import keras

    from resfit.weights.load import Source

#: Seconds that running a source may take, with the start of its library.
SECONDS = 600
#: Bytes of memory that running a source may take, beside a multiple of the file's size.
_MEMORY = 8_000_000_000
_MOST_SIDE = 128
_OWN_PACKAGE = "resfit>"


@dataclasses.dataclass(frozen=True)
class SourceComparison:
    """How far a network is from its source.

    Attributes:
        difference: The largest difference of outputs, as a share of the largest output; None where nothing ran the
            source.
        by: What ran it, or ``""``.
        images: What it was given, such as ``"images of 0..255"``.
        reason: Why nothing ran it, or ``""``.
    """

    difference: float | None
    by: str = ""
    images: str = ""
    reason: str = ""

    def __str__(self) -> str:
        """Says it in a sentence."""
        if self.difference is None:
            return f"Not compared with the source: {self.reason}."
        return (
            f"Compared with the source as {self.by} runs it ({self.images}): the outputs differ by "
            f"{self.difference:.1e} of the largest."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {"compared": self.difference is not None, **dataclasses.asdict(self)}


def compare(model: keras.Model, source: Source, *, preprocess: bool, unsafe: Iterable[str] = ()) -> SourceComparison:
    """Runs a source and a network that was read from it on the same images.

    Args:
        model: The network, with the head that the source has.
        source: What it was built from.
        preprocess: Whether the network takes RGB images 0..255 and normalises them itself.
        unsafe: Operations of a SavedModel that reach out of the process; with any, it is not run.

    Returns:
        How far they are apart, or why the source was not run.
    """
    path = source.path
    kind, by, reason = _runner(path, list(unsafe))
    if path is None or not kind:
        return SourceComparison(None, reason=reason)
    contract = source.input_spec
    if contract.channels != model.input_shape[-1]:
        return SourceComparison(None, reason="the network was read for another number of channels")
    raw = _images(model, source)
    fed = contract.normalize(raw)
    ours = [np.asarray(one) for one in _listed(model(raw if preprocess else fed, training=False))]
    best: SourceComparison | None = None
    for images, told in _inputs(source, raw, fed, kind):
        try:
            theirs = _run(kind, path, images)
        except ResfitError as error:
            return best or SourceComparison(None, reason=str(error))
        difference = _difference(ours, theirs, source)
        if difference is not None and (best is None or difference < (best.difference or 0)):
            best = SourceComparison(difference, by, told)
        if best is not None and (best.difference or 0) < 1e-3:
            break
    return best or SourceComparison(None, reason=f"{by} gives outputs of other shapes than the network")


def _runner(path: Path | None, unsafe: list[str]) -> tuple[str, str, str]:
    """What can run a source: its name here, its name in sentences; else why nothing can."""
    if path is None:
        return "", "", "there is none, the weights are fresh"
    kind = find_format(path)
    runner = kind.runner if kind is not None else ""
    if kind is not None and runner == "keras":
        return ("keras", "Keras", "") if (reason := _keras_reason(path, kind)) is None else ("", "", reason)
    if runner == "onnx" and path.is_file():
        if importlib.util.find_spec("onnxruntime") is None:
            return "", "", "onnxruntime, which runs ONNX files, is not installed"
        return "onnx", "onnxruntime", ""
    if runner == "tensorflow" and saved_model.has_graph(path):
        if unsafe:
            return "", "", f"it holds operations that reach out of the process: {', '.join(unsafe[:5])}"
        return "tensorflow", "TensorFlow", ""
    if runner == "tensorflow" and path.suffix.lower() == ".pb":
        return "", "", "it is a frozen graph, which is read and not run"
    return "", "", "it holds weights alone, which nothing runs"


def _keras_reason(path: Path, kind: WeightsFormat) -> str | None:
    """Why Keras does not run a file, or None where it does."""
    try:
        saved = kind.read(path).graph
    except ResfitError as error:
        return str(error).rstrip(".")
    if not isinstance(saved, keras_config.SavedModel):
        return "it holds weights alone, which nothing runs"
    if saved.version == 2 and zipfile.is_zipfile(path):
        return "Keras 3 does not load .keras files of Keras 2"
    foreign = sorted(_foreign(saved.config))
    if foreign:
        return f"it has layers that are run by code of others: {', '.join(foreign[:3])}"
    return None


def _foreign(config: Any) -> Iterator[str]:
    """Names layers of a model that are not Keras' or resfit's own, and code in configurations."""
    for place, entry in keras_config.inner_layers(config):
        registered, module = str(entry.get("registered_name") or ""), str(entry.get("module") or "keras.")
        kind = str(entry.get("class_name"))
        own = registered.startswith(_OWN_PACKAGE) or kind.startswith(_OWN_PACKAGE)
        theirs = module.startswith(("keras.", "tf_keras.")) and ">" not in registered and ">" not in kind
        if kind.endswith("Lambda") or not (own or theirs):
            yield f"{'/'.join(place)!r} ({kind})"


def _images(model: keras.Model, source: Source) -> np.ndarray:
    """Images that both can take: of the source's own size where it states one, else small ones."""
    sides = [
        side or min(own, _MOST_SIDE) for side, own in zip(model.input_shape[1:3], source.spec.input_size, strict=True)
    ]
    if source.end is not None:  # a graph may hold for one size only
        sides = list(source.spec.input_size)
    shape = (1, *sides, model.input_shape[-1])
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def _inputs(source: Source, raw: np.ndarray, fed: np.ndarray, kind: str) -> Iterator[tuple[np.ndarray, str]]:
    """What the source is given, and what that is called."""
    takes = source.end.takes if source.end is not None else None
    if takes is not None:
        yield raw * (takes / 255), f"images of 0..{takes}"
        return
    yield fed, "normalised images"
    if kind == "tensorflow":  # which may normalise images itself, in ways that its weights do not tell
        yield raw / 255, "images of 0..1"
        yield raw, "images of 0..255"
        yield raw / 127.5 - 1, "images of -1..1"


def _run(kind: str, path: Path, images: np.ndarray) -> list[np.ndarray]:
    """Runs a source in a process of its own.

    Raises:
        ResfitError: It cannot be run. The text is the reason.
    """
    with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
        given, made = Path(folder, "images.npy"), Path(folder, "made.npz")
        np.save(given, images.astype(np.float32))
        size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
        memory = str(_MEMORY + 20 * size)
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-P", "-m", "resfit.weights.verify_child", kind, str(path), memory, str(SECONDS)]
        try:
            done = subprocess.run(
                [*command, str(given), str(made)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=2 * SECONDS,
                check=False,
                env={**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ResfitError(f"it could not be run ({type(error).__name__})") from error
        if done.returncode or not made.is_file():
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise ResfitError(f"it could not be run ({lines[-1][:300].rstrip('.')})")
        with np.load(made) as found:
            return [found[name] for name in found.files]


def _listed(value: Any) -> list[Any]:
    return (
        list(value)
        if isinstance(value, (list, tuple))
        else list(value.values())
        if isinstance(value, dict)
        else [value]
    )


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray], source: Source) -> float | None:
    """The largest relative difference of outputs; of several, each network's outputs stand in order."""
    if source.end is not None and len(ours) == len(theirs):
        pairs = [_apart(one, other, source) for one, other in zip(ours, theirs, strict=True)]
        return max(pairs) if all(pair is not None for pair in pairs) else None  # type: ignore[type-var]
    if len(ours) != 1:
        return None
    found = [apart for other in theirs if (apart := _apart(ours[0], other, source)) is not None]
    return min(found, default=None)


def _apart(ours: np.ndarray, theirs: np.ndarray, source: Source) -> float | None:
    """How far one output is from that of the source, in the source's form."""
    forms = [theirs]
    if theirs.ndim == 4 and ours.ndim == 4:
        forms.append(theirs.transpose(0, 2, 3, 1))
    if theirs.ndim == 4 and theirs.shape[1:3] == (1, 1):
        forms.append(theirs[:, 0, 0])
    if theirs.ndim == 4 and theirs.shape[2:] == (1, 1):
        forms.append(theirs[:, :, 0, 0])
    if ours.ndim == 4 and theirs.ndim == 2:
        ours = ours.mean((1, 2))
    forms = [form for form in forms if form.shape == ours.shape]
    is_probabilities = ours.ndim == 2 and np.allclose(ours.sum(-1), 1, atol=1e-3) and ours.min() >= 0
    if is_probabilities and source.has_top:  # where the source hands out what comes before the softmax
        from scipy.special import softmax

        forms += [softmax(form.astype(np.float64), -1) for form in forms]
    if not forms or not np.all(np.isfinite(ours)):
        return None
    largest = max(float(np.abs(ours).max()), 1e-30)
    return min(float(np.abs(ours - form).max()) / largest for form in forms)
