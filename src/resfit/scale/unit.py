"""The unit of work: one shard of a plan becomes one result file, on any engine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import operator
import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import resfit
from resfit import engines, processors
from resfit.data import decode, remote
from resfit.errors import ArtifactError, CheckpointError, DataError, ImageError, ResfitError
from resfit.scale import isolation, networks, planning
from resfit.scale.listing import REQUESTS, ChangedError, Item, Reader
from resfit.scale.networks import LoadedNetwork
from resfit.scale.planning import Plan
from resfit.scale.shard_tasks import SHARD_TASKS
from resfit.training.loop import prefetch

#: Workers that died of a shard before its images are decoded apart; and after which it is refused.
DEATHS, MOST_DEATHS = 3, 6
_AHEAD = 2  # batches that are decoded while the network is busy


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """The result of a shard.

    Attributes:
        shard: Its number.
        state: ``"done"``, ``"there"`` (its file was there already) or ``"refused"``.
        images: Rows of its file.
        errors: Images among them that cannot be used.
        seconds: What it took.
        reason: Why it was refused; empty otherwise.
    """

    shard: int
    state: str
    images: int = 0
    errors: int = 0
    seconds: float = 0.0
    reason: str = ""


class _Batch(NamedTuple):
    """Images of a shard that were read: their positions, what the task takes, and the others' reasons."""

    positions: np.ndarray
    images: Any
    errors: dict[int, str]


