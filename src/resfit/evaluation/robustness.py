"""Common corruptions of images, in five strengths, and what they cost.

The kinds are those of Hendrycks and Dietterich 2019 (arXiv:1903.12261) that need no pictures of weather. Lengths scale
with the image, so that a strength does about the same at 32 and at 224 pixels.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resfit.data import decode
from resfit.data.arrays import NetworkInput
from resfit.errors import ArgumentError, closest
from resfit.evaluation.inference import LabelledPredictions
from resfit.evaluation.intervals import wilson_interval
from resfit.features.progress import Progress

#: Five strengths, the weakest first.
STRENGTHS = (1, 2, 3, 4, 5)
_REFERENCE = 224  # pixels that lengths are given for

_Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RobustnessRow:
    """How a classifier does on corrupted images.

    Attributes:
        corruption: Which; ``"none"`` for the images as they are.
        strength: 1 to 5; 0 for none.
        accuracy: Share of images whose label, or all of whose labels, are right.
        low: 95 % interval after Wilson, lower end.
        high: Upper end.
    """

    corruption: str
    strength: int
    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Robustness:
    """How a classifier does on corrupted images.

    Attributes:
        rows: One for the images as they are, then one a corruption and strength.
        images: How many images each figure is of.
        seed: Of the choice of images and of the corruptions.
    """

    rows: tuple[RobustnessRow, ...]
    images: int
    seed: int

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over corruptions and strengths."""
        return float(np.mean([row.accuracy for row in self.rows if row.strength]))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {**dataclasses.asdict(self), "mean_accuracy": self.mean_accuracy}


def corrupt(images: np.ndarray, name: str, strength: int, *, seed: int = 0) -> np.ndarray:
    """Corrupts images.

    Args:
        images: uint8 array ``(n, height, width, channels)``. Not changed.
        name: One of :data:`CORRUPTIONS`.
        strength: 1 to 5.
        seed: Of what is random; each image of a batch gets its own.

    Returns:
        A new uint8 array of the same shape.

    Raises:
        ArgumentError: The name or the strength is unknown, or the images are no such array.

    Example:
        >>> corrupt(np.zeros((1, 8, 8, 3), np.uint8), "brightness", 5).mean() > 100
        True
    """
    if name not in CORRUPTIONS:
        raise ArgumentError(
            f"corruptions are {', '.join(CORRUPTIONS)}. Received: {name!r}.{closest(name, CORRUPTIONS)}"
        )
    if strength not in STRENGTHS:
        raise ArgumentError(f"strength must be one of {STRENGTHS}. Received: {strength!r}.")
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ArgumentError(
            f"images must be uint8 of shape (n, height, width, channels). Received: {images.dtype}, {images.shape}."
        )
    function, amounts = CORRUPTIONS[name]
    results = np.empty_like(images)
    for row, image in enumerate(images):
        random = np.random.default_rng([seed, row, zlib.crc32(name.encode()), strength])
        changed = function(image.astype(np.float32), amounts[strength - 1], random)
        results[row] = np.rint(np.clip(changed, 0, 255)).astype(np.uint8)
    return results


