"""``resfit models`` and ``resfit info``: what there is, without loading any of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli.options import Json

if TYPE_CHECKING:
    from resfit.detectors import DetectorInfo
    from resfit.weights.registry import CheckpointInfo
    from resfit.zoo import Description, ModelInfo

# Which published weights, for every command that lists them.
Licence = Annotated[
    str | None, typer.Option("--licence", help='"permissive" (Apache, MIT, BSD) or a pattern such as "apache*".')
]
TrainedOn = Annotated[
    str | None, typer.Option("--trained-on", help="Part of the training data's name, such as imagenet-21k.")
]
Publisher = Annotated[str | None, typer.Option("--source", help="Who publishes them, such as timm.")]

Task = Annotated[str, typer.Option("--task", help="classification or detection.")]

#: What ``--sort`` takes: the value of a checkpoint, and whether the largest comes first.
_ORDERS: dict[str, tuple[str, bool]] = {
    "top1": ("top1", True),
    "params": ("parameters", False),
    "gmacs": ("gmacs", False),
    "name": ("name", False),
}


def register(app: typer.Typer) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
    """
    app.command("models", epilog='Example: resfit models "resnet5*" --weights --licence permissive --sort top1')(models)
    app.command("info", epilog="Example: resfit info resnet50, or resfit info weights.h5")(info)


def models(
    pattern: Annotated[str, typer.Argument(help='Shell pattern, such as "resnet5*" or "*.a1_in1k".')] = "*",
    weights: Annotated[
        bool, typer.Option("--weights", help="List published weights, not networks; as each option below does.")
    ] = False,
    licence: Licence = None,
    trained_on: TrainedOn = None,
    source: Publisher = None,
    task: Task = "classification",
    sort: Annotated[str | None, typer.Option("--sort", help="top1 (detectors: ap), params, gmacs or name.")] = None,
    as_json: Json = False,
) -> None:
    """List the networks, or the published weights: parameters, cost, accuracy and licence."""
    if check_task(task) == "detection":
        _detectors(pattern, licence, trained_on, source, sort, as_json)
        return
    if weights or any(option is not None for option in (licence, trained_on, source, sort)):
        _weights(pattern, licence, trained_on, source, sort, as_json)
        return
    from resfit import zoo

    found = zoo.list_models(pattern)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in found], indent=2))
        return
    if not found:
        typer.echo(f"No network matches {pattern!r}. `resfit models` lists them all.", err=True)
        raise typer.Exit(1)
    typer.echo(_models_table(found))
    loadable = sum(row.loadable for row in found)
    typer.echo(
        f"{len(found)} networks, {loadable} with weights that `resfit.load` brings by name (*). "
        "GMACs at the size given.",
        err=True,
    )


def check_task(task: str) -> str:
    """Returns the task of published networks that an option names.

    Args:
        task: The option.

    Raises:
        ArgumentError: There are no published networks for it.
    """
    from resfit.errors import ArgumentError, closest

    if task not in ("classification", "detection"):
        raise ArgumentError(
            f"--task must be classification or detection. Received: {task!r}."
            f"{closest(task, ('classification', 'detection'))}"
        )
    return task


def _detectors(
    pattern: str, licence: str | None, trained_on: str | None, source: str | None, sort: str | None, as_json: bool
) -> None:
    from resfit import detectors

    found = detectors.list_detectors(pattern, licence=licence, trained_on=trained_on, source=source)
    found = found if sort is None else detectors.ordered(found, sort)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in found], indent=2))
        return
    if not found:
        typer.echo("No detector matches. `resfit models --task detection` lists them all.", err=True)
        raise typer.Exit(1)
    typer.echo(detectors_table(found))
    typer.echo(
        f"{len(found)} detectors, {sum(row.loadable for row in found)} with weights that `resfit.load` brings by name "
        "(*). Box AP at the shorter and the longest side given, GMACs at the size in brackets.",
        err=True,
    )


def detectors_table(found: Sequence[DetectorInfo]) -> str:
    """Lays detectors out as a table.

    Args:
        found: The detectors.
    """
    rows = [
        (
            row.name + (" *" if row.loadable else ""),
            row.family,
            row.backbone,
            f"{row.parameters / 1e6:.2f}",
            f"{row.gmacs:.1f} ({_size(row.cost_size)})",
            _percent(row.ap),
            _size(row.evaluation_size) if row.evaluation_size else "",
            row.evaluated_on,
            row.licence or ("none stated" if row.loadable else ""),
        )
        for row in found
    ]
    columns = ("name", "family", "backbone", ">Mparams", ">GMACs", ">box AP", ">at", "on", "licence")
    return table(columns, rows)


