"""Features of images: each is read, decoded and sent through the frozen network once, however often it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import devices, engines
from resfit.data import decode, image_statistics
from resfit.data.dataset import ImageSet, Skipped
from resfit.data.views import Views, plain
from resfit.devices import Device
from resfit.errors import ArgumentError, DataError, ImageError, ResfitWarning
from resfit.features import calibrations
from resfit.features.digests import DigestMemory, FileDigest, digest_bytes, file_state, unreadable
from resfit.features.job import ExtractionJob, Worth
from resfit.features.progress import Progress
from resfit.features.records import DecodeStatistics
from resfit.features.store import FeatureStore, StoreKey, check_dtype
from resfit.features.writer import RowWriter
from resfit.storage.locks import opened

if TYPE_CHECKING:
    import keras

    from resfit.data.box_views import BoxViews
    from resfit.features.pixels import DecodedPixels
    from resfit.preprocessing import InputSpec

# of the rows; raised whenever the same file is decoded to other pixels
_FORMAT = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """One row of numbers for each image that could be used.

    Attributes:
        rows: Array of shape ``(n, features)``, or ``(n, height, width, channels)`` of feature maps; float32 or
            float16, on disk where it is cached.
        indices: For each row the position of its image among those that were asked for, ascending.
        digests: For each row the SHA-256 of the image's bytes, in hexadecimal digits.
        skipped: Images without a row, with the reason.
        computed: Number of images that went through the network now.
        reused: Number of different images whose rows were there already.
        engine: What computed them; ``"cache"`` if nothing had to be.
        precision: Number format of the arithmetic in which the rows were computed, whatever was asked for; one of
            :data:`resfit.engines.PRECISIONS`.
        views: For each augmented view that was asked for, its rows, as ``rows``.
        records: For each row what was measured of the image, of dtype :data:`resfit.data.image_statistics.RECORD`;
            empty where
            that was not asked for.
        device: What they were computed on, as :meth:`resfit.devices.Device.to_dict` tells it.
        seconds_an_image: That the pass took, once the engine was ready; 0 where nothing was computed.
    """

    rows: np.ndarray
    indices: np.ndarray
    digests: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    computed: int
    reused: int
    engine: str
    precision: str = "float32"
    views: tuple[np.ndarray, ...] = ()
    records: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, image_statistics.RECORD))
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds_an_image: float = 0.0


def extract(
    model: keras.Model | engines.StoredNetwork,
    images: ImageSet | Sequence[str | Path],
    *,
    input_spec: InputSpec | None = None,
    engine: str | engines.Engine = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
    until: str | None = None,
    feature_maps: bool = False,
    precision: str = "float32",
    dtype: str = "float32",
    views: Views | BoxViews | None = None,
    threads: int | None = None,
    records: bool = False,
    thumbnails: Collection[int] = (),
    pixels: DecodedPixels | None = None,
    worth: Worth | None = None,
) -> Features:
    """Runs images through a network, except those whose row is on disk already.

    The rows are kept under the content of the image (SHA-256 of the file), of the network (its layers, weights and
    input contract), the precision and the view; in fewer bits than float32 and on a GPU under engine and device, too.
    A file whose size and times have not changed is not even read again; another is read once. A kill at any moment
    loses what was computed in the last second or two.

    Args:
        model: A network with one input ``(batch, height, width, 3)``, RGB 0..255, and one output
            ``(batch, features)``.
        images: Image files, or a set of them.
        input_spec: How images become the network's input; ``None`` takes ``model.input_spec``.
        engine: As :func:`resfit.engines.create` takes it. It is made only if an image must be computed.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.
        until: Where to stop in the network, as :func:`resfit.engines.create` takes it.
        feature_maps: Whether rows may be other than vectors.
        precision: As :func:`resfit.engines.create` takes it. int8 is calibrated on some of the images; where most of
            those it was once calibrated on are still among the images, that network is used again.
        dtype: How rows are kept, ``"float32"`` or ``"float16"``.
        views: Augmented views to compute as well, in the same pass over the files.
        threads: As :func:`resfit.engines.create` takes it; decoding takes as many more.
        records: Whether to measure each image (:mod:`resfit.data.image_statistics`) when it is decoded. The records are
            kept as
            the rows are, whatever the network.
        thumbnails: Positions of images of which a thumbnail is kept too, where they are decoded.
        pixels: The same images, decoded already by this contract; nothing is read then. Not for views or int8.
        worth: For int8, is asked with the calibrated network whether it is worth it; where not, rows are computed in
            float32. ``None`` takes it in any case.

    Raises:
        ArgumentError: The model does not give one vector for each image, has no input contract, or an argument is
            outside its choices.
        DataError: The network gives infinite or undefined features.

    Example:
        >>> body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
        >>> extract(body, ["a.jpg", "b.jpg"]).rows.shape
        (2, 320)
    """
    files = [Path(path) for path in (images.paths if isinstance(images, ImageSet) else images)]
    engines.check_name(engine)
    engines.check_precision(precision)
    engines.check_installed(engine, precision)
    resolved = engines.resolve(engine, precision)
    if resolved.note:
        warnings.warn(resolved.note, ResfitWarning, stacklevel=2)
    check_dtype(dtype)
    contract = _contract(model, input_spec)
    if until is not None or resolved.precision == "int8" or resolved.engine not in ("auto", "openvino"):
        model = engines.as_keras(model)
    if not isinstance(model, engines.StoredNetwork):
        model = engines.cut(model, until)
    shape = _row_shape(model, contract, feature_maps)
    if pixels is not None and (views is not None or resolved.precision == "int8"):
        raise ArgumentError("views and int8 are made from image files. Received: pixels=.")
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1. Received: {batch_size}.")
    job = ExtractionJob(
        model=model,
        files=files,
        contract=contract,
        shape=shape,
        engine=engine,
        resolved=resolved,
        dtype=dtype,
        views=views,
        threads=threads,
        batch_size=batch_size or default_batch_size(contract.size, resolved.device),
        progress=progress,
        records=records,
        thumbnails=thumbnails,
        decoded=pixels,
        worth=worth,
    )
    with engines.unchanged(model), opened(cache) as place:
        return _extract(job, place.folder, place.folder if place.kept else None)


def missing(
    model: keras.Model | engines.StoredNetwork,
    paths: Sequence[Path],
    cache: bool | str | Path = True,
    input_spec: InputSpec | None = None,
) -> int:
    """Returns how many images have no features in float32 yet, so far as is known without reading them.

    Args:
        model: The network.
        paths: The images.
        cache: As :func:`extract` takes it.
        input_spec: As :func:`extract` takes it.
    """
    if cache is False:
        return len(paths)
    with opened(cache) as place, DigestMemory(place.folder if place.kept else None) as digests:
        known = [entry.digest for entry in digests.recall(list(paths)) if entry is not None and not entry.reason]
        if not known:
            return len(paths)
        contract = _contract(model, input_spec)
        (key,) = _keys(model, contract, "float32", [None])
        store = FeatureStore(place.folder / "features", key, math.prod(_row_shape(model, contract, False)), "float32")
        return len(paths) - int((store.find(known) >= 0).sum())


def store_key(
    model: keras.Model, input_spec: InputSpec, precision: str = "float32", view: dict[str, Any] | None = None
) -> StoreKey:
    """Returns what decides whether two features are the same but for the image.

    Args:
        model: The network.
        input_spec: How images become its input.
        precision: What decides the numbers, as :attr:`resfit.engines.Resolved.key` has it.
        view: The augmented view, as :meth:`resfit.data.views.Views.describe` gives it; ``None`` is the image as it is.
    """
    return _keys(model, input_spec, precision, [view])[0]


def default_batch_size(size: tuple[int, int], device: Device | None = None) -> int:
    """Returns how many images go through the network at once.

    Args:
        size: Their height and width in pixels.
        device: What the network runs on; ``None`` is the processor.
    """
    return (device or devices.cpu()).batch_size(size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """What came of reading one file: for each missing view its pixels, or why there are none."""

    position: int
    entry: FileDigest
    pixels: dict[int, np.ndarray]
    reason: str = ""


def _contract(model: Any, input_spec: InputSpec | None) -> InputSpec:
    from resfit.preprocessing import InputSpec

    contract = input_spec if input_spec is not None else getattr(model, "input_spec", None)
    if not isinstance(contract, InputSpec):
        raise ArgumentError("the network says nothing about its input. Pass input_spec=resfit.InputSpec(...).")
    return contract


def _row_shape(model: keras.Model | engines.StoredNetwork, contract: InputSpec, feature_maps: bool) -> tuple[int, ...]:
    """Returns the shape of one image's output."""
    if isinstance(model, engines.StoredNetwork):
        return (model.width,)
    shapes = [tuple(output.shape) for output in model.outputs]
    if len(shapes) != 1 or (len(shapes[0]) != 2 and not feature_maps):
        raise ArgumentError(
            "the network must give one vector an image; load it with include_top=False, pooling='avg'. "
            f"Received: output shapes {shapes}."
        )
    shape = shapes[0][1:]
    if None in shape:
        shape = tuple(model.compute_output_shape((1, *contract.size, contract.channels)))[1:]
    if None in shape:
        raise ArgumentError(f"the shape of the features must be known. Received: {shape}.")
    return tuple(int(side) for side in shape)


