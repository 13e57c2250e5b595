"""What the shards of a run say together: figures with their intervals, duplicates over all of them, counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import image_statistics
from resfit.data.boxes import BoxSet
from resfit.data.dataset import ImageSet
from resfit.evaluation import inference
from resfit.evaluation.figures import figures
from resfit.evaluation.intervals import Figure, wilson_interval
from resfit.evaluation.regression import NumberScore
from resfit.quality import checking
from resfit.scale import duplicates
from resfit.scale.planning import Plan
from resfit.scale.shard_tasks import numbers_of
from resfit.scale.tables import matrix, read_columns
from resfit.tasks.detection.detections import Detections
from resfit.tasks.detection.evaluation import evaluated as detection_figures
from resfit.tasks.regression import regressor

#: Bytes of probabilities, and images of a check, up to which ``finish`` computes all that one machine would.
MOST_BYTES, MOST_CHECKED = 2 * 10**9, 100_000
_OF_DETECTION = 80  # bytes that a detection takes while it is matched


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
    if (kind := sums[0].get("kind")) is not None:
        return {"regression": _evaluated_numbers, "detection": _evaluated_boxes}[kind](plan, sums, seed)
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


def _evaluated_numbers(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    columns, halves, coverage = (sums[0][name] for name in ("columns", "halves", "coverage"))
    if plan.images * len(columns) * 16 > MOST_BYTES:
        return _numbers_from_sums(columns, halves, coverage, sums)
    rows = _gathered(plan, ["path", "label", "group", "predicted"])
    predicted, there = matrix(rows, "predicted")
    taken = there & np.array([bool(label) for label in rows["label"].to_pylist()])
    rows = rows.filter(taken)
    result = regressor.measured(
        numbers_of(rows["label"].to_pylist(), len(columns)),
        predicted[taken],
        columns,
        halves=halves,
        coverage=coverage,
        groups=rows["group"].to_pylist(),
        paths=[Path(path) for path in rows["path"].to_pylist()],
        seed=seed,
    )
    return result.to_dict(), ()


def _numbers_from_sums(
    columns: Sequence[str], halves: Sequence[float], coverage: float, sums: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    parts = [part for part in sums if part["n"]]
    count = sum(part["n"] for part in parts)
    total = {name: np.sum([part[name] for part in parts], axis=0) for name in ("absolute", "square", "inside") if parts}
    # means and squared distances of the shards, put together without the loss of digits that plain squares have
    means = [np.add(part["shift"], np.divide(part["true"], part["n"])) for part in parts]
    mean = sum(own * part["n"] for own, part in zip(means, parts, strict=True)) / max(1, count)
    spread = sum(
        np.subtract(part["true_square"], np.square(part["true"]) / part["n"]) + part["n"] * (own - mean) ** 2
        for own, part in zip(means, parts, strict=True)
    )
    found = []
    for column, name in enumerate(columns):
        square = total["square"][column]
        values = {
            "mae": total["absolute"][column] / count,
            "rmse": np.sqrt(square / count),
            "r2": 1 - square / spread[column] if spread[column] > 0 else np.nan,
        }
        score = NumberScore(
            name,
            **{key: Figure(float(value), np.nan, np.nan, "none") for key, value in values.items()},
            coverage=float(total["inside"][column] / count) if halves else None,
            width=2 * halves[column] if halves else None,
        )
        found.append(score.to_dict())
    note = f"resampled intervals are not computed of numbers of more than {MOST_BYTES:,} bytes"
    return {"n": count, "coverage": coverage if halves else None, "numbers": found}, (note,)


def _evaluated_boxes(plan: Plan, sums: Sequence[dict[str, Any]], seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the figures of one machine; where detections do not fit in memory of some pictures."""
    import pyarrow as pa

    classes, thresholds = tuple(sums[0]["classes"]), sums[0]["thresholds"]
    size = _OF_DETECTION * sum(part["detections"] for part in sums)
    share = min(1.0, MOST_BYTES / max(1, size))
    tables = []
    for number in range(plan.shards):
        rows = read_columns(plan, number, ["path", "label", "group", "boxes", "scores", "classes"])
        usable = ~rows["scores"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        if share < 1:
            usable &= np.array([_drawn(path, share, seed) for path in rows["path"].to_pylist()], bool)
        tables.append(rows.filter(usable).replace_schema_metadata(None))
    rows = pa.concat_tables(tables)
    true = [json.loads(label) for label in rows["label"].to_pylist()]
    labels = [np.array(one["labels"], np.int64) for one in true]
    count = len(true)
    boxes = BoxSet(
        root=Path(plan.source),
        paths=tuple(Path(path) for path in rows["path"].to_pylist()),
        splits=(None,) * count,
        groups=tuple(rows["group"].to_pylist()),
        sizes=np.zeros((count, 2), np.int32),
        offsets=np.cumsum([0, *map(len, labels)]),
        boxes=np.array([box for one in true for box in one["boxes"]], np.float32).reshape(-1, 4),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        crowd=np.array([own for one in true for own in one["crowd"]], bool),
        classes=classes,
    )
    columns = [rows[name].combine_chunks() for name in ("boxes", "scores", "classes")]
    predicted = [
        Detections(
            path,
            found[0].values.to_numpy().reshape(-1, 4),
            found[1].values.to_numpy(),
            found[2].values.to_numpy().astype(np.int64),
            classes,
            (0, 0),
        )
        for path, *found in zip(boxes.paths, *columns, strict=True)
    ]
    result = {**detection_figures(boxes, predicted, thresholds, seed=seed).to_dict()}
    result["skipped"] = plan.images - sum(part["n"] for part in sums)
    if share == 1:
        return result, ()
    note = (
        f"figures are of {count} of {plan.images} pictures, chosen by a digest of their paths: the detections of all "
        f"take more than {MOST_BYTES:,} bytes. They lie in shards/"
    )
    return result, (note,)


def _drawn(path: str, share: float, seed: int) -> bool:
    """Says whether a picture is among so large a share of all; whoever asks, it is the same."""
    digest = hashlib.sha256(f"{seed} {path}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


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
    lists = [name for name in ("features", "probabilities", "predicted") if name in columns]
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
