"""Code of a card that decodes a photo and detects, with Pillow and numpy."""

from __future__ import annotations

import json

from resfit.export.base import ExportJob
from resfit.export.detection.export_detector import ExportDetector


def usage(job: ExportJob, *, head: str, load: str, run: str) -> str:
    """Returns code that detects objects in a photo.

    Args:
        job: The export.
        head: Further imports.
        load: A statement that loads the network.
        run: An expression that gives the outputs of ``images`` by name.
    """
    subject = job.subject
    assert isinstance(subject, ExportDetector)
    spec = subject.input_spec
    height, width = spec.size
    mode = "L" if spec.channels == 1 else "RGB"
    fill = spec.fill[0] if spec.channels == 1 else tuple(spec.fill)
    grey = "[..., None]" if spec.channels == 1 else ""
    outputs = " and ".join((", ".join(subject.outputs[:-1]), subject.outputs[-1]))
    if subject.raw:
        shown = """\
best = found["scores"].max(axis=1).argsort()[::-1][:10]  # before suppression: neighbours show the same object
rows = [(found["boxes"][row], found["scores"][row].max(), found["scores"][row].argmax()) for row in best]
"""
    else:
        shown = """\
count = int(found["count"])
rows = list(zip(found["boxes"][:count], found["scores"][:count], found["classes"][:count]))
"""
    if spec.resize_mode == "squash":
        placed = f"size, left, top = ({width}, {height}), 0, 0\n"
    else:
        placed = f"""\
scale = min({height} / photo.height, {width} / photo.width)
size = max(1, int(photo.width * scale + 0.5)), max(1, int(photo.height * scale + 0.5))
left, top = ({width} - size[0]) // 2, ({height} - size[1]) // 2
"""
    return f"""\
import json
import numpy as np
{head}from PIL import Image, ImageOps

{load}

def detect(images):  # float32 (batch, {height}, {width}, {spec.channels}), values 0..255, to {outputs}
    return {run}


contract = json.load(open("contract.json", encoding="utf-8"))
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
{placed}canvas = Image.new("{mode}", ({width}, {height}), {json.dumps(fill) if isinstance(fill, int) else fill})
canvas.paste(photo.resize(size, Image.Resampling.{spec.interpolation.upper()}), (left, top))
images = np.asarray(canvas, np.float32){grey}[None]
found = {{name: value[0] for name, value in detect(images).items()}}
{shown}across, down = photo.width / size[0], photo.height / size[1]
for (x1, y1, x2, y2), score, label in rows:
    name = contract["labels"][label]
    if score >= contract["thresholds"][name]:
        box = ((x1 - left) * across, (y1 - top) * down, (x2 - left) * across, (y2 - top) * down)
        print(name, round(float(score), 3), [round(float(edge), 1) for edge in box])
print(len(rows), "boxes before the threshold")
"""