def _detector(name: str, as_json: bool) -> None:
    """Describes a detector of the catalog."""
    from resfit import detectors

    found = detectors.describe(name)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    row, contract = found.info, found.input_spec
    height, width = contract["size"]
    fits = contract["resize_mode"] == "fit"
    sized = f"shorter side {height}, longer at most {width}" if fits else f"stretched to {width}x{height}"
    known = [f"sha256 {row.sha256}…"] if row.sha256 else []
    known += [f"{row.megabytes:g} MB"] if row.megabytes else []
    lines = [
        f"{row.name}  ({row.family} on {row.backbone}; {row.paper})",
        f"parameters       {row.parameters:,}",
        f"GMACs            {row.gmacs:.2f} at {_size(row.cost_size)}",
        f"boxes            {found.boxes:,} before suppression, {row.classes} class outputs",
        f"input            {contract['channel_order'].upper()}, {sized}, "
        f"(x * {contract['scale']:.6g} - {contract['mean']}) / {contract['std']}, {contract['interpolation']}",
    ]
    if row.loadable:
        lines += [
            f"weights          {row.url}" + (f" ({', '.join(known)})" if known else ""),
            f"licence          {row.licence or 'none is stated for the weights'}",
            f"trained on       {row.training_data}",
            f"box AP           {row.ap:g} on {row.evaluated_on} at {_size(row.evaluation_size or row.cost_size)} "
            f"({row.figures})",
        ]
    else:
        lines.append("weights          none published")
    rows = [(part, f"{one:,}", f"{other:,}") for part, (one, other) in found.parts.items()]
    typer.echo("\n".join(lines) + "\n\n" + table(("part", ">parameters", ">MACs"), rows))


