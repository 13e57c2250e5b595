"""One of several jobs with a rank: Slurm arrays, indexed jobs of Kubernetes, or any other numbered jobs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping

from resfit.errors import ArgumentError
from resfit.scale.drivers.base import Job
from resfit.scale.unit import ShardResult, Unit

# rank, count, first rank and step, as the scheduler of each calls them
_NAMES = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", "", ""),
    ("SLURM_PROCID", "SLURM_NTASKS", "", ""),
)


def place(rank: int | None, count: int | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Returns which of how many this process is.

    Args:
        rank: From 0; ``None`` asks the variables of Slurm and Kubernetes.
        count: How many there are; ``None`` asks as well. Kubernetes says it to no job: pass it.
        environment: The variables.

    Raises:
        ArgumentError: Nobody says it, or the rank is not among so many.
    """
    for names in _NAMES:
        if rank is not None and count is not None:
            break
        values = [int(environment[name]) if environment.get(name, "").isdigit() else None for name in names]
        if rank is None and values[0] is not None:
            rank = (values[0] - (values[2] or 0)) // (values[3] or 1)
            count = count if count is not None else values[1]
    if rank is None or count is None:
        missing = "rank and count" if rank is None else "count"
        raise ArgumentError(
            f"a job must know which of how many it is. Received: no {missing}, neither as --rank and --count nor from "
            "SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX."
        )
    if not 0 <= rank < count:
        raise ArgumentError(f"the rank must lie in 0..{count - 1}. Received: {rank}.")
    return rank, count


def drive(job: Job, rank: int, count: int) -> Iterator[ShardResult]:
    """Processes the shards whose number modulo the count is the rank, in this process.

    The numbers are those of the plan, so that ranks that begin at other times neither leave a shard out nor do one
    twice.

    Args:
        job: The run.
        rank: Of this process, from 0.
        count: Of processes.
    """
    unit = Unit(job.plan, threads=job.threads)
    mine = [int(number) for number in job.pending if number % count == rank]
    for number, then in itertools.pairwise([*mine, None]):
        assert number is not None
        job.began(number, f"this process ({os.getpid()})")
        yield job.ended(unit.run(number, then))
    unit.close()
