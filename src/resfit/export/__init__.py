"""Networks for other runtimes, each checked against Keras in the runtime it was written for.

An export is a folder: the network in its format, its input contract, labels, temperature, a model card and a list of
checksums (:mod:`resfit.export.folder`). Nothing in it needs resfit. After writing, the code of its model card is run on
real images, as it is printed and in a process of its own (:mod:`resfit.export.snippet`). What that gives is what the
card states, and an export that disagrees with Keras is an error and does not stay.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit import artifact, dependencies
from resfit.data import decode
from resfit.engines.keras import KerasEngine
from resfit.errors import ArgumentError, ExportError, MissingDependencyError, ResfitError, closest
from resfit.export import card, folder, images, snippet, verification
from resfit.export import keras as _keras
from resfit.export import litert as _litert
from resfit.export import onnx as _onnx
from resfit.export import openvino as _openvino
from resfit.export import tf_hub as _tf_hub
from resfit.export import tf_saved_model as _tf_saved_model
from resfit.export import torch as _torch
from resfit.export.base import REGISTERED, ExportFormat, ExportJob, Written, register_export_format, version
from resfit.export.detection import pictures
from resfit.export.detection import verification as detections
from resfit.export.detection.export_detector import ExportDetector, of_detector
from resfit.export.detection.formats import WRITERS
from resfit.export.export_model import ExportModel, ExportRegressor, opened, subject_of
from resfit.export.images import Images
from resfit.export.results import Export
from resfit.export.verification import Check, NumberVerification, Verification
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.storage.atomic import write_json, write_text
from resfit.tasks.detection import Detector

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "Export",
    "Verification",
    "cases",
    "export",
    "export_all",
    "register_export_format",
]

for _module in (_tf_saved_model, _tf_hub, _keras, _onnx, _openvino, _litert, _torch):
    register_export_format(_module.__name__.rpartition(".")[2])(_module)

#: What ``format=`` accepts, beside formats that other programs register.
FORMATS = tuple(REGISTERED)
# made from graphs of TensorFlow
_OF_TENSORFLOW = ("tf_saved_model", "tf_hub", "litert")
#: What it knows and cannot write, and why.
UNAVAILABLE = {
    "tfjs": "there is no maintained converter to TensorFlow.js for this TensorFlow: the last tensorflowjs is 4.22.0 of "
    "October 2024, which does not read Keras 3. Take format='onnx' and run it in the browser with onnxruntime-web, or "
    "format='litert' with LiteRT.js."
}
#: What ``precision=`` accepts; not every format has all of them.
PRECISIONS = ("float32", "float16", "int8")

#: What :func:`export_all` leaves beside the exports.
TABLE = "exports.json"
PICTURE = "exports.png"

#: Shares of the convolutions that stay in float32 in int8, tried in turn until an export agrees.
FLOAT_SHARES = (0.0, 0.05, 0.15, 0.3, 0.5, 0.75)

_SECONDS = 0.3
# formats in which a regressor is exported
_OF_NUMBERS = ("tf_saved_model", "keras", "onnx", "openvino", "litert")
# what the card's plain resizing may be away from decoding at a reduced size, on average
_PIXELS = 5.0


def export(
    source: Any,
    out: str | os.PathLike[str],
    *,
    format: str = "tf_saved_model",
    precision: str = "float32",
    images: Any = None,
    name: str | None = None,
    version: int = 1,
    seed: int = 0,
    raw: bool = False,
) -> Export:
    """Writes a classifier, detector or network for another runtime, and compares the result with Keras there.

    Args:
        source: A :class:`resfit.tasks.classification.Classifier`, the folder of one, a Keras model with an
            ``input_spec`` that
            ends in a classifier, or what :func:`resfit.load` takes.
        out: A new or empty folder, or an earlier export, which is replaced.
        format: One of :data:`FORMATS`.
        precision: One of :data:`PRECISIONS`. int8 is calibrated on images; float16 stores weights in half the size.
        images: Real images to compare and to calibrate on: a folder, a list of files, a CSV file or a uint8 array.
            Default: those that a classifier was tested on, or where they are gone, images that ship with resfit.
        name: Of the network in file names and model servers. Default: that of the classifier's folder or the network.
        version: Version number in the layout of TensorFlow Serving, at least 1.
        seed: Of the choice of images.
        raw: Of a detector: boxes and scores before suppression, in place of detections.

    Returns:
        Where it stands and how it compares. The same is in its ``verification.json``.

    Raises:
        ArgumentError: An argument breaks its rule, the format has no such precision, or ``out`` holds something else.
        ExportError: The export disagrees with Keras (a score by more than 1e-4 of the largest in float32, or the first
            class on more than 1 % of the images; fewer than 99 % of a detector's boxes have a match within half a
            pixel), the format cannot express the network, or there is no converter
            to it. ``out`` is left as it was.
        MissingDependencyError: The format's packages are not installed.
        DataError: None of the images can be used.

    Example:
        >>> export("flowers.resfit", "flowers-onnx", format="onnx").verification.agreement
        1.0
    """
    _check_arguments(format, precision, version)
    out = Path(os.path.abspath(out))
    folder.check_target(out)
    _installed(format, precision)
    return _exporter(_subject(source, name, raw), images, seed, version).run(format, precision, out)


def cases(formats: Sequence[str] = (), precisions: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Returns the pairs of format and precision that exist.

    Args:
        formats: Some of :data:`FORMATS`; none for all.
        precisions: Some of :data:`PRECISIONS`; none for all.

    Raises:
        ArgumentError: One is unknown.
        ExportError: There is no converter to one.
    """
    for format in formats:
        _check_format(format)
    for precision in precisions:
        _check_precision(precision)
    return [
        (format, precision)
        for format in formats or REGISTERED
        for precision in REGISTERED[format].PRECISIONS
        if not precisions or precision in precisions
    ]


