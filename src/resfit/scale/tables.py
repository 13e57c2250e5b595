"""Files of shards, read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import DataError
from resfit.scale.planning import Plan

if TYPE_CHECKING:
    import pyarrow as pa


def about(plan: Plan, number: int) -> dict[str, Any]:
    """Returns the metadata of a shard's file.

    Args:
        plan: The plan.
        number: Of the shard.

    Raises:
        DataError: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = plan.output(number)
    try:
        with plan.folder.open(f"shards/{name}") as file:
            metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
        found = json.loads(metadata[b"resfit"])
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"shards/{name} cannot be read: {error}. Delete it, and do it again with `resfit scale run`."
        ) from error
    return found if isinstance(found, dict) else {}


def read_columns(plan: Plan, number: int, columns: Sequence[str]) -> pa.Table:
    """Returns columns of a shard's file.

    Args:
        plan: The plan.
        number: Of the shard.
        columns: Their names.

    Raises:
        DataError: It cannot be read, or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = plan.output(number)
    try:
        with plan.folder.open(f"shards/{name}") as file:
            found = pq.ParquetFile(file).read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"shards/{name} cannot be read: {error}. Delete it, and do it again with `resfit scale run`."
        ) from error
    missing = set(columns) - set(found.column_names)
    if missing:
        raise DataError(f"shards/{name} must have the columns {', '.join(columns)}. Received: no {missing.pop()}.")
    return found


def matrix(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns lists of one length as an array ``(n, values)``, and which rows have one.

    Args:
        table: As :func:`read_columns` returns it.
        column: Of the lists.
    """
    values = table[column].combine_chunks()
    there = ~values.is_null().to_numpy(zero_copy_only=False)
    width = values.type.list_size
    # a row without a list has values of no meaning
    flat = values.values.to_numpy(zero_copy_only=False)[values.offset * width :]
    return flat[: len(values) * width].reshape(len(values), width), there
