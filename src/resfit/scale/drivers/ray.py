"""Actors on a Ray cluster: Ray places and replaces them, and each is assigned one shard at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from resfit import dependencies
from resfit.errors import ArgumentError, ResfitError
from resfit.scale import planning
from resfit.scale.drivers.base import Job
from resfit.scale.unit import MOST_DEATHS, ShardResult, Unit

_COST = 2  # ends of actors for each shard, and a few, after which the cluster is taken for broken


class ShardActor:
    """What runs on a node."""

    def __init__(self, url: str, threads: int):
        self._unit = Unit(planning.load(url), threads=threads)

    def run(self, shard: int, then: int | None) -> ShardResult:
        """Processes a shard; see :meth:`resfit.scale.unit.Unit.run`."""
        return self._unit.run(shard, then)


def processors() -> list[int]:
    """Returns the processors of each node of the cluster; joins or starts one if necessary.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    dependencies.require("--on ray", "ray")
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def drive(job: Job) -> Iterator[ShardResult]:
    """Processes the pending shards of a job in actors.

    Args:
        job: The run; its ``threads`` are the processors that each actor reserves.

    Raises:
        ResfitError: Actors end without a result again and again.
    """
    import ray

    kind = ray.remote(num_cpus=job.threads)(ShardActor)
    todo, ends = deque(job.pending), 0
    under_way: dict[Any, tuple[Any, int, int | None]] = {}

    def give(actor: Any, ahead: int | None) -> None:
        shard = ahead if ahead is not None else (todo.popleft() if todo else None)
        if shard is not None:
            then = todo.popleft() if len(todo) >= max(1, len(under_way)) else None
            under_way[actor.run.remote(shard, then)] = (actor, shard, then)
            job.began(shard, f"a Ray actor with {job.threads} CPUs, or waits for one")

    for _ in range(min(job.workers or 1, len(todo))):
        give(kind.remote(job.plan.url, job.threads), None)
    while under_way:
        (ready,), _ = ray.wait(list(under_way), num_returns=1)
        actor, shard, then = under_way.pop(ready)
        try:
            found = ray.get(ready)
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.OutOfMemoryError,
        ) as error:  # the process or its node has gone
            ends += 1
            todo.extendleft([number for number in (then, shard) if number is not None])
            if ends > _COST * len(job.pending) + MOST_DEATHS:
                raise ResfitError(f"Ray's actors die repeatedly; the last one: {error}") from error
            job.say(f"an actor died while it processed shard {shard}; the shard is retried")
            del actor
            give(kind.remote(job.plan.url, job.threads), None)
            continue
        except ray.exceptions.RayTaskError as error:
            raise ResfitError(f"shard {shard} could not be done: {error.cause}") from error
        yield job.ended(found)
        give(actor, then)
        del actor  # one without a shard gives its processors back


def check(needed: int, threads: int) -> None:
    """Checks that the cluster has room for a number of actors.

    Args:
        needed: Actors.
        threads: Processors of each.

    Raises:
        ArgumentError: They have not; Ray would wait for ever.
    """
    nodes = processors()
    if (room := sum(count // threads for count in nodes)) < needed:
        raise ArgumentError(
            f"{needed} actors of {threads} CPUs must have room on the cluster. Received: nodes of {nodes} CPUs, room "
            f"for {room}. Pass fewer --workers or --threads."
        )
