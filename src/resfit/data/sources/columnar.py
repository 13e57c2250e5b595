"""Columns of Arrow tables, as in Parquet files and data sets of Hugging Face: images, classes, the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resfit.data import decode
from resfit.errors import DataError, closest

if TYPE_CHECKING:
    import pyarrow as pa

_LONGEST_CELL = 4096
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "photo", "pixel_values", "image_bytes", "bytes", "content")


class Columns:
    """What the columns of a schema are.

    Args:
        schema: The schema, with Hugging Face's features in its metadata where that wrote it.
        image: The column with the images, as the user names it.
        first: The first rows, to see which column of bytes holds pictures; ``None`` without any.

    Attributes:
        image: Name of the column with the images; empty where there is none.
        is_struct: Whether its cells are ``struct<bytes, path>``.
        others: Names of the columns that are kept, in order.
        label: The column with the classes, where the schema states one; otherwise empty.
        notes: What was assumed.

    Raises:
        DataError: The column that is named is not there.
    """

    def __init__(self, schema: pa.Schema, image: str | None, first: pa.RecordBatch | None):
        import pyarrow as pa

        self._features = _features(schema)
        self.notes: list[str] = []
        structs = [field.name for field in schema if _is_image_struct(field.type)]
        binaries = [field.name for field in schema if _is_bytes(field.type)]
        shown = [name for name in binaries if first is not None and _holds_pictures(first.column(name))]
        stated = [name for name, feature in self._features.items() if feature.get("_type") == "Image"]
        found = [name for name in stated if name in (*structs, *binaries)] or [*structs, *shown]
        found.sort(key=lambda name: _IMAGES.index(name) if name in _IMAGES else len(_IMAGES))
        if image is not None and image in (*structs, *binaries):
            found = [image]
        elif image is not None and image not in schema.names:
            raise DataError(
                f"the source must have a column {image!r}. Received: {schema.names}.{closest(image, schema.names)}"
            )
        elif image is not None:
            found = []
        self.image = found[0] if found else ""
        self.is_struct = self.image in structs
        if len(found) > 1:
            self.notes.append(f"images from column {self.image!r} and not {found[1:]} (--path-column)")
        usable = [field.name for field in schema if field.name != self.image and _is_cell(field.type, pa)]
        self.others = list(dict.fromkeys(usable))
        classes = [name for name in self.others if self._names(name)]
        self.label = classes[0] if len(classes) == 1 else ""

    def cells(self, batch: Any) -> Iterator[tuple[str, ...]]:
        """Yields the cells of the kept columns as text, row by row; an empty text where there is no value."""
        columns = [[self._text(name, value) for value in batch.column(name).to_pylist()] for name in self.others]
        yield from zip(*columns, strict=True) if columns else (() for _ in range(batch.num_rows))

    def _names(self, name: str) -> list[str]:
        feature: Any = self._features.get(name, {})
        while isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature.get("feature")
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        names = feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None
        return [str(one) for one in names] if isinstance(names, list) else []

    def _text(self, name: str, value: Any) -> str:
        names = self._names(name)
        if isinstance(value, list | tuple):
            return str([self._text_of(names, one) for one in value])
        return self._text_of(names, value)

    def _text_of(self, names: list[str], value: Any) -> str:
        if value is None or (names and value == -1):
            return ""
        if names and isinstance(value, int) and not isinstance(value, bool):
            return names[value] if 0 <= value < len(names) else str(value)
        if isinstance(value, bool):
            return str(value).lower()
        text = str(value)
        return text if len(text) <= _LONGEST_CELL else text[:_LONGEST_CELL]


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Returns what Hugging Face says of the columns; nothing where it says nothing that can be read."""
    try:
        stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = stated.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(name): feature if isinstance(feature, dict) else {"_type": "Sequence", "feature": feature}
        for name, feature in found.items()
    }


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and any(
        kind.field(index).name == "bytes" and _is_bytes(kind.field(index).type) for index in range(kind.num_fields)
    )


def _is_cell(kind: Any, pa: Any) -> bool:
    """Says whether the cells of a column are single values, or lists of such."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_cell(kind.value_type, pa) and not types.is_floating(kind.value_type)
    if types.is_dictionary(kind):
        return _is_cell(kind.value_type, pa)
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_string(kind)
                or types.is_large_string(kind))  # fmt: skip


def _holds_pictures(column: Any) -> bool:
    values = [value for value in column.slice(0, 16).to_pylist() if value]
    return bool(values) and sum(decode.is_picture(value[:1024]) for value in values) * 2 > len(values)
