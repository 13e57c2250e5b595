"""What the modules of the formats share: what they are given and what they return."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from resfit.export.export_model import ExportModel
from resfit.registries import Registry

#: For the model card.
FOLDED = "Batch norms are folded into the convolutions."


@dataclasses.dataclass(frozen=True, eq=False)
class ExportJob:
    """One export to be written.

    Attributes:
        subject: The network.
        precision: ``"float32"``, ``"float16"`` or ``"int8"``.
        calibrating: uint8 images that int8 is calibrated on.
        version: Version number for model servers.
        share: For int8, the share of the convolutions that stays in float32, see :func:`resfit.engines.int8.sensitive`.
        kept: What a format keeps from one share to the next.
    """

    subject: ExportModel
    precision: str
    calibrating: np.ndarray
    version: int = 1
    share: float = 0.0
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Written:
    """What a format wrote.

    Attributes:
        files: What is loaded, relative to the folder of the export; the first is the one to name.
        input: What goes in, JSON-ready, as :func:`image_input` describes it.
        outputs: What comes out, JSON-ready, as :func:`scores_output` describes it.
        usage: Code that loads it and classifies one image (or detects in one), without resfit. It is run as it is
            printed, and has to leave behind what :func:`resfit.export.snippet.run` says.
        temperature_applied: Whether the scores are divided by the temperature already.
        notes: Sentences for the model card.
        facts: More for ``contract.json``, JSON-ready.
    """

    files: tuple[str, ...]
    input: dict[str, Any]
    outputs: tuple[dict[str, Any], ...]
    usage: str
    temperature_applied: bool = True
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class ExportFormat(Protocol):
    """What writes one format: a module of this package, or an object with the same names.

    It may have a function ``checks(job, folder, images)`` too, which compares what the scores alone do not show and
    returns a :class:`resfit.export.verification.Check` for each.
    """

    #: Precisions that it has.
    PRECISIONS: tuple[str, ...]
    #: Modules that it needs.
    MODULES: tuple[str, ...]
    #: Modules that int8 needs beside them.
    INT8_MODULES: tuple[str, ...]
    #: The distribution whose version is stated as the runtime's.
    RUNTIME: str

    def write(self, job: ExportJob, folder: Path) -> Written:
        """Writes the files to an empty folder."""
        ...


#: Every format by its name.
REGISTERED: Registry[ExportFormat] = Registry("an export format")

_Writer = TypeVar("_Writer")


def register_export_format(name: str) -> Callable[[_Writer], _Writer]:
    """Registers a format to export to.

    Args:
        name: What ``format=`` calls it.

    Example:
        >>> @register_export_format("weights")  # doctest: +SKIP
        ... class Weights:
        ...     PRECISIONS, MODULES, INT8_MODULES, RUNTIME = ("float32",), (), (), "numpy"
        ...
        ...     @staticmethod
        ...     def write(job, folder): ...
    """

    def register(writer: _Writer) -> _Writer:
        REGISTERED.add(name, cast(ExportFormat, writer))
        return writer

    return register


def image_input(job: ExportJob, name: str = "images", **changes: Any) -> dict[str, Any]:
    """Returns what most formats take: RGB 0..255, channels last, any number of images of one size.

    Args:
        job: The export.
        name: Of the input.
        **changes: What is different.
    """
    contract = job.subject.input_spec
    height, width = (None, None) if contract.resize_mode == "none" else contract.size
    return {
        "name": name,
        "dtype": "float32",
        "layout": "NHWC",
        "axes": ["batch", "height", "width", "channels"],
        "shape": [None, height, width, contract.channels],
        "values": [0, 255],
        "channels": {1: "grey", 3: "RGB"}.get(contract.channels, f"{contract.channels} channels"),
        "normalisation": "inside the network",
        **changes,
    }


def scores_output(job: ExportJob, name: str = "") -> dict[str, Any]:
    """Returns the description of the scores, or of the numbers of a regressor."""
    subject = job.subject
    return {
        "name": name or subject.output,
        "dtype": "float32",
        "axes": ["batch", "label"],
        "shape": [None, len(subject.labels)],
        "meaning": subject.meaning,
    }


def int8_note(job: ExportJob, kept: int) -> str:
    """Says what int8 is here.

    Args:
        job: The export.
        kept: Number of convolutions that stayed in float32.
    """
    floats = {0: "", 1: ", the first convolution"}.get(kept, f", the first {kept} convolutions")
    return (
        f"Calibrated on {len(job.calibrating)} images. Weights are symmetric for each output channel. Input, output, "
        f"what is before the convolutions{floats} and what is behind the last one stay in float32."
    )


def usage(job: ExportJob, *, head: str, load: str, run: str, more: str = "") -> str:
    """Returns code that classifies a photo with Pillow and numpy.

    Args:
        job: The export.
        head: Further imports.
        load: A statement that loads the network.
        run: An expression that gives the scores ``(batch, labels)`` of ``images``.
        more: Further lines at the end.

    The code answers for an empty batch itself: no runtime promises to. onnxruntime's group normalisation refuses one,
    and TensorFlow's convolutions give shapes of their own where oneDNN computes them.
    """
    spec = job.subject.input_spec
    height, width = spec.size
    mode = "L" if spec.channels == 1 else "RGB"
    method = f"Image.Resampling.{spec.interpolation.upper()}"
    if spec.resize_mode == "none":
        resize, sides = "", "height, width"
    elif spec.resize_mode == "squash":
        resize, sides = f"photo = photo.resize(({width}, {height}), {method})\n", f"{height}, {width}"
    else:
        box_height, box_width = spec.resize_size
        sides = f"{height}, {width}"
        resize = f"""\
scale = max({box_width} / photo.width, {box_height} / photo.height)
photo = photo.resize((max({width}, round(photo.width * scale)), max({height}, round(photo.height * scale))), {method})
left, top = (photo.width - {width}) // 2, (photo.height - {height}) // 2
photo = photo.crop((left, top, left + {width}, top + {height}))
"""
    grey = "[..., None]" if spec.channels == 1 else ""
    none = f"np.zeros((0, {len(job.subject.labels)}), np.float32)"
    body = f"    if not len(images):\n        return {none}\n    return {run}\n"
    output, function = job.subject.output, job.subject.function
    if output == "values":
        shown = "print(dict(zip(labels, values.tolist())))"
    elif job.subject.multilabel:
        shown = "print([(label, score) for label, score in zip(labels, scores) if score > 0.5])"
    else:
        shown = "print(labels[scores.argmax()], scores.max())"
    return f'''\
import numpy as np
{head}from PIL import Image, ImageOps

{load}

def {function}(images):  # float32 (batch, {sides}, {spec.channels}), values 0..255, to {output} (batch, labels)
{body}

labels = open("labels.txt", encoding="utf-8").read().splitlines()
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
{resize}images = np.asarray(photo, np.float32){grey}[None]
{output} = {function}(images)[0]
{shown}
{more}'''


def version(package: str) -> str:
    """Returns name and version of an installed package; the name alone if it cannot be found."""
    for name in (package, f"{package}-cpu"):
        try:
            return f"{package} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return package
