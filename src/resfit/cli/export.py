"""``resfit export``: a classifier or network for another runtime, checked against Keras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resfit.cli import console
from resfit.cli.options import Json

if TYPE_CHECKING:
    from resfit.export import Export


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("export", epilog="Example: resfit export flowers.resfit --format onnx --precision int8")(export)


def export(
    source: Annotated[
        str, typer.Argument(metavar="OUT", help="A classifier that `resfit fit` wrote, or what `resfit info` takes.")
    ],
    format: Annotated[
        list[str] | None,
        typer.Option(help="tf_saved_model, tf_hub, keras, onnx, openvino, litert or torch; repeatable with --all."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32, float16 or int8; can be repeated with --all. Default: float32.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to. Default: OUT-FORMAT, or OUT-exports.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every format and precision, a folder each, with a table and a picture.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Real images to compare and calibrate on. Default: those that the classifier was tested on."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Of a detector: boxes and scores before suppression, not detections.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name in file names and model servers.")] = None,
    model_version: Annotated[int, typer.Option(help="Version number for TensorFlow Serving.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.")] = 0,
    as_json: Json = False,
) -> None:
    """Export a fitted model or a network for another runtime, and compare it with Keras there."""
    formats, precisions = tuple(format or ()), tuple(precision or ())
    if not every and len(formats) != 1:
        raise typer.BadParameter("name one format, or take --all.", param_hint="--format")
    if not every and len(precisions) > 1:
        raise typer.BadParameter("name one precision, or take --all.", param_hint="--precision")
    console.load_tensorflow()
    from resfit import export as exports

    target = out or _default_target(source, "exports" if every else "-".join((*formats, *precisions)))
    if every:
        rows = exports.export_all(
            source,
            target,
            formats=formats,
            precisions=precisions,
            images=images,
            name=name,
            version=model_version,
            seed=seed,
            raw=raw,
            say=console.message,
        )
    else:
        made = exports.export(
            source,
            target,
            format=formats[0],
            precision=precisions[0] if precisions else "float32",
            images=images,
            name=name,
            version=model_version,
            seed=seed,
            raw=raw,
        )
        rows = [made]
    if as_json:
        console.print_json([row.to_dict() for row in rows])
    else:
        _print_table(rows)
        typer.echo(f"Written to {console.printable(target)}")
    if any(row.failed for row in rows) or all(row.problem for row in rows):
        raise typer.Exit(1)


def _default_target(source: str, ending: str) -> Path:
    path = Path(source.rstrip("/\\"))
    stem = path.name.removesuffix(".resfit") or "network"
    beside = path.parent if path.exists() else Path()
    return beside / f"{stem}-{ending}"


def _print_table(rows: list[Export]) -> None:
    labelled = any(row.verification is not None and row.verification.accuracy is not None for row in rows)
    from resfit.export.verification import Verification

    found = next((row.verification for row in rows if row.verification is not None), None)
    difference, agreement, score = (Verification if found is None else found).HEADINGS
    ends = (score, "") if labelled else ("",)
    columns = ("format", "precision", ">MB", ">ms", difference, agreement, *ends)
    console.print_table("", columns, [_cells(row, labelled) for row in rows])
    if found is not None:
        typer.echo(f"Compared with Keras on {console.printable(found.source)}.")


def _cells(row: Export, labelled: bool) -> tuple[object, ...]:
    found = row.verification
    verdict = "disagrees" if row.failed else "left out" if row.problem else ""
    if found is None:
        return (row.format, row.precision, *([""] * (5 if labelled else 4)), verdict)
    accuracy = () if not labelled else ("" if found.accuracy is None else f"{found.accuracy:.1%}",)
    return (
        row.format,
        row.precision,
        f"{row.size / 1e6:.1f}" if row.size else "",
        f"{found.latency:.1f}",
        f"{found.difference:.1e}",
        f"{found.agreement:.1%}",
        *accuracy,
        verdict,
    )