class Unit:
    """Processes the shards of a plan one after the other, for a single thread; a process needs only one.

    Everything that a driver has to know lies in the folder of the run: a shard is done when its file is there, and each
    file is written once, whole, under a name that says what is in it. Two that do the same shard write the same.

    Args:
        plan: The plan, or the folder of its run.
        threads: For the network, and as many for decoding; ``None`` is one a processor.

    Example:
        >>> Unit("s3://b/run").run(0).state  # doctest: +SKIP
        'done'
    """

    def __init__(self, plan: Plan | str | os.PathLike[str], *, threads: int | None = None):
        self.plan = plan if isinstance(plan, Plan) else planning.load(plan)
        self._threads = threads
        self._reader = Reader()
        self._ahead: dict[int, _Reading] = {}

    @functools.cached_property
    def network(self) -> LoadedNetwork:
        """The network of the plan.

        Raises:
            DataError: It is another one here than it was for the plan.
        """
        if self.plan.version != resfit.__version__:
            raise DataError(
                f"planned with resfit {self.plan.version}, and this worker has {resfit.__version__}: install the same"
            )
        found = networks.load(
            networks.place_of(self.plan.folder, self.plan.model, self.plan.fingerprint), self.plan.task
        )
        if found.fingerprint != self.plan.fingerprint:
            raise DataError(
                f"the network {self.plan.model!r} is another one on this worker ({socket.gethostname()}): fingerprint "
                f"{found.fingerprint[:12]}, planned {self.plan.fingerprint[:12]}. Its weights differ"
            )
        return found

    @functools.cached_property
    def _engine(self) -> engines.Engine | None:
        body = self.network.body
        if body is None:
            return None
        return engines.create(body, self.plan.options["engine"], threads=self._threads)

    def run(self, shard: int, then: int | None = None) -> ShardResult:
        """Processes a shard, unless its result file exists.

        Args:
            shard: Its number.
            then: The shard that will be asked for next: its images are decoded while the network is still busy with
                this one's.

        Returns:
            What came of it. A shard whose images changed since the plan, or for which this worker has another network
            or version, is ``"refused"``, with the reason, which is kept in ``refused/`` as well.

        Raises:
            OSError: Its file cannot be written.
            ArgumentError: There is no such shard.
        """
        begin, shard = time.monotonic(), operator.index(shard)
        if self.plan.folder.has(f"shards/{self.plan.output(shard)}"):
            return ShardResult(shard, "there", self.plan.shard(shard).images)
        reading = self._ahead.pop(shard, None)
        try:
            if reading is None:
                self.close()
                reading = self._reading(shard)
            reading.then = then
            found = self._compute(reading)
        except (DataError, ArtifactError, CheckpointError) as error:
            if reading is not None:
                reading.close()
            return self._refused(shard, str(error), time.monotonic() - begin)
        finally:
            if reading is not None:
                reading.close()
                self._forget_attempt(reading)
        self._forget(shard)
        return dataclasses.replace(found, seconds=time.monotonic() - begin)

    def close(self) -> None:
        """Drops what was decoded ahead."""
        for reading in self._ahead.values():
            reading.close()
            self._forget_attempt(reading)
        self._ahead.clear()

    def _compute(self, reading: _Reading) -> ShardResult:
        shard, items, task = reading.shard, reading.items, reading.task
        errors: dict[int, str] = dict(reading.known)
        for batch in reading.batches:
            errors |= batch.errors
            if len(batch.positions):
                errors |= task.add(batch.positions, batch.images)
        usable = np.ones(len(items), bool)
        usable[list(errors)] = False
        self.plan.folder.write(f"shards/{self.plan.output(shard)}", self._file(shard, items, task, usable, errors))
        return ShardResult(shard, "done", len(items), len(errors))

    def _file(self, shard: int, items: list[Item], task: Any, usable: np.ndarray, errors: dict[int, str]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        known = {
            "path": [item.id for item in items],
            **{name: [getattr(item, name) or None for item in items] for name in ("label", "split", "group")},
            "error": [errors.get(position) for position in range(len(items))],
        }
        columns = {name: pa.array(values, pa.string()) for name, values in known.items()} | task.columns(usable)
        about = {
            "shard": shard,
            "key": self.plan.shard(shard).key,
            "fingerprint": self.plan.fingerprint,
            "version": self.plan.version,
            "task": self.plan.task,
            "images": len(items),
            "errors": len(errors),
            "sums": task.sums(items, usable),
        }
        table = pa.table(columns).replace_schema_metadata({"resfit": json.dumps(about)})
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        return file.getvalue()

    def _reading(self, shard: int) -> _Reading:
        """Begins to read a shard, and leaves a mark that somebody does."""
        name = f"{shard:06}.{uuid.uuid4().hex[:12]}"
        deaths = len(self._attempts(shard))
        about = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        self.plan.folder.write_json(f"attempts/{name}", about)
        try:
            return _Reading(self, shard, name, self._crashing(shard, deaths))
        except BaseException:
            self.plan.folder.delete(f"attempts/{name}")
            raise

    def _begin_ahead(self, shard: int | None) -> None:
        """Begins to read a shard while another one is at the network; not one that workers died of."""
        if shard is None or shard in self._ahead or self._attempts(shard):
            return
        if not self.plan.folder.has(f"shards/{self.plan.output(shard)}"):
            with contextlib.suppress(ResfitError, OSError):  # it is said when the shard is asked for
                self._ahead[shard] = self._reading(shard)

    def _attempts(self, shard: int) -> list[str]:
        """Returns the marks of workers that began the shard and neither ended it nor said why not."""
        return [name for name in self.plan.folder.names("attempts") if name.startswith(f"{shard:06}.")]

    def _crashing(self, shard: int, deaths: int) -> list[int]:
        """Returns positions of images that bring the process down, where workers died of the shard."""
        name = f"crashed/{shard:06}.json"
        known = self.plan.folder.json(name)
        if known is not None and deaths < MOST_DEATHS:
            return list(known)
        if deaths >= MOST_DEATHS:
            for attempt in self._attempts(shard):
                self.plan.folder.delete(f"attempts/{attempt}")
            self.plan.folder.delete(name)
            raise DataError(
                f"{deaths} workers died of it, though its images can be decoded one by one; look at the memory of the "
                "workers, or plan smaller shards"
            )
        if deaths < DEATHS:
            return []
        network = self.network
        items = [item if not item.reason else None for item in self.plan.items(shard)]
        found = isolation.crashing(items, network.contract)
        self.plan.folder.write_json(name, found)
        return found

    def _refused(self, shard: int, reason: str, seconds: float) -> ShardResult:
        self.plan.folder.write_json(f"refused/{shard:06}.json", {"shard": shard, "reason": reason})
        return ShardResult(shard, "refused", seconds=seconds, reason=reason)

    def _forget_attempt(self, reading: _Reading) -> None:
        self.plan.folder.delete(f"attempts/{reading.attempt}")

    def _forget(self, shard: int) -> None:
        """Removes what was noted of a shard that is done now."""
        for attempt in self._attempts(shard):
            self.plan.folder.delete(f"attempts/{attempt}")
        self.plan.folder.delete(f"refused/{shard:06}.json")


class _Reading:
    """The images of a shard, read and decoded by threads of their own, some batches ahead of the network."""

    def __init__(self, unit: Unit, shard: int, attempt: str, crashing: list[int]):
        self.shard, self.attempt, self.then = shard, attempt, None
        self.items = unit.plan.items(shard)
        self.known = {position: item.reason for position, item in enumerate(self.items) if item.reason}
        self.known |= dict.fromkeys(crashing, isolation.CRASHED)
        self.task = SHARD_TASKS[unit.plan.task](unit.plan, unit.network, unit._engine, len(self.items))
        self._unit = unit
        self._held = prefetch(self._read(), _AHEAD)
        self.batches = self._held.__enter__()

    then: int | None

    def close(self) -> None:
        """Ends the threads."""
        self._held.__exit__(None, None, None)

    def _read(self) -> Iterator[_Batch]:
        unit = self._unit
        size = unit.plan.options["batch_size"]
        threads = unit._threads or processors.available()
        places = [position for position in range(len(self.items)) if position not in self.known]
        fetched: Iterator[bytes | ChangedError | ImageError | None] = itertools.repeat(None)
        if places and remote.handle_of(self.items[places[0]].path):  # answers of a store are waited for, not worked on
            fetched = decode.in_order(self._fetch, places, workers=REQUESTS, ahead=4 * REQUESTS)
        results = decode.in_order(
            self._decode, zip(places, fetched, strict=False), workers=threads, ahead=max(3 * size, 2 * threads)
        )
        for start in range(0, len(places), size):
            some = places[start : start + size]
            found = list(itertools.islice(results, len(some)))
            good = [(place, item) for place, item in zip(some, found, strict=True) if not isinstance(item, str)]
            errors = {place: item for place, item in zip(some, found, strict=True) if isinstance(item, str)}
            images: Any = [item for _, item in good]
            if good and self.task.decodes:
                images = np.stack(images)
            yield _Batch(np.array([place for place, _ in good], np.int64), images, errors)
        unit._begin_ahead(self.then)

    def _fetch(self, position: int) -> bytes | ChangedError | ImageError:
        try:
            return self._unit._reader.read(self.items[position])
        except (ChangedError, ImageError) as error:
            return error

    def _decode(self, work: tuple[int, bytes | ChangedError | ImageError | None]) -> Any:
        position, data = work
        try:
            if data is None:
                data = self._unit._reader.read(self.items[position])
            if isinstance(data, Exception):
                raise data
            look = self.task.seen(position, data)
            if not self.task.decodes:
                return data
            contract = self._unit.network.contract
            image = decode.decode_image(data, contract, look=look)
            decode.check_size(image, contract)
            return image
        except ImageError as error:
            return str(error)