def info(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name that `resfit models` lists, a checkpoint's, a file or folder, or a handle. Without it this "
            "machine is described: device, driver, precisions."
        ),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of a file: ARGUMENT=VALUE of what an assumption names. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a network, a file of weights or a classifier, without building it; or this machine.

    Of a name: stages, shapes, parameters, MACs, input contract, published weights. Of a file or folder: its format, the
    networks in it, its head, its input contract, and what is assumed or left out. Of a classifier: its card.
    """
    if name is None:
        _machine(as_json)
        return
    from resfit import zoo
    from resfit.errors import UnknownNameError
    from resfit.networks.detection import catalog
    from resfit.weights import locate

    path = locate.as_path(name)
    if path is not None:
        _file(path, assume or [], as_json)
        return
    if name in catalog.rows():
        _detector(name, as_json)
        return
    try:
        found = zoo.describe(name)
    except UnknownNameError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    own = next((row for row in found.checkpoints if row.name == name), None)
    parts = [_heading(found), *([_checkpoint(own)] if own else []), _stages_table(found)]
    typer.echo("\n\n".join([*parts, _checkpoints_table(found)] if found.checkpoints else parts))


def _machine(as_json: bool) -> None:
    """Describes what computes here."""
    from resfit.cli import console

    console.load_tensorflow()
    import tensorflow as tf

    from resfit import devices, engines
    from resfit.engines.base import RUNTIMES

    device = devices.current()
    found = {
        **device.to_dict(),
        "cards": [card.to_dict() for card in devices.first_use()],
        "tensorflow": tf.__version__,
        "engines": {
            name: [precision for precision in engines.PRECISIONS if engines.has_precision(name, precision, device)]
            for name in ("keras", *RUNTIMES)
            if engines.is_installed(name)
        },
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows: list[tuple[str, object]] = [("device", devices.told(found))]
    rows += [("card", devices.told(card)) for card in found["cards"]]
    rows += [("TensorFlow", tf.__version__)]
    rows += [(f"engine {name}", ", ".join(precisions)) for name, precisions in found["engines"].items()]
    console.print_table("", ("", ""), rows)


def _file(path: Path, assume: list[str], as_json: bool) -> None:
    """Describes a file or folder. Where no network is found in it, that is said, and the command fails."""
    from resfit import artifact
    from resfit.cli.console import printable
    from resfit.cli.convert import overrides
    from resfit.weights import describe

    if path.is_dir() and (kind := artifact.kind_of(path)):
        if kind != artifact.CLASSIFIER.name:
            _fitted(path, as_json)
            return
        description, _ = artifact.read(path)
        if as_json:
            typer.echo(json.dumps({"path": str(path), **description}, indent=2))
        else:
            typer.echo("\n".join(printable(line) for line in _classifier_card(path, description)))
        return
    found = describe.describe(path, **overrides(assume))
    text = json.dumps(found.to_dict(), indent=2) if as_json else describe.text(found)
    typer.echo("\n".join(printable(line) for line in text.splitlines()))
    if found.problem:
        raise typer.Exit(1)


def _fitted(path: Path, as_json: bool) -> None:
    """Describes a fitted model of any task by its own card."""
    from resfit.cli.console import load_tensorflow, printable
    from resfit.tasks import dispatch

    load_tensorflow()
    fitted = dispatch.load(path)
    if as_json:
        card = {name: str(value) for name, value in fitted.card()}
        typer.echo(json.dumps({"path": str(path), "task": fitted.task, **card, "metrics": fitted.metrics}, indent=2))
        return
    width = max(len(name) for name, _ in fitted.card()) + 2
    lines = [f"{path}  (a model of resfit for {fitted.task})"]
    lines += [f"{name:<{width}}{value}" for name, value in fitted.card()]
    typer.echo("\n".join(printable(line) for line in lines))


def _classifier_card(path: Path, description: dict[str, Any]) -> list[str]:
    """The lines that describe a classifier."""
    classes, contract = description.get("classes") or [], description.get("input") or {}
    recipe, metrics = description.get("recipe") or {}, description.get("metrics") or {}
    shown = ", ".join(map(str, classes[:12])) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    plain = {key: value for key, value in metrics.items() if isinstance(value, (int, float, str))}
    size = contract.get("size") or ["?", "?"]
    return [
        f"{path}  (a classifier of resfit)",
        f"classes     {len(classes)}: {shown}",
        f"network     {recipe.get('model') or recipe.get('network') or 'unknown'}, {recipe.get('strategy', 'unknown')}",
        f"input       {str(contract.get('channel_order')).upper()} at {size[0]}x{size[1]}",
        *(
            f"{key:<11} {value:.6g}" if isinstance(value, float) else f"{key:<11} {value}"
            for key, value in plain.items()
        ),
        f"written by  resfit {(description.get('versions') or {}).get('resfit', 'unknown')}",
    ]


def _weights(
    pattern: str, licence: str | None, trained_on: str | None, source: str | None, sort: str | None, as_json: bool
) -> None:
    from resfit.errors import ArgumentError, closest
    from resfit.weights import registry

    if sort is not None and sort not in _ORDERS:
        raise ArgumentError(f"--sort must be one of {', '.join(_ORDERS)}. Received: {sort!r}.{closest(sort, _ORDERS)}")
    find = functools.partial(registry.find, pattern, licence=licence, trained_on=trained_on, source=source)
    found = [_costed(row) for row in find()]
    alone = find(among=registry.modules())
    if sort is not None:
        key, descending = _ORDERS[sort]
        known = sorted((row for row in found if row[key] is not None), key=lambda row: row[key], reverse=descending)
        if sort == "top1":  # accuracies on one benchmark say nothing about those on another
            known.sort(key=lambda row: (row["evaluated_on"] != registry.IMAGENET, row["evaluated_on"]))
        found = known + [row for row in found if row[key] is None]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if alone:
        names = ", ".join(row.name for row in alone)
        typer.echo(f"Beside them, modules that resfit.hub.KerasLayer alone runs: {names}.", err=True)
    if not found:
        typer.echo("No weights match. `resfit models --weights` lists them all.", err=True)
        raise typer.Exit(1)
    typer.echo(_weights_table(found))
    loadable = sum(row["loadable"] for row in found)
    typer.echo(
        f"{len(found)} checkpoints, {loadable} that `resfit.load` brings by name (*). Top-1 and GMACs at the size "
        f"given; where it was not measured on {registry.IMAGENET}, what it was measured on is named.",
        err=True,
    )


def _costed(row: CheckpointInfo) -> dict[str, Any]:
    """A checkpoint's fields with what it costs: counted where its network is known, else as published."""
    from resfit.suggestions import cost

    counted = cost(row)
    published = (row.params_m and round(row.params_m * 1e6), row.gmacs)
    parameters, gmacs = counted or published
    gmacs = gmacs if gmacs is None else round(gmacs, 4)
    return {**row.to_dict(), "parameters": parameters, "gmacs": gmacs, "loadable": row.loadable}


