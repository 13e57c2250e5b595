"""The residual networks of TensorFlow Hub: which there are, what they take and give, and how to have one natively."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from typing import TYPE_CHECKING, Any

from resfit.errors import UnknownNameError, closest
from resfit.hub import handles
from resfit.networks import arithmetic, catalog
from resfit.preprocessing import InputSpec
from resfit.weights import registry, tfhub
from resfit.weights.registry import CheckpointInfo

if TYPE_CHECKING:
    pass

#: Publishers whose modules take values -1..1: BiT networks that were ported to Keras and distilled
#: (https://www.kaggle.com/models/spsayakpaul/distill-bit). All others follow the image input contract of TensorFlow
#: Hub, values 0..1 (https://www.tensorflow.org/hub/common_signatures/images).
SIGNED = ("sayakpaul", "spsayakpaul")

#: What the registry does not say, from the pages of the modules (https://github.com/tensorflow/tfhub.dev, assets/docs):
#: which are in the TF1 Hub format, by their path at tfhub.dev; and that the ImageNet modules have earlier versions.
_TF1_FORMAT = re.compile(r"google/(remote_sensing|supcon)/.*|google/imagenet/resnet_.*/[13]")
_EARLIER, _EARLIER_VERSIONS = re.compile(r"(google/imagenet/resnet_.*/)5"), ("1", "3", "4")
#: Features of a ResNet-50 where the registry knows no more of the network.
_RESNET_50_FEATURES = 2048
#: What the network of a module is called in patterns where the catalog lacks it.
_UNNAMED = "resnet"


@dataclasses.dataclass(frozen=True)
class HubModel:
    """One handle of TensorFlow Hub.

    Attributes:
        name: Its name in the registry of checkpoints; with ``@`` and the version for an earlier one.
        handle: What :class:`resfit.hub.KerasLayer` takes.
        mirror: Its place at Kaggle, or ``""`` where that is not confirmed: the handle's redirect is followed then.
        format: ``"TF2 SavedModel"`` or ``"TF1 Hub format"``, which cannot be trained.
        task: ``"classification"`` or ``"feature vector"``.
        value_range: Of the images that the module takes.
        input_size: Height and width in pixels that it is meant for.
        channels: Of the images.
        outputs: How many numbers it gives an image.
        background: Whether the first of its classes is one for the background.
        parameters: Moving statistics included; None where they are not known.
        architecture: The catalog's name of its network, or ``""`` where the catalog lacks it.
        native: Whether :func:`to_keras` can make a Keras network of it that equals the module.
        reason: Why it cannot, or ``""``.
        training_data: What it was trained on.
        licence: Of the weights.
    """

    name: str
    handle: str
    mirror: str
    format: str
    task: str
    value_range: tuple[float, float]
    input_size: tuple[int, int]
    channels: int
    outputs: int
    background: bool
    parameters: int | None
    architecture: str
    native: bool
    reason: str
    training_data: str
    licence: str

    @property
    def input_spec(self) -> InputSpec:
        """The input contract of the module, which is not that of the bare network inside it."""
        low, high = self.value_range
        return InputSpec(
            size=self.input_size,
            channels=self.channels,
            scale=(high - low) / 255,
            mean=(-low,) * self.channels,
            std=(1.0,) * self.channels,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def list_models(pattern: str = "*") -> list[HubModel]:
    """Lists the residual networks of TensorFlow Hub, from tables alone.

    Args:
        pattern: Shell pattern for the name, the network or the handle: ``"resnet*"``, ``"bit_m*"``.

    Returns:
        One row a handle, in the order of the registry.

    Example:
        >>> [model.outputs for model in list_models("*/resnet_v2_50/*/5")]
        [1001, 2048]
    """
    return [
        model
        for model in _rows().values()
        if any(
            fnmatch.fnmatchcase(name, pattern) for name in (model.name, model.architecture or _UNNAMED, model.handle)
        )
    ]


def describe(handle: str) -> HubModel:
    """Describes a residual network of TensorFlow Hub.

    Args:
        handle: A handle in any of its forms, or a name of :func:`list_models`.

    Raises:
        UnknownNameError: The registry does not have it.
    """
    table = _rows()
    found = table.get(handle) or _by_place().get(handles.canonical(handle))
    if found is None:
        known = [*table, *(model.handle for model in table.values())]
        raise UnknownNameError(
            f"handle must be one of resfit.hub.list_models(). Received: {handle!r}.{closest(handle, known)}"
        )
    return found


def contract(handle: Any) -> InputSpec | None:
    """Returns the input contract of a handle, or None where it is not known.

    Args:
        handle: Whatever a layer was made from.
    """
    found = _by_place().get(handles.canonical(handle)) if isinstance(handle, str) else None
    return found.input_spec if found else None


def value_range(spec: InputSpec) -> tuple[float, float]:
    """Returns the least and the greatest value that images have under a contract."""
    low = min(spec.offset)
    return low, low + 255 * max(spec.multiplier)


@functools.cache
def _rows() -> dict[str, HubModel]:
    found: dict[str, HubModel] = {}
    alone = {info.url: info for info in registry.modules().values()}
    here = [info for info in registry.find(source=registry.TENSORFLOW_HUB) if info.url not in alone]
    for info in (*here, *alone.values()):
        found[info.name] = _row(info, info.name, info.url)
        if latest := _EARLIER.fullmatch(tfhub.tfhub_path(info.url)):
            for version in _EARLIER_VERSIONS:
                name = f"{info.name}@{version}"
                found[name] = _row(info, name, f"https://tfhub.dev/{latest[1]}{version}")
    return found


@functools.cache
def _by_place() -> dict[str, HubModel]:
    places = {handles.canonical(place): model for model in _rows().values() for place in (model.mirror,) if place}
    return {**places, **{handles.canonical(model.handle): model for model in _rows().values()}}


def _row(info: CheckpointInfo, name: str, handle: str) -> HubModel:
    spec = catalog.rows()[info.architecture].spec if info.architecture in catalog.rows() else None
    outputs, parameters = info.classes or _RESNET_50_FEATURES, None
    if spec is not None:
        counted = arithmetic.count(spec.replace(classes=info.classes or spec.classes), include_top=bool(info.classes))
        parameters, outputs = counted.parameters, counted.stages[-1].shape[-1]
    signed, place = handles.publisher(handle) in SIGNED, tfhub.moved_to(handle)
    return HubModel(
        name=name,
        handle=handle,
        mirror=f"kaggle://{place}" if place else "",
        format="TF1 Hub format" if _TF1_FORMAT.fullmatch(tfhub.tfhub_path(handle)) else "TF2 SavedModel",
        task="classification" if info.classes else "feature vector",
        value_range=(-1.0, 1.0) if signed else (0.0, 1.0),
        input_size=(info.input_size, info.input_size),
        channels=info.input_spec.channels,
        outputs=outputs,
        background=info.labels.endswith("-background"),
        parameters=parameters,
        architecture=info.architecture,
        native=info.loadable,
        reason=info.obstacle,
        training_data=info.training_data,
        licence=info.licence,
    )
