"""Pictures of discs and squares whose boxes are known to the pixel."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"disc": (220, 40, 40), "square": (40, 60, 220)}


def scene(random, size=(96, 128), most=3, shapes=("disc", "square")):
    """Returns a picture and its boxes ``[(label, x1, y1, x2, y2)]``, none of which overlap."""
    height, width = size
    image = Image.fromarray(random.integers(90, 130, (height, width, 3), dtype=np.uint8))
    canvas = ImageDraw.Draw(image)
    found = []
    for _ in range(int(random.integers(1, most + 1))):
        side = int(random.integers(20, 40))
        x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
        if any(x < b[3] and b[1] < x + side and y < b[4] and b[2] < y + side for b in found):
            continue
        label = shapes[int(random.integers(len(shapes)))]
        draw = canvas.ellipse if label == "disc" else canvas.rectangle
        draw((x, y, x + side - 1, y + side - 1), fill=COLOURS[label])
        found.append((label, x, y, x + side, y + side))
    return image, found


def write_set(folder, counts, seed=0, **options):
    """Writes pictures and ``labels.csv``; ``counts`` is how many of each split."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "xmin", "ymin", "xmax", "ymax", "split"])
        for split, count in counts.items():
            for number in range(count):
                image, boxes = scene(random, **options)
                name = f"{split}-{number}.png"
                image.save(folder / name)
                for label, *box in boxes:
                    rows.writerow([name, label, *box, split])
                if not boxes:
                    rows.writerow([name, "", "", "", "", "", split])
    return folder
