"""``resfit suggest``: which published weights to take within given limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console
from resfit.cli.models import Licence, Publisher, Task, TrainedOn, check_task, detectors_table, table
from resfit.cli.options import Json

if TYPE_CHECKING:
    from resfit.suggestions import Progress, Suggestion

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_SECONDS = {"ms": 1e-3, "s": 1.0, "us": 1e-6}


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("suggest", epilog="Example: resfit suggest --max-params 30M --max-gmacs 5 --licence permissive")(
        suggest
    )


def suggest(
    max_params: Annotated[str | None, typer.Option("--max-params", help="Most parameters, such as 30M.")] = None,
    max_gmacs: Annotated[
        float | None, typer.Option("--max-gmacs", help="Most multiply-accumulates for one image, in billions.")
    ] = None,
    min_top1: Annotated[float | None, typer.Option("--min-top1", help="Lowest published top-1 accuracy in %.")] = None,
    min_ap: Annotated[
        float | None, typer.Option("--min-ap", help="Of detectors: lowest published box AP in %.")
    ] = None,
    task: Task = "classification",
    licence: Licence = None,
    trained_on: TrainedOn = None,
    source: Publisher = None,
    evaluated_on: Annotated[
        str, typer.Option("--evaluated-on", help="The benchmark of the accuracies, such as CIFAR-10.")
    ] = "ImageNet-1k",
    latency: Annotated[
        str | None,
        typer.Option("--latency", help="Most time for one image on this machine, such as 50ms; measured and kept."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the latency without limiting it.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows to print beside those of the front.")] = 20,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw accuracy over cost into a .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Suggest published weights within limits, the most accurate first; * marks those that nothing else beats."""
    from resfit import suggestions

    most = None if max_params is None else console.quantity(max_params, _FACTORS, "--max-params", "30M")
    if check_task(task) == "detection":
        refused = {
            "--min-top1": min_top1,
            "--evaluated-on": None if evaluated_on == "ImageNet-1k" else evaluated_on,
            "--latency": latency,
            "--measure": measure or None,
            "--plot": plot,
        }
        given = [name for name, value in refused.items() if value is not None]
        if given:
            raise typer.BadParameter(f"is for classification. Received: --task detection with {', '.join(given)}.")
        _detectors(most, max_gmacs, min_ap, licence, trained_on, source, limit, as_json)
        return
    if min_ap is not None:
        raise typer.BadParameter("is for --task detection. Received: --task classification.", param_hint="--min-ap")
    slowest = None if latency is None else console.quantity(latency, _SECONDS, "--latency", "50ms")
    with _tensorflow(measure or slowest is not None) as progress:
        found = suggestions.suggest(
            max_params=most,
            max_gmacs=max_gmacs,
            min_top1=min_top1,
            licence=licence,
            trained_on=trained_on,
            source=source,
            evaluated_on=evaluated_on,
            max_latency=slowest,
            measure=measure,
            progress=progress,
        )
    if found and plot is not None:
        console.message(f"Wrote {suggestions.plot(found, plot)}.")
    if as_json:
        console.print_json([one.to_dict() for one in found])
        return
    if not found:
        console.message("Nothing is within these limits. Widen one of them.")
        raise typer.Exit(1)
    others = [one for one in found if not one.pareto][:limit]
    shown = [one for one in found if one.pareto or one in others]
    typer.echo(_table(shown))
    beside = f", the best {len(shown)} of them shown" if len(shown) < len(found) else ""
    cost = "latency" if found[0].latency is not None else "GMACs"
    console.message(
        f"{len(found)} checkpoints{beside}. * nothing else is more accurate on {found[0].evaluated_on} for its {cost}. "
        "Cost and accuracy at the size given."
    )


def _detectors(
    most: float | None,
    max_gmacs: float | None,
    min_ap: float | None,
    licence: str | None,
    trained_on: str | None,
    source: str | None,
    limit: int,
    as_json: bool,
) -> None:
    from resfit import detectors

    chosen: dict[str, Any] = {"licence": licence, "trained_on": trained_on, "source": source}
    found = detectors.suggest(max_params=most, max_gmacs=max_gmacs, min_ap=min_ap, **chosen)
    if as_json:
        console.print_json([row.to_dict() for row in found])
        return
    if not found:
        console.message(_instead(max_gmacs, {"max_params": most, "min_ap": min_ap, **chosen}, limit))
        raise typer.Exit(1)
    shown = [row for row in found if row.pareto]
    shown = [row for row in found if row.pareto or row in found[: max(limit, len(shown))]]
    typer.echo(detectors_table(shown))
    console.message(f"{len(found)} published detectors within the limits, the highest box AP first.")


def _instead(max_gmacs: float | None, others: dict[str, Any], limit: int) -> str:
    """What comes near limits that no published detector is within."""
    from resfit import detectors

    lines = ["No published detector is within these limits."]
    every = detectors.suggest(**others) or detectors.suggest(**{**others, "max_params": None, "min_ap": None})
    near = sorted(every, key=lambda row: (row.gmacs, -(row.ap or 0)))[:3]
    if near:
        told = ", ".join(
            f"{row.name} ({row.gmacs:.1f} GMACs at {_sides(row.cost_size)}, {row.ap:g} AP)" for row in near
        )
        lines.append(f"Of least cost are {told}.")
    smaller = detectors.at_smaller_sizes(max_gmacs, every)[: min(limit, 6)] if max_gmacs is not None else []
    if smaller:
        lines.append("Within the limit with a smaller input (--size of `resfit fit`), at which no AP is published:")
        lines += [
            f"  {one.info.name} --size {one.size[0]}: {one.gmacs:.1f} GMACs ({one.info.ap:g} AP at "
            f"{_sides(one.info.evaluation_size or one.info.cost_size)})"
            for one in smaller
        ]
    own = [row for row in detectors.list_detectors() if row.ap is None]
    told = ", ".join(f"{row.name} ({row.gmacs:.1f} GMACs at {_sides(row.cost_size)})" for row in own)
    lines.append(
        f"Without published weights: {told}. `resfit fit DATA --model resnet18` puts such a light head on any residual "
        "network."
    )
    return "\n".join(lines)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@contextlib.contextmanager
def _tensorflow(needed: bool) -> Iterator[Progress | None]:
    """Loads TensorFlow quietly and yields what reports progress, if there is something to measure."""
    if not needed:
        yield None
        return
    console.load_tensorflow()
    with console.progress() as report:
        yield report


def _table(found: list[Suggestion]) -> str:
    measured = found[0].latency is not None
    rows = []
    for one in found:
        time = (f"{1000 * one.latency:.1f}",) if one.latency is not None else ()
        rows.append(
            (
                "*" if one.pareto else "",
                one.name,
                f"{one.top1:.1f}",
                f"{one.parameters / 1e6:.1f}",
                f"{one.gmacs:.2f}",
                *time,
                str(one.size),
                one.training_data,
                one.licence,
            )
        )
    milliseconds = (">ms",) if measured else ()
    columns = ("", "checkpoint", ">top-1", ">Mparams", ">GMACs", *milliseconds, ">size", "trained on", "licence")
    return table(columns, rows)
