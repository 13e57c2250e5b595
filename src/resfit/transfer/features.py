"""Features of images: each is decoded once and goes through the frozen network once, however often it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfit import engines
from resfit.cache import cache_root
from resfit.data import decode
from resfit.data.image_set import ImageSet, Skipped
from resfit.errors import ArgumentError, DataError
from resfit.transfer.digests import FileDigest, digest_files, file_state
from resfit.transfer.store import FeatureStore, StoreKey

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec

#: Called with what is being done, how many images are done and how many there are.
Progress = Callable[[str, int, int], None]

# of the rows; raised whenever the same file is decoded to other pixels
_FORMAT = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """One row of numbers for each image that could be used.

    Attributes:
        rows: Float32 array of shape ``(n, features)``, on disk where it is cached.
        indices: For each row the position of its image among those that were asked for, ascending.
        digests: For each row the SHA-256 of the image's bytes, in hexadecimal digits.
        skipped: Images without a row, with the reason.
        computed: Number of images that went through the network now.
        reused: Number of different images whose rows were there already.
        engine: What computed them; ``"cache"`` if nothing had to be.
    """

    rows: np.ndarray
    indices: np.ndarray
    digests: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    computed: int
    reused: int
    engine: str


def extract(
    model: keras.Model,
    images: ImageSet | Sequence[str | Path],
    *,
    input_spec: InputSpec | None = None,
    engine: str | engines.Engine = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Runs images through a network, except those whose row is on disk already.

    The rows are kept under the content of the image (SHA-256 of the file) and of the network (its layers, weights and
    input contract). A file whose size and times have not changed is not even read again. A kill at any moment loses at
    most one batch.

    Args:
        model: A network with one input ``(batch, height, width, 3)``, RGB 0..255, and one output
            ``(batch, features)``.
        images: Image files, or a set of them.
        input_spec: How images become the network's input; ``None`` takes ``model.input_spec``.
        engine: As :func:`resfit.engines.create` takes it. It is made only if an image must be computed.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.

    Raises:
        ArgumentError: The model does not give one vector for each image, or has no input contract.
        OSError: The cache cannot be written.

    Example:
        >>> body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
        >>> extract(body, ["a.jpg", "b.jpg"]).rows.shape
        (2, 320)
    """
    files = [Path(path) for path in (images.paths if isinstance(images, ImageSet) else images)]
    engines.check_name(engine)
    contract = _contract(model, input_spec)
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise ArgumentError(
            "the network must give one vector an image; load it with include_top=False, pooling='avg'. "
            f"Received: output shapes {[tuple(output.shape) for output in model.outputs]}."
        )
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1. Received: {batch_size}.")
    width = int(model.outputs[0].shape[-1])
    if cache is False:
        with tempfile.TemporaryDirectory(prefix="resfit-", ignore_cleanup_errors=True) as folder:
            return _extract(model, files, contract, width, engine, Path(folder), None, batch_size, progress)
    root = cache_root() if cache is True else Path(cache)
    memory = root / "digests.sqlite"
    return _extract(model, files, contract, width, engine, root / "features", memory, batch_size, progress)


def store_key(model: keras.Model, input_spec: InputSpec, precision: str = "float32") -> StoreKey:
    """Returns what decides whether two features are the same but for the image.

    Args:
        model: The network.
        input_spec: How images become its input.
        precision: Number format of the engine's arithmetic.
    """
    description: dict[str, object] = {
        "format": _FORMAT,
        "network": engines.fingerprint(model),
        "name": model.name,
        "input": input_spec.to_dict(),
        "precision": precision,
        "tap": "features",
    }
    decisive = {key: value for key, value in description.items() if key != "name"}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return StoreKey(digest, description)


def default_batch_size(size: tuple[int, int]) -> int:
    """Returns how many images of this height and width go through the network at once."""
    return int(np.clip(32 * 224 * 224 // (size[0] * size[1]), 1, 128))


def _contract(model: keras.Model, input_spec: InputSpec | None) -> InputSpec:
    from resfit.preprocessing import InputSpec

    contract = input_spec if input_spec is not None else getattr(model, "input_spec", None)
    if not isinstance(contract, InputSpec):
        raise ArgumentError("the network says nothing about its input. Pass input_spec=resfit.InputSpec(...).")
    return contract


def _extract(
    model: keras.Model,
    files: list[Path],
    contract: InputSpec,
    width: int,
    engine: str | engines.Engine,
    folder: Path,
    memory: Path | None,
    batch_size: int | None,
    progress: Progress | None,
) -> Features:
    total = len(files)
    reading = None if progress is None else (lambda done: progress("reading", done, total))
    known = digest_files(files, memory, progress=reading)
    reasons = {position: entry.reason for position, entry in enumerate(known) if entry.reason}

    precision = "float32" if isinstance(engine, str) else engine.precision
    store = FeatureStore(folder, store_key(model, contract, precision), width)
    present = {entry.digest for entry in known if not entry.reason and entry.digest in store}
    store.drop_damaged(list(present))
    firsts: dict[bytes, int] = {}  # of each image that is missing, its first file
    for position, entry in enumerate(known):
        if not entry.reason and entry.digest not in store:
            firsts.setdefault(entry.digest, position)
    missing = list(firsts.values())
    failed: dict[bytes, str] = {}
    name = "cache"
    if missing:
        running = engines.create(model, engine, images=len(missing))
        size = batch_size or default_batch_size(contract.size)
        failed = _compute(running, store, files, known, missing, contract, size, progress)
        name = running.name
    if progress is not None and not missing:
        progress("network", total, total)

    for position, entry in enumerate(known):
        if entry.digest in failed:
            reasons[position] = failed[entry.digest]
    kept = [position for position in range(total) if position not in reasons]
    digests = [known[position].digest for position in kept]
    return Features(
        rows=store.rows(digests),
        indices=np.asarray(kept, np.int64),
        digests=tuple(digest.hex() for digest in digests),
        skipped=tuple(Skipped(files[position], reasons[position]) for position in sorted(reasons)),
        computed=len(missing) - len(failed),
        reused=len({digest for digest in digests if digest not in firsts}),
        engine=name,
    )


def _compute(
    running: engines.Engine,
    store: FeatureStore,
    files: list[Path],
    known: list[FileDigest],
    missing: list[int],
    contract: InputSpec,
    batch_size: int,
    progress: Progress | None,
) -> dict[bytes, str]:
    """Fills the store with the missing images; returns the reasons of those that could not be decoded."""
    failed: dict[bytes, str] = {}
    done = 0
    sources = [files[position] for position in missing]
    for indices, images, failures in decode.decode_many(sources, contract, batch_size=batch_size):
        for index, reason in failures:
            failed[known[missing[index]].digest] = reason
        digests = []
        unchanged = []
        for row, index in enumerate(indices):
            position = missing[index]
            if _has_changed(files[position], known[position]):
                failed[known[position].digest] = "changed while it was read"
            else:
                unchanged.append(row)
                digests.append(known[position].digest)
        if digests:
            rows = running.run(images if len(unchanged) == len(images) else images[unchanged])
            if not np.isfinite(rows).all():
                raise DataError(
                    "the network gives infinite or undefined features on these images; its weights are damaged, or it "
                    "expects another input."
                )
            store.append(digests, rows)
        done += len(indices) + len(failures)
        if progress is not None:
            progress("network", done, len(missing))
    return failed


def _has_changed(path: Path, known: FileDigest) -> bool:
    try:
        return file_state(path) != known.state
    except OSError:
        return True
