"""``resfit convert``: weights from any source into a file for Keras, PyTorch's libraries or resfit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console
from resfit.cli.options import Json

if TYPE_CHECKING:
    from resfit.architecture.spec import ArchitectureSpec


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("convert", epilog="Example: resfit convert hf://timm/resnet18.a1_in1k resnet18.keras")(convert)


def convert(
    source: Annotated[
        str, typer.Argument(help="A file, a folder, a handle (hf://, timm://, kaggle://, https://) or a name.")
    ],
    destination: Annotated[
        Path,
        typer.Argument(help="Ends in .keras, .weights.h5, .h5, .safetensors or .pth; or a folder for timm's names."),
    ],
    naming: Annotated[
        str | None, typer.Option(help="Names of the tensors: timm, timm-v2, torchvision, transformers, cifar, resfit.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Name of the catalog that says what the source leaves open.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Which network of the source, by what its names begin with.")
    ] = None,
    averaged: Annotated[bool, typer.Option("--ema", help="Take the running average that the source holds.")] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="Pattern of tensors to leave out. Repeatable.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option("--set", help="field=value of the architecture, over the source's. Repeatable.")
    ] = None,
    body: Annotated[
        bool, typer.Option("--body", help="The network without its classifier, out of a detector or segmenter too.")
    ] = False,
    preprocess: Annotated[
        bool, typer.Option("--preprocess/--no-preprocess", help="Whether a .keras network takes RGB images 0..255.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Read the result back and compare the outputs.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Convert the weights of a residual network, whatever they come in."""
    console.load_tensorflow()
    from resfit import zoo
    from resfit.checkpoints import convert, write

    write.check_target(destination)
    reading: dict[str, Any] = {
        "architecture": architecture,
        "prefix": prefix,
        "averaged": averaged,
        "ignore": tuple(ignore or ()),
        **_overrides(assume or ()),
    }
    reading = {key: value for key, value in reading.items() if value or (key == "prefix" and value is not None)}
    preprocess = preprocess or destination.suffix != ".keras"  # weights alone are the same either way
    read = zoo.read(source, reading=reading, needs_top=not body)
    model = convert.load_source(read, include_top=False if body else None, preprocess=preprocess)
    for sentence in model.assumptions:
        console.message(f"Assumed: {console.printable(sentence)}")
    write.write(model, destination, naming=naming)
    difference = _difference(model, destination, preprocess) if check else None
    result = {
        "source": source,
        "destination": str(destination),
        "network": model.name,
        "architecture": model.architecture.to_dict() if model.architecture else None,
        "parameters": model.count_params(),
        "assumptions": list(model.assumptions),
        "largest_relative_difference": difference,
    }
    if as_json:
        console.print_json(result)
        return
    typer.echo(f"{destination}: {model.name}, {model.count_params():,} parameters{_shape(model.architecture)}")
    if difference is not None:
        typer.echo(f"Read back, the outputs differ by {difference:.1e} of the largest.")


def _overrides(texts: list[str] | tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"must be field=value. Received: {text!r}.", param_hint="--set")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None if value == "None" else value
        found[name.strip()] = tuple(parsed) if isinstance(parsed, list) else parsed
    return found


def _difference(model: Any, destination: Path, preprocess: bool) -> float | None:
    """Returns how far the written network is from the one that was read; None where weights alone do not say which."""
    import numpy as np

    from resfit import zoo
    from resfit.architecture import catalog

    has_top = model.layers[-1].name == "predictions"
    if destination.suffix == ".keras":
        again = zoo.load(destination)
    elif destination.suffix == ".h5" and model.name not in catalog.rows():
        return None
    elif destination.suffix == ".h5":
        again = zoo.load(model.name, weights=destination, include_top=has_top, in_channels=model.input_shape[-1])
    else:
        again = zoo.load(destination)
    side = min(*model.architecture.input_size, 128)
    images = np.random.default_rng(0).integers(0, 256, (1, side, side, model.input_shape[-1])).astype("float32")
    if not preprocess:
        images = images / 127.5 - 1
    expected, received = (np.asarray(one(images, training=False)) for one in (model, again))
    return float(abs(expected - received).max() / abs(expected).max())


def _shape(spec: ArchitectureSpec | None) -> str:
    if spec is None:
        return ""
    kinds = " and ".join(dict.fromkeys(spec.kinds))
    return f"; {kinds} blocks {list(spec.depths)}, widths {list(spec.widths)}, {spec.classes} classes"
