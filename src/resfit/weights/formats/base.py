"""The table of formats, and what every reader returns: arrays under the source's names, and what it says of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resfit.errors import CheckpointError
from resfit.preprocessing import InputSpec
from resfit.registries import Registry

_MOST_JSON = 50_000_000
_Reader = TypeVar("_Reader", bound=Callable[[Path], "Tensors"])


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file or folder holds.

    Attributes:
        path: What was read.
        arrays: Arrays under the names of the source, in its axes.
        config: What the source states about its network in words of its own (``config.json`` beside the weights, a
            Keras model's configuration), or an empty mapping.
        input_spec: The input contract, where the source states one.
        class_names: Labels of the classes in the order of the classifier, where the source states them.
        left_out: What else is there and was not read, one sentence each.
        graph: How the arrays are used, where the source tells (ONNX); in a form of the reader's own.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_spec: InputSpec | None = None
    class_names: tuple[str, ...] | None = None
    graph: Any = None
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WeightsFormat:
    """One kind of file or folder that weights lie in.

    Attributes:
        name: What it is called.
        read: Reads the arrays of a path, and what stands beside them.
        recognises: Whether a path looks like one of this kind.
        suffixes: Endings of its files in lower case, those that are looked for first in a repository in front.
        layouts: Sets of files that hold a network together, as pairs of the file that must be there and a regular
            expression for what belongs to it. The best first.
        order: Formats are asked in this order whether they recognise a path, and repositories are searched in it.
            What looks into files comes before what goes by their endings.
        avoided: Whether files of other formats are preferred in a repository: pickles hold more than tensors.
        choose: Which files of a repository hold the network, from those with one of the endings and from all. Default:
            there must be one with the ending.
        runner: What runs a source of this kind as it is, to compare with: ``"keras"``, ``"onnx"``, ``"tensorflow"``,
            or ``""`` where nothing does.
        written: Those of the endings that :func:`resfit.weights.write.write` writes too.
    """

    name: str
    read: Callable[[Path], Tensors]
    recognises: Callable[[Path], bool]
    suffixes: tuple[str, ...] = ()
    layouts: tuple[tuple[str, str], ...] = ()
    order: int = 50
    avoided: bool = False
    choose: Callable[[Sequence[str], Sequence[str]], list[str]] | None = None
    runner: str = ""
    written: tuple[str, ...] = ()


_FORMATS: Registry[WeightsFormat] = Registry("a format", __name__.rpartition(".")[0])


def register_format(
    name: str,
    *,
    suffixes: tuple[str, ...] = (),
    recognises: Callable[[Path], bool] | None = None,
    **options: Any,
) -> Callable[[_Reader], _Reader]:
    """Registers the decorated reader of a format.

    Args:
        name: What it is called.
        suffixes: Endings of its files in lower case.
        recognises: Whether a path is one of this kind. Default: whether it has one of these endings and is no folder.
        **options: Other fields of :class:`WeightsFormat`.

    Example:
        >>> @register_format("CSV", suffixes=(".csv",))  # doctest: +SKIP
        ... def read(path):
        ...     return Tensors(path, {"conv1.weight": np.loadtxt(path)})
    """

    def has_suffix(path: Path) -> bool:
        return path.name.lower().endswith(suffixes) and not path.is_dir()

    def register(read: _Reader) -> _Reader:
        _FORMATS.add(name, WeightsFormat(name, read, recognises or has_suffix, suffixes, **options))
        return read

    return register


def all_formats() -> tuple[WeightsFormat, ...]:
    """Returns every format, in the order in which they are asked whether they recognise a path."""
    return tuple(sorted(_FORMATS.values(), key=lambda kind: (kind.order, kind.name)))


def find_format(path: Path) -> WeightsFormat | None:
    """Returns the format of a path, or None.

    Args:
        path: A file or folder.
    """
    return next((kind for kind in all_formats() if kind.recognises(path)), None)


def suffixes(runner: str | None = None) -> tuple[str, ...]:
    """Returns the endings of files that hold weights, in lower case.

    Args:
        runner: Only of the formats that this runs, such as ``"keras"``. Default: all.
    """
    kinds = [kind for kind in all_formats() if runner in (None, kind.runner)]
    return tuple(dict.fromkeys(suffix for kind in kinds for suffix in kind.suffixes))


def written_suffixes() -> tuple[str, ...]:
    """Returns the endings of files that are written, longer ones before those that they end in."""
    return tuple(sorted((end for kind in all_formats() for end in kind.written), key=len, reverse=True))


def remove_format(name: str) -> None:
    """Takes a format out of the table again.

    Args:
        name: Its name.
    """
    _FORMATS.remove(name)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a mapping of JSON that lies beside weights.

    Args:
        path: The file, of at most 50 MB.

    Raises:
        CheckpointError: It is missing, larger, no JSON, or no mapping.
    """
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the file must be JSON. Received: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the file must hold a mapping. Received: {type(value).__name__}.")
    return value
