"""Pictures whose class is told by a patch at a random place, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

CLASSES = ("checks", "columns", "rows")


def cue_picture(kind: int, random: np.random.Generator, size: int = 96, side: int = 32):
    """Returns a uint8 picture of coloured noise with a patch of stripes or checks, and where the patch is."""
    blocks = random.normal(128, 30, (size // 8, size // 8, 3))
    picture = np.kron(blocks, np.ones((8, 8, 1))) + random.normal(0, 12, (size, size, 3))
    top, left = random.integers(0, size - side + 1, 2)
    y, x = np.mgrid[:side, :side] // 4
    pattern = ((x + y) % 2, x % 2, y % 2)[kind]
    picture[top : top + side, left : left + side] = np.where(pattern, 245, 10)[..., None]
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def cue_pictures(count: int, seed: int = 0, size: int = 96, side: int = 32):
    """Returns pictures ``(count, size, size, 3)``, masks and classes in turn."""
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % len(CLASSES)
    pictures, masks = zip(*(cue_picture(int(kind), random, size, side) for kind in kinds), strict=True)
    return np.stack(pictures), np.stack(masks), kinds


def fit_cues(folder: Path, each: int = 40, size: int = 96, side: int = 32):
    """Returns a classifier of such pictures on the embedded network."""
    from PIL import Image

    import resfit

    pictures, _, kinds = cue_pictures(each * len(CLASSES), seed=1, size=size, side=side)
    for number, (picture, kind) in enumerate(zip(pictures, kinds, strict=True)):
        path = folder / CLASSES[kind] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
    body.input_spec = dataclasses.replace(body.input_spec, size=(size, size))
    return resfit.fit(folder, model=body)
