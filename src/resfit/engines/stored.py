"""Networks of fitted models in OpenVINO's form, found by the digest of the folder that they came from: no Keras needed.

A record says which converted network of the cache belongs to a folder, and holds the numbers of its head. It is written
after the network has been read by Keras and has agreed with it on real images; it names the digest of the folder's
files, so that it is that of no other folder. What is converted stays in the user's own cache: nothing of a folder that
comes from elsewhere is handed to OpenVINO's reader.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.engines import compiled
from resfit.engines.base import Engine
from resfit.engines.resolved import Resolved, is_installed
from resfit.storage.locks import is_writable

if TYPE_CHECKING:
    import keras

# raised whenever what a record holds, or how a network is converted, changes
_FORMAT = 1
_ARRAYS = "head.npz"
_PACKAGES = ("openvino", "resfit")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What is kept of a fitted model.

    Attributes:
        network: Facts of its body: folder, name, output, fingerprint and width.
        head: Description of its head, JSON-ready; empty where there is none that could be kept.
        arrays: The numbers of its head.
    """

    network: Mapping[str, Any]
    head: Any
    arrays: Mapping[str, np.ndarray]


def find(key: str, cache: Path | None = None) -> Record | None:
    """Returns what is kept of a fitted model; ``None`` where that is nothing, incomplete or damaged.

    Args:
        key: Digest of everything in its folder that decides its answers.
        cache: A cache folder; ``None`` is resfit's own.
    """
    if not is_installed("openvino"):
        return None
    entry = _entry(key, cache)
    facts = entry.facts()
    network = facts.get("body")
    if not isinstance(network, dict) or not network or compiled.faults(entry.folder):
        return None
    body = compiled.CompiledEntry(compiled.root(cache) / str(network.get("folder")), {})
    if not body.exists():
        return None
    if compiled.faults(body.folder):
        body.remove()  # it is made again from Keras' model
        return None
    try:
        with np.load(entry.folder / _ARRAYS, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError):
        return None
    entry.used(arrays_owner := _Owner())
    return Record({**network, "owner": arrays_owner, "cache": cache}, facts.get("head"), arrays)


def is_settled(key: str, cache: Path | None = None) -> bool:
    """Says whether it has been tried in vain to keep a fitted model.

    Args:
        key: As :func:`find` takes it.
        cache: As :func:`find` takes it.
    """
    facts = _entry(key, cache).facts()
    return bool(facts) and not facts.get("body")


def keep(
    key: str,
    body: keras.Model,
    network: compiled.CompiledEntry | None,
    fingerprint: str,
    head: Any = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    cache: Path | None = None,
) -> None:
    """Keeps what :func:`find` returns.

    Args:
        key: As :func:`find` takes it.
        body: The network without its head.
        network: Its converted form, which has agreed with Keras; ``None`` notes that there is none.
        fingerprint: Of the body.
        head: Description of the head.
        arrays: Numbers of the head.
        cache: As :func:`find` takes it.

    Raises:
        OSError: The cache cannot be written.
    """
    facts = {
        "folder": "" if network is None else network.folder.name,
        "name": body.name,
        "output": body.layers[-1].name,
        "fingerprint": fingerprint,
        "width": int(body.output_shape[-1]),
    }

    def write(folder: Path) -> dict[str, Any]:
        file = io.BytesIO()
        np.savez(file, **(arrays or {}))  # type: ignore[arg-type]
        (folder / _ARRAYS).write_bytes(file.getvalue())
        return {"body": facts if network is not None else {}, "head": head}

    entry = _entry(key, cache, body.name)
    if entry.exists():  # it was found to be of no use: its network was pruned, or is damaged
        shutil.rmtree(entry.folder, ignore_errors=True)
    entry.make(write)


def key_of(*parts: str) -> str:
    """Returns the key of a fitted model.

    Args:
        *parts: Digests of the files that decide its answers.
    """
    return hashlib.sha256(" ".join((str(_FORMAT), *parts)).encode()).hexdigest()


def can_be_kept(cache: Path | None = None) -> bool:
    """Says whether this machine can keep and run converted networks.

    Args:
        cache: As :func:`find` takes it.
    """
    return is_installed("openvino") and is_writable(compiled.root(cache).parent)


class StoredNetwork:
    """The body of a fitted model that runs on OpenVINO as it is, and becomes a Keras model for all else.

    Args:
        record: What is kept of it.
        load: Returns it as a Keras model.

    Attributes:
        name: The model's.
        output_name: Name of its last layer.
        fingerprint: As :func:`resfit.engines.fingerprint` returns it of the Keras model.
        width: Number of its features.
    """

    def __init__(self, record: Record, load: Callable[[], keras.Model]):
        facts = record.network
        self.name, self.output_name = str(facts["name"]), str(facts["output"])
        self.fingerprint, self.width = str(facts["fingerprint"]), int(facts["width"])
        self._owner, self._load = facts.get("owner"), load
        self._entry = compiled.CompiledEntry(compiled.root(facts.get("cache")) / str(facts["folder"]), {})

    def keras(self) -> keras.Model:
        """Returns it as a Keras model."""
        return self._load()

    def runs(self, resolved: Resolved, agreements: Mapping[str, tuple[str, float]]) -> bool:
        """Says whether its converted form is what shall run, and has proven itself in that precision.

        Args:
            resolved: Engine, device and precision.
            agreements: For each precision the fact that notes the agreement with Keras, and the least of it.
        """
        if resolved.engine not in ("auto", "openvino") or resolved.device.kind != "cpu":
            return False
        fact, least = agreements.get(resolved.precision, ("", 1.0))
        found = self._entry.facts().get(fact)
        return isinstance(found, float) and found >= least

    def engine(self, precision: str, *, threads: int | None = None) -> Engine:
        """Returns the engine.

        Args:
            precision: Number format of the arithmetic.
            threads: As :func:`resfit.engines.create` takes it.

        Raises:
            RuntimeError: OpenVINO cannot read it.
        """
        from resfit.engines.openvino import OpenVinoEngine

        engine = OpenVinoEngine(self._entry.folder, precision=precision, threads=threads, few=True)
        self._entry.used(engine)
        return engine


class _Owner:
    """What a record is in use for as long as it lives."""


def _entry(key: str, cache: Path | None, name: str = "") -> compiled.CompiledEntry:
    description = {"engine": "openvino", "precision": "float32", "what": "fitted model", "network": key, "name": name}
    return compiled.entry(description, _PACKAGES, cache)
