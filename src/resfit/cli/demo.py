"""``resfit demo``: the main job on real images, offline."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from resfit.cli import classify, console, fit


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("demo", epilog="Example: resfit demo -o demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the images, the classifier and the picture.")
    ] = Path("demo"),
    report: Annotated[bool, typer.Option("--report", help="Write a report of the test images as well.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve the classifier and its report, with a page.")
    ] = False,
    port: Annotated[int, typer.Option("--port", help="Port for --serve; 0 takes a free one.")] = 8080,
) -> None:
    """Fit a classifier to 2,000 images that ship with resfit, and show what it does."""
    from resfit.cli import serve as server

    if serve:
        server.check_installed()
    if report or serve:
        from resfit.report.templates import check_installed

        check_installed()
    from resfit.data import samples
    from resfit.data.dataset import scan
    from resfit.evaluation.pictures import contact_sheet
    from resfit.tasks.classification import Classifier

    begin = time.monotonic()
    images, artifact, picture = out / "images", out / "fashion.resfit", out / "demo.png"
    samples.unpack(images)

    console.message(f"$ resfit fit {images} -o {artifact}")
    fit.fit(images, out=artifact, force=True)  # with the report of an earlier demo

    found = scan(images)
    test = found.subset([row for row, part in enumerate(found.splits) if part == "test"])
    some = [next(path for path in test.paths if path.parent.name == name) for name in found.classes]
    console.message(f"$ resfit predict {artifact} {images / 'test' / '*' / '000.png'} --top 3")
    classify.predict(str(artifact), some, top=3)

    classifier = Classifier.load(artifact)
    probabilities = classifier.predict_proba(list(test.paths))
    accuracy = (probabilities.argmax(axis=1) == test.labels).mean()
    contact_sheet(
        picture,
        images=test.paths,
        labels=test.labels,
        probabilities=probabilities,
        classes=classifier.classes,
        title=f"Fashion-MNIST, {len(test)} test images: {100 * accuracy:.1f} % right",
    )
    typer.echo(f"Accuracy {100 * accuracy:.1f} % on {len(test)} test images; picture: {picture}")
    if report or serve:
        from resfit import report as reports

        page = out / "report.html"
        console.message(f"$ resfit evaluate {artifact} {images / 'test'} --report {page}")
        reports.write(reports.measure(classifier, images / "test"), page)
        typer.echo(f"Report: {page}")
    console.message(f"The whole demo took {time.monotonic() - begin:.0f} s.")
    if serve:
        shutil.copy(page, artifact / "report.html")  # the page shows it

        console.message(f"$ resfit serve {artifact} --port {port}")
        server.serve(artifact, port=port)
