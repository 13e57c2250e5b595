"""``resfit scale``: plan, run, status and finish work on many machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resfit.cli import console
from resfit.cli.formatting import report_notes
from resfit.cli.options import (
    BatchSize,
    Engine,
    GroupColumn,
    ImageRoot,
    Json,
    LabelColumn,
    LabelFrom,
    LabelSeparator,
    Multilabel,
    PathColumn,
    SplitColumn,
    TestPart,
    TrainPart,
    ValPart,
    of_source,
)

Run = Annotated[str, typer.Argument(help="Folder of the run: a path, or such as s3://bucket/run.", metavar="RUN")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
    """
    group = typer.Typer(help="Embed, predict, evaluate or check more images than one machine can hold.")
    group.command("plan", epilog="Example: resfit scale plan s3://b/images -o s3://b/run --model resnet50")(plan)
    group.command("run", epilog="Example: resfit scale run s3://b/run --on ray --workers 16 --threads 4")(run)
    group.command("status", epilog="Example: resfit scale status s3://b/run")(status)
    group.command("finish", epilog="Example: resfit scale finish s3://b/run")(finish)
    app.add_typer(group, name="scale")


def plan(
    source: Annotated[str, typer.Argument(help="Images, as `resfit embed` takes them, or a place in an object store.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the run, where every worker can read and write.")],
    task: Annotated[str, typer.Option(help="embed, predict, evaluate or check.")] = "embed",
    model: Annotated[
        str, typer.Option(help="Network, as `resfit models` lists it, or a folder that `resfit fit` wrote.")
    ] = "resnet10_tiny",
    dtype: Annotated[str, typer.Option(help="Of features: float32, or float16 in half the room.")] = "float32",
    shard_images: Annotated[int, typer.Option(min=1, help="Most images of a shard.")] = 10_000,
    shard_bytes: Annotated[int, typer.Option(min=1, help="Bytes of files after which a shard ends.")] = 10**9,
    part: Annotated[
        str | None, typer.Option(help="With --task evaluate: only this part of a stated split: train, val or test.")
    ] = None,
    engine: Engine = "auto",
    batch_size: BatchSize = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    image_root: ImageRoot = None,
    label_separator: LabelSeparator = None,
    multilabel: Multilabel = None,
    label_from: LabelFrom = None,
    train: TrainPart = None,
    val: ValPart = None,
    test: TestPart = None,
    as_json: Json = False,
) -> None:
    """List the images, cut them into shards, and write what is to be done with them."""
    columns = of_source(locals())
    console.load_tensorflow()
    from resfit import scale

    found = scale.plan(
        source,
        out,
        task=task,
        model=model,
        engine=engine,
        batch_size=batch_size,
        dtype=dtype,
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        part=part,
        **columns,
    )
    report_notes(found.notes)
    if as_json:
        console.print_json({**found.describe(), "run": found.url})
    else:
        size = console.size(found.bytes)
        typer.echo(f"{found.images} images, {size}, in {found.shards} shards: {console.printable(found.url)}")


def run(
    run: Run,
    on: Annotated[
        str, typer.Option(help="local, ray, spark, or index: one of several numbered jobs (Slurm, Kubernetes).")
    ] = ("local"),
    workers: Annotated[str, typer.Option(help="How many work at once; auto is as many as have room.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processors of each worker. Default: 4, or all where there are fewer.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=0, help="With --on index: which job, from 0. Default: what Slurm or Kubernetes says."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="With --on index: of how many. Kubernetes does not say it.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a result after which a line says what is waited for.")
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Do the shards that are not there yet, on whichever engine. Exit code 1 where a shard is refused."""
    from resfit import scale

    asked = None if workers == "auto" else int(console.quantity(workers, {"": 1}, "--workers", "4"))
    with console.progress() as progress:
        found = scale.run(
            run,
            on=on,
            workers=asked,
            threads=threads,
            rank=rank,
            count=count,
            patience=patience,
            say=lambda text: console.message(console.printable(text)),
            progress=progress,
        )
    if as_json:
        console.print_json(found.to_dict())
    else:
        others = f", {found.left} of other jobs" if found.left else ""
        typer.echo(
            f"{found.done} shards done, {found.there} were there{others}, {len(found.refused)} refused: {found.images} "
            f"images, {found.errors} of them unusable, in {found.seconds:.0f} s"
        )
    if found.refused:
        raise typer.Exit(1)


def status(run: Run, as_json: Json = False) -> None:
    """Say how far a run is."""
    from resfit import scale

    found = scale.status(run)
    if as_json:
        console.print_json(found.to_dict())
        return
    rows: list[tuple[str, object]] = [
        ("shards", f"{found.done} of {found.shards} done"),
        ("images", f"{found.images_done} of {found.images}"),
        *((f"shard {shard}", f"refused: {reason}") for shard, reason in sorted(found.refused.items())),
        *((f"shard {shard}", f"begun by {who} {age:.0f} s ago") for shard, who, age in found.working),
    ]
    console.print_table(found.task, ("", ""), rows)


def finish(
    run: Run,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals of figures.")] = 0,
    as_json: Json = False,
) -> None:
    """Put together what all shards say, once they are there."""
    from resfit import scale

    found = scale.finish(run, seed=seed)
    report_notes(found.notes)
    if as_json:
        console.print_json(found.to_dict())
        return
    rows: list[tuple[str, object]] = [
        ("images", f"{found.images} in {found.shards} shards, {found.errors} unusable"),
        *((f"unusable: {reason}", count) for reason, count in list(found.reasons.items())[:10]),
        *_summary(found.result),
        ("written to", str(Path(run) / "finished.json") if "://" not in run else f"{run.rstrip('/')}/finished.json"),
    ]
    console.print_table(found.task, ("", ""), rows)


def _summary(result: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if "accuracy" in result:
        low, high = result["interval"]
        rows.append(("accuracy", f"{result['accuracy']:.1%} ({low:.1%} to {high:.1%}), {result['n']} images"))
    for number in result.get("numbers", ()):
        for name in ("mae", "rmse", "r2"):
            rows.append((f"{number['name']}, {name.upper()}", _figure(number[name])))
    for name in ("ap", "ap50", "ap75") if "metrics" in result else ():
        figure = result["intervals"].get(name) or {"value": result["metrics"][name]}
        rows.append((name.upper(), f"{_figure(figure)}, {result['images']} pictures"))
    rows += [("found", finding) for finding in result.get("findings", ())]
    for name in ("exact_duplicates", "near_duplicates", "leaks", "conflicting_labels"):
        if "findings" not in result and name in result:
            rows.append((name.replace("_", " "), result[name]["count"]))
    return rows + [(f"predicted {name}", count) for name, count in list(result.get("predicted", {}).items())[:20]]


def _figure(figure: dict[str, Any]) -> str:
    """Returns a figure with its interval, where it has one."""
    value, low, high = (figure.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return "undefined"
    return f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low is not None and low == low else "")
