"""Labelled images that a program holds: tables, arrays, and the data sets of other libraries, told by their manners.

None of those libraries is imported here: whoever hands over an object of theirs has done that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.data.folders import part_of, some
from resfit.errors import ArgumentError

_IMAGES = ("image", "img", "images", "pixel_values", "jpg", "jpeg", "png", "picture", "photo", "x", "input", "inputs")
_LABELS = ("label", "labels", "class", "target", "targets", "y", "category", "fine_label", "coarse_label")
_ROWS = 64  # of a data set of Hugging Face that are in memory at once


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: In any form that is read as an image: a path, bytes, a PIL image, an array.
        label: Its class or number as it was handed over; ``None`` without one.
        split: ``"train"``, ``"val"``, ``"test"`` or ``None``.
    """

    image: Any
    label: Any = None
    split: str | None = None


def is_frame(source: Any) -> bool:
    """Says whether an object is a table of pandas, polars or another library with the same manners."""
    return hasattr(source, "columns") and (hasattr(source, "iloc") or hasattr(source, "to_pandas"))


def is_huggingface(source: Any) -> bool:
    """Says whether an object is a data set of Hugging Face."""
    return hasattr(source, "features") and hasattr(source, "column_names") and hasattr(source, "with_format")


def is_tensorflow(source: Any) -> bool:
    """Says whether an object is a ``tf.data.Dataset``."""
    return hasattr(source, "element_spec") and hasattr(source, "as_numpy_iterator")


def is_indexed(source: Any) -> bool:
    """Says whether an object is a data set of torch's or Keras' kind: items by number, each an image and a label."""
    return (
        hasattr(type(source), "__getitem__")
        and hasattr(type(source), "__len__")
        and not hasattr(source, "__array__")
        and not isinstance(source, Sequence | Mapping | str | bytes | bytearray | memoryview)
        and not hasattr(source, "read")
    )


def is_loader(source: Any) -> bool:
    """Says whether an object is a loader of batches, as torch has them."""
    return hasattr(source, "dataset") and hasattr(source, "batch_size") and hasattr(type(source), "__iter__")


def is_labelled(source: Any) -> bool:
    """Says whether an object holds images with their labels: any of the kinds of this module, or parts of them."""
    if isinstance(source, Mapping):
        return bool(source) and all(part_of(str(name)) is not None for name in source)
    kinds = (is_frame, is_huggingface, is_tensorflow, is_loader, is_indexed)
    return isinstance(source, tuple | Iterator) or any(kind(source) for kind in kinds)


def samples(
    source: Any, *, image: str | None = None, label: str | None = None, labelled: bool = True
) -> Iterator[Sample]:
    """Yields the images of an object one by one.

    Args:
        source: A pair ``(images, labels)``; a ``tf.data.Dataset``, batched or not; a data set or loader of torch's
            kind; a data set of Hugging Face; an iterator of pairs or batches; or a mapping from parts of a split, such
            as ``"train"``, to these.
        image: The column or key with the images; ``None`` finds it.
        label: The same for the labels.
        labelled: Whether each image must have a label.

    Raises:
        ArgumentError: It is none of these, or images and labels differ in number.
    """
    if isinstance(source, Mapping):
        for name, part in source.items():
            for sample in samples(part, image=image, label=label, labelled=labelled):
                yield dataclasses.replace(sample, split=part_of(str(name)))
    elif is_huggingface(source):
        yield from _huggingface(source, image, label, labelled)
    elif is_tensorflow(source):
        names = getattr(source, "class_names", None)
        for element in source.as_numpy_iterator():
            yield from _element(element, image, label, names, is_batch=_is_batch(element, image))
    elif is_loader(source):
        names = getattr(source.dataset, "classes", None)
        for element in source:
            yield from _element(element, image, label, names, is_batch=source.batch_size is not None)
    elif is_indexed(source):
        names = getattr(source, "classes", None)
        for number in range(len(source)):
            element = source[number]
            yield from _element(element, image, label, names, is_batch=_is_batch(element, image))
    elif isinstance(source, tuple) and len(source) == 2:
        yield from _pair(*source)
    elif isinstance(source, Iterable):
        for element in source:
            yield from _element(element, image, label, None, is_batch=_is_batch(element, image))
    else:
        raise ArgumentError(
            f"labelled images must be a folder, a table or a data set. Received: {type(source).__name__}."
        )


def _pair(images: Any, labels: Any) -> Iterator[Sample]:
    count = len(labels) if hasattr(labels, "__len__") else -1
    if hasattr(images, "__len__") and len(images) != count:
        raise ArgumentError(f"each image must have a label. Received: {len(images)} images and {count} labels.")
    values = labels.to_numpy() if hasattr(labels, "to_numpy") else labels
    done = 0
    for one, value in zip(images, values, strict=False):
        yield Sample(one, value)
        done += 1
    if done != count:
        raise ArgumentError(f"each image must have a label. Received: {done} images and {count} labels.")


