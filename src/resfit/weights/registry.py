"""Every named checkpoint, one row each. The rows stand in ``registry.csv``; nothing heavy is imported here.

``modules.csv`` has what TensorFlow Hub publishes beside, and only a layer can run; ``detectors.csv`` has detectors.
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError, UnknownNameError, closest

if TYPE_CHECKING:
    from resfit.preprocessing import InputSpec

KERAS, TIMM, RESFIT, TENSORFLOW_HUB = "keras.applications", "timm", "resfit", "tensorflow-hub"

#: Who publishes the weights: the programs, libraries or lines of research that the rows come from.
SOURCES = (
    *(KERAS, RESFIT, TIMM, "torchvision", "transformers", "kerashub", TENSORFLOW_HUB, "tf-slim", "bit"),
    *("radimagenet", "self-supervised", "cifar"),
)

#: Who publishes detectors whose files are read but not brought: pass their path.
FILES_ONLY = ("mmdetection", "detectron2")

#: Sources whose files :mod:`resfit.weights.fetch` can bring and a reader can read, row by row: a row with an
#: ``obstacle`` cannot be loaded whatever its source.
LOADABLE = SOURCES

#: Licences that allow commercial use and ask for no more than a notice.
PERMISSIVE = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit")

#: The benchmark that accuracies are compared on unless another is named.
IMAGENET = "ImageNet-1k"


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """One published set of weights.

    What is not published is empty; no figure is a guess.

    Attributes:
        name: Its name; a tag after a dot where one architecture has several (``"resnet50.a1_in1k"``).
        architecture: The catalog's name of its network, or ``""`` where the catalog lacks it.
        source: Who publishes it, one of :data:`SOURCES`, or of :data:`FILES_ONLY`.
        url: Where it is: a URL, a handle (``hf://``, ``kaggle://``, ``gs://``), or a path inside the package.
        mirror: Another place of the same weights, or ``""``.
        md5: Of the file with the classifier, or its first eight digits where only these are published; ``""`` where
            none is.
        sha256: Likewise.
        url_notop: The file without the classifier; ``""`` where there is none.
        md5_notop: Of that file.
        format: What the file is: ``"keras_h5"``, ``"safetensors"``, ``"torch"``, ``"saved_model"``,
            ``"tf_checkpoint"``, ``"kerashub"``, ``"npz"`` or ``"pickle"``.
        layout: How its tensors are named: a convention of :mod:`resfit.weights.conventions.pytorch` or of another
            translation.
        prefix: What stands before the names of the network in the file.
        obstacle: Why it cannot be loaded, or ``""``.
        licence: SPDX name in lower case, or ``""`` where none is stated for the weights.
        classes: Outputs of the classifier; 0 where it has none.
        labels: Which set of :mod:`resfit.weights.labels` names them, or ``""``.
        training_data: What it was trained on.
        input_size: Side of its input in pixels.
        interpolation: How images are resized.
        crop_fraction: Share of the resized image that the centre crop keeps.
        channel_order: ``"rgb"`` or ``"bgr"``.
        scale: Factor on the raw values 0..255.
        mean: Subtracted after scaling, in the network's channel order; as many as it has input channels.
        std: Divided by after that.
        top1: Published top-1 accuracy in percent.
        top5: Published top-5 accuracy in percent.
        evaluated_on: The images that these were measured on, such as ``"ImageNet-1k"``; of weights without a
            classifier ``"ImageNet-1k (linear probe)"``, by a classifier that was trained on their features.
        eval_size: Side in pixels at which they were measured.
        params_m: Published parameters in millions.
        gmacs: Published multiply-accumulates in billions at ``input_size``.
        figures: Who publishes these figures.
        longest_side: Of detectors: side in pixels that no image has more of, where ``input_size`` is the shorter one.
        ap: Published box AP on ``evaluated_on`` in percent: the mean over thresholds of overlap of 0.5 to 0.95.
        megabytes: Size of the published file in millions of bytes, as far as it is stated.
        resize_mode: How images are brought to the input's size, as :class:`resfit.preprocessing.InputSpec` has it;
            ``""`` for ``"fit"`` where there is a longest side, else ``"shorter"``.
    """

    name: str
    architecture: str
    source: str
    url: str
    mirror: str
    md5: str
    sha256: str
    url_notop: str
    md5_notop: str
    format: str
    layout: str
    prefix: str
    obstacle: str
    licence: str
    classes: int
    labels: str
    training_data: str
    input_size: int
    interpolation: str
    crop_fraction: float
    channel_order: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top1: float | None
    top5: float | None
    evaluated_on: str
    eval_size: int | None
    params_m: float | None
    gmacs: float | None
    figures: str
    longest_side: int | None = None
    ap: float | None = None
    megabytes: float | None = None
    resize_mode: str = ""

    @property
    def loadable(self) -> bool:
        """Whether ``resfit.load`` can bring these weights by name; embedded ones, if the file is there."""
        if self.source == RESFIT:
            return embedded_path(self).is_file()
        return self.source in LOADABLE and bool(self.architecture) and not self.obstacle

    @property
    def permissive(self) -> bool:
        """Whether its licence allows commercial use and asks for no more than a notice."""
        return self.licence in PERMISSIVE

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Labels in the order of its classifier, or None where they are not known; read on first use."""
        from resfit.weights import labels

        return labels.of(self.labels) if self.labels else None

    @property
    def input_spec(self) -> InputSpec:
        """The input contract; of embedded weights, the one that their file states."""
        from resfit.preprocessing import InputSpec

        if self.source == RESFIT and isinstance(written := embedded_metadata(self).get("input_spec"), dict):
            return InputSpec.from_dict(written)
        fits = self.longest_side is not None
        return InputSpec(
            size=(self.input_size, self.longest_side or self.input_size),
            resize_mode=self.resize_mode or ("fit" if fits else "shorter"),  # type: ignore[arg-type]
            channels=len(self.mean),
            channel_order=self.channel_order,  # type: ignore[arg-type]
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,  # type: ignore[arg-type]
            crop_fraction=self.crop_fraction,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def embedded_path(info: CheckpointInfo) -> Path:
    """Returns where a checkpoint of source ``"resfit"`` lies inside the package. It need not exist."""
    return Path(str(resources.files("resfit"))) / info.url


@functools.cache
def embedded_metadata(info: CheckpointInfo) -> Mapping[str, Any]:
    """Returns what the file of embedded weights says about itself; nothing as long as it is not there.

    Args:
        info: A row of source ``"resfit"``.

    Returns:
        ``architecture``, ``input_spec``, ``classes`` and ``scores``, as far as they are given.

    Raises:
        CheckpointError: The file is damaged.
    """
    from resfit.weights.formats import safetensors

    path = embedded_path(info)
    if not path.is_file():
        return {}
    return {key: safetensors.metadata_value(text) for key, text in safetensors.read_metadata(path).items()}


@functools.cache
def rows() -> dict[str, CheckpointInfo]:
    """Returns every checkpoint by its name, in the order of the table."""
    return _table("registry.csv")


@functools.cache
def modules() -> dict[str, CheckpointInfo]:
    """Returns by its name what TensorFlow Hub publishes and no network here equals, in the order of the table.

    Its ``obstacle`` says why. :class:`resfit.hub.KerasLayer` runs it as it is; ``resfit.load`` does not know its names.
    """
    return _table("modules.csv")


@functools.cache
def detectors() -> dict[str, CheckpointInfo]:
    """Returns every checkpoint of a detector by its name, in the order of the table.

    Their ``architecture`` is a name of :mod:`resfit.networks.detection.catalog`.
    """
    return _table("detectors.csv")


def _table(file: str) -> dict[str, CheckpointInfo]:
    text = resources.files("resfit.weights").joinpath(file).read_text(encoding="utf-8")
    return {info.name: info for info in _parse(text)}


def get(name: str) -> CheckpointInfo:
    """Returns the checkpoint of a name.

    Args:
        name: Such as ``"resnet50"`` or ``"resnet50.a1_in1k"``.

    Raises:
        UnknownNameError: No row has this name.
    """
    return _row(name, rows())


def get_detector(name: str) -> CheckpointInfo:
    """Returns the checkpoint of a detector.

    Args:
        name: Such as ``"retinanet_resnet50_v2"``.

    Raises:
        UnknownNameError: No row has this name.
    """
    return _row(name, detectors())


def _row(name: str, table: Mapping[str, CheckpointInfo]) -> CheckpointInfo:
    if name not in table:
        raise UnknownNameError(f"checkpoint must be a name of the registry. Received: {name!r}.{closest(name, table)}")
    return table[name]


def of_architecture(architecture: str) -> tuple[CheckpointInfo, ...]:
    """Returns the checkpoints of one architecture of the catalog, in the order of the table.

    Args:
        architecture: A name of the catalog.
    """
    return _by_architecture().get(architecture, ())


@functools.cache
def _by_architecture() -> dict[str, tuple[CheckpointInfo, ...]]:
    found: dict[str, tuple[CheckpointInfo, ...]] = {}
    for info in rows().values():
        found[info.architecture] = (*found.get(info.architecture, ()), info)
    return found


def default_for(architecture: str) -> CheckpointInfo | None:
    """Returns the checkpoint that stands for an architecture, or None where there is none.

    One that can be loaded comes first, then one with a classifier, those of keras.applications and of resfit itself,
    a permissive licence, timm's, an accuracy on ImageNet, and the highest top-1.

    Args:
        architecture: A name of the catalog.
    """

    def rank(info: CheckpointInfo) -> tuple[bool | float, ...]:
        own = info.source in (KERAS, RESFIT)
        on_imagenet = info.evaluated_on == IMAGENET
        return (
            *(info.source == RESFIT or info.loadable, info.classes > 0, own, info.permissive),
            *(info.source == TIMM, on_imagenet, info.top1 or 0.0),
        )

    return max(of_architecture(architecture), key=rank, default=None)


def find(
    pattern: str = "*",
    *,
    licence: str | None = None,
    trained_on: str | None = None,
    source: str | None = None,
    among: Mapping[str, CheckpointInfo] | None = None,
) -> list[CheckpointInfo]:
    """Finds checkpoints.

    Args:
        pattern: Shell pattern for the checkpoint's or the architecture's name.
        licence: ``"permissive"`` (Apache, MIT, BSD), or a shell pattern for the SPDX name such as ``"apache*"``.
        trained_on: Part of the training data's name, in any case and without regard to punctuation
            (``"imagenet21k"``).
        source: One of :data:`SOURCES`, or of :data:`FILES_ONLY`.
        among: The rows to look through. Default: :func:`rows`.

    Returns:
        The rows that fit, in the order of the table.

    Raises:
        ArgumentError: There is no such source.
    """
    known = (*SOURCES, *FILES_ONLY)
    if source is not None and source not in known:
        raise ArgumentError(f"source must be one of {known}. Received: {source!r}.{closest(source, known)}")
    return [
        info
        for info in (rows() if among is None else among).values()
        if any(fnmatch.fnmatchcase(name, pattern) for name in (info.name, info.architecture))
        and (source is None or info.source == source)
        and (licence is None or is_licensed(info, licence))
        and (trained_on is None or _plain(trained_on) in _plain(info.training_data))
    ]


def is_licensed(info: CheckpointInfo, licence: str) -> bool:
    """Whether a checkpoint has such a licence.

    Args:
        info: The checkpoint.
        licence: ``"permissive"`` or a shell pattern for the SPDX name.
    """
    return info.permissive if licence == "permissive" else fnmatch.fnmatchcase(info.licence, licence.lower())


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _parse(text: str) -> Iterator[CheckpointInfo]:
    for row in csv.DictReader(text.splitlines()):
        yield CheckpointInfo(**{key: _CONVERT.get(key, str)(value) for key, value in row.items()})


def _fraction(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def _figure(text: str) -> float | None:
    value = float(text) if text else math.nan
    return None if math.isnan(value) else value


def _count(text: str) -> int | None:
    return int(text) if text else None


_CONVERT: dict[str, Any] = {
    "classes": int,
    "input_size": int,
    "crop_fraction": float,
    "scale": _fraction,
    "mean": _floats,
    "std": _floats,
    "top1": _figure,
    "top5": _figure,
    "eval_size": _count,
    "params_m": _figure,
    "gmacs": _figure,
    "longest_side": _count,
    "ap": _figure,
    "megabytes": _figure,
}
