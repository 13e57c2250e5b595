"""The end of a run: that every shard is there and is what was planned, and what all of them say together."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resfit.data import csv_cells
from resfit.errors import ArgumentError, DataError
from resfit.scale import merging, planning
from resfit.scale.planning import Plan
from resfit.scale.state import refusals
from resfit.scale.tables import about, read_columns

_AT_ONCE = 16  # files of which the end is read at once
_MOST_LISTED = 1_000_000


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The merged results of a run.

    Attributes:
        task: Of the plan.
        shards: Number of shards, all there.
        images: Rows of all of them.
        errors: Images that cannot be used.
        reasons: The reasons, with the number of images, the most frequent first.
        result: What the task says of all images, JSON-ready: figures of ``"evaluate"``, findings of ``"check"``,
            predicted classes; empty for ``"embed"``.
        notes: What was assumed of the source, and what was not computed.
    """

    task: str
    shards: int
    images: int
    errors: int
    reasons: dict[str, int]
    result: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}


def finish(run: Plan | str | os.PathLike[str], *, seed: int = 0) -> FinishedRun:
    """Checks that all shards are complete, merges their results, and writes them into the folder of the run.

    ``finished.json`` is the result, ``errors.csv`` lists the images that cannot be used.

    Args:
        run: A plan, or the folder of a run.
        seed: Of the intervals of figures.

    Raises:
        DataError: A shard is missing or is none of the plan's; the first ones are named.
    """
    plan = run if isinstance(run, Plan) else planning.load(run)
    check_done(plan)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda number: _verified(plan, number), range(plan.shards)))
    reasons: Counter[str] = Counter()
    rows: list[tuple[str, str]] = []
    for number, shard in enumerate(found):
        if shard["errors"]:
            for path, error in _errors(plan, number):
                reasons[error] += 1
                if len(rows) < _MOST_LISTED:
                    rows.append((path, error))
    result, notes = merging.merged(plan, [shard["sums"] for shard in found], seed=seed)
    finished = FinishedRun(
        task=plan.task,
        shards=plan.shards,
        images=sum(shard["images"] for shard in found),
        errors=sum(shard["errors"] for shard in found),
        reasons=dict(reasons.most_common(100)),
        result=result,
        notes=(*plan.notes, *notes),
    )
    plan.folder.write("errors.csv", csv_cells.table(("path", "error"), rows))
    plan.folder.write("finished.json", (json.dumps(finished.to_dict(), indent=2) + "\n").encode())
    return finished


def _some(plan: Plan, missing: Sequence[int]) -> str:
    refused = refusals(plan)
    named = [f"{number} (refused: {refused[number]})" for number in missing if number in refused][:3]
    return "; ".join(named) or ", ".join(map(str, missing[:5]))


def _verified(plan: Plan, number: int) -> dict[str, Any]:
    """Returns the metadata of a shard's file.

    Raises:
        DataError: It is damaged, or of something else.
    """
    name = plan.output(number)
    found = about(plan, number)
    known = plan.shard(number)
    wanted = {"shard": number, "key": known.key, "fingerprint": plan.fingerprint, "images": known.images}
    wrong = [key for key, value in wanted.items() if found.get(key) != value]
    if wrong:
        raise DataError(
            f"shards/{name} must be what was planned. Received: another {', '.join(wrong)}. Delete it, and do it again "
            "with `resfit scale run`."
        )
    return found


def _errors(plan: Plan, number: int) -> Iterator[tuple[str, str]]:
    table = read_columns(plan, number, ["path", "error"])
    for path, error in zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True):
        if error is not None:
            yield path, error


def check_done(plan: Plan) -> None:
    """Checks that the files of all shards are complete.

    Raises:
        DataError: Some are missing; the first ones are named.
    """
    missing = np.flatnonzero(~plan.done()).tolist()
    if missing:
        raise DataError(
            f"all {plan.shards} shards must be there. Received: {len(missing)} missing, such as {_some(plan, missing)}"
            ". Do them with `resfit scale run`."
        )


def check_task(plan: Plan, task: str) -> None:
    """Checks that a run is of a task.

    Raises:
        ArgumentError: It is of another one.
    """
    if plan.task != task:
        raise ArgumentError(f"the run must be of task={task!r}. Received: {plan.url}, of task={plan.task!r}.")
