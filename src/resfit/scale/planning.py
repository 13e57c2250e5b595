"""The plan of a run: which images, in which shards, and what is done with them by which network."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import resfit
from resfit import embedding
from resfit.data import dataset, remote
from resfit.errors import ArgumentError, DataError
from resfit.evaluation import inference
from resfit.scale import listing, networks
from resfit.scale.folder import RunFolder
from resfit.scale.listing import Item

if TYPE_CHECKING:
    import pyarrow as pa

#: Where a shard ends, whichever comes first.
SHARD_IMAGES, SHARD_BYTES = 10_000, 10**9
_FORMAT = 1
_PLAN, _SHARDS = "plan.json", "shards.parquet"
_IN_FILE = 100  # shards whose items are in one file, a row group each
_ITEMS = "items/{:06}.parquet"


class PlannedShard(NamedTuple):
    """A shard without its images, as drivers see it.

    Attributes:
        number: From 0.
        images: Images in it.
        bytes: Of all its files.
        key: SHA-256 over its items, the task, its options and the version of resfit, in hexadecimal digits.
    """

    number: int
    images: int
    bytes: int
    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a run: shards, task, network and options.

    Attributes:
        url: The folder of the run.
        source: What was listed.
        task: ``"embed"``, ``"predict"``, ``"evaluate"`` or ``"check"``.
        model: The network: a name or handle, or where a copy of it lies below the folder of the run.
        fingerprint: Digest of the network, its weights and its input contract.
        version: Of resfit.
        options: Of the task: ``engine``, ``batch_size``, ``dtype``.
        shards: Number of shards.
        images: Number of images.
        bytes: Of all files.
        notes: What was assumed of the source, with the argument that changes it.
    """

    url: str
    source: str
    task: str
    model: str
    fingerprint: str
    version: str
    options: dict[str, Any]
    shards: int
    images: int
    bytes: int
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(self.url)

    @functools.cached_property
    def _columns(self) -> dict[str, Any]:
        import pyarrow.parquet as pq

        with self.folder.open(_SHARDS) as file:
            table = pq.read_table(file)
        if table.num_rows != self.shards:
            raise DataError(f"{_SHARDS} must have {self.shards} rows. Received: {table.num_rows}. Plan it again.")
        keys = b"".join(bytes.fromhex(key) for key in table.column("key").to_pylist())
        return {
            "images": table.column("images").to_numpy(),
            "bytes": table.column("bytes").to_numpy(),
            "keys": np.frombuffer(keys, np.uint8).reshape(-1, 32),
        }

    def shard(self, number: int) -> PlannedShard:
        """Returns a shard.

        Args:
            number: From 0.

        Raises:
            ArgumentError: There is no such shard.
        """
        if not 0 <= number < self.shards:
            raise ArgumentError(f"the plan has the shards 0 to {self.shards - 1}. Received: {number}.")
        columns = self._columns
        key = columns["keys"][number].tobytes().hex()
        return PlannedShard(number, int(columns["images"][number]), int(columns["bytes"][number]), key)

    def images_of(self) -> np.ndarray:
        """Returns the number of images of each shard, int64."""
        return self._columns["images"]

    def output(self, number: int) -> str:
        """Returns the name of a shard's result: its number, content key and network fingerprint.

        Args:
            number: Of the shard.
        """
        return f"{number:06}-{self.shard(number).key[:12]}-{self.fingerprint[:12]}.parquet"

    def items(self, number: int) -> list[Item]:
        """Returns the images of a shard.

        Args:
            number: Of the shard.

        Raises:
            DataError: They are not those that the shard's key is of.
        """
        import pyarrow.parquet as pq

        with self.folder.open(_ITEMS.format(number // _IN_FILE)) as file:
            table = pq.ParquetFile(file).read_row_group(number % _IN_FILE)
        columns = [table.column(name).to_pylist() for name in Item._fields]
        found = [Item(*row) for row in zip(*columns, strict=True)]
        if _key(found, self.task, self.options, self.version) != self.shard(number).key:
            raise DataError(f"the items of shard {number} are not those that were planned. Plan it again.")
        return found

    def done(self) -> np.ndarray:
        """Says for each shard whether its result is there: bool array, by one listing of names."""
        there = set(self.folder.names("shards"))
        return np.array([self.output(number) in there for number in range(self.shards)], bool)

    def describe(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "url"}
        return {"format": _FORMAT, **own, "notes": list(self.notes)}


def load(url: str | os.PathLike[str]) -> Plan:
    """Reads a plan.

    Args:
        url: The folder of a run.

    Raises:
        DataError: There is none, or it is damaged.
    """
    folder = RunFolder(url)
    try:
        found = folder.json(_PLAN)
    except ValueError as error:
        raise DataError(f"{_PLAN} of {folder.url} cannot be read: {error}. Plan it again.") from error
    if found is None:
        raise DataError(f"{folder.url} must have a {_PLAN}. Received: none. Make it with `resfit scale plan`.")
    try:
        if found.pop("format") != _FORMAT:
            raise DataError(f"{_PLAN} of {folder.url} is of another format; use the version of resfit that wrote it.")
        return Plan(url=folder.url, **{**found, "notes": tuple(found["notes"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{_PLAN} of {folder.url} must hold what a plan does. Received: {error}.") from error


def plan(
    source: Any,
    out: str | os.PathLike[str],
    *,
    task: str = "embed",
    model: str | os.PathLike[str] = "resnet10_tiny",
    engine: str = "auto",
    batch_size: int | None = None,
    dtype: str = "float32",
    shard_images: int = SHARD_IMAGES,
    shard_bytes: int = SHARD_BYTES,
    part: str | None = None,
    **scan_options: Any,
) -> Plan:
    """Lists the images of a source, divides them into shards, and writes the plan.

    A source in an object store is listed and not copied, so that its images are files there. Everything else is found
    as :func:`resfit.embed` finds it. A model that is a file or folder is copied beside the plan.

    Args:
        source: A folder, a table, archives, or a place in an object store such as ``"s3://bucket/photos"``.
        out: Folder of the run, where every worker can read and write: a path or a handle.
        task: ``"embed"``, ``"predict"``, ``"evaluate"`` (of classifiers, regressors and detectors) or ``"check"``.
        model: Name, handle or file of a network; for predicting and measuring the folder of a fitted model.
        engine: As :func:`resfit.engines.create` takes it; ``"auto"`` is decided here, for all workers.
        batch_size: Images in one pass; ``None`` chooses by their size.
        dtype: Of embedded features: ``"float32"`` or ``"float16"``.
        shard_images: Most images of a shard.
        shard_bytes: Bytes of files after which a shard ends.
        part: For ``"evaluate"``: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states.
        **scan_options: Of a source on a disk, further options of :func:`resfit.data.dataset.scan`; where a detector is
            measured of :func:`resfit.data.boxes.scan_boxes`.

    Returns:
        The plan. The same plan again changes nothing.

    Raises:
        ArgumentError: An argument breaks its rule, or another plan is in the folder.
        DataError: The source has no images.

    Example:
        >>> plan("photos/", "run/", model="resnet10_tiny").shards  # doctest: +SKIP
        1
    """
    networks.check_task(task)
    for name, value in (("shard_images", shard_images), ("shard_bytes", shard_bytes), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be at least 1. Received: {value}.")
    if dtype not in ("float32", "float16"):
        raise ArgumentError(f"dtype must be 'float32' or 'float16'. Received: {dtype!r}.")
    if part is not None and task != "evaluate":
        raise ArgumentError(f"part is of task='evaluate'. Received: part={part!r} for task={task!r}.")
    network = networks.load(os.fspath(model), task)
    options = {
        "engine": networks.engine_name(network, engine),
        "batch_size": batch_size or network.batch_size,
        "dtype": dtype,
        "part": part,
    }
    folder = RunFolder(out)
    notes: tuple[str, ...] = ()
    handle = remote.handle_of(source) if isinstance(source, str | os.PathLike) else ""
    given = {name: value for name, value in scan_options.items() if value is not None}
    if handle and handle.partition("://")[0] not in ("hf", "tfds"):
        if given:
            raise ArgumentError(f"an object store is listed as it is. Received: {', '.join(given)} for {handle}.")
        measured = network.fitted.task if task == "evaluate" else "classification"
        if measured != "classification":
            raise ArgumentError(
                f"a model for {measured} is measured on tables or boxes, which are read from a disk. Received: "
                f"{handle}. Copy them there, and plan the copy."
            )
        items = _only(listing.of_store(handle), part)
        notes = ("the first folder below the source is the class",)
    elif task == "evaluate" and network.fitted.task == "detection":
        boxes = network.fitted.labelled(source, part=part, **given)
        notes, items = boxes.warnings, listing.of_boxes(boxes)
    else:
        images = _scanned(source, task, network, part, given)
        notes, items = images.notes, listing.of_images(images)
        options["separator"] = images.separator
    found = Plan(
        url=folder.url,
        source=handle or (os.path.abspath(source) if isinstance(source, str | os.PathLike) else "images of a program"),
        task=task,
        model=os.fspath(model),
        fingerprint=network.fingerprint,
        version=resfit.__version__,
        options=options,
        shards=0,
        images=0,
        bytes=0,
        notes=notes,
    )
    return _write(folder, found, _shards(items, shard_images, shard_bytes))


def _scanned(source: Any, task: str, network: networks.LoadedNetwork, part: str | None, given: dict[str, Any]) -> Any:
    """Returns the images as the command of the same name finds them on one machine."""
    if task in ("embed", "predict"):
        return embedding.scan_any(source, reading=network.contract.reading, **given)
    if task == "evaluate" and network.fitted.task == "regression":
        return network.fitted.labelled(source, part=part, **given)
    if task == "evaluate":
        return inference.found_by(network.fitted, source, part=part, **given)
    return dataset.scan(source, **given)


def _only(items: Iterable[Item], part: str | None) -> Iterator[Item]:
    return (item for item in items if part is None or item.split == part)


def _shards(items: Iterable[Item], most_images: int, most_bytes: int) -> Iterator[list[Item]]:
    some: list[Item] = []
    size = 0
    for item in items:
        some.append(item)
        size += item.size
        if len(some) >= most_images or size >= most_bytes:
            yield some
            some, size = [], 0
    if some:
        yield some


def _key(items: Iterable[Item], task: str, options: dict[str, Any], version: str) -> str:
    digest = hashlib.sha256(repr((task, sorted(options.items()), version)).encode())
    for item in items:
        digest.update(repr(tuple(item)).encode())
    return digest.hexdigest()


def _write(folder: RunFolder, begun: Plan, shards: Iterable[list[Item]]) -> Plan:
    """Writes the files of a plan; ``plan.json`` last, with which it is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[PlannedShard] = []
    with tempfile.TemporaryDirectory(prefix="resfit-plan-") as place:
        work = Path(place)
        writer: pq.ParquetWriter | None = None
        for number, items in enumerate(shards):
            if number % _IN_FILE == 0:
                writer = pq.ParquetWriter(work / f"{number // _IN_FILE:06}", _schema(), compression="zstd")
            assert writer is not None
            columns = dict(zip(Item._fields, map(list, zip(*items, strict=True)), strict=True))
            writer.write_table(pa.table(columns, schema=_schema()), row_group_size=len(items))
            key = _key(items, begun.task, begun.options, begun.version)
            rows.append(PlannedShard(number, len(items), sum(item.size for item in items), key))
            if number % _IN_FILE == _IN_FILE - 1:
                writer.close()
        if writer is not None:
            writer.close()
        if not rows:
            raise DataError(f"{begun.source} must have images. Received: none.")
        found = dataclasses.replace(
            begun, shards=len(rows), images=sum(row.images for row in rows), bytes=sum(row.bytes for row in rows)
        )
        table = pa.table({name: [getattr(row, name) for row in rows] for name in ("number", "images", "bytes", "key")})
        if _is_there(folder, found, rows):
            return load(folder.url)
        found = dataclasses.replace(found, model=_copied(folder, found.model))
        for file in sorted(work.iterdir()):
            folder.put(f"items/{file.name}.parquet", file)
        pq.write_table(table, work / _SHARDS)
        folder.put(_SHARDS, work / _SHARDS)
    folder.write_json(_PLAN, found.describe())
    return found


def _is_there(folder: RunFolder, found: Plan, rows: list[PlannedShard]) -> bool:
    """Says whether the same plan is in the folder; another one is refused."""
    if not folder.has(_PLAN):
        return False
    known = load(folder.url)
    same = (known.task, known.fingerprint, known.version, known.options, known.shards) == (
        *(found.task, found.fingerprint, found.version, found.options, found.shards),
    )
    if same and all(known.shard(row.number).key == row.key for row in rows):
        return True
    raise ArgumentError(
        f"the folder of a run must be new. Received: {folder.url}, which has another plan ({known.task} of "
        f"{known.source}, {known.images} images). The source, the network or an option changed since. Choose another "
        "folder; what is done in this one stays."
    )


def _copied(folder: RunFolder, model: str) -> str:
    """Copies a model that is a file or folder beside the plan, where workers elsewhere find it."""
    path = Path(model)
    if not path.exists():
        return model
    name = f"model/{path.name}"
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            folder.put(f"model/{path.name}/{file.relative_to(path).as_posix()}" if path.is_dir() else name, file)
    return name


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "size" else pa.string()) for name in Item._fields])
