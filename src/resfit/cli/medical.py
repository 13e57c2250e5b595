"""Options and the notice for medical images, shared by commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from resfit.cli import console

if TYPE_CHECKING:
    from resfit.preprocessing import Reading

_Item = TypeVar("_Item", bound=Any)

Frame = Annotated[str, typer.Option(help="Of a scan of several frames or slices: middle, each, or a number from 0.")]
Series = Annotated[str, typer.Option(help="Of a DICOM series of several files: each, or middle for that one.")]
Window = Annotated[
    str, typer.Option(help="Window of a scan: the number of one of its own, from 0, or centre,width such as 40,400.")
]
Plane = Annotated[str, typer.Option(help="How a NIfTI volume is cut: axial, coronal or sagittal.")]
Spacing = Annotated[
    float | None, typer.Option(help="Scale scans by their pixel spacing to so many millimetres a pixel.")
]


def reading(frame: str, series: str, window: str, plane: str, spacing: float | None) -> Reading | None:
    """Returns what the options say; ``None`` where they are all left as they are.

    Raises:
        ArgumentError: One is outside its choices.
    """
    from resfit.errors import ArgumentError
    from resfit.preprocessing import Reading

    try:
        parts = [float(part) for part in window.split(",")]
        chosen: Any = int(window) if len(parts) == 1 else tuple(parts)
    except ValueError:
        raise ArgumentError(f"--window must be a number, or centre,width. Received: {window!r}.") from None
    choices: dict[str, Any] = {"series": series, "plane": plane}
    found = Reading(
        frame=int(frame) if frame.isdecimal() else frame,  # type: ignore[arg-type]
        window=chosen,
        spacing=spacing,
        **choices,
    )
    return None if found == Reading() else found


def without_names(items: Sequence[_Item], metrics: Mapping[str, Any]) -> list[_Item]:
    """Returns results with pseudonyms for files, where they are written and the classifier is one of medical images.

    Args:
        items: Dataclasses with a ``path``.
        metrics: Of the classifier.
    """
    from resfit.data.medical import privacy

    if "notice" not in metrics:
        return list(items)
    return [
        item if item.path is None else dataclasses.replace(item, path=privacy.pseudonym(item.path)) for item in items
    ]


def print_notice(metrics: Mapping[str, Any]) -> None:
    """Says on stderr what a classifier of medical images is not.

    Args:
        metrics: Of the classifier.
    """
    if "notice" in metrics:
        console.message(console.printable(metrics["notice"]))
