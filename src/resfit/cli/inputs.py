"""What the commands share that ask a classifier about images."""

from __future__ import annotations

import dataclasses
import glob
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from resfit.cli import console, medical
from resfit.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel

#: What stands for standard input.
STDIN = Path("-")
_LONGEST = 4096
_IMAGES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*", b"MM", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_Item = TypeVar("_Item", bound=Any)
_Fitted = TypeVar("_Fitted", bound="FittedModel")


def opened(load: Callable[[Any], _Fitted], source: str | Path) -> _Fitted:
    """Loads a fitted model, and says what one of medical images is not.

    Args:
        load: Loads it.
        source: What is loaded.
    """
    console.load_tensorflow_for(source)
    fitted = load(source)
    medical.print_notice(fitted.metrics)
    return fitted


def options_of(fitted: FittedModel, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a method that were given; one that its task does not have is refused.

    Args:
        fitted: The fitted model.
        method: Name of the method, such as ``"predict"``.
        given: Options by keyword; ``None`` and ``False`` stand for those that were not given.

    Raises:
        ArgumentError: The task has no such option.
    """
    function = inspect.unwrap(getattr(fitted, method))
    parameters = inspect.signature(function).parameters
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    unknown = [name for name in asked if name not in parameters]
    if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        raise ArgumentError(
            f"{method} of a model for {fitted.task} has no such option. Received: "
            f"{', '.join('--' + name.replace('_', '-') for name in unknown)}."
        )
    return asked


def with_addresses(images: Sequence[Path | bytes]) -> list[Path | bytes | str]:
    """Returns images, of which paths that stand for web addresses are the addresses.

    Args:
        images: As :func:`given` returns them.
    """
    from resfit.data import remote, urls

    handles = [remote.handle_of(image) if isinstance(image, Path) else "" for image in images]
    return [handle if urls.is_url(handle) else image for image, handle in zip(images, handles, strict=True)]


def given(arguments: Sequence[Path]) -> list[Path | bytes]:
    """Returns the images that arguments stand for: files and folders, and one image that was piped in as bytes.

    A pattern that the shell has not expanded is expanded. ``-`` reads standard input: an image, or a list of paths as
    ``find`` prints it, one a line or with zero bytes between.

    Args:
        arguments: As they were typed.

    Raises:
        DataError: None of them exists, or nothing was piped in.
    """
    from resfit.data import decode, members, remote

    found: list[Path | bytes] = []
    for argument in arguments:
        if argument == STDIN:
            found += _piped(sys.stdin.buffer.read(decode.MAX_BYTES + 1))
        elif not os.path.lexists(argument) and glob.has_magic(str(argument)):
            found += [Path(name) for name in sorted(glob.glob(str(argument), recursive=True))] or [argument]
        else:
            found.append(argument)
    files = [members.container(item) for item in found if isinstance(item, Path) and not remote.handle_of(item)]
    if len(files) == len(found) and not any(os.path.lexists(path) for path in files):
        first = str(found[0]) if found else str(STDIN)
        more = f", and neither do the {len(found) - 1} others" if len(found) > 1 else ""
        raise DataError(f"images must be files or folders. Received: {first!r}, which does not exist{more}.")
    return found


def _piped(data: bytes) -> list[Path | bytes]:
    """Returns what was piped in: an image, or the paths of a list."""
    from resfit.data import members

    if not data.strip():
        raise DataError("- reads an image or a list of paths from standard input. Received: nothing.")
    between = b"\0" if b"\0" in data else b"\n"
    names = [name.rstrip(b"\r") for name in data.split(between)]
    paths = [Path(os.fsdecode(name)) for name in names if name]
    first = names[0]
    try:
        is_list = bool(first) and len(first) < _LONGEST and os.path.lexists(members.container(paths[0]))
    except (OSError, ValueError):  # no name that a file could have
        is_list = False
    is_text = between == b"\n" and first.isascii() and not any(byte < 32 for byte in first)
    return list(paths) if is_list or (is_text and not data.startswith(_IMAGES)) else [data]


def with_names(found: Sequence[_Item]) -> list[_Item]:
    """Returns results with ``-`` as the path of an image that was piped in.

    Args:
        found: Dataclasses with a ``path``.
    """
    return [item if item.path is not None else dataclasses.replace(item, path=STDIN) for item in found]


def end_with_unusable(found: Sequence[Any], images: Sequence[Path | bytes]) -> None:
    """Lists images that could not be used. Where one was asked for by name, or none is left, the command has failed.

    Args:
        found: What was said about each: a ``path``, and an ``error`` that is empty if it could be used.
        images: What was asked for, as :func:`given` returns it.
    """
    failed = [item for item in found if item.error]
    for item in failed:
        console.message(f"Skipped {console.printable(item.path)}: {item.error}")
    named = {path if isinstance(path, Path) else STDIN for path in images if not _is_folder(path)}
    if len(failed) == len(found) or any(item.path in named for item in failed):
        raise typer.Exit(1)


def _is_folder(item: Path | bytes) -> bool:
    return isinstance(item, Path) and item.is_dir()