def _parts_of(element: Any, image: str | None, label: str | None) -> tuple[Any, Any]:
    """Returns images and labels of an element, the latter ``None`` where there are none."""
    if isinstance(element, Mapping):
        return element[_key(element, image, _IMAGES, "images")], _found(element, label, _LABELS)
    if isinstance(element, tuple | list) and len(element) in (2, 3):  # the third are weights
        return element[0], element[1]
    return element, None


def _is_batch(element: Any, image: str | None) -> bool:
    """Says whether an element is several images: four axes, or one of bytes or paths."""
    pictures = _parts_of(element, image, None)[0]
    shape = getattr(pictures, "shape", None)
    if shape is not None and len(shape):
        return len(shape) == 4 or (len(shape) == 1 and getattr(getattr(pictures, "dtype", None), "kind", "") in "OSU")
    return isinstance(pictures, list) and bool(pictures) and not isinstance(pictures[0], int | float | list)


def _element(element: Any, image: str | None, label: str | None, names: Any, *, is_batch: bool) -> Iterator[Sample]:
    pictures, labels = _parts_of(element, image, label)
    if not is_batch:
        yield Sample(plain(pictures), _named(labels, names))
        return
    values = [None] * len(pictures) if labels is None else list(labels)
    if len(values) != len(pictures):
        raise ArgumentError(f"each image must have a label. Received: {len(pictures)} images and {len(values)} labels.")
    for one, value in zip(pictures, values, strict=True):
        yield Sample(plain(one), _named(value, names))


def plain(image: Any) -> Any:
    """Returns an image whose bytes or path a library has packed into a value of its own."""
    if isinstance(image, np.generic) or (getattr(image, "shape", None) == () and hasattr(image, "item")):
        return image.item()
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):  # Hugging Face, not decoded
        return image.get("bytes") or image.get("path")
    return image


def _named(label: Any, names: Any) -> Any:
    """Returns a label with its name where the data set has names for numbers."""
    value = label
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 1:
        value = _one_hot(value)
    elif isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if names is not None and is_number and 0 <= value < len(names):
        return str(names[value])
    return value


def _one_hot(value: np.ndarray) -> Any:
    """Returns the position of the one among zeros; a vector of other numbers as it is."""
    is_one_hot = value.dtype.kind in "buif" and np.count_nonzero(value) == 1 and value.max() == 1
    return int(value.argmax()) if is_one_hot else value


def _key(element: Mapping[str, Any], asked: str | None, usual: Sequence[str], what: str) -> str:
    if asked is not None:
        if asked not in element:
            raise ArgumentError(f"{what} must be under {asked!r}. Received: {sorted(map(str, element))}.")
        return asked
    found = next((name for name in usual if name in element), None)
    if found is None:
        raise ArgumentError(
            f"{what} must be under one of {some(list(usual))}. Received: {sorted(map(str, element))}. Name it: "
            "path_column."
        )
    return found


def _found(element: Mapping[str, Any], asked: str | None, usual: Sequence[str]) -> Any:
    if asked is not None:
        return element[_key(element, asked, usual, "labels")]
    return next((element[name] for name in usual if name in element), None)


def _huggingface(source: Any, image: str | None, label: str | None, labelled: bool) -> Iterator[Sample]:
    """Yields the rows of a data set without decoding its images, some at a time."""
    from resfit.data.sources.columnar import Columns

    schema = source.features.arrow_schema
    first = True
    for table in source.with_format("arrow").iter(batch_size=_ROWS):
        for batch in table.to_batches():
            columns = Columns(schema, image, batch)
            if first and not columns.image:
                raise ArgumentError(
                    f"the data set must have a column of images. Received: {source.column_names}. Name it: path_column."
                )
            first = False
            wanted = label or columns.label or next((name for name in _LABELS if name in columns.others), "")
            if labelled and wanted not in columns.others:
                raise ArgumentError(
                    f"the data set must have a column of labels. Received: {source.column_names}. Name it: "
                    "label_column."
                )
            index = columns.others.index(wanted) if wanted in columns.others else None
            for picture, cells in zip(batch.column(columns.image).to_pylist(), columns.cells(batch), strict=True):
                yield Sample(plain(picture), None if index is None else cells[index])


def image_column(frame: Any, find: Callable[[Any], bool]) -> Any:
    """Returns the name of the column of a table that holds images; ``None`` where paths must be meant."""
    table = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    for name in table.columns:
        values = [value for value in table[name].iloc[:20] if value is not None]
        if values and all(find(plain(value)) for value in values):
            return name
    return None
