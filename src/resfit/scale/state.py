"""The progress of a run, read from the names of its files."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import numpy as np

from resfit.scale import planning
from resfit.scale.planning import Plan


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The progress of a run.

    Attributes:
        task: Of the plan.
        shards: Number of shards.
        done: Those whose file is there.
        images: Number of images.
        images_done: Images in files that are there, broken ones included.
        refused: By number, why a shard was refused.
        working: Shards that workers have begun and not ended, with who and for how many seconds; a worker that died
            is among them.
    """

    task: str
    shards: int
    done: int
    images: int
    images_done: int
    refused: dict[int, str]
    working: tuple[tuple[int, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {
            **dataclasses.asdict(self),
            "refused": {str(number): reason for number, reason in self.refused.items()},
            "working": [{"shard": shard, "worker": who, "seconds": age} for shard, who, age in self.working],
        }


def status(run: Plan | str | os.PathLike[str]) -> RunStatus:
    """Returns the progress of a run. No result file is opened.

    Args:
        run: A plan, or the folder of a run.

    Raises:
        DataError: There is no plan.
    """
    plan = run if isinstance(run, Plan) else planning.load(run)
    done = plan.done()
    return RunStatus(
        task=plan.task,
        shards=plan.shards,
        done=int(done.sum()),
        images=plan.images,
        images_done=int(plan.images_of()[done].sum()),
        refused={number: reason for number, reason in refusals(plan).items() if not done[number]},
        working=tuple(_working(plan, done)),
    )


def refusals(plan: Plan) -> dict[int, str]:
    """Returns why shards were refused, by number.

    Args:
        plan: The plan.
    """
    found = {}
    for name in sorted(plan.folder.names("refused")):
        about = plan.folder.json(f"refused/{name}")
        if about is not None and about["shard"] < plan.shards:
            found[int(about["shard"])] = str(about["reason"])
    return found


def _working(plan: Plan, done: np.ndarray) -> list[tuple[int, str, float]]:
    found = []
    for name in sorted(plan.folder.names("attempts")):
        number = int(name.partition(".")[0])
        about = plan.folder.json(f"attempts/{name}")
        if about is not None and number < plan.shards and not done[number]:
            found.append((number, f"process {about['process']} on {about['host']}", time.time() - about["time"]))
    return found
