"""Runs the pending shards of a plan on an engine, and reports a run that makes no progress."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from resfit import processors
from resfit.errors import ArgumentError, closest
from resfit.features.progress import Progress
from resfit.scale import planning
from resfit.scale.drivers import index, local, ray, spark
from resfit.scale.drivers.base import Driver, Job
from resfit.scale.planning import Plan

_THREADS = 4
_SHOWN = 5  # shards that are named in a line


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        done: Shards done now.
        there: Shards whose files were there already.
        refused: By number, why a shard was refused.
        left: Shards of others: of ranks that this process is not.
        images: Rows written now.
        errors: Images among them that cannot be used.
        seconds: What it took.
    """

    done: int
    there: int
    refused: dict[int, str]
    left: int
    images: int
    errors: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {**dataclasses.asdict(self), "refused": {str(key): value for key, value in self.refused.items()}}


def run(
    run: Plan | str | os.PathLike[str],
    *,
    on: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    rank: int | None = None,
    count: int | None = None,
    patience: float = 300.0,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Processes the shards of a plan whose result files do not exist yet.

    A run that ended, or was killed, goes on with what is missing, on the same engine or another one.

    Args:
        run: A plan, or the folder of a run.
        on: ``"local"`` (processes of this machine), ``"ray"``, ``"spark"``, or ``"index"``: this process does the
            shards of one rank.
        workers: How many work at once; ``None`` is as many as have room.
        threads: Processors of each worker; ``None`` is 4, or all where there are fewer.
        rank: Of ``"index"``: which of ``count`` this is, from 0; ``None`` asks the variables of Slurm and Kubernetes.
        count: Of ``"index"``.
        patience: Seconds without a result after which a line says what is waited for.
        say: Called with a line for people; ``None`` prints it on stderr.
        progress: Called as shards get done.

    Raises:
        ArgumentError: There is no such engine, or there are fewer processors than the workers need.
        DataError: There is no plan.
        ResfitError: Workers end without a result again and again, or cannot write one.

    Example:
        >>> run("s3://b/run", on="ray", workers=64).refused  # doctest: +SKIP
        {}
    """
    if on not in ENGINES:
        raise ArgumentError(f"on must be one of {ENGINES}. Received: {on!r}.{closest(on, ENGINES)}")
    if on != "index" and (rank is not None or count is not None):
        raise ArgumentError(f"rank and count are of on='index'. Received: one of them with on={on!r}.")
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be at least 1. Received: {value}.")
    begin = time.monotonic()
    plan = run if isinstance(run, Plan) else planning.load(run)
    there = plan.done()
    pending = np.flatnonzero(~there).tolist()
    job = Job(plan, pending, workers, threads or min(_THREADS, processors.available()), say or _on_stderr)
    done = images = errors = 0
    refused: dict[int, str] = {}
    driver = _driver(job, on, rank, count) if pending or on == "index" else None
    with _watch(job, patience) as came:
        for result in driver(job) if driver is not None else ():
            came()
            done += result.state == "done"
            images += result.images if result.state == "done" else 0
            errors += result.errors
            if result.state == "refused":
                refused[result.shard] = result.reason
                job.say(f"shard {result.shard} is refused: {result.reason}")
            if progress is not None:
                progress("shards", int(there.sum()) + done, plan.shards)
    left = plan.shards - int(there.sum()) - done - len(refused) if on == "index" else 0
    return RunResult(done, int(there.sum()), refused, left, images, errors, time.monotonic() - begin)


def _driver(job: Job, on: str, rank: int | None, count: int | None) -> Driver:
    """Returns the engine's driver, once there is room for the workers."""
    if on == "index":
        mine = index.place(rank, count)
        _check_here(1, job.threads)
        return lambda job: index.drive(job, *mine)
    engine = _ENGINES[on]
    engine.check(job.workers or 1, job.threads)
    if job.workers is None:
        job.workers = max(1, min(engine.room(job.threads), len(job.pending)))
    return engine.drive


def _check_here(workers: int, threads: int) -> None:
    if workers * threads > (there := processors.available()):
        raise ArgumentError(
            f"{workers} workers of {threads} threads need {workers * threads} processors. Received: {there} on this "
            "machine. Pass fewer --workers or --threads."
        )


class _Engine(NamedTuple):
    """How shards are driven, what refuses more workers than there is room for, and how many have room."""

    drive: Driver
    check: Callable[[int, int], None]
    room: Callable[[int], int]


_ENGINES = {
    "local": _Engine(local.drive, _check_here, lambda threads: processors.available() // threads),
    "ray": _Engine(ray.drive, ray.check, lambda threads: sum(cpus // threads for cpus in ray.processors())),
    "spark": _Engine(
        spark.drive, spark.check, lambda threads: spark.session().sparkContext.defaultParallelism // threads
    ),
}
#: Engines that :func:`run` knows.
ENGINES = (*_ENGINES, "index")


@contextlib.contextmanager
def _watch(job: Job, patience: float) -> Iterator[Callable[[], None]]:
    """Reports a run without progress; yields a function to call for each result."""
    last, ended = [time.monotonic()], threading.Event()

    def look() -> None:
        while not ended.wait(max(0.01, last[0] + patience - time.monotonic())):
            if time.monotonic() - last[0] >= patience:
                job.say(waited_for(job, time.monotonic() - last[0]))
                last[0] = time.monotonic()

    def came() -> None:
        last[0] = time.monotonic()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield came
    finally:
        ended.set()
        thread.join()


def waited_for(job: Job, seconds: float) -> str:
    """Returns the message about a run without progress: the shards that it waits for.

    Args:
        job: The run.
        seconds: Without a result.
    """
    now = time.monotonic()
    held = sorted(job.waiting.items(), key=lambda item: item[1][1])
    parts = [f"shard {shard} in {where} for {now - since:.0f} s" for shard, (where, since) in held[:_SHOWN]]
    more = f" and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    waits = "; ".join(parts) + more if parts else "a free worker"
    return f"no shard has finished for {seconds:.0f} s. Waiting for: {waits}."


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
