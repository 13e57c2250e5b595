"""What a caller hands over as images: files, folders, bytes, open files, PIL images, arrays, and lists of them all.

The one place where :func:`resfit.fit`, :meth:`resfit.Classifier.predict`, ``evaluate``, ``explain``, ``embed`` and the
server learn what the images are; :mod:`resfit.data.arrays` has the rules for numbers, :mod:`resfit.data.decode` makes
the network's input.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from resfit.data import arrays, decode, members, objects, records, remote, tables, urls, walk
from resfit.data import dataset as image_sets
from resfit.data.arrays import NetworkInput, Pixels
from resfit.errors import ArgumentError, InputWarning
from resfit.preprocessing import InputSpec
from resfit.wording import counted

__all__ = [
    "NetworkInput",
    "Sources",
    "batch_of",
    "batches",
    "fit_array",
    "is_path",
    "listed",
    "takes_arrays",
    "takes_numbers",
]

_FORMS = (
    "images must be files, folders, bytes of files, open files, PIL images, or arrays of shape (height, width, {}) "
    "with numbers 0..255; or a list of these"
)
_WIDE_MODES = ("I", "F")  # of PIL images: 32 bits
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Images in order, each in a form that :func:`resfit.data.decode.decode_image` takes.

    Attributes:
        items: The images: paths, bytes, open files, PIL images, :class:`resfit.data.arrays.Pixels`.
    """

    items: tuple[Any, ...]

    @property
    def paths(self) -> list[Path | None]:
        """For each image its file; ``None`` where it was handed over otherwise."""
        return [item if isinstance(item, Path) else None for item in self.items]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)


def is_path(value: Any) -> bool:
    """Says whether a value names a file or folder."""
    return isinstance(value, str | os.PathLike)


def listed(images: Any, contract: InputSpec) -> Sources:
    """Returns images one by one, whatever they were handed over as.

    A file that is missing stands in a list as one that cannot be decoded. What is assumed about arrays is said in one
    :class:`resfit.errors.InputWarning`.

    Args:
        images: A file; a folder, with all that is below it; the bytes of a file; a file that is open for reading in
            binary; a PIL image; an array or tensor of one image or several; :class:`NetworkInput`; or any iterable of
            such, where each array is one image.
        contract: The network's input contract.

    Raises:
        ArgumentError: They are none of these, or an array is no image, or has two readings.
        DataError: A single path that does not exist, or a folder without images.
    """
    if isinstance(images, Sources):
        return images
    if isinstance(images, NetworkInput):
        return Sources(tuple(images.pixels()))
    notes: set[str] = set()
    if urls.is_url(images):
        raise _no_urls(images)
    if is_path(images):
        items: list[Any] = _scanned(Path(images), contract, notes, must_exist=True)
    elif _is_encoded(images):
        items = [_encoded(images, contract, notes)]
    else:
        items = _several(images, contract, notes)
    _warn(notes, stacklevel=5)
    return Sources(tuple(items))


def batch_of(array: Any, contract: InputSpec) -> np.ndarray:
    """Returns an array of images that have the network's size as its input, which is scaled to 0..255 at most.

    Args:
        array: Of shape ``(n, height, width, channels)`` or ``(n, channels, height, width)``.
        contract: The network's input contract.

    Raises:
        ArgumentError: They are no images, or of another size.
    """
    notes: set[str] = set()
    found = arrays.images_of(arrays.as_array(array), contract.channels, notes)
    wrong = [pixels.values.shape for pixels in found if pixels.values.shape != (*contract.size, contract.channels)]
    if wrong or not found:
        raise ArgumentError(
            f"images must be files, or an array of shape (n, {', '.join(map(str, contract.size))}, "
            f"{contract.channels}) with values 0..255. Received: {f'shape {wrong[0]}' if wrong else 'no image'}."
        )
    _warn(notes, stacklevel=4)
    return np.stack([pixels.scaled() for pixels in found])


