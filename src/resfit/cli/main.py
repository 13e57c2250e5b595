"""The ``resfit`` command: finds the group of a subcommand, runs it, and turns errors into one line and an exit code.

Exit codes: 0 success, 1 the work failed, 2 wrong usage (an argument that breaks a rule), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from resfit import cli

#: Which module of ``resfit.cli`` brings which commands. A module is imported when one of its commands is called.
GROUPS: dict[str, tuple[str, ...]] = {
    "models": ("models", "info", "summary"),
    "suggest": ("suggest",),
    "fit": ("fit",),
    "classify": ("predict", "evaluate", "embed"),
    "convert": ("convert",),
    "pretrain": ("pretrain",),
    "benchmark": ("benchmark",),
    "cache": ("cache",),
    "explain": ("explain",),
    "check": ("check",),
    "export": ("export",),
    "scale": ("scale",),
    "serve": ("serve",),
    "demo": ("demo",),
}


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: What stands after ``resfit``; ``None`` takes the program's own.

    Raises:
        SystemExit: Always, with the exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_flag(given, "--debug")
    # TensorFlow's greetings; with --debug also why it cannot use a card
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "3")
    if not debug:
        warnings.showwarning = _show_warning
    from resfit import devices
    from resfit.errors import ArgumentError, ResfitError

    try:
        build(given)(args=given, prog_name="resfit")
    except (ResfitError, OSError) as error:
        if debug:
            raise
        _flush()
        print(f"Error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _flush()
        if devices.is_out_of_memory(error):
            print(
                f"Error: the device has not enough memory: {_one_line(error)[:300]}\n"
                "Close other programs that use it, or take a smaller --batch-size, a smaller network or --device cpu.",
                file=sys.stderr,
            )
            sys.exit(1)
        print(
            f"Error: unexpected {type(error).__name__}: {_one_line(error)}\n"
            "This is a fault of resfit. Run the command again with --debug and report what it prints.",
            file=sys.stderr,
        )
        sys.exit(1)


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """Returns the application with the commands that these arguments need.

    Args:
        arguments: What stands after ``resfit``. If they start with a known command, only its group is imported.
    """
    app = typer.Typer(
        name="resfit",
        help="Pre-trained residual networks for Keras, fitted to your own images.",
        epilog="Example: resfit fit photos/ -o photos.resfit",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    first = arguments[0] if arguments else ""
    wanted = [group for group, commands in GROUPS.items() if first in commands] or list(GROUPS)
    for group in wanted:
        getattr(cli, group).register(app)
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda v: _version(v))
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Pre-trained residual networks for Keras, fitted to your own images."""


def _version(asked: bool) -> None:
    if asked:
        import resfit

        typer.echo(resfit.__version__)
        raise typer.Exit


def _take_flag(arguments: list[str], flag: str) -> bool:
    """Removes a flag wherever it stands before ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = flag in arguments[:end]
    arguments[:end] = [argument for argument in arguments[:end] if argument != flag]
    return found


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror}: {error.filename}"
    else:
        text = str(error)
    from resfit.cli.console import printable

    return printable(" ".join(text.split("\n")))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        from resfit.cli.console import printable

        print(f"Warning: {printable(message)}", file=sys.stderr)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # the reader of a pipe has gone: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
