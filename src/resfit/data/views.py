"""Augmented views of an image: other crops, mirrored, in other colours; the same ones whenever they are made."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.decode import Rendering, resize
from resfit.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.preprocessing import InputSpec

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Views:
    """Which augmented views there are.

    View ``k`` of an image follows from the seed, ``k`` and the bytes of the image alone, so that it is the same in
    every run, whatever the other images are, and more views can be added to those that are there.

    Attributes:
        count: Number of views of each image, beside the image as it is; at least 1.
        seed: Seed of all random choices.
        flip: Whether half of the views are mirrored left to right.
        area: Smallest and largest share of the image's area that a crop keeps, in (0, 1].
        aspect: Smallest and largest ratio of width to height of a crop, against that of the network's input.
        colour: How far brightness, contrast and saturation are changed: factors in ``[1 - colour, 1 + colour]``; in
            [0, 1), 0 for not at all. The saturation of images of more than eight bits stays.

    Source:
        The random crop is Szegedy et al. 2014, arXiv:1409.4842, section 6.
    """

    count: int = 4
    seed: int = 0
    flip: bool = True
    area: tuple[float, float] = (0.35, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    colour: float = 0.2

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ArgumentError: A field is outside its range.
        """
        if self.count < 1:
            raise ArgumentError(f"count must be at least 1. Received: {self.count!r}.")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ArgumentError(f"area must be two ascending shares in (0, 1]. Received: {self.area!r}.")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ArgumentError(f"aspect must be two ascending positive ratios. Received: {self.aspect!r}.")
        if not 0 <= self.colour < 1:
            raise ArgumentError(f"colour must lie in [0, 1). Received: {self.colour!r}.")

    def describe(self, number: int) -> dict[str, Any]:
        """Returns what decides view ``number`` (from 0) of an image, JSON-ready."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key != "count"}
        return {**fields, "area": list(self.area), "aspect": list(self.aspect), "number": number}

    def rendering(self, number: int, digest: bytes, spec: InputSpec) -> Rendering:
        """Returns what makes view ``number`` (from 0) of the image with this digest, at the size of a contract.

        Args:
            number: Which view.
            digest: SHA-256 of the image's bytes.
            spec: The contract.
        """
        seed = [self.seed, number, *np.frombuffer(digest, "<u4").tolist()]
        return lambda image: self._render(image, np.random.default_rng(seed), spec)

    def _render(self, image: Image, random: np.random.Generator, spec: InputSpec) -> Image:
        from PIL import Image as Images

        target = image.size if spec.resize_mode == "none" else (spec.size[1], spec.size[0])
        box = self._box(image.size, target, random)
        method: Any = getattr(Images.Resampling, spec.interpolation.upper())
        result = image.resize(target, method, box=box)
        mirrored = random.random() < 0.5
        if self.flip and mirrored:
            result = result.transpose(Images.Transpose.FLIP_LEFT_RIGHT)
        return changed_colours(result, random, self.colour)

    def _box(
        self, size: tuple[int, int], target: tuple[int, int], random: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Draws a crop, in pixels of the image: left, top, right, bottom."""
        width, height = size
        low, high = (math.log(ratio * target[0] / target[1]) for ratio in self.aspect)
        for _ in range(_TRIES):
            area = random.uniform(*self.area) * width * height
            ratio = math.exp(random.uniform(low, high))
            crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if crop_width <= width and crop_height <= height:
                left = random.uniform(0, width - crop_width)
                top = random.uniform(0, height - crop_height)
                return left, top, left + crop_width, top + crop_height
        # an image so long that no such crop fits: the largest one of the right shape in its middle
        scale = min(width / target[0], height / target[1])
        crop_width, crop_height = target[0] * scale, target[1] * scale
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return left, top, left + crop_width, top + crop_height


def changed_colours(image: Image, random: np.random.Generator, colour: float) -> Image:
    """Changes brightness, contrast and saturation at random.

    Args:
        image: Of mode RGB, L or F; the saturation of the latter two stays.
        random: What draws; three numbers are drawn in any case.
        colour: Factors lie in ``[1 - colour, 1 + colour]``; 0 changes nothing.
    """
    from PIL import ImageEnhance

    factors = random.uniform(1 - colour, 1 + colour, 3)
    if colour and image.mode == "F":
        return _toned(image, float(factors[0]), float(factors[1]))
    if colour:
        for kind, factor in zip(("Brightness", "Contrast", "Color"), factors, strict=True):
            image = getattr(ImageEnhance, kind)(image).enhance(float(factor))
    return image


def _toned(plane: Image, brightness: float, contrast: float) -> Image:
    """Changes brightness and contrast of a plane of more than eight bits, as Pillow does of eight."""
    from PIL import Image as Images

    values = np.clip(np.asarray(plane) * np.float32(brightness), 0, 255)
    middle = values.mean(dtype=np.float64)
    return Images.fromarray(np.clip(middle + (values - middle) * contrast, 0, 255).astype(np.float32))


def plain(spec: InputSpec) -> Rendering:
    """Returns what makes an image as it is evaluated: resized and cut as the contract says."""
    return lambda image: resize(image, spec)