def takes_numbers(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Does what :func:`takes_arrays` does where labels are numbers, one or several for each image.

    Args:
        function: As :func:`takes_arrays` takes it.
    """
    return takes_arrays(function, numbers=True)


def takes_arrays(function: Callable[_Parameters, _Result], *, numbers: bool = False) -> Callable[_Parameters, _Result]:
    """Lets a function whose ``source`` names labelled images take what a program holds too.

    That is what :mod:`resfit.data.objects` knows. It is called with an :class:`resfit.data.dataset.ImageSet` or a table
    then, whose images lie in a temporary folder.

    Args:
        function: Has a parameter ``source``, and may have ``channels`` or ``classifier``, which says how many channels
            arrays have.
        numbers: Whether labels are numbers.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        bound = signature.bind(*args, **kwargs)
        source = bound.arguments.get("source")
        if is_path(source) or not objects.is_labelled(source):
            return function(*args, **kwargs)
        classifier = bound.arguments.get("classifier") or bound.arguments.get("self")
        further = next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), "")
        more = {**bound.arguments, **bound.arguments.get(further, {})}
        stated: Any = more.get("channels") or getattr(getattr(classifier, "input_spec", None), "channels", None)
        channels = int(stated or 3)
        columns = {name: more.get(f"{name}_column") for name in ("path", "label")}
        with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
            place = Path(folder)
            if objects.is_frame(source):
                bound.arguments["source"] = _table_of(source, columns["path"], channels, place)
            else:
                bound.arguments["source"] = _to_files(source, columns, channels, place, numbers)
            return function(*bound.args, **bound.kwargs)

    return wrapped


def _table_of(frame: Any, column: str | None, channels: int, folder: Path) -> tables.Table:
    """Returns a table of pandas' kind as one of files; images that are no files are written into a folder."""
    found = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    name = objects.image_column(found, _is_image) if column is None else column
    if name is not None and name in found.columns and not all(map(is_path, found[name])):
        pairs = ((position, objects.plain(value)) for position, value in enumerate(found[name]))
        paths = dict(_written(pairs, channels, folder))
        found = found.assign(**{str(name): [str(paths[row]) for row in range(len(found))]})
    header, rows = records.of_frame(found)
    return tables.Table(Path(type(frame).__name__), header, list(enumerate(rows, 1)), True)


def _is_image_path(value: Any) -> bool:
    return is_path(value) and walk.is_image_name(Path(value))


def _is_image(value: Any) -> bool:
    return _is_encoded(value) or (_is_array(value) and len(getattr(value, "shape", ())) in (2, 3))


def _to_files(
    source: Any, columns: dict[str, Any], channels: int, folder: Path, numbers: bool = False
) -> image_sets.ImageSet:
    """Returns labelled images as a set of files; those that are files already stay where they are."""
    if isinstance(source, tuple) and (len(source) != 2 or is_path(source[1]) or not hasattr(source[1], "__len__")):
        raise ArgumentError(
            "labelled images must be a folder, a table, a data set or a pair (images, labels). Received: a tuple."
        )
    labels: list[Any] = []
    splits: list[str | None] = []
    if isinstance(source, tuple):  # arrays of a batch have one range of values
        contract = _any_size(channels)
        names = arrays.as_array(source[1]).tolist() if _is_array(source[1]) else list(source[1])
        items: Sequence[Any] = listed(source[0], contract).items
        if len(names) != len(items):
            raise ArgumentError(f"each image must have a label. Received: {len(items)} images and {len(names)} labels.")
        labels, splits = names, [None] * len(names)
        pairs: Iterator[tuple[int, Any]] = iter(enumerate(items))
    else:
        pairs = _noted(objects.samples(source, image=columns["path"], label=columns["label"]), labels, splits)
    paths = [path for _, path in _written(pairs, channels, folder)]
    if not paths:
        raise ArgumentError("labelled images must be at least one. Received: none.")
    texts, named = _numbers_of(source[1] if isinstance(source, tuple) else labels) if numbers else (labels, None)
    wrong = [] if numbers else [name for name in texts if not isinstance(name, str | int) or name == ""]
    if wrong:
        raise ArgumentError(f"labels must be text or whole numbers, one for each image. Received: {wrong[0]!r}.")
    return image_sets.of_files(folder, paths, [str(text) for text in texts], numbers=named, splits=splits)


def _noted(samples: Iterator[objects.Sample], labels: list[Any], splits: list[str | None]) -> Iterator[tuple[int, Any]]:
    for number, sample in enumerate(samples):
        labels.append(sample.label)
        splits.append(sample.split)
        yield number, sample.image


