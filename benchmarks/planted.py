"""Defects that are put into a folder of images on purpose, and which they are: for the benchmark and the tests."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Planted:
    """What was planted.

    Attributes:
        flipped: Files that stand in the folder of a wrong class.
        copies: Near duplicates in test/, each with the training image that it was made of.
        exact: Exact copies in test/, each with the training image.
        blurred: Files that were blurred.
        marked: Files with a watermark.
        marked_class: The class that they are all of.
    """

    flipped: tuple[Path, ...]
    copies: tuple[tuple[Path, Path], ...]
    exact: tuple[tuple[Path, Path], ...]
    blurred: tuple[Path, ...]
    marked: tuple[Path, ...]
    marked_class: str


def plant(
    folder: Path,
    *,
    flips: float = 0.05,
    copies: int = 100,
    exact: int = 20,
    blurred: int = 20,
    mark: bool = True,
    seed: int = 0,
) -> Planted:
    """Spoils a folder of train/ and test/ with class folders in them.

    Args:
        folder: The folder; its files are changed.
        flips: Share of the training images that change their class.
        copies: Training images that come again in test/, changed a little: in size, brightness, crop, or compression.
        exact: Training images that come again in test/ as they are.
        blurred: Training images that are blurred.
        mark: Whether all images of one class get a watermark.
        seed: Of all choices.
    """
    from PIL import Image, ImageFilter

    random = np.random.default_rng(seed)
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    everything = [path for name in classes for path in sorted((folder / "train" / name).iterdir())]
    order = random.permutation(len(everything))
    count = round(flips * len(everything))
    cuts = np.cumsum([count, copies, exact, blurred])
    chosen = [[everything[place] for place in part] for part in np.split(order, cuts)[:4]]

    marked_class, marked = classes[len(classes) // 2], []
    if mark:
        for path in [path for part in ("train", "test") for path in sorted((folder / part / marked_class).iterdir())]:
            _save(watermarked(Image.open(path)), path)
            marked.append(path)
    for path in chosen[3]:
        image = Image.open(path).convert("RGB")
        _save(image.filter(ImageFilter.GaussianBlur(image.width / 12)), path)
    flipped = []
    for path in chosen[0]:
        other = classes[(classes.index(path.parent.name) + int(random.integers(1, len(classes)))) % len(classes)]
        target = folder / "train" / other / f"moved-{path.parent.name}-{path.name}"
        path.rename(target)
        flipped.append(target)
        marked = [target if item == path else item for item in marked]
    pairs = []
    for number, path in enumerate(chosen[1]):
        target = folder / "test" / path.parent.name / f"near-{path.stem}.jpg"
        change = CHANGES[number % len(CHANGES)]
        change(Image.open(path).convert("RGB"), random).save(target, quality=75)
        pairs.append((target, path))
    same = []
    for path in chosen[2]:
        target = folder / "test" / path.parent.name / f"copy-{path.name}"
        shutil.copyfile(path, target)
        same.append((target, path))
    marked += [target for target, path in (*pairs, *same) if path in marked]
    return Planted(
        tuple(flipped), tuple(pairs), tuple(same), tuple(chosen[3]), tuple(marked), marked_class if mark else ""
    )


def watermarked(image):
    """Returns an image with a small light sign in its lower right corner."""
    from PIL import ImageDraw

    image = image.convert("RGB")
    side = max(7, image.width // 4)
    left, top = image.width - side - 1, image.height - side - 1
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=(20, 20, 20))
    draw.rectangle((left + side // 3, top, left + side // 3 + side // 4, top + side - 1), fill=(240, 240, 240))
    return image


def _scaled(image, random):
    size = round(image.width * random.uniform(0.7, 1.6)), round(image.height * random.uniform(0.9, 1.1))
    return image.resize((size[0], round(image.height * size[0] / image.width)))


def _lit(image, random):
    return image.point(lambda value: min(255, round(value * factor))) if (factor := random.uniform(0.8, 1.2)) else image


def _cropped(image, random):
    edge = max(1, round(image.width * 0.03))
    left, top = random.integers(0, edge + 1, 2)
    return image.crop((left, top, image.width - edge + left, image.height - edge + top)).resize(image.size)


def _noisy(image, random):
    from PIL import Image

    noise = random.normal(0, 4, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


CHANGES: tuple[Callable, ...] = (_scaled, _lit, _cropped, _noisy)


def _save(image, path: Path) -> None:
    image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))
