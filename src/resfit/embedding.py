"""Features of images as a table, for other programs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.data import containers, decode, inputs, members, remote
from resfit.data import dataset as image_sets
from resfit.data.dataset import ImageSet, Skipped
from resfit.data.medical import privacy
from resfit.engines import auto_precision, int8
from resfit.engines.auto_precision import AUTO
from resfit.errors import ArgumentError, DataError
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.preprocessing import Reading
from resfit.storage.atomic import atomic_open, atomic_path

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec

_ROWS_AT_ONCE = 8192
_TIMED = 8  # images that a network is timed on
_PLAIN = Reading()


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """Features of images, as a network sees them.

    Attributes:
        features: Float32 array of shape ``(n, features)``.
        paths: The ``n`` files; in medical sets their pseudonyms (:mod:`resfit.data.medical.privacy`); ``None`` for an
            image
            that was handed over otherwise.
        labels: The ``n`` classes by name; ``None`` for an image without one.
        skipped: Images that could not be used, with the reason.
        computed: Images that went through the network now; the others were in the cache.
        notes: What was assumed of the source.
        machine: What computed them: ``"engine"`` (``"cache"`` if nothing had to be computed), ``"precision"``, and
            the device as :meth:`resfit.devices.Device.to_dict` tells it.
    """

    features: np.ndarray
    paths: tuple[Path | None, ...]
    labels: tuple[str | None, ...]
    skipped: tuple[Skipped, ...] = ()
    computed: int = 0
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the features as a table.

        Args:
            path: A name ending in ``.parquet`` (columns ``path``, ``label`` and ``features``, a list of float32; the
                metadata ``resfit.machine`` is :attr:`machine` as JSON) or ``.npz`` (arrays of the same names; an image
                without a label has an empty one).

        Raises:
            ArgumentError: The name has another ending.
            OSError: It cannot be written.
        """
        target = check_table_name(path)
        _WRITERS[target.suffix.lower()](self, target)


def check_table_name(path: str | os.PathLike[str]) -> Path:
    """Returns the path if :meth:`Embedding.save` can write there.

    Raises:
        ArgumentError: The name has an ending that stands for no format.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITERS:
        raise ArgumentError(f"the output must end in {' or '.join(_WRITERS)}. Received: {str(path)!r}.")
    return target


def embed_images(
    body: keras.Model | engines.StoredNetwork,
    source: Any,
    *,
    input_spec: InputSpec | None = None,
    engine: str = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
    precision: str = "float32",
    say: Callable[[str], None] | None = None,
    **scan_options: Any,
) -> Embedding:
    """Returns the features of images.

    Args:
        body: A network that gives one vector an image.
        source: A folder or CSV file as :func:`resfit.fit` takes it, a folder of images without classes, or images as
            :meth:`resfit.Classifier.predict` takes them: arrays, PIL images, bytes, lists of these and of files.
        input_spec: How images become the network's input; ``None`` takes ``body.input_spec``.
        engine: As :func:`resfit.engines.create` takes it.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.
        precision: As :func:`resfit.engines.create` takes it; or ``"auto"``: of files what is expected to end soonest
            (:func:`resfit.engines.auto_precision.choose`). Features in fewer bits agree with those in float32 to a
            cosine of 0.999 (bfloat16) or 0.99 (int8) on the first images; whether that is close enough for what they
            are computed for is for the caller to say, so that it has to be asked for.
        say: Gets a sentence on what ``"auto"`` has chosen.
        **scan_options: Of a folder or CSV file, further options of :func:`resfit.data.dataset.scan`.

    Raises:
        ArgumentError: Something is no image, as :func:`resfit.data.inputs.listed` says.
        DataError: No image can be used.
    """
    contract = input_spec or getattr(body, "input_spec", None)
    missing: tuple[Skipped, ...] = ()
    if contract is not None and not inputs.is_path(source):
        sources = inputs.listed(source, contract)
        paths = [path for path in sources.paths if path is not None]
        if len(paths) < len(sources) or not paths:
            kept = "float32" if precision == AUTO else precision  # nothing is chosen for what is no file
            return _embed_sources(body, sources, contract, engine, batch_size, progress, kept)
        lost = [path for path in paths if not os.path.lexists(members.container(path))]
        missing = tuple(Skipped(path, "no such file") for path in lost)
        source = [path for path in paths if path not in set(lost)]
        if not source:
            raise _none_usable(missing)
    images = scan_any(source, reading=getattr(contract, "reading", _PLAIN), **scan_options)
    chosen: dict[str, Any] = {"precision": precision}
    if precision == AUTO:
        chosen = _chosen(body, images.paths, contract, engine, cache, say or (lambda text: None))
    extracted = feature_store.extract(
        body,
        images.paths,
        input_spec=input_spec,
        engine=engine,
        cache=cache,
        batch_size=batch_size,
        progress=progress,
        **chosen,
    )
    if extracted.engine == "openvino" and precision == AUTO:
        auto_precision.note(body, extracted.precision, extracted.seconds_an_image, extracted.computed, cache)
    skipped = (*missing, *privacy.shown_skipped(images, (*images.skipped, *extracted.skipped)))
    if not len(extracted.indices):
        raise _none_usable(skipped)
    named = [images.label_text(int(position)) for position in extracted.indices]
    return Embedding(
        features=extracted.rows,
        paths=tuple(privacy.shown(images, images.paths[position]) for position in extracted.indices),
        labels=tuple(name or None for name in named),
        skipped=skipped,
        computed=extracted.computed,
        notes=images.notes,
        machine={"engine": extracted.engine, "precision": extracted.precision, **extracted.device},
    )


def _chosen(
    body: keras.Model | engines.StoredNetwork,
    paths: Sequence[Path],
    contract: InputSpec | None,
    engine: str,
    cache: bool | str | Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the number format that is expected to end soonest, as the store of features takes it."""
    if contract is None:
        return {}  # which the store refuses

    def samples() -> np.ndarray:
        batches = list(decode.decode_many(paths[:_TIMED], contract, batch_size=_TIMED))
        return batches[0].images if batches else np.zeros((0, *contract.size, contract.channels), np.uint8)

    count = feature_store.missing(body, paths, cache, contract)
    choice = auto_precision.choose(body, count, samples, engine=engine, cache=cache)
    if choice.line:
        say(choice.line)
    worth = auto_precision.worth(body, choice, say, cache) if choice.precision == "int8" else None
    return {"precision": choice.precision, "worth": worth}