def _keys(
    model: keras.Model | engines.StoredNetwork,
    contract: InputSpec,
    precision: str,
    views: Iterable[dict[str, Any] | None],
) -> list[StoreKey]:
    decisive = {
        "format": _FORMAT,
        "network": engines.fingerprint(model),
        "input": contract.to_dict(),
        "precision": precision,
    }
    output = model.output_name if isinstance(model, engines.StoredNetwork) else model.layers[-1].name
    names = {"name": model.name, "output": output}
    return [StoreKey.of({**decisive, "view": view}, **names) for view in views]


def _extract(job: ExtractionJob, root: Path, memory: Path | None) -> Features:
    total = len(job.files)
    with DigestMemory(memory if job.decoded is None else None) as digests:
        known = digests.recall(job.files) if job.decoded is None else _told(job.decoded, len(job.files))
        job.report("reading", total, total)
        prepared = calibrations.prepared_engine(job, known, root, memory)
        filled = _Filling(job, digests, known, root, prepared)
        filled.run()
    return _result(job, filled)


def _told(decoded: DecodedPixels, total: int) -> list[FileDigest | None]:
    """Returns the digests of images that were decoded before, and of the others the reasons why they were not."""
    reasons = iter(decoded.skipped)
    digests = dict(zip(decoded.indices.tolist(), decoded.digests, strict=True))
    return [
        FileDigest(bytes.fromhex(digests[position]), "")
        if position in digests
        else FileDigest(b"", "", next(reasons).reason)
        for position in range(total)
    ]


