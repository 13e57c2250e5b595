"""``resfit benchmark``: how fast the engines are on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from resfit.cli import console
from resfit.cli.options import Device, Json

if TYPE_CHECKING:
    from resfit.engines.benchmark import Measurement


_PEAK = (
    "* Of the best float32 matrix product of numpy here, two operations for each multiply-accumulate of the network. "
    "Empty for cards and other formats, whose peak is not measured, and where other programs disturbed the measurement."
)


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("benchmark", epilog="Example: resfit benchmark resnet50 --engine openvino --batch 32")(benchmark)


def benchmark(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names or checkpoints; default: resnet50.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="keras, openvino, onnxruntime or litert; can be repeated. Default: all that are installed."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, tf32, bfloat16, float16 or int8; can be repeated. Default: all that are fast here, int8 "
            "where NNCF is installed."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images in a batch; can be repeated. Default: 1, 8, 32.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels. Default: the network's own.")] = None,
    seconds: Annotated[float, typer.Option(help="Time of each measurement.")] = 3.0,
    threads: Annotated[int | None, typer.Option(help="Number of threads. Default: one a core.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the engines: throughput, latency, memory and share of the arithmetic peak."""
    from resfit.engines import benchmark as benchmarks

    wanted = tuple(models or ["resnet50"])
    batches = tuple(batch or (1, 8, 32))
    measurements = benchmarks.measure(
        wanted,
        names=engine or (),
        precisions=precision or (),
        batches=batches,
        size=size,
        seconds=seconds,
        threads=threads,
        seed=seed,
        device=device,
    )
    found: list[Measurement] = []
    with console.progress() as report:
        for measurement in measurements:
            found.append(measurement)
            if report is not None:
                report(f"{measurement.model} {measurement.engine} {measurement.precision}", len(found), len(found))
    if as_json:
        console.print_json([measurement.to_dict() for measurement in found])
    else:
        for model in wanted:
            _print_table(model, [measurement for measurement in found if measurement.model == model])
    if all(measurement.problem for measurement in found):
        raise typer.Exit(1)


def _print_table(model: str, found: list[Measurement]) -> None:
    columns = (
        "engine",
        "device",
        "precision",
        ">batch",
        ">images/s",
        ">p50 ms",
        ">p99 ms",
        ">MB",
        ">of peak*",
        ">start s",
        "",
    )
    sizes = {measurement.size for measurement in found if not measurement.problem}
    size = " ".join(f"{width}x{height}" for height, width in sorted(sizes))
    console.print_table(f"{model} {size}".strip(), columns, [_row(measurement) for measurement in found])
    if any(measurement.gflops for measurement in found):
        typer.echo(_PEAK)


def _row(found: Measurement) -> tuple[object, ...]:
    head = (found.engine, "" if found.problem else found.device, found.precision, found.batch)
    if found.problem:
        return (*head, "", "", "", "", "", "", found.problem)
    memory = "" if found.memory is None else f"{found.memory:.0f}"
    share = "" if found.peak_share is None else f"{found.peak_share:.0%}"
    figures = f"{found.throughput:.1f}", f"{found.p50:.1f}", f"{found.p99:.1f}"
    return (*head, *figures, memory, share, f"{found.start:.1f}", "")