def export_all(
    source: Any,
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    images: Any = None,
    name: str | None = None,
    version: int = 1,
    seed: int = 0,
    raw: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Export]:
    """Writes a classifier or network in every format and precision, a folder each.

    Beside them stand ``exports.json``, the table, and ``exports.png``, accuracy over latency. What cannot be made, for
    want of a package or because a format cannot express the network, is a row with a ``problem``; so is an export that
    disagrees with Keras, which is ``failed`` too.

    Args:
        source: As :func:`export` takes it.
        out: Folder for the exports: ``onnx``, ``onnx-int8`` and so on. Earlier exports in it are replaced.
        formats: Some of :data:`FORMATS`; none for all.
        precisions: Some of :data:`PRECISIONS`; none for all.
        images: As :func:`export` takes it.
        name: As :func:`export` takes it.
        version: As :func:`export` takes it.
        seed: As :func:`export` takes it.
        raw: As :func:`export` takes it.
        say: Called with a line for people after each export.

    Returns:
        A row for each.

    Raises:
        ArgumentError: As :func:`export` says.
        ExportError: There is no converter to one of the formats.
        DataError: As :func:`export` says.
    """
    chosen = cases(formats, precisions)
    out = Path(os.path.abspath(out))
    for format, precision in chosen:
        folder.check_target(out / _folder_name(format, precision))
    exporter = _exporter(_subject(source, name, raw), images, seed, version)
    found = []
    for format, precision in chosen:
        row = exporter.row(format, precision, out / _folder_name(format, precision))
        found.append(row)
        if say is not None:
            say(line(row))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / TABLE, [row.to_dict() for row in found])
    from resfit.export import comparison_plot

    about = f"{exporter.subject.name}: {exporter.images.source}"
    comparison_plot.accuracy_over_latency(out / PICTURE, found, about)
    return found


def line(row: Export) -> str:
    """Returns an export in one line for people.

    Args:
        row: The export.
    """
    head = f"{row.format} {row.precision}"
    found = row.verification
    if row.problem or found is None:
        return f"{head}: {'FAILED' if row.failed else 'left out'}: {row.problem}"
    difference, agreement, _ = (heading.removeprefix(">") for heading in found.HEADINGS)
    return (
        f"{head}: {difference} {found.difference:.1e}, {agreement} {found.agreement:.1%} on "
        f"{found.images} images, {row.size / 1e6:.1f} MB, {found.latency:.1f} ms"
    )


def _subject(source: Any, name: str | None, raw: bool) -> ExportModel:
    """What is to be exported."""
    found, name, facts = opened(source, name)
    if isinstance(getattr(found, "architecture", None), AnyDetectorSpec):
        found = Detector.of_model(found)
    if isinstance(found, Detector):
        return of_detector(found, name=name, raw=raw, facts=facts)
    if raw:
        raise ArgumentError("raw=True is for detectors. Received: a network without boxes.")
    return subject_of(found, name=name, facts=facts)


def _exporter(subject: ExportModel, source: Any, seed: int, version: int) -> _Exporter:
    if isinstance(subject, ExportDetector):
        return _DetectionExporter(subject, source, seed, version)
    return _Exporter(subject, source, seed, version)