def _result(job: ExtractionJob, filled: _Filling) -> Features:
    total = len(job.files)
    reasons = {position: entry.reason for position, entry in enumerate(filled.known) if entry and entry.reason}
    for position, entry in enumerate(filled.known):
        if entry is not None and entry.digest in filled.failed:
            reasons[position] = filled.failed[entry.digest]
    kept = [position for position in range(total) if position not in reasons]
    found = [entry.digest for position in kept if (entry := filled.known[position]) is not None]
    shape = (len(kept), *job.shape)
    rows = [store.rows(found).reshape(shape) for store in filled.stores]
    records = filled.sights.records
    measured = np.zeros(0, image_statistics.RECORD) if records is None else records.rows(found)
    return Features(
        rows=rows[0],
        indices=np.asarray(kept, np.int64),
        digests=tuple(digest.hex() for digest in found),
        skipped=tuple(Skipped(job.files[position], reasons[position]) for position in sorted(reasons)),
        computed=len(filled.computed),
        reused=len(set(found) - filled.computed),
        engine=filled.engine_name,
        precision=filled.prepared.resolved.precision,
        views=tuple(rows[1:]),
        records=job.decoded.records if job.decoded is not None else measured,
        device=filled.prepared.resolved.device.to_dict(),
        seconds_an_image=filled.seconds / filled.timed if filled.timed else 0.0,
    )


def _open_stores(job: ExtractionJob, root: Path, key: str) -> list[FeatureStore]:
    """Opens the store of the images as they are, and one for each view."""
    views = [None, *(job.views.describe(number) for number in range(job.views.count))] if job.views else [None]
    width = math.prod(job.shape)
    keys = _keys(job.model, job.contract, f"{key} {job.dtype}" if job.dtype != "float32" else key, views)
    return [FeatureStore(root / "features", found, width, job.dtype) for found in keys]


