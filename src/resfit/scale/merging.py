"""What the shards of a run say together: figures with their intervals, duplicates over all of them, counts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import image_statistics
from resfit.data.dataset import ImageSet
from resfit.evaluation import inference
from resfit.evaluation.figures import figures
from resfit.evaluation.intervals import wilson_interval
from resfit.quality import checking
from resfit.scale import duplicates
from resfit.scale.planning import Plan
from resfit.scale.tables import matrix, read_columns

#: Bytes of probabilities, and images of a check, up to which ``finish`` computes all that one machine would.
MOST_BYTES, MOST_CHECKED = 2 * 10**9, 100_000


def merged(plan: Plan, sums: Sequence[dict[str, Any]], *, seed: int = 0) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns a task's results over all images, and notes about what was not computed.

    Args:
        plan: The plan, all of whose shards are there.
        sums: Of each shard, as its file says them.
        seed: Of intervals.
    """
    return {"embed": _embedded, "predict": _predicted, "evaluate": _evaluated, "check": _checked}[plan.task](
        plan, sums, seed
    )


def _embedded(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    return {"features": max((part["features"] for part in sums), default=0)}, ()


def _predicted(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    counts: Counter[str] = Counter()
    for part in sums:
        counts.update(part.get("predicted", {}))
    return ({"predicted": dict(sorted(counts.items()))} if counts else {}), ()


def _evaluated(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the figures of one machine; of more images than fit in memory those that are sums."""
    classes, separator = sums[0]["classes"], sums[0]["separator"]
    if plan.images * len(classes) * 4 > MOST_BYTES and not separator:
        return _from_sums(classes, sums)
    rows = _gathered(plan, ["label", "group", "probabilities"])
    scores, there = matrix(rows, "probabilities")
    names = [name or "" for name in rows["label"].to_pylist()]
    known = np.zeros((len(names), len(classes)), np.float32)
    places = {name: index for index, name in enumerate(classes)}
    for position, name in enumerate(names):
        for one in name.split(separator) if separator else [name]:
            if one in places:
                known[position, places[one]] = 1
    taken = there if separator else there & known.any(axis=1)
    known, scores = known[taken], scores[taken]
    all_groups = np.array(rows["group"].to_pylist(), object)[taken].tolist()
    groups = all_groups if any(group is not None for group in all_groups) else None
    result = inference.measured(known, scores, classes, bool(separator), (), groups=groups, seed=seed)
    truth = known.astype(int) if separator else known.argmax(axis=1)
    found = figures(truth, scores, classes, groups=groups, seed=seed)
    return dataclasses.replace(result, figures=found).to_dict(), ()


def _from_sums(classes: Sequence[str], sums: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], tuple[str, ...]]:
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for part in sums:
        for true, predicted, count in part["confusion"]:
            confusion[true, predicted] += count
    total, right = int(confusion.sum()), int(confusion.trace())
    hits, has, called = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = [
        {
            "name": name,
            "precision": float(hits[i] / called[i]) if called[i] else 0.0,
            "recall": float(hits[i] / has[i]) if has[i] else 0.0,
            "f1": float(2 * hits[i] / (has[i] + called[i])) if has[i] + called[i] else 0.0,
            "support": int(has[i]),
        }
        for i, name in enumerate(classes)
    ]
    found = {
        "accuracy": right / max(1, total),
        "interval": list(wilson_interval(right, total)),
        "n": total,
        "log_loss": sum(part["log_loss"] for part in sums) / max(1, total),
        "per_class": scores,
        "confusion": confusion.tolist(),
    }
    note = (
        f"areas under curves and resampled intervals are not computed of probabilities of more than {MOST_BYTES:,} "
        "bytes; groups have no part in the interval of the accuracy. The probabilities lie in shards/"
    )
    return found, (note,)


def _checked(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the checks of one machine; of more images duplicates, leaks and conflicts over all shards."""
    if plan.images > MOST_CHECKED:
        found = duplicates.over_shards(plan)
        note = (
            f"of more than {MOST_CHECKED:,} images label errors, shortcuts, marks and odd images are not looked for; "
            "near duplicates are those whose hashes are the same in one of four quarters"
        )
        return found, (note,)
    rows = _gathered(plan, ["path", "label", "split", "group", "features", "sha256", "record"])
    classes = sorted({name for name in rows["label"].to_pylist() if name})
    features, there = matrix(rows, "features")
    rows, features = rows.filter(there), features[there]
    records = np.frombuffer(b"".join(rows["record"].to_pylist()), image_statistics.RECORD)
    digests = [digest.hex() for digest in rows["sha256"].to_pylist()]
    images = _image_set(plan, rows, classes)
    same = checking.duplicates(digests, records, features)
    return checking.examine(images, features, records, same, seed=seed).to_dict(), ()


def _image_set(plan: Plan, rows: Any, classes: Sequence[str]) -> ImageSet:
    """Returns the images of a table of shards as a set."""
    names, separator = [name or "" for name in rows["label"].to_pylist()], plan.options.get("separator") or ""
    targets = None
    if separator:
        classes = sorted({one for name in classes for one in name.split(separator)})
        targets = np.array([[one in name.split(separator) for one in classes] for name in names], bool)
    places = {name: index for index, name in enumerate(classes)}
    return ImageSet(
        root=Path(plan.source),
        paths=tuple(map(Path, rows["path"].to_pylist())),
        labels=np.array([-1 if separator else places.get(name, -1) for name in names], np.int64),
        classes=tuple(classes),
        splits=tuple(rows["split"].to_pylist()),
        groups=tuple(rows["group"].to_pylist()),
        targets=targets,
        separator=separator,
    )


def _gathered(plan: Plan, columns: Sequence[str]) -> Any:
    """Returns columns of all shards, in order."""
    import pyarrow as pa

    tables = [read_columns(plan, number, columns) for number in range(plan.shards)]
    lists = [name for name in ("features", "probabilities") if name in columns]
    # a shard without a usable image does not know how long its lists are
    widths = {name: max(table.schema.field(name).type.list_size for table in tables) for name in lists}
    cast = []
    for table in tables:
        for name, width in widths.items():
            if table.schema.field(name).type.list_size != width:
                kind = pa.list_(table.schema.field(name).type.value_type, width)
                place = table.schema.get_field_index(name)
                table = table.set_column(place, name, pa.nulls(table.num_rows, kind))
        cast.append(table.replace_schema_metadata(None))
    return pa.concat_tables(cast)
