"""``resfit explain``: why a classifier says what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console, inputs, medical
from resfit.cli.options import Artifact, BatchSize, Device, Images, Json

if TYPE_CHECKING:
    from resfit.explain import Explanation


_SHOWN = {"positive": "what speaks for it", "negative": "what speaks against it", "none": "nothing"}


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("explain", epilog="Example: resfit explain photos.resfit a.jpg -o why/")(explain)


def explain(
    artifact: Artifact,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures (PNG), raw maps (.npy) and JSON.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="Of classifiers: grad-cam, hires-cam, grad-cam++, eigen-cam, integrated-gradients or occlusion. "
            "Default: grad-cam."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain. Default: the most probable one.")] = None,
    box: Annotated[
        int | None, typer.Option(min=0, help="Of detectors: which box, 0 being the one with the highest score.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="Feature map of a CAM: stage1 to stage5, or a layer. Default: the last useful one."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Training images to find that are most alike.")] = 0,
    references: Annotated[
        Path | None, typer.Option(help="Folder with the training images. Default: those that OUT holds.")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    as_json: Json = False,
) -> None:
    """Show which parts of images speak for a class, or for a box of a detector."""
    from resfit.tasks import dispatch

    fitted = inputs.opened(dispatch.load, artifact)
    options = inputs.options_of(
        fitted,
        "explain",
        {
            "method": method,
            "target": target,
            "box": box,
            "stage": stage,
            "examples": examples or None,
            "references": references,
            "batch_size": batch_size,
        },
    )
    asked = inputs.given(images)
    with console.progress() as progress:
        found = fitted.explain(asked, progress=progress, **options)
    found = inputs.with_names(found)
    rows = _write(medical.without_names(found, fitted.metrics), out)
    if as_json:
        console.print_json(rows)
    else:
        cells = [
            (
                row["path"],
                row["label"],
                row["target"],
                f"{row['probability']:.1%}",
                row["picture"],
                _SHOWN[row["evidence"]],
            )
            for row in rows
            if not row["error"]
        ]
        console.print_table("", ("image", "class", "explained", ">probability", "picture", "the map shows"), cells)
    for row in rows:
        if row["note"]:
            console.message(console.printable(f"{row['path'] or 'image'}: {row['note']}."))
    inputs.end_with_unusable(found, asked)


def _write(found: list[Explanation], out: Path) -> list[dict[str, Any]]:
    """Writes pictures and maps, and what they are as ``explanations.json``."""
    import numpy as np
    from PIL import Image

    from resfit.storage.atomic import atomic_open, write_json

    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    for item in found:
        row = item.to_dict()
        if not item.error:
            name = _name(item.path, taken)
            files = {"picture": out / f"{name}.png", "raw": out / f"{name}.npy"}
            with atomic_open(files["picture"]) as file:
                Image.fromarray(item.overlay).save(file, format="PNG")
            with atomic_open(files["raw"]) as file:
                np.save(file, item.raw)
            row |= {key: str(path) for key, path in files.items()}
            for number, example in enumerate(item.examples):
                if example.thumbnail:
                    path = out / f"{name}.example{number + 1}.jpg"
                    with atomic_open(path) as file:
                        file.write(example.thumbnail)
                    row["examples"][number]["picture"] = str(path)
        rows.append(row)
    write_json(out / "explanations.json", rows)
    return rows


def _name(path: Path | None, taken: set[str]) -> str:
    """Returns a name for the files of an image that no other image has."""
    stem = (path.stem if path is not None and path != inputs.STDIN else "image")[:100]
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name
