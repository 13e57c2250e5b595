"""Every named checkpoint, one row each. The rows stand in ``registry.csv``; nothing heavy is imported
here."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.errors import UnknownNameError, closest

if TYPE_CHECKING:
    from resfit.preprocessing import InputSpec

KERAS, TIMM, RESFIT = "keras.applications", "timm", "resfit"

#: Sources whose files :mod:`resfit.checkpoints.store` can bring and a reader can read.
LOADABLE = (KERAS, RESFIT)


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """One published set of weights.

    Attributes:
        name: Its name; a tag after a dot where one architecture has several (``"resnet50.a1_in1k"``).
        architecture: The catalog's name of its network, or ``""`` where the catalog lacks it.
        source: Who publishes it: ``"keras.applications"``, ``"timm"`` or ``"resfit"``.
        url: Where the file is: a URL, a ``hf://`` handle, or a path inside the package.
        md5: Of the file with the classifier; ``""`` where none is published.
        url_notop: The file without the classifier; ``""`` where there is none.
        md5_notop: Of that file.
        licence: SPDX name in lower case, or ``""`` where unknown.
        classes: Outputs of the classifier; 0 where it has none.
        training_data: What it was trained on.
        input_size: Side of its input in pixels.
        interpolation: How images are resized.
        crop_fraction: Share of the resized image that the centre crop keeps.
        channel_order: ``"rgb"`` or ``"bgr"``.
        scale: Factor on the raw values 0..255.
        mean: Subtracted after scaling, in the network's channel order.
        std: Divided by after that.
        top1: Published top-1 accuracy in percent on the validation images of the classes it knows.
        top5: Published top-5 accuracy in percent.
        eval_size: Side in pixels at which they were measured.
        params_m: Published parameters in millions.
        gmacs: Published multiply-accumulates in billions at ``input_size``.
        figures: Who publishes these figures.
    """

    name: str
    architecture: str
    source: str
    url: str
    md5: str
    url_notop: str
    md5_notop: str
    licence: str
    classes: int
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
    eval_size: int | None
    params_m: float | None
    gmacs: float | None
    figures: str

    @property
    def loadable(self) -> bool:
        """Whether ``resfit.load`` can bring these weights by name; embedded ones, if the file is there."""
        if self.source == RESFIT:
            return embedded_path(self).is_file()
        return self.source in LOADABLE and bool(self.architecture)

    @property
    def input_spec(self) -> InputSpec:
        """The input contract; of embedded weights, the one that their file states."""
        from resfit.preprocessing import InputSpec

        if self.source == RESFIT and isinstance(written := embedded_metadata(self).get("input_spec"), dict):
            return InputSpec.from_dict(written)
        return InputSpec(
            size=(self.input_size, self.input_size),
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
    from resfit.checkpoints.readers import safetensors

    path = embedded_path(info)
    if not path.is_file():
        return {}
    return {key: safetensors.metadata_value(text) for key, text in safetensors.read_metadata(path).items()}


@functools.cache
def rows() -> dict[str, CheckpointInfo]:
    """Returns every checkpoint by its name, in the order of the table."""
    text = resources.files("resfit.checkpoints").joinpath("registry.csv").read_text(encoding="utf-8")
    return {info.name: info for info in _parse(text)}


def get(name: str) -> CheckpointInfo:
    """Returns the checkpoint of a name.

    Args:
        name: Such as ``"resnet50"`` or ``"resnet50.a1_in1k"``.

    Raises:
        UnknownNameError: No row has this name.
    """
    table = rows()
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

    One that can be loaded comes first, then one whose licence allows commercial use, then the highest top-1.

    Args:
        architecture: A name of the catalog.
    """

    def rank(info: CheckpointInfo) -> tuple[bool, bool, bool, float]:
        embedded = info.source == RESFIT
        return (embedded or info.loadable, bool(info.licence), "-nc" not in info.licence, info.top1 or 0.0)

    return max(of_architecture(architecture), key=rank, default=None)


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
}
