"""What the commands share: where results and messages go, tables, progress."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from resfit.features.progress import Progress
    from resfit.tasks.base import TextTable

#: Seconds of work after which a progress bar appears.
PATIENCE = 2.0
_NO_LIMIT = 10_000  # columns of a table that no terminal shows

_WORDS = {
    "reading": "Reading images",
    "decoding": "Decoding images",
    "network": "Running the network",
    "features": "Running the network",
    "training": "Training",
}


def message(text: str) -> None:
    """Prints a message for people, on stderr."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Prints a result for machines, on stdout, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def show(table: TextTable) -> None:
    """Prints a table that a task has made, as :func:`print_table` does.

    Args:
        table: The table.
    """
    print_table(table.title, table.columns, table.rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a result for people, on stdout, without cutting a name short.

    Args:
        title: Printed above.
        columns: Headings; one that starts with ``>`` stands to the right.
        rows: The cells.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, Console(width=_NO_LIMIT).measure(table).maximum))
    if title:
        typer.echo(printable(title))
    console.print(table)


def printable(value: object) -> str:
    """Returns text in which no file name can do harm to a terminal, or fail to be encoded."""
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quantity(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    """Returns a number above 0 that a user gave with a unit, such as ``30M`` or ``50ms``.

    Args:
        text: What was given.
        units: Their factors; ``""`` is a number without one.
        option: The option that took it, for the error.
        example: One that would do, for the error.

    Raises:
        typer.BadParameter: It is none.
    """
    for unit in sorted(units, key=len, reverse=True):
        if unit and text.strip().lower().endswith(unit.lower()):
            digits, factor = text.strip()[: -len(unit)], units[unit]
            break
    else:
        digits, factor = text, units.get("", 0.0)
    try:
        value = float(digits) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be a number above 0 such as {example}. Received: {text!r}.", param_hint=option)
    return value


def size(count: float) -> str:
    """Returns a number of bytes for people, such as ``"1.5 GB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.5 else f"{count:.1f} {unit}"


@contextlib.contextmanager
def progress() -> Iterator[Progress | None]:
    """Yields what library functions report their progress to; nothing where stderr is no terminal.

    The bar appears once the work has taken more than two seconds.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    begin = time.monotonic()
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if not bar.live.is_started:
            if time.monotonic() - begin < PATIENCE:
                return
            bar.start()
        what, _, detail = what.partition("\t")
        text = _WORDS.get(what, what) + (f": {detail}" if detail else "")
        if what not in tasks:
            tasks[what] = bar.add_task(text, total=total)
        bar.update(tasks[what], completed=done, total=total, description=text)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def load_tensorflow_for(source: str | os.PathLike[str]) -> None:
    """Imports TensorFlow where a model needs it; for a fitted model that is when its Keras model is read.

    Args:
        source: A fitted model's folder, or a network.
    """
    from pathlib import Path

    from resfit import artifact

    if not artifact.kind_of(Path(source)):
        load_tensorflow()
        return
    from resfit.tasks import dispatch, stored_network

    if not dispatch.task_of(Path(source)).reads_lazily:
        load_tensorflow()
    elif load_tensorflow not in stored_network.before_keras:
        stored_network.before_keras.append(load_tensorflow)


def load_tensorflow() -> None:
    """Imports TensorFlow without the lines that its C++ part writes to stderr while loading."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError):  # there is no stderr
        import tensorflow

        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow  # noqa: F401
    except ImportError as error:
        from resfit import dependencies
        from resfit.errors import MissingDependencyError

        if error.name != "tensorflow":
            raise MissingDependencyError(f"TensorFlow cannot be imported: {error}") from error
        raise MissingDependencyError(dependencies.message("this command", "tensorflow")) from error
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
    from resfit import devices

    devices.first_use()