def _any_size(channels: int) -> InputSpec:
    return InputSpec(channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


def _written(pairs: Iterator[tuple[int, Any]], channels: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """Writes images that are no files into a folder, one after the other; yields the number and file of each."""
    contract = _any_size(channels)
    notes: set[str] = set()
    scale = arrays.Scale()
    for number, item in pairs:
        if is_path(item):
            yield number, Path(item)
            continue
        found = item
        if _is_encoded(item):
            found = _encoded(item, contract, notes)
        elif not isinstance(item, Pixels):
            found = scale.image_of(arrays.as_array(item, f"image {number}: "), channels, notes, f"image {number}: ")
        path = folder / f"image-{number:07}"
        path.write_bytes(_file_of(found))
        yield number, path
    _warn(notes, stacklevel=5)


def _numbers_of(labels: Any) -> tuple[list[str], tuple[str, ...]]:
    """Returns numbers as texts, one for each image, and their names: those of a table's columns, or by position."""
    try:
        values = np.asarray(labels, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"labels must be numbers, as many for each image. Received: {error}.") from error
    if values.ndim not in (1, 2) or not np.isfinite(values).all() or not values.size:
        raise ArgumentError(
            "labels must be finite numbers of shape (n,) or (n, numbers). Received: "
            f"shape {values.shape}{'' if np.isfinite(values).all() else ' with NaN or infinity'}."
        )
    rows = values.reshape(len(values), -1)
    columns = getattr(labels, "columns", None)
    own = (
        [str(column) for column in columns] if columns is not None else [f"value {n + 1}" for n in range(rows.shape[1])]
    )
    names = ("value",) if rows.shape[1] == 1 and columns is None else tuple(own)
    return [tables.BETWEEN.join(repr(float(value)) for value in row) for row in rows], names


def _file_of(item: Any) -> bytes:
    """Returns the content of a file that is decoded as an image is."""
    found = item if isinstance(item, bytes | Pixels) else decode.read_open(item)
    if isinstance(found, Pixels):
        return arrays.to_file(found)
    if isinstance(found, bytes):
        return found
    file = io.BytesIO()
    upright = found if found.mode in _PNG_MODES else decode.as_colours(found)
    upright.save(file, "PNG")
    return file.getvalue()


def batches(sources: Sources, contract: InputSpec, size: int) -> Iterator[decode.DecodedBatch]:
    """Yields images as the network takes them.

    Args:
        sources: As :func:`listed` returns them.
        contract: The network's input contract.
        size: Images in a batch.
    """
    yield from decode.decode_many(sources.items, contract, batch_size=size)


def fit_array(array: np.ndarray, contract: InputSpec) -> np.ndarray:
    """Returns an array as the network's input; one of the network's size is taken for that, but for the scale.

    This is how a tensor in a request is read, as exported networks read it.

    Args:
        array: Of one image, as :func:`resfit.data.arrays.image_of` takes it.
        contract: The network's input contract.

    Raises:
        ArgumentError: It is no image.
        ImageError: It cannot be used.
    """
    notes: set[str] = set()
    pixels = arrays.image_of(array, contract.channels, notes)
    _warn(notes, stacklevel=3)
    if pixels.values.shape == (*contract.size, contract.channels):
        return pixels.scaled()
    return decode.decode_image(pixels, contract)


def _warn(notes: set[str], stacklevel: int) -> None:
    if notes:
        warnings.warn("; ".join(sorted(notes)) + ".", InputWarning, stacklevel=stacklevel)


def _several(images: Any, contract: InputSpec, notes: set[str]) -> list[Any]:
    if objects.is_frame(images):
        table = images.to_pandas() if hasattr(images, "to_pandas") else images
        name = objects.image_column(table, _is_image)
        name = objects.image_column(table, _is_image_path) if name is None else name
        if name is None:
            raise ArgumentError(f"{_FORMS.format(contract.channels)}. Received: a table without a column of such.")
        images = [objects.plain(value) for value in table[name]]
    elif not isinstance(images, dict | tuple) and objects.is_labelled(images):
        images = [sample.image for sample in objects.samples(images, labelled=False)]
    if _is_array(images):
        array = arrays.as_array(images)
        names = array.tolist() if array.ndim == 1 and array.dtype.kind in "OUT" else []  # such as a column of a table
        if not names or not all(is_path(name) or _is_encoded(name) for name in names):
            return list(arrays.images_of(array, contract.channels, notes))
        images = names
    if isinstance(images, dict | type) or not hasattr(images, "__iter__"):
        raise ArgumentError(f"{_FORMS.format(contract.channels)}. Received: {type(images).__name__}.")
    items = list(images)
    if items and all(isinstance(item, list | tuple) for item in items):  # nested lists of numbers
        try:
            array = np.array(items)
        except ValueError:  # images of different sizes
            array = np.zeros(())
        if array.ndim in (2, 3, 4):
            return list(arrays.images_of(array, contract.channels, notes))
    found: list[Any] = []
    copied = _copied(items)
    for position, item in enumerate(items):
        where = f"image {position}: " if len(items) > 1 else ""
        if is_path(item):
            item = copied.get(os.fspath(item), item)
            found += _scanned(Path(item), contract, notes, must_exist=False)
        elif _is_encoded(item):
            found.append(_encoded(item, contract, notes, where))
        elif isinstance(item, Pixels):
            found.append(item)
        elif _is_array(item) or isinstance(item, list | tuple):
            found.append(arrays.image_of(arrays.as_array(item, where), contract.channels, notes, where=where))
        else:
            raise ArgumentError(
                f"{_FORMS.format(contract.channels)}. Received: {type(item).__name__} at position {position}."
            )
    return found


def _copied(items: Sequence[Any]) -> dict[str, Path]:
    """Returns for each handle of a list its copy on this machine; several are copied at once."""
    handles = {os.fspath(item): remote.handle_of(item) for item in items if is_path(item)}
    handles = {name: handle for name, handle in handles.items() if handle}
    for handle in handles.values():
        if urls.is_url(handle):
            raise _no_urls(handle)
    return dict(zip(handles, decode.in_order(remote.local, handles.values(), workers=remote.AT_ONCE), strict=True))


def _no_urls(url: str) -> ArgumentError:
    return ArgumentError(
        f"web addresses are fetched only where that is allowed. Received: {url[:200]!r}. Pass allow_urls=True "
        "(resfit predict --allow-urls)."
    )


def _scanned(path: Path, contract: InputSpec, notes: set[str], *, must_exist: bool) -> list[Any]:
    """Returns the images that a path stands for: those of a folder or of a scan of several, or the file itself.

    Files of a folder that are no images are noted.
    """
    handle = remote.handle_of(path)
    if handle:
        if urls.is_url(handle):
            raise _no_urls(handle)
        path = remote.local(handle)
    is_missing = not os.path.lexists(members.container(path))
    if is_missing and not must_exist:
        return [path]
    if is_missing or path.is_dir() or image_sets.is_several(path, contract.reading):
        found = image_sets.scan_images([path], reading=contract.reading)
        others = sum(item.reason == walk.NO_IMAGE for item in found.ignored)
        if others:
            notes.add(f"ignored {counted(others, 'file that is', 'files that are')} no image by content, below {path}")
        return sorted((*found.paths, *(item.path for item in found.skipped)))
    return [path]


def _is_array(value: Any) -> bool:
    return not isinstance(value, list | tuple | str) and (
        hasattr(value, "__array__") or hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__")
    )


def _is_encoded(value: Any) -> bool:
    """Says whether a value is the bytes of a file, an open file, or a PIL image."""
    if isinstance(value, bytes | bytearray | memoryview):
        return True
    pillow = sys.modules.get("PIL.Image")
    return (pillow is not None and isinstance(value, pillow.Image)) or (
        callable(getattr(value, "read", None)) and not _is_array(value)
    )


def _encoded(value: Any, contract: InputSpec, notes: set[str], where: str = "") -> Any:
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if getattr(value, "mode", None) in _WIDE_MODES and not (getattr(value, "tile", None) and value.fp is not None):
        from PIL import (
            ImageOps,
        )  # numbers of any range: as an array of them, and not as the file that they are not from

        return arrays.image_of(np.asarray(ImageOps.exif_transpose(value)), contract.channels, notes, where=where)
    return value