class _Exporter:
    """Exports of one network, which are compared with the same scores of Keras on the same images."""

    def __init__(self, subject: ExportModel, source: Any, seed: int, version: int):
        self.subject = subject
        self._version = version
        self._prepare(source, seed)

    def _prepare(self, source: Any, seed: int) -> None:
        """Finds images, and what Keras says of them."""
        self.images: Images = images.gather(self.subject, source, seed=seed)
        self._expected: np.ndarray = verification.rows(KerasEngine(self.subject.scores).run, self.images.checking)

    def _writer(self, module: ExportFormat, format: str) -> Callable[[ExportJob, Path], Written]:
        """What writes the files of a format."""
        if isinstance(self.subject, ExportRegressor) and format not in _OF_NUMBERS:
            raise ExportError(
                f"a regressor is exported as {', '.join(_OF_NUMBERS)}. Received: format={format!r}. Take one of these."
            )
        return module.write

    def run(self, format: str, precision: str, out: Path) -> Export:
        module = _installed(format, precision)
        with artifact.atomic_folder(out) as work:
            found, size = self._written(module, format, precision, work)
            folder.check_target(out)
        return Export(format, precision, out, size, found)

    def row(self, format: str, precision: str, out: Path) -> Export:
        try:
            return self.run(format, precision, out)
        except _DisagreementError as error:
            return Export(format, precision, verification=error.verification, problem=str(error), failed=True)
        except (ExportError, MissingDependencyError) as error:
            return Export(format, precision, problem=str(error))

    def _written(self, module: ExportFormat, format: str, precision: str, work: Path) -> tuple[Verification, int]:
        job = ExportJob(self.subject, precision, self.images.calibrating, self._version)
        for share in FLOAT_SHARES if precision == "int8" else (0.0,):
            for stale in work.iterdir():
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            job = dataclasses.replace(job, share=share)
            try:
                written = self._writer(module, format)(job, work)
            except (ResfitError, OSError):
                raise
            except Exception as error:  # converters raise nearly everything
                raise ExportError(
                    f"{format} cannot express this network in {precision} ({type(error).__name__}: {error}). "
                    "Take another format."
                ) from error
            write_text(work / folder.LABELS, folder.labels_text(list(self.subject.labels)))
            described = folder.contract(job, written, format)
            write_json(work / folder.CONTRACT, described)  # which the code of the card may read
            found = self._compared(module, job, written, work)
            if not found.problems:
                break
        else:
            raise _DisagreementError(format, precision, found)
        size = folder.network_bytes(work)
        folder.write_side_files(work, described, found.to_dict(), card.card(job, written, described, found, size))
        return found, size

    def _compared(self, module: ExportFormat, job: ExportJob, written: Written, work: Path) -> Verification:
        subject = self.subject
        received = snippet.run(
            written.usage,
            work,
            self.images.checking,
            self.images.photo,
            seconds=_SECONDS,
            function=subject.function,
            of_photo=subject.output,
        )
        multilabel = subject.multilabel
        numbers = isinstance(subject, ExportRegressor)
        checks = getattr(module, "checks", None)
        alone = verification.difference(received.alone, self._expected[: len(received.alone)])
        kind = NumberVerification if numbers else Verification
        return kind(
            runtime=version(module.RUNTIME),
            precision=job.precision,
            images=len(self.images.checking),
            source=self.images.source,
            difference=max(alone, verification.difference(received.scores, self._expected)),
            agreement=verification.closeness(received.scores, self._expected, job.precision)
            if numbers
            else verification.agreement(
                received.scores, self._expected, precision=job.precision, multilabel=multilabel
            ),
            accuracy=verification.accuracy(received.scores, self.images.labels),
            keras_accuracy=verification.accuracy(self._expected, self.images.labels),
            latency=received.latency,
            checks=(*self._photo(received, job.precision), *(() if checks is None else checks(job, work, self.images))),
            no_images=received.empty,
            other_size=None if None in written.input["shape"][1:] else received.larger,
            files=self.images.files,
        )

    def _photo(self, received: snippet.Received, precision: str) -> tuple[Check, ...]:
        """Compares what the code made of a photo with resfit's own decoding, and its scores with Keras'."""
        ours = decode.decode_image(self.images.photo, self.subject.input_spec).astype(np.float32)
        expected = verification.rows(KerasEngine(self.subject.scores).once, received.pixels)[0]
        same = received.pixels.shape[1:] == ours.shape
        away = float(np.abs(received.pixels[0] - ours).mean()) if same else float("inf")
        tolerance = verification.TOLERANCES[precision]
        scores = verification.difference(received.photo, expected)
        return (
            Check("the pixels of a photo, averaged", away, _PIXELS, "of 255"),
            Check(f"the {self.subject.output} of a photo", scores, tolerance),
        )


