"""Trains the pyramid and head that detectors on ``resnet10_tiny`` start from, on scenes that are drawn on the spot.

    python tools/pretrain_detector_head.py tiny-imagenet-val.tar.gz runs/head --images 60000

Shapes, blobs, cards and masked photos stand on patterned or photographic ground, cover each other and are blurred, lit
and noisy; the head learns their kinds and boxes from maps of the frozen network. A run that was killed goes on at its
last checkpoint. Afterwards ``runs/head/head.safetensors`` holds the averaged weights in float16:
``src/resfit/weights/resnet10_tiny_detector_head.safetensors``. Two idle cores take about an hour.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
import math
import multiprocessing
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 320
MOST = 24
KINDS = ("blob", "ellipse", "rectangle", "triangle", "polygon", "ring", "star", "photo blob", "photo ellipse", "photo")
_PHOTOS: np.ndarray | None = None


def outline(kind, random, side):
    """The corners of a shape around the origin, float ``(n, 2)``, about ``side`` pixels across."""
    half, stretch = side / 2, math.exp(random.normal(0, 0.25))
    turn = random.uniform(0, 2 * math.pi) if random.random() < 0.7 else 0.0
    if kind.endswith("blob"):
        angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        radius = np.ones(48)
        for wave in range(2, 7):
            radius += random.normal(0, 0.16 / wave) * np.cos(wave * angles + random.uniform(0, 2 * math.pi))
        corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    elif kind in ("ellipse", "ring", "photo ellipse"):
        angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind in ("rectangle", "photo"):
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    elif kind == "star":
        count = int(random.integers(4, 8))
        angles = np.arange(2 * count) * math.pi / count
        radius = np.where(np.arange(2 * count) % 2, random.uniform(0.35, 0.6), 1.0)
        corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    else:
        count = 3 if kind == "triangle" else int(random.integers(5, 9))
        angles = np.sort(random.uniform(0, 2 * math.pi, 1)) + np.arange(count) * 2 * math.pi / count
        angles = angles + random.normal(0, 0.15, count)
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = corners * half * np.array([stretch, 1 / stretch])
    c, s = math.cos(turn), math.sin(turn)
    return corners @ np.array([[c, s], [-s, c]])


def colour(random):
    """A colour, often a pale one, float ``(3,)``."""
    found = random.integers(0, 256, 3).astype(float)
    return found if random.random() < 0.5 else found.mean() + 0.3 * (found - found.mean())


def texture(random, height, width, base=None):
    """A patch of colours, uint8 ``(height, width, 3)``."""
    base = colour(random) if base is None else base
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = random.random()
    pattern = np.zeros((height, width), np.float32)
    if kind < 0.35:
        pattern = random.normal(0, 1) * (x / width - 0.5) + random.normal(0, 1) * (y / height - 0.5)
    elif kind < 0.55:
        angle, period = random.uniform(0, math.pi), random.uniform(4, 40)
        pattern = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    elif kind < 0.75:
        small = random.normal(0, 1, (max(2, height // int(random.integers(4, 24))), max(2, width // 12)))
        pattern = np.asarray(Image.fromarray(small.astype(np.float32)).resize((width, height), Image.BILINEAR))
    tint = random.normal(0, 30, 3)
    found = base + pattern[..., None] * tint
    if random.random() < 0.3:
        found = found + random.normal(0, random.uniform(2, 14), (height, width, 3))
    return np.clip(found, 0, 255).astype(np.uint8)


def photo(random, height, width):
    """A part of a photo at a size."""
    assert _PHOTOS is not None
    image = Image.fromarray(_PHOTOS[int(random.integers(len(_PHOTOS)))])
    if random.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(image.resize((width, height), Image.BILINEAR))


def ground(random):
    """What objects stand on."""
    if random.random() < 0.35:
        image = Image.fromarray(photo(random, SIZE, SIZE))
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(2, 12))))
    else:
        image = Image.fromarray(texture(random, SIZE, SIZE))
    canvas = ImageDraw.Draw(image)
    for _ in range(int(random.integers(0, 6)) if random.random() < 0.5 else 0):  # lines are no objects
        ends = [tuple(random.uniform(0, SIZE, 2)) for _ in range(2)]
        canvas.line(ends, fill=tuple(random.integers(0, 256, 3).tolist()), width=int(random.integers(1, 4)))
    return image


def scene(seed):
    """A picture, uint8 ``(SIZE, SIZE, 3)``, boxes of what is seen of each object, kinds, and regions to ignore."""
    random = np.random.default_rng(seed)
    image = ground(random)
    count = min(MOST, int(random.integers(1, 7)) if random.random() < 0.6 else int(random.integers(6, MOST + 1)))
    alike = random.random() < 0.4  # many objects of a few looks, as under a microscope
    largest = 220.0 if count < 7 else 100.0
    looks = []
    for _ in range(int(random.integers(1, 4)) if alike else count):
        looks.append(
            (
                KINDS[int(random.integers(len(KINDS)))],
                math.exp(random.uniform(math.log(14), math.log(largest))),
                colour(random),
                random.uniform(0.6, 1.0) if random.random() < 0.3 else 1.0,
                random.random() < 0.3,
            )
        )
    owner = np.full((SIZE, SIZE), -1, np.int16)
    found, areas = [], []
    for number in range(count):
        kind, side, base, alpha, inner = looks[int(random.integers(len(looks)))]
        side = side * math.exp(random.normal(0, 0.12))
        corners = outline(kind, random, side) + random.uniform(0.02 * SIZE, 0.98 * SIZE, 2)
        low = np.floor(corners.min(axis=0)).astype(int)
        high = np.ceil(corners.max(axis=0)).astype(int) + 1
        width, height = (high - low).tolist()
        base = np.clip(base + random.normal(0, 10, 3), 0, 255)
        part = photo(random, height, width) if kind.startswith("photo") else texture(random, height, width, base)
        patch = Image.fromarray(part)
        canvas = ImageDraw.Draw(patch)
        if inner and not kind.startswith("photo"):
            middle = corners.mean(axis=0) - low
            for _ in range(int(random.integers(1, 4))):
                spot = outline(KINDS[int(random.integers(7))], random, side * random.uniform(0.15, 0.55))
                spot = spot + middle + random.normal(0, side * 0.12, 2)
                canvas.polygon([tuple(one) for one in spot], fill=tuple(random.integers(0, 256, 3).tolist()))
        mask = Image.new("L", (width, height))
        drawn = ImageDraw.Draw(mask)
        drawn.polygon([tuple(one) for one in corners - low], fill=255)
        if kind == "ring":
            drawn.polygon(
                [tuple(one) for one in (corners - corners.mean(axis=0)) * 0.6 + corners.mean(axis=0) - low], fill=0
            )
        if random.random() < 0.2 and side > 24:
            edge = [tuple(one) for one in corners - low]
            canvas.line(
                [*edge, edge[0]], fill=tuple(random.integers(0, 256, 3).tolist()), width=int(random.integers(1, 4))
            )
        shown = mask.point(lambda value, alpha=alpha: int(value * alpha))
        image.paste(patch, tuple(low.tolist()), shown)
        left, top = np.maximum(low, 0)
        right, bottom = np.minimum(high, SIZE)
        seen = np.asarray(mask)[top - low[1] : bottom - low[1], left - low[0] : right - low[0]] > 127
        whole = float((np.asarray(mask) > 127).sum())
        if right <= left or bottom <= top or whole < 20:
            found.append(None)
            areas.append(1.0)
            continue
        owner[top:bottom, left:right][seen] = number
        x1, y1 = np.clip(corners.min(axis=0), 0, SIZE)
        x2, y2 = np.clip(corners.max(axis=0), 0, SIZE)
        found.append((x1, y1, x2, y2, KINDS.index(kind)))
        areas.append(whole)
    visible = np.bincount(owner[owner >= 0].ravel(), minlength=count)
    boxes, labels, ignored = [], [], []
    for number, one in enumerate(found):
        if one is None or min(one[2] - one[0], one[3] - one[1]) < 5:
            continue
        share = visible[number] / areas[number]
        if share >= 0.4:
            boxes.append(one[:4])
            labels.append(one[4])
        elif share > 0.08:
            ignored.append(one[:4])
    if random.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.4, 2.2))))
    pixels = np.asarray(image).astype(np.float32)
    if random.random() < 0.15:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    pixels = (pixels - 128) * random.uniform(0.6, 1.15) + 128 + random.normal(0, 18)
    if random.random() < 0.5:
        pixels = pixels + random.normal(0, random.uniform(1, 9), pixels.shape)
    empty = np.zeros((0, 4), np.float32)
    return (
        np.clip(pixels, 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(ignored, np.float32) if ignored else empty,
    )


def open_photos(archive, limit=20000):
    """Decodes photos of an archive, once a process."""
    global _PHOTOS
    some = []
    with tarfile.open(archive) as members:
        for member in members:
            if member.name.lower().endswith(".jpeg"):
                some.append(np.asarray(Image.open(io.BytesIO(members.extractfile(member).read())).convert("RGB")))
            if len(some) >= limit:
                break
    _PHOTOS = np.stack(some)


def batch_of(seeds):
    """The scenes of a batch."""
    return [scene(seed) for seed in seeds]


def main():
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="tar of small JPEGs: parts of objects and of the ground")
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=60000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    import tensorflow as tf
    from safetensors.numpy import save_file

    from resfit import engines
    from resfit.tasks.detection import losses, network
    from resfit.tasks.detection.feeds import padded
    from resfit.tasks.detection.targets import Places, assign
    from resfit.training import loop

    size = (SIZE, SIZE)
    fields = {"pyramid_width": options.width, "head_width": options.width, "norm_groups": 16, "quality": None}
    made = network.build("resnet10_tiny", len(KINDS), size, seed=0, pretrained_head=False, **fields)
    rows_of, shapes = network.row_model(made)
    body = engines.create(rows_of, "auto")
    places = Places.of(made.spec, size)
    points = tf.constant(places.points)
    layers = [layer for layer in made.head.layers if layer.trainable_variables]
    variables = [v for layer in layers for v in layer.trainable_variables]
    names = [f"{layer.name}/{v.name}" for layer in layers for v in layer.trainable_variables]
    optimizer = loop.Optimizer(variables, "adamw", scales=[1.0] * len(variables), weight_decay=0.02)
    averages = [tf.Variable(v.value, trainable=False) for v in variables]

    @tf.function(reduce_retracing=True)
    def step(rows, targets, boxes, labels, rate, number):
        maps = shapes.maps(tf.cast(rows, tf.float32))
        with tf.GradientTape() as tape:
            found = losses.detection_loss(made.head(maps), points, tf.cast(targets, tf.int32), boxes, labels)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(found["total"], [v.value for v in variables]), 10.0)
        optimizer.apply(gradients, rate, number)
        decay = tf.minimum(0.999, (tf.cast(number, tf.float32) + 1) / (tf.cast(number, tf.float32) + 11))
        for average, variable in zip(averages, variables, strict=True):
            average.assign_add((1.0 - decay) * (variable.value - average))
        return found["class"], found["box"]

    options.output.mkdir(parents=True, exist_ok=True)
    steps = options.images // options.batch
    began = 0
    held = {"v": variables, "slot": optimizer.slots, "ema": averages}
    checkpoint = loop.load_checkpoint(options.output)
    if checkpoint is not None:
        began = checkpoint.state["step"]
        for name, values in held.items():
            for i, variable in enumerate(values):
                variable.assign(checkpoint.arrays[f"{name}{i}"])
    saved, sums, said = time.monotonic(), np.zeros(2), began
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        options.workers, context, initializer=open_photos, initargs=(options.photos,)
    ) as pool:
        ahead = {}
        for number in range(began, steps):
            for later in range(number, min(steps, number + 4 * options.workers)):
                if later not in ahead:
                    seeds = [later * options.batch + i for i in range(options.batch)]
                    ahead[later] = pool.submit(batch_of, seeds)
            scenes = ahead.pop(number).result()
            rows = body.run(np.stack([one[0] for one in scenes])).astype(np.float32)
            targets = np.stack([assign(places, one[1], one[3]) for one in scenes])
            boxes, labels = padded([(one[1], one[2]) for one in scenes], MOST)
            rate = loop.rate("cosine", options.learning_rate, 0.02, number / steps)
            sums += [float(part) for part in step(rows, targets, boxes, labels, np.float32(rate), np.int64(number))]
            if (number + 1) % 100 == 0:
                print(
                    f"step {number + 1} of {steps}: class {sums[0] / (number + 1 - said):.3f}, "
                    f"box {sums[1] / (number + 1 - said):.3f}",
                    flush=True,
                )
                sums, said = np.zeros(2), number + 1
            if time.monotonic() - saved > 120 or number + 1 == steps:
                arrays = {f"{name}{i}": v.numpy() for name, values in held.items() for i, v in enumerate(values)}
                loop.save_checkpoint(options.output, {"step": number + 1}, arrays)
                saved = time.monotonic()
                weights = {
                    name: np.asarray(average.numpy(), np.float16)
                    for name, average in zip(names, averages, strict=True)
                    if not name.startswith("class_logits_conv")
                }
                save_file(weights, options.output / "head.safetensors", {"fields": json.dumps(fields)})


if __name__ == "__main__":
    main()
