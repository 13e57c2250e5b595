"""``resfit demo``: the main job on real images, offline."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from resfit.cli import classify, console, fit

# pictures of the demo of detection, and what it may take; the whole demo is to end within two minutes
_SHAPES = {"train": 120, "val": 30, "test": 30}
_DETECTION_BUDGET = "75s"


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
    detection: Annotated[
        bool, typer.Option("--detection", help="Find objects instead, in pictures that are drawn on the spot.")
    ] = False,
) -> None:
    """Fit a classifier to 2,000 images that ship with resfit, and show what it does."""
    if detection:
        from resfit.errors import ArgumentError

        if report or serve:
            raise ArgumentError("--detection shows a picture. Received: --report or --serve as well.")
        _detection(out)
        return
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


def _detection(out: Path) -> None:
    """Draws pictures with boxes, fits a detector, and ends in a picture with the boxes that it finds."""
    from PIL import Image

    from resfit.data import drawn_boxes
    from resfit.tasks.detection import Detector
    from resfit.tasks.detection import fit as detection

    begin = time.monotonic()
    images, artifact, picture = out / "shapes", out / "shapes.resfit", out / "shapes.png"
    drawn_boxes.write_set(images, _SHAPES)
    console.message(f"$ resfit fit {images} -o {artifact} --budget {_DETECTION_BUDGET}")
    console.load_tensorflow()
    detection.fit(images, out=artifact, force=True, budget=_DETECTION_BUDGET, say=console.message)
    detector = Detector.load(artifact)
    figures = detector.metrics["test"]["metrics"]
    some = sorted((images / "test").glob("*.jpg"))[:6]
    console.message(f"$ resfit predict {artifact} {images / 'test'}")
    found = detector.predict(some)
    for one in found:
        text = ", ".join(f"{label} {score:.2f}" for label, score in zip(one.labels, one.scores.tolist(), strict=True))
        typer.echo(f"{one.path}  {text or 'nothing'}")
    shown = [one.draw() for one in found]
    width, height = shown[0].size
    sheet = Image.new("RGB", (3 * width, -(-len(shown) // 3) * height), (255, 255, 255))
    for place, image in enumerate(shown):
        sheet.paste(image, (place % 3 * width, place // 3 * height))
    sheet.save(picture)
    typer.echo(
        f"AP50 {figures['ap50']:.3f}, AP {figures['ap']:.3f} on {_SHAPES['test']} test pictures; picture: {picture}"
    )
    console.message(f"The whole demo took {time.monotonic() - begin:.0f} s.")