def _present(store: FeatureStore, known: Sequence[FileDigest | None]) -> set[bytes]:
    digests = [entry.digest for entry in known if entry is not None and not entry.reason]
    return {digest for digest, position in zip(digests, store.find(digests), strict=True) if position >= 0}


def _check_finite(rows: np.ndarray) -> None:
    if not np.isfinite(rows).all():
        raise DataError(
            "the network gives infinite or undefined features on these images; its weights are damaged, or it "
            "expects another input."
        )


class _PrecisionGivenUpError(Exception):
    """The engine goes on in float32: rows from here on are others than the stores are for."""


class _Filling:
    """Fills the stores with the rows that are missing.

    Attributes:
        known: For each file its digest, or why it cannot be read.
        failed: For the digest of each image that cannot be decoded, the reason.
        computed: Digests of the images that went through the network.
        engine_name: What ran it; ``"cache"`` if nothing had to.
        seconds: Of the batches after the first.
        timed: Images in them.
        prepared: Engine, device and precision of the rows.
        stores: Where they are: the images as they are, then each view.
        sights: What is measured of the images.
    """

    def __init__(
        self,
        job: ExtractionJob,
        digests: DigestMemory,
        known: list[FileDigest | None],
        root: Path,
        prepared: calibrations.PreparedEngine,
    ):
        self.known = list(known)
        self.failed: dict[bytes, str] = {}
        self.computed: set[bytes] = set()
        self.engine_name = "cache"
        self.seconds, self.timed = 0.0, 0
        self._job, self._digests, self._root, self._running = job, digests, root, prepared.running
        self.sights = DecodeStatistics(root, records=job.records and job.decoded is None, thumbnails=job.thumbnails)
        places = () if job.decoded is None else job.decoded.indices.tolist()
        self._places = {position: place for place, position in enumerate(places)}
        self._claimed: set[bytes] = set()
        self._lock = threading.Lock()
        self._open(prepared)

    def _open(self, prepared: calibrations.PreparedEngine) -> None:
        """Opens the stores for the rows that an engine computes."""
        self.prepared, self.stores = prepared, _open_stores(self._job, self._root, prepared.key)
        for store in self.stores:
            store.drop_damaged(list(_present(store, self.known)))
        self.sights.drop_damaged([entry.digest for entry in self.known if entry is not None and not entry.reason])

    def run(self) -> None:
        """Reads, decodes and computes until every file has its rows or a reason."""
        candidates = self._candidates()
        if not candidates:
            self._job.report("network", len(self._job.files), len(self._job.files))
        while candidates:
            self._claimed.clear()
            try:
                self._pass(candidates)
            except _PrecisionGivenUpError:
                self._open(self.prepared.in_float32())
            finally:
                self.sights.flush()
            # a file that changed meanwhile may have been the one that stood for its copies
            candidates = self._candidates()

    def _candidates(self) -> list[int]:
        """Returns the files that must be read: their content is not known, or has no row; of copies the first."""
        digests = [entry.digest if entry else b"\0" * 32 for entry in self.known if entry is None or entry.digest]
        complete = np.ones(len(digests), bool)
        for store in self.stores:
            complete &= store.find(digests) >= 0
        complete &= ~self.sights.missing(digests)
        rows = iter(complete.tolist())
        candidates, seen = [], set()
        for position, entry in enumerate(self.known):
            if entry is None:
                next(rows)
                candidates.append(position)
            elif entry.digest and not next(rows) and entry.digest not in self.failed and entry.digest not in seen:
                seen.add(entry.digest)
                candidates.append(position)
        return candidates

    def _pass(self, candidates: list[int]) -> None:
        total, size = len(candidates), self._job.batch_size
        decoded = decode.in_order(self._read, candidates, workers=self._job.threads, ahead=3 * size)
        done = 0
        with contextlib.closing(decoded):
            batches = self._batches(decoded)
            first = next(batches, None)  # the decoders are at work from here on, while the engine is made
            if first is None:
                self._job.report("network", total, total)
                return
            if self._running is None:
                resolved = self.prepared.resolved
                self._running = engines.create(self._job.model, resolved, images=total, threads=self._job.threads)
            self._check_precision()
            self.engine_name = self._running.name
            begin = 0.0
            with RowWriter(self._write) as writer:
                for (owners, done), rows in engines.stream(self._running, itertools.chain([first], batches)):
                    self._check_precision()  # it may have been given up
                    _check_finite(rows)
                    writer.add(owners, rows.reshape(len(rows), -1))
                    self.engine_name = self._running.name
                    self._job.report("network", done, total)
                    now = time.perf_counter()
                    if begin:  # what the first batch takes to begin is no part of it
                        self.seconds, self.timed = self.seconds + now - begin, self.timed + len(rows)
                    begin = now
            if done < total:
                self._job.report("network", total, total)

    def _check_precision(self) -> None:
        if self._running is not None and self._running.precision != self.prepared.resolved.precision:
            raise _PrecisionGivenUpError

    def _batches(self, decoded: Iterator[_Read]) -> Iterator[tuple[tuple[list[tuple[int, bytes]], int], np.ndarray]]:
        """Yields batches of pixels with whose they are (store and digest), and how many files are done by then."""
        owners: list[tuple[int, bytes]] = []
        pixels: list[np.ndarray] = []
        done = 0
        for item in decoded:
            done += 1
            self._note(item)
            for view, array in item.pixels.items():
                owners.append((view, item.entry.digest))
                pixels.append(array)
            while len(pixels) >= self._job.batch_size:
                some = self._job.batch_size
                yield (owners[:some], done), np.stack(pixels[:some])
                del owners[:some], pixels[:some]
        if pixels:
            yield (owners, done), np.stack(pixels)

    def _note(self, item: _Read) -> None:
        self.known[item.position] = item.entry
        self._digests.note(self._job.files[item.position], item.entry)
        if item.reason:
            self.failed[item.entry.digest] = item.reason
        self.sights.keep()

    def _write(self, owners: list[tuple[int, bytes]], rows: np.ndarray) -> None:
        """Adds rows to the stores that they are for; in the writer's thread."""
        for number, store in enumerate(self.stores):
            mine = [place for place, (view, _) in enumerate(owners) if view == number]
            if mine:
                store.append([owners[place][1] for place in mine], rows if len(mine) == len(rows) else rows[mine])
        self.computed.update(digest for _, digest in owners)

    def _read(self, position: int) -> _Read:
        """Reads a file once: its digest and, if rows are missing, its pixels. Runs in the decoders' threads."""
        decoded = self._job.decoded
        if decoded is not None:
            entry = self.known[position]
            assert entry is not None
            if not self._claim(entry) or entry.digest in self.stores[0]:
                return _Read(position, entry, {})
            return _Read(position, entry, {0: np.asarray(decoded.images[self._places[position]])})
        path = self._job.files[position]
        try:
            state = file_state(path)
            data = decode.read_file(path)
        except OSError as error:
            return _Read(position, unreadable(error), {})
        except ImageError as error:
            return _Read(position, FileDigest(b"", "", str(error)), {})
        entry = digest_bytes(data, state)
        if not self._claim(entry):
            return _Read(position, entry, {})
        missing = [number for number, store in enumerate(self.stores) if entry.digest not in store]
        if not missing and not self.sights.missing([entry.digest])[0]:
            return _Read(position, entry, {})
        contract, views = self._job.contract, self._job.views
        renderings = [
            plain(contract) if number == 0 or views is None else views.rendering(number - 1, entry.digest, contract)
            for number in missing
        ]
        try:
            look = self.sights.look(position, entry.digest)
            arrays = decode.decode_renderings(data, contract, renderings, look=look)
            for array in arrays:
                decode.check_size(array, contract)
        except ImageError as error:
            return _Read(position, entry, {}, str(error))
        return _Read(position, entry, dict(zip(missing, arrays, strict=True)))

    def _claim(self, entry: FileDigest) -> bool:
        """Whether nobody has taken this image in this pass: of copies one is enough."""
        with self._lock:
            mine = entry.digest not in self._claimed
            self._claimed.add(entry.digest)
            return mine
