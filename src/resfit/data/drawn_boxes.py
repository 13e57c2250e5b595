"""Pictures with boxes that are drawn on the spot: discs, squares, triangles and rings on patterned ground."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.storage.atomic import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is drawn.
SHAPES = ("disc", "ring", "square", "triangle")
_COLOURS = ((214, 69, 65), (52, 120, 200), (60, 160, 90), (230, 170, 40), (150, 80, 180))
_TRIES = 20


def scene(random: np.random.Generator, size: tuple[int, int] = (240, 320), most: int = 5) -> tuple[Image, list[Any]]:
    """Draws a picture.

    Args:
        random: What draws.
        size: Height and width in pixels.
        most: Objects at most.

    Returns:
        The picture, and for each object its shape and its left, top, right and bottom edge in pixels. No two overlap.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    height, width = size
    ground = random.integers(60, 200, 3)
    waves = (
        np.sin(np.arange(width) / random.uniform(5, 40)) + np.cos(np.arange(height) / random.uniform(5, 40))[:, None]
    )
    pixels = ground + 15 * waves[..., None] + random.normal(0, 8, (height, width, 3))
    image = Images.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    found: list[Any] = []
    for _ in range(int(random.integers(0, most + 1))):
        for _ in range(_TRIES):
            side = int(random.integers(height // 8, height // 3))
            x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
            if all(x >= b[3] or b[1] >= x + side or y >= b[4] or b[2] >= y + side for b in found):
                shape = SHAPES[int(random.integers(len(SHAPES)))]
                _draw(canvas, shape, (x, y, x + side - 1, y + side - 1), _COLOURS[int(random.integers(len(_COLOURS)))])
                found.append((shape, x, y, x + side, y + side))
                break
    return image, found


def _draw(canvas: Any, shape: str, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    """Draws one object whose outermost pixels are those of its box."""
    x1, y1, x2, y2 = box
    if shape == "disc":
        canvas.ellipse(box, fill=colour)
    elif shape == "ring":
        canvas.ellipse(box, outline=colour, width=max(3, (x2 - x1) // 6))
    elif shape == "square":
        canvas.rectangle(box, fill=colour)
    else:
        canvas.polygon([((x1 + x2) // 2, y1), (x1, y2), (x2, y2)], fill=colour)


def write_set(folder: Path, counts: dict[str, int], *, seed: int = 0, size: tuple[int, int] = (240, 320)) -> None:
    """Writes pictures, a folder for each split, and ``labels.csv``.

    Args:
        folder: Made if it is missing.
        counts: Pictures of each split.
        seed: Of the drawing; equal seeds give equal pictures.
        size: Height and width of the pictures in pixels.
    """
    rows = []
    for number, (split, count) in enumerate(counts.items()):
        for place in range(count):
            image, boxes = scene(np.random.default_rng([seed, number, place]), size)
            name = f"{split}/{place:04}.jpg"
            (folder / split).mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / name) as temporary:
                image.save(temporary, "JPEG", quality=92)
            rows += [(name, *box, split) for box in boxes] or [(name, *[""] * 5, split)]
    with atomic_path(folder / "labels.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "xmin", "ymin", "xmax", "ymax", "split"))
        table.writerows(rows)