def robustness(
    classifier: Any,
    judged: LabelledPredictions,
    *,
    names: Sequence[str] | None = None,
    strengths: Sequence[int] = STRENGTHS,
    most: int = 500,
    engine: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Measures a classifier on corrupted images.

    The images are corrupted at the size that the network gets, and with eight bits.

    Args:
        classifier: A :class:`resfit.Classifier`.
        judged: The images.
        names: Some of :data:`CORRUPTIONS`; ``None`` is all.
        strengths: Some of 1 to 5.
        most: Images that are used; of more, some at random.
        engine: As :func:`resfit.engines.create` takes it.
        seed: Of the choice and of the corruptions.
        progress: Called as images get done.
    """
    chosen = list(CORRUPTIONS if names is None else names)
    count = len(judged.images)
    positions = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    some = judged.subset(positions)
    batches = list(decode.decode_many(some.images.paths, classifier.input_spec))
    deep = np.concatenate([batch.images for batch in batches])
    images = deep if deep.dtype == np.uint8 else np.rint(np.clip(deep, 0, 255)).astype(np.uint8)
    known = some.targets[np.concatenate([batch.indices for batch in batches])].astype(bool)
    cases = [(name, strength) for name in chosen for strength in strengths]
    rows = []
    for number, (name, strength) in enumerate([("none", 0), *cases]):
        changed = corrupt(images, name, strength, seed=seed) if strength else deep
        shares = classifier.predict_proba(NetworkInput(changed), engine=engine)
        if judged.multilabel:
            right = ((shares > 0.5) == known).all(axis=1)
        else:
            right = known[np.arange(len(known)), shares.argmax(axis=1)]
        good = int(right.sum())
        rows.append(RobustnessRow(name, strength, good / len(known), *wilson_interval(good, len(known))))
        if progress is not None:
            progress("corrupted images", number + 1, 1 + len(cases))
    return Robustness(tuple(rows), len(known), seed)


def _scaled(image: np.ndarray, length: float) -> float:
    """Returns a length that is given for 224 pixels, for an image of another size.

    What is in small images is larger in them: lengths shrink less than the sides.
    """
    return float(length * (min(image.shape[:2]) / _REFERENCE) ** 0.7)


def _gaussian_noise(image: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    return image + random.normal(0, 255 * amount, image.shape)


def _shot_noise(image: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    return random.poisson(image / 255 * photons) / photons * 255


def _impulse_noise(image: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    drawn = random.random(image.shape)
    return np.where(drawn < share / 2, 0, np.where(drawn > 1 - share / 2, 255, image))


def _speckle_noise(image: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    return image * (1 + random.normal(0, amount, image.shape))


def _gaussian_blur(image: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    width = _scaled(image, sigma)
    return gaussian_filter(image, (width, width, 0), mode="nearest")


def _defocus_blur(image: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """Averages over a disc, whose edge is weighted by how much of a pixel it covers."""
    from scipy.ndimage import convolve

    reach = _scaled(image, radius)
    half = int(np.ceil(reach + 0.5))
    fine = (np.arange((2 * half + 1) * 5) + 0.5) / 5 - half - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= max(reach, 0.5) ** 2).astype(np.float32)
    disc = inside.reshape(2 * half + 1, 5, 2 * half + 1, 5).mean(axis=(1, 3))
    return convolve(image, (disc / disc.sum())[:, :, None], mode="nearest")


def _motion_blur(image: np.ndarray, length: float, random: np.random.Generator) -> np.ndarray:
    """Averages along a line of random direction."""
    from scipy.ndimage import convolve

    reach = max(_scaled(image, length), 1.0)
    angle = random.uniform(0, np.pi)
    half = int(np.ceil(reach / 2)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    steps = np.linspace(-reach / 2, reach / 2, 8 * half + 1)
    for y, x in zip(half + steps * np.sin(angle), half + steps * np.cos(angle), strict=True):
        top, left = int(y), int(x)
        for row, column, weight in (
            (top, left, (top + 1 - y) * (left + 1 - x)),
            (top, left + 1, (top + 1 - y) * (x - left)),
            (top + 1, left, (y - top) * (left + 1 - x)),
            (top + 1, left + 1, (y - top) * (x - left)),
        ):
            kernel[row, column] += weight
    return convolve(image, (kernel / kernel.sum())[:, :, None], mode="nearest")


def _zoom_blur(image: np.ndarray, most: float, random: np.random.Generator) -> np.ndarray:
    """Averages views that come nearer."""
    from scipy.ndimage import affine_transform

    centre = (np.array(image.shape[:2]) - 1) / 2
    views = [image]
    for zoom in np.linspace(1, most, 8)[1:]:
        offset = np.append(centre - centre / zoom, 0)
        views.append(affine_transform(image, [1 / zoom, 1 / zoom, 1], offset, order=1, mode="nearest"))
    return np.mean(views, axis=0)


def _brightness(image: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    return image + 255 * amount


def _contrast(image: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return (image - mean) * factor + mean


def _saturation(image: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    grey = image.mean(axis=2, keepdims=True)
    return grey + (image - grey) * factor


def _pixelate(image: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    return _by_pillow(image, lambda picture: picture.resize(small, 4).resize((width, height), 0))  # box, nearest


def _jpeg(image: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    from PIL import Image

    def coded(picture: Image.Image) -> Image.Image:
        target = io.BytesIO()
        picture.save(target, "JPEG", quality=int(quality))
        return Image.open(target)

    return _by_pillow(image, coded)


def _by_pillow(image: np.ndarray, change: Callable[[Any], Any]) -> np.ndarray:
    from PIL import Image

    pixels = image.astype(np.uint8)
    grey = pixels.shape[2] == 1
    changed = np.asarray(change(Image.fromarray(pixels[:, :, 0] if grey else pixels)))
    return changed.reshape(image.shape).astype(np.float32)


#: Corruptions by name: what is done, and how much of it in each of the five strengths.
CORRUPTIONS: dict[str, tuple[_Corruption, tuple[float, ...]]] = {
    "gaussian noise": (_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot noise": (_shot_noise, (60, 25, 12, 6, 3)),
    "impulse noise": (_impulse_noise, (0.01, 0.03, 0.06, 0.12, 0.22)),
    "speckle noise": (_speckle_noise, (0.10, 0.18, 0.28, 0.42, 0.60)),
    "gaussian blur": (_gaussian_blur, (1.5, 2.2, 3.0, 4.5, 6.5)),
    "defocus blur": (_defocus_blur, (3.0, 4.2, 6.0, 8.0, 11.0)),
    "motion blur": (_motion_blur, (8, 13, 19, 26, 36)),
    "zoom blur": (_zoom_blur, (1.08, 1.14, 1.20, 1.27, 1.36)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "darkness": (_brightness, (-0.1, -0.2, -0.3, -0.4, -0.5)),
    "contrast": (_contrast, (0.6, 0.45, 0.32, 0.2, 0.1)),
    "saturation": (_saturation, (0.5, 0.25, 0.0, 2.5, 5.0)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.22)),
    "jpeg": (_jpeg, (30, 20, 14, 9, 6)),
}
