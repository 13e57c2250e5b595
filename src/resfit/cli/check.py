"""``resfit check``: what is wrong with a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resfit.cli import console
from resfit.cli.formatting import ignored_text, report_notes
from resfit.cli.options import (
    BatchSize,
    Device,
    Engine,
    GroupColumn,
    ImageRoot,
    Json,
    LabelColumn,
    LabelFrom,
    Labelled,
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
from resfit.errors import ArgumentError

if TYPE_CHECKING:
    from resfit.quality.checking import Checks

_SHOWN = 10
_CHECKS = {"leaks": "images in both training and test set", "label_errors": "labels", "shortcuts": "shortcuts"}


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("check", epilog="Example: resfit check photos/ --report checks.html")(check)


def check(
    folder: Labelled,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with pictures of what was found to this .html file.")
    ] = None,
    model: Annotated[str, typer.Option(help="Network whose features are used, as `resfit models` lists it.")] = (
        "resnet10_tiny"
    ),
    cleanlab: Annotated[bool, typer.Option("--cleanlab", help="Let cleanlab judge the labels.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
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
    task: Task = "auto",
    detector: Annotated[
        Path | None, typer.Option(help="Boxes: a fitted detector that did not learn from these pictures judges them.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Boxes: fit three detectors on parts of the data, each in this time, such as 2m, and let them judge "
            "the rest."
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Boxes: pixels of the input that sizes of boxes refer to. Default: 320.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for duplicates, leaks, wrong labels, odd images and shortcuts in a folder of images."""
    columns = of_source(locals())
    from resfit.quality import checking
    from resfit.report import checks as page
    from resfit.tasks import dispatch

    method = "cleanlab" if cleanlab else "ridge"
    checking.check_label_method(method)
    if report is not None:
        page.check_target(report)
    found_task, reason = dispatch.chosen(folder, task, **columns)
    report_notes([reason] if reason else [])
    if method != "ridge":
        columns["label_method"] = method
    of_boxes = {"detector": detector, "held_out": held_out, "size": size}
    of_boxes = {name: value for name, value in of_boxes.items() if value is not None}
    if of_boxes and found_task.name != "detection":
        names = ", ".join("--" + name.replace("_", "-") for name in of_boxes)
        raise ArgumentError(f"{names} must come with pictures with boxes. Received: task {found_task.name}.")
    console.load_tensorflow()
    with console.progress() as progress:
        found = found_task.check(
            folder,
            model=model,
            seed=seed,
            engine=engine,
            cache=not no_cache,
            batch_size=batch_size,
            progress=progress,
            **columns,
            **of_boxes,
        )
    report_notes(found.notes)
    if not isinstance(found, checking.Checks):
        if report is not None:
            raise ArgumentError(f"--report shows checks of classes. Received: task {found_task.name}.")
        if as_json:
            console.print_json({**found.to_dict(), "notes": list(found.notes)})
        else:
            for table in found.tables():
                console.show(table)
        return
    if report is not None:
        page.write(found, report)
    if as_json:
        console.print_json({**found.to_dict(most=None), "notes": list(found.notes)})
    else:
        _print(found)
    if report is not None:
        console.message(f"Report: {console.printable(report)}")


def _print(found: Checks) -> None:
    from resfit.quality.checking import label_precision

    findings = found.findings()
    images, what = found.images, "labels" if found.images.multilabel else "classes"
    ignored = f" ({ignored_text(found.ignored)})" if found.ignored else ""
    total = len(images) + len(found.skipped) + sum(found.ignored.values())
    title = (
        f"{total} files found = {len(images)} images in {len(images.classes)} {what} + {len(found.skipped)} unusable + "
        f"{sum(found.ignored.values())} ignored{ignored}"
    )
    console.print_table(title, ("found",), [(text,) for text in findings] or [("nothing wrong",)])
    for key, reason in found.not_run.items():
        console.message(f"Not checked: {_CHECKS[key]} ({reason}).")
    facts = found.to_dict(most=_SHOWN)
    tables = {
        "leaks": ("images in both training and test set", ("test", "other", "kind")),
        "label_errors": (f"labels worth a look ({label_precision()})", ("path", "label", "suggested", "probability")),
    }
    for key, (title, columns) in tables.items():
        listed = facts[key]
        if listed["count"]:
            rows = [tuple(_cell(item[column]) for column in columns) for item in listed["items"]]
            more = listed["count"] - len(rows)
            console.print_table(title + (f" (and {more} more: --json)" if more else ""), columns, rows)


def _cell(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)