def _embed_sources(
    body: keras.Model | engines.StoredNetwork,
    sources: inputs.Sources,
    contract: InputSpec,
    engine: str,
    batch_size: int | None,
    progress: Progress | None,
    precision: str,
) -> Embedding:
    """Returns the features of images that are not all files; nothing of them is cached."""

    def samples() -> np.ndarray:
        some = inputs.Sources(sources.items[: int8.SAMPLES])
        return np.concatenate([batch.images for batch in inputs.batches(some, contract, int8.SAMPLES)])

    running = engines.create(body, engine, images=len(sources), precision=precision, samples=samples)
    size = batch_size or feature_store.default_batch_size(contract.size)
    rows: list[np.ndarray] = []
    paths: list[Path | None] = []
    skipped: list[Skipped] = []
    for batch in inputs.batches(sources, contract, size):
        for index, reason in batch.failures:
            skipped.append(Skipped(sources.paths[index] or Path(f"image {index}"), reason))
        if len(batch.indices):
            rows.append(np.asarray(running.run(batch.images)))
            paths += [sources.paths[index] for index in batch.indices]
        if progress is not None:
            progress("network", len(paths) + len(skipped), len(sources))
    if not rows:
        raise _none_usable(skipped)
    resolved = engines.resolve(running)
    machine = {"engine": resolved.engine, "precision": resolved.precision, **resolved.device.to_dict()}
    return Embedding(
        np.concatenate(rows), tuple(paths), (None,) * len(paths), tuple(skipped), len(paths), machine=machine
    )


def _none_usable(skipped: Sequence[Skipped]) -> DataError:
    reason = f", such as {skipped[0].path}: {skipped[0].reason}" if skipped else ""
    return DataError(f"at least one image must be usable. Received: {len(skipped)} unusable{reason}.")


def scan_any(source: Any, *, reading: Reading = _PLAIN, **options: Any) -> ImageSet:
    """Finds images with labels where the source has them, without where it has none.

    Args:
        source: As :func:`embed_images` takes it.
        reading: Which frames of scans, and which files of their series, are images.
        **options: Of a folder or CSV file, further options of :func:`resfit.data.dataset.scan`; ``None`` is none.

    Raises:
        DataError: It does not exist or has no images.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(source, str | os.PathLike):
        return image_sets.scan_images(source, reading=reading)
    path = remote.local(source)
    is_table = path.suffix.lower() in image_sets.TABLES or (given and path.suffix.lower() != "")
    if path.is_file() and not is_table and not containers.shards(path):
        return image_sets.scan_images([path], reading=reading)
    if (
        not given
        and path.is_dir()
        and not containers.shards(path)
        and not any(child.is_dir() and not child.name.startswith(".") for child in path.iterdir())
    ):
        return image_sets.scan_images([path], reading=reading)
    try:
        return image_sets.scan(path, reading=reading, needs_labels=False, **given)
    except image_sets.LayoutError as error:
        if given:
            raise
        found = image_sets.scan_images([path], reading=reading)
        return dataclasses.replace(found, notes=(*found.notes, f"images without labels: {error}"))


def _write_parquet(embedding: Embedding, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = embedding.features.shape[1]
    kinds = [("path", pa.string()), ("label", pa.string()), ("features", pa.list_(pa.float32(), width))]
    schema = pa.schema(kinds, {"resfit.machine": json.dumps(dict(embedding.machine))})
    with atomic_path(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(embedding.paths), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            flat = pa.array(np.ascontiguousarray(embedding.features[part], np.float32).reshape(-1))
            columns = [
                pa.array([_text(path) for path in embedding.paths[part]], pa.string()),
                pa.array(embedding.labels[part], pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _write_npz(embedding: Embedding, target: Path) -> None:
    with atomic_open(target) as file:
        np.savez(
            file,
            path=np.array([_text(path) for path in embedding.paths]),
            label=np.array([label or "" for label in embedding.labels]),
            features=embedding.features,
        )


def _text(path: Path | None) -> str:
    # a name that is no UTF-8 keeps a readable form
    return "" if path is None else os.fsencode(path).decode("utf-8", "backslashreplace")


_WRITERS = {".parquet": _write_parquet, ".npz": _write_npz}
