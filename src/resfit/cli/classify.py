"""``resfit predict``, ``evaluate`` and ``embed``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resfit.cli import console, inputs
from resfit.cli.formatting import (
    accuracy,
    mean_average_precision,
    report_ignored,
    report_notes,
    report_skipped,
    skipped_json,
)
from resfit.cli.options import (
    BatchSize,
    Device,
    Engine,
    GroupColumn,
    ImageRoot,
    Images,
    Json,
    LabelColumn,
    LabelFrom,
    LabelSeparator,
    Multilabel,
    NoCache,
    PathColumn,
    SplitColumn,
    TestPart,
    TrainPart,
    ValPart,
    of_source,
)
from resfit.errors import ArgumentError

if TYPE_CHECKING:
    from resfit.evaluation.intervals import Figure
    from resfit.evaluation.labels import LabelEvaluation
    from resfit.evaluation.metrics import Evaluation
    from resfit.report import Findings
    from resfit.tasks.base import FittedModel


def register(app: typer.Typer) -> None:
    """Adds the commands to the application.

    Args:
        app: The application.
    """
    app.command("predict", epilog="Example: resfit predict photos.resfit new.jpg more/ --top 3")(predict)
    app.command("evaluate", epilog="Example: resfit evaluate photos.resfit test/")(evaluate)
    app.command("embed", epilog="Example: resfit embed photos/ -o features.parquet")(embed)


def predict(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder that `resfit fit` wrote; or a published network: name, handle, file.", metavar="OUT"
        ),
    ],
    images: Images,
    top: Annotated[int | None, typer.Option(min=1, help="Classes to list for each image. Default: 1.")] = None,
    views: Annotated[
        int | None, typer.Option(min=1, max=10, help="Views of each image to average over (test-time augmentation).")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="List for each image the classes of which one is the true one this often, such as 0.9; of numbers, "
            "the interval that holds the true one this often (default: 0.9)."
        ),
    ] = None,
    class_conditional: Annotated[
        bool, typer.Option("--class-conditional", help="With --coverage: let it hold within each class.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write a table to this file; of classes path,label,probability.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of detectors: lowest score of a box. Default: that of each class."),
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="Of detectors: folder for the pictures with their boxes, as PNG.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images that are given as http:// or https:// addresses.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="Of classifiers: auto (of 500 images on what ends soonest, where its test images get the same answers "
            "by it), float32, bfloat16 or int8."
        ),
    ] = "auto",
    engine: Engine = "auto",
    device: Device = "auto",
    batch_size: BatchSize = None,
    as_json: Json = False,
) -> None:
    """Predict on images: classes, numbers or boxes, as the model was fitted to."""
    from resfit.tasks import dispatch

    fitted = inputs.opened(dispatch.load_or_pretrained, source)
    if top is None and fitted.task == "classification":
        top = 1
    options = inputs.options_of(
        fitted,
        "predict",
        {
            "top": top,
            "views": views,
            "coverage": coverage,
            "class_conditional": class_conditional,
            "threshold": threshold,
            "allow_urls": allow_urls,
            "precision": None if precision == "auto" or fitted.task == "classification" else precision,
        },
    )
    if fitted.task == "classification":
        options |= {"precision": precision, "say": lambda text: console.message(console.printable(text))}
    if draw is not None and fitted.task != "detection":
        raise ArgumentError(f"predict of a model for {fitted.task} has no such option. Received: --draw.")
    given = inputs.given(images)
    asked = inputs.with_addresses(given) if allow_urls else given
    with console.progress() as progress:
        predictions = fitted.predict(asked, engine=engine, batch_size=batch_size, progress=progress, **options)
    _tell_card(engine)
    predictions = inputs.with_names(predictions)
    usable = [item for item in predictions if not item.error]
    if csv is not None:
        fitted.write_predictions(csv, predictions)
    if draw is not None:
        _draw(draw, usable)
    if as_json:
        console.print_json([prediction.to_dict() for prediction in predictions])
    elif csv is None:
        console.show(fitted.prediction_table(usable))
    for item in usable:
        if getattr(item, "unlike_training", False):
            console.message(f"Unlike the training images, not to be relied on: {console.printable(item.path)}")
    inputs.end_with_unusable(predictions, given)


def _draw(folder: Path, predictions: list[Any]) -> None:
    """Writes each picture with its boxes, under its own name; two of one name get a number."""
    from resfit.storage.atomic import atomic_path

    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for item in predictions:
        stem = item.path.stem if item.path is not None and item.path != inputs.STDIN else "image"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        with atomic_path(folder / f"{name}.png") as temporary:
            item.draw().save(temporary, "PNG")
    console.message(f"{len(predictions)} pictures with boxes in {console.printable(folder)}")


def evaluate(
    artifact: Annotated[
        str,
        typer.Argument(
            help="A folder that `resfit fit` wrote; or a published detector, by name, handle or file.", metavar="OUT"
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Class folders, a CSV of path,label, or pictures with boxes.")],
    coco: Annotated[
        Path | None,
        typer.Option(help="Of detectors: COCO's JSON of the boxes in the pictures of FOLDER. Others are left out."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write everything as one HTML file that needs nothing else.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Only this part of a split that the data states: train, val or test.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="A column of the CSV whose values get figures of their own; may be given several times."),
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Measure on corrupted images as well: noise, blur, JPEG and others.")
    ] = False,
    foreign: Annotated[
        Path | None, typer.Option(help="Folder of out-of-distribution images, to measure how well they are detected.")
    ] = None,
    cost_ratio: Annotated[
        float, typer.Option(help="With two classes, what missing the second costs, a false alarm being 1.")
    ] = 1.0,
    specificity: Annotated[float, typer.Option(help="At which sensitivities are stated.")] = 0.95,
    names: Annotated[
        bool | None,
        typer.Option(help="Whether the report may show file names. Default: unless images belong to groups."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals and corruptions.")] = 0,
    engine: Engine = "auto",
    device: Device = "auto",
    batch_size: BatchSize = None,
    no_cache: NoCache = False,
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
    """Measure a fitted model on labelled images, every figure with its 95 % interval."""
    columns = of_source(locals())
    from resfit.tasks import dispatch

    if report is not None:
        from resfit.report.templates import check_installed

        check_installed()
    fitted = inputs.opened(dispatch.load_or_detector, artifact)
    common: dict[str, Any] = {
        "part": part,
        "seed": seed,
        "engine": engine,
        "cache": not no_cache,
        "batch_size": batch_size,
        **columns,
    }
    classes = {
        "--by": by,
        "--corruptions": corruptions,
        "--foreign": foreign,
        "--cost-ratio": cost_ratio != 1.0,
        "--specificity": specificity != 0.95,
    }
    if coco is not None and fitted.task != "detection":
        raise ArgumentError(f"--coco measures detectors. Received: a model for {fitted.task}.")
    if fitted.task != "classification":
        unknown = [name for name, given in classes.items() if given]
        if unknown:
            raise ArgumentError(f"{', '.join(unknown)} measures classifiers. Received: a model for {fitted.task}.")
        if coco is not None:
            common["images"], folder = folder, coco
        _evaluate_plainly(fitted, folder, common, report, names=names, as_json=as_json)
        return
    from resfit import report as reports
    from resfit.evaluation import fitted_images

    with console.progress() as progress:
        found = reports.measure(
            fitted,  # type: ignore[arg-type]
            folder,
            columns=by or [],
            corruptions=corruptions,
            foreign=foreign,
            cost_ratio=cost_ratio,
            specificity=specificity,
            progress=progress,
            **common,
        )
        if report is not None:
            reports.write(found, report, names=names)
    result = found.evaluation
    report_notes(found.judged.images.notes)
    report_ignored(found.judged.images.ignored_counts())
    report_skipped(result.skipped)
    if found.familiar:
        console.message(fitted_images.told(found.familiar, len(found.judged.images)))
    if as_json:
        console.print_json({**found.to_dict(), "machine": _machine(), "skipped": skipped_json(result.skipped)})
    else:
        _print_evaluation(result)
        _print_figures(found)
    if report is not None:
        console.message(f"Report: {console.printable(report)}")


def _tell_card(engine: str) -> None:
    """Says on which card predictions were computed, where it was one."""
    from resfit import devices, engines

    resolved = engines.resolve(engine)
    if resolved.device.kind == "gpu":
        console.message(f"computed on {devices.told(resolved.device.to_dict())} in {resolved.precision}")


def _machine() -> dict[str, Any]:
    """Returns what has computed."""
    from resfit import devices

    return devices.current().to_dict()


def _evaluate_plainly(
    fitted: FittedModel,
    folder: Path,
    options: dict[str, Any],
    report: Path | None,
    *,
    names: bool | None,
    as_json: bool,
) -> None:
    """Measures a model of any task by what its own evaluation says."""
    with console.progress() as progress:
        given = {name: value for name, value in options.items() if value is not None}
        result = fitted.evaluate(folder, progress=progress, **given)
    if report is not None:
        from resfit.report import task_page

        task_page.write(report, fitted, result, source=folder.name, names=names)
    report_notes(result.notes)
    report_skipped(result.skipped)
    if as_json:
        console.print_json({**result.to_dict(), "machine": _machine(), "skipped": skipped_json(result.skipped)})
    else:
        for table in result.tables():
            console.show(table)
    if report is not None:
        console.message(f"Report: {console.printable(report)}")


def embed(
    folder: Annotated[Path, typer.Argument(help="Folder of images or of class folders, a CSV, or one image.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .parquet or .npz.")],
    model: Annotated[
        str, typer.Option(help="Network, as `resfit models` lists it, or a folder that `resfit fit` wrote.")
    ] = "resnet10_tiny",
    precision: Annotated[
        str,
        typer.Option(help="float32, bfloat16, int8, or auto: what ends soonest, which changes the numbers a little."),
    ] = "float32",
    engine: Engine = "auto",
    device: Device = "auto",
    batch_size: BatchSize = None,
    no_cache: NoCache = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    image_root: ImageRoot = None,
    label_separator: LabelSeparator = None,
    multilabel: Multilabel = None,
    label_from: LabelFrom = None,
    train: TrainPart = None,
    val: ValPart = None,
    test: TestPart = None,
    as_json: Json = False,
) -> None:
    """Write the features of images, as a network sees them, to a table."""
    columns = of_source(locals())
    from resfit.embedding import check_table_name
    from resfit.tasks import classification as classifier

    check_table_name(out)
    console.load_tensorflow_for(model)
    with console.progress() as progress:
        found = classifier.embed(
            folder,
            model=model,
            engine=engine,
            cache=not no_cache,
            batch_size=batch_size,
            progress=progress,
            precision=precision,
            say=lambda text: console.message(console.printable(text)),
            **columns,
        )
    found.save(out)
    report_notes(found.notes)
    report_skipped(found.skipped)
    count, width = found.features.shape
    if as_json:
        result = {"out": str(out), "images": count, "features": width, "machine": dict(found.machine)}
        console.print_json({**result, "skipped": skipped_json(found.skipped)})
    else:
        typer.echo(f"{count} images, {width} features each: {console.printable(out)}")


def _print_evaluation(result: Evaluation | LabelEvaluation) -> None:
    from resfit.evaluation.labels import LabelEvaluation

    rows = [
        (score.name, f"{score.precision:.1%}", f"{score.recall:.1%}", f"{score.f1:.3f}", score.support)
        for score in result.per_class
    ]
    if isinstance(result, LabelEvaluation):
        title = (
            f"exact-match accuracy (all labels right) {accuracy(result)}, mean average precision (mAP) "
            f"{mean_average_precision(result)}"
        )
        areas = [f"{area:.3f}" if area == area else "-" for area in result.average_precision]
        cells = [(*row[:4], area, row[4]) for row, area in zip(rows, areas, strict=True)]
        console.print_table(title, ("label", ">precision", ">recall", ">F1", ">average precision", ">images"), cells)
        return
    console.print_table(f"accuracy {accuracy(result)}", ("class", ">precision", ">recall", ">F1", ">images"), rows)
    if len(result.per_class) <= 20:
        names = [score.name for score in result.per_class]
        cells = [(name, *row) for name, row in zip(names, result.confusion.tolist(), strict=True)]
        console.print_table(
            "confusion (row: true, column: predicted)", ("", *(f">{console.printable(name)}" for name in names)), cells
        )


def _print_figures(found: Findings) -> None:
    from resfit.report.page import figure_name

    several = found.judged.multilabel
    rows = [(figure_name(name, several), *_numbers(figure)) for name, figure in found.figures.overall.items()]
    drawn = "groups" if found.figures.grouped else "images"
    title = f"figures with 95 % intervals ({found.figures.resamples} resamples of {drawn})"
    console.print_table(title, ("", ">value", ">interval"), rows)
    name = "exact_match_accuracy" if found.judged.multilabel else "accuracy"
    for column, parts in found.subgroups.items():
        cells = [
            (
                part.value or "(not stated)",
                part.count,
                *_ends(None if part.figures is None else part.figures.overall[name]),
            )
            for part in parts
        ]
        heads = ("", ">images", f">{name.replace('_', ' ')}", ">interval")
        console.print_table(f"by {console.printable(column)}", heads, cells)
    if found.robustness is not None:
        mean, plain = found.robustness.mean_accuracy, found.robustness.rows[0].accuracy
        typer.echo(f"Accuracy on corrupted images {mean:.1%}, on the same as they are {plain:.1%}")
    if found.foreign is not None:
        best = found.foreign.areas[found.foreign.method]
        typer.echo(
            f"Out-of-distribution images are detected with AUROC {best.value:.3f} ({best.low:.3f} to {best.high:.3f}); "
            f"{found.foreign.flagged[found.foreign.method]:.1%} flagged"
        )


def _ends(figure: Figure | None) -> tuple[str, str]:
    return ("", "") if figure is None else (f"{figure.value:.1%}", f"{figure.low:.1%} to {figure.high:.1%}")


def _numbers(figure: Figure) -> tuple[str, str]:
    if not math.isfinite(figure.value):
        return "undefined", ""
    return f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}"