class _DetectionExporter(_Exporter):
    """Exports of one detector, which are compared with the same boxes of Keras on the same images."""

    def _prepare(self, source: Any, seed: int) -> None:
        self._pictures = pictures.gather(self._detector, source, seed=seed)
        self.images = self._pictures.images
        self._found = self._keras(self.images.checking)
        self._ap = pictures.average_precision(self._detector, self._pictures, self._found)

    @property
    def _detector(self) -> ExportDetector:
        assert isinstance(self.subject, ExportDetector)
        return self.subject

    def _keras(self, images: np.ndarray) -> list[Any]:
        """What Keras finds, image by image."""
        network, found = self._detector.scores, []
        for image in images:
            outputs = network(image[None].astype(np.float32), training=False)
            found += self._detector.detections({name: np.asarray(value) for name, value in outputs.items()})
        return found

    def _writer(self, module: ExportFormat, format: str) -> Callable[[ExportJob, Path], Written]:
        if format not in WRITERS:
            raise ExportError(
                f"a detector is exported as {', '.join(WRITERS)}. Received: format={format!r}. Take one of these."
            )
        return WRITERS[format]

    def _compared(self, module: ExportFormat, job: ExportJob, written: Written, work: Path) -> Verification:
        subject, precision = self._detector, job.precision
        received = snippet.run(
            written.usage,
            work,
            self.images.checking,
            self.images.photo,
            seconds=_SECONDS,
            function="detect",
            of_photo="found",
            empty=False,
        )
        limits = np.array([subject.detector.thresholds[label] for label in subject.labels], np.float32)
        found = subject.detections(received.outputs)
        alone = subject.detections(received.outputs_alone)
        compared = found + alone, self._found + self._found[: len(alone)]
        share, pixels, scores, boxes = detections.matched(*compared, precision, limits)
        of_photo = subject.detections({name: value[None] for name, value in received.outputs_of_photo.items()})
        matched, *_ = detections.matched(of_photo, self._keras(received.pixels), precision, limits)
        ours = decode.decode_image(self.images.photo, subject.input_spec).astype(np.float32)
        same = received.pixels.shape[1:] == ours.shape
        away = float(np.abs(received.pixels[0] - ours).mean()) if same else float("inf")
        unmatched = None if precision == "int8" else 1 - detections.LEAST_MATCHED[precision]
        return detections.DetectionVerification(
            runtime=version(module.RUNTIME),
            precision=precision,
            images=len(self.images.checking),
            source=self.images.source,
            difference=pixels,
            agreement=share,
            accuracy=pictures.average_precision(subject, self._pictures, found),
            keras_accuracy=self._ap,
            latency=received.latency,
            checks=(
                Check("the pixels of a photo, averaged", away, _PIXELS, "of 255"),
                Check("the boxes of a photo without a match", 1 - matched, unmatched, "of all"),
            ),
            other_size=received.larger,
            files=self.images.files,
            boxes=boxes,
            score_difference=scores,
        )


class _DisagreementError(ExportError):
    """An export that was made, run and found wanting."""

    def __init__(self, format: str, precision: str, found: Verification):
        self.verification = found
        tried = f" with up to {FLOAT_SHARES[-1]:.0%} of the convolutions in float32" if precision == "int8" else ""
        super().__init__(
            f"the export's outputs differ from Keras'. Received: {format} in {precision}{tried}: "
            f"{'; '.join(found.problems)} ({found.source}). Nothing was written. "
            + (_OTHERWISE if precision == "int8" else "Take another format.")
        )


_OTHERWISE = (
    "Pass more images of the kind that the network is for as images=, since a quarter of them calibrates, or take "
    "float16 or float32."
)


def _check_arguments(format: str, precision: str, version: int) -> None:
    _check_format(format)
    _check_precision(precision)
    having = [name for name, writer in REGISTERED.items() if precision in writer.PRECISIONS]
    if format not in having:
        own = ", ".join(REGISTERED[format].PRECISIONS)
        raise ArgumentError(
            f"format={format!r} has the precisions {own}. Received: {precision!r}. "
            f"{precision} is for {', '.join(having)}."
        )
    if version < 1:
        raise ArgumentError(f"version must be at least 1. Received: {version}.")


def _check_format(format: str) -> None:
    if format in UNAVAILABLE:
        raise ExportError(UNAVAILABLE[format])
    if format not in REGISTERED:
        known = tuple(REGISTERED)
        raise ArgumentError(f"format must be one of {known}. Received: {format!r}.{closest(format, known)}")


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"precision must be one of {PRECISIONS}. Received: {precision!r}.{closest(precision, PRECISIONS)}"
        )


def _installed(format: str, precision: str) -> ExportFormat:
    module = REGISTERED[format]
    more = module.INT8_MODULES if precision == "int8" else ()
    what = f'format="{format}"' + (f' with precision="{precision}"' if more else "")
    dependencies.require(what, *module.MODULES, *more)
    if format in _OF_TENSORFLOW:
        dependencies.require_tensorflow_backend(what)
    return module


def _folder_name(format: str, precision: str) -> str:
    return format if precision == "float32" else f"{format}-{precision}"
