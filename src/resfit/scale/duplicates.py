"""Images that are there more than once, over all shards of a check: found in buckets, each small enough for memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from resfit.data import image_statistics
from resfit.scale.planning import Plan
from resfit.scale.tables import read_columns

#: Images of which a bucket holds digests or hashes.
IN_BUCKET = 20_000_000
_QUARTERS = 4
_MOST_NEAR = 50_000  # images that are looked at again for near duplicates
_SAMPLE = 2000
_LISTED = 20


def over_shards(plan: Plan) -> dict[str, Any]:
    """Returns exact copies, near duplicates, leaks and conflicting labels of a run of ``"check"``, JSON-ready.

    Args:
        plan: The plan, all of whose shards are there.
    """
    starts = np.concatenate([[0], np.cumsum(plan.images_of())])
    counts: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    listed: dict[str, list[Any]] = {"exact": [], "leaks": [], "conflicts": []}
    passes = max(1, -(-plan.images // IN_BUCKET))
    for bucket in range(passes):
        parts = [_digests(plan, number, bucket, passes, starts[number]) for number in range(plan.shards)]
        digests, places = (np.concatenate([part[i] for part in parts]) for i in range(2))
        order = np.lexsort((places, digests[:, 1], digests[:, 0]))
        digests, places = digests[order], places[order]
        same = (digests[1:] == digests[:-1]).all(axis=1)
        counts["copies"] += int(same.sum())
        ends = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for first, last in ends.reshape(-1, 2):
            _judge(plan, places[first : last + 1], starts, counts, listed)
    near = _near(plan, starts)
    for number in range(plan.shards):
        table = read_columns(plan, number, ["label", "error"])
        known = [
            name for name, error in zip(*(column.to_pylist() for column in table.columns), strict=True) if not error
        ]
        classes.update(name for name in known if name)
    names = [[_name(plan, int(a), starts)[0], _name(plan, int(b), starts)[0]] for a, b in near[:_LISTED]]
    return {
        "images": plan.images,
        "classes": dict(sorted(classes.items())),
        "exact_duplicates": {"count": counts["groups"], "copies": counts["copies"], "items": listed["exact"]},
        "near_duplicates": {"count": len(near), "items": names},
        "leaks": {"count": counts["leaks"], "items": listed["leaks"]},
        "conflicting_labels": {"count": counts["conflicts"], "items": listed["conflicts"]},
    }


def _digests(plan: Plan, number: int, bucket: int, passes: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns half a digest of each usable image of a shard that is in a bucket, as two numbers, and their places."""
    column = read_columns(plan, number, ["sha256"])["sha256"].to_pylist()
    places = np.array([place for place, digest in enumerate(column) if digest is not None], np.int64)
    packed = b"".join(digest[:16] for digest in column if digest is not None)
    digests = np.frombuffer(packed, "<u8").reshape(-1, 2)
    mine = digests[:, 0] % np.uint64(passes) == bucket
    return digests[mine], places[mine] + start


def _judge(
    plan: Plan, places: np.ndarray, starts: np.ndarray, counts: Counter[str], listed: dict[str, list[Any]]
) -> None:
    """Counts a group of copies, whether they have different labels, and whether they are in training and test set."""
    counts["groups"] += 1
    found = [_name(plan, int(place), starts) for place in places]
    paths = [path for path, *_ in found]
    tested = {split == "test" for _, _, split in found}
    for key, holds in (
        ("exact", True),
        ("conflicts", len({label for _, label, _ in found}) > 1),
        ("leaks", len(tested) > 1),
    ):
        if holds:
            counts[key] += 1
            if len(listed[key]) < _LISTED:
                listed[key].append(paths[:_LISTED])


def _name(plan: Plan, place: int, starts: np.ndarray) -> tuple[str, str | None, str | None]:
    number = int(np.searchsorted(starts, place, side="right")) - 1
    if (cached := _names.get((plan.url, number))) is None:
        _names.clear()
        table = read_columns(plan, number, ["path", "label", "split"])
        cached = _names[plan.url, number] = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return cached[place - int(starts[number])]


# the shard that was looked at last
_names: dict[tuple[str, int], list[tuple[str, str | None, str | None]]] = {}


def _near(plan: Plan, starts: np.ndarray) -> np.ndarray:
    """Returns pairs of places that show the same and are no exact copies, ``(n, 2)``.

    Two images are compared where a quarter of their hashes is the same; what is close then is looked at as on one
    machine, beside a sample of all images.
    """
    hashes, places = [], []
    for number in range(plan.shards):
        found, rows = _records(plan, number)
        hashes.append(image_statistics.hashes(found))
        places.append(rows + starts[number])
    every, where = np.concatenate(hashes), np.concatenate(places)
    close: set[int] = set()
    for quarter in range(_QUARTERS):
        band = (every >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        order = np.argsort(band, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            close.update(_close(every, some))
            if len(close) > _MOST_NEAR:
                break
    sample = np.random.default_rng(0).permutation(len(where))[:_SAMPLE]
    chosen = np.unique(np.concatenate([np.array(sorted(close), np.int64), sample]))
    taken = where[chosen]
    numbers = np.searchsorted(starts, taken, side="right") - 1
    records = []
    for number in np.unique(numbers):
        found, rows = _records(plan, int(number))
        records.append(found[np.isin(rows + starts[number], taken)])
    if not records:
        return np.zeros((0, 2), np.int64)
    pairs = image_statistics.near_duplicates(np.concatenate(records))
    digests = np.concatenate([_digests(plan, int(n), 0, 1, starts[n])[0] for n in np.unique(numbers)])
    owners = np.concatenate([_digests(plan, int(n), 0, 1, starts[n])[1] for n in np.unique(numbers)])
    own = digests[np.searchsorted(owners, taken)]
    return taken[pairs[(own[pairs[:, 0]] != own[pairs[:, 1]]).any(axis=1)]]


def _close(hashes: np.ndarray, some: np.ndarray) -> set[int]:
    """Returns those of a bucket of which another one has nearly the same hash."""
    found: set[int] = set()
    for start in range(0, len(some) if len(some) > 1 else 0, 128):
        rows = some[start : start + 128]
        near = np.bitwise_count(hashes[rows][:, None] ^ hashes[some][None]) <= image_statistics.NEAR_BITS
        own, other = np.nonzero(near)
        keep = rows[own] != some[other]
        found.update(rows[own[keep]].tolist())
    return found


def _records(plan: Plan, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was measured of the usable images of a shard, and their rows."""
    column = read_columns(plan, number, ["record"])["record"].to_pylist()
    rows = np.array([place for place, record in enumerate(column) if record is not None], np.int64)
    return np.frombuffer(b"".join(column[row] for row in rows), image_statistics.RECORD), rows
