"""What the commands share that ask a classifier about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from resfit.cli import console, medical

if TYPE_CHECKING:
    from resfit.classifier import Classifier


def opened(load: Callable[[Any], Classifier], source: str | Path) -> Classifier:
    """Loads a classifier, and says what one of medical images is not.

    Args:
        load: Loads it.
        source: What is loaded.
    """
    console.load_tensorflow()
    classifier = load(source)
    medical.print_notice(classifier.metrics)
    return classifier


def end_with_unusable(found: Sequence[Any], images: Sequence[Path]) -> None:
    """Lists images that could not be used. Where one was asked for by name, or none is left, the command has failed.

    Args:
        found: What was said about each: a ``path``, and an ``error`` that is empty if it could be used.
        images: What was asked for: files and folders.
    """
    failed = [item for item in found if item.error]
    for item in failed:
        console.message(f"Skipped {console.printable(item.path)}: {item.error}")
    named = {path for path in images if not path.is_dir()}
    if len(failed) == len(found) or any(item.path in named for item in failed):
        raise typer.Exit(1)
