"""``resfit fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit import devices
from resfit.cli import console, medical
from resfit.cli.formatting import (
    accuracy,
    ignored_text,
    mean_average_precision,
    report_skipped,
    skipped_json,
)
from resfit.cli.medical import Frame, Plane, Series, Spacing, Window
from resfit.cli.options import (
    SOURCE,
    BatchSize,
    Device,
    Engine,
    GroupColumn,
    ImageRoot,
    Json,
    LabelColumn,
    LabelFrom,
    LabelledOrFeatures,
    LabelSeparator,
    Multilabel,
    NoCache,
    PathColumn,
    SplitColumn,
    Task,
    TestPart,
    TrainPart,
    ValPart,
    of_source,
)

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel
    from resfit.tasks.classification import Classifier
    from resfit.training.recipes import Recipe

# options that a plan depends on
_PLANNED = (
    *SOURCE,
    "model",
    "strategy",
    "budget",
    "seed",
    "test_share",
    "val_share",
    "reading",
    "size",
    "tiles",
    "rare",
)
_OF_FEATURES = ("--features", "--out", "--force", "--test-share", "--seed", "--on", "--workers", "--json")
# columns of a training's log that are no metric of validation images
_PLAIN = ("epoch", "step", "seconds", "learning_rate", "val_loss", "train_loss")


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("fit", epilog="Example: resfit fit photos/ -o photos.resfit")(fit)


def fit(
    folder: LabelledOrFeatures = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write the fitted model to; required unless --dry-run.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an earlier fitted model in OUT even where its folder holds other files."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Network, as `resfit models` lists it. Default: resnet10_tiny, in the package.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="probe: a head on the frozen network. finetune: the last stages learn. full: all learns. "
            "auto (the default): the probe, then fine-tuning within --budget, and the better one is kept."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for everything, such as 10m, 90s or 1.5h. Without it auto is the probe.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done and how long it takes, and do nothing.")
    ] = False,
    head: Annotated[str | None, typer.Option(help="linear (the default), mlp, nearest_mean or knn.")] = None,
    trainable_from: Annotated[
        str | None,
        typer.Option(
            help="First layer that learns: a name, an index of keras.applications, a stage, or a share 0.0-1.0."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option as group.name=value, such as training.budget=10m; without a group a setting of the "
            "fine-tuning, such as epochs=20. May be given several times.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--config", help="Read options from this YAML, TOML or JSON file; those given here overrule it."),
    ] = None,
    lr_find: Annotated[
        bool, typer.Option("--lr-find", help="Find the learning rate by a range test first; its curve is kept.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="A larger network, or a classifier, to learn from as well (distillation).")
    ] = None,
    balance: Annotated[bool, typer.Option("--balance", help="Let each class count the same in the loss.")] = False,
    focal: Annotated[float, typer.Option(min=0, help="gamma of the focal loss (mlp head, fine-tuning).")] = 0.0,
    label_separator: LabelSeparator = None,
    multilabel: Multilabel = None,
    storage: Annotated[
        float | None, typer.Option(min=0, help="Gigabytes that outputs of the frozen part may take up on disk.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the split and of all that is random. Default: 0.")
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share set aside to measure with, if there is no test/. Default: 0.2.")
    ] = None,
    max_skipped: Annotated[
        float | None, typer.Option(help="Largest fraction of unreadable images. Default: 0.1.")
    ] = None,
    rare: Annotated[
        str | None,
        typer.Option(
            help="What becomes of classes of one or two images: drop (the default) leaves them out, other makes one "
            "class of them, error stops."
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            help="Record parameters, epochs, figures with intervals, report and model: mlflow, wandb or tensorboard."
        ),
    ] = None,
    no_references: Annotated[
        bool, typer.Option("--no-references", help="Keep no training images, as features and thumbnails, in OUT.")
    ] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check", help="Look for duplicates, wrong labels, shortcuts in the same pass. Default: yes."
        ),
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Continue although images are in both training and test set.")
    ] = False,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Of a probe's features: auto (what ends soonest and costs no accuracy), float32, int8, bfloat16 "
            "(processors with matrix units, GPUs from Ampere on), or on a GPU tf32 or float16."
        ),
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Have a GPU give the same bits each time, too. It is slower.")
    ] = False,
    batch_size: BatchSize = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Of a detector: height and width of its input in pixels.")
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(min=32, help="Of a detector: cut pictures into overlapping tiles of so many pixels.")
    ] = None,
    no_cache: NoCache = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    group_column: GroupColumn = None,
    image_root: ImageRoot = None,
    label_from: LabelFrom = None,
    train: TrainPart = None,
    val: ValPart = None,
    test: TestPart = None,
    channels: Annotated[
        int | None, typer.Option(help="1 for grey images, 3 for colour. Default: what the network was trained on.")
    ] = None,
    frame: Frame = "middle",
    series: Series = "each",
    window: Window = "0",
    plane: Plane = "axial",
    spacing: Spacing = None,
    task: Task = "auto",
    features: Annotated[
        str | None,
        typer.Option(help="In place of images: a run of `resfit scale` with --task embed, whose features get a probe."),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="local: this process. ray: --workers processes of its cluster, which share each batch of a "
            "fine-tuning, or hold the rows of --features."
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --on ray: how many. Default: 2, with --features what fits.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --on ray: processors of each. Default: 1.")] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="With --on ray: each process has a GPU of its own.")] = False,
    as_json: Json = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Fit a model to a folder of images and measure it on images it has not seen."""
    if features is not None:
        _fit_features(context, features, out, force, test_share, seed, on, workers, as_json)
        return
    if on not in ("local", "ray"):
        raise typer.BadParameter(f"must be local or ray. Received: {on!r}.", param_hint="'--on'")
    if on == "local" and (workers or threads or gpus):
        raise typer.BadParameter("they are of --on ray", param_hint="'--workers' / '--threads' / '--gpus'")
    if folder is None:
        raise typer.BadParameter("required unless --features is given", param_hint="'FOLDER'")
    columns = {**of_source(locals()), "reading": medical.reading(frame, series, window, plane, spacing)}
    from resfit.errors import ArgumentError
    from resfit.tasks import config, dispatch

    stated = config.merged(
        config.FitConfig.from_file(file).to_dict() if file is not None else {}, config.assigned(settings or [])
    )
    asked = config.FitConfig.from_dict(stated)
    task = asked.task if task == "auto" else task
    given = {"model": model, "strategy": strategy, "budget": budget, "seed": seed, "test_share": test_share, **columns}
    given |= {"size": size, "tiles": tiles, "rare": rare}
    options = {**asked.keywords(), **{name: value for name, value in given.items() if value is not None}}
    if (size or tiles) and dispatch.chosen(folder, task, **options)[0].name != "detection":
        raise ArgumentError("--size and --tiles are options of detection. Received: data of another task.")
    if dry_run:
        recipe = dispatch.plan(folder, task=task, **{name: options[name] for name in options if name in _PLANNED})
        if as_json:
            console.print_json(recipe.to_dict())
        else:
            _print_plan(recipe)
        return
    if out is None:
        raise typer.BadParameter("needed unless --dry-run is given", param_hint="'--out' / '-o'")
    options |= {"out": out, "force": force}
    more = {  # what was given; the rest is the task's own default
        "trainable_from": trainable_from,
        "lr_find": lr_find or None,
        "storage": None if storage is None else int(storage * 2**30),
        "engine": engine if engine != "auto" else None,
        "device": device if device != "auto" else None,
        "deterministic": deterministic or None,
        "cache": False if no_cache else None,
        "max_skipped": max_skipped,
        "check": check,
        "allow_leakage": allow_leakage or None,
        "batch_size": batch_size,
        "channels": channels,
        "head": head,
        "teacher": teacher,
        "balance": balance or None,
        "focal": focal or None,
        "references": False if no_references else None,
        "precision": precision if precision != "auto" else None,
    }
    options |= {name: value for name, value in more.items() if value is not None}
    if log is not None:
        from resfit.report import tracking

        tracking.check(log)
    if on == "ray":
        from resfit.scale.training import fit_on_ray

        fitted = fit_on_ray(folder, workers=workers or 2, threads=threads, gpus=gpus, task=task, **options)
        if log is not None:
            tracking.log_fit(fitted, log, out, options, source=folder.name)
        if as_json:
            console.print_json({"out": str(out), "task": fitted.task, **fitted.metrics})
        else:
            console.print_table("", ("", ""), [*fitted.card(), ("written to", out)])
        return
    console.load_tensorflow()
    with console.progress() as progress:
        fitted = dispatch.fit(
            folder,
            task=task,
            progress=progress,
            say=lambda text: console.message(console.printable(text)),
            **options,
        )
    if log is not None:
        tracking.log_fit(fitted, log, out, options, source=folder.name)
    assert fitted.run is not None
    for warning in fitted.run.warnings:
        console.message(f"Warning: {console.printable(warning)}")
    report_skipped(fitted.run.skipped, f"; all are listed in {out / 'skipped.csv'}")
    if fitted.metrics.get("ignored"):
        ignored = ignored_text(fitted.metrics["ignored"])
        console.message(console.printable(f"Ignored {ignored}; all are listed in {out / 'skipped.csv'}"))
    if as_json:
        console.print_json(_fit_json(fitted, out))
    elif fitted.task == "classification":
        _print_fit(fitted, out)  # type: ignore[arg-type]
    else:
        _print_plainly(fitted, out)


