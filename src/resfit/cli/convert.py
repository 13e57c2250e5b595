"""``resfit convert``: weights from any source into a file for Keras, PyTorch's libraries or resfit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console
from resfit.cli.options import Json
from resfit.errors import AssumptionWarning

if TYPE_CHECKING:
    from resfit.networks.detection.kinds import AnyDetectorSpec
    from resfit.networks.spec import ArchitectureSpec


#: A larger share of the largest output is no rounding.
_MOST_DIFFERENCE = 1e-3


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
        list[str] | None,
        typer.Option("--set", help="ARGUMENT=VALUE of what an assumption names, such as norm_epsilon. Repeatable."),
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
    from resfit.weights import detectors, verify, write
    from resfit.weights import load as convert
    from resfit.weights.detectors import DetectorSource

    write.check_target(destination)
    reading: dict[str, Any] = {
        "architecture": architecture,
        "prefix": prefix,
        "averaged": averaged,
        "ignore": tuple(ignore or ()),
        **overrides(assume or ()),
    }
    unset: dict[str, Any] = {"architecture": None, "prefix": None, "averaged": False, "ignore": ()}
    reading = {key: value for key, value in reading.items() if key not in unset or value != unset[key]}
    preprocess = preprocess or destination.suffix != ".keras"  # weights alone are the same either way
    building = {name: reading.pop(name) for name in ("classifier_activation",) if name in reading}
    read = zoo.read_any(source, reading=reading, needs_top=not body)
    if isinstance(read, DetectorSource):
        model = detectors.load(read, preprocess=preprocess)
    else:
        model = convert.load_source(read, include_top=False if body else None, preprocess=preprocess, **building)
    for sentence in model.assumptions:
        console.message(f"Assumed: {console.printable(sentence)}")
    write.write(model, destination, naming=naming)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)  # of the own file: said above of the source
        difference = _difference(model, destination, preprocess) if check else None
    compared = (
        verify.compare(model, read, preprocess=preprocess, unsafe=_unsafe(read.path))
        if check and not isinstance(read, DetectorSource)
        else None
    )
    result = {
        "source": source,
        "destination": str(destination),
        "network": model.name,
        "architecture": model.architecture.to_dict() if model.architecture else None,
        "parameters": model.count_params(),
        "assumptions": list(model.assumptions),
        "largest_relative_difference": difference,
        "source_comparison": compared.to_dict() if compared else None,
    }
    is_other = bool(compared and compared.difference is not None and not compared.difference <= _MOST_DIFFERENCE)
    if is_other:
        console.message(f"Warning: what was read is not what the source computes. {compared}")
    if as_json:
        console.print_json(result)
        raise typer.Exit(int(is_other))
    typer.echo(f"{destination}: {model.name}, {model.count_params():,} parameters{_shape(model.architecture)}")
    if difference is not None:
        typer.echo(
            f"Read back, the outputs differ by {difference:.1e} of the largest "
            "(what was written against what was read)."
        )
    if compared is not None:
        typer.echo(console.printable(str(compared)))
    if is_other:
        raise typer.Exit(1)


def _unsafe(path: Path | None) -> list[str]:
    """Operations of a SavedModel that reach out of the process."""
    from resfit.errors import ResfitError
    from resfit.hub import scan

    if path is None or not (path / "saved_model.pb").is_file():
        return []
    try:
        return scan.outside(str(path))
    except ResfitError as error:
        return [str(error)]


def overrides(texts: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Returns the arguments that ``--set`` states.

    Args:
        texts: Each ``ARGUMENT=VALUE``, the value in JSON or as plain text.
    """
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"must be ARGUMENT=VALUE. Received: {text!r}.", param_hint="--set")
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
    from resfit.networks import catalog
    from resfit.networks.detection.kinds import AnyDetectorSpec

    is_detector = isinstance(model.architecture, AnyDetectorSpec)
    has_top = model.layers[-1].name == "predictions"
    activation = getattr(model.layers[-1], "activation", None) if has_top else "default"
    if destination.suffix == ".keras":
        again = zoo.load(destination)
    elif destination.suffix == ".h5" and model.name not in catalog.rows():
        return None
    elif is_detector:
        again = zoo.load(destination, preprocess=preprocess)
    elif destination.suffix == ".h5":
        again = zoo.load(
            model.name,
            weights=destination,
            include_top=has_top,
            in_channels=model.input_shape[-1],
            classifier_activation=activation,
        )
    else:
        again = zoo.load(destination, classifier_activation=activation)
    sides = [side or min(*model.architecture.input_size, 128) for side in model.input_shape[1:3]]
    images = np.random.default_rng(0).integers(0, 256, (1, *sides, model.input_shape[-1])).astype("float32")
    if not preprocess:
        images = images / 127.5 - 1
    expected, received = (one(images, training=False) for one in (model, again))
    pairs = zip(*(_outputs(value) for value in (expected, received)), strict=True)
    found = [(np.asarray(one), np.asarray(other)) for one, other in pairs]
    return max(float(abs(one - other).max() / abs(one).max()) for one, other in found)


def _outputs(value: Any) -> list[Any]:
    """What a model returned, as a list."""
    if isinstance(value, dict):
        return [value[name] for name in sorted(value)]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shape(spec: ArchitectureSpec | AnyDetectorSpec | None) -> str:
    if spec is None:
        return ""
    body: Any = getattr(spec, "backbone", spec)
    kinds = " and ".join(dict.fromkeys(body.kinds))
    ends = f"{spec.classes} classes" if body is spec else f"{spec.classes} class outputs of a detector"
    return f"; {kinds} blocks {list(body.depths)}, widths {list(body.widths)}, {ends}"