def _weights_table(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            row["name"] + (" *" if row["loadable"] else ""),
            row["architecture"],
            row["source"],
            f"{row['parameters'] / 1e6:.2f}" if row["parameters"] else "",
            f"{row['gmacs']:.2f}" if row["gmacs"] else "",
            str(row["eval_size"] or row["input_size"]),
            _percent(row["top1"]),
            _benchmark(row["evaluated_on"]),
            str(row["classes"] or ""),
            row["training_data"],
            row["licence"],
        )
        for row in found
    ]
    columns = ("checkpoint", "network", "source", ">Mparams", ">GMACs", ">size", ">top-1", "on", ">classes")
    return table((*columns, "trained on", "licence"), rows)


def _heading(found: Description) -> str:
    row, contract = found.info, found.input_spec
    lines = [
        f"{row.name}  ({row.family}; {row.paper})",
        f"parameters       {row.parameters:,}",
        f"GMACs            {row.gmacs:.2f} at {_size(row.input_size)}",
        f"receptive field  {found.receptive_field} px",
        f"input            {contract.channel_order.upper()} at {_size(contract.size)}, "
        f"(x * {contract.scale:.6g} - {list(contract.mean)}) / {list(contract.std)}, "
        f"{contract.interpolation}, "
        f"centre crop {contract.crop_fraction:g}",
    ]
    if row.weights:
        where = "loadable by name" if row.loadable else "not loadable by name yet"
        lines.append(f"weights          {row.weights} ({row.licence or 'licence unknown'}; {where})")
    else:
        lines.append("weights          none published")
    return "\n".join(lines)


def _checkpoint(row: CheckpointInfo) -> str:
    """Where a checkpoint lies, under what licence, and whose figures it comes with."""
    digest = f"sha256 {row.sha256}" if row.sha256 else f"md5 {row.md5}" if row.md5 else ""
    told = {
        f"weights {row.name}": f"{row.source}, {row.licence or 'licence unknown'}",
        "at": ", or ".join(place for place in (row.url, row.mirror) if place),
        "digest": digest,
        "trained on": row.training_data,
        "classes": f"{row.classes}{f', named as {row.labels}' if row.labels else ''}"
        if row.classes
        else "no classifier",
        "figures": row.figures,
        "cannot be loaded": row.obstacle,
    }
    return "\n".join(f"{key}: {value}" for key, value in told.items() if value)


def _models_table(found: list[ModelInfo]) -> str:
    rows = [
        (
            row.name,
            row.family,
            f"{row.parameters / 1e6:.2f}",
            f"{row.gmacs:.2f}",
            _size(row.input_size),
            _percent(row.top1),
            _percent(row.top5),
            f"{row.weights}{' *' if row.loadable else ''}",
            row.licence,
        )
        for row in found
    ]
    return table(("name", "family", ">Mparams", ">GMACs", ">size", ">top-1", ">top-5", "weights", "licence"), rows)


def _stages_table(found: Description) -> str:
    rows = [
        (
            stage.name,
            str(stage.blocks or ""),
            "x".join(map(str, stage.shape)),
            str(stage.stride or ""),
            f"{stage.parameters:,}",
            f"{stage.macs:,}",
        )
        for stage in found.stages
    ]
    return table(("stage", ">blocks", ">shape", ">stride", ">parameters", ">MACs"), rows)


def _checkpoints_table(found: Description) -> str:
    rows = []
    for row in found.checkpoints:
        own = row.name == found.info.weights
        rows.append(
            (
                row.name + (" *" if row.loadable else ""),
                row.source,
                _percent(found.info.top1 if own else row.top1),
                _percent(found.info.top5 if own else row.top5),
                str(row.eval_size or ""),
                _benchmark(row.evaluated_on),
                str(row.classes),
                row.training_data,
                row.licence or "unknown",
            )
        )
    columns = ("checkpoint", "source", ">top-1", ">top-5", ">at", "on", ">classes", "training data", "licence")
    return table(columns, rows)


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lays a table out, a row a line however wide the terminal, since rich takes a tenth of a second for it.

    Args:
        columns: Headings; one that begins with ``>`` makes its column right-aligned.
        rows: Cells.
    """
    heads = tuple(column.removeprefix(">") for column in columns)
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    layout = "  ".join(
        f"{{:{'>' if column.startswith('>') else '<'}{width}}}" for column, width in zip(columns, widths, strict=True)
    )
    lines = [layout.format(*heads), "  ".join("─" * width for width in widths)]
    return "\n".join(line.rstrip() for line in [*lines, *(layout.format(*row) for row in rows)])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _benchmark(name: str) -> str:
    """What accuracies were measured on, unless it is ImageNet by the checkpoint's own classifier."""
    from resfit.weights.registry import IMAGENET

    return "" if name == IMAGENET else name.replace(f"{IMAGENET} (linear probe)", "linear probe")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
