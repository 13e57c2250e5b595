"""What a driver gets and gives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from resfit.scale.planning import Plan
from resfit.scale.unit import ShardResult


@dataclasses.dataclass(eq=False)
class Job:
    """A run, as a driver sees it: state for each shard, and none for an image.

    Attributes:
        plan: What is to be done.
        pending: Numbers of the shards whose files are not there.
        workers: How many work at once; ``None`` is as many as there are processors for.
        threads: Processors of each.
        say: Called with a line for people.
        waiting: What the driver waits for: for each shard that is being done where, and since when.
    """

    plan: Plan
    pending: Sequence[int]
    workers: int | None
    threads: int
    say: Callable[[str], None]
    waiting: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)

    def began(self, shard: int, where: str) -> None:
        """Notes that a worker has a shard."""
        self.waiting[shard] = (where, time.monotonic())

    def ended(self, result: ShardResult) -> ShardResult:
        """Notes that a shard has its result, and returns it."""
        self.waiting.pop(result.shard, None)
        return result


#: Does what is pending of a job; yields what comes of each shard as it comes.
Driver = Callable[[Job], Iterator[ShardResult]]
