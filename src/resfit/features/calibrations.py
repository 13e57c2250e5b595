"""Which int8 network serves a set of images: one that was calibrated on most of them, or a new one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.data import decode
from resfit.devices import Device
from resfit.engines import int8
from resfit.errors import DataError
from resfit.features.digests import FileDigest, digest_files
from resfit.storage.atomic import write_json
from resfit.storage.locks import report_unusable

if TYPE_CHECKING:
    from resfit.features.job import ExtractionJob

#: Share of the images that int8 was calibrated on that must be among those asked for, to use it again.
_SAME_IMAGES = 0.5
# images that a new int8 network is timed on
_TIMED = 8


@dataclasses.dataclass(frozen=True, eq=False)
class _Calibration:
    """The int8 network for some images: under which name it is kept, and on which it is or will be calibrated."""

    name: str
    paths: list[Path]
    record: Path | None
    digests: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedEngine:
    """What computes the rows.

    Attributes:
        resolved: Engine, device and precision.
        key: What of them decides the numbers, for int8 with its calibration.
        running: The engine, where it took one to find out; ``None`` makes it when the first image comes.
    """

    resolved: engines.Resolved
    key: str
    running: engines.Engine | None = None

    def in_float32(self) -> PreparedEngine:
        """Returns what computes the rows of a network that loses too much in fewer bits."""
        resolved = self.resolved.in_float32()
        return PreparedEngine(resolved, resolved.key, self.running)


def prepared_engine(
    job: ExtractionJob, known: list[FileDigest | None], root: Path, memory: Path | None
) -> PreparedEngine:
    """Returns what computes the rows, for int8 with the network that was calibrated.

    Args:
        job: What is asked for.
        known: For each file its digest, so far as it is known; all are, where it takes that to choose.
        root: The cache folder.
        memory: Where digests are remembered; ``None`` keeps nothing.
    """
    resolved = job.resolved
    exactly = PreparedEngine(resolved.in_float32(), resolved.in_float32().key)
    if not isinstance(job.engine, str):
        return PreparedEngine(resolved, resolved.key, job.engine)
    if resolved.precision != "int8":
        return PreparedEngine(resolved, resolved.key)
    chosen = _calibration(job, known, root, memory)
    if chosen is None:
        return exactly
    narrow = f"int8:{resolved.engine}:{chosen.name[:32]}"
    facts = _record(chosen.record).get(chosen.name, {})
    # what is noted of a network counts while the int8 network is there that it was found with
    if facts and engines.is_quantized(job.model, resolved.engine, chosen.name):
        if facts.get("precision") == "float32":
            return exactly
        lazily = _Lazily(job, chosen.name)
        few = dataclasses.replace(chosen, paths=chosen.paths[:_TIMED])
        if job.worth is not None and not job.worth(lazily, lambda: _samples(job, few)):
            return exactly
        return PreparedEngine(resolved, narrow, lazily)
    samples = _samples(job, chosen)
    running = engines.create(job.model, resolved, samples=samples, calibration=chosen.name, threads=job.threads)
    # a network that could not be converted, or a runtime that is missing, says nothing about int8
    if chosen.record is not None and engines.is_quantized(job.model, resolved.engine, chosen.name):
        entry = {"precision": running.precision, "digests": chosen.digests}
        try:
            write_json(chosen.record, {**_record(chosen.record), chosen.name: entry})
        except OSError as error:
            report_unusable(root, error)
    if running.precision == "int8":
        if job.worth is not None and not job.worth(running, lambda: samples[:_TIMED]):
            return exactly
        return PreparedEngine(resolved, narrow, running)
    return dataclasses.replace(exactly, running=running)


class _Lazily:
    """An int8 engine that is kept on disk, and is made when the first image comes."""

    def __init__(self, job: ExtractionJob, calibration: str):
        self._job, self._calibration = job, calibration
        self._engine: engines.Engine | None = None

    @property
    def precision(self) -> str:
        return "int8" if self._engine is None else self._engine.precision

    @property
    def name(self) -> str:
        return self._made().name

    @property
    def device(self) -> Device:
        return self._job.resolved.device

    def run(self, images: Any) -> np.ndarray:
        return self._made().run(images)

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        return engines.stream(self._made(), batches)

    def _made(self) -> engines.Engine:
        if self._engine is None:
            self._engine = engines.create(
                self._job.model,
                self._job.resolved,
                calibration=self._calibration,
                threads=self._job.threads,
            )
        return self._engine


def _calibration(
    job: ExtractionJob, known: list[FileDigest | None], root: Path, memory: Path | None
) -> _Calibration | None:
    """Chooses the int8 network: one that was calibrated on these images, or a new one."""
    if not job.files:
        return None
    text = json.dumps([engines.fingerprint(job.model), job.contract.to_dict(), job.resolved.engine], sort_keys=True)
    record = root / "calibrations" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json" if memory else None
    earlier = _record(record)
    if earlier:
        if any(entry is None for entry in known):
            known[:] = digest_files(job.files, memory)
        mine = {entry.digest.hex() for entry in known if entry is not None and entry.digest}
        shares = {name: np.mean([d in mine for d in facts.get("digests") or [""]]) for name, facts in earlier.items()}
        best = max(shares, key=lambda name: shares[name])
        if shares[best] >= _SAME_IMAGES:
            again = set(earlier[best]["digests"])
            paths = [
                path
                for path, entry in zip(job.files, known, strict=True)
                if entry is not None and entry.digest.hex() in again
            ]
            return _Calibration(best, paths, record, sorted(again))
    # spread over all of them, so that each class has its part
    places = np.unique(np.linspace(0, len(job.files) - 1, min(int8.SAMPLES, len(job.files))).round().astype(int))
    paths = [job.files[place] for place in places]
    digests = sorted({entry.digest.hex() for entry in digest_files(paths, memory) if entry.digest})
    name = hashlib.sha256("".join(digests).encode()).hexdigest()
    return _Calibration(name, paths, record, digests)


def _samples(job: ExtractionJob, chosen: _Calibration) -> np.ndarray:
    batches = decode.decode_many(chosen.paths, job.contract, batch_size=8, workers=job.threads)
    images = np.concatenate([batch.images for batch in batches])
    if not len(images):
        raise DataError("int8 is calibrated on images. Received: none of those looked at can be read.")
    # the last ones check what the others calibrate: both shall have something of everything
    return images[np.random.default_rng(0).permutation(len(images))]


def _record(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    valid = isinstance(record, dict) and all(isinstance(facts, dict) for facts in record.values())
    return record if valid else {}
