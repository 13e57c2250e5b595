"""``resfit models`` and ``resfit info``: what there is, without loading any of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resfit.zoo import Description, ModelInfo

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
    """
    app.command("models", epilog='Example: resfit models "resnet5*"')(models)
    app.command("info", epilog="Example: resfit info resnet50")(info)


def models(
    pattern: Annotated[str, typer.Argument(help='Shell pattern, such as "resnet5*" or "*.a1_in1k".')] = "*",
    as_json: Json = False,
) -> None:
    """List the networks: parameters, cost, published accuracy and licence."""
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


def info(
    name: Annotated[str, typer.Argument(help="A name that `resfit models` lists, or a checkpoint's.")],
    as_json: Json = False,
) -> None:
    """Describe a network: stages, shapes, parameters, MACs, input contract, published weights."""
    from resfit import zoo
    from resfit.errors import UnknownNameError

    try:
        found = zoo.describe(name)
    except UnknownNameError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    parts = [_heading(found), _stages_table(found)]
    typer.echo("\n\n".join([*parts, _checkpoints_table(found)] if found.checkpoints else parts))


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
        where = "brought by name" if row.loadable else "not brought by name yet"
        lines.append(f"weights          {row.weights} ({row.licence or 'licence unknown'}; {where})")
    else:
        lines.append("weights          none published")
    return "\n".join(lines)


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
    return _table(("name", "family", ">Mparams", ">GMACs", ">size", ">top-1", ">top-5", "weights", "licence"), rows)


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
    return _table(("stage", ">blocks", ">shape", ">stride", ">parameters", ">MACs"), rows)


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
                str(row.classes),
                row.training_data,
                row.licence or "unknown",
            )
        )
    return _table(("checkpoint", "source", ">top-1", ">top-5", ">at", ">classes", "training data", "licence"), rows)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lays a table out, a row a line however wide the terminal, since rich takes a tenth of a second for it.

    Args:
        columns: Headings; one that begins with ``>`` makes its column right-aligned.
        rows: Cells.
    """
    heads = tuple(column.removeprefix(">") for column in columns)
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    layout = "  ".join(
        f"{{:{'>' if column[0] == '>' else '<'}{width}}}" for column, width in zip(columns, widths, strict=True)
    )
    lines = [layout.format(*heads), "  ".join("─" * width for width in widths)]
    return "\n".join(line.rstrip() for line in [*lines, *(layout.format(*row) for row in rows)])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