def _fit_features(
    context: typer.Context,
    run: str,
    out: Path | None,
    force: bool,
    test_share: float | None,
    seed: int | None,
    on: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Fits a probe to features of a run; what was given besides is refused."""
    from resfit import scale
    from resfit.errors import ArgumentError

    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    unknown = [name for name in given if name not in _OF_FEATURES]
    if unknown:
        raise ArgumentError(
            f"--features takes {', '.join(_OF_FEATURES)}. Received besides: {', '.join(unknown)}. The network and the "
            "images are those of the run."
        )
    if out is None:
        raise typer.BadParameter("needed with --features", param_hint="'--out' / '-o'")
    console.load_tensorflow()
    fitted = scale.fit_features(
        run,
        out=out,
        force=force,
        test_share=0.2 if test_share is None else test_share,
        seed=seed or 0,
        on=on,
        workers=workers,
        say=lambda text: console.message(console.printable(text)),
    )
    if as_json:
        console.print_json({"out": str(out), "classes": list(fitted.classes), **fitted.metrics})
        return
    test = fitted.metrics["test"]
    rows: list[tuple[str, object]] = [
        ("network", fitted.recipe.model),
        ("images", f"{fitted.metrics['images']['train']} train, {fitted.metrics['images']['test']} test"),
        ("unused", f"{fitted.metrics['images']['skipped']} without a label, or unreadable"),
        ("regularisation", fitted.recipe.regularisation),
        ("accuracy", "not measured: no test images" if test is None else _accuracy(test)),
        ("written to", out),
    ]
    console.print_table("", ("", ""), rows)


def _accuracy(test: dict[str, Any]) -> str:
    low, high = test["interval"]
    return f"{test['accuracy']:.1%} ({low:.1%} to {high:.1%}), {test['n']} images"


def _print_plainly(fitted: FittedModel, out: Path) -> None:
    """Prints what a fit of any task came to."""
    run, images = fitted.run, fitted.metrics.get("images")
    assert run is not None
    rows: list[tuple[str, object]] = list(fitted.card())
    if images:
        rows += [("images", ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in images.items()))]
    if run.engine != "none":
        rows.append(("features", f"{run.computed} computed ({run.engine}), {run.reused} from the cache"))
    rows.append(("device", devices.told(run.device)))
    rows.append(("seconds", ", ".join(f"{name} {value:.1f}" for name, value in run.seconds.items())))
    rows += [("found", finding) for finding in (fitted.metrics.get("checks") or {}).get("findings", ())]
    rows.append(("written to", out))
    if run.history:
        _print_history(run.history, fitted.metrics["training"]["epoch"], multilabel=False)
    console.print_table("", ("", ""), rows)
    if run.test is not None:
        for table in run.test.tables():
            console.show(table)


def _print_fit(fitted: Classifier, out: Path) -> None:
    run, images = fitted.run, fitted.metrics["images"]
    assert run is not None
    regularisation = fitted.recipe.regularisation
    rows: list[tuple[str, object]] = [
        ("network", fitted.recipe.model),
        ("files", _files(images)),
        ("images", f"{_used(images)} in {len(fitted.classes)} {'labels' if fitted.recipe.multilabel else 'classes'}"),
        ("skipped", images["skipped"]),
        ("split", _split(images) + (", by group" if fitted.recipe.grouped else "")),
        *_work(fitted),
        ("device", devices.told(run.device)),
        *([("regularisation", regularisation)] if regularisation else []),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in run.seconds.items())),
        *(("found", finding) for finding in fitted.metrics.get("checks", {}).get("findings", ())),
        (
            "exact-match accuracy" if fitted.recipe.multilabel else "accuracy",
            "not measured: no test images" if run.test is None else accuracy(run.test),
        ),
        *([("mean average precision", mean_average_precision(run.test))] if fitted.recipe.multilabel else []),
        ("written to", out),
    ]
    if run.history:
        _print_history(run.history, fitted.metrics["training"]["epoch"], multilabel=fitted.recipe.multilabel)
    console.print_table("", ("", ""), rows)


def _print_history(history: Sequence[dict[str, Any]], kept: int, *, multilabel: bool) -> None:
    """Prints a row for each epoch; of a long run the first, the last, the kept one and some between."""
    step = max(1, len(history) // 20)
    shown = [row for row in history if row["epoch"] % step == 0 or row["epoch"] in (kept, history[-1]["epoch"])]
    metric = next((name.removeprefix("val_") for name in history[0] if name not in _PLAIN), "accuracy")
    columns = ("train_loss", f"train_{metric}", "val_loss", f"val_{metric}")
    cells = [
        (
            f"{row['epoch']}{' *' if row['epoch'] == kept else ''}",
            *(_figure(name, row.get(name)) for name in columns),
            f"{row['seconds']:.0f}",
        )
        for row in shown
    ]
    right = ">labels right" if multilabel else f">{metric.replace('_', ' ')}"
    heads = (">epoch", ">train loss", right, ">val loss", right, ">seconds")
    console.print_table("training (* the epoch that is kept)", heads, cells)


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:.4f}"


def _used(images: dict[str, int]) -> int:
    return images["found"] - images["skipped"] - images["ignored"]


def _files(images: dict[str, int]) -> str:
    left = f"{images['skipped']} skipped + {images['ignored']} ignored"
    return f"{images['found']} found = {_used(images)} images used + {left}"


def _split(images: dict[str, int]) -> str:
    val = f", {images['val']} to choose the epoch on" if "val" in images else ""
    beyond = f", {images['left_out']} that there was no time for" if "left_out" in images else ""
    return f"{images['train']} train{val}, {images['test']} test{beyond}"


def _work(fitted: Classifier) -> list[tuple[str, object]]:
    run, recipe = fitted.run, fitted.recipe
    assert run is not None
    if run.engine == "none":
        rows: list[tuple[str, object]] = []
    else:
        rows = [("features", f"{run.computed} computed ({run.engine}), {run.reused} from the cache")]
    if "training" in fitted.metrics:
        found = fitted.metrics["training"]
        before, after = found["val_accuracy_before"], found["val_accuracy"]
        kept = "the probe" if recipe.strategy == "probe" else f"epoch {found['epoch']} of {found['epochs']}"
        what = "labels right in validation:" if recipe.multilabel else "validation"
        rows.append(("fine-tuning", f"{what} {before:.1%} before, {after:.1%} after; kept: {kept}"))
    return rows


def _print_plan(recipe: Recipe) -> None:
    rows: list[tuple[str, object]] = [("strategy", recipe.strategy)]
    rows += [("because", reason) for reason in recipe.reasons]
    rows += [(f"seconds: {name}", f"{seconds:.0f}") for name, seconds in recipe.seconds.items()]
    rows.append(("seconds altogether", f"about {recipe.total:.0f}"))
    if recipe.tuning is not None:
        defaults = type(recipe.tuning)().to_dict()
        always = ("trainable_from", "epochs", "batch_size", "optimizer", "learning_rate")
        rows += [
            (name, value)
            for name, value in recipe.tuning.to_dict().items()
            if name in always or value != defaults[name]
        ]
    console.print_table("", ("", ""), rows)


def _fit_json(fitted: FittedModel, out: Path) -> dict[str, Any]:
    import dataclasses

    run, recipe = fitted.run, getattr(fitted, "recipe", None)
    assert run is not None
    return {
        "out": str(out),
        "task": fitted.task,
        "classes" if fitted.task == "classification" else "labels": list(fitted.labels),
        **({"recipe": dataclasses.asdict(recipe)} if dataclasses.is_dataclass(recipe) else {}),  # type: ignore[arg-type]
        **fitted.metrics,
        "features": {"computed": run.computed, "reused": run.reused, "engine": run.engine},
        "machine": fitted.metrics.get("machine", dict(run.device)),
        "seconds": run.seconds,
        "skipped": skipped_json(run.skipped),
        "warnings": list(run.warnings),
        "notes": list(run.notes),
        "history": list(run.history),
    }
