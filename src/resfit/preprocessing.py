"""What a network expects as its input, as data that travels with the weights.

An :class:`InputSpec` says how an image becomes the array that the network was trained on: how it is resized and
cropped, the order of its channels, and how its values are scaled. The same spec is applied as numpy
(:meth:`InputSpec.normalize`) and inside a Keras model (:mod:`resfit.networks.build`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from resfit.errors import ArgumentError

ChannelOrder = Literal["rgb", "bgr"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
ResizeMode = Literal["shorter", "squash", "fit", "letterbox", "none"]
Plane = Literal["axial", "coronal", "sagittal"]

_CHOICES = {
    "channel_order": ("rgb", "bgr"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box"),
    "resize_mode": ("shorter", "squash", "fit", "letterbox", "none"),
}
_PLANES = ("axial", "coronal", "sagittal")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a scan (DICOM, NIfTI) becomes a picture. Other images have no use for it.

    Attributes:
        frame: Which frame or slice of several: ``"middle"``, its number, from 0, or ``"each"``, which makes an image
            of each where files are looked for. An address such as ``scan.dcm#frame=3`` comes before it.
        series: Which files of a DICOM series are images: ``"each"``, or ``"middle"`` for the one in the middle.
        window: Which of the file's own windows (or VOI tables) is applied, from 0; or centre and width in the unit of
            the values, such as ``(40.0, 400.0)`` in Hounsfield units. A file without any is shown from its lowest to
            its highest value.
        plane: How a NIfTI volume is cut.
        spacing: Millimetres that a pixel of the network's input is to stand for: the image is scaled by its pixel
            spacing, and cut or padded with black around its centre. ``None`` scales by pixels, as with any image.
    """

    frame: int | Literal["middle", "each"] = "middle"
    series: Literal["each", "middle"] = "each"
    window: int | tuple[float, float] = 0
    plane: Plane = "axial"
    spacing: float | None = None

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ArgumentError: A field is outside its range.
        """
        if self.frame not in ("middle", "each") and not _is_place(self.frame):
            raise ArgumentError(f"frame must be 'middle', 'each' or a number from 0 on. Received: {self.frame!r}.")
        if self.series not in ("each", "middle"):
            raise ArgumentError(f"series must be 'each' or 'middle'. Received: {self.series!r}.")
        pair = isinstance(self.window, tuple) and len(self.window) == 2 and self.window[1] > 0
        if not pair and not _is_place(self.window):
            raise ArgumentError(
                "window must be the number of one of the file's windows, from 0 on, or (centre, width) with a width "
                f"above 0. Received: {self.window!r}."
            )
        if self.plane not in _PLANES:
            raise ArgumentError(f"plane must be one of {_PLANES}. Received: {self.plane!r}.")
        if self.spacing is not None and not 0 < self.spacing < math.inf:
            raise ArgumentError(f"spacing must be a number of millimetres above 0. Received: {self.spacing!r}.")


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The input contract of a network.

    The network sees ``(x * scale - mean) / std``, channel by channel, of an image ``x`` with values 0..255 whose
    channels stand in ``channel_order``.

    Attributes:
        size: Height and width in pixels of the image that the published accuracy was measured on.
        channels: Number of input channels.
        channel_order: Order in which the network takes the colours; images are always handed over as RGB.
        scale: Factor on the raw values 0..255.
        mean: Subtracted after scaling, one value a channel, in the network's channel order. Three values for one
            channel mean that a grey image is repeated, since the network takes colours.
        std: Divided by after that, one value a channel, in the network's channel order.
        interpolation: How an image is resized.
        resize_mode: ``"shorter"`` scales the shorter side to ``size / crop_fraction`` and cuts the centre out;
            ``"squash"`` resizes to ``size`` whatever the aspect ratio; ``"letterbox"`` scales the image as a whole to
            ``size``, with its own proportions, and pads both sides with ``fill``; ``"fit"`` makes it as large as fits
            into ``size``, which is turned where that lets it be larger, and pads nothing, so that images have sizes of
            their own (torchvision's detectors: a shorter side of 800, a longer one of 1333 at most); ``"none"`` leaves
            it as it is.
        crop_fraction: Share of the resized image that the centre crop keeps, in (0, 1].
        reading: How scans become pictures.
    """

    size: tuple[int, int] = (224, 224)
    channels: int = 3
    channel_order: ChannelOrder = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "bilinear"
    resize_mode: ResizeMode = "shorter"
    crop_fraction: float = 0.875
    reading: Reading = Reading()

    # What Keras asks of an `input_spec` on a model, so that this contract can stand there: images of any size.
    dtype: ClassVar[None] = None
    shape: ClassVar[None] = None
    ndim: ClassVar[int] = 4
    max_ndim: ClassVar[None] = None
    min_ndim: ClassVar[None] = None
    allow_last_axis_squeeze: ClassVar[bool] = False
    name: ClassVar[None] = None
    optional: ClassVar[bool] = False

    @property
    def axes(self) -> dict[int, int]:
        """The length of the channel axis, as Keras' own InputSpec states it."""
        return {-1: self.channels}

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ArgumentError: A field is outside its range.
        """
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ArgumentError(f"{field} must be one of {choices}. Received: {getattr(self, field)!r}.")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) != self.channels and not (self.channels == 1 and len(values) == 3):
                raise ArgumentError(
                    f"{field} must have one value for each of the {self.channels} channels. Received: {values!r}."
                )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ArgumentError(f"size must be (height, width), both at least 1. Received: {self.size!r}.")
        if not 0 < self.crop_fraction <= 1:
            raise ArgumentError(f"crop_fraction must lie in (0, 1]. Received: {self.crop_fraction!r}.")
        if min(self.std) <= 0 or self.scale <= 0:
            raise ArgumentError(f"scale and std must be positive. Received: {self.scale!r}, {self.std!r}.")
        if self.channel_order == "bgr" and self.channels != 3:
            raise ArgumentError(f"channel_order 'bgr' needs 3 channels. Received: channels={self.channels}.")

    @property
    def multiplier(self) -> tuple[float, ...]:
        """Per channel, what a raw value is multiplied by, in the network's channel order."""
        return tuple(float(np.float32(self.scale / std)) for std in self.std)

    @property
    def offset(self) -> tuple[float, ...]:
        """Per channel, what is added after the multiplication, in the network's channel order."""
        return tuple(float(np.float32(-mean / std)) for mean, std in zip(self.mean, self.std, strict=True))

    @property
    def scales_nothing(self) -> bool:
        """Whether values pass as they are; the channel order may differ."""
        return all(m == 1.0 for m in self.multiplier) and not any(self.offset)

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour of the padding, 0..255 a channel, RGB or grey: the nearest to what the network sees as 0."""
        if self.channels == 1:
            return (round(float(np.clip(np.mean(self.mean) / self.scale, 0, 255))),)
        colours = self.mean[::-1] if self.channel_order == "bgr" else self.mean
        return tuple(round(float(np.clip(mean / self.scale, 0, 255))) for mean in colours)

    @property
    def resize_size(self) -> tuple[int, int]:
        """Height and width of the box that the image is resized to before the centre crop, in pixels."""
        if self.resize_mode != "shorter":
            return self.size
        return (
            int(np.floor(self.size[0] / self.crop_fraction)),
            int(np.floor(self.size[1] / self.crop_fraction)),
        )

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width in pixels that ``"fit"`` gives an image.

        Args:
            height: Of the image, at least 1.
            width: Likewise.
        """
        scale = min(min(self.size) / min(height, width), max(self.size) / max(height, width))
        return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))

    def normalize(self, images: Any) -> np.ndarray:
        """Brings images to the values that the network was trained on.

        Args:
            images: Array of shape ``(..., height, width, channels)``, RGB, values 0..255, any dtype. Not changed.

        Returns:
            A new float32 array of the same shape; with three channels where grey images are repeated.

        Raises:
            ArgumentError: The last axis is not the number of channels.
        """
        source = np.asarray(images)
        if source.ndim < 3 or source.shape[-1] != self.channels:
            raise ArgumentError(
                f"images must have shape (..., height, width, {self.channels}). Received: shape={source.shape}."
            )
        values = source.astype(np.float32, copy=True)
        if self.channel_order == "bgr":
            values = values[..., ::-1].copy()
        if self.repeats_grey:
            values = np.repeat(values, len(self.mean), axis=-1)
        values *= np.asarray(self.multiplier, np.float32)
        values += np.asarray(self.offset, np.float32)
        return values

    @property
    def repeats_grey(self) -> bool:
        """Whether the one channel of an image is repeated, since the network takes colours."""
        return self.channels == 1 and len(self.mean) > 1

    def with_channels(self, channels: int) -> InputSpec:
        """Returns the contract for another number of input channels.

        More channels get the statistics of red, green, blue in turn, as the first kernel gets their filters
        (:func:`resfit.weights.canonical.adapt_input`); one channel gets their mean.

        Args:
            channels: Number of input channels, at least 1.
        """
        if channels == self.channels:
            return self
        colours = dataclasses.replace(self, channels=len(self.mean)) if self.repeats_grey else self._as_rgb()
        mean, std = (
            (float(np.mean(values)),) if channels == 1 else tuple(values[n % len(values)] for n in range(channels))
            for values in (colours.mean, colours.std)
        )
        return dataclasses.replace(colours, channels=channels, mean=mean, std=std)

    def for_grey(self) -> InputSpec:
        """Returns the contract for grey images in front of a network of colours, which sees them three times.

        So a grey image and the same picture in three channels are one and the same to the network, whatever the
        statistics of its colours, and at the border too.
        """
        return self if self.channels == 1 else dataclasses.replace(self._as_rgb(), channels=1)

    def _as_rgb(self) -> InputSpec:
        """Names the channels red, green, blue, where they are the other way round."""
        if self.channel_order == "rgb":
            return self
        return dataclasses.replace(self, channel_order="rgb", mean=self.mean[::-1], std=self.std[::-1])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values; those of ``reading`` where they are not the usual ones."""
        fields = _json_ready(self)
        reading = {name: value for name, value in _json_ready(self.reading).items() if value != getattr(Reading, name)}
        return {**fields, "reading": reading} if reading else {k: v for k, v in fields.items() if k != "reading"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> InputSpec:
        """Restores what :meth:`to_dict` returned.

        Raises:
            ArgumentError: A field is unknown or out of range.
        """
        values = _known_fields(cls, fields)
        if "reading" in values:
            values["reading"] = Reading(**_known_fields(Reading, values["reading"]))
        return cls(**values)


def _json_ready(value: Any) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {key: list(item) if isinstance(item, tuple) else item for key, item in fields.items()}


def _known_fields(cls: type[Any], fields: Any) -> dict[str, Any]:
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise ArgumentError(f"input contract has unknown fields: {', '.join(unknown)}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

#: keras.applications' "caffe" mode: BGR, ImageNet means subtracted, not scaled (its ResNet v1).
CAFFE = InputSpec(channel_order="bgr", mean=(103.939, 116.779, 123.68), interpolation="bilinear")
#: keras.applications' "tf" mode: values -1..1 (its ResNet v2).
TF = InputSpec(scale=1 / 127.5, mean=(1.0, 1.0, 1.0))
#: keras.applications' "torch" mode, and torchvision's and timm's usual one: ImageNet mean and deviation.
TORCH = InputSpec(scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
#: Values 0..1, as TensorFlow Hub's image modules take them.
UNIT = InputSpec(scale=1 / 255)
_NAMED = {"caffe": CAFFE, "tf": TF, "torch": TORCH, "unit": UNIT}


def changed(contract: InputSpec, by: InputSpec | Mapping[str, Any] | str) -> InputSpec:
    """Returns another input contract, or the same with other fields.

    Args:
        contract: The contract.
        by: The other one; or fields of it that are to be changed; or how values are scaled, by name: ``"torch"``,
            ``"tf"``, ``"caffe"``, or ``"unit"`` for 0..1.

    Raises:
        ArgumentError: There is no such name or field, or a field is out of range.
    """
    if isinstance(by, InputSpec):
        return by
    if isinstance(by, Mapping):
        return InputSpec.from_dict({**contract.to_dict(), **by})
    if by not in _NAMED:
        raise ArgumentError(
            f"input_spec must be an InputSpec, fields of one, or one of {tuple(_NAMED)}. Received: {by!r}."
        )
    return dataclasses.replace(_NAMED[by], size=contract.size)
