"""Tasks of a Spark application: a partition is a few shards, and Spark does again what a lost executor had."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resfit import dependencies
from resfit.errors import ArgumentError
from resfit.scale import planning
from resfit.scale.drivers.base import Job
from resfit.scale.unit import ShardResult, Unit

if TYPE_CHECKING:
    import pandas as pd

_IN_PARTITION = 8  # shards whose decoding can overlap
_SCHEMA = "shard long, state string, images long, errors long, seconds double, reason string"


def session() -> Any:
    """Returns the Spark session that is active, or a new one of the environment's settings.

    Raises:
        MissingDependencyError: PySpark is not installed.
    """
    dependencies.require("--on spark", "pyspark")
    from pyspark.sql import SparkSession

    return SparkSession.builder.appName("resfit scale").getOrCreate()


def check(needed: int, threads: int) -> None:
    """Checks that the session has room for a number of tasks.

    Args:
        needed: Tasks at once.
        threads: Processors of each.

    Raises:
        ArgumentError: They have not.
    """
    context = session().sparkContext
    cores = context.defaultParallelism
    if needed * threads > cores:
        raise ArgumentError(
            f"{needed} tasks of {threads} CPUs must have room in the application. Received: {cores} cores. Pass fewer "
            "--workers or --threads, or more executors."
        )


@functools.lru_cache(maxsize=1)
def _unit(url: str, threads: int) -> Unit:
    """Returns the unit of this Python worker, which Spark keeps from task to task."""
    return Unit(planning.load(url), threads=threads)


def drive(job: Job) -> Iterator[ShardResult]:
    """Processes the pending shards of a job in tasks of the active session.

    Args:
        job: The run. How many tasks run at once is decided by the executors' cores and ``spark.task.cpus``.
    """
    spark, url, threads = session(), job.plan.url, job.threads

    def work(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import pandas as pd

        unit = _unit(url, threads)
        shards = [int(number) for frame in frames for number in frame["shard"]]
        for shard, then in zip(shards, [*shards[1:], *([None] if shards else [])], strict=True):
            yield pd.DataFrame([vars(unit.run(shard, then))])

    parts = max(min(job.workers or 1, len(job.pending)), -(-len(job.pending) // _IN_PARTITION))
    rows = spark.sparkContext.parallelize([(int(number),) for number in job.pending], parts)
    for shard in job.pending:
        job.began(shard, "a Spark task, or waits for one")
    found = spark.createDataFrame(rows, "shard long").mapInPandas(work, _SCHEMA)
    for row in found.toLocalIterator(prefetchPartitions=True):
        yield job.ended(ShardResult(**row.asDict()))
